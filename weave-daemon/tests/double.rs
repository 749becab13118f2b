//! What the safe handle makes of an engine that goes wrong: `.ci/double` links one that does as prompts say.

#[path = "model/files.rs"]
mod files;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use weave_core::error::ErrorCode;
use weave_core::request::Params;
use weave_daemon::engine::sdcpp::Sdcpp;
use weave_daemon::engine::tuning::Tuning;
use weave_daemon::engine::{Engine, EngineError, Generation, Image};
use weave_daemon::model::ModelFiles;
use weave_daemon::scoreboard::{Control, Phase, Scoreboard};

fn engine() -> Sdcpp {
    assert_eq!(sdcpp_sys::ENGINE.source, "prebuilt", "to be run by .ci/double");
    load(ModelFiles::default()).unwrap()
}

fn load(model: ModelFiles) -> Result<Sdcpp, String> {
    Sdcpp::load(model, Tuning::default(), 1, &Control::none())
}

fn job(prompt: &str) -> Generation<'_> {
    Generation {
        params: Params { width: 64, height: 64, steps: 4, cfg_scale: 1.0, seed: 0x0123_4567_89AB_CDEF },
        prompt,
    }
}

fn ask(engine: &mut Sdcpp, prompt: &str) -> Result<Image, EngineError> {
    engine.generate(&job(prompt), &Control::none())
}

/// Contexts made so far, contexts that live, and images that were not freed, beside the one that says so.
fn counts(engine: &mut Sdcpp) -> [u8; 3] {
    let image = ask(engine, "count").unwrap();
    let pixels = image.pixels();
    assert_eq!(pixels.len(), 64 * 64 * 3);
    [pixels[0], pixels[1], pixels[2] - 1]
}

#[test]
fn each_failure_is_an_error_of_its_own_and_nothing_is_lost() {
    let mut engine = engine();
    let mut made = 1;
    let (gpu, memory) = (ErrorCode::GpuError, ErrorCode::OutOfMemory);
    for (prompt, code, words, is_trusted) in [
        ("throw", gpu, "could not make this image", false),
        ("throw a number", gpu, "could not make this image", false),
        ("throw bad_alloc", memory, "not enough memory", false),
        ("null", gpu, "could not make this image", true),
        ("out of memory", memory, "not enough memory", true),
        ("no pixels", gpu, "could not make this image", true),
        ("no size", gpu, "can't be sent", false),
        ("two channels", gpu, "can't be sent", false),
        ("huge", gpu, "can't be sent", false),
        ("another size", gpu, "an image of 64×128, not of 64×64", false),
    ] {
        let error = ask(&mut engine, prompt).err().unwrap_or_else(|| panic!("{prompt} is no failure"));
        assert_eq!(error.code, code, "{prompt}");
        assert!(error.text.contains(words), "{prompt}: {}", error.text);
        assert!(!error.text.contains("/a/path"), "for the log alone: {}", error.text);
        made += u8::from(!is_trusted);
        // The next image is made, by a new context where the last one can't be relied on.
        assert_eq!(counts(&mut engine), [made, 1, 0], "after {prompt}");
    }
}

#[test]
fn a_context_that_cannot_be_made_is_an_error() {
    let model = ModelFiles { clip_l: Some(PathBuf::from("/throw")), ..ModelFiles::default() };
    let error = load(model).err().unwrap();
    assert!(error.contains("thrown by new_sd_ctx"), "{error}");
}

/// The engine reads the weights for the first image, by what it has read of the files before.
#[test]
fn a_file_that_is_replaced_before_the_first_image_is_checked_and_read_again() {
    use files::{F16, MEDIUM, clip_g, clip_l, mmdit, taesd};
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let model = ModelFiles {
        diffusion_model: Some(F16.write(at, "mmdit", &mmdit(MEDIUM))),
        clip_l: Some(F16.write(at, "l", &clip_l())),
        taesd: Some(F16.write(at, "taesd", &taesd(16))),
        ..ModelFiles::default()
    };
    let replace =
        |tensors: &[files::Tensor]| fs::rename(F16.write(at, "new", tensors), at.join("l")).unwrap();
    let mut unchanged = load(model.clone()).unwrap();
    assert_eq!(counts(&mut unchanged), [1, 1, 0]);
    drop(unchanged);
    let mut engine = load(model).unwrap();
    replace(&clip_l());
    assert_eq!(counts(&mut engine), [3, 1, 0], "read again");
    replace(&clip_l());
    assert_eq!(counts(&mut engine), [3, 1, 0], "all of it is in memory by now");
    drop(engine);
    let mut engine = load(ModelFiles { clip_l: Some(at.join("l")), ..ModelFiles::default() }).unwrap();
    replace(&clip_g());
    let error = ask(&mut engine, "count").err().unwrap();
    assert!(
        error.code == ErrorCode::GpuError && error.text.contains("could not load its model again"),
        "{error}"
    );
}

