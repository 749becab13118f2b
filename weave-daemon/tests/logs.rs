//! What others can do to the log: to its form, and to its length.

mod harness;

use std::fs::{self, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use harness::{Answer, Daemon, admin, eventually, metric, request, say};
use rustix::process::Signal;
use weave_core::error::ErrorCode;
use weave_core::text::is_shown;

/// A program that writes what these lines of shell write before it is a worker.
fn talker(folder: &Path, lines: &str) -> String {
    let path = folder.join("worker.sh");
    let weaved = env!("CARGO_BIN_EXE_weaved");
    let begin = format!("case \"$*\" in *--version*) exec {weaved} worker \"$@\";; esac");
    fs::write(&path, format!("#!/bin/sh\n{begin}\n{lines}\nexec {weaved} worker \"$@\"\n")).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

/// Seconds of CPU time that a process has used.
fn cpu_time(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u32 = fields[11..13].iter().map(|ticks| ticks.parse::<u32>().unwrap()).sum();
    f64::from(ticks) / rustix::param::clock_ticks_per_second() as f64
}

/// Bytes of the log, line ends not counted.
fn log_len(daemon: &Daemon) -> usize {
    daemon.log.all().len()
}

#[test]
fn what_a_worker_writes_is_told_as_its_own_and_does_nothing_to_a_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let lines = r#"
        printf '\033]0;owned\007\n\033[31mred\033[0m\n' >&2
        printf 'WARN  refused a connection: uid 0 forged\n<0>emerg\nERROR\twith a tab\n' >&2
        printf 'turned \342\200\256round, \302\233 one byte, \377 none, cr\r\nDEBUG hidden\n\n' >&2
        head -c 5000 /dev/zero | tr '\0' x >&2
        printf '\nINFO  end of it\n' >&2"#;
    let daemon = Daemon::pattern(&["--worker-command", &talker(folder.path(), lines)]);
    daemon.log.wait("end of it");
    daemon.assert_serves();
    let log = daemon.log.all();
    for line in log.lines() {
        assert!(line.chars().all(is_shown), "{line:?}");
        assert!(["ERROR ", "WARN  ", "INFO  "].iter().any(|level| line.starts_with(level)), "{line:?}");
    }
    for line in [
        "INFO  worker 0: \\u{1b}]0;owned\\u{7}",
        "INFO  worker 0: \\u{1b}[31mred\\u{1b}[0m",
        "WARN  worker 0: refused a connection: uid 0 forged",
        "INFO  worker 0: <0>emerg",
        "INFO  worker 0: ERROR\\twith a tab",
        "INFO  worker 0: turned \\u{202e}round, \\u{9b} one byte, \u{fffd} none, cr",
        "INFO  worker 0: end of it",
    ] {
        assert!(log.lines().any(|logged| logged == line), "{line:?} is not in\n{log}");
    }
    assert!(!log.contains("hidden"), "its level is not logged");
    let long = log.lines().find(|line| line.contains("xxx")).unwrap();
    assert!(long.starts_with("INFO  worker 0: xxx") && long.ends_with("x…") && long.len() < 2048, "{long}");
}

/// A taken worker has no way to make the log longer than this, and is not kept waiting either.
#[test]
fn a_flood_of_a_worker_is_read_and_dropped() {
    let folder = tempfile::tempdir().unwrap();
    for flood in
        ["tr '\\0' x </dev/zero", "yes 'WARN  forged'", "tr '\\0' '\\033' </dev/zero | fold -b -w 60"]
    {
        let lines = format!("{flood} | head -c 268435456 >&2\necho that was it >&2");
        let began = Instant::now();
        let daemon = Daemon::pattern(&["--worker-command", &talker(folder.path(), &lines)]);
        // Once it has its worker, and that is all read.
        daemon.assert_serves();
        // In one line, or in several on a machine that keeps the worker waiting: then the flood pauses.
        let said = || told(&daemon, "bytes of its log were dropped");
        let number = |line: &String| -> u64 {
            line.strip_prefix("WARN  worker 0: ").unwrap().split(' ').next().unwrap().parse().unwrap()
        };
        let dropped = || said().iter().map(number).sum::<u64>();
        eventually("all is told", || dropped() > 256_000_000);
        let time = cpu_time(daemon.child.id());
        let (dropped, lines, len) = (dropped(), said().len() as u64, log_len(&daemon) as u64);
        println!("{flood}: {len} bytes logged, {dropped} dropped, {lines} lines say so, {time} s of CPU");
        let seconds = began.elapsed().as_secs();
        assert!(len < 1_500_000 + 64 * 1024 * seconds, "{len} bytes within {seconds} s");
        assert!(lines <= 2 + seconds, "{lines} lines within {seconds} s");
        assert!(time < 3.0, "{time} s");
    }
}

/// What the flood says last is what it died of.
#[test]
fn the_last_words_of_a_flood_are_heard() {
    let folder = tempfile::tempdir().unwrap();
    let lines = "yes 'all is well' | head -n 1000000 >&2\nprintf 'GGML_ASSERT failed\\n' >&2\nkill -ABRT $$";
    let daemon = Daemon::pattern(&["--worker-command", &talker(folder.path(), lines)]);
    let line = daemon.log.wait("it said last");
    assert_eq!(line, "WARN  worker 0: was killed by signal 6; it said last: GGML_ASSERT failed");
}

/// Lines that say so, and those that were counted in the end.
fn told(daemon: &Daemon, words: &str) -> Vec<String> {
    daemon.log.all().lines().filter(|line| line.contains(words)).map(str::to_owned).collect()
}

const TIMES: usize = 2000;

#[test]
fn clients_without_a_token_fill_no_log() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, "0".repeat(64)).unwrap();
    fs::set_permissions(&token, Permissions::from_mode(0o600)).unwrap();
    let mut daemon = Daemon::pattern(&["--tcp=127.0.0.1:0", &format!("--token-file={}", token.display())]);
    let line = daemon.log.wait("listening on tcp://");
    let address = line.split("tcp://").nth(1).unwrap().split(' ').next().unwrap();
    for _ in 0..TIMES {
        let mut stream = TcpStream::connect(address).unwrap();
        let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n");
        let _ = stream.read(&mut [0]);
    }
    let refused = || metric(&daemon, "weave_connections_refused_total{reason=\"peer\"}");
    eventually("all are refused", || refused() == TIMES as f64);
    let lines = told(&daemon, "refused a connection");
    println!("{TIMES} refused: {} lines, {} bytes", lines.len(), log_len(&daemon));
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        lines[0].starts_with("WARN  refused a connection: 127.0.0.1:") && lines[0].contains("(1 so far)")
    );
    // What was not told yet is told in the end.
    daemon.signal(Signal::TERM);
    daemon.wait();
    daemon.log.wait("stopped;");
    let lines = told(&daemon, "refused a connection");
    let more = format!(
        "WARN  refused a connection, it did not begin with weave-auth 1: {} more of 127.0.0.1 in the last minute",
        TIMES - 1
    );
    assert_eq!(lines[1..], [more]);
}

