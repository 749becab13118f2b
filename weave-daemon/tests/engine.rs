//! The real engine behind its handle, with the demo model: the pixels are its own, an image that is given up
//! leaves nothing behind, and neither do those that are made.
#![cfg(feature = "sdcpp")]

mod harness;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use harness::Daemon;
use weave_core::limits::MAX_REQUEST_FRAME;
use weave_core::request::{Params, Prompts, Request};
use weave_daemon::demo;
use weave_daemon::engine::sdcpp::Sdcpp;
use weave_daemon::engine::tuning::Tuning;
use weave_daemon::engine::{Engine, EngineError, Generation};
use weave_daemon::model::ModelFiles;
use weave_daemon::proc::Process;
use weave_daemon::scoreboard::{Control, Phase, Progress, Scoreboard};

fn engine() -> Sdcpp {
    let files = demo::unpack(&demo::cache_dir().unwrap(), &weave_trust::Rules::default()).unwrap();
    let model = ModelFiles {
        diffusion_model: Some(files.diffusion_model),
        clip_l: Some(files.clip_l),
        taesd: Some(files.taesd),
        ..ModelFiles::default()
    };
    Sdcpp::load(model, Tuning::default(), 1, &Control::none()).unwrap()
}

const PROMPT: &str = "a red circle on a blue background";

fn job(steps: u32, seed: u64) -> Generation<'static> {
    Generation { params: Params { width: 64, height: 64, steps, cfg_scale: 1.0, seed }, prompt: PROMPT }
}

fn pixels(engine: &mut Sdcpp, job: &Generation<'_>) -> Vec<u8> {
    engine.generate(job, &Control::none()).unwrap().pixels().to_vec()
}

/// Begins an image and gives it up in this phase, once so many steps of it are done. How long it took until
/// the engine was free.
fn give_up(engine: &mut Sdcpp, phase: Phase, step: u32) -> Duration {
    let page = Scoreboard::new().unwrap();
    let mut control = page.control();
    control.next_request();
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let until = Instant::now() + harness::PATIENCE;
            let is_there = |at: Progress| match phase {
                // It may be over before anybody looks: weights are loaded in the middle of it.
                Phase::Encode => at.phase != Phase::Idle,
                _ => at.phase == phase && at.step >= step,
            };
            while !is_there(page.progress()) {
                assert!(Instant::now() < until, "it is at {:?}", page.progress());
                std::thread::sleep(Duration::from_micros(100));
            }
            page.cancel(1);
            Instant::now()
        });
        let error = engine.generate(&job(100, 9), &control).err().unwrap();
        assert_eq!(error, EngineError::cancelled());
        watcher.join().unwrap().elapsed()
    })
}

#[test]
fn after_an_image_that_was_given_up_the_next_one_is_that_of_a_fresh_context() {
    let expected = {
        let mut fresh = engine();
        [1, 2].map(|seed| pixels(&mut fresh, &job(2, seed)))
    };
    // The first time before it has loaded any weights.
    let mut engine = engine();
    for (phase, step) in [(Phase::Encode, 0), (Phase::Sample, 0), (Phase::Sample, 1), (Phase::Sample, 3)] {
        let took = give_up(&mut engine, phase, step);
        println!("given up in {phase:?} after {step} steps: free in {:.3} s", took.as_secs_f64());
        let (seed, expected) = if step == 1 { (2, &expected[1]) } else { (1, &expected[0]) };
        assert!(pixels(&mut engine, &job(2, seed)) == *expected, "after {phase:?} {step}");
    }
}

#[test]
fn what_is_given_up_is_free_within_a_step() {
    let mut engine = engine();
    pixels(&mut engine, &job(1, 1));
    // What a step takes, by the difference between many and few.
    let time = |engine: &mut Sdcpp, steps| {
        let started = Instant::now();
        pixels(engine, &job(steps, 1));
        started.elapsed()
    };
    let step = time(&mut engine, 11).saturating_sub(time(&mut engine, 1)) / 10;
    let mut took: Vec<_> = (0..5).map(|_| give_up(&mut engine, Phase::Sample, 1)).collect();
    took.sort();
    println!("a step takes {step:?}; free after {took:?}");
    // The median, with room for a machine that is busy with other things.
    assert!(took[2] < 3 * step, "a step takes {step:?}; free after {took:?}");
}

/// Bytes in memory.
fn resident() -> u64 {
    Process::read("self").resident
}

/// What may come and go by the allocator's ways. Less than 200 times an image of 64×64.
const ALLOCATORS_OWN: u64 = 2 << 20;