#[test]
fn an_engine_that_replaces_seeds_is_given_none_of_those() {
    let mut engine = engine();
    let mut with = |seed| {
        let job = job("seed");
        engine.generate(&Generation { params: Params { seed, ..job.params }, ..job }, &Control::none())
    };
    for seed in [1, 7, u64::from(u32::MAX), i64::MAX.cast_unsigned()] {
        assert_eq!(with(seed).unwrap().pixels()[3..11], seed.to_ne_bytes());
    }
    for seed in [1 << 63, u64::MAX] {
        let error = with(seed).err().unwrap();
        assert!(error.code == ErrorCode::Internal && error.text.contains("9223372036854775807"), "{error}");
    }
}

#[test]
fn an_image_and_its_context_are_freed_by_whoever_drops_them_last() {
    let mut one = engine();
    let images: Vec<_> = (0..10).map(|_| ask(&mut one, "keep").unwrap()).collect();
    // Taken over one by one: the engine's own array is gone, the pixels are not.
    assert_eq!(counts(&mut one), [1, 1, 0]);
    drop(one);
    // The pixels outlive the context that made them.
    assert!(images.iter().all(|image| image.pixels()[3..11] == 0x0123_4567_89AB_CDEF_u64.to_ne_bytes()));
    drop(images);
    assert_eq!(counts(&mut engine()), [2, 1, 0]);
}

/// Asks for an image that is given up once `when` says so.
fn give_up(engine: &mut Sdcpp, prompt: &str, when: impl Fn(Phase, u32) -> bool + Sync) -> Duration {
    let page = Scoreboard::new().unwrap();
    let mut control = page.control();
    control.next_request();
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let until = Instant::now() + Duration::from_secs(60);
            while Instant::now() < until {
                let progress = page.progress();
                if when(progress.phase, progress.step) {
                    page.cancel(1);
                    return Instant::now();
                }
                std::thread::yield_now();
            }
            panic!("it did not get that far");
        });
        let job = job(prompt);
        let job = Generation { params: Params { steps: 100, ..job.params }, ..job };
        let error = engine.generate(&job, &control).err().unwrap();
        assert_eq!(error, EngineError::cancelled());
        watcher.join().unwrap().elapsed()
    })
}

#[test]
fn between_two_steps_it_can_be_given_up() {
    let mut engine = engine();
    assert_eq!(sdcpp_sys::ENGINE.can_cancel, cfg!(feature = "double-cancel"), "which of the two was linked");
    let took = give_up(&mut engine, "long", |phase, step| phase == Phase::Sample && step >= 3);
    // A hundred steps take two seconds.
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(counts(&mut engine), [1, 1, 0], "the context is still the first one");
    // At any moment, or before it is called.
    give_up(&mut engine, "long", |_, _| true);
    assert_eq!(counts(&mut engine), [1, 1, 0]);
}

#[test]
fn while_weights_are_read_it_goes_on() {
    // An exception would end this process. It is given up once they are there.
    // One that says so says it every time, and is believed from then on.
    for prompt in ["load without a word", "load"] {
        let mut engine = engine();
        give_up(&mut engine, prompt, |phase, _| phase == Phase::Load);
        assert_eq!(counts(&mut engine)[1..], [1, 0]);
    }
}

#[test]
fn phases_come_one_after_the_other() {
    let mut engine = engine();
    for prompt in ["load without a word", "load", "nothing special"] {
        let page = Scoreboard::new().unwrap();
        let mut control = page.control();
        control.next_request();
        engine.generate(&job(prompt), &control).unwrap();
        assert_eq!(page.progress().phase, Phase::Decode);
    }
}
