//! What somebody who runs `weaved` has to do with: systemd, settings, logs, signals.

mod harness;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use harness::{Daemon, PATIENCE, wait, weaved};
use rustix::process::Signal;
use weave_core::error::ErrorCode;

// -------------------------------------------------------------------- systemd

/// systemd's end of `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    fn new(socket: UnixDatagram) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, heard: Vec::new() }
    }

    /// The next message that begins so; those in between are kept in `heard`.
    fn wait(&mut self, beginning: &str) -> String {
        loop {
            let mut bytes = [0; 4096];
            let n = self.socket.recv(&mut bytes).unwrap_or_else(|error| {
                panic!("{beginning:?} was not heard: {error}; but {:?}", self.heard);
            });
            let text = str::from_utf8(&bytes[..n]).unwrap().to_owned();
            self.heard.push(text.clone());
            if text.starts_with(beginning) {
                return text;
            }
        }
    }

    fn count(&self, text: &str) -> usize {
        self.heard.iter().filter(|heard| heard.contains(text)).count()
    }
}

#[test]
fn systemd_hears_that_it_is_ready_that_it_lives_that_it_reloads_and_that_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let (path, socket) = (folder.path().join("notify"), folder.path().join("run/weave.sock"));
    let mut manager = Manager::new(UnixDatagram::bind(&path).unwrap());
    let mut command = weaved();
    command.args(["--engine=pattern", "--pattern=gradient", "--faults=hang@stop", "--drain-timeout=7"]);
    command.arg("--socket").arg(&socket).env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
    let mut daemon = Daemon::run(&mut command, &socket);
    assert_eq!(manager.wait("READY"), "READY=1\n");
    assert_eq!(manager.heard.len(), 1, "nothing is said before that");
    // Nothing else wakes the loop.
    for _ in 0..4 {
        assert_eq!(manager.wait("WATCHDOG"), "WATCHDOG=1\n");
    }
    assert!(manager.count("STATUS=0 running, 0 waiting, 0 answered\n") == 1, "{:?}", manager.heard);

    daemon.assert_serves();
    assert_eq!(manager.wait("STATUS"), "STATUS=0 running, 0 waiting, 1 answered\n");
    let mut client = daemon.connect();
    client.send(1, "stop", 1);
    client.send(2, "behind it", 1);
    while manager.wait("STATUS") != "STATUS=1 running, 1 waiting, 1 answered\n" {}

    let environment = fs::read(format!("/proc/{}/environ", daemon.workers()[0])).unwrap();
    let environment = String::from_utf8_lossy(&environment);
    assert!(!environment.contains("NOTIFY_SOCKET") && !environment.contains("WATCHDOG"), "{environment}");

    daemon.signal(Signal::HUP);
    let reloading = manager.wait("RELOADING");
    let micros = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().trim_end();
    assert!(micros.parse::<u64>().unwrap() > 0);
    assert_eq!(manager.wait("READY"), "READY=1\n");

    daemon.signal(Signal::TERM);
    assert_eq!(manager.wait("STOPPING"), "STOPPING=1\nEXTEND_TIMEOUT_USEC=17000000\n");
    let before = manager.count("WATCHDOG=1");
    manager.wait("WATCHDOG");
    assert_eq!(manager.count("WATCHDOG=1"), before + 1, "while it drains, too");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn abstract_addresses_and_other_processes_watchdogs_are_understood() {
    let name = format!("weaved-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let mut manager = Manager::new(UnixDatagram::bind_addr(&address).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("run/weave.sock");
    let mut command = weaved();
    command.args(["--engine=pattern", "--pattern=gradient"]).arg("--socket").arg(&socket);
    command.env("NOTIFY_SOCKET", format!("@{name}")).env("WATCHDOG_USEC", "1").env("WATCHDOG_PID", "1");
    let mut daemon = Daemon::run(&mut command, &socket);
    manager.wait("READY");
    daemon.assert_serves();
    daemon.signal(Signal::TERM);
    manager.wait("STOPPING");
    assert_eq!(manager.count("WATCHDOG"), 0);
    assert_eq!(daemon.wait().code(), Some(0));

    // Nobody there any more: that is no reason not to serve.
    drop(manager);
    Daemon::run(&mut command, &socket).assert_serves();
}

/// A command whose descriptors from 3 on are these, as systemd would have it.
fn handed(descriptors: [OwnedFd; 2], count: usize, names: &str) -> Command {
    let [three, four] = descriptors;
    let mut command = Command::new("sh");
    command
        .arg("-c")
        // `$$` stays what it is through exec.
        .arg("exec 3<&0 4<&1 </dev/null >/dev/null; LISTEN_PID=$$ exec \"$@\"")
        .args(["sh", env!("CARGO_BIN_EXE_weaved"), "--no-config", "--engine=pattern", "--pattern=gradient"])
        .stdin(three)
        .stdout(four)
        .env("LISTEN_FDS", count.to_string())
        .env("LISTEN_FDNAMES", names)
        .env("XDG_RUNTIME_DIR", "/nonexistent");
    command
}

#[test]
fn a_listener_that_was_handed_over_is_used_and_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weave.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let again =
        || [OwnedFd::from(listener.try_clone().unwrap()), fs::File::open("/dev/null").unwrap().into()];
    // Who connects before the daemon is there waits for it.
    let early = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let mut daemon = Daemon::run(&mut handed(again(), 1, "weave.socket"), &path);
    assert!(daemon.log.all().contains(&format!("listening on {}, which was handed over", path.display())));
    let mut early = harness::Client::new(early);
    early.send(1, "early", 1);
    early.expect_gradient(1, "early", 1);
    daemon.assert_serves();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(path.exists(), "it is not ours to remove");

    // The next one takes it over from systemd, with what has come in between.
    let between = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let _daemon = Daemon::run(&mut handed(again(), 1, "weave.socket"), &path);
    let mut between = harness::Client::new(between);
    between.send(1, "between", 1);
    between.expect_gradient(1, "between", 1);
}

