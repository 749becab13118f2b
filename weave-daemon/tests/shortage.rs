//! What weaved does when the system has nothing left to give, or interrupts it.

mod harness;

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use harness::{Client, Daemon, Log, eventually, gradient, is_alive, private_folder, wait, weaved};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};

/// Where the descriptors of a process lead.
fn descriptors(pid: i32) -> Vec<(i32, String)> {
    let folder = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let named = folder.filter_map(|entry| {
        let entry = entry.ok()?;
        let target = fs::read_link(entry.path()).ok()?;
        Some((entry.file_name().to_str()?.parse().ok()?, target.to_str()?.to_owned()))
    });
    let mut named: Vec<_> = named.collect();
    named.sort();
    named
}

fn pid(daemon: &Daemon) -> i32 {
    daemon.child.id().try_into().unwrap()
}

#[test]
fn a_worker_has_its_stream_and_where_to_log_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, "5".repeat(64)).unwrap();
    fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let daemon = Daemon::pattern(&["--tcp=127.0.0.1:0", "--token-file", token.to_str().unwrap()]);
    let address =
        daemon.log.wait("tcp://").split("tcp://").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    // With as much open as there can be: clients of both kinds, one of them at the gate.
    let mut client = daemon.connect();
    client.send(1, "x", 1);
    client.image();
    let _at_the_gate = TcpStream::connect(address).unwrap();
    // The first worker was started before all that: this one is started after it.
    let [first] = daemon.workers()[..] else { panic!() };
    daemon.kill_worker();
    daemon.assert_serves();
    let [worker] = daemon.workers()[..] else { panic!() };
    assert_ne!(first, worker);

    let own = descriptors(pid(&daemon));
    assert!(own.len() > 10, "{own:?}");
    let its = descriptors(worker);
    let stream = its[0].1.clone();
    let mut pages = 0;
    assert!(stream.starts_with("socket:[") && !own.iter().any(|(_, target)| *target == stream), "{its:?}");
    for (number, leads_to) in &its {
        match number {
            1 => assert_eq!(leads_to, "/dev/null"),
            // Its log is a pipe to the daemon, which passes it on.
            2 => assert!(own.iter().any(|(_, target)| target == leads_to), "{its:?}"),
            // Where it says how far it is: its own page, and nobody else's.
            _ if leads_to.starts_with("/memfd:weaved-scoreboard") => pages += 1,
            _ => assert_eq!(*leads_to, stream, "{its:?}"),
        }
    }
    assert_eq!(pages, 2, "the one that it was started with, and its own: {its:?}");
}

#[test]
fn what_whoever_starts_weaved_has_open_is_not_the_workers() {
    let folder = private_folder();
    let (secret, socket) = (folder.path().join("secret"), folder.path().join("weave.sock"));
    fs::write(&secret, "secret").unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "exec 9<\"$0\"; exec \"$@\""]).arg(&secret).arg(env!("CARGO_BIN_EXE_weaved"));
    command.args(["--no-config", "--engine=pattern", "--pattern=gradient", "--workers=2", "--socket"]);
    let daemon = Daemon::run(command.arg(&socket), &socket);
    daemon.assert_serves();
    let secret = secret.to_str().unwrap().to_owned();
    assert!(descriptors(pid(&daemon)).contains(&(9, secret.clone())), "it has it itself");
    let works =
        |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap().contains("\0worker\0");
    eventually("both workers are there", || daemon.workers().iter().filter(|pid| works(pid)).count() == 2);
    let has_secret = |worker: i32| descriptors(worker).iter().any(|(_, leads_to)| *leads_to == secret);
    assert!(daemon.workers().iter().all(|worker| !has_secret(*worker)));
}

