//! What a worker can still do once it is in its sandbox.
//!
//! A sandbox can't be left, so that whoever tries it out is this program, started again: as the test
//! that is ignored otherwise.

mod harness;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use harness::{Daemon, Log, wait};
use rustix::process::Pid;
use weave_daemon::sandbox::{self, Build, Rules};

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

fn attempt(when: &str, what: &str, result: io::Result<()>) {
    let told = match result {
        Ok(()) => "done".to_owned(),
        Err(error) => format!("{:?}", error.kind()),
    };
    println!("> {when}{what}: {told}");
}

#[test]
#[ignore = "part of another test"]
fn try_everything() {
    let folder = test_folder();
    let port = fs::read_to_string(folder.join("port")).unwrap();
    let parent = rustix::process::getppid().unwrap();
    // The test's own name stands there already.
    println!();
    if std::env::var_os("WEAVE_TEST_OUTSIDE").is_some() {
        try_once("", &folder, &port, parent);
        return;
    }
    let entered = sandbox::enter(&Rules { build: Build::Cpu, ..Rules::new(&[&folder.join("model")]) });
    println!("> kept: {:?}", entered.missing());
    attempt("", "write within the system", File::create("/usr/lib/weave-test").map(drop));
    try_once("", &folder, &port, parent);
    println!("> settled: {:?}", entered.settle().is_ok());
    try_once("later: ", &folder, &port, parent);
}

fn try_once(when: &str, folder: &Path, port: &str, parent: Pid) {
    let at = |name: &str| folder.join(name);
    let attempt = |what: &str, result| attempt(when, what, result);
    attempt("read the model", fs::read(at("model")).map(drop));
    attempt("read another file", fs::read(at("secret")).map(drop));
    attempt("list the folder", fs::read_dir(folder).map(drop));
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
    attempt("use a socket pair", UnixStream::pair().map(drop));
    attempt("signal the parent", rustix::process::test_kill_process(parent).map_err(Into::into));
    attempt("look into the parent", fs::read(format!("/proc/{}/environ", parent.as_raw_nonzero())).map(drop));
    let script = format!("echo >{}", at("by-sh").display());
    let write = Command::new("sh").arg("-c").arg(script).status();
    attempt("have a shell write", write.map(|status| assert!(status.success())));

    attempt("use /dev/null", File::create("/dev/null").and_then(|mut null| null.write_all(b"x")));
    attempt("read the processors", fs::read("/proc/cpuinfo").map(drop));
    attempt("list /sys", fs::read_dir("/sys/devices").map(drop));
    let thread = std::thread::Builder::new().spawn(|| ());
    attempt("start a thread", thread.map(|thread| thread.join().unwrap()));
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
        let lines = text.lines().filter_map(|line| line.strip_prefix("> ")?.rsplit_once(": "));
        lines.map(|(what, told)| (what.to_owned(), told.to_owned())).collect::<BTreeMap<_, _>>()
    };
    let inside = run(false);
    if inside["kept"] != "[]" {
        eprintln!("NOT CHECKED: this kernel has not all it takes: {}", inside["kept"]);
        return;
    }
    let allowed = ["read the model", "read the processors", "start a thread", "later: start a thread"];
    assert_eq!(inside["settled"], "true");
    for (what, told) in inside.iter().filter(|(what, _)| !["kept", "settled"].contains(&what.as_str())) {
        let expected = if allowed.contains(&what.as_str()) { "done" } else { "PermissionDenied" };
        assert_eq!(told, expected, "{what}");
    }
    // Without the sandbox the same attempts succeed, so it is the sandbox that they fail of.
    let outside = run(true);
    for (what, told) in &outside {
        assert_eq!(told, "done", "{what}");
    }
    // Inside all are tried twice, and three things more.
    assert_eq!(inside.len(), 2 * outside.len() + 3, "{inside:?}");
}

