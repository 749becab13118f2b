//! What the administrative socket beside the daemon's tells: the model, and how far a request is.

use std::fs;
use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;

use crate::command::{decode, folder, names, read_until, run, terminal, weave};
use crate::fake::{Fake, Request, Response, error, in_time, send};

const DEMO: &str = r#"{"name":"demo model","toy":true,"draws":"coloured shapes on coloured backgrounds",
    "defaults":{"width":64,"height":128,"steps":8,"cfg_scale":1.5}}"#;

/// The administrative socket of a daemon at `socket`, which answers each page with what `page` says, or has no such page.
/// It ends with the test.
fn admin(socket: &Path, page: impl Fn(&str) -> Option<String> + Send + 'static) {
    let listener = UnixListener::bind(socket.with_file_name("weave-admin.sock")).unwrap();
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).unwrap();
            let answer = match page(head.split(' ').nth(1).unwrap()) {
                Some(body) => format!("HTTP/1.1 200 OK\r\n\r\n{body}"),
                None => "HTTP/1.1 404 Not Found\r\n\r\n".to_owned(),
            };
            send(&mut stream, answer.as_bytes());
        }
    });
}

fn demo(page: &str) -> Option<String> {
    (page == "/model").then(|| DEMO.to_owned())
}

/// An image of the size that was asked for.
fn image(stream: &mut UnixStream, request: &Request) {
    let (width, height) = (request.u32(28), request.u32(32));
    let pixels = vec![9; (width * height * 3) as usize];
    send(stream, &Response { width, height, pixels, ..Response::good(request.id()) }.bytes());
}

/// Width, height, steps and guidance scale.
fn asked(request: &Request) -> (u32, u32, u32, f32) {
    (request.u32(28), request.u32(32), request.u32(36), f32::from_bits(request.u32(40)))
}

