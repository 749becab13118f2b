//! What a worker can still do once it is in its sandbox.
//!
//! A sandbox can't be left, so that whoever tries it out is this program, started again: as the test
//! that is ignored otherwise.

mod harness;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use harness::{Daemon, Log, wait};
use weave_daemon::sandbox;

/// This program again, as this test of those that are ignored, with a folder to try things in.
fn this_program_as(test: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"]);
    command.env("WEAVE_TEST_FOLDER", folder).stdin(Stdio::null());
    command
}

fn test_folder() -> PathBuf {
    std::env::var_os("WEAVE_TEST_FOLDER").unwrap().into()
}

fn attempt(what: &str, result: io::Result<()>) {
    let told = match result {
        Ok(()) => "done".to_owned(),
        Err(error) => format!("{:?}", error.kind()),
    };
    println!("> {what}: {told}");
}

#[test]
#[ignore = "part of another test"]
fn try_everything() {
    let folder = test_folder();
    let at = |name: &str| folder.join(name);
    let port = fs::read_to_string(at("port")).unwrap();
    // The test's own name stands there already.
    println!();
    if std::env::var_os("WEAVE_TEST_OUTSIDE").is_none() {
        println!("> kept: {:?}", sandbox::enter(&[&at("model")]));
        attempt("write within the system", File::create("/usr/lib/weave-test").map(drop));
    }

    attempt("read the model", fs::read(at("model")).map(drop));
    attempt("read another file", fs::read(at("secret")).map(drop));
    attempt("list the folder", fs::read_dir(&folder).map(drop));
    attempt("write the model", OpenOptions::new().append(true).open(at("model")).map(drop));
    attempt("empty the model", OpenOptions::new().write(true).truncate(true).open(at("model")).map(drop));
    attempt("make a file", File::create(at("new")).map(drop));
    attempt("make a file elsewhere", tempfile::tempfile().map(drop));
    attempt("make a folder", fs::create_dir(at("folder")));
    attempt("make a link", std::os::unix::fs::symlink("model", at("link")));
    attempt("rename a file", fs::rename(at("secret"), at("renamed")));
    attempt("change a mode", fs::set_permissions(at("model"), fs::Permissions::from_mode(0o600)));
    attempt("remove a file", fs::remove_file(at("model")));

    attempt("connect by TCP", TcpStream::connect(format!("127.0.0.1:{port}")).map(drop));
    attempt("listen on TCP", TcpListener::bind("127.0.0.1:0").map(drop));
    attempt("use UDP", UdpSocket::bind("127.0.0.1:0").map(drop));
    attempt("connect to a Unix socket", UnixStream::connect(at("sock")).map(drop));
    attempt("use datagrams", UnixDatagram::unbound().map(drop));
    let parent = rustix::process::getppid().unwrap();
    attempt("signal the parent", rustix::process::test_kill_process(parent).map_err(Into::into));
    attempt("look into the parent", fs::read(format!("/proc/{}/environ", parent.as_raw_nonzero())).map(drop));
    let write =
        Command::new("sh").arg("-c").arg(format!("echo >{}", at("by-sh").display())).output().unwrap();
    attempt(
        "have a shell write",
        if write.status.success() { Ok(()) } else { Err(ErrorKind::PermissionDenied.into()) },
    );

    attempt("use /dev/null", File::create("/dev/null").and_then(|mut null| null.write_all(b"x")));
    attempt("read the processors", fs::read("/proc/cpuinfo").map(drop));
    attempt("list /sys", fs::read_dir("/sys/devices").map(drop));
    let thread = std::thread::Builder::new().spawn(|| ());
    attempt("start a thread", thread.map(|thread| thread.join().unwrap()));
    attempt("use a socket pair", UnixStream::pair().map(drop));
}

#[test]
fn a_worker_in_the_sandbox_reads_its_model_and_little_else() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let run = |outside: bool| {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path();
        fs::write(folder.join("port"), listener.local_addr().unwrap().port().to_string()).unwrap();
        fs::write(folder.join("model"), "model").unwrap();
        fs::write(folder.join("secret"), "secret").unwrap();
        let _listener = UnixListener::bind(folder.join("sock")).unwrap();
        let mut command = this_program_as("try_everything", folder);
        if outside {
            command.env("WEAVE_TEST_OUTSIDE", "1");
        }
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        if !outside {
            assert_eq!(fs::read_to_string(folder.join("model")).unwrap(), "model");
            assert!(!folder.join("by-sh").exists());
        }
        let lines = text.lines().filter_map(|line| line.strip_prefix("> ")?.split_once(": "));
        lines.map(|(what, told)| (what.to_owned(), told.to_owned())).collect::<BTreeMap<_, _>>()
    };
    let inside = run(false);
    if inside["kept"] != "[]" {
        eprintln!("NOT CHECKED: this kernel has not all it takes: {}", inside["kept"]);
        return;
    }
    let allowed = [
        "read the model",
        "use /dev/null",
        "read the processors",
        "list /sys",
        "start a thread",
        "use a socket pair",
    ];
    for (what, told) in inside.iter().filter(|(what, _)| *what != "kept") {
        let expected = match what.as_str() {
            what if allowed.contains(&what) => "done",
            // As if there were none.
            "connect to a Unix socket" => "NotFound",
            _ => "PermissionDenied",
        };
        assert_eq!(told, expected, "{what}");
    }
    // Without the sandbox the same attempts succeed, so it is the sandbox that they fail of.
    let outside = run(true);
    for (what, told) in &outside {
        assert_eq!(told, "done", "{what}");
    }
    // Two are tried in the sandbox only.
    assert_eq!(inside.len(), outside.len() + 2, "{inside:?}");
}