/// Runs what `WEAVE_TEST_COMMAND` says in the sandbox of a build for GPUs. To try a driver by hand:
/// `WEAVE_TEST_COMMAND=vulkaninfo cargo test --test sandbox -- --ignored --exact run_a_command --nocapture`
#[test]
#[ignore = "to be run by hand, on a machine with a graphics device"]
fn run_a_command() {
    let command = std::env::var("WEAVE_TEST_COMMAND").unwrap();
    // What it takes to be another program, which no worker becomes.
    let also = [libc::SYS_execve, libc::SYS_wait4, libc::SYS_set_tid_address, libc::SYS_setpgid];
    let entered = sandbox::enter(&Rules { build: Build::Gpu, also: &also, ..Rules::new(&[]) });
    assert_eq!(entered.missing(), [""; 0]);
    let error = Command::new("sh").arg("-c").arg(format!("exec {command}")).exec();
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
    // Of the filters one makes `clone3` missing, one is the list, and one the shorter list.
    assert_eq!(status(worker, ["NoNewPrivs", "Seccomp", "Seccomp_filters"]), ["1", "2", "3"]);
    // What CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH are, if it is root's.
    let [capabilities] = status(worker, ["CapPrm"]);
    assert_eq!(u64::from_str_radix(&capabilities, 16).unwrap() & !0b110, 0);
    let own = daemon.child.id().try_into().unwrap();
    let here = rustix::process::getpid().as_raw_nonzero().get();
    assert_eq!(status(own, ["Seccomp"]), status(here, ["Seccomp"]));

    let daemon = Daemon::pattern(&["--sandbox=off", "--log=debug"]);
    daemon.assert_serves();
    let [worker] = daemon.workers()[..] else { panic!() };
    assert_eq!(status(worker, ["NoNewPrivs", "Seccomp"]), status(here, ["NoNewPrivs", "Seccomp"]));
    daemon.log.wait("this worker is not sandboxed: sandbox is off");

    let daemon = Daemon::pattern(&["--isolation=thread"]);
    daemon.log.wait("it is not sandboxed");
    daemon.assert_serves();
}

