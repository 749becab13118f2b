//! What nobody may do to the real `weaved` for too long or too often.

mod harness;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use harness::{Daemon, admin, eventually, get, metric, request, sized_request, weaved};
use rustix::process::Signal;
use weave_core::error::ErrorCode;

/// A request that the router refuses by itself, at once.
fn bad_request(id: u64) -> Vec<u8> {
    let mut frame = request(id, "bad", 1);
    frame[39] = 0;
    frame
}

/// Waits until the daemon has read so many bytes from clients.
fn wait_until_read(daemon: &Daemon, bytes: usize) {
    let read = || metric(daemon, "weave_received_bytes_total");
    eventually("the daemon has read it", || read() >= bytes as f64);
}

// ------------------------------------------------------------------------------------ time

#[test]
fn a_frame_has_to_be_complete_in_time_however_much_of_it_comes() {
    let daemon = Daemon::pattern(&["--frame-timeout=0.3"]);
    let (mut half, mut dripping, mut silent) = (daemon.connect(), daemon.connect(), daemon.connect());
    let whole = request(7, "half", 1);
    half.write(&whole[..70]);
    // A minute's worth, until it is closed.
    let started = Instant::now();
    dripping.write(&[&whole[..8], &6000u32.to_be_bytes()].concat());
    while dripping.stream.write_all(&[0]).is_ok() {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(started.elapsed() < Duration::from_secs(30), "it was closed because it stopped");
    for client in [&mut half, &mut dripping] {
        let text = client.expect_error(0, ErrorCode::Timeout);
        assert!(text.starts_with("a frame was not complete 0.3 s after it was begun"), "{text}");
        client.expect_close();
    }
    assert!(started.elapsed() >= Duration::from_millis(300));
    daemon.log.wait("frame timeout, not complete after 300ms; closing");
    assert_eq!(metric(&daemon, "weave_connections_cut_total{reason=\"half_frame\"}"), 2.0);
    // Who has begun no frame is not late with it.
    silent.send(1, "now", 1);
    silent.expect_gradient(1, "now", 1);
}

#[test]
fn nobody_is_late_because_the_daemon_stood_still() {
    let limits = ["--frame-timeout=1", "--idle-timeout=1", "--generation-timeout=1"];
    let daemon = Daemon::pattern(&[&limits[..], &["--workers=2", "--faults=slow=0.3"]].concat());
    let (mut half, mut idle, mut waiting) = (daemon.connect(), daemon.connect(), daemon.connect());
    let whole = request(1, "half", 1);
    half.write(&whole[..70]);
    waiting.send(2, "made meanwhile", 2);
    wait_until_read(&daemon, 70 + request(2, "made meanwhile", 2).len());
    daemon.freeze();
    // The rest of a frame, a first word after a long time, and an image: all are there when it goes on.
    half.write(&whole[70..]);
    idle.send(3, "a word", 3);
    std::thread::sleep(Duration::from_millis(1200));
    daemon.signal(Signal::CONT);
    half.expect_gradient(1, "half", 1);
    waiting.expect_gradient(2, "made meanwhile", 2);
    idle.expect_gradient(3, "a word", 3);
}

#[test]
fn who_wants_nothing_is_closed_and_who_waits_for_an_image_is_not() {
    let daemon = Daemon::pattern(&["--idle-timeout=0.3", "--faults=slow=0.2"]);
    let (mut silent, mut waiting) = (daemon.connect(), daemon.connect());
    let started = Instant::now();
    waiting.write(&sized_request(1, "slow", 1, 64, 64, 4));
    silent.expect_close();
    assert!(started.elapsed() >= Duration::from_millis(300));
    waiting.expect_gradient(1, "slow", 1);
    assert!(started.elapsed() >= Duration::from_millis(800));
    // It has what it wanted, and as much time as everybody.
    waiting.expect_close();
    daemon.log.wait("idle timeout, no request for 300ms; closing");
    assert_eq!(metric(&daemon, "weave_connections_cut_total{reason=\"idle\"}"), 2.0);
    assert_eq!(daemon.log.all().matches("idle timeout").count(), 1, "the second one is counted");
}

#[test]
fn a_request_waits_for_a_worker_only_so_long() {
    let daemon = Daemon::pattern(&["--queue-timeout=0.3", "--faults=hang@stop"]);
    let (mut first, mut second) = (daemon.connect(), daemon.connect());
    first.send(1, "stop", 1);
    daemon.log.wait("request 1:");
    let started = Instant::now();
    second.send(2, "waits", 1);
    let text = second.expect_error(2, ErrorCode::Timeout);
    assert_eq!(text, "no worker was free within the server's limit of 0.3 s; try again later");
    assert!(started.elapsed() >= Duration::from_millis(300));
    assert_eq!(metric(&daemon, "weave_refusals_total{reason=\"queue_wait\"}"), 1.0);
    // That limit is not for the one that has a worker.
    assert_eq!(metric(&daemon, "weave_requests_running"), 1.0);
    daemon.kill_worker();
    first.expect_error(1, ErrorCode::GpuError);
    second.send(3, "again", 1);
    second.expect_gradient(3, "again", 1);
}

#[test]
fn who_holds_a_worker_by_not_reading_has_less_time_once_others_wait() {
    let daemon = Daemon::pattern(&["--busy-stall-timeout=0.3"]);
    let mut still = daemon.connect();
    still.write(&sized_request(1, "large", 1, 2048, 2048, 1));
    still.stream.read_exact(&mut [0; 48]).unwrap();
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(metric(&daemon, "weave_connections_cut_total{reason=\"stalled\"}"), 0.0, "nobody waits");
    daemon.assert_serves();
    daemon.log.wait("stall timeout, it took too little of its answer; closing");
    let mut rest = Vec::new();
    let _ = still.stream.read_to_end(&mut rest);
    assert!(rest.len() < 2048 * 2048 * 3, "it was cut off");
}

#[test]
fn a_worker_that_stands_still_in_the_middle_of_an_image_is_ended() {
    let daemon = Daemon::pattern(&["--stall-timeout=0.3"]);
    let mut client = daemon.connect();
    client.write(&sized_request(1, "large", 1, 2048, 2048, 1));
    client.stream.read_exact(&mut [0; 48]).unwrap();
    let [worker] = daemon.workers()[..] else { panic!() };
    harness::freeze(worker);
    let mut rest = Vec::new();
    let _ = client.stream.read_to_end(&mut rest);
    assert!(rest.len() < 2048 * 2048 * 3, "it was cut off");
    daemon.log.wait("stall timeout, it took too little of its answer; closing");
    daemon.log.wait("worker 0: its image stalled; killing it");
    daemon.assert_serves();
    assert_eq!(metric(&daemon, "weave_worker_kills_total{reason=\"violation\"}"), 1.0);
}

// ------------------------------------------------------------------------------------ number

#[test]
fn one_connection_has_no_more_requests_under_way_than_it_may() {
    let daemon = Daemon::pattern(&["--in-flight=2", "--faults=hang@stop"]);
    let (mut greedy, mut other) = (daemon.connect(), daemon.connect());
    greedy.send(1, "stop", 1);
    daemon.log.wait("request 1:");
    greedy.send(2, "waits", 2);
    greedy.send(3, "too many", 3);
    let text = greedy.expect_error(3, ErrorCode::Busy);
    assert_eq!(text, "2 requests of this connection are not answered yet, at most 2 may be");
    assert_eq!(metric(&daemon, "weave_refusals_total{reason=\"in_flight\"}"), 1.0);
    // Others have their own.
    other.send(4, "mine", 4);
    wait_until_read(&daemon, 4 * request(1, "stop", 1).len());
    daemon.kill_worker();
    greedy.expect_error(1, ErrorCode::GpuError);
    greedy.expect_gradient(2, "waits", 2);
    other.expect_gradient(4, "mine", 4);
    greedy.send(5, "room again", 5);
    greedy.expect_gradient(5, "room again", 5);
}

#[test]
fn a_request_that_ended_two_workers_is_refused_and_no_other() {
    let digests = [1, 2].map(|_| {
        let daemon = Daemon::pattern(&["--faults=crash@boom"]);
        let mut client = daemon.connect();
        for id in 1..=2 {
            client.send(id, "boom", 1);
            assert!(client.expect_error(id, ErrorCode::GpuError).contains("killed by signal 6"));
        }
        daemon.assert_serves();
        let workers = daemon.workers();
        // By whomever it is asked.
        for (client, id) in [(&mut client, 3), (&mut daemon.connect(), 4)] {
            client.send(id, "boom", 1);
            let text = client.expect_error(id, ErrorCode::GpuError);
            assert!(text.starts_with("this very request ended the worker twice and is refused for an hour"));
        }
        assert_eq!(daemon.workers(), workers, "it was not tried");
        assert_eq!(metric(&daemon, "weave_refusals_total{reason=\"quarantined\"}"), 2.0);
        // Another seed is another request.
        client.send(5, "boom", 2);
        assert!(client.expect_error(5, ErrorCode::GpuError).contains("killed by signal 6"));
        let line = daemon.log.wait("again; it is in quarantine for an hour");
        assert_eq!(daemon.log.all().matches("is in quarantine").count(), 1);
        assert!(!daemon.log.all().contains("boom"), "the prompt is not told");
        line.split("died of request ").nth(1).unwrap()[..16].to_owned()
    });
    // What an operator notes means the same after a restart.
    assert_eq!(digests[0], digests[1]);
}

/// The order in which requests were looked at, as the log has it.
#[test]
fn a_client_that_has_much_to_say_does_not_keep_the_others_waiting() {
    let daemon = Daemon::pattern(&["--log=debug"]);
    let (mut busy, mut modest) = (daemon.connect(), daemon.connect());
    // Both are known to the daemon, and nothing of theirs is under way.
    for client in [&mut busy, &mut modest] {
        client.write(&bad_request(1));
        client.expect_error(1, ErrorCode::InvalidSteps);
    }
    daemon.freeze();
    const MANY: u64 = 1000;
    busy.write(&(100..100 + MANY).flat_map(bad_request).collect::<Vec<_>>());
    modest.write(&bad_request(50));
    daemon.signal(Signal::CONT);
    modest.expect_error(50, ErrorCode::InvalidSteps);
    for id in 100..100 + MANY {
        busy.expect_error(id, ErrorCode::InvalidSteps);
    }
    daemon.log.wait("request 1099 of connection");
    let log = daemon.log.all();
    let before = log.split("request 50 of connection").next().unwrap().matches("INVALID_STEPS").count();
    assert!(before < 300, "{before} requests of the busy one came first");
}

// ------------------------------------------------------------------------------------ warm-up

#[test]
fn nobody_is_promised_anything_before_a_worker_has_shown_that_it_can() {
    let status = |daemon: &Daemon| {
        let output = weaved().arg("status").arg("--socket").arg(&daemon.socket).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    // It would warm up for ever.
    let daemon = Daemon::pattern(&["--warm-up=true", "--faults=hang@warm-up"]);
    eventually("it warms up", || metric(&daemon, "weave_worker_phase{worker=\"0\"}") == 3.0);
    let words = "not ready: no worker has made its first image yet\n";
    assert_eq!(get(&admin(&daemon), "/readyz"), (503, words.to_owned()));
    assert_eq!(get(&admin(&daemon), "/healthz").0, 200);
    assert_eq!(status(&daemon), (Some(1), format!("weaved: {words}")));
    drop(daemon);

    let daemon = Daemon::pattern(&["--warm-up=true", "--faults=slow=0.2"]);
    daemon.assert_serves();
    assert_eq!((get(&admin(&daemon), "/readyz").0, status(&daemon).0), (200, Some(0)));
    assert_eq!(metric(&daemon, "weave_warm_ups_total"), 1.0);
}
