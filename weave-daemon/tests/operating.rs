//! What somebody who runs `weaved` has to do with: systemd, settings, logs, signals.

mod harness;

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use harness::{Daemon, PATIENCE, admin, eventually, get, request, say, wait, weaved, without_time};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
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
fn a_daemon_that_stands_still_does_not_say_that_it_lives() {
    let folder = tempfile::tempdir().unwrap();
    let (path, socket) = (folder.path().join("notify"), folder.path().join("run/weave.sock"));
    let mut manager = Manager::new(UnixDatagram::bind(&path).unwrap());
    let mut command = weaved();
    command.args(["--engine=pattern", "--pattern=gradient", "--socket"]).arg(&socket);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "100000");
    let daemon = Daemon::run(&mut command, &socket);
    manager.wait("WATCHDOG");
    daemon.freeze();
    // What it has said before.
    manager.socket.set_nonblocking(true).unwrap();
    while manager.socket.recv(&mut [0; 256]).is_ok() {}
    manager.socket.set_nonblocking(false).unwrap();
    // systemd would end it after the first tenth of a second.
    manager.socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let heard = manager.socket.recv(&mut [0; 256]);
    assert_eq!(heard.map_err(|error| error.kind()), Err(ErrorKind::WouldBlock));
    manager.socket.set_read_timeout(Some(PATIENCE)).unwrap();
    daemon.signal(Signal::CONT);
    manager.wait("WATCHDOG");
    daemon.assert_serves();
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

#[test]
fn a_manager_that_does_not_listen_holds_up_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (path, socket) = (folder.path().join("notify"), folder.path().join("run/weave.sock"));
    let _deaf = UnixDatagram::bind(&path).unwrap();
    let mut command = weaved();
    command.args(["--engine=pattern", "--pattern=gradient"]).arg("--socket").arg(&socket);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "2000");
    let mut daemon = Daemon::run(&mut command, &socket);
    // More pings than any socket takes.
    let queue = fs::read_to_string("/proc/sys/net/unix/max_dgram_qlen").unwrap();
    let queue: f64 = queue.trim().parse().unwrap();
    eventually("it has pinged often", || metrics(&daemon)["weave_loop_turns_total"] > 2.0 * queue + 50.0);
    daemon.assert_serves();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0));
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
    let early = UnixStream::connect(&path).unwrap();
    let mut daemon = Daemon::run(&mut handed(again(), 1, "weave.socket"), &path);
    assert!(daemon.log.all().contains(&format!("listening on {} (passed by systemd)", path.display())));
    let mut early = harness::Client::new(early);
    early.send(1, "early", 1);
    early.expect_gradient(1, "early", 1);
    daemon.assert_serves();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(path.exists(), "it is not ours to remove");

    // The next one takes it over from systemd, with what has come in between.
    let between = UnixStream::connect(&path).unwrap();
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
    let (stream, _other) = UnixStream::pair().unwrap();
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
        ("default".into(), "default: the cores of this machine, shared between workers".into())
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
    let folder = harness::private_folder();
    let run = folder.path().join("run");
    let socket = run.join("weave.sock");
    let socket = socket.to_str().unwrap();
    let (code, text) = check(&["--engine=pattern", "--socket", socket]);
    assert_eq!(code, Some(0), "{text}");
    for line in
        ["ok    settings: ", "ok    engine: pattern", "ok    device: ", "ok    connections: up to 256"]
    {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(text.contains(&format!("ok    socket: {socket}\n")), "{text}");
    assert!(text.contains(&format!("ok    admin_socket: {}/weave-admin.sock\n", run.display())), "{text}");
    assert!(!run.exists(), "it only looks");

    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let open = folder.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
    let long = format!("/tmp/{}", "x".repeat(120));
    let in_a_file = file.join("x.sock");
    for (path, words) in [
        (file.as_path(), "exists and is not a socket"),
        (&open.join("x.sock"), "has mode 0777"),
        (Path::new(&long), "socket: /tmp/xxx"),
        (&in_a_file, "is not a folder"),
    ] {
        let (code, text) = check(&["--engine=pattern", "--socket", path.to_str().unwrap()]);
        assert_eq!(code, Some(78), "{text}");
        assert!(text.lines().any(|line| line.starts_with("error socket") && line.contains(words)), "{text}");
    }
    let nowhere = weaved()
        .args(["check", "--engine=pattern"])
        .env("XDG_RUNTIME_DIR", "")
        .env("HOME", "/")
        .output()
        .unwrap();
    let (code, text) = (nowhere.status.code(), stdout(&nowhere));
    assert!(code == Some(78) && text.contains("error socket: no place"), "{text}");
    let (code, text) = check(&["--engine=pattern", "--socket", socket, "--connections=65536"]);
    assert_eq!(code, Some(0));
    assert!(text.contains("connections: up to 65536"), "{text}");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let token = folder.path().join("token");
    let here = ["--tcp=127.0.0.1:0", "--token-file", token.to_str().unwrap()];
    let secret = |mode| {
        fs::write(&token, "5a".repeat(32)).unwrap();
        fs::set_permissions(&token, Permissions::from_mode(mode)).unwrap();
    };
    let tcp = |flags: &[&str], code: i32, line: &str| {
        let found = check(&[&["--engine=pattern", "--socket", socket], flags].concat());
        assert_eq!(found.0, Some(code), "{}", found.1);
        assert!(found.1.contains(line), "{line}: {}", found.1);
    };
    let both = if TcpListener::bind("[::1]:0").is_ok() { " and [::1]:0" } else { "" };
    tcp(&["--tcp=127.0.0.1:0"], 0, &format!("ok    tcp: 127.0.0.1:0{both}, for all users of this machine\n"));
    tcp(&["--tcp", &taken], 0, &format!("note  tcp: {taken}: already in use\n"));
    tcp(&["--tcp=0.0.0.0:9"], 78, "error tcp: tcp is 0.0.0.0:9, which other machines may reach");
    tcp(&["--tcp=192.0.2.1:9", "--allow-remote"], 78, "--token-file FILE as well");
    tcp(&here, 78, "error tcp: token_file ");
    secret(0o644);
    tcp(&here, 78, "so others may know it");
    secret(0o600);
    tcp(&here, 0, &format!("ok    tcp: 127.0.0.1:0{both}, for clients that know the token\n"));
    tcp(
        &[here[1], here[2], "--tcp=192.0.2.1:9", "--allow-remote"],
        78,
        "error tcp: can't listen on TCP at 192.0.2.1:9: ",
    );

    fs::write(&file, "queue = 0\n").unwrap();
    let (code, text) = check(&["--config", file.to_str().unwrap()]);
    assert!(
        code == Some(78) && text.contains("error settings: ") && text.contains("file:1: queue"),
        "{text}"
    );
    // The command line is another matter.
    assert_eq!(check(&["--queue=0"]).0, Some(2));

    let daemon = Daemon::pattern(&[]);
    let (code, text) = check(&["--engine=pattern", "--socket", daemon.socket.to_str().unwrap()]);
    assert!(code == Some(0) && text.contains("already in use"), "{text}");
    daemon.assert_serves();
}