/// A daemon that was started in a terminal, with descriptors and variables that are nobody else's business.
#[test]
fn a_worker_has_its_stream_its_log_and_its_page_and_nothing_else_of_the_daemon() {
    let folder = harness::private_folder();
    let socket = folder.path().join("weave.sock");
    let secret = File::create(folder.path().join("secret")).unwrap();
    rustix::io::fcntl_setfd(&secret, rustix::io::FdFlags::empty()).unwrap();
    let mut command = harness::weaved();
    command.args(["--engine=pattern", "--pattern=gradient", "--socket"]).arg(&socket).stdin(Stdio::null());
    let secrets = [
        ("OPENAI_API_KEY", "sk-0"),
        ("AWS_SECRET_ACCESS_KEY", "1"),
        ("SSH_AUTH_SOCK", "/s"),
        ("NOTIFY", "2"),
    ];
    // Whoever prints to the terminal can also type in it.
    command.envs(secrets).env("LC_TIME", "C").stdout(Stdio::piped());
    let daemon = Daemon::run(&mut command, &socket);
    daemon.assert_serves();
    let [worker] = daemon.workers()[..] else { panic!() };
    let proc = |file: &str| fs::read(format!("/proc/{worker}/{file}")).unwrap();

    let link =
        |number: &str| fs::read_link(format!("/proc/{worker}/fd/{number}")).unwrap().display().to_string();
    let (stream, log) = (link("0"), link("2"));
    assert!(stream.starts_with("socket:") && log.starts_with("pipe:"), "{stream} {log}");
    let expected = [stream, "/dev/null".to_owned(), log, "/memfd:weaved-scoreboard (deleted)".to_owned()];
    assert_eq!(link("1"), "/dev/null");
    for entry in fs::read_dir(format!("/proc/{worker}/fd")).unwrap() {
        let number = entry.unwrap().file_name().into_string().unwrap();
        assert!(expected.contains(&link(&number)), "{number}: {}", link(&number));
    }

    let environment = String::from_utf8(proc("environ")).unwrap();
    for (name, _) in secrets {
        assert!(!environment.contains(name), "{environment}");
    }
    let names: Vec<_> =
        environment.split('\0').filter_map(|pair| pair.split_once('=')).map(|(name, _)| name).collect();
    assert!(names.contains(&"WEAVED_SCOREBOARD") && names.contains(&"LC_TIME"), "{names:?}");

    // Process group, session, and terminal, after the name in parentheses, state and parent.
    let stat = String::from_utf8(proc("stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    assert_eq!(fields[2..5], [&*worker.to_string(), &*worker.to_string(), "0"], "{stat}");

    let limits = String::from_utf8(proc("limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let fields: Vec<_> = line.split_whitespace().collect();
        assert_eq!(fields[0], fields[1], "{name}: it could be raised");
        fields[0].to_owned()
    };
    for (name, most) in [
        ("Max core file size", "0"),
        ("Max file size", "16"),
        ("Max open files", "256"),
        ("Max locked memory", "0"),
        ("Max msgqueue size", "0"),
        ("Max nice priority", "0"),
        ("Max realtime priority", "0"),
    ] {
        assert_eq!(limit(name), most, "{name}");
    }
    for name in ["Max processes", "Max data size"] {
        assert_ne!(limit(name), "unlimited", "{name}");
    }
}

/// Goes on as `weaved` with these words on a kernel that has neither Landlock nor seccomp's filters.
#[test]
#[ignore = "part of another test"]
fn be_weaved_on_an_old_kernel() {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    let calls = [libc::SYS_landlock_create_ruleset, libc::SYS_seccomp].map(|call| (call, Vec::new()));
    let missing = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(calls.into(), SeccompAction::Allow, missing, arch).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
    let words = std::env::var("WEAVE_TEST_WORDS").unwrap();
    let error = harness::weaved().args(words.split_whitespace()).arg(test_folder().join("sock")).exec();
    panic!("{error}");
}

fn on_an_old_kernel(words: &str, folder: &Path) -> Command {
    let mut command = this_program_as("be_weaved_on_an_old_kernel", folder);
    command.env("WEAVE_TEST_WORDS", words).stdin(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn what_the_kernel_cannot_do_is_one_line_and_no_failure() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("sock")).unwrap();
    let words = "worker --engine=pattern --pattern=gradient --sandbox=on --connect";
    let mut child = on_an_old_kernel(words, folder.path()).spawn().unwrap();
    let log = Log::default();
    log.follow(child.stderr.take().unwrap());
    let mut client = harness::Client::new(listener.accept().unwrap().0);
    client.send(1, "old", 1);
    client.expect_gradient(1, "old", 1);
    let line = log.wait("the sandbox is incomplete");
    assert!(
        line.starts_with("WARN ") && line.contains("no Landlock") && line.contains("system calls ("),
        "{line}"
    );
    drop(client);
    let mut rest = String::new();
    child.stdout.take().into_iter().for_each(|mut out| drop(out.read_to_string(&mut rest)));
    assert_eq!(wait(&mut child).code(), Some(0));
    assert_eq!(log.all().matches("WARN").count(), 1, "{}", log.all());
}

#[test]
fn who_requires_the_sandbox_is_served_in_it_or_not_at_all() {
    let folder = harness::private_folder();
    let inside = Daemon::pattern(&["--sandbox=require"]);
    inside.assert_serves();
    let [worker] = inside.workers()[..] else { panic!() };
    assert_eq!(status(worker, ["Seccomp"]), ["2"]);

    let refused =
        "sandbox is \"require\", but a worker would keep files (this kernel has no Landlock), system calls (";
    for words in [
        "serve --engine=pattern --sandbox=require --socket",
        "worker --engine=pattern --sandbox=require --connect",
    ] {
        let listener =
            words.starts_with("worker").then(|| UnixListener::bind(folder.path().join("sock")).unwrap());
        let output = on_an_old_kernel(words, folder.path()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{words}: {said}");
        assert!(said.contains(refused) && !said.contains("listening"), "{words}: {said}");
        drop(listener);
    }
    fs::remove_file(folder.path().join("sock")).unwrap();

    let check = |sandbox: &str| {
        let words = format!("check --engine=pattern --sandbox={sandbox} --socket");
        let output = on_an_old_kernel(&words, folder.path()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, said) = check("require");
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains(&format!("error sandbox: {refused}")), "{said}");
    let (code, said) = check("on");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("warn  sandbox: incomplete"), "{said}");
    assert!(check("off").1.contains("note  sandbox: off"));

    let mut thread = harness::weaved();
    thread.args(["--engine=pattern", "--isolation=thread", "--sandbox=require", "--socket"]);
    let output = thread.arg(folder.path().join("sock")).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stderr).contains("isolation must be process"), "{output:?}");
}
