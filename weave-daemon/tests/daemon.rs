//! The real `weaved` with the pattern engine, from outside.

mod harness;

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use harness::{
    Answer, Client, Daemon, SIDE, assert_gone_within_a_second, eventually, gradient, is_alive, metric,
    private_folder, request, sized_request, wait, weaved,
};
use rustix::process::{Pid, Signal, kill_process_group};
use weave_core::error::ErrorCode;

#[test]
fn the_default_picture_is_a_checkerboard_of_8_by_8_blocks() {
    let daemon = Daemon::start(&["--engine=pattern"]);
    let mut client = daemon.connect();
    client.write(&sized_request(1, "anything", 1, 128, 64, 1));
    let Some(Answer::Image { id: 1, width: 128, height: 64, pixels }) = client.answer() else { panic!() };
    for (at, (x, y)) in [(0, 0), (7, 0), (8, 0), (0, 8), (8, 8), (127, 63), (120, 0)].into_iter().enumerate()
    {
        let black = (x / 8 + y / 8) % 2 == 0;
        let pixel = &pixels[(y * 128 + x) * 3..][..3];
        assert_eq!(pixel, if black { [0x00; 3] } else { [0xFF; 3] }, "point {at}");
    }
}

#[test]
fn twenty_requests_from_five_clients_at_once_each_get_their_own_picture() {
    let daemon = Daemon::pattern(&["--faults=slow=0.01"]);
    std::thread::scope(|scope| {
        for client_no in 0..5u64 {
            let daemon = &daemon;
            scope.spawn(move || {
                let mut client = daemon.connect();
                let prompt = |n: u64| format!("picture {n} of client {client_no}");
                // The same ids in all clients: they are each client's own business.
                for n in 0..4 {
                    client.send(n, &prompt(n), client_no * 100 + n + 1);
                }
                let answers: HashMap<_, _> = (0..4).map(|_| client.image()).collect();
                for n in 0..4 {
                    assert!(answers[&n] == gradient(&prompt(n), client_no * 100 + n + 1));
                }
            });
        }
    });
}

#[test]
fn seed_0_lets_the_daemon_draw_one_and_say_which() {
    let daemon = Daemon::pattern(&[]);
    let mut client = daemon.connect();
    let seeds = [1, 2].map(|id| {
        client.send(id, "any", 0);
        let (_, pixels) = client.image();
        let line = daemon.log.wait(&format!("request {id}: 64×64"));
        let seed: u64 = line.rsplit("seed ").next().unwrap().parse().unwrap();
        assert!(pixels == gradient("any", seed), "the seed in the log is the one that was used");
        seed
    });
    assert!(!seeds.contains(&0) && seeds[0] != seeds[1]);
}

#[test]
fn a_full_queue_answers_busy_at_once_and_keeps_what_it_has() {
    let daemon = Daemon::pattern(&["--queue=2", "--faults=hang@stop,fail@now"]);
    let mut first = daemon.connect();
    first.send(1, "stop", 1);
    daemon.log.wait("request 1:");
    let mut second = daemon.connect();
    for id in 2..=5 {
        second.send(id, "now", 1);
    }
    // The worker hangs: only the router can be the one who answers.
    for id in 4..=5 {
        let text = second.expect_error(id, ErrorCode::Busy);
        assert!(text.contains("2 requests wait"), "{text}");
    }
    daemon.kill_worker();
    first.expect_error(1, ErrorCode::GpuError);
    for id in 2..=3 {
        second.expect_error(id, ErrorCode::GpuError);
    }
    daemon.assert_serves();
}

#[test]
fn a_failing_a_crashing_and_a_hanging_engine_each_cost_one_request() {
    let daemon = Daemon::pattern(&[
        "--faults=fail@fail,crash@crash,hang@hang",
        "--generation-timeout=0.5",
        "--cancel-timeout=0.1",
    ]);
    let mut client = daemon.connect();
    for (fault, code, words) in [
        ("fail", ErrorCode::GpuError, "told to fail"),
        ("crash", ErrorCode::GpuError, "killed by signal 6"),
        ("hang", ErrorCode::Timeout, "longer than the server's limit of 0.5 s"),
        ("crash", ErrorCode::GpuError, "killed by signal 6"),
    ] {
        client.send(1, "before", 1);
        client.send(2, fault, 2);
        client.send(3, "after", 3);
        client.expect_gradient(1, "before", 1);
        let text = client.expect_error(2, code);
        assert!(text.contains(words), "{text}");
        client.expect_gradient(3, "after", 3);
    }
    // What the engine said is for the operator; a client is told this and no more.
    daemon.log.wait("killed by signal 6; it said last: pattern engine: told to crash");
    client.send(2, "crash", 1);
    let text = client.expect_error(2, ErrorCode::GpuError);
    assert_eq!(
        text,
        "the worker was killed by signal 6 while it generated this image; it is restarted, try again"
    );
}

