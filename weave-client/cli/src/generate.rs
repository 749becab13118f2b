//! `weave generate`.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use clap::ValueHint;
use serde::Serialize;
use weave_cli_base::arguments::seconds;
use weave_cli_base::console::{Layout, say, tell, tell_json, write_out};
use weave_cli_base::daemon::Daemon;
use weave_cli_base::exit::{Exit, Failure, help};
use weave_cli_base::format::Format;
use weave_cli_base::image::{How, Made};
use weave_cli_base::model::Model;
use weave_client::weave_core::request::Prompts;
use weave_client::{Client, Error, ErrorCode, Params, Progress, random_seed};
#[cfg(feature = "gateway")]
use weave_gateway::{Ask, Named, ProviderSettings, Providers};

use crate::beside::{Beside, Teller, Watch};
use crate::interrupt;
use crate::output::{self, Existing, Output, Rescue, Unfinished};
use crate::parameters::{Parameters, count, seed};
use crate::prompt::Prompt;
use crate::show::{Screen, Show};
use crate::waiting::Waiting;

const EXAMPLES: &str = "\
Examples:
  weave generate \"a cat in space\"                  writes weave-SEED.png
  weave generate \"a cat in space\" -o cat.png --seed 7
                                                   the same seed draws the same image again
  weave generate \"a cat in space\" -n 4 -o cat.png  cat-1.png to cat-4.png, with seeds one after the other
  weave generate \"a cat in space\" -o cat.jpg       a JPEG; also .webp
  weave generate --prompt-file cat.txt --show      the image is shown in the terminal as well
  fortune | weave generate - --json | jq .file     the prompt comes from standard input
  weave generate \"a cat in space\" -o - | display   the image goes to standard output
";

/// Generate an image from a prompt and write it as a file.
///
/// Prints one line: file, size, seed, the engine's time and the total time. The file also holds prompt and
/// parameters, where other programs look for them. A PNG can be checked later with `weave verify`.
///
/// In a prompt (red:1.2) is a weight, so are square brackets, and \( is a bracket; docs/prompts.md has the rest. What is another program's
/// syntax, such as <lora:x:1>, is refused or warned of.
#[derive(Debug, clap::Args)]
#[command(after_help = help(EXAMPLES))]
pub(crate) struct Generate {
    #[command(flatten)]
    prompt: Prompt,

    /// File to write: .png, .jpg, .jpeg or .webp; "-" is a PNG to standard output [default: weave-SEED.png]
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    output: Option<PathBuf>,

    /// Number of images: 1 to 1000. Seeds count up, and FILE gets a number: cat-1.png for cat.png
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1, hide_default_value = true,
        value_parser = count::<1000>, allow_negative_numbers = true)]
    count: u64,

    /// Replace the file if it exists
    #[arg(short, long)]
    force: bool,

    #[command(flatten)]
    parameters: Parameters,

    /// Seed: the same one gives the same image; 0 and -1 draw one at random
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, value_parser = seed,
        allow_negative_numbers = true)]
    seed: u64,

    #[command(flatten)]
    daemon: Daemon,

    #[command(flatten)]
    beside: Beside,

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
    check(args.parameters.or(Params::default()), &prompt)?;
    weave_cli_base::syntax::check(&prompt, args.quiet)?;
    let format = format(args.output.as_deref())?;
    let stdout_is_taken = args.output.as_deref() == Some(Path::new("-"));
    if stdout_is_taken && (args.count > 1 || args.json || args.show.is_some()) {
        let what = "-o - writes one image to standard output, and nothing else";
        return Err(Failure::new(Exit::Usage, what).next("leave out -n, --json and --show, or name a file"));
    }
    let source = source(args)?;
    let screen = args.show.map(Screen::find).transpose()?;

    let waiting = Waiting::start(args.quiet);
    let unfinished = Unfinished::default();
    let (made, asked) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
    let (clear, remove, count) = (waiting.clear(), unfinished.clone(), report(&made, args.count));
    let is_asked = Arc::clone(&asked);
    let tidy_up = move || {
        clear();
        remove.remove();
        count();
        if is_asked.load(Ordering::Relaxed) { interrupt::ASKED } else { "" }
    };
    interrupt::watch(tidy_up)
        .map_err(|error| Failure::new(Exit::Local, format_args!("can't watch for signals: {error}")))?;

    let teller = teller(args);
    let model = teller.model();
    let params = params(args, model.as_ref())?;
    if let Some(model) = model.as_ref().filter(|model| model.toy && !args.quiet) {
        say_that_it_is_a_toy(model);
    }
    let count = report(&made, args.count);
    let mut work = Work { args, params, prompt, format, model, screen, waiting, unfinished, made, asked };
    let done = match source {
        Source::Daemon(mut client) => work.ask_daemon(&mut client, &teller),
        #[cfg(feature = "gateway")]
        Source::Providers(providers) => work.ask_providers(&providers),
    };
    drop(work);
    if done.is_err() {
        count();
    }
    done
}