#[test]
fn what_was_handed_over_and_cannot_be_listened_on_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let listener = |name: &str| OwnedFd::from(UnixListener::bind(folder.path().join(name)).unwrap());
    let file = || OwnedFd::from(fs::File::open("/dev/null").unwrap());
    let datagram = OwnedFd::from(UnixDatagram::unbound().unwrap());
    let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    for (descriptors, count, names, words) in [
        ([file(), file()], 1, "x", "descriptor 3 (x)"),
        ([datagram, file()], 1, "x", "descriptor 3 (x)"),
        ([stream.into(), file()], 1, "x", "no Unix stream socket that listens"),
        (
            [listener("a"), listener("b")],
            2,
            "x:y",
            "descriptor 4 (y) was handed over to listen on, but there is",
        ),
        ([listener("c"), file()], 1, "x:y", "LISTEN_FDNAMES"),
        ([listener("d"), file()], 90, "x", "LISTEN_FDS"),
    ] {
        let output = handed(descriptors, count, names).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{text}");
        assert!(text.contains(words), "{text}");
    }
}

// -------------------------------------------------------------------- settings

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn config_shows_every_setting_and_where_it_comes_from() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weaved.toml");
    fs::write(&file, "\nqueue = 5\nvae = \"a \\\"b\\\\\\u0007.gguf\"\nstall_timeout = 1.5\n").unwrap();
    let run = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weaved"));
        command.arg("config").arg("--config").arg(&file).args(["--log", "debug"]).args(more);
        let output = command.env_clear().env("WEAVE_CONNECTIONS", "7").output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        stdout(&output)
    };
    let text = run(&[]);
    for line in
        ["queue = 5", "connections = 7", "log = \"debug\"", "stall_timeout = 1.5", "drain_timeout = 60"]
    {
        assert!(text.lines().any(|found| found.starts_with(line)), "{line}: {text}");
    }
    let origin = |name: &str| {
        let line = text.lines().find(|line| line.trim_start_matches('#').starts_with(&format!("{name} =")));
        line.unwrap().rsplit_once(" # ").unwrap().1.to_owned()
    };
    assert_eq!(origin("queue"), format!("{}:2", file.display()));
    assert_eq!((origin("connections"), origin("log")), ("WEAVE_CONNECTIONS".into(), "--log".into()));
    assert_eq!(
        (origin("drain_timeout"), origin("threads")),
        ("default".into(), "default: half of the processors".into())
    );

    // The same once more from its own output, and as JSON.
    let copy = folder.path().join("copy.toml");
    fs::write(&copy, &text).unwrap();
    let again = Command::new(env!("CARGO_BIN_EXE_weaved")).arg("config").arg("--config").arg(&copy).output();
    let values = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.rsplit_once(" # ").unwrap().0.to_owned()).collect()
    };
    assert_eq!(values(&stdout(&again.unwrap())), values(&text));
    let json: serde_json::Value = serde_json::from_str(&run(&["--json"])).unwrap();
    let json = json.as_array().unwrap();
    assert_eq!(json.len(), text.lines().count());
    let of = |name: &str| json.iter().find(|setting| setting["name"] == name).unwrap();
    assert_eq!(of("queue")["value"], "5");
    assert_eq!((&of("queue")["kind"], &of("queue")["live"]), (&"file".into(), &false.into()));
    assert_eq!(of("vae")["value"], folder.path().join("a \"b\\\u{7}.gguf").to_str().unwrap());
    assert_eq!((&of("threads")["value"], &of("threads")["origin"]), (&().into(), &().into()));
    assert_eq!(of("log")["live"], true);
}

