//! What nobody may do to the real `weaved` for too long or too often.

mod harness;

use std::io::{Read, Write};
use std::net::{SocketAddr, SocketAddrV4};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use harness::{Answer, Client, Daemon, admin, eventually, get, metric, request, sized_request, weaved};
use rustix::net::{AddressFamily, SocketType};
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

/// How an image is read that somebody else waits behind.
#[derive(Clone, Copy, Debug)]
struct Reader {
    kilobytes_per_second: usize,
    /// `--busy-stall-timeout`, in seconds.
    limit: u32,
    is_tcp: bool,
}

impl Reader {
    /// Reads so, and whether it was cut off within `limits` busy stall timeouts.
    fn is_cut_off_within(self, limits: u32) -> bool {
        let Self { kilobytes_per_second, limit, is_tcp } = self;
        let limit_flag = format!("--busy-stall-timeout={limit}");
        let tcp: &[_] = if is_tcp { &["--tcp=127.0.0.1:0"] } else { &[] };
        let daemon = Daemon::pattern(&[&[&*limit_flag], tcp].concat());
        let mut slow = if is_tcp { from(1, &daemon.tcp_address()) } else { daemon.connect() };
        slow.write(&sized_request(1, "large", 1, 2048, 2048, 1));
        slow.stream.read_exact(&mut [0; 48]).unwrap();
        let mut waiting = daemon.connect();
        waiting.send(3, "waits", 3);
        let started = Instant::now();
        // As much as is due by now, every hundredth of a second.
        let mut read = 0;
        let mut piece = vec![0; 100_000];
        while started.elapsed() < Duration::from_secs((limit * limits).into()) {
            let due = usize::try_from(started.elapsed().as_millis()).unwrap() * kilobytes_per_second - read;
            let due = due.min(piece.len());
            read += slow.stream.read(&mut piece[..due]).unwrap_or(0);
            std::thread::sleep(Duration::from_millis(10));
        }
        let is_cut_off = metric(&daemon, "weave_connections_cut_total{reason=\"stalled\"}") > 0.0;
        if is_cut_off {
            waiting.expect_gradient(3, "waits", 3);
        }
        is_cut_off
    }
}

