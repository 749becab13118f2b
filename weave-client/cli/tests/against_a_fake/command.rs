//! The `weave` command, as it is run by people and scripts, against a daemon that says what it is
//! told to.

use std::fs::{self, File};
use std::io::{self, BufReader, Cursor, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use tempfile::TempDir;

use crate::fake::{Fake, Request, Response, error, in_time, send, until_closed};

/// The command in an empty folder, without an environment that could lead it to a real daemon.
pub(crate) fn weave(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weave"));
    command.current_dir(folder).stdin(Stdio::null());
    for name in [
        "WEAVE_SOCKET",
        "WEAVE_ADMIN_SOCKET",
        "WEAVE_TOKEN_FILE",
        "WEAVE_SERVER_UID",
        "XDG_RUNTIME_DIR",
        "HOME",
        "NO_COLOR",
        "WEAVE_PROVIDERS",
    ] {
        command.env_remove(name);
    }
    command
}

/// `weave generate "a cat" -o cat.png` for 64×64 pixels. The time limit is there for a command that
/// waits for something that the test won't send.
fn generate(folder: &Path, socket: &Path) -> Command {
    let mut command = weave(folder);
    command.args(["generate", "a cat", "-o", "cat.png", "--width", "64", "--height", "64", "--seed", "7"]);
    command.args(["--timeout", "20", "--socket"]).arg(socket);
    command
}

/// What a command said and how it ended.
pub(crate) struct Run {
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

pub(crate) fn run(mut command: Command) -> Run {
    let output = in_time(move || command.output()).unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let run = Run { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) };
    assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
    run
}

pub(crate) fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Sends the image that was asked for.
pub(crate) fn good_daemon() -> Fake {
    Fake::serving(|stream, request| send(stream, &Response::good(request.id()).bytes()))
}

/// A daemon's socket on which nobody may call.
pub(crate) fn no_daemon(folder: &Path) -> UnixListener {
    let listener = UnixListener::bind(folder.join("quiet.sock")).unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

/// Names in a folder.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = folder.read_dir().unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub(crate) struct Png {
    pub(crate) size: (u32, u32),
    color: png::ColorType,
    pub(crate) pixels: Vec<u8>,
    /// Keyword and text of each tEXt, then of each iTXt chunk.
    pub(crate) latin1: Vec<(String, String)>,
    utf8: Vec<(String, String)>,
}

pub(crate) fn decode(bytes: &[u8]) -> Png {
    let mut reader = png::Decoder::new(BufReader::new(Cursor::new(bytes))).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let frame = reader.next_frame(&mut pixels).unwrap();
    let info = reader.info();
    let latin1 = info.uncompressed_latin1_text.iter().map(|t| (t.keyword.clone(), t.text.clone())).collect();
    let utf8 = info.utf8_text.iter().map(|t| (t.keyword.clone(), t.get_text().unwrap())).collect();
    Png { size: (frame.width, frame.height), color: frame.color_type, pixels, latin1, utf8 }
}

#[test]
fn an_image_becomes_a_png_that_says_how_it_was_made() {
    let folder = folder();
    let fake = good_daemon();
    let run = run(generate(folder.path(), &fake.path()));
    assert_eq!(run.status, Some(0), "{}", run.stderr);
    let time = run.stdout.strip_prefix("cat.png: 64×64, seed 7, generated in 1.2 s (").unwrap();
    let time = time.strip_suffix(" s in all)\n").unwrap();
    assert!(time.parse::<f64>().unwrap() < 20.0);
    assert_eq!(run.stderr, "weave: 64×64, 28 steps, cfg 7, seed 7\n");

    assert_eq!(names(folder.path()), ["cat.png"]);
    let mode = fs::metadata(folder.path().join("cat.png")).unwrap().permissions().mode();
    File::create(folder.path().join("any")).unwrap();
    let any = fs::metadata(folder.path().join("any")).unwrap().permissions().mode();
    assert_eq!(mode, any, "like any file that is created here");

    let png = decode(&fs::read(folder.path().join("cat.png")).unwrap());
    assert_eq!((png.size, png.color), ((64, 64), png::ColorType::Rgb));
    assert_eq!(png.pixels, Response::good(1).pixels);
    assert_eq!(png.utf8, []);
    let [(parameters, settings), (weave, recipe)] = png.latin1.try_into().unwrap();
    assert_eq!((parameters.as_str(), weave.as_str()), ("parameters", "Weave"));
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        settings,
        format!(
            "a cat\nSteps: 28, Sampler: unknown, CFG scale: 7, Seed: 7, Size: 64x64, Version: Weave {version}"
        )
    );
    assert_eq!(
        recipe,
        r#"{"protocol":1,"model_id":0,"prompt":"a cat","width":64,"height":64,"steps":28,"cfg_scale":7.0,"seed":7,"provider":"local"}"#
    );
    fake.end();
}

#[test]
fn alpha_and_any_language_survive() {
    let folder = folder();
    let fake = Fake::serving(|stream, request| {
        let pixels = (0..64 * 64 * 4u32).map(|i| (i * 13 % 256) as u8).collect();
        let response = Response { channels: 4, pixels, ..Response::good(request.id()) };
        send(stream, &response.bytes());
        response.pixels
    });
    let mut command = weave(folder.path());
    command.args([
        "generate",
        "一只猫 \"x\"\nüber",
        "-o",
        "cat.png",
        "--cfg=7.1",
        "--seed",
        "18446744073709551615",
    ]);
    command.args(["--width=64", "--height=64", "--socket"]).arg(fake.path());
    let run = run(command);
    assert_eq!(run.status, Some(0), "{}", run.stderr);
    let png = decode(&fs::read(folder.path().join("cat.png")).unwrap());
    assert_eq!((png.color, png.pixels), (png::ColorType::Rgba, fake.end()));
    assert_eq!(png.latin1, []);
    let [(_, settings), (_, recipe)] = png.utf8.try_into().unwrap();
    assert!(settings.starts_with(
        "一只猫 \"x\"\nüber\nSteps: 28, Sampler: unknown, CFG scale: 7.1, Seed: 18446744073709551615,"
    ));
    let recipe: serde_json::Value = serde_json::from_str(&recipe).unwrap();
    assert_eq!(recipe["prompt"], "一只猫 \"x\"\nüber");
    assert_eq!((&recipe["seed"], &recipe["cfg_scale"]), (&u64::MAX.into(), &7.1.into()));
}