#[test]
fn a_misspelt_variable_is_a_warning_that_strict_makes_an_error() {
    let folder = harness::private_folder();
    let check = |flags: &[&str], variable: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weaved"));
        command.env_clear().env("HOME", folder.path()).args([
            "check",
            "--engine=pattern",
            "--isolation=process",
        ]);
        command.args(["--sandbox=off"]).args(flags).envs(variable.map(|name| (name, "2")));
        let output = command.output().unwrap();
        (output.status.code(), stdout(&output), String::from_utf8(output.stderr).unwrap())
    };
    let warning = "warn  settings: WEAVE_THREDS is not a setting of weaved; did you mean WEAVE_THREADS?\n";
    let (code, text, error) = check(&[], Some("WEAVE_THREDS"));
    assert!(code == Some(0) && text.contains(warning) && error.is_empty(), "{text}{error}");
    let (code, text, error) = check(&["--strict"], Some("WEAVE_THREDS"));
    assert!(code == Some(78) && text.contains(warning), "{text}{error}");
    assert!(error.contains("with --strict nothing may be marked as warn"), "{error}");
    // What was chosen is noted, and is no warning.
    let (code, text, error) = check(&["--strict"], Some("WEAVE_SERVER_UID"));
    assert!(
        code == Some(0) && text.contains("note  sandbox: off") && !text.contains("warn"),
        "{text}{error}"
    );
    let (code, _, error) = check(&["--strict", "--queue=0"], None);
    assert!(code == Some(2) && error.contains("queue"), "{error}");
}

#[test]
fn sighup_changes_what_can_be_changed_and_names_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weaved.toml");
    fs::write(&file, "queue = 5\ngeneration_timeout = 3600\nlog = \"info\"\n").unwrap();
    let config = ["--config", file.to_str().unwrap()];
    let daemon = Daemon::pattern(
        &[&config[..], &["--faults=hang@stop", "--stall-timeout=9", "--cancel-timeout=0.1"]].concat(),
    );
    let mut client = daemon.connect();

    daemon.signal(Signal::HUP);
    assert_eq!(daemon.log.wait("settings reloaded"), "INFO  settings reloaded: nothing changed");
    for (bad, words) in [
        ("generation_timeout = 1\nqueue = 0\n", "weaved.toml:2: queue is \"0\""),
        ("generation_timeout = 1\nqeue = 1\n", "weaved.toml:2: there is no setting"),
        ("generation_timeout = \n", "weaved.toml:1:"),
    ] {
        fs::write(&file, bad).unwrap();
        daemon.signal(Signal::HUP);
        let line = daemon.log.wait(words);
        assert!(line.starts_with("ERROR settings not reloaded: "), "{line}");
    }
    fs::remove_file(&file).unwrap();
    daemon.signal(Signal::HUP);
    daemon.log.wait("can't read the settings in");
    daemon.assert_serves();

    fs::write(&file, "queue = 6\ngeneration_timeout = 1\nlog = \"debug\"\nstall_timeout = 1\n").unwrap();
    daemon.signal(Signal::HUP);
    // The flag comes before the file, as it always does.
    let line = daemon.log.wait("settings reloaded: generation_timeout, log changed");
    assert!(line.starts_with("WARN ") && line.ends_with("; only a restart can change queue"), "{line}");
    // Where that is all there is to tell, it isn't called nothing.
    daemon.signal(Signal::HUP);
    let line = daemon.log.wait_nth("only a restart can change queue", 2);
    assert_eq!(line, "WARN  settings reloaded: only a restart can change queue");
    client.send(1, "stop", 1);
    let text = client.expect_error(1, ErrorCode::Timeout);
    assert!(text.contains("limit of 1 s"), "{text}");
    daemon.assert_serves();
}

// -------------------------------------------------------------------- metrics and health

/// One sample: its name and labels as they stand there, and its value.
type Samples = BTreeMap<String, f64>;

/// Reads the text format as Prometheus does, and more strictly: every metric has its HELP and its TYPE
/// before its samples, once, all samples of it stand together, and names are what the conventions say.
fn parse_metrics(text: &str) -> (BTreeMap<String, String>, Samples) {
    let mut kinds = BTreeMap::new();
    let mut samples = Samples::new();
    let mut helped: Option<&str> = None;
    let mut family = "";
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(!help.trim().is_empty() && helped.replace(name).is_none(), "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(helped.take(), Some(name), "HELP comes before TYPE");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(name.starts_with("weave_") || name.starts_with("process_"), "{line}");
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            assert_eq!(kinds.insert(name.to_owned(), kind.to_owned()), None, "{name} twice");
            family = name;
        } else {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let value: f64 = value.parse().unwrap();
            assert!(value.is_finite() && value >= 0.0, "{line}");
            let (name, labels) = match sample.split_once('{') {
                Some((name, labels)) => (name, labels.strip_suffix('}').unwrap()),
                None => (sample, ""),
            };
            let suffix = name.strip_prefix(family).unwrap_or_else(|| panic!("{line} stands in {family}"));
            let suffixes: &[&str] =
                if kinds[family] == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(suffixes.contains(&suffix), "{line}");
            if !labels.is_empty() {
                let (label, of) = labels.split_once('=').unwrap();
                assert!(label.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{line}");
                let of = of.strip_prefix('"').and_then(|of| of.strip_suffix('"')).unwrap();
                assert!(!of.is_empty() && !of.contains(['"', '\\']), "{line}");
                assert_eq!(suffix == "_bucket", label == "le");
            }
            assert_eq!(samples.insert(sample.to_owned(), value), None, "{sample} twice");
        }
    }
    assert_eq!(helped, None);
    for name in kinds.iter().filter(|(_, kind)| *kind == "histogram").map(|(name, _)| name) {
        let mut buckets: Vec<(f64, f64)> = samples
            .iter()
            .filter_map(|(sample, count)| {
                let bound = sample.strip_prefix(&format!("{name}_bucket{{le=\""))?.strip_suffix("\"}")?;
                Some((bound.parse().unwrap(), *count))
            })
            .collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{name}: {buckets:?}");
        assert_eq!(*buckets.last().unwrap(), (f64::INFINITY, samples[&format!("{name}_count")]));
    }
    (kinds, samples)
}

