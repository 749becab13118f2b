//! An image that was made isn't lost, whatever becomes of the place that was meant for it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;

use rustix::process::{Pid, Signal, kill_process};

use crate::command::{INTERRUPTED, decode, folder, good_daemon, names, no_daemon, run, weave};
use crate::fake::{Fake, Request, Response, in_time, send, until_closed};

fn generate(folder: &Path, socket: &Path, args: &[&str]) -> Command {
    let mut command = weave(folder);
    command
        .args(["generate", "a cat", "--size=64x64", "--seed=7", "--timeout=20", "--socket"])
        .arg(socket)
        .args(args);
    command
}

#[test]
fn a_folder_that_goes_away_leaves_the_image_among_temporary_files() {
    let (folder, temporary) = (folder(), folder());
    let gone = folder.path().join("gone");
    fs::create_dir(&gone).unwrap();
    let fake = Fake::serving({
        let gone = gone.clone();
        move |stream, request| {
            fs::remove_dir_all(gone).unwrap();
            send(stream, &Response::good(request.id()).bytes());
        }
    });
    let mut command = generate(folder.path(), &fake.path(), &["-q", "-o", "gone/cat.png"]);
    command.env("TMPDIR", temporary.path());
    let run = run(command);
    assert_eq!((run.status, run.stdout.as_str()), (Some(1), ""));
    let [kept] = names(temporary.path()).try_into().unwrap();
    assert!(kept.starts_with("weave-7-") && kept.ends_with(".png"), "{kept}");
    assert!(run.stderr.contains("can't write gone/cat.png: No such file or directory"), "{}", run.stderr);
    assert!(
        run.stderr.contains(&format!("{kept} (seed 7)")) && !run.stderr.contains(".part"),
        "{}",
        run.stderr
    );
    assert_eq!(decode(&fs::read(temporary.path().join(kept)).unwrap()).size, (64, 64));
    fake.end();
}

/// With nowhere to keep it, the seed is said at least.
#[test]
fn what_can_not_be_kept_can_be_made_again() {
    let folder = folder();
    fs::create_dir(folder.path().join("gone")).unwrap();
    let gone = folder.path().join("gone");
    let fake = Fake::serving(move |stream, request| {
        fs::remove_dir_all(gone).unwrap();
        send(stream, &Response::good(request.id()).bytes());
    });
    let mut command = generate(folder.path(), &fake.path(), &["-q", "-o", "gone/cat.png"]);
    command.env("TMPDIR", folder.path().join("none"));
    let run = run(command);
    assert_eq!(run.status, Some(1));
    assert!(
        run.stderr.contains("the image is lost (seed 7)") && run.stderr.contains("--seed"),
        "{}",
        run.stderr
    );
    fake.end();
}

/// The second of three images finds that somebody has made a folder of its name.
#[test]
fn one_of_several_that_has_lost_its_place_is_kept() {
    let folder = folder();
    let taken = folder.path().join("cat-2.png");
    let fake = Fake::serving(move |stream, first| {
        let second = Request::read(stream);
        fs::create_dir(taken).unwrap();
        send(stream, &Response::good(second.id()).bytes());
        let _ = first;
        until_closed(stream);
    });
    let run = run(generate(folder.path(), &fake.path(), &["-n3", "-o", "cat.png"]));
    assert_eq!(run.status, Some(1), "{}", run.stderr);
    assert!(run.stderr.contains("cat-2.png is a folder; the image is in weave-8-"), "{}", run.stderr);
    assert_eq!(names(folder.path()).len(), 2);
    fake.end();
}

/// A file may have no bytes at all: that is found out before anybody is asked, and doesn't end the program with a signal.
#[test]
#[cfg(target_os = "linux")]
fn no_room_is_found_out_before_anybody_is_called() {
    let folder = folder();
    let listener = no_daemon(folder.path());
    let mut command = Command::new("sh");
    command.current_dir(folder.path()).stdin(Stdio::null()).env_remove("WEAVE_SOCKET");
    command.args(["-c", "ulimit -f 0; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_weave")]);
    command.args(["generate", "a cat", "-q", "-ocat.png", "--socket", "quiet.sock", "--timeout=5"]);
    let run = run(command);
    assert_eq!(run.status, Some(1), "{}", run.stderr);
    assert!(run.stderr.contains("has no room for an image of up to 0.9 MB"), "{}", run.stderr);
    assert!(listener.accept().is_err(), "somebody was called");
    assert_eq!(names(folder.path()), ["quiet.sock"]);
}