#[test]
fn a_random_seed_is_told_and_names_the_file() {
    let folder = folder();
    let mut seeds = Vec::new();
    for explicit in [None, Some("--seed=0")] {
        let fake = Fake::serving(|stream, request| {
            send(stream, &Response::good(request.id()).bytes());
            request.u64(44)
        });
        let mut command = weave(folder.path());
        command.args(["generate", "a cat", "--width=64", "--height=64"]).args(explicit);
        let run = run({
            command.env("WEAVE_SOCKET", fake.path());
            command
        });
        let seed = fake.end();
        assert_ne!(seed, 0);
        assert!(run.stdout.starts_with(&format!("weave-{seed}.png: 64×64, seed {seed}, ")), "{}", run.stdout);
        assert!(folder.path().join(format!("weave-{seed}.png")).is_file());
        seeds.push(seed);
    }
    assert_ne!(seeds[0], seeds[1]);
}

#[test]
fn the_image_can_go_to_standard_output() {
    let folder = folder();
    let fake = good_daemon();
    let mut command = generate(folder.path(), &fake.path());
    let output = command.args(["-o", "-"]).output().unwrap();
    // clap takes an option once.
    assert_eq!(output.status.code(), Some(2));
    drop(fake);

    let fake = good_daemon();
    let mut command = weave(folder.path());
    command.args(["generate", "a cat", "-o", "-", "--width=64", "--height=64", "--socket"]).arg(fake.path());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(decode(&output.stdout).pixels, Response::good(1).pixels);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("generated in 1.2 s"), "{stderr}");
    assert_eq!(names(folder.path()), <[String; 0]>::default());
}

#[test]
fn quiet_is_quiet() {
    let folder = folder();
    let fake = good_daemon();
    let mut command = generate(folder.path(), &fake.path());
    command.arg("--quiet");
    let run = run(command);
    assert_eq!((run.status, run.stdout.as_str(), run.stderr.as_str()), (Some(0), "", ""));
    assert_eq!(names(folder.path()), ["cat.png"]);
}