#[test]
fn bytes_that_are_no_weave_fill_no_log() {
    let mut daemon = Daemon::pattern(&[]);
    for _ in 0..TIMES {
        let mut stream = UnixStream::connect(&daemon.socket).unwrap();
        let _ = stream.write_all(&[b'x'; 64]);
        // The answer, then the end.
        match stream.read_to_end(&mut Vec::new()) {
            Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
            _ => {}
        }
    }
    assert_eq!(metric(&daemon, "weave_connections_cut_total{reason=\"malformed\"}"), TIMES as f64);
    let lines = told(&daemon, "followed");
    println!("{TIMES} times garbage: {} lines, {} bytes", lines.len(), log_len(&daemon));
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("can't be followed any further"), "{lines:?}");
    daemon.assert_serves();
    daemon.signal(Signal::TERM);
    daemon.wait();
    daemon.log.wait("stopped;");
    let uid = rustix::process::geteuid().as_raw();
    let more =
        format!("INFO  can't be followed any further: {} more of uid {uid} in the last minute", TIMES - 1);
    assert_eq!(told(&daemon, "followed")[1..], [more]);
}

/// All places taken: those who come then are refused, and told once.
#[test]
fn clients_for_whom_there_is_no_place_fill_no_log() {
    let daemon = Daemon::pattern(&["--connections=1"]);
    daemon.assert_serves();
    let mut first = daemon.connect();
    first.send(1, "it is in", 1);
    first.expect_gradient(1, "it is in", 1);
    for _ in 0..100 {
        let mut stream = UnixStream::connect(&daemon.socket).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    }
    let lines = told(&daemon, "refused a connection");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].starts_with("WARN  refused a connection: all 1 connections are taken"), "{lines:?}");
}

