//! `weave generate`: prompts from elsewhere, several images, JSON, and pictures in terminals.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;

use rustix::process::{Pid, Signal, kill_process};

use crate::command::{decode, folder, good_daemon, names, no_daemon, read_until, run, terminal, weave};
use crate::fake::{Fake, Request, Response, error, in_time, says_nothing, send, until_closed};

/// `weave generate` of 64×64 pixels, with the seeds from 7 on.
fn generate(folder: &Path, socket: &Path, args: &[&str]) -> Command {
    let mut command = weave(folder);
    command.args(["generate", "--width=64", "--height=64", "--seed=7", "--timeout=20"]).args(args);
    command.arg("--socket").arg(socket);
    command
}

fn seed(request: &Request) -> u64 {
    request.u64(44)
}

/// An image that shows which seed it was made with.
fn image_of(request: &Request) -> Vec<u8> {
    let fill = u8::try_from(seed(request)).unwrap();
    Response { pixels: vec![fill; 64 * 64 * 3], ..Response::good(request.id()) }.bytes()
}

#[test]
fn a_prompt_comes_from_a_file_or_from_standard_input() {
    let folder = folder();
    let cases: [(&[&str], Option<&str>, &str); 12] = [
        (&["--prompt-file=cat.txt"], None, "a cat\nin space"),
        (&["--prompt-file=marked.txt"], None, "a cat\nin space"),
        (&["--prompt-file=notepad.txt"], None, "a c\u{e5}t\nin space"),
        (&["--prompt-file=unicode.txt"], None, "a c\u{e5}t \u{1f408}"),
        (&["--prompt-file=big-endian.txt"], None, "a c\u{e5}t \u{1f408}"),
        (&["--prompt-file=old-mac.txt"], None, "a cat\nin space"),
        (&["-"], Some("\u{feff}a dog\r\n"), "a dog"),
        (&["\u{feff}a cat"], None, "a cat"),
        (&["-"], Some("a dog\n"), "a dog"),
        (&["--prompt-file=-"], Some("a bird\r\n\n"), "a bird"),
        (&["--prompt-file", "-"], Some("no line end"), "no line end"),
        (&["-- a dash"], None, "-- a dash"),
    ];
    let wide =
        |text: &str, bytes: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(bytes).collect::<Vec<_>>();
    for (name, content) in [
        ("cat.txt", b"a cat\nin space\n".to_vec()),
        ("marked.txt", b"\xef\xbb\xbfa cat\nin space\n".to_vec()),
        ("notepad.txt", "\u{feff}a c\u{e5}t\r\nin space\r\n\r\n".as_bytes().to_vec()),
        ("unicode.txt", wide("\u{feff}a c\u{e5}t \u{1f408}\r\n", u16::to_le_bytes)),
        ("big-endian.txt", wide("\u{feff}a c\u{e5}t \u{1f408}\r\n", u16::to_be_bytes)),
        ("old-mac.txt", b"a cat\rin space\r".to_vec()),
    ] {
        fs::write(folder.path().join(name), content).unwrap();
    }
    for (args, typed, prompt) in cases {
        let fake = Fake::serving(|stream, request| {
            send(stream, &Response::good(request.id()).bytes());
            request
        });
        // What begins with a dash stands behind "--".
        let args = if args[0].starts_with("-- ") { vec!["--socket=x", "--", args[0]] } else { args.to_vec() };
        let mut command = weave(folder.path());
        command.args(["generate", "--width=64", "--height=64", "--quiet", "--force", "-ocat.png"]);
        command.env("WEAVE_SOCKET", fake.path());
        command.args(args.iter().filter(|arg| **arg != "--socket=x"));
        command.stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(typed.unwrap_or_default().as_bytes()).unwrap();
        drop(stdin);
        let output = in_time(move || child.wait_with_output()).unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let request = fake.end();
        assert_eq!(request.0[76..76 + prompt.len()], *prompt.as_bytes());
        assert_eq!(request.u32(56) as usize, prompt.len());
    }
}