#[test]
fn what_suits_the_model_is_asked_for_and_its_name_told() {
    let cases: [(&[&str], _); 4] = [
        (&[], (64, 128, 8, 1.5)),
        (&["--height=64", "--cfg=0"], (64, 64, 8, 0.0)),
        (&["--size=192x64", "--steps=3"], (192, 64, 3, 1.5)),
        (&["-W128", "-H", "64", "--quiet"], (128, 64, 8, 1.5)),
    ];
    for (args, wanted) in cases {
        let folder = folder();
        let fake = Fake::serving(|stream, request| {
            image(stream, &request);
            asked(&request)
        });
        admin(&fake.path(), demo);
        let mut command = weave(folder.path());
        command.args(["generate", "a cat", "-ocat.png", "--json", "--timeout=20"]).args(args);
        command.arg("--socket").arg(fake.path());
        let run = run(command);
        assert_eq!(run.status, Some(0), "{}", run.stderr);
        let toy = "weave: this daemon has the demo model, to try Weave with: it draws coloured shapes on coloured \
                   backgrounds; docs/models.md says how to get a real one\n";
        match args.contains(&"--quiet") {
            true => assert_eq!(run.stderr, ""),
            false => assert_eq!(run.stderr.matches(toy).count(), 1, "{}", run.stderr),
        }
        let said: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!((&said["model"], &said["prompt"]), (&"demo model".into(), &"a cat".into()));
        let png = decode(&fs::read(folder.path().join("cat.png")).unwrap());
        assert!(png.latin1[0].1.contains(", Model: demo model, Version: "), "{}", png.latin1[0].1);
        assert!(png.latin1[1].1.contains(r#""model":"demo model""#), "{}", png.latin1[1].1);
        assert_eq!(fake.end(), wanted, "{args:?}");
    }
}

/// One that says nothing, one that says something else, and one of a daemon that has no such pages.
#[test]
fn a_socket_that_tells_nothing_is_done_without() {
    let pages: [fn(&str) -> Option<String>; 4] = [
        |_| loop {
            thread::park();
        },
        |_| Some("{}".to_owned()),
        |_| Some(DEMO.replace(r#""steps":8"#, r#""steps":0"#)),
        |_| None,
    ];
    for page in pages {
        let folder = folder();
        let fake = Fake::serving(|stream, request| {
            image(stream, &request);
            asked(&request)
        });
        admin(&fake.path(), page);
        let mut command = weave(folder.path());
        command.args([
            "generate",
            "a cat",
            "--width=64",
            "--height=64",
            "--seed=7",
            "--timeout=20",
            "--socket",
        ]);
        let run = run({
            command.arg(fake.path());
            command
        });
        assert_eq!(run.status, Some(0), "{}", run.stderr);
        assert_eq!(run.stderr, "weave: 64×64, 28 steps, cfg 7, seed 7\n");
        assert_eq!(fake.end(), (64, 64, 28, 7.0));
        assert_eq!(names(folder.path()), ["weave-7.png"]);
    }
}

#[test]
fn a_terminal_shows_the_place_in_the_queue_and_the_step() {
    let folder = folder();
    let (go, told_to_go) = channel::<()>();
    let (id, running) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(false)));
    let has_it = Arc::clone(&id);
    let fake = Fake::serving(move |stream, request| {
        has_it.store(request.id(), Ordering::SeqCst);
        told_to_go.recv().unwrap();
        image(stream, &request);
    });
    let (own, is_running) = (Arc::clone(&id), Arc::clone(&running));
    admin(&fake.path(), move |page| {
        let own = own.load(Ordering::SeqCst);
        let other = r#"{"request_id":1,"seconds":3}"#;
        (page == "/requests").then(|| match *is_running.lock().unwrap() {
            false => format!(r#"{{"running":[],"waiting":[{other},{{"request_id":{own},"seconds":1}}]}}"#),
            true => format!(
                r#"{{"running":[{{"request_id":{own},"worker":0,"step":14,"steps":28,"seconds":1,"abandoned":false}}],
                "waiting":[{other}]}}"#
            ),
        })
    });
    let (mut master, slave) = terminal();
    let mut command = weave(folder.path());
    command
        .args(["generate", "a cat", "--size=64x64", "--seed=7", "--timeout=20", "--socket"])
        .arg(fake.path());
    command.env("TERM", "xterm").stdout(Stdio::piped()).stderr(slave);
    let child = command.spawn().unwrap();
    drop(command);
    read_until(&mut master, "seed 7, waiting, 1 other before this one, ");
    assert!(id.load(Ordering::SeqCst) > 0xFFFF_FFFF, "a number that no other client has");
    *running.lock().unwrap() = true;
    read_until(&mut master, "seed 7, step 14 of 28 [############------------], ");
    go.send(()).unwrap();
    read_until(&mut master, "nothing that comes");
    assert_eq!(in_time(move || child.wait_with_output()).unwrap().status.code(), Some(0));
    fake.end();
}

#[test]
fn load_is_what_suits_the_model_and_shows_that_it_gets_on() {
    let (go, told_to_go) = channel::<()>();
    let fake = Fake::listening(move |listener| {
        let (mut stream, _) = listener.accept().unwrap();
        let mut wanted = Vec::new();
        for number in 0..4 {
            let request = Request::read(&mut stream);
            if number == 0 {
                // Whether anybody is there is asked first.
                send(&mut stream, &error(request.id(), 400, 3, "model_id"));
                continue;
            }
            wanted.push(asked(&request));
            if number == 3 {
                told_to_go.recv().unwrap();
            }
            image(&mut stream, &request);
        }
        wanted
    });
    admin(&fake.path(), demo);
    let folder = folder();
    let (mut master, slave) = terminal();
    let mut command = weave(folder.path());
    command.args(["bench", "-r3", "--steps=3", "--seed=-1", "--timeout=20", "--socket"]).arg(fake.path());
    command.env("TERM", "xterm").stdout(Stdio::piped()).stderr(slave);
    let child = command.spawn().unwrap();
    drop(command);
    let shown = read_until(&mut master, ", 2 of 3 answered [################--------], ");
    assert!(shown.contains("64×128, 3 steps, cfg 1.5; 1 under way on each of 1 connections"), "{shown:?}");
    go.send(()).unwrap();
    read_until(&mut master, "nothing that comes");
    let output = in_time(move || child.wait_with_output()).unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout.starts_with(b"requests    3 in "));
    assert_eq!(fake.end(), [(64, 128, 3, 1.5); 3]);
}

#[test]
fn top_lists_each_request_and_those_that_nobody_waits_for() {
    let folder = folder();
    let socket = folder.path().join("weave.sock");
    admin(&socket, |page| match page {
        "/stats" => Some("{}".to_owned()),
        "/model" => Some(DEMO.to_owned()),
        "/requests" => Some(format!(
            r#"{{"running":[{{"request_id":5,"worker":0,"step":3,"steps":8,"seconds":1.5,"abandoned":false}},
                {{"request_id":6,"worker":1,"step":0,"steps":0,"seconds":70,"abandoned":true}}],
                "waiting":[{}]}}"#,
            (10..20)
                .map(|id| format!(r#"{{"request_id":{id},"seconds":0.2}}"#))
                .collect::<Vec<_>>()
                .join(",")
        )),
        _ => None,
    });
    let mut command = weave(folder.path());
    command.args(["top", "--count=1", "--socket"]).arg(&socket);
    let run = run(command);
    assert_eq!(run.status, Some(0), "{}", run.stderr);
    let toy = "\nmodel: demo model, to try Weave with: it draws coloured shapes on coloured backgrounds\n";
    assert!(run.stdout.contains(toy), "{}", run.stdout);
    let (_, list) = run.stdout.split_once("\nrequest").unwrap();
    let lines: Vec<_> =
        list.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(lines[0], "5 step 3 of 8 for 1.5 s");
    assert_eq!(lines[1], "6 begun, its client has gone for 70.0 s");
    assert_eq!(lines[2], "10 waits, the next one for 200 ms");
    assert_eq!(lines[9], "17 waits, 7 before it for 200 ms");
    assert_eq!(lines[10], "and 2 more that wait");
}