/// What tells more of the daemon, if it is the daemon that is asked.
fn teller(args: &Generate) -> Teller {
    #[cfg(feature = "gateway")]
    if !args.providers.has_local() {
        return Teller::silent();
    }
    args.beside.of(&args.daemon)
}

fn say_that_it_is_a_toy(model: &Model) {
    let Model { name, draws, .. } = model;
    let draws = draws.as_ref().map_or_else(String::new, |draws| format!(": it draws {draws}"));
    say(format_args!(
        "this daemon has the {name}, to try Weave with{draws}; docs/models.md says how to get a real one"
    ));
}

/// What the file's name asks for.
fn format(output: Option<&Path>) -> Result<Format, Failure> {
    Format::of(output.unwrap_or(Path::new("-"))).map_err(|suffix| {
        let name = output.unwrap_or(Path::new("-")).display();
        Failure::new(Exit::Usage, format_args!("{name}: images can't be written as .{suffix}"))
            .next("say .png, .jpg, .jpeg or .webp; a name without a suffix becomes a PNG")
    })
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
fn report(made: &Arc<AtomicU32>, count: u64) -> impl FnOnce() + Send + use<> {
    let made = Arc::clone(made);
    move || {
        let made = made.load(Ordering::Relaxed);
        if made > 0 && count > 1 {
            say(format_args!("{made} of {count} images were made"));
        }
    }
}

/// Checks what was named, before anything else is done.
fn check(params: Params, prompt: &str) -> Result<(), Failure> {
    Ok(params.check().and_then(|()| Prompts::same(prompt).check()).map_err(Error::Invalid)?)
}

/// What to ask for. The seed is drawn here and not by the daemon, which would not tell it.
fn params(args: &Generate, model: Option<&Model>) -> Result<Params, Failure> {
    let defaults = model.map_or_else(Params::default, Model::params);
    let mut params = Params { seed: args.seed, ..args.parameters.or(defaults) };
    if params.seed == 0 {
        params.seed = random_seed().map_err(|error| {
            Failure::new(Exit::Local, format_args!("the system gives no random numbers: {error}"))
                .next("choose a seed with --seed N")
        })?;
    }
    let last = args.count - 1;
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
    format: Format,
    /// What the daemon draws with, if it says so.
    model: Option<Model>,
    screen: Option<Screen>,
    waiting: Waiting,
    unfinished: Unfinished,
    made: Arc<AtomicU32>,
    /// Whether the daemon has something to do.
    asked: Arc<AtomicBool>,
}

/// A request under way: which of the images, since when, and how many images there were then.
struct Asked {
    request_id: u64,
    index: u32,
    since: Instant,
    made: u32,
}

impl Work<'_> {
    #[cfg(feature = "gateway")]
    fn ask_providers(&mut self, providers: &Providers) -> Result<(), Failure> {
        self.check_outputs()?;
        let named = Named {
            size: self.args.parameters.has_size(),
            steps: self.args.parameters.steps.is_some(),
            cfg: self.args.parameters.cfg_scale.is_some(),
            seed: self.args.seed != 0,
        };
        for index in 0..self.count() {
            let output = self.prepare(index)?;
            let ask = Ask { prompt: self.prompt.clone(), params: self.params(index), request_id: 1, named };
            self.wait_for_next();
            let (since, waiting) = (Instant::now(), &mut self.waiting);
            let made = providers.make(
                &ask,
                &weave_client::Stopper::default(),
                |progress| waiting.show(progress),
                |attempt| {
                    if self.args.quiet {
                        return;
                    }
                    say(format_args!("{attempt}; asking the next provider"));
                },
            )?;
            self.waiting.pause();
            self.finish(index, Ok(output), &made.drawn_by(self.model_name()), since.elapsed())?;
            self.made.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn count(&self) -> u32 {
        // Its definition allows no more than 1000.
        u32::try_from(self.args.count).unwrap_or(u32::MAX)
    }

    fn model_name(&self) -> Option<&str> {
        self.model.as_ref().map(|model| model.name.as_str())
    }

    fn check_outputs(&self) -> Result<(), Failure> {
        let paths: Vec<_> = (0..self.count()).map(|index| self.path(index)).collect();
        if self.args.json
            && let Some(path) = paths.iter().find(|path| path.to_str().is_none())
        {
            let what = format_args!("{} is not text in UTF-8, and JSON can't name the file", path.display());
            return Err(
                Failure::new(Exit::Usage, what).next("choose another with -o FILE, or leave out --json")
            );
        }
        // As much as the image takes without being compressed, and some text.
        let bytes = u64::from(self.params.width) * u64::from(self.params.height) * 3 + (1 << 16);
        output::check(&paths, self.existing(), bytes, &self.unfinished)
    }

    fn ask_daemon(&mut self, client: &mut Client, teller: &Teller) -> Result<(), Failure> {
        self.check_outputs()?;
        let mut prepared = Some(self.prepare(0)?);
        let shown = self.waiting.is_shown();
        let watch = if shown { teller.watch(client, self.waiting.situation()) } else { None };
        let mut to_ask: VecDeque<u32> = (0..self.count()).collect();
        let mut asked: Vec<Asked> = Vec::new();
        let mut most = UNDER_WAY;
        self.wait_for_next();
        loop {
            while asked.len() < most
                && let Some(index) = to_ask.pop_front()
            {
                let (since, made) = (Instant::now(), self.made.load(Ordering::Relaxed));
                let request_id = client.send(&self.params(index), &self.prompt)?;
                self.asked.store(true, Ordering::Relaxed);
                watch.iter().for_each(|watch: &Watch| watch.asked(request_id));
                asked.push(Asked { request_id, index, since, made });
                self.waiting.show(Progress::Sent);
            }
            let waiting = &mut self.waiting;
            let Some(answer) = client.receive_with(|_, progress| waiting.show(progress)) else {
                return Ok(());
            };
            watch.iter().for_each(|watch| watch.answered(answer.request_id));
            let Some(at) = asked.iter().position(|asked| asked.request_id == answer.request_id) else {
                continue;
            };
            let Asked { index, since, made, .. } = asked.swap_remove(at);
            let image = match answer.result {
                Ok(image) => image,
                // There is room when one of the others is done, and not before.
                Err(Error::Refused(refusal)) if refusal.code == ErrorCode::Busy && !asked.is_empty() => {
                    most = asked.len();
                    to_ask.push_front(index);
                    continue;
                }
                // It answers so many requests on a connection, and no more. Each of these has its seed, so that asking again
                // makes no difference; and since an image has come each time, it has an end.
                Err(Error::HungUp { received: 0 }) if made < self.made.load(Ordering::Relaxed) => {
                    most = 1;
                    to_ask.push_front(index);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            most = UNDER_WAY.min(most + 1);
            self.asked.store(!asked.is_empty(), Ordering::Relaxed);
            self.waiting.pause();
            // It was prepared for the first image, which may not be the first to come.
            let output = match prepared.take() {
                Some(first) if index == 0 => Ok(first),
                first => {
                    drop(first);
                    self.prepare(index)
                }
            };
            let made = Made::local(image, self.params(index)).drawn_by(self.model_name());
            self.finish(index, output, &made, since.elapsed())?;
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
            Some(path) => numbered(path, index + 1, self.count()),
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

    fn finish(
        &self,
        index: u32,
        output: Result<Output, Failure>,
        made: &Made,
        took: Duration,
    ) -> Result<(), Failure> {
        let seed = match &made.how {
            How::Local { params, .. } => Some(params.seed),
            How::Cloud { .. } => None,
        };
        let image = self.format.encode(made, &self.prompt).map_err(|error| {
            let format = self.format.name();
            let seed = seed.map_or_else(String::new, |seed| format!(" (seed {seed})"));
            Failure::new(Exit::Local, format_args!("can't make a {format} file of the image{seed}: {error}"))
        })?;
        let suffix = match self.format {
            Format::Png => ".png",
            Format::Jpeg(_) => ".jpg",
            Format::Webp => ".webp",
        };
        let rescue = Rescue { seed, suffix };
        let file = match output {
            Ok(output) => output.finish(&image, &rescue)?,
            Err(failure) => return Err(rescue.keep(&self.path(index), &image, &failure)),
        };
        if let Some(screen) = &self.screen {
            let as_png;
            let png = match self.format {
                Format::Png => &image,
                // Terminals take no other.
                _ => {
                    as_png = Format::Png.encode(made, &self.prompt).unwrap_or_default();
                    &as_png
                }
            };
            write_out(&screen.picture(made, png))?;
        }
        if self.args.json {
            // It was made sure that it is text.
            let file = file.unwrap_or_default().display().to_string();
            return tell_json(&Report::of(made, &self.prompt, file, image.len(), took), Layout::Line);
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
        How::Local { params, generation_time_ms, .. } => format!(
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
    prompt: &'a str,
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
    Local {
        /// `None`: the daemon doesn't say.
        model: Option<&'a str>,
        steps: u32,
        cfg_scale: f32,
        seed: u64,
        generation_seconds: f64,
    },
    Cloud {
        model: &'a str,
        dropped: &'a [&'static str],
    },
}

impl<'a> Report<'a> {
    fn of(made: &'a Made, prompt: &'a str, file: String, bytes: usize, took: Duration) -> Self {
        let how = match &made.how {
            How::Local { params, generation_time_ms, model } => ReportHow::Local {
                model: model.as_deref(),
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
            prompt,
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
