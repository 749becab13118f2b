//! `weave bench`.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::command::{folder, run, weave};
use crate::fake::{Fake, Request, Response, error, in_time, says_nothing, send, until_closed};

fn bench(folder: &Path, socket: &Path, args: &[&str]) -> Command {
    let mut command = weave(folder);
    command.args(["bench", "--width=64", "--height=64", "--timeout=20"]).args(args);
    command.arg("--socket").arg(socket);
    command
}

/// A daemon that tells of each seed that it is asked for, and answers with what `answer` makes of it.
fn daemon(answer: fn(&Request) -> Vec<u8>) -> (Fake, Arc<Mutex<Vec<u64>>>) {
    let seeds = Arc::new(Mutex::new(Vec::new()));
    let asked = Arc::clone(&seeds);
    let serve = move |mut stream: UnixStream| {
        while stream_has_more(&stream) {
            let request = Request::read(&mut stream);
            // Whether anybody is there is asked first.
            if request.0.len() == 28 {
                send(&mut stream, &error(request.id(), 400, 3, "model_id"));
                continue;
            }
            asked.lock().unwrap().push(request.u64(44));
            send(&mut stream, &answer(&request));
        }
    };
    let fake = Fake::listening(move |listener: UnixListener| {
        // Ends with the test.
        while let Ok((stream, _)) = listener.accept() {
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
    (fake, seeds)
}

fn stream_has_more(stream: &UnixStream) -> bool {
    rustix::net::recv(stream, &mut [0; 1], rustix::net::RecvFlags::PEEK).is_ok_and(|(count, _)| count > 0)
}

#[test]
fn so_many_requests_on_so_many_connections() {
    let folder = folder();
    let (fake, seeds) = daemon(|request| Response::good(request.id()).bytes());
    let args = ["--requests=30", "--connections=3", "--in-flight=2", "--seed=5", "--json"];
    let run_ = run(bench(folder.path(), &fake.path(), &args));
    assert_eq!((run_.status, run_.stderr.as_str()), (Some(0), ""));
    let mut seeds = seeds.lock().unwrap().clone();
    seeds.sort_unstable();
    assert_eq!(seeds, (5..35).collect::<Vec<_>>(), "each once");

    let report: Value = serde_json::from_str(&run_.stdout).unwrap();
    assert_eq!(
        [&report["requests"], &report["images"], &report["errors"]],
        [&json!(30), &json!(30), &json!({})]
    );
    let number = |path: &str| report.pointer(path).and_then(Value::as_f64).unwrap();
    let latency = ["min", "p50", "p90", "p99", "max"].map(|name| number(&format!("/latency_seconds/{name}")));
    assert!(latency[0] > 0.0 && latency.is_sorted(), "{latency:?}");
    for name in ["min", "mean", "p50", "p90", "p99", "max"] {
        assert!((number(&format!("/generation_seconds/{name}")) - 1.234).abs() < 1e-9, "{report}");
    }
    // Thirty images of 64×64 RGB with their heads.
    let (rate, seconds) = (number("/bytes_per_second"), number("/seconds"));
    assert!((rate * seconds / (30.0 * 12_336.0) - 1.0).abs() < 1e-6, "{rate} {seconds}");
    assert!((number("/images_per_second") * seconds / 30.0 - 1.0).abs() < 1e-6);

    let run = run(bench(folder.path(), &fake.path(), &["--requests=3"]));
    let lines: Vec<_> = run.stdout.lines().collect();
    assert_eq!(run.stderr, "weave: 64×64, 28 steps, cfg 7; 1 under way on each of 1 connections\n");
    assert!(
        lines[0].starts_with("requests    3 in ") && lines[1].starts_with("images      3, "),
        "{lines:?}"
    );
    assert_eq!(lines[2], "errors      none");
    assert_eq!(lines[5], format!("generation  {}", "   1234.0".repeat(6)));
}

#[test]
fn so_many_are_under_way_and_no_more() {
    let folder = folder();
    let fake = Fake::serving(|stream, ping| {
        send(stream, &error(ping.id(), 400, 3, "model_id"));
        let mut requests = vec![Request::read(stream), Request::read(stream), Request::read(stream)];
        for _ in 0..2 {
            says_nothing(stream);
            let request = requests.remove(0);
            send(stream, &Response::good(request.id()).bytes());
            requests.push(Request::read(stream));
        }
        requests.iter().for_each(|request| send(stream, &Response::good(request.id()).bytes()));
    });
    let run = run(bench(folder.path(), &fake.path(), &["--requests=5", "--in-flight=3"]));
    assert_eq!(run.status, Some(0), "{}", run.stderr);
    fake.end();
}

#[test]
fn errors_are_counted_by_code_and_the_first_decides() {
    let folder = folder();
    let (fake, _) = daemon(|request| match request.u64(44) % 4 {
        0 => error(request.id(), 500, 9, "the worker died"),
        1 => error(request.id(), 500, 23, "the queue is full"),
        _ => Response::good(request.id()).bytes(),
    });
    let run_ = run(bench(folder.path(), &fake.path(), &["--requests=8", "--json"]));
    assert_eq!(run_.status, Some(4), "{}", run_.stderr);
    let report: Value = serde_json::from_str(&run_.stdout).unwrap();
    assert_eq!(report["errors"], json!({"BUSY": 2, "GPU_ERROR": 2}));
    assert_eq!((&report["requests"], &report["images"]), (&json!(8), &json!(4)));
    let run = run(bench(folder.path(), &fake.path(), &["--requests=1", "--seed=4"]));
    assert_eq!(run.status, Some(7), "{}", run.stderr);
    assert!(run.stdout.contains("\nerrors      GPU_ERROR 1\n"), "{}", run.stdout);
}

#[test]
fn a_daemon_that_goes_away_ends_it() {
    let folder = folder();
    let fake = Fake::listening(|listener: UnixListener| {
        let (mut stream, _) = listener.accept().unwrap();
        let ping = Request::read(&mut stream);
        send(&mut stream, &error(ping.id(), 400, 3, "model_id"));
        let request = Request::read(&mut stream);
        send(&mut stream, &Response::good(request.id()).bytes());
        Request::read(&mut stream);
        drop(listener);
    });
    let run = run(bench(folder.path(), &fake.path(), &["--requests=1000", "--json"]));
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(report["images"], 1);
    // The second request was sent once more, to nobody; no third one was tried.
    assert_eq!((&report["requests"], &report["errors"]), (&json!(2), &json!({"unreachable": 1})), "{report}");
    assert_eq!(run.status, Some(69), "{}", run.stderr);
}

#[test]
fn what_is_wrong_is_told_first() {
    let folder = folder();
    let nobody = folder.path().join("none.sock");
    for (args, status) in [
        (&["--steps=0"][..], 2),
        (&["--prompt="], 2),
        (&["--connections=0"], 2),
        (&["--requests=5", "--duration=1"], 2),
        (&["--connections=4"], 69),
    ] {
        let run = run(bench(folder.path(), &nobody, args));
        assert_eq!((run.status, run.stdout.as_str()), (Some(status), ""), "{args:?}: {}", run.stderr);
    }
}

#[test]
fn an_interrupt_shows_what_there_is() {
    let folder = folder();
    let (has_it, wait) = channel();
    let fake = Fake::serving(move |stream, ping| {
        send(stream, &error(ping.id(), 400, 3, "model_id"));
        let first = Request::read(stream);
        send(stream, &Response::good(first.id()).bytes());
        // The first image was counted before the next one was asked for.
        Request::read(stream);
        has_it.send(()).unwrap();
        until_closed(stream);
    });
    let mut command = bench(folder.path(), &fake.path(), &["--duration=1000", "--json"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait.recv().unwrap();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = in_time(move || child.wait_with_output()).unwrap();
    assert_eq!(output.status.code(), Some(130));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["requests"], &report["images"]), (&json!(2), &json!(1)));
    fake.end();
}
