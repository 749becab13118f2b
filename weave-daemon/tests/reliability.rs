//! Whether the real `weaved` stays up, small and quick to answer under load, abuse and bad luck.
//!
//! With the other tests these run with small numbers. `make reliability` runs the same code with large
//! ones and prints what it measures; RELIABILITY.md has the results.

mod harness;

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::{
    Answer, Client, Daemon, PATIENCE, SIDE, eventually, freeze, gradient, is_alive, metric, private_folder,
    request, sized_gradient, sized_request, weaved,
};
use rustix::process::{Pid, Signal, kill_process};
use weave_core::error::ErrorCode;

/// The side of an image that is too large for all sockets on its way together.
const LARGE: u32 = 2048;

/// The large numbers, if those are wanted.
fn pick<T>(quick: T, long: T) -> T {
    if std::env::var_os("RELIABILITY").is_some_and(|value| value == "long") { long } else { quick }
}

/// Numbers that need not be good, only different each time: xorshift.
struct Dice(u64);

impl Dice {
    const fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Times that something took.
#[derive(Clone, Default)]
struct Times(Vec<Duration>);

impl Times {
    /// The time that this share of them, in percent, did not exceed.
    fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
    }

    fn median(&self) -> Duration {
        self.percentile(50)
    }

    fn p99(&self) -> Duration {
        self.percentile(99)
    }

    fn max(&self) -> Duration {
        self.percentile(100)
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        write!(f, "median {:.2} ms, p99 {:.2} ms", ms(self.median()), ms(self.p99()))?;
        write!(f, ", longest {:.2} ms of {}", ms(self.max()), self.0.len())
    }
}

/// Asks for one small picture after the other and looks at each.
fn ask_in_turn(client: &mut Client, name: &str, times: u64) -> Times {
    let ask = |seed: u64| {
        let started = Instant::now();
        client.send(seed, name, seed);
        let (id, pixels) = client.image();
        let took = started.elapsed();
        assert!(id == seed && pixels == gradient(name, seed), "the wrong picture for {name:?}, {seed}");
        took
    };
    Times((1..=times).map(ask).collect())
}

/// Resident bytes of a process, counted page by page.
fn resident(pid: u32) -> u64 {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = maps.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

fn threads(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Threads:")).unwrap();
    line.trim().parse().unwrap()
}

/// `now` is no more than one percent over `before`.
fn assert_has_not_grown(what: &str, before: u64, now: u64) {
    println!("{what}: {before} bytes resident before, {now} after");
    assert!(now <= before + before / 100, "{what}: grew from {before} to {now} bytes");
}

/// Has the daemon use all memory that its queue and so many clients at once ever take.
fn fill_tables(daemon: &Daemon, clients: usize) {
    daemon.assert_serves();
    let [worker] = daemon.workers()[..] else { panic!() };
    freeze(worker);
    let mut crowd: Vec<_> = (0..clients).map(|_| daemon.connect()).collect();
    // Of 96 requests the default queue takes 64, besides the one that the worker has.
    for client in &mut crowd[..3] {
        (0..32).for_each(|id| client.send(id, "fill", 1));
    }
    eventually("its queue is full", || metric(daemon, "weave_queue_length") == 64.0);
    eventually("all are accepted", || metric(daemon, "weave_connections") == clients as f64);
    kill_process(Pid::from_raw(worker).unwrap(), Signal::CONT).unwrap();
    drop(crowd);
    eventually("all are gone", || metric(daemon, "weave_connections") == 0.0);
    daemon.assert_serves();
}

// ------------------------------------------------------------------------------------ size

#[test]
fn thousands_of_idle_connections_neither_swell_it_nor_starve_the_active() {
    let (idle, active, rounds) = (2000, 50, pick(20, 200));
    let daemon = Daemon::pattern(&["--connections=4096"]);
    let pid = daemon.child.id();
    let load = || {
        let start = Barrier::new(active);
        let one = |n: usize| {
            let mut client = daemon.connect();
            start.wait();
            ask_in_turn(&mut client, &format!("client {n}"), rounds)
        };
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..active).map(|n| scope.spawn(move || one(n))).collect();
            clients.into_iter().map(|client| client.join().unwrap()).collect::<Vec<_>>()
        })
    };
    let together = |clients: &[Times]| Times(clients.iter().flat_map(|times| times.0.clone()).collect());

    fill_tables(&daemon, idle + active);
    let (mut alone, mut crowded, mut worst, mut before) = (vec![], vec![], 0.0_f64, 0);
    for _ in 0..pick(1, 5) {
        eventually("the others are gone", || descriptors(pid) < 100);
        alone.push(together(&load()));
        if before == 0 {
            before = resident(pid);
        }
        let _crowd: Vec<_> = (0..idle).map(|_| daemon.connect()).collect();
        eventually("all are accepted", || descriptors(pid) >= idle);
        let clients = load();
        let all = together(&clients);
        // Who waits in one queue waits equally long.
        let slowest = clients.iter().map(Times::median).max().unwrap();
        worst = worst.max(slowest.as_secs_f64() / all.median().as_secs_f64());
        crowded.push(all);
    }
    let middle = |all: &[Times], of: fn(&Times) -> Duration| Times(all.iter().map(of).collect()).median();
    for (what, all) in [("alone", &alone), ("beside 2,000 idle ones", &crowded)] {
        let (median, p99) = (middle(all, Times::median), middle(all, Times::p99));
        println!("{active} clients {what}: median {median:.2?}, p99 {p99:.2?}");
    }
    assert_has_not_grown("router with the idle ones", before, resident(pid));
    assert_eq!(threads(pid), 1, "the router is one thread");
    println!("the client that had it worst waited {worst:.2} times as long as the one in the middle");
    assert!(worst < 3.0, "it starved");
    eventually("all are gone", || descriptors(pid) < 100);
    daemon.assert_serves();
}

