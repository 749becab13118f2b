//! `weave generate`.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use clap::ValueHint;
use serde::Serialize;
use weave_cli_base::arguments::{DEFAULTS, random_seed, seconds};
use weave_cli_base::console::{Layout, say, tell, tell_json, write_out};
use weave_cli_base::daemon::Daemon;
use weave_cli_base::exit::{Exit, Failure, help};
use weave_cli_base::image::{How, Made};
use weave_cli_base::png_file;
use weave_client::weave_core::request::Prompts;
use weave_client::{Client, Error, ErrorCode, Params, Progress};
#[cfg(feature = "gateway")]
use weave_gateway::{Ask, Named, ProviderSettings, Providers};

use crate::interrupt;
use crate::output::{Existing, Output, Unfinished};
use crate::prompt::Prompt;
use crate::show::{Screen, Show};
use crate::waiting::Waiting;

const EXAMPLES: &str = "\
Examples:
  weave generate \"a cat in space\"                  writes weave-SEED.png
  weave generate \"a cat in space\" -o cat.png --seed 7
                                                   the same seed draws the same image again
  weave generate \"a cat in space\" -n 4 -o cat.png  cat-1.png to cat-4.png, with seeds one after the other
  weave generate --prompt-file cat.txt --show      the image is shown in the terminal as well
  fortune | weave generate - --json | jq .file     the prompt comes from standard input
  weave generate \"a cat in space\" -o - | display   the image goes to standard output
";

/// Generate an image from a prompt and write it as a PNG file.
///
/// Prints one line: file, size, seed, the engine's time and the total time. The file also holds prompt and
/// parameters, where other programs look for them.
///
/// In a prompt (red:1.2) and [red] are weights, and \( is a bracket; docs/prompts.md has the rest. What is another program's
/// syntax, such as <lora:x:1>, is refused or warned of.
#[derive(Debug, clap::Args)]
#[command(after_help = help(EXAMPLES))]
pub(crate) struct Generate {
    #[command(flatten)]
    prompt: Prompt,

    /// File to write; "-" is standard output [default: weave-SEED.png]
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    output: Option<PathBuf>,

    /// Number of images: 1 to 1000. Seeds count up, and FILE gets a number: cat-1.png for cat.png
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1, hide_default_value = true,
        value_parser = clap::value_parser!(u32).range(1..=1000))]
    count: u32,

    /// Replace the file if it exists
    #[arg(short, long)]
    force: bool,

    /// Width in pixels: 64 to 2048, a multiple of 64 [default: 512]
    #[arg(long, value_name = "N")]
    width: Option<u32>,

    /// Height in pixels: 64 to 2048, a multiple of 64 [default: 512]
    #[arg(long, value_name = "N")]
    height: Option<u32>,

    /// Denoising steps: 1 to 100 [default: 28]
    #[arg(long, value_name = "N")]
    steps: Option<u32>,

    /// Guidance scale, how strictly the image follows the prompt: 0 to 20 [default: 7]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    cfg: Option<f32>,

    /// Seed: the same one gives the same image; 0 draws one at random
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    seed: u64,

    #[command(flatten)]
    daemon: Daemon,

    /// Fail if an answer takes longer than this [default: no limit]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,

    /// Show the image in the terminal, in a way that it supports or in the one that HOW names
    #[arg(long, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "auto",
        conflicts_with = "json")]
    show: Option<Show>,

    /// Print a line of JSON for each image
    #[arg(long)]
    json: bool,

    /// Print nothing but errors; with --json, nothing but JSON
    #[arg(short, long)]
    quiet: bool,

    // The last, because its heading would be that of what comes after it.
    #[cfg(feature = "gateway")]
    #[command(flatten)]
    providers: ProviderSettings,
}

/// Requests under way at a time. A daemon with several workers has something to do for each.
const UNDER_WAY: usize = 4;