/// Every way in which an answer can be bad has its exit status and leaves no file.
#[test]
fn each_failure_has_its_status_and_leaves_nothing_behind() {
    type Answer = fn(u64) -> Vec<u8>;
    let cases: [(i32, &str, Answer); 17] = [
        (3, "refused the request and will refuse it again (INVALID_STEPS): steps is 0\n", |id| {
            error(id, 400, 6, "steps is 0")
        }),
        (3, "MALFORMED", |id| error(id, 400, 20, "payload_len is 1")),
        (3, "error code 4242", |id| error(id, 400, 4242, "new")),
        (3, "TOO_LARGE", |_| error(0, 400, 21, "payload_len")),
        (4, "busy and may take the request later (BUSY): the queue is full\n", |id| {
            error(id, 500, 23, "the queue is full")
        }),
        (4, "BUSY", |_| error(0, 500, 23, "too many connections")),
        (4, "SHUTTING_DOWN", |id| error(id, 500, 24, "ending")),
        (5, "TIMEOUT", |id| error(id, 500, 10, "deadline")),
        (7, "GPU_ERROR", |id| error(id, 500, 9, "the worker died")),
        (7, "OUT_OF_MEMORY", |id| error(id, 500, 8, "vram")),
        (7, "could not make the image; its log says more (INTERNAL)\n", |id| error(id, 500, 99, "")),
        (7, "error code 4242", |id| error(id, 500, 4242, "new")),
        (76, "magic is 48 54 54 50", |_| b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        (76, "request_id is 2, must be 1", |id| Response::good(id + 1).bytes()),
        (76, "status is 400, must be 200", |id| Response { status: 400, ..Response::good(id) }.bytes()),
        (76, "the image is 128×64, must be 64×64", |id| {
            Response { width: 128, pixels: vec![0; 128 * 64 * 3], ..Response::good(id) }.bytes()
        }),
        (76, "status is 200, must be 400 or 500", |id| error(id, 200, 99, "")),
    ];
    for (status, says, answer) in cases {
        let folder = folder();
        let fake = Fake::serving(move |stream, request| {
            send(stream, &answer(request.id()));
            until_closed(stream);
        });
        let run = run(generate(folder.path(), &fake.path()));
        assert_eq!(run.status, Some(status), "{}", run.stderr);
        assert!(run.stderr.contains(says), "{says}: {}", run.stderr);
        assert!(
            run.stderr.lines().count() <= 3,
            "what is asked for, what happened, what to do: {}",
            run.stderr
        );
        assert_eq!(run.stdout, "");
        assert_eq!(names(folder.path()), <[String; 0]>::default(), "{says}");
        fake.end();
    }
}

#[test]
fn a_daemon_that_hangs_up_has_failed() {
    for end in [0, 9, 48, 5000] {
        let folder = folder();
        let fake = Fake::serving(move |stream, request| {
            send(stream, &Response::good(request.id()).bytes()[..end]);
        });
        let run = run(generate(folder.path(), &fake.path()));
        assert_eq!(run.status, Some(7), "{}", run.stderr);
        assert!(run.stderr.contains("the daemon hung up"), "{}", run.stderr);
        assert_eq!(names(folder.path()), <[String; 0]>::default());
        fake.end();
    }
}

#[test]
fn time_runs_out() {
    let folder = folder();
    let fake = Fake::serving(|stream, _| until_closed(stream));
    let mut command = weave(folder.path());
    command.args(["generate", "a cat", "--timeout", "0.1", "--socket"]).arg(fake.path());
    let run = run(command);
    assert_eq!(run.status, Some(5), "{}", run.stderr);
    assert!(
        run.stderr.contains("within 100ms") && run.stderr.contains("--timeout SECONDS"),
        "{}",
        run.stderr
    );
    assert_eq!(names(folder.path()), <[String; 0]>::default());
    fake.end();
}

#[test]
fn no_daemon_there() {
    let folder = folder();
    let says = |run: Run, words: &[&str]| {
        assert_eq!(run.status, Some(69), "{}", run.stderr);
        assert!(words.iter().all(|word| run.stderr.contains(word)), "{}", run.stderr);
    };
    let socket = folder.path().join("none.sock");
    says(run(generate(folder.path(), &socket)), &["none.sock", "No such file", "start weaved", "--socket"]);
    drop(UnixListener::bind(&socket).unwrap());
    let mut command = weave(folder.path());
    command.args(["ping", "--socket"]).arg(&socket);
    says(run(command), &["Connection refused", "start weaved"]);

    // Unless the package is installed here.
    if !Path::new("/run/weave").exists() {
        let mut command = weave(folder.path());
        command.arg("ping");
        says(
            run(command),
            &["WEAVE_SOCKET", "XDG_RUNTIME_DIR", "HOME", "/run/weave/weave.sock", "--socket PATH"],
        );
        for (variable, usual) in [("XDG_RUNTIME_DIR", "weave/weave.sock"), ("HOME", ".weave/weave.sock")] {
            let mut command = weave(folder.path());
            command.args(["ping", "--timeout=250ms"]).env("WEAVE_SOCKET", " ").env(variable, folder.path());
            let usual = folder.path().join(usual);
            let places = format!("it is looked for at {}, then at /run/weave/weave.sock", usual.display());
            says(run(command), &[&format!("no daemon answers at {}", usual.display()), &places]);
        }
    }
    // Who has named one is not told of others.
    let mut command = weave(folder.path());
    command.arg("ping").env("WEAVE_SOCKET", format!(" {}\t", socket.display())).env("HOME", folder.path());
    let named = run(command);
    assert!(!named.stderr.contains("looked for"), "{}", named.stderr);
    says(named, &[&format!("no daemon answers at {} ", socket.display())]);
    assert_eq!(names(folder.path()), ["none.sock"]);
}

#[test]
fn a_variable_without_a_value_is_not_set_and_a_flag_without_one_is_refused() {
    let folder = folder();
    let usage = |configure: &dyn Fn(&mut Command) -> &mut Command, words: &[&str]| {
        let mut command = weave(folder.path());
        command.arg("ping");
        configure(&mut command);
        let run = run(command);
        assert_eq!(run.status, Some(2), "{}", run.stderr);
        assert!(words.iter().all(|word| run.stderr.contains(word)), "{}", run.stderr);
    };
    for flag in ["--socket", "--token-file", "--server-uid"] {
        for empty in ["", " "] {
            usage(&|command| command.args([flag, empty]), &[flag]);
        }
    }
    usage(&|command| command.arg("--socket=~/weave.sock").env("HOME", "/h"), &["--socket", "/h/weave.sock"]);
    usage(&|command| command.env("WEAVE_SOCKET", "~/w").env("HOME", "/h"), &["WEAVE_SOCKET", "/h/w"]);
    usage(
        &|command| command.arg("--socket=x").env("WEAVE_SERVER_UID", "me"),
        &["WEAVE_SERVER_UID", "number of a user"],
    );
    usage(&|command| command.arg("--timeout=5 parsecs"), &["--timeout", "1h30m"]);

    let mut command = weave(folder.path());
    command.args(["ping", "--socket=tcp://127.0.0.1:1"]);
    for name in ["WEAVE_SOCKET", "WEAVE_TOKEN_FILE", "WEAVE_SERVER_UID", "WEAVE_ADMIN_SOCKET"] {
        command.env(name, " ");
    }
    assert_eq!(run(command).status, Some(69));
}

#[test]
fn what_cannot_be_asked_is_refused_before_anybody_is_called() {
    let folder = folder();
    let listener = no_daemon(folder.path());
    let long = "é".repeat(1025);
    let cases: [(&[&str], &[&str]); 20] = [
        (&["x", "--width=500"], &["width is 500, must be 64 to 2048 and a multiple of 64", "--width N"]),
        (&["x", "--height=2112"], &["height is 2112", "--height N"]),
        (&["x", "--steps=0"], &["steps is 0, must be 1 to 100", "--steps N"]),
        (&["x", "--cfg-scale", "20.5"], &["cfg_scale is 20.5, must be 0.0 to 20.0", "--cfg-scale X"]),
        (&["x", "--cfg", "-1"], &["cfg_scale is -1.0,", "--cfg-scale X"]),
        (&["x", "--cfg", "nan"], &["cfg_scale is NaN,"]),
        (&["x", "--cfg", "much"], &["--cfg-scale <X>': must be a number, 0 to 20"]),
        (&[&long], &["the prompt has 2050 bytes, must have 1 to 2048", "shorten the prompt"]),
        (&[""], &["the prompt is empty", "say what to draw"]),
        (&["x", "--steps=many"], &["'--steps <N>': must be a whole number, 1 to 100"]),
        (&["x", "--width", "abc"], &["must be a whole number, 64 to 2048 and a multiple of 64"]),
        (&["x", "--width", "-64"], &["must be a whole number, 64 to 2048 and a multiple of 64"]),
        (&["x", "--size", "big"], &["must be WIDTHxHEIGHT in pixels, such as 512x512"]),
        (&["x", "--size=64x64", "-W64"], &["--size <WxH>", "cannot be used with", "--width <N>"]),
        (&["x", "--size=100x64"], &["width is 100", "--size WxH"]),
        (&["x", "--seed=-2"], &["0 and -1 draw one at random"]),
        (&["x", "-n0"], &["must be a whole number, 1 to 1000"]),
        (&["x", "--server-uid=me"], &["must be the number of a user"]),
        (&["x", "--timeout=0"], &["--timeout", "above 0"]),
        (&[], &["there is no prompt", "--prompt-file FILE", "standard input"]),
    ];
    for (args, says) in cases {
        let mut command = weave(folder.path());
        // The folder for the image doesn't exist either, which is to be said only when the rest is right.
        command.args(["generate", "-o", "none/cat.png"]).args(args);
        command.arg("--socket").arg(folder.path().join("quiet.sock"));
        let run = run(command);
        assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""), "{args:?}: {}", run.stderr);
        assert!(says.iter().all(|words| run.stderr.contains(words)), "{says:?}: {}", run.stderr);
    }
    assert!(listener.accept().is_err(), "somebody was called");
    assert_eq!(names(folder.path()), ["quiet.sock"]);
}