/// Clock ticks that a process has used so far.
fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // The fields are counted from the state, which is the third.
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn without_descriptors_those_who_come_wait_and_nobody_spins() {
    let daemon = Daemon::pattern(&[]);
    let mut early: Vec<_> = (0..3).map(|_| daemon.connect()).collect();
    for client in &mut early {
        client.send(1, "early", 1);
        client.expect_gradient(1, "early", 1);
    }
    let used = descriptors(pid(&daemon)).len();
    limit_descriptors(&daemon, used);
    let late: Vec<_> = (0..8).map(|_| daemon.connect()).collect();
    let line = daemon.log.wait("can't accept connections");
    assert!(line.contains("Too many open files"), "{line}");

    // Who is in is served. Half a second of that is as good as idle: a tick is a hundredth of a second.
    early[0].send(2, "still", 2);
    early[0].expect_gradient(2, "still", 2);
    let before = ticks(pid(&daemon));
    std::thread::sleep(Duration::from_millis(500));
    let spent = ticks(pid(&daemon)) - before;
    assert!(spent <= 10, "{spent} ticks in half a second");
    assert_eq!(daemon.log.all().matches("can't accept connections").count(), 1, "said once");

    // A worker that dies now can't be replaced, until there is room again.
    daemon.kill_worker();
    daemon.log.wait("can't start it: Too many open files");
    early[1].send(3, "waits", 3);
    assert_eq!(daemon.workers(), []);
    limit_descriptors(&daemon, used + 20);
    early[1].expect_gradient(3, "waits", 3);
    daemon.log.wait("connections are accepted again");
    for mut client in late {
        client.send(4, "late", 4);
        client.expect_gradient(4, "late", 4);
    }
}

#[test]
fn descriptors_that_become_free_go_to_those_who_wait() {
    let daemon = Daemon::pattern(&[]);
    let mut early = daemon.connect();
    early.send(1, "early", 1);
    early.expect_gradient(1, "early", 1);
    limit_descriptors(&daemon, descriptors(pid(&daemon)).len());
    let mut late = daemon.connect();
    late.send(2, "late", 2);
    daemon.log.wait("can't accept connections");
    drop(early);
    late.expect_gradient(2, "late", 2);
    drop(late);
    // Those who close before there is room for them are gone as well.
    let _holds = daemon.connect();
    for _ in 0..5 {
        drop(daemon.connect());
    }
    let mut last = daemon.connect();
    limit_descriptors(&daemon, 100);
    last.send(3, "last", 3);
    last.expect_gradient(3, "last", 3);
}

/// Goes on as weaved on a system whose table of files is full whenever it accepts a connection.
#[test]
#[ignore = "part of another test"]
fn be_on_a_system_without_files() {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    let full = SeccompAction::Errno(libc::ENFILE.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let calls = [(libc::SYS_accept4, Vec::new())].into();
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, full, arch).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
    let socket = std::env::var_os("WEAVE_TEST_SOCKET").unwrap();
    let error = weaved().args(["--engine=pattern", "--sandbox=off", "--socket"]).arg(socket).exec();
    panic!("{error}");
}

#[test]
fn a_full_table_of_files_is_waited_for_as_well() {
    let folder = private_folder();
    let socket = folder.path().join("weave.sock");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "be_on_a_system_without_files", "--ignored", "--nocapture"])
        .env("WEAVE_TEST_SOCKET", &socket)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = Log::default();
    log.follow(child.stderr.take().unwrap());
    log.wait("listening on");
    let _waits = UnixStream::connect(&socket).unwrap();
    let line = log.wait("can't accept connections");
    assert!(line.contains("Too many open files in system"), "{line}");
    let pid = child.id().try_into().unwrap();
    let before = ticks(pid);
    std::thread::sleep(Duration::from_millis(500));
    assert!(ticks(pid) - before <= 10);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(wait(&mut child).code(), Some(0));
    assert_eq!(log.all().matches("can't accept connections").count(), 1);
}

/// Lets the daemon have so many.
fn limit_descriptors(daemon: &Daemon, current: usize) {
    let limit = Rlimit { current: Some(current as u64), maximum: getrlimit(Resource::Nofile).maximum };
    prlimit(Some(Pid::from_child(&daemon.child)), Resource::Nofile, limit).unwrap();
}

