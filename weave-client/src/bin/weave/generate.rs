//! `weave generate`.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use weave_client::weave_core::request::Prompts;
use weave_client::{Client, Error, ErrorCode, Image, Params, Progress};

use crate::args::Generate;
use crate::exit::{self, Exit, Failure, say, tell, write_out};
use crate::output::{Output, Unfinished};
use crate::show::Screen;
use crate::waiting::Waiting;
use crate::{interrupt, png_file, prompt};

/// Requests under way at a time. A daemon with several workers has something to do for each.
const UNDER_WAY: usize = 4;

pub(crate) fn run(args: &Generate) -> Result<(), Failure> {
    let prompt = prompt::read(args)?;
    let params = params(args, &prompt)?;
    let stdout_is_taken = args.output.as_deref() == Some(Path::new("-"));
    if stdout_is_taken && (args.count > 1 || args.json || args.show.is_some()) {
        let what = "-o - writes one image to standard output, and nothing else";
        return Err(Failure::new(Exit::Usage, what).next("leave out -n, --json and --show, or name a file"));
    }
    let client = exit::client(&args.daemon)?;
    let screen = args.show.map(Screen::find).transpose()?;

    let waiting = Waiting::start(args.quiet);
    let unfinished = Unfinished::default();
    let made = Arc::new(AtomicU32::new(0));
    let (clear, remove, count) = (waiting.clear(), unfinished.clone(), report(&made, args.count));
    let tidy_up = move || {
        clear();
        remove.remove();
        count();
    };
    interrupt::watch(tidy_up)
        .map_err(|error| Failure::new(Exit::Local, format_args!("can't watch for signals: {error}")))?;

    let count = report(&made, args.count);
    let mut work = Work { args, params, prompt, screen, client, waiting, unfinished, made };
    work.client.set_timeout(args.timeout);
    let done = work.run();
    drop(work);
    if done.is_err() {
        count();
    }
    done
}

/// Says how many of several images there are.
fn report(made: &Arc<AtomicU32>, count: u32) -> impl FnOnce() + Send + use<> {
    let made = Arc::clone(made);
    move || {
        let made = made.load(Ordering::Relaxed);
        if made > 0 && count > 1 {
            say(format_args!("{made} of {count} images were made"));
        }
    }
}

/// What to ask for, checked before anything else is done. The seed is drawn here and not by the
/// daemon, which would not tell it.
fn params(args: &Generate, prompt: &str) -> Result<Params, Failure> {
    let mut params = Params {
        width: args.width,
        height: args.height,
        steps: args.steps,
        cfg_scale: args.cfg,
        seed: args.seed,
    };
    params.check().and_then(|()| Prompts::same(prompt).check()).map_err(Error::Invalid)?;
    if params.seed == 0 {
        // 32 bits are what other programs take, and not too much to type.
        let drawn = getrandom::u32().map_err(|error| {
            Failure::new(Exit::Local, format_args!("the system gives no random numbers: {error}"))
                .next("choose a seed with --seed N")
        })?;
        params.seed = u64::from(drawn.max(1));
    }
    let last = u64::from(args.count - 1);
    if params.seed.checked_add(last).is_none() {
        let most = u64::MAX - last;
        let what = format_args!("seed is {}, must be at most {most} for {} images", params.seed, args.count);
        return Err(Failure::new(Exit::Usage, what).next("change it with --seed N"));
    }
    Ok(params)
}

struct Work<'a> {
    args: &'a Generate,
    /// Of the first image.
    params: Params,
    prompt: String,
    screen: Option<Screen>,
    client: Client,
    waiting: Waiting,
    unfinished: Unfinished,
    made: Arc<AtomicU32>,
}

/// A request under way: which of the images, and since when.
struct Asked {
    request_id: u64,
    index: u32,
    since: Instant,
}