#[test]
fn a_file_that_cannot_be_written_is_found_out_before_anybody_is_called() {
    let folder = folder();
    let listener = no_daemon(folder.path());
    let path = |name: &str| folder.path().join(name);
    fs::write(path("old.png"), "old").unwrap();
    fs::create_dir(path("dir")).unwrap();
    symlink("nowhere", path("dangling.png")).unwrap();
    symlink("/dev/null", path("device.png")).unwrap();
    symlink("dir", path("into.png")).unwrap();
    symlink("loop.png", path("loop.png")).unwrap();
    symlink("/dev/stdout", path("mine.png")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path("pipe.png"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let long = "x".repeat(256);
    let longer = "x".repeat(251);
    let cases: [(&[&str], &str); 23] = [
        (&["old.png"], "old.png exists already"),
        (&["dangling.png"], "dangling.png exists already, a link to nowhere"),
        (&["loop.png"], "loop.png exists already, a link to loop.png"),
        (&["into.png", "--force"], "into.png is a link to a folder"),
        (&["pipe.png", "--force"], "pipe.png is not a regular file"),
        (&["new/"], "new/ names a folder"),
        (&["new/."], "new/. names a folder"),
        (&["dir/.."], "dir/.. names a folder"),
        (&["old.png/"], "old.png/ names a folder"),
        (&["."], ". names a folder"),
        (&[&long], "the file's name has 256 bytes, which is too long"),
        (&[&longer, "-n1000", "--force"], "the file's name has 256 bytes, which is too long"),
        (&["/dev/stdout"], "/dev/stdout is one of the program's own open files"),
        (&["/dev/fd/1", "--force"], "/dev/fd/1 is one of the program's own open files"),
        (&["/proc/self/fd/77"], "/proc/self/fd/77 is one of the program's own open files"),
        (&["mine.png", "--force"], "mine.png is one of the program's own open files"),
        (&["dir"], "dir is a folder"),
        (&["dir", "--force"], "dir is a folder"),
        (&["device.png", "--force"], "device.png is not a regular file"),
        (&["/dev/null", "--force"], "/dev/null is not a regular file"),
        (&["none/cat.png"], "can't write to the folder none: No such file or directory"),
        (&["old.png/cat.png"], "can't write to the folder old.png: Not a directory"),
        (&["/proc/cat.png"], "can't write to the folder /proc: "),
    ];
    for (args, says) in cases {
        let mut command = weave(folder.path());
        command.args(["generate", "x", "--timeout=5", "--socket"]).arg(path("quiet.sock"));
        command.arg("-o").args(args);
        let run = run(command);
        assert_eq!((run.status, run.stdout.as_str()), (Some(1), ""), "{args:?}: {}", run.stderr);
        assert!(run.stderr.contains(says), "{says}: {}", run.stderr);
        assert!(!run.stderr.contains(".part"), "{}", run.stderr);
        assert!(run.stderr.contains("-o FILE"), "what to do: {}", run.stderr);
    }
    assert!(listener.accept().is_err(), "somebody was called");
    assert_eq!(
        names(folder.path()),
        [
            "dangling.png",
            "device.png",
            "dir",
            "into.png",
            "loop.png",
            "mine.png",
            "old.png",
            "pipe.png",
            "quiet.sock"
        ]
    );
    assert_eq!(fs::read(path("old.png")).unwrap(), b"old");
}

#[test]
fn force_replaces_a_file_and_a_failure_leaves_it() {
    let folder = folder();
    let target = folder.path().join("cat.png");
    fs::write(&target, "old").unwrap();

    let fake = Fake::serving(|stream, request| send(stream, &error(request.id(), 500, 9, "")));
    let mut command = generate(folder.path(), &fake.path());
    command.arg("--force");
    assert_eq!(run(command).status, Some(7));
    assert_eq!(fs::read(&target).unwrap(), b"old");

    let fake = good_daemon();
    let mut command = generate(folder.path(), &fake.path());
    command.arg("--force");
    assert_eq!(run(command).status, Some(0));
    assert_eq!(decode(&fs::read(&target).unwrap()).size, (64, 64));
    assert_eq!(names(folder.path()), ["cat.png"]);
}

#[test]
fn a_file_that_appears_meanwhile_is_left_alone() {
    let folder = folder();
    let target = folder.path().join("cat.png");
    let theirs = target.clone();
    let fake = Fake::serving(move |stream, request| {
        fs::write(theirs, "theirs").unwrap();
        send(stream, &Response::good(request.id()).bytes());
    });
    let run = run(generate(folder.path(), &fake.path()));
    assert_eq!(run.status, Some(1), "{}", run.stderr);
    assert_eq!(fs::read(&target).unwrap(), b"theirs");
    let [theirs, kept] = names(folder.path()).try_into().unwrap();
    assert_eq!(theirs, "cat.png");
    let says = format!("cat.png has appeared meanwhile and was left alone; the image is in {kept} (seed 7)");
    assert!(run.stderr.contains(&says), "{}", run.stderr);
    assert_eq!(decode(&fs::read(folder.path().join(kept)).unwrap()).size, (64, 64));
}

/// A daemon that has a request and keeps it, and the command that waits for it.
fn waiting(folder: &Path, partial: usize) -> (Fake, Child) {
    let (has_it, wait) = channel();
    let fake = Fake::serving(move |stream, request: Request| {
        send(stream, &Response::good(request.id()).bytes()[..partial]);
        has_it.send(()).unwrap();
        until_closed(stream);
    });
    let mut command = generate(folder, &fake.path());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait.recv().unwrap();
    (fake, child)
}

pub(crate) const INTERRUPTED: &str =
    "weave: interrupted; the daemon stops drawing for it, unless its setting abandoned is \"finish\"";

#[test]
fn an_interrupt_leaves_nothing_behind() {
    for (signal, status, partial) in
        [(Signal::INT, 130, 0), (Signal::TERM, 143, 0), (Signal::QUIT, 131, 0), (Signal::INT, 130, 5000)]
    {
        let folder = folder();
        let (fake, child) = waiting(folder.path(), partial);
        kill_process(Pid::from_child(&child), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(status));
        let stderr = String::from_utf8(output.stderr).unwrap();
        // Not always last: the daemon may have the request before the command has said so.
        assert!(stderr.contains(INTERRUPTED) && !stderr.contains("panicked"), "{stderr}");
        assert_eq!(names(folder.path()), <[String; 0]>::default());
        fake.end();
    }
}

#[test]
fn nobody_reads_the_result() {
    let folder = folder();
    let (go, told_to_go) = channel();
    let fake = Fake::serving(move |stream, request| {
        told_to_go.recv().unwrap();
        send(stream, &Response::good(request.id()).bytes());
    });
    let mut command = generate(folder.path(), &fake.path());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    go.send(()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "the file is there");
    assert!(!String::from_utf8(output.stderr).unwrap().contains("panicked"));
    assert_eq!(names(folder.path()), ["cat.png"]);
}

#[test]
fn nobody_reads_the_image() {
    let folder = folder();
    let (go, told_to_go) = channel();
    let fake = Fake::serving(move |stream, request| {
        told_to_go.recv().unwrap();
        send(stream, &Response::good(request.id()).bytes());
    });
    let mut command = weave(folder.path());
    command.args(["generate", "x", "-o-", "--width=64", "--height=64", "--socket"]).arg(fake.path());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    go.send(()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("can't write to standard output") && !stderr.contains("panicked"), "{stderr}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_result_that_cannot_be_written_is_a_failure() {
    let folder = folder();
    let fake = good_daemon();
    let mut command = generate(folder.path(), &fake.path());
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = command.stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("can't write to standard output: No space"));
    assert_eq!(names(folder.path()), ["cat.png"], "the image is there all the same");
}

#[test]
fn ping_says_whether_the_daemon_answers() {
    let folder = folder();
    let fake = Fake::serving(|stream, request| send(stream, &error(request.id(), 400, 3, "model_id")));
    let mut command = weave(folder.path());
    command.args(["ping", "--socket"]).arg(fake.path());
    let run_ = run(command);
    assert_eq!((run_.status, run_.stderr.as_str()), (Some(0), ""));
    let time = run_.stdout.strip_prefix(&format!("{}: answered in ", fake.path().display())).unwrap();
    assert!(time.strip_suffix(" ms\n").unwrap().parse::<f64>().unwrap() < 5000.0);

    let fake = Fake::serving(|stream, request| send(stream, &error(request.id(), 400, 3, "model_id")));
    let mut command = weave(folder.path());
    command.args(["ping", "--json", "--socket"]).arg(fake.path());
    let said: serde_json::Value = serde_json::from_str(&run(command).stdout).unwrap();
    assert_eq!(said["address"], fake.path().to_str().unwrap());
    assert!(said["seconds"].as_f64().unwrap() < 5.0);

    let fake = Fake::serving(|stream, _| send(stream, &error(0, 500, 23, "too many connections")));
    let mut command = weave(folder.path());
    command.args(["ping", "--socket"]).arg(fake.path());
    assert_eq!(run(command).status, Some(4));

    let fake = Fake::serving(|stream, request| send(stream, &error(request.id(), 400, 4, "no such size")));
    let mut command = weave(folder.path());
    command.args(["ping", "--socket"]).arg(fake.path());
    let refused = run(command);
    assert_eq!(refused.status, Some(3));
    assert!(refused.stderr.contains("speaks Weave, but answers a ping with"), "{}", refused.stderr);

    let fake = Fake::serving(|stream, _| until_closed(stream));
    let mut command = weave(folder.path());
    command.args(["ping", "--timeout=0.1", "--socket"]).arg(fake.path());
    assert_eq!(run(command).status, Some(5));
}

/// A terminal: the end that the test holds, and the end for a command.
pub(crate) fn terminal() -> (File, File) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    (master.into(), File::options().read(true).write(true).open(name).unwrap())
}

#[test]
fn no_image_is_written_into_a_terminal() {
    let folder = folder();
    let (_master, slave) = terminal();
    let mut command = weave(folder.path());
    command.args(["generate", "x", "-o", "-", "--socket", "none"]).stdout(slave);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("standard output is a terminal"));
}