/// A daemon whose log goes where it can't be followed.
fn with_log(stderr: Stdio) -> (tempfile::TempDir, Child) {
    let folder = private_folder();
    let child = weaved()
        .args(["--engine=pattern", "--pattern=gradient", "--log=debug", "--faults=fail@fail", "--socket"])
        .arg(folder.path().join("weave.sock"))
        .stdin(Stdio::null())
        .stderr(stderr)
        .spawn()
        .unwrap();
    (folder, child)
}

/// It serves, notes failures, replaces a worker and ends properly.
fn assert_works(folder: &tempfile::TempDir, mut child: Child) {
    let socket = folder.path().join("weave.sock");
    eventually("it listens", || UnixStream::connect(&socket).is_ok());
    let mut client = Client::new(UnixStream::connect(&socket).unwrap());
    client.send(1, "fail", 1);
    assert!(matches!(client.answer(), Some(harness::Answer::Error { id: 1, .. })));
    let pid = child.id();
    let workers = || -> Vec<i32> {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    };
    let [worker] = workers()[..] else { panic!() };
    kill_process(Pid::from_raw(worker).unwrap(), Signal::KILL).unwrap();
    client.send(2, "again", 2);
    client.expect_gradient(2, "again", 2);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(wait(&mut child).code(), Some(0));
}

#[test]
fn a_full_disk_under_the_log_stops_nothing() {
    let full = || Stdio::from(OpenOptions::new().write(true).open("/dev/full").unwrap());
    let (folder, child) = with_log(full());
    assert_works(&folder, child);
    // Neither are exit codes lost with the words.
    let code = |args: &[&str]| {
        let mut child = weaved().args(args).stderr(full()).stdout(full()).spawn().unwrap();
        wait(&mut child).code()
    };
    assert_eq!(code(&["--queue=0"]), Some(2));
    assert_eq!(code(&["--config=/nonexistent"]), Some(78));
    assert_eq!(code(&["--help"]), Some(1));
    assert_eq!(code(&["--version"]), Some(1));
}

#[test]
fn a_reader_of_the_log_may_go_away() {
    let (folder, mut child) = with_log(Stdio::piped());
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    lines.next().unwrap().unwrap();
    drop(lines);
    assert_works(&folder, child);
}