#[test]
fn several_workers_are_fed_from_one_queue_and_see_a_device_each() {
    let daemon = Daemon::pattern(&["--workers=3", "--faults=hang@stop"]);
    let mut clients = [(); 3].map(|()| daemon.connect());
    clients[0].send(1, "stop", 1);
    clients[1].send(2, "stop", 2);
    daemon.log.wait_nth("1 steps", 2);
    clients[2].send(3, "go on", 3);
    clients[2].expect_gradient(3, "go on", 3);
    assert_eq!(devices_of_workers(&daemon), ["0", "1", "2"]);

    // Of those that whoever starts weaved lets it have.
    let folder = private_folder();
    let socket = folder.path().join("weave.sock");
    let mut command = weaved();
    command.env("CUDA_VISIBLE_DEVICES", "5, 7").stdin(Stdio::null());
    let daemon =
        Daemon::run(command.args(["--engine=pattern", "--workers=2", "--socket"]).arg(&socket), &socket);
    eventually("both are there", || daemon.workers().len() == 2);
    eventually("and have what is theirs", || devices_of_workers(&daemon) == ["5", "7"]);
}

/// The GPUs that the workers are to see, in order.
fn devices_of_workers(daemon: &Daemon) -> Vec<String> {
    let device = |pid: &i32| {
        let environment = std::fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
        let device = environment.split('\0').find_map(|line| line.strip_prefix("CUDA_VISIBLE_DEVICES="));
        device.unwrap_or("none").to_owned()
    };
    let mut devices: Vec<_> = daemon.workers().iter().map(device).collect();
    devices.sort();
    devices
}

#[test]
fn a_worker_that_is_not_needed_gives_its_memory_back() {
    let daemon = Daemon::pattern(&["--worker-idle-timeout=0.2", "--warm-up=true"]);
    daemon.log.wait("worker 0: idle for");
    eventually("the worker is gone", || daemon.workers().is_empty());
    daemon.assert_serves();
    daemon.log.wait_nth("worker 0: idle for", 2);
}

#[test]
fn a_client_that_is_gone_takes_its_running_request_with_it() {
    for isolation in ["process", "thread"] {
        // Twenty seconds each, if they were finished.
        let isolation = format!("--isolation={isolation}");
        let daemon = Daemon::pattern(&["--faults=slow=0.2,hang@stop", &isolation]);
        daemon.assert_serves();
        let workers = daemon.workers();
        for id in 1..=3 {
            let mut leaving = daemon.connect();
            leaving.write(&sized_request(id, "slow", 1, 64, 64, 100));
            daemon.log.wait_nth("100 steps", id.try_into().unwrap());
            drop(leaving);
            daemon.assert_serves();
            daemon.log.wait(&format!("request {id}: cancelled after"));
            daemon.log.wait(&format!("worker 0: free of request {id} after 0."));
        }
        assert_eq!(daemon.workers(), workers, "the worker was not ended for it");
    }
}

#[test]
fn a_worker_that_does_not_give_up_is_ended() {
    let daemon = Daemon::pattern(&["--faults=hang@stop", "--cancel-timeout=0.1", "--workers=2"]);
    let mut leaving = daemon.connect();
    leaving.send(1, "stop", 1);
    daemon.log.wait("1 steps");
    drop(leaving);
    daemon.log.wait("cancel timeout, it is not free; killing it");
    daemon.log.wait("was killed by signal 9");
    daemon.assert_serves();
}

#[test]
fn a_request_that_takes_too_long_leaves_the_worker_as_it_was() {
    let daemon = Daemon::pattern(&["--generation-timeout=1", "--faults=slow=0.1"]);
    daemon.assert_serves();
    let workers = daemon.workers();
    let mut client = daemon.connect();
    for id in 1..=3 {
        client.write(&sized_request(id, "slow", 1, 64, 64, 100));
        client.send(id + 10, "quick", 2);
        assert!(client.expect_error(id, ErrorCode::Timeout).contains("limit of 1 s"));
        client.expect_gradient(id + 10, "quick", 2);
    }
    assert_eq!(daemon.workers(), workers);
}

