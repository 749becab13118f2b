//! `weave generate`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use weave_client::weave_core::request::Prompts;
use weave_client::{Error, Image, Params};

use crate::args::Generate;
use crate::exit::{self, Exit, Failure, say, tell};
use crate::output::{Output, Unfinished};
use crate::waiting::Waiting;
use crate::{interrupt, png_file};

pub(crate) fn run(args: &Generate) -> Result<(), Failure> {
    let start = Instant::now();
    let params = params(args)?;
    let mut client = exit::client(&args.daemon)?;

    let unfinished = Unfinished::default();
    let path = args.output.clone().unwrap_or_else(|| PathBuf::from(format!("weave-{}.png", params.seed)));
    let Params { width, height, steps, cfg_scale, seed } = params;
    let mut waiting =
        Waiting::start(format!("{width}×{height}, {steps} steps, cfg {cfg_scale}, seed {seed}"), args.quiet);
    let (clear, remove) = (waiting.clear(), unfinished.clone());
    let tidy_up = move || {
        clear();
        remove.remove();
    };
    interrupt::watch(tidy_up)
        .map_err(|error| Failure::new(Exit::Local, format_args!("can't watch for signals: {error}")))?;
    let output = Output::prepare(path, args.force, &unfinished)?;

    client.set_timeout(args.timeout);
    let image = client.generate_with(&params, &args.prompt, |progress| waiting.show(progress));
    drop(waiting);
    let image = image?;
    let png = png_file::encode(&image, &params, &args.prompt)
        .map_err(|error| Failure::new(Exit::Local, format_args!("can't make a PNG of the image: {error}")))?;
    let file = output.finish(&png)?;
    if args.quiet {
        return Ok(());
    }
    let result = result(&image, seed, start.elapsed());
    match file {
        Some(path) => tell(format_args!("{}: {result}", path.display())),
        None => {
            say(format_args!("{result}"));
            Ok(())
        }
    }
}

/// What to ask for, checked before anything else is done. The seed is drawn here and not by the
/// daemon, which would not tell it.
fn params(args: &Generate) -> Result<Params, Failure> {
    let mut params = Params {
        width: args.width,
        height: args.height,
        steps: args.steps,
        cfg_scale: args.cfg,
        seed: args.seed,
    };
    params.check().and_then(|()| Prompts::same(&args.prompt).check()).map_err(Error::Invalid)?;
    if params.seed == 0 {
        // 32 bits are what other programs take, and not too much to type.
        let drawn = getrandom::u32().map_err(|error| {
            Failure::new(Exit::Local, format_args!("the system gives no random numbers: {error}"))
                .next("choose a seed with --seed N")
        })?;
        params.seed = u64::from(drawn.max(1));
    }
    Ok(params)
}

fn result(image: &Image, seed: u64, in_all: Duration) -> String {
    format!(
        "{}×{}, seed {seed}, generated in {:.1} s ({:.1} s in all)",
        image.size.width(),
        image.size.height(),
        Duration::from_millis(image.generation_time_ms.into()).as_secs_f64(),
        in_all.as_secs_f64()
    )
}