#[test]
fn interrupted_system_calls_are_made_again() {
    let daemon = Daemon::pattern(&["--faults=slow=0.02"]);
    daemon.assert_serves();
    let daemon_pid = Pid::from_child(&daemon.child);
    let [worker] = daemon.workers()[..] else { panic!() };
    let worker = Pid::from_raw(worker).unwrap();
    std::thread::scope(|scope| {
        let clients = [1, 2, 3].map(|seed| {
            let daemon = &daemon;
            scope.spawn(move || {
                let mut client = daemon.connect();
                for id in 0..8 {
                    client.send(id, "again", seed);
                    let (its_id, pixels) = client.image();
                    assert!(its_id == id && pixels == gradient("again", seed));
                }
            })
        });
        // A process that was stopped finds its call interrupted, whatever the handlers say.
        while !clients.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            for signal in [Signal::STOP, Signal::CONT, Signal::CHILD, Signal::WINCH] {
                kill_process(daemon_pid, signal).unwrap();
                if signal != Signal::CHILD {
                    kill_process(worker, signal).unwrap();
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    assert!(is_alive(worker.as_raw_nonzero().get()), "the worker is the first one still");
}

#[test]
fn connections_that_are_gone_before_they_are_accepted_harm_nobody() {
    let daemon = Daemon::pattern(&["--tcp=127.0.0.1:0", "--connections=4"]);
    let address =
        daemon.log.wait("tcp://").split("tcp://").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    daemon.signal(Signal::STOP);
    for _ in 0..20 {
        drop(UnixStream::connect(&daemon.socket).unwrap());
        // It ends with a reset, and not with what is left to send.
        let stream = TcpStream::connect(&address).unwrap();
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    }
    daemon.signal(Signal::CONT);
    eventually("there is room again", || {
        let mut client = daemon.connect();
        client.send(1, "x", 1);
        matches!(client.answer(), Some(harness::Answer::Image { .. }))
    });
    daemon.assert_serves();
}

/// weaved with so many descriptors, as `ulimit` with these flags allows them.
fn with_descriptors(ulimit: &str, socket: &std::path::Path, flags: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit {ulimit} && exec \"$@\""), "sh", env!("CARGO_BIN_EXE_weaved")]);
    command
        .args(["--no-config", "--engine=pattern", "--pattern=gradient", "--socket"])
        .arg(socket)
        .args(flags);
    command
}

/// What stands behind `words` in a line.
fn number_after(line: &str, words: &str) -> usize {
    let digits: String = line.split(words).nth(1).unwrap().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

#[test]
fn with_too_few_descriptors_weaved_says_how_many_it_needs_and_with_enough_it_keeps_its_word() {
    let folder = private_folder();
    let socket = folder.path().join("weave.sock");
    let token = harness::token_file(folder.path(), harness::DIGITS);
    let tcp = ["--tcp=127.0.0.1:0", "--token-file", &token];
    for (flags, lowest) in [(&[][..], 16), (&tcp[..], 60)] {
        let mut least = 0;
        for limit in [lowest, lowest + 4, lowest + 12, lowest + 21] {
            let output = with_descriptors(&format!("-n {limit}"), &socket, flags).output().unwrap();
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(78), "{limit}: {text}");
            assert_eq!(text.lines().count(), 1, "{text}");
            let told = number_after(&text, "weaved needs at least ");
            assert!(least == 0 || least == told, "{text}");
            assert_eq!(number_after(&text, "LimitNOFILE="), told + 255, "{text}");
            least = told;
        }
        for limit in [least - 1, least, least + 1, least + 10] {
            let mut command = with_descriptors(&format!("-n {limit}"), &socket, flags);
            if limit < least {
                assert_eq!(command.output().unwrap().status.code(), Some(78), "{limit}");
                continue;
            }
            let daemon = Daemon::run(&mut command, &socket);
            let promised = number_after(&daemon.log.wait("accepting at most"), "accepting at most ");
            assert_eq!(promised, limit - least + 1);
            // All of them at once, with everything else that there may be.
            let _asking: Vec<_> =
                (0..7).map(|_| UnixStream::connect(harness::admin(&daemon)).unwrap()).collect();
            let mut clients: Vec<_> = (0..promised).map(|_| daemon.connect()).collect();
            if let [_, ..] = flags {
                let address = daemon.tcp_address();
                clients.truncate(promised);
                for _ in 0..64 {
                    std::mem::forget(TcpStream::connect(&address).unwrap());
                }
            }
            for (client, seed) in clients.iter_mut().zip(1..) {
                client.send(seed, "promised", seed);
                client.expect_gradient(seed, "promised", seed);
            }
            // Also when its worker has to be started anew.
            daemon.kill_worker();
            clients[0].send(1, "again", 1);
            clients[0].expect_gradient(1, "again", 1);
            let mut beyond = daemon.connect();
            beyond.expect_error(0, weave_core::error::ErrorCode::Busy);
            assert!(!daemon.log.all().contains("can't accept"), "{}", daemon.log.all());
            assert!(!daemon.log.all().contains("can't start"), "{}", daemon.log.all());
        }
    }
}

#[test]
fn the_limit_on_descriptors_is_raised_as_far_as_it_may_be() {
    let folder = private_folder();
    let socket = folder.path().join("weave.sock");
    let daemon = Daemon::run(&mut with_descriptors("-S -n 20", &socket, &["--connections=300"]), &socket);
    assert!(!daemon.log.all().contains("file descriptors"), "{}", daemon.log.all());
    assert!(harness::metric(&daemon, "process_max_fds") > 300.0);
    daemon.assert_serves();
}
