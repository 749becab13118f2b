//! Weave beside what else could carry its messages. `benches/report.py` makes tables of what this prints.
//!
//! `WEAVED=PATH weave-peers [messages] [moving]`

mod format;
#[path = "../../benches/daemon/measure.rs"]
#[allow(dead_code, reason = "not all of it is needed here")]
mod measure;
mod messages;
mod moving;
#[path = "../../benches/daemon/peer.rs"]
#[allow(dead_code, reason = "not all of it is needed here")]
mod peer;

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
