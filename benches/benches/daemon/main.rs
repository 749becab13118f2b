//! The real `weaved`, measured from outside: what it costs to have it between a client and a worker.
//!
//! `WEAVED=target/release/weaved cargo bench -p weave-benches --bench daemon [-- SECTION...]` prints a line `name value` for
//! each figure; `benches/report.py` makes tables and plots of them. What is compared is measured in turns, round by
//! round, so that other work on the machine meets all alike; each figure is the median over rounds.

mod footprint;
mod latency;
mod measure;
mod peer;
mod relay;

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
