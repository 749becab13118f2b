//! Another program as the worker: this one under another name, or a script around it.

#[path = "model/files.rs"]
mod files;
mod harness;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use harness::{Daemon, private_folder, weaved};
use rustix::process::Signal;
use weave_core::error::ErrorCode;

const WEAVED: &str = env!("CARGO_BIN_EXE_weaved");

/// A program that does what these lines of shell say.
fn script(folder: &Path, lines: &str) -> String {
    let path = folder.join("worker.sh");
    fs::write(&path, format!("#!/bin/sh\n{lines}\n")).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

/// A script that writes down what it is started with and goes on as a worker with these flags before the others.
fn recorder(folder: &Path, flags: &str) -> String {
    let args = folder.join("args");
    script(folder, &format!("printf '%s\\n' \"$@\" >{}\nexec {WEAVED} worker {flags} \"$@\"", args.display()))
}

#[test]
fn another_program_serves_with_the_same_settings() {
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("weaved-other");
    fs::copy(WEAVED, &other).unwrap();
    let mut daemon = Daemon::pattern(&["--worker-command", &format!("{} worker", other.display())]);
    daemon.assert_serves();
    let [worker] = daemon.workers()[..] else { panic!() };
    assert_eq!(fs::read_link(format!("/proc/{worker}/exe")).unwrap(), other);
    // It is supervised as our own is.
    daemon.kill_worker();
    daemon.log.wait("signal 9");
    daemon.assert_serves();
    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0));
}

/// The process that the daemon knows is the shell, and the engine's is not its own child.
#[test]
fn a_script_that_stays_in_between_is_no_hiding_place() {
    let folder = tempfile::tempdir().unwrap();
    let command = script(folder.path(), &format!("{WEAVED} worker \"$@\"\ntrue"));
    let flags = ["--worker-command", &command, "--faults=hang@hang"];
    let mut daemon = Daemon::pattern(&flags);
    let mut client = daemon.connect();
    client.send(1, "hang", 1);
    daemon.log.wait("request 1:");
    let [shell] = daemon.workers()[..] else { panic!() };
    let [worker] = harness::children(shell)[..] else { panic!() };
    daemon.signal(rustix::process::Signal::KILL);
    daemon.wait();
    harness::assert_gone_within_a_second(&[shell, worker]);

    // It is gone as well when the daemon has lost its patience.
    let daemon = Daemon::pattern(&[&flags[..], &["--generation-timeout=1", "--cancel-timeout=0.1"]].concat());
    let mut client = daemon.connect();
    client.send(1, "hang", 1);
    daemon.log.wait("request 1:");
    let [shell] = daemon.workers()[..] else { panic!() };
    let [worker] = harness::children(shell)[..] else { panic!() };
    client.expect_error(1, ErrorCode::Timeout);
    daemon.log.wait("was killed by signal 9");
    harness::assert_gone_within_a_second(&[shell, worker]);
    daemon.assert_serves();
}

/// A process that a script has left behind, with the worker's stream in its hands. Ended when dropped.
struct Leftover(i32);

impl Drop for Leftover {
    fn drop(&mut self) {
        // It may be gone.
        let _ = rustix::process::kill_process(rustix::process::Pid::from_raw(self.0).unwrap(), Signal::KILL);
    }
}

/// A daemon whose workers each leave such a process behind, which is started by these words.
fn with_leftovers(folder: &Path, start: &str, flags: &[&str]) -> (Daemon, impl Fn() -> Leftover) {
    let file = folder.join("leftover");
    let lines = format!(
        "case \"$*\" in *--version*) ;; *) exec 3<&0; {start} sleep 1000 <&3 & echo $! >{}.new; mv {0}.new {0};; esac\n\
         exec {WEAVED} worker \"$@\" 3<&-",
        file.display()
    );
    let command = script(folder, &lines);
    let daemon = Daemon::pattern(&[&["--worker-command", &command], flags].concat());
    (daemon, move || {
        harness::eventually("it is left behind", || file.exists());
        Leftover(fs::read_to_string(&file).unwrap().trim().parse().unwrap())
    })
}

