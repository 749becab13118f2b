//! The worker: an engine on a Weave stream.
//!
//! Reads one request, generates, writes the answer, reads the next. The pixels go to the socket
//! from the buffer that the engine made them in: head and buffer in one vectored write, no copy.

use std::io::{self, IoSlice, Read, Write};
use std::time::Instant;

use weave_core::error::{self, ErrorCode};
use weave_core::frame::Deframer;
use weave_core::limits::{MAX_ERROR_FRAME, MAX_REQUEST_FRAME, MAX_SKIPPED_PAYLOAD};
use weave_core::request::{self, Params, Request};
use weave_core::response::ResponseHead;

use crate::config::{Config, EngineKind};
use crate::engine::pattern::Pattern;
use crate::engine::{Engine, Generation, Image, Reading};
use crate::logger;
use crate::scoreboard::{Control, Phase};

/// What is done once, when the engine has read its model: files are closed to it. Whether they are now.
pub type Settle<'a> = &'a dyn Fn() -> Result<Settled, String>;

/// Whether the engine can still read files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Nothing was taken from it.
    Open,
    /// It can't.
    Closed,
}

/// Takes nothing, for an engine without a sandbox.
///
/// # Errors
/// None.
pub const fn stay_open() -> Result<Settled, String> {
    Ok(Settled::Open)
}

/// Makes the engine that the settings ask for and serves it on `stream`. `control` says how far it is, and
/// which request it is to cancel.
///
/// # Errors
/// The engine can't be made, or the stream failed, or `settle` did.
pub fn run(
    config: &Config,
    mut stream: impl Read + Write,
    mut control: Control,
    settle: Settle<'_>,
) -> Result<(), String> {
    control.report(Phase::Load, 0, 0);
    let mut engine: Box<dyn Engine> = match config.engine {
        EngineKind::Pattern => Box::new(Pattern::new(config.pattern, config.faults.clone())),
        #[cfg(feature = "sdcpp")]
        EngineKind::Sdcpp => Box::new({
            let (model, tuning) = (config.model.clone(), config.tuning.clone());
            crate::engine::sdcpp::Sdcpp::load(model, tuning, config.decided().threads, &control)?
        }),
        #[cfg(not(feature = "sdcpp"))]
        EngineKind::Sdcpp => return Err("this weaved was built without the sdcpp engine".to_owned()),
    };
    match serve(&mut stream, &mut *engine, &mut control, settle) {
        // The peer may close whenever it likes.
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
            Ok(())
        }
        other => other.map_err(|error| match error.raw_os_error() {
            Some(_) => format!("the connection to whoever gives this worker its requests: {error}"),
            None => error.to_string(),
        }),
    }
}