pub(crate) fn run(args: &Generate) -> Result<(), Failure> {
    let prompt = args.prompt.read(|| {
        if !args.quiet {
            say(format_args!("type the prompt, then Enter and Ctrl-D"));
        }
    })?;
    let params = params(args, &prompt)?;
    weave_cli_base::syntax::check(&prompt, args.quiet)?;
    let stdout_is_taken = args.output.as_deref() == Some(Path::new("-"));
    if stdout_is_taken && (args.count > 1 || args.json || args.show.is_some()) {
        let what = "-o - writes one image to standard output, and nothing else";
        return Err(Failure::new(Exit::Usage, what).next("leave out -n, --json and --show, or name a file"));
    }
    let source = source(args)?;
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
    let mut work = Work { args, params, prompt, screen, waiting, unfinished, made };
    let done = match source {
        Source::Daemon(mut client) => work.ask_daemon(&mut client),
        #[cfg(feature = "gateway")]
        Source::Providers(providers) => work.ask_providers(&providers),
    };
    drop(work);
    if done.is_err() {
        count();
    }
    done
}

/// Who makes the images.
enum Source {
    /// The daemon and nobody else: with some under way, so that no worker waits for this client.
    Daemon(Box<Client>),
    /// Whoever can, one after the other.
    #[cfg(feature = "gateway")]
    Providers(Providers),
}