#[test]
fn what_a_worker_leaves_behind_ends_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let (daemon, leftover) = with_leftovers(folder.path(), "", &["--faults=crash@crash"]);
    let mut client = daemon.connect();
    daemon.assert_serves();
    let first = leftover();
    client.send(1, "crash", 1);
    client.expect_error(1, ErrorCode::GpuError);
    harness::eventually("it is gone", || !harness::is_alive(first.0));
    daemon.assert_serves();
}

/// One that has left the worker's group can't be found, but its stream is over.
#[test]
fn what_a_worker_leaves_behind_keeps_nobody_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let (daemon, leftover) = with_leftovers(folder.path(), "setsid", &["--faults=crash@crash,slow=0.2"]);
    let mut client = daemon.connect();
    client.send(1, "crash", 1);
    let _first = leftover();
    client.expect_error(1, ErrorCode::GpuError);

    // What a dead worker had said goes to its client all the same.
    let [worker] = eventually_one(&daemon);
    client.write(&harness::sized_request(2, "whole", 7, 256, 256, 1));
    daemon.log.wait("request 2:");
    let _second = leftover();
    daemon.freeze();
    let written = || {
        let io = fs::read_to_string(format!("/proc/{worker}/io")).unwrap();
        io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap().parse::<u64>().unwrap()
    };
    harness::eventually("the image is written", || written() > 256 * 256 * 3);
    rustix::process::kill_process(rustix::process::Pid::from_raw(worker).unwrap(), Signal::KILL).unwrap();
    daemon.signal(Signal::CONT);
    let (id, pixels) = client.image();
    assert!(id == 2 && pixels == harness::sized_gradient("whole", 7, 256));
}

fn eventually_one(daemon: &Daemon) -> [i32; 1] {
    let mut workers = Vec::new();
    harness::eventually("a worker is there", || {
        workers = daemon.workers();
        workers.len() == 1
    });
    [workers[0]]
}

#[test]
fn it_gets_all_settings_but_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let command = recorder(folder.path(), "");
    let daemon = Daemon::pattern(&["--worker-command", &command, "--threads=3"]);
    daemon.assert_serves();
    let args = fs::read_to_string(folder.path().join("args")).unwrap();
    let args: Vec<_> = args.lines().collect();
    for flag in ["--no-config", "--engine=pattern", "--pattern=gradient", "--threads=3"] {
        assert!(args.contains(&flag), "{flag} is not in {args:?}");
    }
    assert!(!args.iter().any(|arg| arg.starts_with("--worker-command")), "{args:?}");
}