#[test]
fn memory_stays_what_it_was_after_the_first_thousand_requests() {
    let all = pick(5_000, 100_000);
    let daemon = Daemon::pattern(&[]);
    let pid = daemon.child.id();
    let load = |requests: u64| {
        std::thread::scope(|scope| {
            for n in 0..4 {
                let daemon = &daemon;
                scope.spawn(move || {
                    ask_in_turn(&mut daemon.connect(), &format!("client {n}"), requests / 4);
                });
            }
        });
    };
    load(1_000);
    let (before, open) = (resident(pid), descriptors(pid));
    let started = Instant::now();
    load(all - 1_000);
    println!("{:.0} requests a second, each picture looked at", {
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let requests = (all - 1_000) as f64;
        requests / started.elapsed().as_secs_f64()
    });
    assert_has_not_grown(&format!("router after {all} requests"), before, resident(pid));
    eventually("no descriptor is left open", || descriptors(pid) <= open);
    assert_eq!(threads(pid), 1, "the router is one thread");
}

/// Clients, faults, hang-ups and an orderly end, with every access to memory checked.
#[test]
fn valgrind_finds_no_error_and_no_leak_in_the_router() {
    let rounds = pick(11, 500);
    let folder = private_folder();
    let (socket, report) = (folder.path().join("weave.sock"), folder.path().join("report"));
    let mut command = Command::new("valgrind");
    command
        .args(["--leak-check=full", "--show-leak-kinds=definite,indirect,possible"])
        .args(["--errors-for-leak-kinds=definite,indirect,possible", "--error-exitcode=99"])
        // The worker runs natively.
        .args(["--trace-children=no", "--child-silent-after-fork=yes"])
        .arg(format!("--log-file={}", report.display()))
        .args(weaved().get_program().to_str())
        .args(["--no-config", "--engine=pattern", "--pattern=gradient", "--faults=crash@crash,fail@fail"])
        .arg("--socket")
        .arg(&socket);
    let mut daemon = Daemon::run(command.stdin(Stdio::null()), &socket);
    let mut client = daemon.connect();
    for round in 1..=rounds {
        ask_in_turn(&mut client, "under valgrind", 10);
        client.send(round, "fail", 1);
        client.expect_error(round, ErrorCode::GpuError);
        let mut bad = request(round, "x", 1);
        bad[39] = 0;
        client.write(&bad);
        client.expect_error(round, ErrorCode::InvalidSteps);
        daemon.connect().write(&request(7, "gone", 1)[..usize::try_from(round % 80).unwrap()]);
        let mut gone = daemon.connect();
        gone.write(&sized_request(8, "gone", 1, 1024, 1024, 1));
        gone.stream.read_exact(&mut [0; 100]).unwrap();
        drop(gone);
        if round % 10 == 1 {
            client.send(round, "crash", round);
            client.expect_error(round, ErrorCode::GpuError);
        }
    }
    client.write(&request(9, "half", 1)[..50]);
    daemon.signal(Signal::TERM);
    let status = daemon.wait();
    let report = std::fs::read_to_string(report).unwrap();
    for line in report.lines().filter(|line| line.contains("lost:") || line.contains("ERROR SUMMARY")) {
        println!("{}", line.trim_start_matches(|c| c == '=' || char::is_numeric(c)));
    }
    assert_eq!(status.code(), Some(0), "{report}");
}