#[test]
#[ignore = "takes minutes: make leaks"]
fn two_hundred_images_leave_no_memory_behind() {
    let mut engine = engine();
    for seed in 1..=20 {
        pixels(&mut engine, &job(1, seed));
    }
    let before = resident();
    for seed in 1..=200 {
        pixels(&mut engine, &job(1, seed));
    }
    let after = resident();
    println!("resident: {before} bytes, after 200 images {after}");
    assert!(after < before + ALLOCATORS_OWN, "{before} bytes, then {after}");
}

#[test]
#[ignore = "takes minutes: make leaks"]
fn a_hundred_cancellations_leave_no_memory_behind() {
    let mut engine = engine();
    pixels(&mut engine, &job(1, 1));
    let mut some = |times| {
        for n in 0..times {
            let (phase, step) = if n % 5 == 0 { (Phase::Encode, 0) } else { (Phase::Sample, n % 2) };
            give_up(&mut engine, phase, step);
        }
    };
    some(20);
    let before = resident();
    some(100);
    let after = resident();
    println!("resident: {before} bytes, after 100 cancellations {after}");
    assert!(after < before + ALLOCATORS_OWN, "{before} bytes, then {after}");
}

/// For AddressSanitizer and valgrind, which look closer and take their time.
#[test]
#[ignore = "to be watched from outside: make asan"]
fn ten_images_and_five_cancellations() {
    let mut engine = engine();
    let first = pixels(&mut engine, &job(1, 1));
    for n in 0..5 {
        give_up(&mut engine, if n == 0 { Phase::Encode } else { Phase::Sample }, n % 2);
        let seed = if n == 4 { 1 } else { u64::from(n) + 2 };
        let image = pixels(&mut engine, &job(1 + n % 2, seed));
        assert_eq!(image == first, n == 4);
        pixels(&mut engine, &job(1, seed));
    }
}

/// The same engine, called by C.
fn reference(folder: &Path) -> Command {
    let program = folder.join("reference");
    let lib = |name: &str| format!("{}/lib{name}.a", sdcpp_sys::LIB_DIR);
    let compiled = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".to_owned()))
        .args(["-std=c11", "-Wall", "-Wextra", "-I", sdcpp_sys::INCLUDE_DIR, "-o"])
        .arg(&program)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference.c"))
        .args(["stable-diffusion", "ggml", "ggml-cpu", "ggml-base"].map(lib))
        // OpenMP, if the engine is built with it.
        .args(["-fopenmp", "-lstdc++", "-lm", "-lpthread", "-ldl"])
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    Command::new(program)
}

#[test]
fn the_pixels_are_those_of_the_engines_own_c_api() {
    if sdcpp_sys::ENGINE.back_ends != ["cpu"] {
        println!("skipped: a C program for {:?} takes more to link", sdcpp_sys::ENGINE.back_ends);
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = reference(folder.path());
    let files = demo::unpack(&demo::cache_dir().unwrap(), &weave_trust::Rules::default()).unwrap();
    let file = folder.path().join("pixels");
    let daemon = Daemon::start(&["--threads=1"]);
    let mut client = daemon.connect();
    let mut seen = Vec::new();
    for (id, (width, height, steps, cfg_scale, seed)) in (1..).zip([
        (64, 64, 1, 1.0, 1),
        (64, 64, 1, 1.0, u64::MAX),
        (64, 64, 1, 1.0, 1 << 63),
        (64, 64, 2, 1.0, 7),
        (64, 64, 4, 7.0, 7),
        (64, 64, 3, 4.5, u64::from(u32::MAX) + 1),
        (128, 64, 1, 1.0, 2),
        (64, 128, 2, 3.0, 3),
        (128, 128, 2, 1.0, 4),
        (64, 192, 1, 20.0, 5),
    ]) {
        let params = Params { width, height, steps, cfg_scale, seed };
        let mut out = [0; MAX_REQUEST_FRAME];
        let request = Request { request_id: id, params, prompts: Prompts::same(PROMPT) };
        client.write(request.emit(&mut out).unwrap());
        let (_, pixels) = client.image();
        let output = Command::new(program.get_program())
            .args([&files.diffusion_model, &files.clip_l, &files.taesd])
            .arg(PROMPT)
            .args([width, height, steps].map(|n| n.to_string()))
            .args([cfg_scale.to_string(), seed.to_string()])
            .arg(&file)
            .output()
            .unwrap();
        assert!(output.status.success(), "{params:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(std::fs::read(&file).unwrap() == pixels, "{params:?}");
        assert!(!seen.contains(&pixels), "{params:?} makes what another one made");
        seen.push(pixels);
    }
}