#[test]
fn faults_strike_at_the_chosen_request_of_a_worker() {
    let daemon = Daemon::pattern(&["--faults=fail@2,crash@3"]);
    let mut client = daemon.connect();
    for id in 1..=4 {
        client.send(id, "x", 9);
    }
    client.expect_gradient(1, "x", 9);
    client.expect_error(2, ErrorCode::GpuError);
    client.expect_error(3, ErrorCode::GpuError);
    client.expect_gradient(4, "x", 9);
}

#[test]
fn a_worker_killed_while_it_generates_costs_its_own_request_only() {
    let daemon = Daemon::pattern(&["--faults=hang@slow"]);
    let (mut one, mut two) = (daemon.connect(), daemon.connect());
    for round in 1..=3 {
        one.send(round, "slow", round);
        daemon.log.wait(&format!("seed {round}"));
        two.send(round, "quick", round);
        daemon.kill_worker();
        let text = one.expect_error(round, ErrorCode::GpuError);
        assert!(text.contains("killed by signal 9") && text.contains("try again"), "{text}");
        two.expect_gradient(round, "quick", round);
    }
}

#[test]
fn a_worker_killed_while_it_is_idle_costs_nothing() {
    let daemon = Daemon::pattern(&[]);
    for _ in 0..3 {
        daemon.assert_serves();
        daemon.kill_worker();
    }
    daemon.assert_serves();
}

#[test]
fn clients_may_hang_up_at_any_moment() {
    let daemon = Daemon::pattern(&["--faults=slow=0.05"]);
    let whole = request(7, "gone", 1);
    let mut witness = daemon.connect();
    for cut in [0, 1, 15, 16, 17, 30, 80, whole.len() - 1, whole.len()] {
        daemon.connect().write(&whole[..cut]);
    }
    // In the queue, while running, and in the middle of an image too large for any socket buffer.
    let mut pipeliner = daemon.connect();
    for id in 0..5 {
        pipeliner.send(id, "queued", 1);
    }
    drop(pipeliner);
    let mut reader = daemon.connect();
    reader.write(&sized_request(1, "large", 1, 2048, 2048, 1));
    reader.stream.read_exact(&mut [0; 100]).unwrap();
    drop(reader);
    witness.send(1, "unharmed", 5);
    witness.expect_gradient(1, "unharmed", 5);
    daemon.assert_serves();
}

#[test]
fn what_a_vanished_client_had_in_the_queue_is_not_generated() {
    let daemon = Daemon::pattern(&["--faults=hang@stop"]);
    let mut holder = daemon.connect();
    holder.send(1, "stop", 1);
    daemon.log.wait("request 1:");
    let mut vanishing = daemon.connect();
    vanishing.send(2222, "never", 1);
    drop(vanishing);
    let mut waiting = daemon.connect();
    waiting.send(3, "soon", 1);
    daemon.kill_worker();
    holder.expect_error(1, ErrorCode::GpuError);
    waiting.expect_gradient(3, "soon", 1);
    assert!(!daemon.log.all().contains("2222"));
}

#[test]
fn a_client_that_has_said_its_last_still_gets_its_answers() {
    let daemon = Daemon::pattern(&["--faults=slow=0.2", "--tcp=127.0.0.1:0"]);
    let mut client = daemon.connect();
    for id in 1..=3 {
        client.send(id, "last words", id);
    }
    client.stream.shutdown(Shutdown::Write).unwrap();
    for id in 1..=3 {
        client.expect_gradient(id, "last words", id);
    }
    client.expect_close();

    let mut far = TcpStream::connect(daemon.tcp_address()).unwrap();
    far.write_all(&request(4, "last words", 4)).unwrap();
    far.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    far.read_to_end(&mut answer).unwrap();
    assert!(answer.ends_with(&harness::gradient("last words", 4)));
}

#[test]
fn a_reader_that_stands_still_is_closed_and_holds_up_nobody_for_longer() {
    let daemon = Daemon::pattern(&["--stall-timeout=0.5"]);
    let mut still = daemon.connect();
    still.write(&sized_request(1, "large", 1, 2048, 2048, 1));
    still.stream.read_exact(&mut [0; 48]).unwrap();
    daemon.assert_serves();
    daemon.log.wait("closing");
    let mut rest = Vec::new();
    let _ = still.stream.read_to_end(&mut rest);
    assert!(rest.len() < 2048 * 2048 * 3, "it was cut off");
}