// ------------------------------------------------------------------------------------ deaths

/// What became of the requests of a client.
#[derive(Debug, Default)]
struct Fates {
    images: u64,
    /// Requests that a worker was busy with as it died.
    errors: u64,
    /// Requests that waited while workers died one after the other.
    refusals: u64,
    /// Connections that were closed; what was sent on them and not answered by then is lost with them.
    closes: u64,
    lost: u64,
}

#[test]
fn workers_killed_at_any_moment_cost_one_request_each_at_most() {
    kill_workers(1, pick(50, 1_000));
    kill_workers(3, pick(50, 1_000));
}

/// Kills workers, mostly while they work, until there were so many kills.
fn kill_workers(workers: usize, kills: u64) {
    let daemon = Daemon::pattern(&[&format!("--workers={workers}")]);
    let (over, images, killed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let one_client = |n: u64| {
        let mut dice = Dice(n + 1);
        let (mut fates, mut id) = (Fates::default(), 0);
        let mut client = daemon.connect();
        let name = format!("client {n}");
        let mut waiting: VecDeque<(u64, u32)> = VecDeque::new();
        while !over.load(Ordering::Relaxed) || !waiting.is_empty() {
            // Small ones, and some that are too large for the sockets on their way: they die half sent.
            while !over.load(Ordering::Relaxed) && waiting.len() < 4 {
                id += 1;
                let side = if dice.below(8) == 0 { LARGE } else { SIDE };
                let frame = sized_request(id, &name, id, side, side, 1);
                if client.stream.write_all(&frame).is_err() {
                    break;
                }
                waiting.push_back((id, side));
            }
            // Who reads at once has an image sooner than a kill can come.
            if dice.below(4) == 0 {
                std::thread::sleep(Duration::from_millis(dice.below(20)));
            }
            match client.try_answer() {
                Ok(Some(answer)) => {
                    let place =
                        waiting.iter().position(|(id, _)| *id == answer.id()).expect("it was asked for");
                    let (id, side) = waiting.remove(place).unwrap();
                    match answer {
                        Answer::Image { pixels, .. } => {
                            assert!(pixels == sized_gradient(&name, id, side), "the wrong picture");
                            fates.images += 1;
                            images.fetch_add(1, Ordering::Relaxed);
                        }
                        Answer::Error { code, text, .. } => {
                            assert_eq!(code, ErrorCode::GpuError, "{text}");
                            // Said to all who wait, without a death for each: on a slow machine three kills can come
                            // before a worker has made anything.
                            let in_a_row =
                                text.contains("before it could make an image, 3 times or more in a row");
                            *if in_a_row { &mut fates.refusals } else { &mut fates.errors } += 1;
                        }
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    panic!("no answer for {waiting:?} within {PATIENCE:?}")
                }
                Ok(None) | Err(_) => {
                    fates.closes += 1;
                    fates.lost += u64::try_from(waiting.len()).unwrap();
                    waiting.clear();
                    client = daemon.connect();
                }
            }
        }
        fates
    };
    let killer = || {
        let mut dice = Dice(4711);
        while killed.load(Ordering::Relaxed) < kills {
            // Mostly while it works, sometimes while it starts. Each death in a row makes the next start
            // wait for longer, so not always.
            let before = images.load(Ordering::Relaxed);
            if dice.below(8) > 0 {
                eventually("images are made again", || images.load(Ordering::Relaxed) > before);
                std::thread::sleep(Duration::from_micros(dice.below(10_000)));
            }
            let alive: Vec<_> = daemon.workers().into_iter().filter(|pid| is_alive(*pid)).collect();
            if !alive.is_empty() {
                let pid = alive[usize::try_from(dice.below(alive.len() as u64)).unwrap()];
                let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
                killed.fetch_add(1, Ordering::Relaxed);
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        over.store(true, Ordering::Relaxed);
    };
    let one_client = &one_client;
    let fates = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..6).map(|n| scope.spawn(move || one_client(n))).collect();
        scope.spawn(killer);
        clients.into_iter().map(|client| client.join().unwrap()).collect::<Vec<_>>()
    });
    let sum = |part: fn(&Fates) -> u64| fates.iter().map(part).sum::<u64>();
    let (errors, closes) = (sum(|f| f.errors), sum(|f| f.closes));
    let killed = killed.load(Ordering::Relaxed);
    println!(
        "{killed} kills among {workers} workers: {} images, {errors} errors, {} refusals, {closes} connections closed in the \
         middle of an image and {} requests with them",
        sum(|f| f.images),
        sum(|f| f.refusals),
        sum(|f| f.lost),
    );
    assert!(errors + closes <= killed, "each death ends one request");
    assert!(errors > 0, "they were killed while they worked");
    assert!(pick(true, closes > 0), "some of them in the middle of an image");
    daemon.assert_serves();
    eventually("all are back", || daemon.workers().len() == workers);
}

#[test]
fn a_worker_killed_in_the_middle_of_an_image_closes_that_connection_and_no_other() {
    let daemon = Daemon::pattern(&[]);
    let mut waiting = daemon.connect();
    let mut times = Times::default();
    for round in 1..=pick(2, 20) {
        let mut client = daemon.connect();
        // Another one each time: what kills two workers is refused.
        client.write(&sized_request(1, "large", round, 2048, 2048, 1));
        client.stream.read_exact(&mut [0; 1000]).unwrap();
        waiting.send(round, "waiting", round);
        let [worker] = daemon.workers()[..] else { panic!() };
        daemon.kill_worker();
        // It could finish its system call, were the image taken from it meanwhile.
        eventually("it is dead", || !is_alive(worker));
        let (started, mut rest) = (Instant::now(), Vec::new());
        client.stream.read_to_end(&mut rest).expect("it is closed");
        assert!(rest.len() < 2048 * 2048 * 3, "it was cut off");
        times.0.push(started.elapsed());
        waiting.expect_gradient(round, "waiting", round);
    }
    println!("closed so long after its worker was killed: {times}");
    assert!(times.max() < PATIENCE / 10, "at once, and not when a limit has passed");
}

// ------------------------------------------------------------------------------------ bad neighbours

/// How a client fares while somebody does something else, against how it fares without that: rounds of
/// both in turn, and of all rounds the one in the middle, as other programs run on this machine, too.
/// The nuisance waits for the barrier when it is set up, and ends soon after it is told so.
fn compare(daemon: &Daemon, what: &str, nuisance: impl Fn(&Barrier, &AtomicBool) + Sync) {
    let (rounds, requests) = pick((5, 200), (15, 2_000));
    let mut client = daemon.connect();
    ask_in_turn(&mut client, "warm up", 100);
    let (mut quiet, mut loud) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        quiet.push(ask_in_turn(&mut client, "quiet", requests));
        let (ready, over) = (Barrier::new(2), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| nuisance(&ready, &over));
            ready.wait();
            loud.push(ask_in_turn(&mut client, "loud", requests));
            over.store(true, Ordering::Relaxed);
        });
    }
    let middle = |of: fn(&Times) -> Duration| {
        let [quiet, loud] = [&quiet, &loud].map(|all| Times(all.iter().map(of).collect()).median());
        (quiet, loud, loud.as_secs_f64() / quiet.as_secs_f64())
    };
    let (median, p99) = (middle(Times::median), middle(Times::p99));
    println!("{what}: median {:.2?} → {:.2?} ({:.2}×)", median.0, median.1, median.2);
    println!("{what}: p99 {:.2?} → {:.2?} ({:.2}×)", p99.0, p99.1, p99.2);
    // A few hundred requests have a p99 that says more of the machine than of the daemon.
    assert!(pick(median.2, p99.2) < 2.0, "{what}: it has to wait longer");
}