fn metrics(daemon: &Daemon) -> Samples {
    parse_metrics(&get(&admin(daemon), "/metrics").1).1
}

#[test]
fn the_metrics_are_what_prometheus_reads_and_counters_never_fall() {
    let daemon = Daemon::pattern(&["--faults=fail@fail,crash@crash"]);
    let socket = admin(&daemon);
    let (status, first) = get(&socket, "/metrics");
    assert_eq!(status, 200);
    let (kinds, first) = parse_metrics(&first);
    assert!(kinds.len() >= 40, "{} metrics", kinds.len());
    let mut client = daemon.connect();
    for prompt in ["good", "fail", "crash"] {
        client.send(1, prompt, 1);
        client.answer().unwrap();
    }
    daemon.signal(Signal::HUP);
    daemon.log.wait("settings reloaded");
    let (again, second) = parse_metrics(&get(&socket, "/metrics").1);
    assert_eq!(kinds, again);
    assert!(first.keys().eq(second.keys()), "the same samples, whatever has happened");
    for (sample, value) in &first {
        let name = sample.split('{').next().unwrap();
        let grows = kinds.get(name).is_none_or(|kind| kind == "counter");
        assert!(!grows || second[sample] >= *value, "{sample}: {value}, then {}", second[sample]);
    }
    assert_eq!(second["weave_reloads_total{outcome=\"done\"}"], 1.0);
    assert_eq!(second["weave_admin_requests_total{page=\"/metrics\"}"], 2.0);
    assert!(second["process_resident_memory_bytes"] > 1e6);
    assert!(second["weave_worker_resident_memory_bytes"] > 1e5);
    assert!(second["process_open_fds"] > 10.0 && second["process_open_fds"] < second["process_max_fds"]);
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    let begun = now - second["process_start_time_seconds"];
    assert!((begun - second["weave_uptime_seconds"]).abs() < 5.0 && begun < PATIENCE.as_secs_f64());

    // The same as JSON.
    let json: serde_json::Value = serde_json::from_str(&get(&socket, "/stats").1).unwrap();
    let names: Vec<_> = json.as_object().unwrap().keys().collect();
    assert!(names.iter().copied().eq(kinds.keys()), "{names:?}");
    assert_eq!(json["weave_reloads_total"]["done"], 1);
    assert_eq!(json["weave_request_seconds"]["count"], json["weave_request_seconds"]["buckets"]["+Inf"]);
}

#[test]
fn it_is_shown_how_far_each_worker_is() {
    for isolation in ["process", "thread"] {
        let daemon =
            Daemon::pattern(&["--faults=slow=0.05", "--workers=2", &format!("--isolation={isolation}")]);
        let of = |name: &str| {
            let all = metrics(&daemon);
            [0, 1].map(|worker| all[&format!("weave_worker_{name}{{worker=\"{worker}\"}}")])
        };
        eventually("both are idle", || of("phase") == [0.0; 2]);
        let mut client = daemon.connect();
        client.write(&harness::sized_request(1, "slow", 1, 64, 64, 100));
        eventually("one of them samples", || of("phase") == [3.0, 0.0]);
        assert_eq!(of("steps"), [100.0, 0.0]);
        let at = of("step")[0];
        eventually("it gets on", || of("step")[0] > at);
        let json: serde_json::Value = serde_json::from_str(&get(&admin(&daemon), "/stats").1).unwrap();
        assert_eq!(
            (&json["weave_worker_phase"]["0"], &json["weave_worker_phase"]["1"]),
            (&3.into(), &0.into())
        );
        drop(client);
        eventually("it is idle again", || of("phase") == [0.0; 2] && of("steps") == [0.0; 2]);
        let now = metrics(&daemon);
        assert_eq!(now["weave_worker_cancellations_total{reason=\"abandoned\"}"], 1.0);
        assert_eq!(now["weave_worker_cancellation_seconds_count"], 1.0);
        assert_eq!(now["weave_worker_kills_total{reason=\"abandoned\"}"], 0.0);
    }
}

