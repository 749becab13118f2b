//! What `weaved` adds to the time of a small image, and how it takes many connections.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Instant;

use crate::measure::{median, percentile, processor_time, say, weaved};
use crate::peer::{Client, Daemon, beside};

const SIDE: u32 = 64;
const ROUNDS: usize = 31;
const REQUESTS: usize = 300;

/// How long each of `n` requests took, one after the other, in microseconds.
fn one_by_one<S: Read + Write>(client: &mut Client<S>, n: usize) -> Vec<f64> {
    let one = |_| {
        let began = Instant::now();
        client.ask(SIDE);
        client.take();
        began.elapsed().as_secs_f64() * 1e6
    };
    (0..n).map(one).collect()
}

/// The same with a request of each client under way all the time; they are served in turns, so that answers can be
/// waited for in the order of the questions. Also gives how many came in a second.
fn all_at_once(clients: &mut [Client<UnixStream>], n: usize) -> (Vec<f64>, f64) {
    let (all, mut times) = (clients.len(), Vec::with_capacity(n));
    let began = Instant::now();
    let mut asked: Vec<Instant> = Vec::with_capacity(all);
    for client in clients.iter_mut() {
        asked.push(Instant::now());
        client.ask(SIDE);
    }
    for at in 0..n.max(all) {
        let client = &mut clients[at % all];
        client.take();
        times.push(asked[at % all].elapsed().as_secs_f64() * 1e6);
        if at + all < n {
            asked[at % all] = Instant::now();
            client.ask(SIDE);
        }
    }
    let rate = times.len() as f64 / began.elapsed().as_secs_f64();
    (times, rate)
}

pub(crate) fn measure() {
    let engine = ["worker", "--no-config", "--engine", "pattern", "--log", "error"];
    let (_worker, mut direct) = beside(Command::new(weaved()).args(engine));
    let daemon = Daemon::start(&["--connections", "2000", "--queue", "2048", "--log", "info"]);
    let mut client = daemon.connect();
    // In turns, and each round's difference for itself: other work on the machine comes and goes.
    let (mut at_worker, mut at_weaved) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let pair = (one_by_one(&mut direct, REQUESTS), one_by_one(&mut client, REQUESTS));
        if round > 0 {
            at_worker.push(pair.0);
            at_weaved.push(pair.1);
        }
    }
    for (name, all) in [("worker", &at_worker), ("weaved", &at_weaved)] {
        for (share, percent) in [("median", 50), ("p99", 99)] {
            let of_rounds: Vec<f64> = all.iter().map(|times| percentile(times, percent)).collect();
            say(&format!("latency/{name}_{share}_us"), median(&of_rounds));
        }
    }
    for (share, percent) in [("median", 50), ("p99", 99)] {
        let pairs = at_weaved.iter().zip(&at_worker);
        let added: Vec<f64> =
            pairs.map(|(with, without)| percentile(with, percent) - percentile(without, percent)).collect();
        say(&format!("latency/added_{share}_us"), median(&added));
    }
    drop(client);

    let pipelined = |client: &mut Client<UnixStream>, depth| {
        let began = Instant::now();
        client.pull(SIDE, 2_000, depth);
        2_000.0 / began.elapsed().as_secs_f64()
    };
    for depth in [1, 2, 4, 8, 16, 32] {
        let mut client = daemon.connect();
        let mut rates = [Vec::new(), Vec::new()];
        for _ in 0..7 {
            rates[0].push(pipelined(&mut direct, depth));
            rates[1].push(pipelined(&mut client, depth));
        }
        say(&format!("depth/{depth}/worker_per_s"), median(&rates[0]));
        say(&format!("depth/{depth}/weaved_per_s"), median(&rates[1]));
    }

    for connections in [1, 3, 10, 30, 100, 300, 1000] {
        let mut clients: Vec<_> = (0..connections).map(|_| daemon.connect()).collect();
        all_at_once(&mut clients, connections);
        let (mut medians, mut p99s, mut rates) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..7 {
            let (times, rate) = all_at_once(&mut clients, 3_000);
            medians.push(median(&times));
            p99s.push(percentile(&times, 99));
            rates.push(rate);
        }
        say(&format!("load/{connections}/median_us"), median(&medians));
        say(&format!("load/{connections}/p99_us"), median(&p99s));
        say(&format!("load/{connections}/per_s"), median(&rates));
    }

    // What one request costs the router while so many others wait.
    for waiting in [1, 8, 64, 512, 2000] {
        let mut crowd: Vec<_> = (0..waiting).map(|_| daemon.connect()).collect();
        all_at_once(&mut crowd, waiting);
        let mut costs = Vec::new();
        for _ in 0..7 {
            let n = 3_000.max(2 * waiting);
            let before = processor_time(daemon.pid());
            all_at_once(&mut crowd, n);
            costs.push((processor_time(daemon.pid()) - before) / n as f64 * 1e6);
        }
        say(&format!("queue/{waiting}/router_cpu_us"), median(&costs));
    }
}