/// Builds for GPUs have another default than others: the router must not impose its own.
#[test]
fn the_sandbox_is_the_workers_own_default_unless_it_is_set() {
    let seccomp = |daemon: &Daemon| {
        daemon.assert_serves();
        let [worker] = daemon.workers()[..] else { panic!() };
        let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
        status.lines().find_map(|line| line.strip_prefix("Seccomp:\t").map(str::to_owned)).unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    let args = || fs::read_to_string(folder.path().join("args")).unwrap();
    // As if this build's default were off.
    let command = recorder(folder.path(), "--sandbox=off");
    let outside = seccomp(&Daemon::pattern(&["--worker-command", &command]));
    assert!(!args().contains("--sandbox"), "{}", args());
    assert_eq!(seccomp(&Daemon::pattern(&["--worker-command", &command, "--sandbox=on"])), "2");
    assert!(args().contains("--sandbox=on\n"), "{}", args());
    assert_eq!(seccomp(&Daemon::pattern(&["--sandbox=off"])), outside);
}

fn refused(flags: &[&str]) -> Output {
    let folder = private_folder();
    let socket = folder.path().join("sock");
    let output = weaved().arg("--socket").arg(&socket).args(flags).stdin(Stdio::null()).output().unwrap();
    assert!(!socket.exists(), "it has listened");
    output
}

#[test]
fn what_can_not_be_the_worker_is_refused_before_anybody_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let version = concat!("weaved ", env!("CARGO_PKG_VERSION"));
    let failing = "echo 'error while loading shared libraries: libcudart.so.13' >&2; exit 127";
    for (lines, reason) in [
        (Some("echo weaved 99.0.0"), format!("is weaved 99.0.0 and this is {version}: router and worker have to be of the same version")),
        (Some("echo hello"), r#"says "hello" when asked for its version, so it is no weaved"#.to_owned()),
        (Some(failing), "ended with exit code 127 when asked for its version, and said: error while loading shared libraries: libcudart.so.13".to_owned()),
        (None, "can't start /nonexistent/weaved-cuda: No such file or directory".to_owned()),
    ] {
        let command = lines.map_or("/nonexistent/weaved-cuda worker".to_owned(), |lines| script(path, lines));
        let output = refused(&["--engine=pattern", "--worker-command", &command]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert!(said.contains("worker_command: ") && said.contains(&reason), "{said}");
    }
    let output = refused(&["--engine=pattern", "--isolation=thread", "--worker-command", WEAVED]);
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stderr).contains("isolation must be process"), "{output:?}");
    let check = weaved()
        .args(["check", "--engine=pattern", "--isolation=thread", "--worker-command", WEAVED])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&check.stdout);
    assert!(said.contains("error worker_command: ") && said.contains("isolation must be process"), "{said}");
    let output = refused(&["--worker-command", " "]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");

    let check =
        weaved().args(["check", "--socket", "s", "--worker-command", "/nonexistent/w"]).output().unwrap();
    assert_eq!(check.status.code(), Some(78));
    let said = String::from_utf8_lossy(&check.stdout);
    assert!(said.contains("error worker_command: can't start /nonexistent/w: "), "{said}");
}

/// It is asked for one line.
#[test]
fn a_program_that_says_too_much_is_not_heard_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    for (lines, reason) in [
        ("exec yes hello", "was killed by signal 13 when asked for its version"),
        (
            "yes '\u{202e}evil' >&2; exit 1",
            "ended with exit code 1 when asked for its version, and said: evil",
        ),
    ] {
        let started = Instant::now();
        let output = refused(&["--engine=pattern", "--worker-command", &script(folder.path(), lines)]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{}", said.len());
        assert!(said.contains(reason) && said.len() < 1000, "{said:.1000}");
        assert!(started.elapsed() < Duration::from_secs(20), "it waited for more");
    }
}

/// The router's own program may have none of them.
#[test]
fn devices_that_the_settings_insist_on_are_the_other_programs() {
    let folder = private_folder();
    let worker = |names: &str| {
        let lines = format!("case \"$*\" in *--names*) {names};; esac\nexec {WEAVED} worker \"$@\"");
        script(folder.path(), &lines)
    };
    let check = |flags: &[&str]| {
        let output = weaved().arg("check").args(flags).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let socket = folder.path().join("weave.sock");
    let settings = |command| ["--require-gpu", "--worker-command", command];
    let flags = |command| [["--socket", socket.to_str().unwrap()].as_slice(), &settings(command)].concat();

    let command = worker("echo 'weaved: no GPU but a lamp' >&2; exit 1");
    let output = refused(&settings(&command));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), said.lines().last()), (Some(78), Some("weaved: no GPU but a lamp")));
    let (code, said) = check(&flags(&command));
    assert_eq!(code, Some(78));
    assert!(said.contains("error device: no GPU but a lamp\n"), "{said}");

    let command = worker("exit 0");
    let (code, said) = check(&flags(&command));
    assert_eq!(code, Some(0), "{said}");
    let mut daemon = Daemon::start_at(&socket, &settings(&command));
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0));
}