#[test]
fn what_happens_is_counted_once_and_under_its_name() {
    let daemon = Daemon::pattern(&[
        "--faults=fail@fail,crash@crash,hang@hang,slow=0.05",
        "--abandoned=finish",
        "--generation-timeout=2",
        "--cancel-timeout=0.1",
        "--queue=2",
        "--connections=2",
        "--stall-timeout=0.3",
    ]);
    let mut client = daemon.connect();
    let bad = |at: usize, byte: u8| {
        let mut frame = request(9, "bad", 1);
        frame[at] = byte;
        frame
    };
    for prompt in ["good", "fail", "crash", "hang", "good"] {
        client.send(1, prompt, 1);
        client.answer().unwrap();
    }
    client.write(&bad(39, 0));
    client.expect_error(9, ErrorCode::InvalidSteps);
    client.write(&bad(5, 2));
    client.expect_error(9, ErrorCode::UnsupportedVersion);
    // Of five at once the queue takes two or three, depending on when the worker takes the first one.
    client.write(&(0..5).flat_map(|id| request(id, "many", 1)).collect::<Vec<_>>());
    let busy = (0..5).filter(|_| matches!(client.answer(), Some(harness::Answer::Error { .. }))).count();
    let mut second = daemon.connect();
    second.send(1, "is here", 1);
    second.image();
    let mut third = daemon.connect();
    third.expect_error(0, ErrorCode::Busy);
    drop(third);
    second.write(b"GET / HTTP/1.1\r\n\r\n");
    second.expect_error(0, ErrorCode::InvalidMagic);
    second.expect_close();
    // One that nobody waits for, and one that nobody takes.
    let mut gone = daemon.connect();
    gone.send(1, "for nobody", 1);
    eventually("it runs", || metrics(&daemon)["weave_requests_running"] == 1.0);
    drop(gone);
    eventually("its bytes are dropped", || metrics(&daemon)["weave_dropped_bytes_total"] == 12_288.0);
    let mut still = daemon.connect();
    still.write(&harness::sized_request(2, "large", 1, 1024, 1024, 1));
    daemon.log.wait("stall timeout, it took too little of its answer");
    eventually("nothing runs", || metrics(&daemon)["weave_requests_running"] == 0.0);

    let now = metrics(&daemon);
    let count = |name: &str| now.get(name).copied().unwrap_or_else(|| panic!("{name} is not there"));
    let busy = busy as f64;
    for (name, value) in [
        ("weave_connections_accepted_total", 4.0),
        ("weave_connections_refused_total{reason=\"full\"}", 1.0),
        ("weave_connections_cut_total{reason=\"malformed\"}", 1.0),
        ("weave_connections_cut_total{reason=\"stalled\"}", 1.0),
        ("weave_connections_max", 2.0),
        ("weave_frames_received_total", 15.0),
        ("weave_requests_queued_total", 13.0 - busy),
        ("weave_requests_dispatched_total", 13.0 - busy),
        ("weave_requests_retried_total", 0.0),
        ("weave_requests_total{outcome=\"image\"}", 8.0 - busy),
        ("weave_requests_total{outcome=\"invalid\"}", 2.0),
        ("weave_requests_total{outcome=\"busy\"}", busy),
        ("weave_requests_total{outcome=\"failed\"}", 3.0),
        ("weave_requests_total{outcome=\"abandoned\"}", 2.0),
        ("weave_errors_total{code=\"GPU_ERROR\"}", 2.0),
        ("weave_errors_total{code=\"TIMEOUT\"}", 1.0),
        ("weave_errors_total{code=\"INVALID_STEPS\"}", 1.0),
        ("weave_errors_total{code=\"UNSUPPORTED_VERSION\"}", 1.0),
        ("weave_errors_total{code=\"INVALID_MAGIC\"}", 1.0),
        // With the answer to the connection that was one too many.
        ("weave_errors_total{code=\"BUSY\"}", busy + 1.0),
        ("weave_refusals_total{reason=\"queue_full\"}", busy),
        ("weave_refusals_total{reason=\"worker_died\"}", 1.0),
        ("weave_refusals_total{reason=\"too_slow\"}", 1.0),
        // The two for nobody were made all the same.
        ("weave_generation_seconds_count", 10.0 - busy),
        ("weave_image_pixels_total", (9.0 - busy) * 4096.0 + 1024.0 * 1024.0),
        ("weave_queue_wait_seconds_count", 13.0 - busy),
        ("weave_request_seconds_count", 8.0 - busy),
        ("weave_worker_starts_total", 3.0),
        ("weave_worker_deaths_total{cause=\"signal\"}", 2.0),
        ("weave_worker_kills_total{reason=\"too_slow\"}", 1.0),
        ("weave_queue_length", 0.0),
    ] {
        assert_eq!(count(name), value, "{name}, {busy} busy");
    }
    let ended: f64 =
        now.iter().filter(|(name, _)| name.starts_with("weave_requests_total")).map(|(_, n)| n).sum();
    assert_eq!(ended, count("weave_frames_received_total"), "every request ends once");
    // Eight to ten images of 64×64 to those who took them, a part of a large one, and some errors.
    let images = (8.0 - busy) * 12_288.0;
    let out = count("weave_sent_bytes_total") - images;
    assert!(out > 0.0 && out < 1024.0 * 1024.0 * 3.0, "{out}");
    // Whatever the kernel could move, this process has not touched.
    let spliced = count("weave_relayed_bytes_total{how=\"spliced\"}") - images;
    assert!(spliced > 0.0 && spliced < out, "{spliced} of {out}");
    assert_eq!(count("weave_relayed_bytes_total{how=\"copied\"}"), 0.0);
    let received = count("weave_received_bytes_total");
    assert!(received > 15.0 * 76.0 && received < 2000.0, "{received}");
    // Each image takes a step of 50 ms.
    let mean = count("weave_generation_seconds_sum") / count("weave_generation_seconds_count");
    assert!((0.05..1.0).contains(&mean), "{mean}");
    assert_eq!(count("weave_generation_seconds_bucket{le=\"0.025\"}"), 0.0);
    assert!(count("weave_request_seconds_sum") >= 0.05 * (8.0 - busy));
    assert!((1.0..=3.0).contains(&count("weave_queue_length_max")));
}

/// The client's command is built beside `weaved` when the whole workspace is.
#[test]
fn weave_stats_and_weave_top_show_what_the_daemon_counts() {
    let weave = Path::new(env!("CARGO_BIN_EXE_weaved")).with_file_name("weave");
    if !weave.exists() {
        eprintln!("NOT CHECKED: {} is not there; `cargo build -p weave-cli` makes it", weave.display());
        return;
    }
    let daemon = Daemon::pattern(&["--faults=slow=0.05,fail@fail", "--workers=2"]);
    let ask = |args: &[&str]| {
        let output = Command::new(&weave).args(args).arg("--socket").arg(&daemon.socket).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        stdout(&output)
    };
    daemon.assert_serves();
    let mut client = daemon.connect();
    client.send(1, "fail", 1);
    client.expect_error(1, ErrorCode::GpuError);
    client.write(&harness::sized_request(2, "slow", 1, 64, 64, 100));
    eventually("it samples", || metrics(&daemon)["weave_worker_step{worker=\"0\"}"] > 0.0);

    let table = ask(&["stats"]);
    let shown = |name: &str| {
        let line = table.lines().find(|line| line.split("  ").next() == Some(name));
        line.unwrap_or_else(|| panic!("{name} is not in {table}"))[name.len()..].trim().to_owned()
    };
    for (name, value) in [
        ("weave_requests_running", "1"),
        ("weave_workers_up", "2"),
        ("weave_requests_total{image}", "1"),
        ("weave_requests_total{failed}", "1"),
        ("weave_errors_total{GPU_ERROR}", "1"),
    ] {
        assert_eq!(shown(name), value, "{name}");
    }
    let json: serde_json::Value = serde_json::from_str(&ask(&["stats", "--json"])).unwrap();
    let own: serde_json::Value = serde_json::from_str(&get(&admin(&daemon), "/stats").1).unwrap();
    assert_eq!(json["weave_requests_total"], own["weave_requests_total"]);
    assert!(json.as_object().unwrap().keys().eq(own.as_object().unwrap().keys()));

    let tables = ask(&["top", "--count=2", "--interval=0.1"]);
    assert_eq!(tables.matches(": ready, up ").count(), 2, "{tables}");
    let steps: Vec<u32> = tables
        .lines()
        .filter_map(|line| line.strip_prefix("worker 0  samples, ")?.strip_suffix(" of 100")?.parse().ok())
        .collect();
    assert!(steps.len() == 2 && steps[0] < steps[1], "it gets on: {tables}");
    assert_eq!(tables.matches("worker 1  idle").count(), 2, "{tables}");
    assert_eq!(tables.matches("running        1 on 2 of 2 workers that are up").count(), 2, "{tables}");
}