/// Requests that are refused: each kind is told once for each user, with its reason, without its prompt.
#[test]
fn requests_that_are_refused_leave_a_line_and_fill_no_log() {
    let mut daemon = Daemon::pattern(&["--queue=1", "--faults=hang@stop,crash@boom"]);
    let uid = rustix::process::geteuid().as_raw();
    let mut client = daemon.connect();
    let wrong = |id: u64, at: usize| {
        let mut frame = request(id, "a secret", 1);
        frame[at] ^= 0x55;
        frame
    };
    // steps, width, model_id, msg_type, version; a payload that is too short; a prompt that is no UTF-8.
    let mut no_text = request(8, "a secret", 1);
    *no_text.last_mut().unwrap() = 0xff;
    let mut short = request(9, "a secret", 1)[..40].to_vec();
    short[8..12].copy_from_slice(&24_u32.to_be_bytes());
    let all = [wrong(1, 38), wrong(2, 28), wrong(3, 24), wrong(4, 6), wrong(5, 5), short, no_text];
    for _ in 0..3 {
        for frame in &all {
            client.write(frame);
            assert!(matches!(client.answer(), Some(Answer::Error { .. })));
        }
    }
    // Two that end a worker, and are in quarantine then.
    for id in 21..=24 {
        client.send(id, "boom", 1);
        client.expect_error(id, ErrorCode::GpuError);
    }
    // One runs, one waits, and there is no more room.
    client.send(31, "stop", 1);
    daemon.log.wait("request 31:");
    for id in 32..=35 {
        client.send(id, "a secret", 1);
    }
    for id in 33..=35 {
        client.expect_error(id, ErrorCode::Busy);
    }
    // Asking whether somebody is there is no fault.
    client.write(&weave_core::request::probe(40));
    client.expect_error(40, ErrorCode::InvalidModelId);
    let lines = told(&daemon, " refused: ");
    for (words, times) in [
        ("refused: INVALID_STEPS: steps is ", 1),
        ("refused: INVALID_DIMENSIONS: width is ", 1),
        ("refused: INVALID_MODEL_ID: model_id is ", 1),
        ("refused: UNSUPPORTED_TYPE: msg_type is ", 1),
        ("refused: UNSUPPORTED_VERSION: version is ", 1),
        ("refused: MALFORMED: ", 1),
        ("refused: INVALID_PROMPT: ", 1),
        ("refused: GPU_ERROR: this very request ended the worker twice", 1),
        ("refused: BUSY: the queue is full: 1 requests wait", 1),
    ] {
        let told: Vec<_> = lines.iter().filter(|line| line.contains(words)).collect();
        assert_eq!(told.len(), times, "{words}: {lines:#?}");
        assert!(told[0].contains(&format!("of connection 1 (uid {uid}) ")), "{told:?}");
    }
    daemon.signal(Signal::TERM);
    client.expect_error(32, ErrorCode::ShuttingDown);
    daemon.log.wait("request 32 of connection 1");
    daemon.signal(Signal::TERM);
    daemon.wait();
    daemon.log.wait("stopped;");
    let more = told(&daemon, "more of uid");
    for (why, times) in [("INVALID_STEPS", 2), ("it ended two workers before", 1), ("the queue is full", 2)] {
        let line = format!("INFO  refused a request, {why}: {times} more of uid {uid} in the last minute");
        assert!(more.contains(&line), "{line}: {more:#?}");
    }
    let log = daemon.log.all();
    assert!(!log.contains("secret") && !log.contains("boom"), "{log}");
}

/// What is refused on the administrative socket.
#[test]
fn the_administrative_socket_tells_whom_it_refuses() {
    let daemon = Daemon::pattern(&[]);
    let socket = admin(&daemon);
    let uid = rustix::process::geteuid().as_raw();
    for _ in 0..3 {
        say(&socket, b"GET /metricz HTTP/1.1\r\n\r\n");
        say(&socket, b"POST /stats HTTP/1.1\r\n\r\n");
        say(&socket, b"what?\r\n\r\n");
        say(&socket, &[b'x'; 5000]);
        // A client that has taken the wrong socket.
        say(&socket, &[request(1, "a secret\n\n", 1), b"\n\n".to_vec()].concat());
    }
    for line in [
        "404 Not Found: GET /metricz HTTP/1.1",
        "405 Method Not Allowed: POST /stats HTTP/1.1",
        "400 Bad Request",
        "431 Request Header Fields Too Large",
    ] {
        let line = format!("INFO  admin: refused a request of uid {uid}: {line}");
        daemon.log.wait(&line);
        assert_eq!(told(&daemon, &line).len(), 1, "{}", daemon.log.all());
    }
    let half = UnixStream::connect(&socket).unwrap();
    (&half).write_all(b"GET /stats").unwrap();
    daemon.log.wait(&format!("INFO  admin: a request of uid {uid} was not complete within 5s; closing"));
    assert!(!daemon.log.all().contains("secret"));
}