/// A closed terminal ends it as Ctrl-C does, but not what was started with nohup.
#[test]
fn a_closed_terminal_leaves_nothing_behind() {
    for (nohup, status) in [(false, Some(129)), (true, Some(0))] {
        let folder = folder();
        let (has_it, wait) = channel();
        let (go, told_to_go) = channel::<()>();
        let fake = Fake::serving(move |stream, request: Request| {
            has_it.send(()).unwrap();
            match told_to_go.recv() {
                Ok(()) => send(stream, &Response::good(request.id()).bytes()),
                Err(_) => until_closed(stream),
            }
        });
        // Whatever the tests were started with.
        let mut command = Command::new("env");
        command.current_dir(folder.path()).stdin(Stdio::null());
        command.arg(if nohup { "--ignore-signal=HUP" } else { "--default-signal=HUP" });
        command.arg(env!("CARGO_BIN_EXE_weave"));
        command
            .args(["generate", "a cat", "--size=64x64", "--seed=7", "-ocat.png", "--socket"])
            .arg(fake.path());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait.recv().unwrap();
        kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
        if nohup {
            go.send(()).unwrap();
        }
        drop(go);
        let output = in_time(move || child.wait_with_output()).unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), status, "{stderr}");
        assert_eq!(stderr.contains(INTERRUPTED), !nohup, "{stderr}");
        assert_eq!(names(folder.path()).len(), usize::from(nohup), "{:?}", names(folder.path()));
        fake.end();
    }
}

#[test]
fn a_suffix_makes_the_file() {
    let beginnings: [(&str, &[u8]); 5] = [
        ("cat.jpg", b"\xFF\xD8\xFF"),
        ("cat.JPEG", b"\xFF\xD8\xFF"),
        ("cat.webp", b"RIFF"),
        ("cat.PNG", b"\x89PNG"),
        ("cat", b"\x89PNG"),
    ];
    for (name, beginning) in beginnings {
        let folder = folder();
        let fake = good_daemon();
        let run = run(generate(folder.path(), &fake.path(), &["-o", name]));
        assert_eq!(run.status, Some(0), "{}", run.stderr);
        assert!(fs::read(folder.path().join(name)).unwrap().starts_with(beginning), "{name}");
        fake.end();
    }
}

/// A name of which JSON could only tell something similar.
#[test]
#[cfg(target_os = "linux")]
fn json_names_the_file_or_nobody_is_called() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    let folder = folder();
    let listener = no_daemon(folder.path());
    let name = OsStr::from_bytes(b"n\xE9.png");
    for command in ["generate", "verify"] {
        let mut weave = weave(folder.path());
        weave.args([command, "--json", "--socket=quiet.sock"]);
        match command {
            "generate" => weave.args(["a cat", "-o"]).arg(name),
            _ => weave.arg(name),
        };
        let run = run(weave);
        assert_eq!(run.status, Some(2), "{command}: {}", run.stderr);
        assert!(run.stderr.contains("is not text in UTF-8, and JSON can't name the file"), "{}", run.stderr);
    }
    assert!(listener.accept().is_err(), "somebody was called");
}

/// A server that answers one request on a connection, and closes it.
#[test]
fn what_a_closed_connection_has_left_over_is_asked_again() {
    let folder = folder();
    let fake = Fake::listening(|listener| {
        let mut seeds = Vec::new();
        while seeds.len() < 3 {
            let (mut stream, _) = listener.accept().unwrap();
            let request = Request::read(&mut stream);
            seeds.push(request.u64(44));
            send(&mut stream, &Response::good(request.id()).bytes());
        }
        seeds
    });
    let run = run(generate(folder.path(), &fake.path(), &["-n3", "-o", "cat.png"]));
    assert_eq!(run.status, Some(0), "{}", run.stderr);
    assert_eq!(names(folder.path()), ["cat-1.png", "cat-2.png", "cat-3.png"]);
    let mut seeds = fake.end();
    seeds.sort_unstable();
    assert_eq!(seeds, [7, 8, 9]);
}