#[test]
fn a_prompt_that_cannot_be_read_is_told() {
    let folder = folder();
    let listener = no_daemon(folder.path());
    fs::write(folder.path().join("latin1"), b"\xFCber").unwrap();
    fs::write(folder.path().join("nul"), b"a\0b").unwrap();
    fs::write(folder.path().join("cut"), b"\xff\xfea").unwrap();
    fs::write(folder.path().join("empty"), "\n").unwrap();
    fs::write(folder.path().join("long"), "x".repeat(2049)).unwrap();
    fs::write(folder.path().join("book"), "x".repeat(70_000)).unwrap();
    let cases: [(&[&str], i32, &str); 12] = [
        (&["--prompt-file=nul"], 66, "nul has a NUL as its byte 1"),
        (
            &["--prompt-file=cut"],
            66,
            "cut begins as UTF-16 and is damaged from its byte 2 on; save it as UTF-8",
        ),
        (
            &["a cat <lora:x:1>"],
            2,
            "\"<lora:x:1>\" in the prompt names a LoRA or another network, and Weave has none; take it",
        ),
        (
            &["<sd_cpp_extra_args>{}</sd_cpp_extra_args>"],
            2,
            "use --seed, --steps, --cfg-scale, --width and --height",
        ),
        (&["a cat <lora:x:1>", "--quiet"], 2, "take it out"),
        (&["--prompt-file=none"], 66, "can't read none: No such file"),
        (&["--prompt-file=."], 66, "can't read .: Is a directory"),
        (&["--prompt-file=latin1"], 66, "latin1 is not UTF-8 text from its byte 0 on"),
        (&["--prompt-file=empty"], 2, "say what to draw"),
        (&["--prompt-file=long"], 2, "the prompt has 2049 bytes, must have 1 to 2048"),
        (&["--prompt-file=book"], 66, "book has more than 65536 bytes"),
        (&["x", "--prompt-file=long"], 2, "cannot be used with"),
    ];
    for (args, status, says) in cases {
        let run = run(generate(folder.path(), &folder.path().join("quiet.sock"), args));
        assert_eq!(run.status, Some(status), "{args:?}: {}", run.stderr);
        assert!(run.stderr.contains(says), "{args:?}: {}", run.stderr);
    }
    assert!(listener.accept().is_err(), "somebody was called");
}

/// What only looks like another program's syntax is drawn, and said.
#[test]
fn another_programs_syntax_is_warned_of() {
    let folder = folder();
    for (prompt, quiet, says) in [
        (
            "a cat --ar 16:9",
            false,
            "warning: \"--ar\" in the prompt is a parameter of Midjourney; here it is drawn as words; take it",
        ),
        ("a cat --ar 16:9", true, ""),
        ("a cat BREAK a dog", false, "the word itself gets the weight -1"),
        ("a (red:1.2) cat", false, ""),
    ] {
        let fake = Fake::serving(|stream, request| {
            send(stream, &image_of(&request));
            request
        });
        let mut command = generate(folder.path(), &fake.path(), &["--force", "-ocat.png", prompt]);
        if quiet {
            command.arg("--quiet");
        }
        let run = run(command);
        assert_eq!(run.status, Some(0), "{}", run.stderr);
        assert!(run.stderr.contains(says), "{}", run.stderr);
        assert_eq!(run.stderr.contains("warning:"), !says.is_empty(), "{}", run.stderr);
        assert_eq!(fake.end().u32(56) as usize, prompt.len(), "it is sent as it is");
    }
}

/// In any order, the queue full in between.
#[test]
fn several_images_have_numbers_and_seeds_that_count_up() {
    let folder = folder();
    let fake = Fake::serving(|stream, first| {
        let mut requests = vec![first];
        requests.extend((1..4).map(|_| Request::read(stream)));
        let seeds: Vec<_> = requests.iter().map(seed).collect();
        assert_eq!(seeds, [7, 8, 9, 10]);
        send(stream, &image_of(&requests[2]));
        assert_eq!(seed(&Request::read(stream)), 11, "the next one, as soon as there is room");
        send(stream, &error(requests[3].id(), 500, 23, "the queue is full"));
        says_nothing(stream);
        send(stream, &image_of(&requests[1]));
        let again = Request::read(stream);
        assert_eq!(seed(&again), 10, "once more, when there is room");
        let last = Request::read(stream);
        assert_eq!(seed(&last), 12, "and as many as before");
        for request in [&requests[0], &again, &last] {
            send(stream, &image_of(request));
        }
        send(stream, &Response { pixels: vec![11; 64 * 64 * 3], ..Response::good(5) }.bytes());
    });
    let run = run(generate(folder.path(), &fake.path(), &["a cat", "-n6", "-o", "cat.png"]));
    assert_eq!(run.status, Some(0), "{}", run.stderr);
    fake.end();
    let files: Vec<_> = run.stdout.lines().map(|line| line.split_once(": ").unwrap().0).collect();
    assert_eq!(files, ["cat-3.png", "cat-2.png", "cat-1.png", "cat-4.png", "cat-6.png", "cat-5.png"]);
    assert_eq!(names(folder.path()), (1..=6).map(|n| format!("cat-{n}.png")).collect::<Vec<_>>());
    for (index, name) in names(folder.path()).iter().enumerate() {
        let png = decode(&fs::read(folder.path().join(name)).unwrap());
        let seed = 7 + u8::try_from(index).unwrap();
        assert_eq!(png.pixels, [seed; 64 * 64 * 3], "{name}");
        assert!(png.latin1[0].1.contains(&format!(", Seed: {seed}, ")), "{name}: {:?}", png.latin1);
    }
    assert!(run.stderr.contains("weave: 1 of 6: 64×64, 28 steps, cfg 7, seeds from 7\n"), "{}", run.stderr);
}