/// The same version, but built from another commit: only its flags tell.
#[test]
fn a_worker_that_does_not_know_a_setting_is_refused_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let output =
        refused(&["--engine=pattern", "--worker-command", &recorder(folder.path(), "--from-the-future=1")]);
    assert_eq!(output.status.code(), Some(78));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("exit code 2") && said.contains("there is no flag --from-the-future;"), "{said}");
}

/// A program that was replaced while its router runs.
#[test]
fn a_worker_that_has_changed_is_an_error_that_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let path = script(folder.path(), &format!("exec {WEAVED} worker \"$@\""));
    let daemon = Daemon::pattern(&["--worker-command", &path]);
    daemon.assert_serves();
    let new = folder.path().join("new");
    fs::create_dir(&new).unwrap();
    // At once, as a package manager does it.
    fs::rename(script(&new, &format!("exec {WEAVED} worker --from-the-future=1 \"$@\"")), &path).unwrap();
    daemon.kill_worker();
    let line = daemon.log.wait("--from-the-future");
    assert!(line.contains("there is no flag"), "{line}");
    let line = daemon.log.wait("exit code 2; it said last");
    assert!(line.contains("there is no flag --from-the-future;"), "{line}");
    let mut client = daemon.connect();
    client.send(1, "anyone?", 1);
    let Some(harness::Answer::Error { code, text, .. }) = client.answer() else { panic!() };
    assert!(code == ErrorCode::GpuError, "{code}: {text}");
}

/// A model file that is not the same for the next worker: the log says so, and what came of looking at it again.
#[test]
fn a_model_file_that_changes_between_two_workers_is_told() {
    use files::{F16, MEDIUM, checkpoint, clip_g, clip_l};
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let main = F16.write(at, "main", &checkpoint(MEDIUM, false));
    let encoder = F16.write(at, "l", &clip_l());
    // What it is to draw with is of no matter here.
    let lines =
        format!("exec {WEAVED} worker $(printf '%s\n' \"$@\" | grep -v -e --engine=) --engine=pattern");
    let [command, main_flag, encoder_flag] = [
        format!("--worker-command={}", script(at, &lines)),
        format!("--model={}", main.display()),
        format!("--clip-l={}", encoder.display()),
    ];
    let daemon =
        Daemon::start(&["--engine=sdcpp", "--pattern=gradient", &command, &main_flag, &encoder_flag]);
    daemon.assert_serves();
    daemon.kill_worker();
    daemon.log.wait("signal 9");
    daemon.assert_serves();
    assert!(!daemon.log.all().contains("has changed"), "{}", daemon.log.all());
    fs::rename(F16.write(at, "new", &clip_l()), &encoder).unwrap();
    daemon.kill_worker();
    let line = daemon.log.wait("has changed since weaved checked it: checking it again");
    assert!(line.contains(&format!("clip_l: {}", encoder.display())), "{line}");
    let line = daemon.log.wait("images are drawn with the changed file from now on");
    assert!(line.contains("SD 3.5 Medium"), "{line}");
    daemon.assert_serves();
    fs::rename(F16.write(at, "new", &clip_g()), &encoder).unwrap();
    daemon.kill_worker();
    let line = daemon.log.wait("the model can't be used any more");
    assert!(line.contains("is CLIP-G (hidden size 1280), and CLIP-L"), "{line}");
}

/// A router that can draw test pictures only has another engine in mind when it is given another worker.
#[test]
fn another_worker_is_for_the_real_engine_unless_told_otherwise() {
    let engine = |flags: &[&str]| {
        let output = weaved().arg("config").args(flags).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text.lines().find(|line| line.starts_with("engine =")).unwrap().to_owned();
        line.split('"').nth(1).unwrap().to_owned()
    };
    assert_eq!(engine(&["--worker-command=/w"]), "sdcpp");
    assert_eq!(engine(&["--worker-command=/w", "--engine=pattern"]), "pattern");
    assert_eq!(engine(&[]), if cfg!(feature = "sdcpp") { "sdcpp" } else { "pattern" });
}
