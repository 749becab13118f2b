//! `weave verify`: whether the daemon makes the same image again.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::ValueHint;
use serde::Serialize;
use weave_cli_base::arguments::seconds;
use weave_cli_base::console::{Layout, read_in, say, tell, tell_json};
use weave_cli_base::daemon::Daemon;
use weave_cli_base::exit::{Exit, Failure, help};
use weave_cli_base::png_file::{self, Decoded};
use weave_client::{Channels, Error, Image, Progress};

use crate::beside::Beside;
use crate::interrupt;
use crate::waiting::Waiting;

const EXAMPLES: &str = "\
Examples:
  weave verify cat.png
  weave verify cat.png --json | jq .most_difference
";

/// Generate the image of a PNG file again and compare the pixels.
///
/// Prompt and parameters are those that `weave generate` wrote into the file. The same daemon with the same
/// model draws the same image; another device may round differently.
#[derive(Debug, clap::Args)]
#[command(after_help = help(EXAMPLES))]
pub(crate) struct Verify {
    /// PNG file made by `weave generate`; "-" is standard input
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    file: PathBuf,

    #[command(flatten)]
    daemon: Daemon,

    #[command(flatten)]
    beside: Beside,

    /// Fail if the answer takes longer than this [default: no limit]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,

    /// Print the result as JSON
    #[arg(long)]
    json: bool,

    /// Print nothing but errors: the exit status is the result
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
}

/// The largest image takes 16 MiB without any compression, and the rest of a file is text.
const MOST: u64 = 1 << 25;

/// What `--json` says.
#[derive(Serialize)]
struct Report {
    file: String,
    same: bool,
    pixels: usize,
    different_pixels: usize,
    /// Of one channel, 0 to 255.
    most_difference: u8,
    generation_seconds: f64,
}

/// `false`: it is another image.
pub(crate) fn run(args: &Verify) -> Result<bool, Failure> {
    let name = args.file.display().to_string();
    let no_input = |what: String| Failure::new(Exit::NoInput, format_args!("{name} {what}"));
    if args.json && args.file.to_str().is_none() {
        let what = format_args!("{name} is not text in UTF-8, and JSON can't name the file");
        return Err(Failure::new(Exit::Usage, what).next("leave out --json, or rename the file"));
    }
    let file = png_file::decode(&read_in(&args.file, MOST)?).map_err(no_input)?;
    let (width, height) = (file.params.width, file.params.height);
    if (file.width, file.height) != (width, height) {
        let what = format!("has {}×{} pixels, and was made with {width}×{height}", file.width, file.height);
        return Err(no_input(what).next("it was resized or cut: there is nothing to compare it with"));
    }
    let mut client = args.daemon.client()?;
    client.set_timeout(args.timeout);
    let mut waiting = Waiting::start(args.quiet);
    let asked = Arc::new(AtomicBool::new(false));
    let (clear, is_asked) = (waiting.clear(), Arc::clone(&asked));
    let tidy_up = move || {
        clear();
        if is_asked.load(Ordering::Relaxed) { interrupt::ASKED } else { "" }
    };
    interrupt::watch(tidy_up).map_err(|error: io::Error| {
        Failure::new(Exit::Local, format_args!("can't watch for signals: {error}"))
    })?;
    let teller = args.beside.of(&args.daemon);
    if !args.quiet {
        let model = teller.model().map(|model| model.name);
        if let Some((made_by, here)) =
            file.model.as_ref().zip(model).filter(|(made_by, here)| *made_by != here)
        {
            say(format_args!("{name} was made by the {made_by}, and this daemon has the {here}"));
        }
    }
    let watch = if args.quiet { None } else { teller.watch(&mut client, waiting.situation()) };
    waiting.wait_for(format!("making {name} again, seed {}", file.params.seed));
    let image = client.send(&file.params, &file.prompt).map(|id| {
        asked.store(true, Ordering::Relaxed);
        watch.iter().for_each(|watch| watch.asked(id));
        waiting.show(Progress::Sent);
        client.receive_with(|_, progress| waiting.show(progress))
    });
    // What was asked for is answered in some way.
    let image = image.and_then(|answer| answer.map_or(Err(Error::Stopped), |answer| answer.result));
    drop(watch);
    drop(waiting);
    let report = compare(name, &file, &image?);
    if args.json {
        tell_json(&report, Layout::Line)?;
    } else if !args.quiet {
        let Report { file, pixels, different_pixels, most_difference, generation_seconds, .. } = &report;
        match report.same {
            true => {
                tell(format_args!("{file}: the same {pixels} pixels, made in {generation_seconds:.1} s"))?
            }
            false => tell(format_args!(
                "{file}: {different_pixels} of {pixels} pixels differ, by at most {most_difference} of 255"
            ))?,
        }
    }
    Ok(report.same)
}

fn compare(name: String, file: &Decoded, image: &Image) -> Report {
    let made: Vec<[u8; 4]> = match image.size.channels() {
        Channels::Rgb => image.pixels.chunks_exact(3).map(|p| [p[0], p[1], p[2], 255]).collect(),
        Channels::Rgba => image.pixels.chunks_exact(4).map(|p| [p[0], p[1], p[2], p[3]]).collect(),
    };
    let differences = file.pixels.iter().zip(&made).filter(|(a, b)| a != b);
    let (mut different_pixels, mut most_difference) = (0, 0);
    for (a, b) in differences {
        different_pixels += 1;
        most_difference = a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).fold(most_difference, u8::max);
    }
    Report {
        file: name,
        same: different_pixels == 0,
        pixels: made.len(),
        different_pixels,
        most_difference,
        generation_seconds: f64::from(image.generation_time_ms) / 1e3,
    }
}