/// Reads what a command writes until `words` are in it, or until it ends.
pub(crate) fn read_until(master: &mut File, words: &str) -> String {
    let (mut seen, mut buf) = (Vec::new(), [0; 1024]);
    while !String::from_utf8_lossy(&seen).contains(words) {
        // A terminal whose other end is closed fails.
        match master.read(&mut buf) {
            Ok(count) if count > 0 => seen.extend(&buf[..count]),
            _ => break,
        }
    }
    String::from_utf8(seen).unwrap()
}

#[test]
fn on_a_terminal_a_line_moves_and_goes_away() {
    for interrupt in [false, true] {
        let folder = folder();
        let (go, told_to_go) = channel::<()>();
        let (has_it, wait) = channel();
        let fake = Fake::serving(move |stream, request| {
            has_it.send(()).unwrap();
            if told_to_go.recv().is_ok() {
                send(stream, &Response::good(request.id()).bytes());
            } else {
                until_closed(stream);
            }
        });
        let (mut master, slave) = terminal();
        let mut command = generate(folder.path(), &fake.path());
        command.env("TERM", "xterm").stdout(Stdio::piped()).stderr(slave);
        let child = command.spawn().unwrap();
        drop(command);
        let shown = read_until(&mut master, "64×64, 28 steps, cfg 7, seed 7, ");
        assert!(shown.contains("seed 7, "), "{shown:?}");
        wait.recv().unwrap();
        if interrupt {
            drop(go);
            kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        } else {
            go.send(()).unwrap();
        }
        let rest = read_until(&mut master, "nothing that comes");
        let output = child.wait_with_output().unwrap();
        let last = rest.rsplit("\x1b[2K").next().unwrap();
        if interrupt {
            assert_eq!(output.status.code(), Some(130));
            assert_eq!(last, format!("{INTERRUPTED}\r\n"), "{rest:?}");
        } else {
            assert_eq!(output.status.code(), Some(0));
            assert_eq!(last, "", "{rest:?}");
        }
        assert!(!shown.contains("\x1b[3"), "no colours: {shown:?}");
        fake.end();
    }
}

