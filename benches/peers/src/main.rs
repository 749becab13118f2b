//! Weave beside what else could carry its messages. `benches/report.py` makes tables of what this prints.
//!
//! `WEAVED=PATH weave-peers [messages] [moving]`

mod format;
mod messages;
mod moving;
#[path = "../../benches/daemon/peer.rs"]
#[allow(dead_code, reason = "not all of it is needed here")]
mod peer;

use std::path::PathBuf;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--version") {
        // As the worker of a weaved, which asks.
        println!("weaved {}", env!("CARGO_PKG_VERSION"));
        return;
    }
    match args.first().map(String::as_str) {
        Some("worker") => peer::work(),
        Some("http") => moving::serve_http(),
        Some("grpc") => moving::serve_grpc(),
        Some("messages") => messages::measure(),
        Some("moving") => moving::measure(),
        _ => {
            messages::measure();
            moving::measure();
        }
    }
}

fn weaved() -> PathBuf {
    let path = std::env::var_os("WEAVED").expect("WEAVED=PATH says which weaved to measure");
    std::fs::canonicalize(path).expect("WEAVED is a program")
}

fn say(name: &str, value: f64) {
    println!("{name} {value}");
}

/// The value that this share of them, in percent, does not exceed.
fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}