fn source(args: &Generate) -> Result<Source, Failure> {
    #[cfg(feature = "gateway")]
    if !args.providers.is_local() {
        let providers = args.providers.providers(|| args.daemon.find(), args.timeout)?;
        return Ok(Source::Providers(providers));
    }
    let mut client = args.daemon.client()?;
    client.set_timeout(args.timeout);
    Ok(Source::Daemon(Box::new(client)))
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
        width: args.width.unwrap_or(DEFAULTS.width),
        height: args.height.unwrap_or(DEFAULTS.height),
        steps: args.steps.unwrap_or(DEFAULTS.steps),
        cfg_scale: args.cfg.unwrap_or(DEFAULTS.cfg_scale),
        seed: args.seed,
    };
    params.check().and_then(|()| Prompts::same(prompt).check()).map_err(Error::Invalid)?;
    if params.seed == 0 {
        params.seed = random_seed().map_err(|error| {
            Failure::new(Exit::Local, format_args!("the system gives no random numbers: {error}"))
                .next("choose a seed with --seed N")
        })?;
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
    #[cfg(feature = "gateway")]
    fn ask_providers(&mut self, providers: &Providers) -> Result<(), Failure> {
        self.check_outputs()?;
        let named = Named {
            size: self.args.width.is_some() || self.args.height.is_some(),
            steps: self.args.steps.is_some(),
            cfg: self.args.cfg.is_some(),
            seed: self.args.seed != 0,
        };
        for index in 0..self.args.count {
            let output = self.prepare(index)?;
            let ask = Ask { prompt: self.prompt.clone(), params: self.params(index), named };
            self.wait_for_next();
            let (since, waiting) = (Instant::now(), &mut self.waiting);
            let made = providers.make(
                &ask,
                &weave_client::Stopper::default(),
                |progress| waiting.show(progress),
                |attempt| {
                    say(format_args!("{attempt}; asking the next provider"));
                },
            )?;
            self.waiting.pause();
            self.finish(output, &made, since.elapsed())?;
            self.made.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn check_outputs(&self) -> Result<(), Failure> {
        (0..self.args.count).try_for_each(|index| Output::check(&self.path(index), self.existing()))
    }

    fn ask_daemon(&mut self, client: &mut Client) -> Result<(), Failure> {
        self.check_outputs()?;
        let mut prepared = Some(self.prepare(0)?);
        let mut to_ask: VecDeque<u32> = (0..self.args.count).collect();
        let mut asked: Vec<Asked> = Vec::new();
        let mut most = UNDER_WAY;
        self.wait_for_next();
        loop {
            while asked.len() < most
                && let Some(index) = to_ask.pop_front()
            {
                let since = Instant::now();
                let request_id = client.send(&self.params(index), &self.prompt)?;
                asked.push(Asked { request_id, index, since });
                self.waiting.show(Progress::Sent);
            }
            let waiting = &mut self.waiting;
            let Some(answer) = client.receive_with(|_, progress| waiting.show(progress)) else {
                return Ok(());
            };
            let Some(at) = asked.iter().position(|asked| asked.request_id == answer.request_id) else {
                continue;
            };
            let Asked { index, since, .. } = asked.swap_remove(at);
            let image = match answer.result {
                Ok(image) => image,
                // There is room when one of the others is done, and not before.
                Err(Error::Refused(refusal)) if refusal.code == ErrorCode::Busy && !asked.is_empty() => {
                    most = asked.len();
                    to_ask.push_front(index);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            most = UNDER_WAY.min(most + 1);
            self.waiting.pause();
            // It was prepared for the first image, which may not be the first to come.
            let output = match prepared.take() {
                Some(first) if index == 0 => first,
                first => {
                    drop(first);
                    self.prepare(index)?
                }
            };
            let made = Made::local(image, self.params(index));
            self.finish(output, &made, since.elapsed())?;
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
        Output::prepare(self.path(index), self.existing(), &self.unfinished)
    }

    fn existing(&self) -> Existing {
        if self.args.force { Existing::Replace } else { Existing::Keep }
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

    fn finish(&self, output: Output, made: &Made, took: Duration) -> Result<(), Failure> {
        let png = png_file::encode(made, &self.prompt).map_err(|error| {
            Failure::new(Exit::Local, format_args!("can't make a PNG of the image: {error}"))
        })?;
        let file = output.finish(&png)?;
        if let Some(screen) = &self.screen {
            write_out(&screen.picture(made, &png))?;
        }
        if self.args.json {
            let file = file.unwrap_or_default().display().to_string();
            return tell_json(&Report::of(made, file, png.len(), took), Layout::Line);
        }
        if self.args.quiet {
            return Ok(());
        }
        let result = result(made, took.as_secs_f64());
        match file {
            Some(path) => tell(format_args!("{}: {result}", path.display())),
            None => {
                say(format_args!("{result}"));
                Ok(())
            }
        }
    }
}

/// The line for people.
fn result(made: &Made, in_all: f64) -> String {
    let (width, height) = (made.width, made.height);
    match &made.how {
        How::Local { params, generation_time_ms } => format!(
            "{width}×{height}, seed {}, generated in {:.1} s ({in_all:.1} s in all)",
            params.seed,
            Duration::from_millis((*generation_time_ms).into()).as_secs_f64(),
        ),
        How::Cloud { model, dropped, .. } => {
            let dropped = match dropped.as_slice() {
                [] => String::new(),
                dropped => format!(", without {}, which it doesn't take", dropped.join(" and ")),
            };
            format!("{width}×{height}, made by {} ({model}) in {in_all:.1} s{dropped}", made.by.as_str())
        }
    }
}

/// What `--json` says of an image.
#[derive(Serialize)]
struct Report<'a> {
    file: String,
    bytes: usize,
    width: u32,
    height: u32,
    channels: u32,
    provider: &'static str,
    #[serde(flatten)]
    how: ReportHow<'a>,
    total_seconds: f64,
}

#[derive(Serialize)]
#[serde(untagged)]
enum ReportHow<'a> {
    Local { steps: u32, cfg_scale: f32, seed: u64, generation_seconds: f64 },
    Cloud { model: &'a str, dropped: &'a [&'static str] },
}

impl<'a> Report<'a> {
    fn of(made: &'a Made, file: String, bytes: usize, took: Duration) -> Self {
        let how = match &made.how {
            How::Local { params, generation_time_ms } => ReportHow::Local {
                steps: params.steps,
                cfg_scale: params.cfg_scale,
                seed: params.seed,
                generation_seconds: f64::from(*generation_time_ms) / 1e3,
            },
            How::Cloud { model, dropped, .. } => ReportHow::Cloud { model, dropped },
        };
        Self {
            file,
            bytes,
            width: made.width,
            height: made.height,
            channels: made.channels.count(),
            provider: made.by.as_str(),
            how,
            total_seconds: took.as_secs_f64(),
        }
    }
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