/// An administrative socket that answers each call with the next of these bodies, the last one for ever.
/// It ends with the test.
fn figures(status: u16, bodies: impl IntoIterator<Item = String> + Send + 'static) -> Fake {
    let bodies: Vec<_> = bodies.into_iter().collect();
    Fake::listening(move |listener| {
        let mut at = 0;
        loop {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            // As a daemon does that has no such page.
            if [&b"GET /requests "[..], b"GET /model "].iter().any(|page| head.starts_with(page)) {
                send(&mut stream, b"HTTP/1.1 404 X\r\nConnection: close\r\n\r\n");
                continue;
            }
            assert!(head.starts_with(b"GET /stats HTTP/1.1\r\n"));
            let body = bodies.get(at).or(bodies.last()).unwrap();
            at += 1;
            send(&mut stream, format!("HTTP/1.1 {status} X\r\nConnection: close\r\n\r\n{body}").as_bytes());
        }
    })
}

/// What a daemon might say that has made so many images, in twice as many seconds.
fn some_figures(images: u32) -> String {
    format!(
        r#"{{"weave_build_info": {{"1.2.3": 1}}, "weave_engine_info": {{"pattern": 1}},
            "weave_ready": 1, "weave_queue_length": 5, "weave_queue_limit": 64,
            "weave_requests_total": {{"image": {images}, "busy": 0}},
            "weave_worker_phase": {{"0": 3, "1": 1, "2": 0}},
            "weave_worker_step": {{"0": 7, "1": 0, "2": 0}},
            "weave_worker_steps": {{"0": 28, "1": 0, "2": 0}},
            "weave_generation_seconds":
                {{"count": {images}, "sum": {}, "buckets": {{"5": {images}, "+Inf": {images}}}}},
            "weave_sent_bytes_total": {images}000000}}"#,
        2 * images
    )
}

#[test]
fn stats_are_a_table_or_json() {
    let folder = folder();
    let fake = figures(200, [some_figures(10)]);
    let stats = |more: &[&str]| {
        let mut command = weave(folder.path());
        command.arg("stats").arg("--admin-socket").arg(fake.path()).args(more);
        let run = run(command);
        assert_eq!((run.status, run.stderr.as_str()), (Some(0), ""));
        run.stdout
    };
    let table = stats(&[]);
    let line = |name: &str| {
        let line = table.lines().find(|line| line.split("  ").next() == Some(name)).unwrap();
        line[name.len()..].trim_start().to_owned()
    };
    assert_eq!(line("weave_queue_length"), "5");
    assert_eq!(line("weave_requests_total{image}"), "10");
    assert_eq!(line("weave_generation_seconds"), "10 times, 2.000 s each");
    let json: serde_json::Value = serde_json::from_str(&stats(&["--json"])).unwrap();
    assert_eq!(json["weave_generation_seconds"]["buckets"]["5"], 10);

    // Where the socket is looked for.
    let admin = folder.path().join("weave-admin.sock");
    std::os::unix::fs::symlink(fake.path(), &admin).unwrap();
    for (variable, flags) in [
        (None, vec!["--socket", "weave.sock"]),
        (Some(("WEAVE_SOCKET", folder.path().join("weave.sock"))), vec![]),
        (Some(("WEAVE_ADMIN_SOCKET", admin)), vec![]),
        // What is said on the command line comes before what is said in the environment.
        (Some(("WEAVE_ADMIN_SOCKET", "nowhere".into())), vec!["--socket", "weave.sock"]),
    ] {
        let mut command = weave(folder.path());
        command.arg("stats").args(&flags).envs(variable.clone());
        assert_eq!(run(command).status, Some(0), "{variable:?} {flags:?}");
    }
}