fn check(flags: &[&str]) -> (Option<i32>, String) {
    let output = weaved().arg("check").args(flags).output().unwrap();
    (output.status.code(), stdout(&output))
}

#[test]
fn check_says_what_is_good_and_what_is_not_and_makes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let socket = run.join("weave.sock");
    let socket = socket.to_str().unwrap();
    let (code, text) = check(&["--engine=pattern", "--socket", socket]);
    assert_eq!(code, Some(0), "{text}");
    for line in ["good   settings: ", "good   engine: pattern", "good   device: ", "good   connections: 256"]
    {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(text.contains(&format!("good   socket: {socket}\n")), "{text}");
    assert!(text.contains(&format!("good   admin_socket: {}/admin.sock\n", run.display())), "{text}");
    assert!(!run.exists(), "it only looks");

    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let open = folder.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let long = format!("/tmp/{}", "x".repeat(120));
    let in_a_file = file.join("x.sock");
    for (path, words) in [
        (file.as_path(), "exists and is not a socket"),
        (&open.join("x.sock"), "can be written by others"),
        (Path::new(&long), "socket: /tmp/xxx"),
        (&in_a_file, "is no folder"),
    ] {
        let (code, text) = check(&["--engine=pattern", "--socket", path.to_str().unwrap()]);
        assert_eq!(code, Some(78), "{text}");
        assert!(text.lines().any(|line| line.starts_with("wrong  socket") && line.contains(words)), "{text}");
    }
    let nowhere =
        weaved().args(["check", "--engine=pattern"]).env_remove("XDG_RUNTIME_DIR").output().unwrap();
    let (code, text) = (nowhere.status.code(), stdout(&nowhere));
    assert!(code == Some(78) && text.contains("wrong  socket: no place"), "{text}");
    let (code, text) = check(&["--engine=pattern", "--socket", socket, "--connections=65536"]);
    assert_eq!(code, Some(0));
    assert!(text.contains("connections: 65536 at once"), "{text}");

    fs::write(&file, "queue = 0\n").unwrap();
    let (code, text) = check(&["--config", file.to_str().unwrap()]);
    assert!(
        code == Some(78) && text.contains("wrong  settings: ") && text.contains("file:1: queue"),
        "{text}"
    );
    // The command line is another matter.
    assert_eq!(check(&["--queue=0"]).0, Some(2));

    let daemon = Daemon::pattern(&[]);
    let (code, text) = check(&["--engine=pattern", "--socket", daemon.socket.to_str().unwrap()]);
    assert!(code == Some(0) && text.contains("somebody listens there now"), "{text}");
    daemon.assert_serves();
}

