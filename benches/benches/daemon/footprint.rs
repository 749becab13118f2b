//! What `weaved` takes: of the disk, of memory, and of time until it listens.

use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::measure::{median, processor_time, say, weaved};
use crate::peer::{Daemon, Process};

/// Resident memory of a process in bytes: all of it, and what no other process could share.
fn memory(pid: u32) -> (f64, f64) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("a process that is there");
    let of = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).expect("a size");
        line.split_whitespace().nth(1).and_then(|word| word.parse::<f64>().ok()).expect("kB") * 1024.0
    };
    (of("Rss:"), of("Anonymous:"))
}

/// Connections that each have had an answer.
fn crowd(daemon: &Daemon, n: usize) -> Vec<UnixStream> {
    let one = |_| {
        let mut client = daemon.connect();
        client.ask(64);
        client.take();
        client.stream
    };
    (0..n).map(one).collect()
}

pub(crate) fn measure() {
    let program = std::fs::metadata(weaved()).expect("a program");
    say("footprint/program_bytes", program.len() as f64);

    let daemon = Daemon::start(&[]);
    say("footprint/idle_rss", memory(daemon.pid()).0);
    let _clients = crowd(&daemon, 64);
    let (all, own) = memory(daemon.pid());
    say("footprint/64_rss", all);
    say("footprint/64_own", own);

    let daemon = Daemon::start(&["--connections", "12000", "--queue", "64"]);
    let mut clients = crowd(&daemon, 1);
    let first = memory(daemon.pid()).1;
    let mut one = daemon.connect();
    for n in [1, 10, 100, 1_000, 10_000] {
        clients.extend(crowd(&daemon, n - clients.len()));
        say(&format!("connections/{n}/rss"), memory(daemon.pid()).0);
        if n > 1 {
            say(&format!("connections/{n}/bytes_each"), (memory(daemon.pid()).1 - first) / (n - 1) as f64);
        }
        // What a request of another client costs beside them.
        let (mut costs, mut times) = (Vec::new(), Vec::new());
        for _ in 0..9 {
            let (before, began) = (processor_time(daemon.pid()), Instant::now());
            one.pull(64, 500, 1);
            times.push(began.elapsed().as_secs_f64() / 500.0 * 1e6);
            costs.push((processor_time(daemon.pid()) - before) / 500.0 * 1e6);
        }
        say(&format!("connections/{n}/request_us"), median(&times));
        say(&format!("connections/{n}/router_cpu_us"), median(&costs));
    }

    let mut until_listening = Vec::new();
    for _ in 0..21 {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("run/weave.sock");
        let mut command = Command::new(weaved());
        command.args(["--no-config", "--engine", "pattern", "--socket"]).arg(&socket);
        let began = Instant::now();
        let _daemon = Process(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts"));
        while UnixStream::connect(&socket).is_err() {
            std::thread::sleep(Duration::from_micros(100));
        }
        until_listening.push(began.elapsed().as_secs_f64() * 1e3);
    }
    say("footprint/listening_ms", median(&until_listening));
}