#[test]
fn what_is_no_administrative_socket_is_told_apart() {
    let folder = folder();
    let status = |command: &str, path: &Path| {
        let mut weave = weave(folder.path());
        weave.arg(command).arg("--admin-socket").arg(path);
        run(weave).status
    };
    for command in ["stats", "top"] {
        assert_eq!(status(command, &folder.path().join("nothing")), Some(69));
        assert_eq!(status(command, &figures(200, ["[]".to_owned()]).path()), Some(76));
        assert_eq!(status(command, &figures(404, [some_figures(1)]).path()), Some(76));
        let weave = Fake::listening(|listener: UnixListener| {
            let (mut stream, _) = listener.accept().unwrap();
            send(&mut stream, &error(0, 400, 1, "no Weave frame"));
        });
        assert_eq!(status(command, &weave.path()), Some(76));
    }
}

#[test]
fn top_shows_one_table_after_the_other() {
    let folder = folder();
    let fake = figures(200, [some_figures(10), some_figures(20)]);
    let mut command = weave(folder.path());
    command.args(["top", "--count=3", "--interval=0.1", "--admin-socket"]).arg(fake.path());
    let run = run(command);
    assert_eq!((run.status, run.stderr.as_str()), (Some(0), ""));
    let tables: Vec<_> = run.stdout.split("weaved 1.2.3 (pattern) at ").skip(1).collect();
    assert_eq!(tables.len(), 3);
    let row = |table: usize, name: &str| {
        let line = tables[table].lines().find(|line| line.starts_with(name)).unwrap();
        line[10..].split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(row(0, "waiting")[..3], ["5", "of", "64,"]);
    let workers: Vec<_> = tables[0].lines().filter(|line| line.starts_with("worker ")).collect();
    assert_eq!(workers, ["worker 0  samples, 7 of 28", "worker 1  loads its model", "worker 2  idle"]);
    assert_eq!(
        (row(0, "image"), row(0, "at work")),
        (vec!["10".into(), "-".into()], vec!["2.0".into(), "s".into(), "-".into()])
    );
    assert_eq!(row(1, "image")[0], "20");
    // Ten in a tenth of a second, if the machine has nothing else to do.
    let rate: f64 = row(1, "image")[1].parse().unwrap();
    assert!(rate > 0.1 && rate <= 100.0, "{rate}");
    assert_eq!(row(1, "at work").join(" "), "2.0 s 2.0 s");
    assert_eq!(
        (row(2, "image"), row(2, "at work").join(" ")),
        (vec!["20".into(), "0.0".into()], "2.0 s -".into())
    );
}

#[test]
fn top_leaves_the_terminal_as_it_was() {
    use rustix::termios::tcgetattr;
    use std::io::Write;

    let folder = folder();
    let fake = figures(200, [some_figures(10)]);
    for signal in [None, Some(Signal::INT), Some(Signal::TERM)] {
        let (mut master, slave) = terminal();
        let before = tcgetattr(&slave).unwrap().local_modes;
        let mut command = weave(folder.path());
        // An interval that only a key or a signal ends in time.
        command.args(["top", "--interval=3600", "--admin-socket"]).arg(fake.path()).env("TERM", "xterm");
        command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        drop(command);
        let shown = read_until(&mut master, "q: leave");
        assert!(
            shown.starts_with("\x1b[?1049h\x1b[?25l") && shown.contains("waiting        5 of 64"),
            "{shown:?}"
        );
        assert_ne!(tcgetattr(&slave).unwrap().local_modes, before);
        match signal {
            Some(signal) => kill_process(Pid::from_child(&child), signal).unwrap(),
            None => master.write_all(b"xq").unwrap(),
        }
        let output = in_time(move || child.wait_with_output()).unwrap();
        assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()), "{signal:?}");
        assert_eq!(tcgetattr(&slave).unwrap().local_modes, before);
        let rest = read_until(&mut master, "\x1b[?1049l");
        assert!(rest.ends_with("\x1b[?25h\x1b[?1049l"), "{rest:?}");
    }
}

/// Those of an editor's shell, of cron with a terminal.
#[test]
fn a_terminal_that_knows_no_control_sequences_gets_none() {
    for term in [Some("dumb"), Some(""), None] {
        let folder = folder();
        let fake = figures(200, [some_figures(10)]);
        let (mut master, slave) = terminal();
        let mut command = weave(folder.path());
        command
            .args(["top", "--count=2", "--interval=0.1", "--admin-socket"])
            .arg(fake.path())
            .env_remove("TERM");
        command.envs(term.map(|term| ("TERM", term)));
        command.stdin(slave.try_clone().unwrap()).stdout(slave);
        let child = command.spawn().unwrap();
        drop(command);
        let shown = read_until(&mut master, "nothing that comes");
        assert!(shown.contains("waiting        5 of 64") && !shown.contains('\x1b'), "{shown:?}");
        assert_eq!(in_time(move || child.wait_with_output()).unwrap().status.code(), Some(0));
    }
}