/// Sleeps in small pieces until it is over.
fn pause(over: &AtomicBool, time: Duration) {
    let until = Instant::now() + time;
    while !over.load(Ordering::Relaxed) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_thousand_silent_connections_do_not_slow_others_down() {
    let daemon = Daemon::pattern(&["--connections=2048"]);
    let pid = daemon.child.id();
    compare(&daemon, "1,000 connections say nothing", |ready, over| {
        let _crowd: Vec<_> = (0..1000).map(|_| daemon.connect()).collect();
        eventually("all are accepted", || descriptors(pid) > 1000);
        ready.wait();
        pause(over, PATIENCE);
    });
}

#[test]
fn writers_of_one_byte_a_second_do_not_slow_others_down() {
    let daemon = Daemon::pattern(&["--connections=2048"]);
    let frame = request(1, "slowly", 1);
    compare(&daemon, "500 connections write a byte a second", |ready, over| {
        let mut writers: Vec<_> = (0..500).map(|_| daemon.connect()).collect();
        ready.wait();
        for byte in frame.iter().cycle() {
            for writer in &mut writers {
                writer.write(&[*byte]);
                // Spread over the second.
                pause(over, Duration::from_millis(2));
                if over.load(Ordering::Relaxed) {
                    return;
                }
            }
        }
    });
}

#[test]
fn readers_that_never_read_small_images_do_not_slow_others_down() {
    let daemon = Daemon::pattern(&["--connections=2048"]);
    compare(&daemon, "every 20 ms one asks for a small image and never reads it", |ready, over| {
        let mut deaf = Vec::new();
        ready.wait();
        while !over.load(Ordering::Relaxed) {
            let mut client = daemon.connect();
            client.send(1, "never read", 1);
            deaf.push(client);
            pause(over, Duration::from_millis(20));
        }
    });
}

/// An image too large for the sockets stays with the worker until its client has taken it.
#[test]
fn a_reader_that_never_reads_a_large_image_holds_others_up_for_the_stall_limit_at_most() {
    let stall = pick(Duration::from_millis(500), Duration::from_secs(5));
    let daemon = Daemon::pattern(&[&format!("--stall-timeout={}", stall.as_secs_f64())]);
    let mut times = Times::default();
    for _ in 0..pick(2, 5) {
        let mut deaf = daemon.connect();
        deaf.write(&sized_request(1, "never read", 1, 2048, 2048, 1));
        deaf.stream.read_exact(&mut [0; 48]).unwrap();
        times.0.extend(ask_in_turn(&mut daemon.connect(), "after it", 1).0);
    }
    println!("one never reads 2048×2048, stall limit {stall:?}, the next one waits: {times}");
    assert!(times.max() < stall + PATIENCE / 10, "{:?}", times.max());
}

// ------------------------------------------------------------------------------------ hang-ups and ends

#[test]
fn hanging_up_after_any_byte_of_request_or_answer_leaves_nothing_behind() {
    let daemon = Daemon::pattern(&["--faults=fail@fail", "--connections=4096"]);
    let pid = daemon.child.id();
    let whole = request(7, "gone", 1);
    let hang_ups = || {
        for cut in 0..=whole.len() {
            daemon.connect().write(&whole[..cut]);
            let mut half = daemon.connect();
            half.write(&whole[..cut]);
            half.stream.shutdown(Shutdown::Write).unwrap();
            let answer = half.answer();
            assert_eq!(answer.is_some(), cut == whole.len(), "{answer:?} after {cut} bytes");
            let mut deaf = daemon.connect();
            let _ = deaf.stream.shutdown(Shutdown::Read);
            // The daemon may have closed it for that.
            let _ = deaf.stream.write_all(&whole[..cut]);
        }
        // Inside the head, at its end, inside the pixels, before their last byte; an error likewise.
        let answers =
            [(SIDE, "image", 48 + 64 * 64 * 3), (LARGE, "image", 48 + 2048 * 2048 * 3), (SIDE, "fail", 60)];
        for (side, prompt, len) in answers {
            for cut in [1, 15, 16, 17, 47, 48, 49, len / 2, len - 1].into_iter().filter(|cut| *cut < len) {
                let mut client = daemon.connect();
                client.write(&sized_request(1, prompt, 1, side, side, 1));
                // With more in the queue.
                client.send(2, prompt, 1);
                client.stream.read_exact(&mut vec![0; cut]).unwrap();
            }
        }
        daemon.assert_serves();
    };
    fill_tables(&daemon, 1000);
    hang_ups();
    eventually("all are gone", || descriptors(pid) < 30);
    let before = (resident(pid), descriptors(pid));
    for _ in 0..pick(1, 20) {
        hang_ups();
    }
    eventually("no descriptor is left open", || descriptors(pid) <= before.1);
    assert_has_not_grown("router after the hang-ups", before.0, resident(pid));
    assert_eq!(daemon.workers().len(), 1);
    assert!(!daemon.log.all().contains("restarted"), "no worker died of it:\n{}", daemon.log.all());
}

/// What a daemon is doing when SIGTERM comes, and what must become of the one client that looks.
#[test]
fn sigterm_ends_it_in_every_phase() {
    type Check = Box<dyn FnOnce(Client)>;
    let close: fn() -> Check = || Box::new(|mut client| client.expect_close());
    let whole = request(1, "asked", 1);
    let phases: Vec<(&str, &[&str], Vec<u8>, Check)> = vec![
        ("nothing was said", &[], vec![], close()),
        ("half a header was said", &[], whole[..9].to_vec(), close()),
        ("half a request was said", &[], whole[..70].to_vec(), close()),
        (
            "a large image is on its way",
            &[],
            sized_request(1, "large", 3, 2048, 2048, 1),
            Box::new(|mut client| {
                let Some(Answer::Image { pixels, .. }) = client.answer() else { panic!("no image") };
                assert!(pixels == sized_gradient("large", 3, 2048));
                client.expect_close();
            }),
        ),
        (
            "a large image is on its way to one who does not read",
            &["--drain-timeout=0.3"],
            sized_request(1, "large", 3, 2048, 2048, 1),
            Box::new(|mut client| {
                // It hears that it was not the whole.
                std::thread::sleep(Duration::from_millis(600));
                assert!(client.try_answer().is_err());
            }),
        ),
        (
            "an image that fits into the sockets was not read",
            &[],
            whole.clone(),
            Box::new(|mut client| {
                client.expect_gradient(1, "asked", 1);
                client.expect_close();
            }),
        ),
        (
            "it generates",
            &["--faults=slow=0.2"],
            whole.clone(),
            Box::new(|mut client| {
                client.expect_gradient(1, "asked", 1);
                client.expect_close();
            }),
        ),
        (
            "the worker died and is not started again at once",
            &["--faults=crash@asked"],
            [whole.clone(), whole.clone(), whole.clone(), whole.clone()].concat(),
            Box::new(|mut client| {
                for _ in 0..4 {
                    match client.answer() {
                        Some(Answer::Error { id: 1, .. }) => {}
                        other => panic!("{other:?}"),
                    }
                }
                client.expect_close();
            }),
        ),
    ];
    for (phase, flags, bytes, check) in phases {
        let mut daemon = Daemon::pattern(flags);
        let worker = daemon.workers();
        let mut client = daemon.connect();
        // Its own connection is known to the daemon once it has had an answer.
        client.send(99, "hello", 1);
        client.expect_gradient(99, "hello", 1);
        client.write(&bytes);
        if phase.contains("image") {
            daemon.log.wait("request 1: done");
        } else if bytes.len() > 70 {
            daemon.log.wait("request 1:");
        }
        let started = Instant::now();
        daemon.signal(Signal::TERM);
        check(client);
        assert_eq!(daemon.wait().code(), Some(0), "when {phase}");
        println!("SIGTERM when {phase}: ended after {:.3} s", started.elapsed().as_secs_f64());
        assert!(!daemon.socket.exists(), "when {phase}: the socket is removed");
        eventually("the worker is gone", || !worker.iter().any(|pid| is_alive(*pid)));
    }
}

/// As a load balancer does it: connected, asked, and the daemon had no time to notice yet.
#[test]
fn who_connected_before_sigterm_is_answered() {
    let mut daemon = Daemon::pattern(&[]);
    daemon.assert_serves();
    daemon.signal(Signal::STOP);
    let mut client = daemon.connect();
    client.send(1, "just in time", 1);
    daemon.signal(Signal::TERM);
    daemon.signal(Signal::CONT);
    match client.answer() {
        Some(Answer::Image { id: 1, .. } | Answer::Error { id: 1, code: ErrorCode::ShuttingDown, .. }) => {}
        other => panic!("an answer was expected, not {other:?}"),
    }
    client.expect_close();
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn an_old_daemon_finishes_beside_the_new_one_on_the_same_path() {
    let folder = private_folder();
    let socket = folder.path().join("weave.sock");
    let flags = ["--engine=pattern", "--pattern=gradient"];
    let mut old = Daemon::start_at(&socket, &[&flags[..], &["--faults=slow=0.5"]].concat());
    let mut client = old.connect();
    client.send(1, "of the old one", 1);
    old.log.wait("request 1:");
    old.signal(Signal::TERM);
    eventually("the old one has left the path", || !socket.exists());
    let new = Daemon::start_at(&socket, &flags);
    new.assert_serves();
    client.expect_gradient(1, "of the old one", 1);
    client.expect_close();
    assert_eq!(old.wait().code(), Some(0));
    drop(old);
    // It has not taken the new one's socket with it.
    new.assert_serves();
}

// ------------------------------------------------------------------------------------ shortages

/// Starts it with so many descriptors at most.
fn with_descriptors(limit: usize, socket: &Path, flags: &[&str]) -> Daemon {
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("ulimit -n {limit} && exec \"$0\" \"$@\"")])
        .arg(weaved().get_program())
        .args(["--no-config", "--engine=pattern", "--pattern=gradient", "--socket"])
        .arg(socket)
        .args(flags);
    Daemon::run(command.stdin(Stdio::null()), socket)
}

