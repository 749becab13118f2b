//! How figures are taken and said. `benches/peers` takes its own in the same way.

use std::path::PathBuf;

/// The program that is measured.
pub(crate) fn weaved() -> PathBuf {
    let path = std::env::var_os("WEAVED").expect("WEAVED=PATH says which weaved to measure");
    std::fs::canonicalize(path).expect("WEAVED is a program")
}

/// Says a figure.
pub(crate) fn say(name: &str, value: f64) {
    println!("{name} {value}");
}

/// The value that this share of them, in percent, does not exceed.
pub(crate) fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

pub(crate) fn median(values: &[f64]) -> f64 {
    percentile(values, 50)
}

/// Processor time of all threads of a process so far, in seconds.
pub(crate) fn processor_time(pid: u32) -> f64 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a process that is there");
    let of_one = |path: PathBuf| -> f64 {
        // A thread may have ended meanwhile.
        let text = std::fs::read_to_string(path.join("schedstat")).unwrap_or_default();
        text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0.0)
    };
    threads.flatten().map(|thread| of_one(thread.path())).sum::<f64>() / 1e9
}