#[test]
fn who_reads_slowly_but_enough_is_not_cut_off_though_others_wait() {
    std::thread::scope(|scope| {
        for is_tcp in [false, true] {
            for (kilobytes_per_second, limit, limits, is_cut_off) in [
                // A limit of 4 seconds asks for 16 kB/s, one of 1 second for 66.
                (20, 4, 2, false),
                (100, 1, 5, false),
                (300, 1, 5, false),
                (1000, 1, 5, false),
                (10, 1, 6, true),
                (0, 1, 3, true),
            ] {
                let reader = Reader { kilobytes_per_second, limit, is_tcp };
                scope.spawn(move || {
                    assert_eq!(reader.is_cut_off_within(limits), is_cut_off, "{reader:?}");
                });
            }
        }
    });
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
fn who_sends_more_than_may_be_under_way_is_read_when_there_is_room() {
    let daemon = Daemon::pattern(&["--in-flight=2", "--frame-timeout=0.2", "--faults=hang@stop"]);
    let (mut greedy, mut other) = (daemon.connect(), daemon.connect());
    greedy.send(1, "stop", 1);
    daemon.log.wait("request 1:");
    // More than one read takes, and the end of it in the middle of a frame.
    let many: Vec<_> = (2..=200).flat_map(|id| request(id, "waits", id)).collect();
    let (most, rest) = many.split_at(many.len() - 10);
    greedy.write(most);
    other.send(201, "mine", 201);
    let waiting = || metric(&daemon, "weave_queue_length");
    eventually("one of each waits", || waiting() == 2.0);
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(waiting(), 2.0);
    daemon.kill_worker();
    greedy.expect_error(1, ErrorCode::GpuError);
    other.expect_gradient(201, "mine", 201);
    greedy.write(rest);
    (2..=200).for_each(|id| greedy.expect_gradient(id, "waits", id));
    assert_eq!(metric(&daemon, "weave_connections_cut_total{reason=\"half_frame\"}"), 0.0);
}

#[test]
fn fifty_requests_at_once_get_fifty_images_if_the_queue_has_room() {
    let daemon = Daemon::pattern(&[]);
    let mut client = daemon.connect();
    client.write(&(1..=50).flat_map(|id| request(id, "many", id)).collect::<Vec<_>>());
    (1..=50).for_each(|id| client.expect_gradient(id, "many", id));

    // If not, those beyond it are told at once.
    let daemon = Daemon::pattern(&["--queue=8", "--faults=hang@stop"]);
    let mut client = daemon.connect();
    client.send(1, "stop", 1);
    daemon.log.wait("request 1:");
    client.write(&(2..=50).flat_map(|id| request(id, "many", id)).collect::<Vec<_>>());
    for id in 10..=50 {
        let text = client.expect_error(id, ErrorCode::Busy);
        assert_eq!(text, "the queue is full: 8 requests wait, at most 8 may; try again later");
    }
    daemon.kill_worker();
    client.expect_error(1, ErrorCode::GpuError);
    (2..10).for_each(|id| client.expect_gradient(id, "many", id));
}

#[test]
fn who_is_gone_is_noticed_though_it_is_not_read() {
    let daemon = Daemon::pattern(&["--in-flight=1", "--tcp=127.0.0.1:0", "--faults=hang@stop"]);
    let many = [request(1, "stop", 1), request(2, "never read", 1)].concat();
    let address = daemon.tcp_address();
    for connect in [&|| daemon.connect(), &|| from(1, &address)] as [&dyn Fn() -> Client; 2] {
        let mut client = connect();
        client.write(&many);
        daemon.log.wait("request 1:");
        eventually("it is there", || metric(&daemon, "weave_connections") == 1.0);
        // Over TCP without a word: what it sent is not read, and what is sent to it has nowhere to go.
        rustix::net::sockopt::set_socket_linger(&client.stream, Some(Duration::ZERO)).unwrap();
        drop(client);
        eventually("it is gone", || metric(&daemon, "weave_connections") == 0.0);
    }
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

// ------------------------------------------------------------------------------------ users

/// A client that comes over TCP from 127.0.0.`host`: a user of its own.
fn from(host: u8, address: &str) -> Client {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrV4::new([127, 0, 0, host].into(), 0)).unwrap();
    rustix::net::connect(&socket, &address.parse::<SocketAddr>().unwrap()).unwrap();
    // Only the type says Unix: what is used of it is the same for all sockets.
    Client::new(UnixStream::from(socket))
}

/// Whether the daemon has hung up on a client that reads nothing else.
fn is_closed(client: &mut Client) -> bool {
    client.stream.set_nonblocking(true).unwrap();
    let is_closed = matches!(client.stream.read(&mut [0]), Ok(0));
    client.stream.set_nonblocking(false).unwrap();
    is_closed
}

fn queue_length(daemon: &Daemon, length: usize) {
    eventually("so many wait", || metric(daemon, "weave_queue_length") == length as f64);
}

#[test]
fn one_user_leaves_connections_for_the_others() {
    let daemon = Daemon::pattern(&["--tcp=127.0.0.1:0"]);
    let address = daemon.tcp_address();
    let mut many: Vec<_> = (0..260).map(|_| from(1, &address)).collect();
    let text = many[259].expect_error(0, ErrorCode::Busy);
    // Its owner, and another one.
    daemon.assert_serves();
    let mut other = from(2, &address);
    other.send(1, "me too", 1);
    other.expect_gradient(1, "me too", 1);
    assert_eq!(
        text,
        "128 connections of 127.0.0.1 are open, at most 128 may be; close one or try again later"
    );
    for refused in &mut many[128..259] {
        refused.expect_error(0, ErrorCode::Busy);
        refused.expect_close();
    }
    daemon.log.wait("refused a connection: 128 connections of 127.0.0.1 are open");
    assert_eq!(metric(&daemon, "weave_connections_refused_total{reason=\"share\"}"), 132.0);
    assert_eq!(metric(&daemon, "weave_connections_refused_total{reason=\"full\"}"), 0.0);
    // A place that is given back is its own again.
    drop(many.swap_remove(0));
    eventually("it has a place again", || {
        let mut again = from(1, &address);
        again.send(2, "again", 2);
        matches!(again.answer(), Some(Answer::Image { .. }))
    });
}

#[test]
fn who_has_most_makes_room_for_a_newcomer() {
    let daemon = Daemon::pattern(&["--tcp=127.0.0.1:0", "--connections=16", "--faults=hang@stop"]);
    let address = daemon.tcp_address();
    // The first is not idle, but waits for an image.
    let mut most: Vec<_> = (0..8).map(|_| from(1, &address)).collect();
    most[0].send(1, "stop", 1);
    let mut fewer: Vec<_> = (0..7).map(|_| from(2, &address)).collect();
    eventually("all are in", || metric(&daemon, "weave_connections") == 15.0);
    let mut newcomer = None;
    eventually("there is room for a third", || {
        let mut third = from(3, &address);
        third.stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        match third.try_answer() {
            Ok(Some(Answer::Error { code: ErrorCode::Busy, text, .. })) => {
                let words =
                    "all 15 connections for users other than the server's own are taken; try again later";
                assert_eq!(text, words);
                false
            }
            Err(_) => {
                newcomer = Some(third);
                true
            }
            other => panic!("{other:?}"),
        }
    });
    let line = daemon.log.wait("no request, and another user has no place; closing");
    assert!(line.contains("(127.0.0.1)"), "{line}");
    most[1].expect_close();
    assert!(!most.iter_mut().enumerate().any(|(at, client)| at != 1 && is_closed(client)));
    assert!(!fewer.iter_mut().any(is_closed));
    assert_eq!(metric(&daemon, "weave_connections_cut_total{reason=\"displaced\"}"), 1.0);
    // The last place is for the owner.
    let mut owner = daemon.connect();
    owner.send(2, "mine", 1);
    queue_length(&daemon, 1);
    assert_eq!(metric(&daemon, "weave_connections"), 16.0);
    daemon.kill_worker();
    owner.expect_gradient(2, "mine", 1);
    most[0].expect_error(1, ErrorCode::GpuError);
}

#[test]
fn who_has_spoken_does_not_make_room() {
    let daemon = Daemon::pattern(&["--tcp=127.0.0.1:0", "--connections=4"]);
    let address = daemon.tcp_address();
    let (mut one, mut two) = (from(1, &address), from(1, &address));
    let _other = from(2, &address);
    eventually("all are in", || metric(&daemon, "weave_connections") == 3.0);
    daemon.freeze();
    // The one that was idle longest says something just before there is no place for another.
    let mut third = from(3, &address);
    one.send(1, "in time", 1);
    std::thread::sleep(Duration::from_millis(1200));
    daemon.signal(Signal::CONT);
    third.send(2, "newcomer", 2);
    third.expect_gradient(2, "newcomer", 2);
    one.expect_gradient(1, "in time", 1);
    two.expect_close();
}

#[test]
fn one_user_leaves_room_in_the_queue_for_the_others() {
    let daemon = Daemon::pattern(&["--tcp=127.0.0.1:0", "--queue=4", "--faults=hang@stop"]);
    let address = daemon.tcp_address();
    let mut first = from(1, &address);
    first.send(1, "stop", 1);
    daemon.log.wait("request 1:");
    let [mut one, mut two, mut three] = [1, 1, 1].map(|host| from(host, &address));
    one.send(2, "one", 2);
    queue_length(&daemon, 1);
    two.send(3, "two", 3);
    queue_length(&daemon, 2);
    three.send(4, "three", 4);
    let text = three.expect_error(4, ErrorCode::Busy);
    assert_eq!(text, "2 requests of 127.0.0.1 wait, at most 2 may; try again later");
    let mut other = from(2, &address);
    other.send(5, "other", 5);
    queue_length(&daemon, 3);
    other.send(6, "other", 6);
    let text = other.expect_error(6, ErrorCode::Busy);
    let words = "the queue is full for users other than the server's own: 3 of their requests wait, at most 3 may; \
                 try again later";
    assert_eq!(text, words);
    let mut owner = daemon.connect();
    owner.send(7, "owner", 7);
    queue_length(&daemon, 4);
    owner.send(8, "owner", 8);
    let text = owner.expect_error(8, ErrorCode::Busy);
    assert_eq!(text, "the queue is full: 4 requests wait, at most 4 may; try again later");
    assert_eq!(metric(&daemon, "weave_refusals_total{reason=\"queue_share\"}"), 1.0);
    assert_eq!(metric(&daemon, "weave_refusals_total{reason=\"queue_full\"}"), 2.0);
    daemon.kill_worker();
    one.expect_gradient(2, "one", 2);
    two.expect_gradient(3, "two", 3);
    other.expect_gradient(5, "other", 5);
    owner.expect_gradient(7, "owner", 7);
}

#[test]
fn many_connections_get_no_more_turns_than_one() {
    let daemon = Daemon::pattern(&["--tcp=127.0.0.1:0", "--log=debug", "--faults=hang@stop"]);
    let address = daemon.tcp_address();
    let mut many: Vec<_> = (0..21).map(|_| from(1, &address)).collect();
    many[0].send(1, "stop", 1);
    daemon.log.wait("request 1:");
    for (id, client) in (2..).zip(&mut many[1..]) {
        client.send(id, "one of many", id);
    }
    queue_length(&daemon, 20);
    let mut owner = daemon.connect();
    for id in [51, 52] {
        owner.send(id, "mine", id);
    }
    queue_length(&daemon, 22);
    daemon.kill_worker();
    for (id, client) in (2..).zip(&mut many[1..]) {
        client.expect_gradient(id, "one of many", id);
    }
    let log = daemon.log.all();
    let given: Vec<_> = log.lines().filter(|line| line.contains("given to worker")).collect();
    for (turn, id) in [(2, 51), (4, 52)] {
        assert!(given[turn].contains(&format!("request {id} of")), "{given:#?}");
    }
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