#[test]
fn a_server_that_answers_one_request_a_connection_makes_each_image_once() {
    let folder = folder();
    let fake = Fake::listening(|listener| {
        let answer = |at_once: usize| {
            let (mut stream, _) = listener.accept().unwrap();
            let requests: Vec<_> = (0..at_once).map(|_| Request::read(&mut stream)).collect();
            says_nothing(&mut stream);
            send(&mut stream, &image_of(&requests[0]));
            seed(&requests[0])
        };
        [3, 1, 1].map(answer)
    });
    let run = run(generate(folder.path(), &fake.path(), &["a cat", "-n3", "-o", "cat.png"]));
    assert_eq!(run.status, Some(0), "{}", run.stderr);
    assert_eq!(fake.end(), [7, 8, 9]);
    assert_eq!(names(folder.path()), ["cat-1.png", "cat-2.png", "cat-3.png"]);
}

#[test]
fn several_files_are_all_looked_at_before_anybody_is_called() {
    let folder = folder();
    let listener = no_daemon(folder.path());
    let socket = folder.path().join("quiet.sock");
    fs::write(folder.path().join("cat-12.png"), "mine").unwrap();
    let fails = |args: &[&str], status, says: &str| {
        let mut command = generate(folder.path(), &socket, &[]);
        let run = run({
            command.args(["a cat"]).args(args);
            command
        });
        assert_eq!(run.status, Some(status), "{args:?}: {}", run.stderr);
        assert!(run.stderr.contains(says), "{args:?}: {}", run.stderr);
    };
    fails(&["-n", "12", "-o", "cat.png"], 1, "cat-12.png exists already");
    fails(&["-n", "2", "-o", "none/cat.png"], 1, "can't write to the folder none");
    fails(&["-n", "2", "-o", "-"], 2, "-o - writes one image");
    fails(&["-o", "-", "--json"], 2, "-o - writes one image");
    fails(&["-o", "-", "--show=sixel"], 2, "-o - writes one image");
    fails(&["--show", "--json"], 2, "cannot be used with");
    fails(&["--show"], 2, "standard output is no terminal");
    fails(&["--show=ascii"], 2, "half-blocks");
    fails(&["-n", "0"], 2, "1 to 1000");
    fails(&["-o", "cat.gif"], 2, "cat.gif: images can't be written as .gif");
    fails(&["-o", "cat.TIFF"], 2, "say .png, .jpg, .jpeg or .webp");
    assert!(listener.accept().is_err(), "somebody was called");
    assert_eq!(names(folder.path()), ["cat-12.png", "quiet.sock"]);
    let mut command = weave(folder.path());
    command.args(["generate", "x", "-n2", "--seed=18446744073709551615", "--socket"]).arg(&socket);
    let run = run(command);
    assert_eq!(run.status, Some(2));
    assert!(run.stderr.contains("seed is 18446744073709551615, must be at most 18446744073709551614 for 2"));
}

