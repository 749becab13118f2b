//! How much of a socket's throughput is left when `weaved` is in between.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use crate::measure::{median, processor_time, say};
use crate::peer::{Client, Daemon, beside, this};

const SIDES: [u32; 6] = [64, 128, 256, 512, 1024, 2048];
const ROUNDS: usize = 15;
/// Bytes of one measurement.
const BYTES: usize = 96 << 20;
/// Requests under way at once.
const DEPTH: usize = 8;

fn rate(bytes: usize, began: Instant) -> f64 {
    bytes as f64 / began.elapsed().as_secs_f64() / 1e9
}

fn pull<S: Read + Write>(client: &mut Client<S>, side: u32, count: usize) -> f64 {
    let began = Instant::now();
    rate(client.pull(side, count, DEPTH), began)
}

pub(crate) fn measure() {
    let mut copied = 0.0;
    for side in SIDES {
        let frame = weave_benches::response(side).len();
        let count = (BYTES / frame).clamp(8, 2_000);
        let (writer, mut direct) = beside(&mut this(&["writer", &side.to_string(), &count.to_string()]));
        let (_worker, mut worker) = beside(&mut this(&["worker"]));
        let daemon = Daemon::with_ready_images(&["--tcp", "127.0.0.1:0"]);
        let mut unix = daemon.connect();
        // From now on there is a worker.
        unix.pull(side, 1, 1);
        let address = daemon.tcp.as_deref().expect("an address");
        let mut tcp = Client::new(TcpStream::connect(address).expect("weaved listens on TCP"));
        let mut rates: [Vec<f64>; 4] = Default::default();
        let mut costs: [Vec<f64>; 5] = Default::default();
        let (me, writer) = (std::process::id(), writer.0.id());
        for round in 0..=ROUNDS {
            let pids = [writer, me, daemon.pid(), daemon.workers()[0], me];
            let mut cost = [0.0; 5];
            let mut count_from = |at: std::ops::Range<usize>, sign: f64| {
                for at in at {
                    cost[at] += sign * processor_time(pids[at]) / count as f64 * 1e6;
                }
            };
            count_from(0..2, -1.0);
            let began = Instant::now();
            direct.stream.write_all(&[1]).expect("the writer");
            let bytes: usize = (0..count).map(|_| direct.take()).sum();
            let mut now = [rate(bytes, began), 0.0, 0.0, 0.0];
            count_from(0..2, 1.0);
            now[1] = pull(&mut worker, side, count);
            count_from(2..5, -1.0);
            now[2] = pull(&mut unix, side, count);
            count_from(2..5, 1.0);
            now[3] = pull(&mut tcp, side, count);
            // The first one warms up.
            if round > 0 {
                rates.iter_mut().zip(now).for_each(|(all, one)| all.push(one));
                costs.iter_mut().zip(cost).for_each(|(all, one)| all.push(one));
            }
        }
        for (name, all) in ["direct", "worker", "weaved", "weaved_tcp"].into_iter().zip(&rates) {
            say(&format!("relay/{side}/{name}_gb_s"), median(all));
        }
        for (name, at) in [("weaved", 2), ("weaved_tcp", 3), ("worker", 1)] {
            let ratios: Vec<f64> =
                rates[at].iter().zip(&rates[0]).map(|(one, direct)| one / direct).collect();
            say(&format!("relay/{side}/{name}_ratio"), median(&ratios));
        }
        for (name, all) in ["writer", "reader", "router", "worker", "client"].into_iter().zip(&costs) {
            say(&format!("relay/{side}/{name}_cpu_us"), median(all));
        }
        copied += daemon.metric("weave_relayed_bytes_total{how=\"copied\"}");
        assert!(daemon.metric("weave_relayed_bytes_total{how=\"spliced\"}") > 0.0, "it is counted");
    }
    say("relay/copied_bytes", copied);
}