fn page(daemon: &Daemon, path: &str) -> serde_json::Value {
    let (status, text) = get(&admin(daemon), path);
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn the_daemon_says_what_it_draws_with() {
    let daemon = Daemon::pattern(&[]);
    let model = page(&daemon, "/model");
    assert_eq!((&model["name"], &model["toy"]), (&"test pattern".into(), &true.into()));
    assert!(model["draws"].is_string());
    let defaults = serde_json::json!({"width": 512, "height": 512, "steps": 28, "cfg_scale": 7.0});
    assert_eq!(model["defaults"], defaults);
    assert_eq!(metrics(&daemon)["weave_admin_requests_total{page=\"/model\"}"], 1.0);
}

#[test]
fn what_clients_are_told_to_ask_for_is_set_and_set_again_while_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weaved.toml");
    fs::write(&file, "default_size = \"256x192\"\ndefault_cfg = 3.5\n").unwrap();
    let flags = ["--config", file.to_str().unwrap(), "--default-steps=12"];
    let daemon = Daemon::pattern(&flags);
    assert!(daemon.log.all().contains(", with the test pattern, a toy that draws"), "{}", daemon.log.all());
    let defaults = || page(&daemon, "/model")["defaults"].clone();
    let of = |width, height, steps, cfg_scale| serde_json::json!({"width": width, "height": height, "steps": steps, "cfg_scale": cfg_scale});
    assert_eq!(defaults(), of(256, 192, 12, 3.5));
    let (code, text) = check(&[&["--engine=pattern", "--socket=/tmp/x.sock"], &flags[..]].concat());
    assert!(text.contains("ok    defaults: 256x192, 12 steps, cfg_scale 3.5, "), "{code:?} {text}");
    fs::write(&file, "default_steps = 13\n").unwrap();
    daemon.signal(Signal::HUP);
    daemon.log.wait("settings reloaded: default_size, default_cfg_scale changed");
    assert_eq!(defaults(), of(512, 512, 12, 7.0));
}