#[test]
fn a_client_that_reads_no_errors_is_not_read_from_without_end() {
    let daemon = Daemon::pattern(&["--stall-timeout=0.5"]);
    let mut flood = daemon.connect();
    let mut bad = request(1, "x", 1);
    bad[39] = 0;
    let mut written = 0;
    // The daemon stops reading, so this blocks, until it closes.
    let closed = loop {
        match flood.stream.write(&bad) {
            Ok(n) => written += n,
            Err(error) => break error.kind(),
        }
        assert!(written < 64 << 20, "the daemon takes everything");
    };
    assert!(matches!(closed, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{closed}");
    daemon.log.wait("stall timeout, it took too little of its answer");
    daemon.assert_serves();
}

#[test]
fn bad_frames_get_the_right_answer_and_keep_the_connection_where_they_can() {
    let daemon = Daemon::pattern(&[]);
    let good = request(0xABCD, "fine", 3);
    let spoil = |at: usize, bytes: &[u8]| {
        let mut frame = good.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let mut client = daemon.connect();
    for (frame, code) in [
        (spoil(4, &[0, 2]), ErrorCode::UnsupportedVersion),
        (spoil(6, &[0, 2]), ErrorCode::UnsupportedType),
        (spoil(6, &[0, 0xFF]), ErrorCode::UnsupportedType),
        (spoil(6, &[0x12, 0x34]), ErrorCode::UnsupportedType),
        (spoil(27, &[1]), ErrorCode::InvalidModelId),
        (spoil(31, &[65]), ErrorCode::InvalidDimensions),
        (spoil(36, &[0, 0, 0, 101]), ErrorCode::InvalidSteps),
        (spoil(40, &[0x7F, 0xC0]), ErrorCode::InvalidCfg),
        (spoil(76, &[0xFF]), ErrorCode::InvalidPrompt),
    ] {
        client.write(&frame);
        client.expect_error(0xABCD, code);
    }
    // Too long to be a request, short enough to be skipped; the last one is the longest of these.
    for len in [6205u32, 100_000, 10_485_760] {
        let mut frame = spoil(8, &len.to_be_bytes());
        frame.resize(16 + usize::try_from(len).unwrap(), b'y');
        client.write(&frame);
        let text = client.expect_error(0xABCD, ErrorCode::InvalidPrompt);
        assert!(text.contains(&format!("prompt_data has {} bytes", len - 60)), "{text}");
    }
    // Payloads too short for an id have none to echo.
    client.write(&[&good[..8], &7u32.to_be_bytes(), &[0; 4], &[1; 7]].concat());
    client.expect_error(0, ErrorCode::Malformed);
    client.write(&good);
    client.expect_gradient(0xABCD, "fine", 3);

    for (frame, code) in [
        (spoil(0, b"WEVV"), ErrorCode::InvalidMagic),
        (spoil(8, &10_485_761u32.to_be_bytes()), ErrorCode::TooLarge),
    ] {
        let mut client = daemon.connect();
        client.write(&frame[..16]);
        client.expect_error(0, code);
        client.expect_close();
        // What is unread then resets no connection. So many bytes arrive in one piece.
        let mut stream = UnixStream::connect(&daemon.socket).unwrap();
        stream.set_read_timeout(Some(harness::PATIENCE)).unwrap();
        stream.write_all(&[&frame[..16], &[b'y'; 20_000]].concat()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an end, and no reset");
        assert!(answer.starts_with(b"WEVE"), "{answer:?}");
    }
    daemon.assert_serves();
}

#[test]
fn a_reader_that_comes_late_still_gets_every_answer() {
    let daemon = Daemon::pattern(&["--queue=4096"]);
    // Refusals only, then images among them: each by itself has to keep the input going.
    for one_image_in in [0, 10] {
        let is_good = |id: u64| one_image_in != 0 && id % one_image_in == 1;
        let mut client = daemon.connect();
        let frames = (0..200).flat_map(|id| {
            let mut frame = request(id, "many", 1);
            if !is_good(id) {
                frame[39] = 0;
            }
            frame
        });
        client.write(&frames.collect::<Vec<_>>());
        let mut seen = vec![0; 200];
        for _ in 0..200 {
            let answer = client.answer().unwrap();
            seen[usize::try_from(answer.id()).unwrap()] += 1;
            assert_eq!(matches!(answer, Answer::Image { .. }), is_good(answer.id()));
        }
        assert!(seen.iter().all(|times| *times == 1), "{seen:?}");
    }
}

#[test]
fn one_byte_at_a_time_is_as_good_as_all_at_once() {
    let daemon = Daemon::pattern(&[]);
    let mut client = daemon.connect();
    let frames = [request(1, "drip", 1), request(2, "drop", 2)].concat();
    for byte in frames {
        client.write(&[byte]);
    }
    client.expect_gradient(1, "drip", 1);
    client.expect_gradient(2, "drop", 2);
}

#[test]
fn one_client_too_many_is_told_so() {
    let daemon = Daemon::pattern(&["--connections=2"]);
    let (one, mut two) = (daemon.connect(), daemon.connect());
    two.send(1, "x", 1);
    two.expect_gradient(1, "x", 1);
    let mut three = daemon.connect();
    let text = three.expect_error(0, ErrorCode::Busy);
    assert!(text.contains("all 2 connections are taken"), "{text}");
    three.expect_close();
    drop(one);
    eventually("the place is free again", || {
        let mut four = daemon.connect();
        four.send(1, "y", 1);
        matches!(four.answer(), Some(Answer::Image { .. }))
    });
}

#[test]
fn sigterm_finishes_what_runs_and_answers_the_rest() {
    let mut daemon = Daemon::pattern(&["--faults=slow=0.3"]);
    let worker = daemon.workers();
    let (mut one, mut two) = (daemon.connect(), daemon.connect());
    one.send(1, "running", 1);
    daemon.log.wait("request 1:");
    one.send(2, "waiting", 1);
    two.send(3, "waiting", 1);
    // Both are in the queue once the daemon has answered a third frame of the same connection.
    two.write(
        &request(4, "refused", 1)
            .iter()
            .enumerate()
            .map(|(i, b)| if i == 39 { 0 } else { *b })
            .collect::<Vec<_>>(),
    );
    two.expect_error(4, ErrorCode::InvalidSteps);
    daemon.signal(Signal::TERM);
    two.expect_error(3, ErrorCode::ShuttingDown);
    one.expect_error(2, ErrorCode::ShuttingDown);
    two.send(5, "too late", 1);
    two.expect_error(5, ErrorCode::ShuttingDown);
    one.expect_gradient(1, "running", 1);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!daemon.socket.exists(), "the socket is removed");
    eventually("the worker is gone", || !worker.iter().any(|pid| is_alive(*pid)));
}

#[test]
fn ctrl_c_lets_the_running_image_finish_too() {
    let mut daemon = Daemon::pattern(&["--faults=slow=0.2"]);
    let mut client = daemon.connect();
    client.send(1, "running", 1);
    daemon.log.wait("request 1:");
    // A terminal sends it to all processes of the job.
    kill_process_group(Pid::from_child(&daemon.child), Signal::INT).unwrap();
    client.expect_gradient(1, "running", 1);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn a_second_sigterm_does_not_wait() {
    let mut daemon = Daemon::pattern(&["--faults=hang@hang"]);
    let worker = daemon.workers();
    let mut client = daemon.connect();
    client.send(1, "hang", 1);
    daemon.log.wait("request 1:");
    daemon.signal(Signal::TERM);
    daemon.log.wait("stopping");
    daemon.signal(Signal::TERM);
    client.expect_error(1, ErrorCode::ShuttingDown);
    assert_eq!(daemon.wait().code(), Some(0));
    eventually("the worker is gone", || !worker.iter().any(|pid| is_alive(*pid)));
}

#[test]
fn draining_ends_when_its_time_is_up() {
    let mut daemon = Daemon::pattern(&["--faults=hang@hang", "--drain-timeout=0.2"]);
    let mut client = daemon.connect();
    client.send(1, "hang", 1);
    daemon.log.wait("request 1:");
    daemon.signal(Signal::TERM);
    client.expect_error(1, ErrorCode::ShuttingDown);
    assert_eq!(daemon.wait().code(), Some(0));
}

/// What is going on when SIGTERM comes, and there is nothing to wait for, however long it might take.
#[test]
fn sigterm_waits_for_nothing_that_nobody_waits_for() {
    let ends_at_once = |daemon: &mut Daemon, workers: &[i32]| {
        daemon.signal(Signal::TERM);
        assert_eq!(daemon.wait().code(), Some(0));
        assert!(!daemon.socket.exists());
        eventually("the worker is gone", || !workers.iter().any(|pid| is_alive(*pid)));
    };
    let for_ever = "--drain-timeout=3600";

    // A worker warms up, and a request waits for that.
    let mut daemon = Daemon::pattern(&["--warm-up=true", "--faults=hang@warm-up", for_ever]);
    let mut waiting = daemon.connect();
    waiting.send(1, "waits", 1);
    eventually("it waits", || metric(&daemon, "weave_queue_length") == 1.0);
    let workers = daemon.workers();
    ends_at_once(&mut daemon, &workers);
    waiting.expect_error(1, ErrorCode::ShuttingDown);
    waiting.expect_close();

    // A worker was told to cancel a request, and doesn't.
    let flags = ["--cancel-timeout=3600", "--faults=hang@stop", for_ever];
    let mut daemon = Daemon::pattern(&flags);
    let (mut leaving, mut waiting) = (daemon.connect(), daemon.connect());
    leaving.send(1, "stop", 1);
    daemon.log.wait("request 1:");
    drop(leaving);
    daemon.log.wait("told to cancel request 1");
    waiting.send(2, "waits", 1);
    eventually("it waits", || metric(&daemon, "weave_queue_length") == 1.0);
    let workers = daemon.workers();
    ends_at_once(&mut daemon, &workers);
    waiting.expect_error(2, ErrorCode::ShuttingDown);
    waiting.expect_close();

    // There is no worker.
    let mut daemon = Daemon::pattern(&["--worker-idle-timeout=0.05", for_ever]);
    let mut idle = daemon.connect();
    eventually("the worker is gone", || daemon.workers().is_empty());
    ends_at_once(&mut daemon, &[]);
    idle.expect_close();
}

#[test]
fn a_killed_daemon_leaves_no_worker_whatever_that_does() {
    let mut daemon = Daemon::pattern(&["--workers=3", "--faults=hang@hang"]);
    // One generates, one sends what nobody reads, one stands still; and there is half a request.
    let mut clients = [(); 3].map(|()| daemon.connect());
    clients[0].send(1, "hang", 1);
    daemon.log.wait("request 1:");
    clients[1].write(&sized_request(2, "large", 1, 2048, 2048, 1));
    clients[1].stream.read_exact(&mut [0; 48]).unwrap();
    clients[2].write(&request(3, "half", 1)[..70]);
    let workers = daemon.workers();
    assert_eq!(workers.len(), 3);
    harness::freeze(workers[2]);
    daemon.signal(Signal::KILL);
    daemon.wait();
    assert_gone_within_a_second(&workers);
}

#[test]
fn a_worker_ends_with_its_stream_also_in_the_middle_of_a_request() {
    let whole = request(1, "half", 1);
    for cut in [0, 9, 16, 70, whole.len() - 1] {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut command = weaved();
        command.args(["worker", "--engine=pattern"]).stdin(Stdio::from(OwnedFd::from(theirs)));
        let mut child = command.spawn().unwrap();
        // It keeps the other end open as well.
        drop(command);
        // It is there, and has read the first one.
        ours.write_all(&whole).unwrap();
        assert!(matches!(Client::new(ours.try_clone().unwrap()).answer(), Some(Answer::Image { id: 1, .. })));
        ours.write_all(&whole[..cut]).unwrap();
        drop(ours);
        let started = Instant::now();
        assert_eq!(wait(&mut child).code(), Some(0), "after {cut} bytes");
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    }
}

#[test]
fn what_a_killed_daemon_leaves_behind_is_taken_over() {
    let folder = private_folder();
    let socket = folder.path().join("weave.sock");
    let mut daemon = Daemon::start_at(&socket, &["--engine=pattern"]);
    daemon.signal(Signal::KILL);
    daemon.wait();
    assert!(socket.exists());
    let next = Daemon::start_at(&socket, &["--engine=pattern", "--pattern=gradient"]);
    next.log.wait("stale socket");
    next.assert_serves();
}

#[test]
fn a_second_daemon_does_not_take_a_live_socket() {
    let daemon = Daemon::pattern(&[]);
    let second = weaved().arg("--engine=pattern").arg("--socket").arg(&daemon.socket).output().unwrap();
    assert_eq!(second.status.code(), Some(69));
    let text = String::from_utf8(second.stderr).unwrap();
    assert!(text.contains("another daemon already listens"), "{text}");
    daemon.assert_serves();
    // Not even when its file is gone, as a cleaner of old files might do: it still lives.
    std::fs::remove_file(&daemon.socket).unwrap();
    let second = weaved().arg("--engine=pattern").arg("--socket").arg(&daemon.socket).output().unwrap();
    assert_eq!(second.status.code(), Some(69));
    // What it says is what is so.
    daemon.log.wait("was removed; it is made again");
    let away = daemon.socket.with_file_name("away.sock");
    std::fs::rename(&daemon.socket, &away).unwrap();
    std::fs::write(&daemon.socket, "").unwrap();
    let second = weaved().arg("--engine=pattern").arg("--socket").arg(&daemon.socket).output().unwrap();
    let text = String::from_utf8(second.stderr).unwrap();
    assert!(
        second.status.code() == Some(69) && text.contains("still runs, though nobody can connect"),
        "{text}"
    );

    // Neither that of a program that knows nothing of our lock.
    let folder = private_folder();
    let socket = folder.path().join("other.sock");
    let _other = UnixListener::bind(&socket).unwrap();
    let second = weaved().arg("--engine=pattern").arg("--socket").arg(&socket).output().unwrap();
    assert_eq!(second.status.code(), Some(69));
    assert!(socket.exists());
}

#[test]
fn the_worker_can_run_on_a_thread() {
    let mut daemon = Daemon::pattern(&["--isolation=thread", "--faults=fail@fail"]);
    assert_eq!(daemon.workers(), []);
    let mut client = daemon.connect();
    client.send(1, "fail", 1);
    client.expect_error(1, ErrorCode::GpuError);
    daemon.assert_serves();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn a_worker_serves_a_socket_that_somebody_else_listens_on() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("parent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let start = |flag: &str| {
        let mut child = weaved()
            .args(["worker", flag])
            .arg(&socket)
            .args(["--engine=pattern", "--pattern=gradient", "--faults=hang@hang"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        (child, stdin, Client::new(listener.accept().unwrap().0))
    };
    // Closing the socket ends it.
    let (mut child, stdin, mut client) = start("--connect");
    for id in 1..=3 {
        client.send(id, "through", id);
        client.expect_gradient(id, "through", id);
    }
    drop(client);
    assert_eq!(wait(&mut child).code(), Some(0));
    drop(stdin);
    // And so does the end of its standard input, even while it generates. It says why.
    let (mut child, stdin, mut client) = start("--socket-path");
    client.send(1, "hang", 1);
    client.stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(client.stream.read(&mut [0]).is_err(), "it hangs");
    drop(stdin);
    assert_eq!(wait(&mut child).code(), Some(0));
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("WARN  standard input has ended, and so does this worker"), "{said}");
}

#[test]
fn a_worker_that_somebody_started_finishes_its_image_when_it_is_told_to_stop() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("parent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    for (sandbox, signal) in [("on", Signal::TERM), ("off", Signal::INT)] {
        let start = || {
            let mut command = weaved();
            command.args(["worker", "--engine=pattern", "--pattern=gradient", "--faults=slow=0.2,hang@hang"]);
            command.arg(format!("--sandbox={sandbox}")).arg("--connect").arg(&socket);
            let child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let log = harness::Log::default();
            (child, log, Client::new(listener.accept().unwrap().0))
        };
        let (mut child, log, mut client) = start();
        log.follow(child.stderr.take().unwrap());
        client.write(&sized_request(1, "slow", 1, 64, 64, 4));
        log.wait("request 1:");
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
        client.expect_gradient(1, "slow", 1);
        client.expect_close();
        assert_eq!(wait(&mut child).code(), Some(0), "{}", log.all());
        log.wait("told to stop: no request is under way");

        // One that has nothing to do ends at once; one that is told twice, too.
        let (mut child, _, mut client) = start();
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
        client.expect_close();
        assert_eq!(wait(&mut child).code(), Some(0));
        let (mut child, log, mut client) = start();
        log.follow(child.stderr.take().unwrap());
        client.send(1, "hang", 1);
        log.wait("request 1:");
        for _ in 0..2 {
            rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(wait(&mut child).code(), Some(128 + signal.as_raw()), "{}", log.all());
    }
}

#[test]
fn a_worker_asks_whose_socket_it_is_before_it_serves_it() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("NOT CHECKED: only root can listen as somebody else");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("parent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let stranger = rustix::process::Uid::from_raw(4242);
    let listens = std::thread::spawn(move || {
        // This thread's alone. The kernel notes who listens, and once more who listens again.
        rustix::thread::set_thread_res_uid(stranger, stranger, stranger).unwrap();
        rustix::net::listen(&listener, 8).unwrap();
        listener
    });
    let listener = listens.join().unwrap();
    let output = weaved()
        .args(["worker", "--engine=pattern", "--connect"])
        .arg(&socket)
        .stdin(Stdio::piped())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(77), "{text}");
    let words = format!("weaved: {} belongs to uid 4242, neither to root nor to ", socket.display());
    assert!(text.starts_with(&words), "{text}");
    assert!(text.contains("start this worker as the user whose socket it is"), "{text}");
    // It has said nothing there.
    let mut said = Vec::new();
    listener.accept().unwrap().0.read_to_end(&mut said).unwrap();
    assert_eq!(said, b"");
}

#[test]
fn wrong_settings_end_with_a_sentence_and_the_right_code() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weaved.toml");
    std::fs::write(&file, "# mine\nengine = \"pattern\"\nqueue = 0\n").unwrap();
    let file = file.to_str().unwrap();
    let empty = folder.path().join("empty.safetensors");
    std::fs::write(&empty, "").unwrap();
    let empty = empty.to_str().unwrap();
    let unit = SIDE.to_string();
    for (args, code, words) in [
        (&["--queue", "0"][..], 2, "--queue: queue is \"0\", must be a whole number from 1 to 4096"),
        (&["--quue", "1"], 2, "--quue"),
        (&["--threads"], 2, "threads"),
        (&["sirve"], 2, "sirve"),
        (&["serve", &unit], 2, "64"),
        (&["--engine", "magic"], 2, "one of sdcpp, pattern"),
        (&["--faults", "explode@3"], 2, "fail@N"),
        (&["--generation-timeout", "-1"], 2, "from 0.000000001 to"),
        (&["--config", file], 78, "weaved.toml:3: queue is \"0\""),
        (&["--config", "/nonexistent.toml"], 78, "can't read the settings in /nonexistent.toml"),
        (&["chekc"], 2, "there is no command \"chekc\" here; did you mean `weaved check`?"),
        (&["--threds=2"], 2, "there is no flag --threds; did you mean --threads? `weaved --help`"),
        (&["--config", " "], 2, "--config is empty, must be a path"),
        (&["--engine", "pattern"], 78, "neither XDG_RUNTIME_DIR nor HOME names a folder of this user"),
        (&["--engine=sdcpp", "--clip-l", "x"], 78, "neither model nor diffusion_model"),
        (&["--engine=sdcpp", "--model", "/nonexistent"], 78, "model: can't read /nonexistent"),
        (&["--engine=sdcpp", "--model", empty], 78, "empty.safetensors is empty: download it again"),
        (&["worker", "--engine=pattern"], 2, "--connect"),
        (&["worker", "--engine=pattern", "--connect", "/nonexistent"], 1, "can't connect to /nonexistent"),
    ] {
        let mut command = weaved();
        command.args(args).stdin(Stdio::null()).env("XDG_RUNTIME_DIR", "").env("HOME", "/");
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
        assert!(text.contains(words), "{args:?}: {text}");
        assert_eq!(text.trim_end().lines().count(), 1, "{args:?}: {text}");
    }
}

#[test]
fn without_a_folder_for_sockets_it_listens_in_the_home_folder_and_is_found_there() {
    let home = tempfile::tempdir().unwrap();
    let at_home = |mut command: Command| {
        command.env("HOME", home.path()).env("XDG_RUNTIME_DIR", "").env_remove("WEAVE_SOCKET");
        command
    };
    let socket = home.path().join(".weave/weave.sock");
    let mut command = at_home(weaved());
    let daemon =
        Daemon::run(command.args(["--engine=pattern", "--pattern=gradient"]).stdin(Stdio::null()), &socket);
    daemon.assert_serves();
    let mode = std::fs::metadata(home.path().join(".weave")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let mut status = at_home(weaved());
    let status = status.arg("status").output().unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    let mut ping = at_home(harness::weave());
    let ping = ping.arg("ping").output().unwrap();
    assert!(ping.status.success(), "{}", String::from_utf8_lossy(&ping.stderr));
    drop(daemon);
    let mut status = at_home(weaved());
    let status = status.arg("status").output().unwrap();
    let said = String::from_utf8(status.stderr).unwrap();
    let places = format!(
        "looked for at {}/weave-admin.sock, then at /run/weave/weave-admin.sock",
        socket.parent().unwrap().display()
    );
    assert!(status.status.code() == Some(1) && said.contains(&places), "{said}");
}