/// What is there stays; what isn't leaves nothing behind.
#[test]
fn several_images_that_end_early() {
    for (signal, status) in [(Some(Signal::INT), 130), (Some(Signal::TERM), 143), (None, 7)] {
        let folder = folder();
        let (has_it, wait) = channel();
        let fake = Fake::serving(move |stream, first| {
            send(stream, &image_of(&first));
            let second = Request::read(stream);
            // The first image is there when the fifth request comes.
            let more = [(); 3].map(|()| Request::read(stream));
            assert_eq!(seed(&more[2]), 11);
            send(stream, &image_of(&second)[..5000]);
            if signal.is_some() {
                has_it.send(()).unwrap();
                until_closed(stream);
            }
        });
        let mut command = generate(folder.path(), &fake.path(), &["a cat", "-n9", "-o", "cat.png"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        if let Some(signal) = signal {
            wait.recv().unwrap();
            kill_process(Pid::from_child(&child), signal).unwrap();
        }
        let output = in_time(move || child.wait_with_output()).unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{stderr}");
        assert!(stderr.contains("weave: 1 of 9 images were made\n"), "{stderr}");
        assert_eq!(names(folder.path()), ["cat-1.png"]);
        assert_eq!(decode(&fs::read(folder.path().join("cat-1.png")).unwrap()).pixels, [7; 64 * 64 * 3]);
        fake.end();
    }
}

#[test]
fn json_has_a_line_for_each_image() {
    let folder = folder();
    let fake = Fake::serving(|stream, first| {
        let second = Request::read(stream);
        send(stream, &image_of(&first));
        send(stream, &image_of(&second));
    });
    let run = run(generate(folder.path(), &fake.path(), &["a cat", "-n2", "--json", "--quiet"]));
    assert_eq!((run.status, run.stderr.as_str()), (Some(0), ""));
    let reports: Vec<serde_json::Value> =
        run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(reports.len(), 2);
    for (report, seed) in reports.iter().zip(7..) {
        let mut report = report.as_object().unwrap().clone();
        let file = report.remove("file").unwrap();
        assert_eq!(file, format!("weave-{seed}.png"));
        let bytes = fs::metadata(folder.path().join(file.as_str().unwrap())).unwrap().len();
        assert!(report.remove("total_seconds").unwrap().as_f64().unwrap() < 20.0);
        assert_eq!(
            serde_json::Value::from(report),
            serde_json::json!({
                "bytes": bytes, "width": 64, "height": 64, "channels": 3, "provider": "local",
                "prompt": "a cat", "model": null, "steps": 28, "cfg_scale": 7.0,
                "seed": seed, "generation_seconds": 1.234
            })
        );
    }
    fake.end();
}

/// The line of settings, taken apart as the programs do that have it from the web UI of AUTOMATIC1111.
#[test]
fn other_programs_find_the_parameters() {
    let folder = folder();
    let fake = good_daemon();
    assert_eq!(
        run(generate(folder.path(), &fake.path(), &["a cat,\nSteps: many", "-ocat.png"])).status,
        Some(0)
    );
    let png = decode(&fs::read(folder.path().join("cat.png")).unwrap());
    let (keyword, text) = &png.latin1[0];
    assert_eq!(keyword, "parameters");
    let (prompt, settings) = text.rsplit_once('\n').unwrap();
    assert_eq!(prompt, "a cat,\nSteps: many");
    let settings: Vec<_> = settings.split(", ").map(|setting| setting.split_once(": ").unwrap()).collect();
    let version = concat!("Weave ", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        settings,
        [
            ("Steps", "28"),
            ("Sampler", "unknown"),
            ("CFG scale", "7"),
            ("Seed", "7"),
            ("Size", "64x64"),
            ("Version", version)
        ]
    );
}

#[test]
fn a_picture_is_shown_as_was_said() {
    let folder = folder();
    let begins = [
        ("kitty", "\x1b_Ga=T,f=100,q=2,m=0;iVBORw0KGgo"),
        ("iterm2", "\x1b]1337;File=inline=1;size="),
        ("sixel", "\x1bPq\"1;1;64;64#0;2;0;0;0#"),
        ("half-blocks", "\x1b[38;5;"),
    ];
    for (how, begin) in begins {
        let fake = good_daemon();
        let show = format!("--show={how}");
        let run = run(generate(folder.path(), &fake.path(), &["a cat", "-fo", "cat.png", &show]));
        assert_eq!(run.status, Some(0), "{}", run.stderr);
        assert!(run.stdout.starts_with(begin), "{how}: {:?}", &run.stdout[..100]);
        assert!(run.stdout.contains("\ncat.png: 64×64, seed 7"), "{how}");
        assert_eq!(names(folder.path()), ["cat.png"]);
    }
}

#[test]
fn a_terminal_is_asked_what_it_can() {
    let question = "\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\\x1b[c";
    let cases: [(&[u8], &str); 3] = [
        (b"\x1b_Gi=31;OK\x1b\\\x1b[?62;4c", "\x1b_Ga=T,"),
        (b"\x1b[?62;4c", "\x1bPq\"1;1;"),
        (b"\x1b[?1;2c", "\x1b[38;5;"),
    ];
    for (answer, begin) in cases {
        let folder = folder();
        let fake = good_daemon();
        let (mut master, slave) = terminal();
        let before = rustix::termios::tcgetattr(&slave).unwrap().local_modes;
        let mut command = generate(folder.path(), &fake.path(), &["a cat", "-qo", "cat.png", "--show"]);
        for name in ["TERM", "TERM_PROGRAM", "LC_TERMINAL", "COLORTERM"] {
            command.env_remove(name);
        }
        command.stdout(slave.try_clone().unwrap());
        let child = command.spawn().unwrap();
        drop(command);
        assert_eq!(read_until(&mut master, question), question);
        master.write_all(answer).unwrap();
        let shown = read_until(&mut master, begin);
        assert!(shown.starts_with(begin), "the answer is not shown: {shown:?}");
        assert_eq!(rustix::termios::tcgetattr(&slave).unwrap().local_modes, before);
        drop(slave);
        read_until(&mut master, "nothing that comes");
        assert_eq!(in_time(move || child.wait_with_output()).unwrap().status.code(), Some(0));
        fake.end();
    }
}