#[test]
fn the_daemon_says_how_far_each_request_is_and_whether_anybody_waits_for_it() {
    let daemon = Daemon::pattern(&["--faults=slow=0.05,hang@stop", "--abandoned=finish", "--workers=2"]);
    let nothing = serde_json::json!({"running": [], "waiting": []});
    assert_eq!(page(&daemon, "/requests"), nothing);
    let mut first = daemon.connect();
    first.write(&harness::sized_request(u64::MAX, "slow", 1, 64, 64, 100));
    eventually("it samples", || page(&daemon, "/requests")["running"][0]["step"].as_u64() > Some(2));
    let of_first = page(&daemon, "/requests")["running"][0].clone();
    assert_eq!(
        (&of_first["request_id"], &of_first["worker"], &of_first["steps"], &of_first["abandoned"]),
        (&u64::MAX.into(), &0.into(), &100.into(), &false.into())
    );
    let seconds = of_first["seconds"].as_f64().unwrap();
    assert!(seconds > 0.1 && seconds < PATIENCE.as_secs_f64(), "{seconds}");

    let mut second = daemon.connect();
    second.send(5, "stop", 1);
    daemon.log.wait("request 5:");
    // Turns: each client's first, then each one's next.
    let (mut third, mut fourth) = (daemon.connect(), daemon.connect());
    third.write(&[request(1, "a", 1), request(2, "b", 1)].concat());
    eventually("they wait", || page(&daemon, "/requests")["waiting"].as_array().unwrap().len() == 2);
    fourth.send(3, "c", 1);
    let waiting = || {
        let page = page(&daemon, "/requests");
        let all = page["waiting"].as_array().unwrap().iter();
        all.map(|waiting| waiting["request_id"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    eventually("all wait", || waiting().len() == 3);
    assert_eq!(waiting(), [1, 3, 2]);
    assert!(page(&daemon, "/requests")["waiting"][0]["seconds"].as_f64().unwrap() > 0.0);

    assert_eq!(metrics(&daemon)["weave_requests_running_abandoned"], 0.0);
    drop(second);
    let running = || page(&daemon, "/requests")["running"].clone();
    eventually("its client is gone", || running()[1]["abandoned"] == true);
    assert_eq!(running()[0]["abandoned"], false);
    let now = metrics(&daemon);
    assert_eq!((now["weave_requests_running"], now["weave_requests_running_abandoned"]), (2.0, 1.0));
    assert!(now["weave_admin_requests_total{page=\"/requests\"}"] > 2.0);
}

fn status_of(socket: &Path) -> (Option<i32>, String) {
    let output = weaved().arg("status").arg("--socket").arg(socket).output().unwrap();
    (output.status.code(), stdout(&output) + &String::from_utf8_lossy(&output.stderr))
}

#[test]
fn health_says_whether_requests_would_be_served() {
    // A program of its own, which can be taken away.
    let folder = tempfile::tempdir().unwrap();
    let (program, socket) = (folder.path().join("weaved"), folder.path().join("run/weave.sock"));
    assert_eq!(status_of(&socket).0, Some(1), "nobody is there");
    fs::copy(env!("CARGO_BIN_EXE_weaved"), &program).unwrap();
    let mut command = Command::new(&program);
    command.args(["--no-config", "--engine=pattern", "--pattern=gradient", "--faults=hang@stop", "--socket"]);
    let mut daemon = Daemon::run(command.arg(&socket), &socket);
    let admin = admin(&daemon);
    assert_eq!(get(&admin, "/healthz").0, 200);
    assert_eq!(get(&admin, "/readyz"), (200, "ready: 0 running, 0 waiting\n".to_owned()));
    assert_eq!(status_of(&socket), (Some(0), "ready: 0 running, 0 waiting\n".to_owned()));

    let away = folder.path().join("away");
    fs::rename(&program, &away).unwrap();
    daemon.kill_worker();
    daemon.log.wait("can't start it");
    eventually("not ready", || get(&admin, "/readyz") == (503, "not ready: no worker is up\n".to_owned()));
    assert_eq!(status_of(&socket), (Some(1), "weaved: not ready: no worker is up\n".to_owned()));
    assert_eq!(get(&admin, "/healthz").0, 200, "restarting the daemon would not help");
    assert_eq!(metrics(&daemon)["weave_ready"], 0.0);
    fs::rename(&away, &program).unwrap();
    eventually("ready again", || get(&admin, "/readyz").0 == 200);

    let mut client = daemon.connect();
    client.send(1, "stop", 1);
    daemon.log.wait("request 1:");
    daemon.signal(Signal::TERM);
    daemon.log.wait("stopping");
    assert_eq!(get(&admin, "/readyz"), (503, "not ready: stopping\n".to_owned()));
    assert_eq!((get(&admin, "/healthz").0, status_of(&socket).0), (200, Some(1)));
    assert_eq!(metrics(&daemon)["weave_draining"], 1.0);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!admin.exists(), "it is removed with the other one");
}

/// weaved's line of the status for systemd that begins so.
fn wait_for_status(manager: &mut Manager, beginning: &str) {
    while !manager.wait("STATUS").starts_with(&format!("STATUS={beginning}")) {}
}

#[test]
fn a_socket_whose_file_is_removed_is_made_again() {
    for tidy in ["the file", "all files"] {
        let daemon = Daemon::pattern(&["--allow-uids=1"]);
        let (socket, admin) = (daemon.socket.clone(), admin(&daemon));
        let is_good = |path: &Path, mode: u32| {
            let file = fs::symlink_metadata(path).unwrap();
            assert_eq!((file.file_type().is_socket(), file.permissions().mode() & 0o777), (true, mode));
        };
        is_good(&socket, 0o666);
        if tidy == "the file" {
            fs::remove_file(&socket).unwrap();
            fs::remove_file(&admin).unwrap();
        } else {
            for file in fs::read_dir(socket.parent().unwrap()).unwrap() {
                fs::remove_file(file.unwrap().path()).unwrap();
            }
        }
        for path in [&socket, &admin] {
            daemon.log.wait(&format!("WARN  {} was removed; it is made again", path.display()));
        }
        is_good(&socket, 0o666);
        is_good(&admin, 0o666);
        daemon.assert_serves();
        assert_eq!(status_of(&socket).0, Some(0));
        // The lock is kept, or taken anew.
        let (code, text) = harness::refused(&socket, &["--allow-uids=1"]);
        assert!(code == 69 && text.contains("another daemon already listens"), "{text}");
        // SIGHUP doesn't wait.
        fs::remove_file(&socket).unwrap();
        daemon.signal(Signal::HUP);
        daemon.log.wait_nth("was removed; it is made again", 3);
        daemon.assert_serves();
    }
}

#[test]
fn a_daemon_to_which_nobody_can_connect_says_so_and_does_not_call_itself_ready() {
    let folder = tempfile::tempdir().unwrap();
    let (path, run) = (folder.path().join("notify"), folder.path().join("run"));
    let socket = run.join("weave.sock");
    let elsewhere = harness::private_folder();
    let admin = elsewhere.path().join("admin.sock");
    let mut manager = Manager::new(UnixDatagram::bind(&path).unwrap());
    let mut command = weaved();
    command.args(["--engine=pattern", "--pattern=gradient", "--socket"]).arg(&socket);
    command.arg("--admin-socket").arg(&admin).env("NOTIFY_SOCKET", &path);
    let daemon = Daemon::run(&mut command, &socket);
    let ask = || {
        let output = weaved().args(["status", "--admin-socket"]).arg(&admin).output().unwrap();
        (output.status.code(), stdout(&output) + str::from_utf8(&output.stderr).unwrap())
    };
    assert_eq!(ask().0, Some(0));
    let lost = |why: &str| {
        format!(
            "clients can't come in: {} is no longer this daemon's socket ({why}); restart weaved",
            socket.display()
        )
    };
    let away = folder.path().join("away");
    let file = "something else is there now";
    let place = "its folder was removed, renamed or replaced";
    let put_file = || {
        fs::remove_file(&socket).unwrap();
        fs::write(&socket, "").unwrap();
    };
    let put_socket = || {
        fs::remove_file(&socket).unwrap();
        drop(UnixListener::bind(&socket).unwrap());
    };
    let rename = || fs::rename(&run, &away).unwrap();
    let replace = || {
        fs::rename(&run, &away).unwrap();
        fs::create_dir(&run).unwrap();
    };
    let changes: [(&dyn Fn(), &str); 4] =
        [(&rename, place), (&replace, place), (&put_file, file), (&put_socket, file)];
    for (nth, (change, why)) in changes.into_iter().enumerate() {
        change();
        // Whoever asks hears it at once, and the log and systemd within seconds.
        assert_eq!(ask(), (Some(1), format!("weaved: not ready: {}\n", lost(why))));
        assert_eq!(get(&admin, "/readyz"), (503, format!("not ready: {}\n", lost(why))));
        assert_eq!(get(&admin, "/healthz"), (503, format!("{}\n", lost(why))));
        let (_, stats) = get(&admin, "/stats");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&stats).unwrap()["weave_ready"], 0);
        daemon.log.wait(&format!("ERROR {}", lost(why)));
        wait_for_status(&mut manager, "clients can't come in, the log says why; 0 running");
        if why == place {
            let _ = fs::remove_dir(&run);
            fs::rename(&away, &run).unwrap();
            daemon.log.wait_nth("is this daemon's socket again", nth + 1);
            wait_for_status(&mut manager, "0 running");
            daemon.assert_serves();
            assert_eq!(ask().0, Some(0));
        } else {
            // Not even a file that nobody uses is taken away; a place that is free again is taken.
            assert!(socket.exists());
            fs::remove_file(&socket).unwrap();
            daemon.signal(Signal::HUP);
            daemon.log.wait_nth("was removed; it is made again", nth - 1);
            daemon.assert_serves();
        }
    }
    // Another daemon's socket is left as it is.
    fs::remove_file(&socket).unwrap();
    let next = UnixListener::bind(&socket).unwrap();
    daemon.log.wait_nth(&lost(file), 3);
    let client = UnixStream::connect(&socket).unwrap();
    assert!(next.accept().is_ok());
    drop(client);
}