#[test]
fn top_ends_when_nobody_reads_it() {
    let folder = folder();
    let fake = figures(200, [some_figures(10)]);
    let mut command = weave(folder.path());
    command.args(["top", "--interval=0.01", "--admin-socket"]).arg(fake.path()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(in_time(move || child.wait()).unwrap().code(), Some(0));
}

/// The daemon is another program: these are the same words only if somebody looks.
#[test]
fn top_asks_for_what_the_daemon_has() {
    let top = include_str!("../../src/top.rs");
    let mut daemon = String::new();
    let mut folders =
        vec![Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../weave-daemon/src")).to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            match entry.is_dir() {
                true => folders.push(entry),
                false => daemon += &fs::read_to_string(entry).unwrap_or_default(),
            }
        }
    }
    let names: Vec<_> = top
        .split('"')
        .filter(|text| text.starts_with("weave_") || text.starts_with("process_"))
        .map(|text| text.split('/').next().unwrap())
        .collect();
    assert!(names.len() > 15);
    for name in names {
        assert!(daemon.contains(&format!("\"{name}\"")), "{name}");
    }
}

#[test]
fn a_daemon_may_be_at_a_tcp_port_and_want_a_token() {
    let folder = folder();
    let digits = "0123456789abcdef".repeat(4);
    let file = folder.path().join("token");
    fs::write(&file, format!("{digits}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp://localhost:{}", listener.local_addr().unwrap().port());
    for (flag, variable) in [(None, None), (Some(&file), None), (None, Some(&file))] {
        let mut command = weave(folder.path());
        command.args(["ping", "--socket", &address]);
        if let Some(file) = flag {
            command.arg("--token-file").arg(file);
        }
        if let Some(file) = variable {
            command.env("WEAVE_TOKEN_FILE", file);
        }
        let token = flag.or(variable).is_some();
        let listener = listener.try_clone().unwrap();
        let daemon = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // Without a token the first byte is the first of a frame.
            if !token {
                let request = Request::read(&mut stream);
                return stream.write_all(&error(request.id(), 400, 3, "model_id")).unwrap();
            }
            let mut said = vec![0; 78];
            stream.read_exact(&mut said).unwrap();
            let proof = "0".repeat(64);
            stream.write_all(format!("weave-auth 1 {proof} {proof}\n").as_bytes()).unwrap();
            // It goes without more words, and so that weaved notices at once: with a reset.
            let ended = stream.read_to_end(&mut said).map_err(|error| error.kind());
            assert!(matches!(ended, Ok(_) | Err(io::ErrorKind::ConnectionReset)), "{ended:?}");
            let said = String::from_utf8(said).unwrap();
            assert!(said.starts_with("weave-auth 1 ") && said.len() == 78, "{said}");
        });
        let run = run(command);
        daemon.join().unwrap();
        if token {
            assert_eq!(run.status, Some(76), "{}", run.stderr);
            let words = format!("what listens at {address} doesn't know the token, so nothing was asked");
            assert!(run.stderr.contains(&words), "{}", run.stderr);
        } else {
            assert_eq!(run.status, Some(0), "{}", run.stderr);
            assert!(run.stdout.starts_with(&format!("{address}: answered in ")), "{}", run.stdout);
        }
    }
    drop(listener);

    let fails = |args: &[&str], status, words: &str| {
        let mut command = weave(folder.path());
        command.arg("ping").args(args);
        let run = run(command);
        assert_eq!(run.status, Some(status), "{args:?}: {}", run.stderr);
        assert!(run.stderr.contains(words), "{args:?}: {}", run.stderr);
    };
    fails(&["--socket", &address], 69, &format!("no daemon answers at {address} (Connection refused"));
    fails(&["--socket", "tcp://127.0.0.1"], 69, "invalid socket address");
    let file = file.to_str().unwrap();
    fails(&["--socket", "here.sock", "--token-file", file], 2, "a Unix socket needs no token");
    fails(&["--socket", &address, "--token-file", "none"], 2, "can't read the token in none: No such file");
    fs::write(file, &digits[1..]).unwrap();
    fails(&["--socket", &address, "--token-file", file], 2, "64 hexadecimal digits");
}

/// What a daemon says does nothing to a terminal, nor to what stands around it.
#[test]
fn nobody_elses_words_are_obeyed() {
    let folder = folder();
    let evil = "\u{1b}[31mred\u{9b}\u{202e}back\u{2028}line\u{feff}";
    let fake = Fake::serving(move |stream, request| send(stream, &error(request.id(), 400, 6, evil)));
    let refused = run(generate(folder.path(), &fake.path()));
    assert_eq!(refused.status, Some(3), "{}", refused.stderr);
    let shown = "\\u{1b}[31mred\\u{9b}\\u{202e}back\\u{2028}line\\u{feff}";
    assert!(refused.stderr.contains(shown), "{}", refused.stderr);
    fake.end();

    let figures =
        || figures(200, [serde_json::json!({evil: 1, "weave_build_info": {evil: 1}, "a": evil}).to_string()]);
    let asked = |args: &[&str]| {
        let fake = figures();
        let mut command = weave(folder.path());
        command.args(args).arg("--admin-socket").arg(fake.path());
        run(command).stdout
    };
    for args in [&["stats"][..], &["top", "--count=1"]] {
        let shown = asked(args);
        assert!(shown.contains("\\u{202e}back"), "{args:?}: {shown}");
        assert!(shown.chars().all(|c| c == '\n' || weave_client::weave_core::text::is_shown(c)), "{shown:?}");
    }
    // JSON stays what it is.
    let json = asked(&["stats", "--json"]);
    assert!(json.chars().all(|c| c == '\n' || weave_client::weave_core::text::is_shown(c)), "{json:?}");
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["a"], evil);

    // A file that somebody has named so.
    let name = "\u{202e}gnp.tac";
    let run = run({
        let mut command = weave(folder.path());
        command.args(["verify", name]);
        command
    });
    assert!(run.stderr.contains("can't read \\u{202e}gnp.tac"), "{}", run.stderr);
}