/// Serves requests until the peer closes the stream.
///
/// # Errors
/// The stream failed, or the peer's bytes could not be followed any further, or `settle` failed, or the engine has to
/// read files that are closed to it: a worker that is started anew can.
pub fn serve(
    stream: &mut (impl Read + Write),
    engine: &mut dyn Engine,
    control: &mut Control,
    settle: Settle<'_>,
) -> io::Result<()> {
    let mut input = Deframer::<MAX_REQUEST_FRAME>::new(MAX_SKIPPED_PAYLOAD);
    let mut settled = None;
    loop {
        match (engine.reading(), settled) {
            (Reading::Done, None) => settled = Some(settle().map_err(io::Error::other)?),
            (Reading::Again, Some(Settled::Closed)) => {
                return Err(io::Error::other(
                    "the engine has lost its model, and a worker that has drawn reads no files",
                ));
            }
            _ => {}
        }
        match input.next_frame() {
            Ok(Some(arrived)) => {
                control.next_request();
                match request::parse_arrived(&arrived) {
                    Ok(request) => answer(stream, engine, &request, control)?,
                    Err(error) => {
                        let (id, code) = (arrived.request_id(), error.code());
                        log::warn!("request {id} refused: {code}: {error}");
                        refuse(stream, id, code, &error)?;
                    }
                }
            }
            Ok(None) => {
                control.report(Phase::Idle, 0, 0);
                let n = match stream.read(input.spare()) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    other => other?,
                };
                if n == 0 {
                    return Ok(());
                }
                input.filled(n);
            }
            Err(error) => {
                refuse(stream, 0, error.code(), &error)?;
                let why = format!("can't follow what whoever gives this worker its requests sends: {error}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
        }
    }
}

/// Generates and answers.
fn answer(
    stream: &mut impl Write,
    engine: &mut dyn Engine,
    request: &Request<'_>,
    control: &Control,
) -> io::Result<()> {
    let id = request.request_id;
    if !request.prompts.are_equal() {
        log::warn!("request {id}: the three prompts differ; using the one for CLIP-L for all");
    }
    let params = Params { seed: used_seed(request.params.seed)?, ..request.params };
    let Params { width, height, steps, cfg_scale, seed } = params;
    log::info!("request {id}: {width}×{height}, {steps} steps, cfg {cfg_scale}, seed {seed}");
    if logger::shows_prompts() {
        log::info!("request {id}: prompt {:?}", request.prompts.clip_l());
    }
    let started = Instant::now();
    let result = engine.generate(&Generation { params, prompt: request.prompts.clip_l() }, control);
    let took = started.elapsed();
    match result {
        Ok(image) => {
            log::info!("request {id}: done in {:.3} s", took.as_secs_f64());
            let generation_time_ms = u32::try_from(took.as_millis()).unwrap_or(u32::MAX);
            send(stream, ResponseHead { request_id: id, generation_time_ms, image: image.size() }, &image)
        }
        // Answered all the same: only then does the daemon give this worker another one.
        Err(error) if control.is_cancelled() => {
            log::info!("request {id}: cancelled after {:.3} s", took.as_secs_f64());
            refuse(stream, id, error.code, &error)
        }
        Err(error) => {
            log::error!("request {id}: {} after {:.3} s: {error}", error.code, took.as_secs_f64());
            refuse(stream, id, error.code, &error)
        }
    }
}

/// Writes the head and the engine's own buffer. The image is freed by the caller, after the last
/// byte is out.
fn send(stream: &mut impl Write, head: ResponseHead, image: &Image) -> io::Result<()> {
    let head = head.emit();
    let mut parts = [IoSlice::new(&head), IoSlice::new(image.pixels())];
    let mut rest = parts.as_mut_slice();
    while !rest.is_empty() {
        match stream.write_vectored(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => IoSlice::advance_slices(&mut rest, n),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    stream.flush()
}

fn refuse(
    stream: &mut impl Write,
    request_id: u64,
    code: ErrorCode,
    text: &dyn std::fmt::Display,
) -> io::Result<()> {
    stream.write_all(error::emit_frame(request_id, code, text, &mut [0; MAX_ERROR_FRAME]))
}

/// The request's seed, or one from the operating system's random numbers if it left the choice.
fn used_seed(asked: u64) -> io::Result<u64> {
    let mut seed = asked;
    while seed == 0 {
        seed = getrandom::u64()?;
    }
    Ok(seed)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use std::os::unix::net::UnixStream;

    use weave_core::request::Prompts;
    use weave_core::response::ImageSize;

    use super::*;
    use crate::engine::EngineError;

    /// Reads its model for its first image, and loses it over a prompt.
    struct Forgetful(Reading);

    impl Engine for Forgetful {
        fn generate(&mut self, generation: &Generation<'_>, _: &Control) -> Result<Image, EngineError> {
            if generation.prompt == "forget" {
                self.0 = Reading::Again;
                return Err(EngineError::cancelled());
            }
            self.0 = Reading::Done;
            Image::new(ImageSize::new(64, 64, 3).unwrap(), vec![0; 64 * 64 * 3])
        }

        fn reading(&self) -> Reading {
            self.0
        }
    }

    /// How a worker ends that is asked for these, how often it has settled, and how many bytes it has answered.
    fn serve_all(prompts: &[&str], settled: Settled) -> (io::Result<()>, u32, usize) {
        let (mut client, mut stream) = UnixStream::pair().unwrap();
        for prompt in prompts {
            let params = Params { width: 64, height: 64, steps: 1, cfg_scale: 1.0, seed: 1 };
            let request = Request { request_id: 1, params, prompts: Prompts::same(prompt) };
            client.write_all(request.emit(&mut [0; MAX_REQUEST_FRAME]).unwrap()).unwrap();
        }
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let times = Cell::new(0);
        let settle = || {
            times.set(times.get() + 1);
            Ok(settled)
        };
        let mut engine = Forgetful(Reading::Before);
        let result = serve(&mut stream, &mut engine, &mut Control::none(), &settle);
        drop(stream);
        let mut answers = Vec::new();
        client.read_to_end(&mut answers).unwrap();
        (result, times.get(), answers.len())
    }

    #[test]
    fn files_are_closed_once_and_after_the_engine_has_read_them() {
        let (result, times, len) = serve_all(&["a", "b"], Settled::Closed);
        assert!(result.is_ok() && times == 1 && len > 2 * 64 * 64 * 3);
        let (result, times, _) = serve_all(&[], Settled::Closed);
        assert!(result.is_ok() && times == 0);
    }

    #[test]
    fn an_engine_that_has_lost_its_model_goes_on_only_where_it_can_read_it() {
        let (result, _, closed) = serve_all(&["a", "forget", "b"], Settled::Closed);
        assert!(result.unwrap_err().to_string().contains("lost its model"));
        // The answer is out all the same.
        assert!(closed > 64 * 64 * 3 + 48, "{closed}");
        let (result, _, open) = serve_all(&["a", "forget", "b"], Settled::Open);
        assert!(result.is_ok() && open > closed + 64 * 64 * 3);
        let (result, times, _) = serve_all(&["forget", "b"], Settled::Closed);
        assert!(result.is_ok() && times == 1);
    }
}