/// Starts a copy of it, which can be taken away.
fn with_own_program(folder: &Path) -> (Daemon, PathBuf) {
    let (program, socket) = (folder.join("weaved"), folder.join("weave.sock"));
    std::fs::copy(weaved().get_program(), &program).unwrap();
    let mut command = Command::new(&program);
    command.args(["--no-config", "--engine=pattern", "--pattern=gradient", "--socket"]).arg(&socket);
    (Daemon::run(command.stdin(Stdio::null()), &socket), program)
}

#[test]
fn a_request_does_not_wait_for_ever_for_a_worker_that_cannot_be_started() {
    let folder = private_folder();
    let (daemon, program) = with_own_program(folder.path());
    daemon.assert_serves();
    std::fs::remove_file(program).unwrap();
    daemon.kill_worker();
    let mut client = daemon.connect();
    client.send(1, "in vain", 1);
    client.expect_error(1, ErrorCode::GpuError);
}

#[test]
fn a_worker_is_started_again_while_clients_want_every_descriptor() {
    let folder = private_folder();
    let daemon = with_descriptors(48, &folder.path().join("weave.sock"), &[]);
    daemon.assert_serves();
    let mut crowd: Vec<_> = (0..100).map(|_| daemon.connect()).collect();
    daemon.log.wait("refused a connection: all");
    ask_in_turn(&mut crowd[0], "inside", 1);
    daemon.kill_worker();
    daemon.log.wait("was killed");
    crowd[0].send(1, "worker", 1);
    crowd[0].expect_gradient(1, "worker", 1);
}