#[test]
fn an_administrative_socket_that_is_replaced_is_named_in_the_log_and_to_systemd() {
    let folder = tempfile::tempdir().unwrap();
    let (path, socket) = (folder.path().join("notify"), folder.path().join("run/weave.sock"));
    let mut manager = Manager::new(UnixDatagram::bind(&path).unwrap());
    let mut command = weaved();
    command.args(["--engine=pattern", "--pattern=gradient", "--socket"]).arg(&socket);
    let daemon = Daemon::run(command.env("NOTIFY_SOCKET", &path), &socket);
    let admin = admin(&daemon);
    fs::remove_file(&admin).unwrap();
    fs::write(&admin, "").unwrap();
    daemon.log.wait(&format!(
        "ERROR nobody can ask for metrics and health: {} is no longer this daemon's socket",
        admin.display()
    ));
    wait_for_status(&mut manager, "nobody can ask for metrics and health, the log says why; 0 running");
    daemon.assert_serves();
    let (code, text) = status_of(&socket);
    assert_eq!(code, Some(1), "{text}");
}

#[test]
fn a_socket_that_was_handed_over_is_not_judged() {
    let folder = tempfile::tempdir().unwrap();
    let (path, admin) = (folder.path().join("weave.sock"), folder.path().join("elsewhere.sock"));
    let [one, two] = [&path, &admin].map(|path| OwnedFd::from(UnixListener::bind(path).unwrap()));
    let daemon = Daemon::run(&mut handed([two, one], 2, "admin:clients"), &path);
    let kept = UnixStream::connect(&admin).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(get(&admin, "/readyz").0, 200);
    drop(kept);
    assert!(!path.exists() && !daemon.log.all().contains("removed"));
}

#[test]
fn whoever_asks_in_vain_is_told_why() {
    let folder = harness::private_folder();
    let socket = folder.path().join("weave.sock");
    let admin = folder.path().join("weave-admin.sock");
    let expect = |words: &str| {
        let (code, text) = status_of(&socket);
        assert!(code == Some(1) && text.contains(words) && !text.contains("os error"), "{text}");
        assert!(text.contains(admin.to_str().unwrap()), "{text}");
    };
    expect("no weaved is running: there is no ");
    drop(UnixListener::bind(&admin).unwrap());
    expect("is left over from one that has died; start it again");
    fs::remove_file(&admin).unwrap();
    // Somebody who says something else, and hangs up before it has heard the question.
    let other = UnixListener::bind(&admin).unwrap();
    let says = std::thread::spawn(move || other.accept().unwrap().0.write_all(b"WEVE\n").unwrap());
    expect("is no weaved");
    says.join().unwrap();
    fs::remove_file(&admin).unwrap();

    // Also when so many have asked that nobody else fits into the queue.
    let daemon = Daemon::start_at(&socket, &["--engine=pattern", "--pattern=gradient"]);
    daemon.freeze();
    expect("no answer from weaved at ");
    let mut waiting = Vec::new();
    let one_more = || {
        let fd = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        rustix::io::ioctl_fionbio(&fd, true).unwrap();
        rustix::net::connect(&fd, &SocketAddrUnix::new(&admin).unwrap()).map(|()| fd)
    };
    while let Ok(fd) = one_more() {
        waiting.push(fd);
    }
    assert_eq!(one_more().unwrap_err(), Errno::AGAIN);
    expect("no answer from weaved at ");
    drop(waiting);
    daemon.signal(Signal::CONT);
    eventually("it answers again", || status_of(&socket).0 == Some(0));
}

#[test]
fn the_administrative_socket_is_bounded_whatever_is_said_to_it() {
    let daemon = Daemon::pattern(&[]);
    let socket = admin(&daemon);
    for (said, answer) in [
        (&b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"[..], "HTTP/1.1 405 "),
        (b"OPTIONS / HTTP/1.0\r\n\r\n", "HTTP/1.1 405 "),
        (b"GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 404 "),
        (b"GET http://localhost/readyz/?verbose HTTP/1.0\r\nAccept: */*\r\n\r\n", "HTTP/1.1 200 "),
        (b"GET /healthz HTTP/1.0\n\n", "HTTP/1.1 200 "),
        (b"HEAD /healthz HTTP/1.0\r\n\r\n", "HTTP/1.1 200 "),
        (b"\x16\x03\x01\n\n", "HTTP/1.1 400 "),
        (&request(1, "a Weave frame\n\n", 1), "HTTP/1.1 400 "),
    ] {
        let text = say(&socket, said);
        assert!(text.starts_with(answer), "{text}");
    }
    // Far more than is read: the answer still arrives.
    let text = say(&socket, &[b"GET / HTTP/1.1\r\nX: ", &[b'x'; 100_000][..]].concat());
    assert!(text.starts_with("HTTP/1.1 431 "), "{text}");
    // Whoever says nothing has its place for a while; then the next one is served. Clients of Weave don't
    // notice any of it.
    let silent: Vec<_> = (0..8).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    for mut stream in &silent {
        stream.write_all(b"GET /").unwrap();
    }
    let mut late = UnixStream::connect(&socket).unwrap();
    late.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").unwrap();
    daemon.assert_serves();
    late.set_nonblocking(true).unwrap();
    assert_eq!(late.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::WouldBlock);
    late.set_nonblocking(false).unwrap();
    late.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut text = String::new();
    late.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    for mut stream in silent {
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "closed without a word");
    }
    // One after the other, one byte at a time, and gone before the answer.
    for _ in 0..100 {
        UnixStream::connect(&socket).unwrap().write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    }
    let mut slow = UnixStream::connect(&socket).unwrap();
    for byte in b"GET /healthz HTTP/1.1\r\n\r\n" {
        slow.write_all(&[*byte]).unwrap();
    }
    let mut text = String::new();
    slow.read_to_string(&mut text).unwrap();
    assert!(text.ends_with("weaved runs, and clients can come in\n"), "{text}");
    daemon.assert_serves();
}