impl Work<'_> {
    fn run(&mut self) -> Result<(), Failure> {
        for index in 0..self.args.count {
            Output::check(&self.path(index), self.args.force)?;
        }
        let mut output = Some(self.prepare(0)?);
        let mut to_ask: VecDeque<u32> = (0..self.args.count).collect();
        let mut asked: Vec<Asked> = Vec::new();
        self.wait_for_next();
        loop {
            while asked.len() < UNDER_WAY
                && let Some(index) = to_ask.pop_front()
            {
                let since = Instant::now();
                let request_id = self.client.send(&self.params(index), &self.prompt)?;
                asked.push(Asked { request_id, index, since });
                self.waiting.show(Progress::Sent);
            }
            let waiting = &mut self.waiting;
            let Some(answer) = self.client.receive_with(|_, progress| waiting.show(progress)) else {
                return Ok(());
            };
            let Some(at) = asked.iter().position(|asked| asked.request_id == answer.request_id) else {
                continue;
            };
            let Asked { index, since, .. } = asked.swap_remove(at);
            let image = match answer.result {
                Ok(image) => image,
                // There is room when one of the others is done.
                Err(Error::Refused(refusal)) if refusal.code == ErrorCode::Busy && !asked.is_empty() => {
                    to_ask.push_front(index);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            self.waiting.pause();
            // The first place was prepared for the first image, which may not be the first to come.
            let place = match output.take() {
                Some(first) if index == 0 => first,
                first => {
                    drop(first);
                    self.prepare(index)?
                }
            };
            self.finish(place, &image, index, since.elapsed())?;
            self.made.fetch_add(1, Ordering::Relaxed);
            if !(asked.is_empty() && to_ask.is_empty()) {
                self.wait_for_next();
                self.waiting.show(Progress::Sent);
            }
        }
    }

    fn params(&self, index: u32) -> Params {
        // `params` has made sure that there are so many seeds.
        Params { seed: self.params.seed.saturating_add(u64::from(index)), ..self.params }
    }

    fn path(&self, index: u32) -> PathBuf {
        match &self.args.output {
            None => PathBuf::from(format!("weave-{}.png", self.params(index).seed)),
            Some(path) if self.args.count == 1 => path.clone(),
            Some(path) => numbered(path, index + 1, self.args.count),
        }
    }

    fn prepare(&self, index: u32) -> Result<Output, Failure> {
        Output::prepare(self.path(index), self.args.force, &self.unfinished)
    }

    fn wait_for_next(&mut self) {
        let Params { width, height, steps, cfg_scale, seed } = self.params;
        let (next, count) = (self.made.load(Ordering::Relaxed) + 1, self.args.count);
        let what = format!("{width}×{height}, {steps} steps, cfg {cfg_scale}");
        self.waiting.wait_for(match count {
            1 => format!("{what}, seed {seed}"),
            _ => format!("{next} of {count}: {what}, seeds from {seed}"),
        });
    }

    fn finish(&self, place: Output, image: &Image, index: u32, took: Duration) -> Result<(), Failure> {
        let params = self.params(index);
        let png = png_file::encode(image, &params, &self.prompt).map_err(|error| {
            Failure::new(Exit::Local, format_args!("can't make a PNG of the image: {error}"))
        })?;
        let file = place.finish(&png)?;
        if let Some(screen) = &self.screen {
            write_out(&screen.picture(image, &png))?;
        }
        if self.args.json {
            let report = Report {
                file: file.unwrap_or_default().display().to_string(),
                bytes: png.len(),
                width: params.width,
                height: params.height,
                channels: image.size.channels().count(),
                steps: params.steps,
                cfg_scale: params.cfg_scale,
                seed: params.seed,
                generation_seconds: f64::from(image.generation_time_ms) / 1e3,
                total_seconds: took.as_secs_f64(),
            };
            let report = serde_json::to_string(&report)
                .map_err(|error| Failure::new(Exit::Local, format_args!("can't make JSON: {error}")))?;
            return tell(format_args!("{report}"));
        }
        if self.args.quiet {
            return Ok(());
        }
        let result = format!(
            "{}×{}, seed {}, generated in {:.1} s ({:.1} s in all)",
            image.size.width(),
            image.size.height(),
            params.seed,
            Duration::from_millis(image.generation_time_ms.into()).as_secs_f64(),
            took.as_secs_f64()
        );
        match file {
            Some(path) => tell(format_args!("{}: {result}", path.display())),
            None => {
                say(format_args!("{result}"));
                Ok(())
            }
        }
    }
}

/// What `--json` says of an image.
#[derive(Serialize)]
struct Report {
    file: String,
    bytes: usize,
    width: u32,
    height: u32,
    channels: u32,
    steps: u32,
    cfg_scale: f32,
    seed: u64,
    generation_seconds: f64,
    total_seconds: f64,
}

/// `cat.png` as `cat-07.png`, if it is the seventh of ten to 99.
fn numbered(path: &Path, number: u32, of: u32) -> PathBuf {
    let digits = of.to_string().len();
    let mut name = OsString::from(path.file_stem().unwrap_or_default());
    name.push(format!("-{number:0digits$}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_before_the_extension_and_sort() {
        let name = |path: &str, number, of| numbered(Path::new(path), number, of).display().to_string();
        assert_eq!(name("cat.png", 1, 9), "cat-1.png");
        assert_eq!(name("a.b/cat.x.png", 7, 10), "a.b/cat.x-07.png");
        assert_eq!(name("/cat", 7, 1000), "/cat-0007");
    }
}
