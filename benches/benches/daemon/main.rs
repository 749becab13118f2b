//! The real `weaved`, measured from outside: what it costs to have it between a client and a worker.
//!
//! `WEAVED=target/release/weaved cargo bench -p weave-benches --bench daemon [-- SECTION...]` prints a line `name value` for
//! each figure; `benches/report.py` makes tables and plots of them. What is compared is measured in turns, round by
//! round, so that other work on the machine meets all alike; each figure is the median over rounds.

mod footprint;
mod latency;
mod peer;
mod relay;

use std::path::PathBuf;
use std::time::Duration;

/// What can be measured, and by what.
const SECTIONS: [(&str, fn()); 3] =
    [("relay", relay::measure), ("latency", latency::measure), ("footprint", footprint::measure)];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if args.iter().any(|arg| arg == "--version") {
        // As the worker of a weaved, which asks.
        println!("weaved {}", env!("CARGO_PKG_VERSION"));
        return;
    }
    match args.first().map(String::as_str) {
        Some("worker") => peer::work(),
        Some("writer") => peer::write(&args[1..]),
        Some("pull") => peer::pull(&args[1..]),
        _ => {
            for (name, measure) in SECTIONS {
                if args.is_empty() || args.iter().any(|arg| arg == name) {
                    measure();
                }
            }
        }
    }
}

/// The program that is measured.
fn weaved() -> PathBuf {
    let path = std::env::var_os("WEAVED").expect("WEAVED=PATH says which weaved to measure");
    std::fs::canonicalize(path).expect("WEAVED is a program")
}

/// Says a figure.
fn say(name: &str, value: f64) {
    println!("{name} {value}");
}

/// The value that this share of them, in percent, does not exceed.
fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

fn median(values: &[f64]) -> f64 {
    percentile(values, 50)
}

/// Processor time of a process so far, in seconds.
fn processor_time(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).expect("a process that is there");
    let nanoseconds = text.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number");
    Duration::from_nanos(nanoseconds).as_secs_f64()
}