#[test]
fn the_administrative_socket_is_private_and_where_it_is_wanted() {
    let daemon = Daemon::pattern(&[]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&admin(&daemon)), 0o600);
    // A second daemon in the same folder has its own; where it can't have that, it does without. Who asks
    // for one by name gets an error.
    let second = daemon.socket.with_file_name("second.sock");
    let other = Daemon::start_at(&second, &["--engine=pattern", "--pattern=gradient"]);
    assert_eq!(get(&second.with_file_name("second-admin.sock"), "/readyz").0, 200);
    drop(other);
    fs::write(second.with_file_name("third-admin.sock"), "").unwrap();
    let third = second.with_file_name("third.sock");
    let other = Daemon::start_at(&third, &["--engine=pattern", "--pattern=gradient"]);
    other.log.wait("metrics and health are not available: ");
    other.assert_serves();
    drop(other);
    let taken = admin(&daemon);
    let mut command = weaved();
    command.args(["--engine=pattern", "--socket"]).arg(&second).arg("--admin-socket").arg(&taken);
    assert_eq!(command.output().unwrap().status.code(), Some(69));

    let elsewhere = daemon.socket.with_file_name("elsewhere.sock");
    let flag = format!("--admin-socket={}", elsewhere.display());
    let other = Daemon::start_at(&second, &["--engine=pattern", &flag]);
    assert_eq!(get(&elsewhere, "/readyz").0, 200);
    drop(other);
    let other = Daemon::start_at(&second, &["--engine=pattern", "--pattern=gradient", "--admin-socket=off"]);
    other.assert_serves();
    assert!(!other.log.all().contains("metrics"));
    let asked = weaved().args(["status", "--admin-socket=off", "--socket"]).arg(&second).output().unwrap();
    assert_eq!(asked.status.code(), Some(1));
}

#[test]
fn both_sockets_can_be_handed_over() {
    let folder = tempfile::tempdir().unwrap();
    let (path, admin) = (folder.path().join("weave.sock"), folder.path().join("elsewhere.sock"));
    let [one, two] = [&path, &admin].map(|path| OwnedFd::from(UnixListener::bind(path).unwrap()));
    // In whatever order they come.
    let daemon = Daemon::run(&mut handed([two, one], 2, "admin:clients"), &path);
    assert_eq!(get(&admin, "/readyz").0, 200);
    daemon.assert_serves();
    drop(daemon);
    assert!(path.exists() && admin.exists());
    fs::remove_file(&path).unwrap();
    let alone = [UnixListener::bind(&path).unwrap().into(), fs::File::open("/dev/null").unwrap().into()];
    let daemon = Daemon::run(&mut handed(alone, 1, "clients"), &path);
    daemon.assert_serves();
    assert!(!folder.path().join("weave-admin.sock").exists(), "nobody has said where");
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
        let mut client = harness::Client::new(UnixStream::connect(&socket).unwrap());
        client.send(1, "now", 1);
        let failed = until("told to fail");
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).unwrap();
        until("stopped");
        wait(&mut child);
        (listening, failed, seen)
    };
    let (listening, failed, seen) = lines(true);
    assert!(
        listening.starts_with("<6>listening on") && failed.starts_with("<3>worker 0: request 1: "),
        "{seen:?}"
    );
    assert!(seen.iter().all(|line| line.starts_with('<')), "{seen:?}");
    // A pipe or a file is not looked at while it is written, so each line has its time; a worker's too, and once.
    let (listening, failed, seen) = lines(false);
    assert!(seen.iter().all(|line| without_time(line).len() + 25 == line.len()), "{seen:?}");
    assert!(without_time(&listening).starts_with("INFO  listening on"), "{seen:?}");
    assert!(without_time(&failed).starts_with("ERROR worker 0: request 1: "), "{seen:?}");
}

#[test]
fn a_log_that_nobody_reads_is_cut_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("run/weave.sock");
    let mut command = weaved();
    command.args(["--engine=pattern", "--log=debug", "--socket"]).arg(&socket).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    eventually("it listens", || UnixStream::connect(&socket).is_ok());
    let mut client = harness::Client::new(UnixStream::connect(&socket).unwrap());
    let mut bad = request(8, "bad", 1);
    bad[39] = 0;
    // A pipe takes 64 KiB.
    for _ in 0..2000 {
        client.write(&bad);
        client.expect_error(8, ErrorCode::InvalidSteps);
    }
    let admin = socket.with_file_name("weave-admin.sock");
    let dropped = parse_metrics(&get(&admin, "/metrics").1).1["weave_log_lines_dropped_total"];
    assert!(dropped > 100.0, "{dropped}");
    // Once somebody reads it, it goes on, and says what is missing.
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.by_ref().take(500).all(|line| !line.contains("dropped")));
    client.write(&bad);
    client.expect_error(8, ErrorCode::InvalidSteps);
    let line = lines.find(|line| line.contains("nobody read the log")).unwrap();
    assert_eq!(without_time(&line), format!("WARN  nobody read the log: {dropped} lines were dropped"));
    child.kill().unwrap();
    wait(&mut child);
}

#[test]
fn lines_about_a_request_say_whose_it_is() {
    let daemon = Daemon::pattern(&["--log=debug", "--faults=hang@hang", "--generation-timeout=0.2"]);
    let uid = rustix::process::geteuid().as_raw();
    daemon.assert_serves();
    daemon.log.wait(&format!("DEBUG connection 1 (uid {uid}): opened"));
    daemon.log.wait(&format!("DEBUG request 4711 of connection 1 (uid {uid}): queued"));
    daemon.log.wait(&format!("DEBUG request 4711 of connection 1 (uid {uid}): given to worker 0"));
    daemon.log.wait(&format!("DEBUG request 4711 of connection 1 (uid {uid}): done"));
    daemon.log.wait(&format!("DEBUG connection 1 (uid {uid}): closed"));
    let mut client = daemon.connect();
    client.send(7, "hang", 1);
    let mut bad = request(8, "bad", 1);
    bad[39] = 0;
    client.write(&bad);
    client.expect_error(8, ErrorCode::InvalidSteps);
    client.expect_error(7, ErrorCode::Timeout);
    daemon
        .log
        .wait(&format!("INFO  request 8 of connection 2 (uid {uid}) refused: INVALID_STEPS: steps is 0"));
    daemon.log.wait(&format!("WARN  request 7 of connection 2 (uid {uid}): TIMEOUT: generation took longer"));
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
