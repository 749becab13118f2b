//! Runs the router in simulated worlds, one after the other, each from a seed of its own.
//!
//! `target/simulator/debug/examples/simulate EVENTS [SEED] [--log]`, which `make simulate` builds: a program of the release
//! profile ends at a panic, before it has said the seed.
//!
//! A world that fails says its seed; given that seed alone, with the same number of events, it fails
//! again at the same place.

use std::process::ExitCode;
use std::time::Instant;

use weave_daemon::simulator::{Report, Seeded, run};

/// Events of turmoil in one world.
const WORLD: u64 = 5000;

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.last().is_some_and(|last| last == "--log") {
        arguments.pop();
        weave_daemon::logger::start_without_times(log::LevelFilter::Trace);
    }
    let numbers: Option<Vec<u64>> = arguments.iter().map(|text| text.parse().ok()).collect();
    let (events, seed) = match numbers.as_deref() {
        Some([events]) => (*events, 1),
        Some([events, seed]) => (*events, *seed),
        _ => {
            eprintln!("usage: simulate EVENTS [SEED] [--log]");
            return ExitCode::from(2);
        }
    };
    let (started, mut report, mut worlds) = (Instant::now(), Report::default(), 0);
    while report.events < events {
        let seed = seed.wrapping_add(worlds);
        let result = std::panic::catch_unwind(|| run(Seeded(seed), WORLD, None));
        let Ok(world) = result else {
            eprintln!("simulate: the world of seed {seed} failed; again: make simulate SEED={seed}");
            return ExitCode::FAILURE;
        };
        report = report.and(world);
        worlds += 1;
    }
    let Report { events, requests, images, errors, closed, displaced, deaths, cancelled } = report;
    println!(
        "{events} events in {worlds} worlds from seed {seed}: {requests} requests, {images} images, {errors} errors, \
         {closed} connections closed, {displaced} of them for another user, {deaths} workers dead, {cancelled} requests cancelled; {:.1} s",
        started.elapsed().as_secs_f64()
    );
    ExitCode::SUCCESS
}