/// Runs what `WEAVE_TEST_COMMAND` says in the sandbox. To try a driver by hand:
/// `WEAVE_TEST_COMMAND=vulkaninfo cargo test --test sandbox -- --ignored --exact run_a_command --nocapture`
#[test]
#[ignore = "to be run by hand, on a machine with a graphics device"]
fn run_a_command() {
    let command = std::env::var("WEAVE_TEST_COMMAND").unwrap();
    assert_eq!(sandbox::enter(&[]), [""; 0]);
    let error = Command::new("sh").arg("-c").arg(command).exec();
    panic!("{error}");
}

/// Fields of `/proc/PID/status`.
fn status<const N: usize>(pid: i32, names: [&str; N]) -> [String; N] {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    names.map(|name| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap().trim().to_owned()
    })
}

#[test]
fn the_real_worker_is_in_it_and_the_daemon_is_not() {
    let daemon = Daemon::pattern(&["--log=debug"]);
    daemon.log.wait("in the sandbox");
    daemon.assert_serves();
    let [worker] = daemon.workers()[..] else { panic!() };
    assert_eq!(status(worker, ["NoNewPrivs", "Seccomp"]), ["1", "2"]);
    // What CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH are, if it is root's.
    let [capabilities] = status(worker, ["CapPrm"]);
    assert_eq!(u64::from_str_radix(&capabilities, 16).unwrap() & !0b110, 0);
    let own = daemon.child.id().try_into().unwrap();
    assert_eq!(
        status(own, ["Seccomp"]),
        status(rustix::process::getpid().as_raw_nonzero().get(), ["Seccomp"])
    );

    let daemon = Daemon::pattern(&["--sandbox=off", "--log=debug"]);
    daemon.assert_serves();
    let [worker] = daemon.workers()[..] else { panic!() };
    let here = rustix::process::getpid().as_raw_nonzero().get();
    assert_eq!(status(worker, ["NoNewPrivs", "Seccomp"]), status(here, ["NoNewPrivs", "Seccomp"]));
    assert!(!daemon.log.all().contains("sandbox"));

    let daemon = Daemon::pattern(&["--isolation=thread"]);
    daemon.log.wait("it is not sandboxed");
    daemon.assert_serves();
}

/// Goes on as `weaved worker` on a kernel that has neither Landlock nor seccomp's filters.
#[test]
#[ignore = "part of another test"]
fn be_a_worker_on_an_old_kernel() {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    let calls = [libc::SYS_landlock_create_ruleset, libc::SYS_seccomp].map(|call| (call, Vec::new()));
    let missing = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(calls.into(), SeccompAction::Allow, missing, arch).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
    let error = harness::weaved()
        .args(["worker", "--engine=pattern", "--pattern=gradient", "--connect"])
        .arg(test_folder().join("sock"))
        .exec();
    panic!("{error}");
}

#[test]
fn what_the_kernel_cannot_do_is_one_line_and_no_failure() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("sock")).unwrap();
    let mut command = this_program_as("be_a_worker_on_an_old_kernel", folder.path());
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let log = Log::default();
    log.follow(child.stderr.take().unwrap());
    let mut client = harness::Client::new(listener.accept().unwrap().0);
    client.send(1, "old", 1);
    client.expect_gradient(1, "old", 1);
    let line = log.wait("the sandbox is incomplete");
    assert!(
        line.starts_with("WARN ") && line.contains("no Landlock") && line.contains("network ("),
        "{line}"
    );
    drop(client);
    let mut rest = String::new();
    child.stdout.take().into_iter().for_each(|mut out| drop(out.read_to_string(&mut rest)));
    assert_eq!(wait(&mut child).code(), Some(0));
    assert_eq!(log.all().matches("WARN").count(), 1, "{}", log.all());
}