#[test]
fn the_largest_image_arrives_whole() {
    let daemon = Daemon::pattern(&[]);
    std::thread::scope(|scope| {
        for n in 1..=pick(2, 20) {
            let daemon = &daemon;
            scope.spawn(move || {
                let mut client = daemon.connect();
                client.write(&sized_request(n, "large", n, 2048, 2048, 1));
                let (id, pixels) = client.image();
                assert!(id == n && pixels == sized_gradient("large", n, 2048));
            });
        }
    });
}

/// Two minutes of real time, which no other test waits for: with large numbers only.
#[test]
fn what_repeats_itself_is_told_once_a_minute_while_the_daemon_runs() {
    if pick(true, false) {
        return eprintln!("NOT CHECKED: it takes two minutes; RELIABILITY=long");
    }
    let daemon = Daemon::pattern(&[]);
    let uid = rustix::process::geteuid().as_raw();
    let mut client = daemon.connect();
    let refused = |client: &mut harness::Client, times: u64| {
        for id in 1..=times {
            let mut frame = request(id, "bad", 1);
            frame[39] = 0;
            client.write(&frame);
            client.expect_error(id, ErrorCode::InvalidSteps);
        }
    };
    refused(&mut client, 5);
    std::thread::sleep(Duration::from_secs(50));
    assert!(!daemon.log.all().contains("in the last minute"));
    let line =
        |times| format!("refused a request, INVALID_STEPS: {times} more of uid {uid} in the last minute");
    daemon.log.wait(&line(4));
    // Those of the next minute are counted, too, until one was quiet.
    refused(&mut client, 3);
    assert_eq!(daemon.log.all().matches("refused: INVALID_STEPS").count(), 1);
    std::thread::sleep(Duration::from_secs(50));
    daemon.log.wait(&line(3));
}