#[test]
fn sighup_changes_what_can_be_changed_and_names_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weaved.toml");
    fs::write(&file, "queue = 5\ngeneration_timeout = 3600\nlog = \"info\"\n").unwrap();
    let daemon =
        Daemon::pattern(&["--config", file.to_str().unwrap(), "--faults=hang@stop", "--stall-timeout=9"]);
    let mut client = daemon.connect();

    daemon.signal(Signal::HUP);
    daemon.log.wait("read the settings again: nothing changed");
    for (bad, words) in [
        ("generation_timeout = 0.2\nqueue = 0\n", "weaved.toml:2: queue is \"0\""),
        ("generation_timeout = 0.2\nqeue = 1\n", "weaved.toml:2: there is no setting"),
        ("generation_timeout = \n", "weaved.toml:1:"),
    ] {
        fs::write(&file, bad).unwrap();
        daemon.signal(Signal::HUP);
        let line = daemon.log.wait(words);
        assert!(line.starts_with("ERROR the settings stay as they were: "), "{line}");
    }
    fs::remove_file(&file).unwrap();
    daemon.signal(Signal::HUP);
    daemon.log.wait("can't read the settings in");
    daemon.assert_serves();

    fs::write(&file, "queue = 6\ngeneration_timeout = 0.2\nlog = \"debug\"\nstall_timeout = 1\n").unwrap();
    daemon.signal(Signal::HUP);
    // The flag comes before the file, as it always does.
    daemon.log.wait("read the settings again: generation_timeout, log changed");
    let line = daemon.log.wait("only a restart");
    assert!(line.starts_with("WARN ") && line.ends_with(": queue"), "{line}");
    client.send(1, "stop", 1);
    let text = client.expect_error(1, ErrorCode::Timeout);
    assert!(text.contains("limit of 0.2 s"), "{text}");
    daemon.assert_serves();
}

// -------------------------------------------------------------------- logs

#[test]
fn the_journal_gets_levels_and_everybody_else_words() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("run/weave.sock");
    let lines = |is_journal: bool| {
        let (reader, writer) = std::io::pipe().unwrap();
        let file = rustix::fs::fstat(writer.as_fd()).unwrap();
        let stream = format!("{}:{}", file.st_dev, file.st_ino + u64::from(!is_journal));
        let mut command = weaved();
        command.args(["--engine=pattern", "--faults=fail@now"]).arg("--socket").arg(&socket);
        command.env("JOURNAL_STREAM", stream).stdin(Stdio::null()).stderr(writer);
        let mut child = command.spawn().unwrap();
        drop(command);
        let mut lines = BufReader::new(reader).lines().map(Result::unwrap);
        let mut seen = Vec::new();
        let mut until = |words: &str| loop {
            let line = lines.next().expect("the log goes on");
            seen.push(line.clone());
            if line.contains(words) {
                return line;
            }
        };
        let listening = until("listening on");
        let mut client = harness::Client::new(std::os::unix::net::UnixStream::connect(&socket).unwrap());
        client.send(1, "now", 1);
        let failed = until("told to fail");
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).unwrap();
        until("stopped");
        wait(&mut child);
        (listening, failed, seen)
    };
    let (listening, failed, seen) = lines(true);
    assert!(listening.starts_with("<6>listening on") && failed.starts_with("<3>request 1: "), "{seen:?}");
    assert!(seen.iter().all(|line| line.starts_with('<')), "{seen:?}");
    let (listening, failed, seen) = lines(false);
    assert!(
        listening.starts_with("INFO  listening on") && failed.starts_with("ERROR request 1: "),
        "{seen:?}"
    );
}

#[test]
fn prompts_are_logged_only_where_that_was_asked_for() {
    for isolation in ["process", "thread"] {
        let isolation = format!("--isolation={isolation}");
        let secret = "a very\nprivate \u{1b}[31mthing";
        for asked in [false, true] {
            let asked_flag = format!("--log-prompts={asked}");
            let daemon = Daemon::pattern(&["--log=trace", &isolation, &asked_flag]);
            let mut client = daemon.connect();
            client.send(1, secret, 1);
            client.expect_gradient(1, secret, 1);
            daemon.log.wait("request 1: done");
            if asked {
                let line = daemon.log.wait("private");
                assert!(line.ends_with("request 1: prompt \"a very\\nprivate \\u{1b}[31mthing\""), "{line}");
            }
            assert_eq!(daemon.log.all().contains("private"), asked, "{}", daemon.log.all());
        }
    }
}
