//! Whom the command talks to, whose files it believes, and that what it writes is its own.

use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};

use crate::command::{folder, names, run, weave};
use crate::fake::{Fake, Request, Response, send, until_closed};

/// A user who is neither root nor this one.
const STRANGER: u32 = 4242;

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("NOT CHECKED: only root can listen as somebody else");
    }
    is_root
}

fn generate(folder: &Path, socket: &Path) -> Command {
    let mut command = weave(folder);
    command.args(["generate", "a secret", "-o", "cat.png", "--width=64", "--height=64", "--seed=7"]);
    command.args(["--timeout=20", "--socket"]).arg(socket);
    command
}

/// A daemon of somebody else, who writes down all that comes.
fn spy() -> Fake<Vec<u8>> {
    Fake::of(STRANGER, |listener| {
        let (mut stream, _) = listener.accept().unwrap();
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard);
        heard
    })
}

#[test]
fn a_socket_of_somebody_else_hears_nothing() {
    if !is_root() {
        return;
    }
    let folder = folder();
    for subcommand in [&["generate", "a secret"][..], &["ping"], &["stats"], &["top"], &["bench"]] {
        let spy = spy();
        let mut command = weave(folder.path());
        command.args(subcommand);
        command.arg(if matches!(subcommand, ["stats" | "top"]) { "--admin-socket" } else { "--socket" });
        command.arg(spy.path());
        let run = run(command);
        assert_eq!(spy.end(), b"", "{subcommand:?}");
        assert_eq!(run.status, Some(77), "{subcommand:?}: {}", run.stderr);
        for words in ["belongs to uid 4242", "nothing was sent", "--server-uid 4242"] {
            assert!(run.stderr.contains(words), "{subcommand:?}: {}", run.stderr);
        }
    }
    assert_eq!(names(folder.path()), <[String; 0]>::default());
}

#[test]
fn a_user_who_was_named_may_be_the_daemon() {
    if !is_root() {
        return;
    }
    let folder = folder();
    let serve = || {
        Fake::of(STRANGER, |listener| {
            let (mut stream, _) = listener.accept().unwrap();
            let request = Request::read(&mut stream);
            send(&mut stream, &Response::good(request.id()).bytes());
        })
    };
    let fake = serve();
    let mut command = generate(folder.path(), &fake.path());
    command.args(["--server-uid", "4242"]);
    let run_ = run(command);
    assert_eq!(run_.status, Some(0), "{}", run_.stderr);
    let fake = serve();
    let mut command = generate(folder.path(), &fake.path());
    command.arg("--force").env("WEAVE_SERVER_UID", "4242");
    let run_ = run(command);
    assert_eq!(run_.status, Some(0), "{}", run_.stderr);
    let spy = spy();
    let mut command = generate(folder.path(), &spy.path());
    command.args(["--force", "--server-uid", "4243"]);
    assert_eq!(run(command).status, Some(77));
    assert_eq!(spy.end(), b"");
    for wrong in ["weave", "-1", "4294967296", ""] {
        let mut command = weave(folder.path());
        command.args(["ping", "--socket=x", &format!("--server-uid={wrong}")]);
        assert_eq!(run(command).status, Some(2), "{wrong}");
    }
}

#[test]
fn a_token_file_that_others_may_know_is_refused() {
    let folder = folder();
    let file = folder.path().join("token");
    fs::write(&file, "0123456789abcdef".repeat(4)).unwrap();
    let refused = |path: &Path, by_variable: bool, words: &str| {
        let mut command = weave(folder.path());
        command.args(["ping", "--socket", "tcp://127.0.0.1:9"]);
        match by_variable {
            true => command.env("WEAVE_TOKEN_FILE", path),
            false => command.arg("--token-file").arg(path),
        };
        let run = run(command);
        assert_eq!(run.status, Some(2), "{words}: {}", run.stderr);
        assert!(run.stderr.contains(words), "{words}: {}", run.stderr);
        assert!(!run.stderr.contains("01234567"), "{}", run.stderr);
    };
    for mode in [0o644, 0o660, 0o620, 0o604] {
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        for by_variable in [false, true] {
            refused(&file, by_variable, &format!("has mode {mode:04o}"));
        }
    }
    // It doesn't wait for who might write.
    let pipe = folder.path().join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    refused(&pipe, false, "is a pipe");
    refused(folder.path(), false, "is a folder");
    // A private file in a folder where others could put theirs.
    let open = folder.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
    let file = open.join("token");
    fs::write(&file, "0123456789abcdef".repeat(4)).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    refused(&file, false, "has mode 0777");
}

#[test]
fn a_killed_command_leaves_nothing() {
    let folder = folder();
    let (has_it, wait) = channel();
    let fake = Fake::serving(move |stream, _: Request| {
        has_it.send(()).unwrap();
        until_closed(stream);
    });
    let mut command = generate(folder.path(), &fake.path());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait.recv().unwrap();
    assert_eq!(names(folder.path()), <[String; 0]>::default());
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    child.wait().unwrap();
    assert_eq!(names(folder.path()), <[String; 0]>::default());
    fake.end();
}

/// Whoever may write to the folder does with each name in it what can be done.
#[test]
fn what_is_written_is_the_image_whoever_may_write_to_the_folder() {
    for force in [false, true] {
        let folder = folder();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
        let theirs = folder.path().join("theirs");
        if force {
            // Replaced itself, and not what it leads to.
            fs::write(&theirs, "theirs").unwrap();
            symlink("theirs", folder.path().join("cat.png")).unwrap();
        }
        let within = folder.path().to_owned();
        let fake = Fake::serving(move |stream, request: Request| {
            for name in names(&within).iter().filter(|name| name.starts_with(".weave")) {
                fs::remove_file(within.join(name)).unwrap();
                fs::write(within.join(name), "theirs").unwrap();
            }
            send(stream, &Response::good(request.id()).bytes());
        });
        let mut command = generate(folder.path(), &fake.path());
        if force {
            command.arg("--force");
        }
        let run = run(command);
        assert_eq!(run.status, Some(0), "{}", run.stderr);
        let image = folder.path().join("cat.png");
        assert!(fs::read(&image).unwrap().starts_with(b"\x89PNG"));
        assert_eq!((fs::symlink_metadata(&image).unwrap().nlink(), image.is_symlink()), (1, false));
        if force {
            assert_eq!(fs::read_to_string(&theirs).unwrap(), "theirs");
        }
        let expected: &[&str] = if force { &["cat.png", "theirs"] } else { &["cat.png"] };
        assert_eq!(names(folder.path()), expected);
        fake.end();
    }
}
