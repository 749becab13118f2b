//! Who may come in, and what weaved does when the system has nothing left to give.

mod harness;

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use harness::{Daemon, Log, PATIENCE, metric, private_folder, request, weaved};

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Starts weaved, which must not start. Gives its exit code and its one line.
fn refused(socket: &Path, flags: &[&str]) -> (i32, String) {
    let mut command = weaved();
    command.args(["--engine=pattern", "--socket"]).arg(socket).args(flags).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let text = lines.next().unwrap();
    if text.contains("listening") {
        child.kill().unwrap();
        panic!("it was not refused: {flags:?}");
    }
    assert_eq!(lines.next(), None, "{text}");
    (harness::wait(&mut child).code().unwrap(), text)
}

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("NOT CHECKED: only root can connect as somebody else");
    }
    is_root
}

#[test]
fn only_its_owner_can_reach_the_socket() {
    for sandbox in ["on", "off"] {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("run/weave.sock");
        // Whatever mask it was started with.
        let mut command = Command::new("sh");
        command.args(["-c", "umask 0; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_weaved"), "--no-config"]);
        command
            .args(["--engine=pattern", "--pattern=gradient", "--sandbox", sandbox, "--socket"])
            .arg(&socket);
        let daemon = Daemon::run(&mut command, &socket);
        assert_eq!(mode(&socket), 0o600);
        assert_eq!(mode(socket.parent().unwrap()), 0o700);
        assert_eq!(mode(&socket.with_extension("sock.lock")), 0o600);
        assert_eq!(mode(&harness::admin(&daemon)), 0o600);
        daemon.assert_serves();
    }
}

#[test]
fn a_folder_that_others_can_use_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("run");
    fs::create_dir(&folder).unwrap();
    let socket = folder.join("weave.sock");
    for (bits, flags, words) in [
        (0o755, &[][..], "has mode 0755, must have at most 0700"),
        (0o750, &[], "has mode 0750, must have at most 0700"),
        (0o701, &[], "has mode 0701"),
        (0o1777, &[], "has mode 0777"),
        (0o770, &["--allow-gids=4242"], "has mode 0770, must have at most 0750"),
        (0o751, &["--allow-gids=4242"], "has mode 0751, must have at most 0750"),
        (0o750, &["--allow-gids=4242"], "not to group 4242"),
        (0o775, &["--allow-uids=4242"], "has mode 0775, must have at most 0755"),
    ] {
        set_mode(&folder, bits);
        let (code, text) = refused(&socket, flags);
        assert_eq!(code, 77, "{text}");
        assert!(text.contains(words) && text.contains("run "), "{bits:o} {flags:?}: {text}");
        assert!(!socket.exists());
    }
    set_mode(&folder, 0o700);
    let link = scratch.path().join("link");
    symlink(&folder, &link).unwrap();
    let (code, text) = refused(&link.join("weave.sock"), &[]);
    assert_eq!(code, 77, "{text}");
    assert!(text.contains("is a symbolic link"), "{text}");
    let file = scratch.path().join("file");
    fs::write(&file, "").unwrap();
    let (code, text) = refused(&file.join("weave.sock"), &[]);
    assert_eq!(code, 1, "{text}");

    if is_root() {
        std::os::unix::fs::chown(&folder, Some(65_534), None).unwrap();
        let (code, text) = refused(&socket, &[]);
        assert_eq!(code, 77, "{text}");
        assert!(text.contains("belongs to uid 65534, not to uid 0"), "{text}");
    }
}

#[test]
fn what_lies_in_the_sockets_place_is_left_alone() {
    let folder = private_folder();
    let file = folder.path().join("file");
    fs::write(&file, "precious").unwrap();
    let link = folder.path().join("link");
    symlink(&file, &link).unwrap();
    for path in [&file, &link] {
        let (code, text) = refused(path, &[]);
        assert_eq!(code, 1, "{text}");
        assert!(text.contains("is not a socket"), "{text}");
    }
    // Neither is the lock file a way to have weaved open something else.
    symlink(&file, folder.path().join("weave.sock.lock")).unwrap();
    let (code, text) = refused(&folder.path().join("weave.sock"), &[]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("lock file"), "{text}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn a_daemon_removes_no_socket_but_its_own() {
    let mut daemon = Daemon::pattern(&[]);
    fs::remove_file(&daemon.socket).unwrap();
    let others = std::os::unix::net::UnixListener::bind(&daemon.socket).unwrap();
    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(daemon.socket.exists());
    drop(others);
}

/// What a process of another user does in the test below: it is this program, started again.
#[test]
#[ignore = "part of another test"]
fn be_somebody_else() {
    let mut stream = UnixStream::connect(std::env::var("WEAVE_TEST_SOCKET").unwrap()).unwrap();
    // A peer that is refused may find the connection closed already.
    let is_asked = stream.write_all(&request(1, "me too", 1)).is_ok();
    println!("asked: {is_asked}");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut head = [0; 16];
    match stream.read(&mut head) {
        Ok(16) => println!("was served: {}", head.starts_with(b"WEVE\0\x01\0\x02")),
        Ok(0) => println!("was closed"),
        // So the kernel says it if there was something left to read.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => println!("was closed unread"),
        other => panic!("{other:?}"),
    }
}

/// Runs one of the tests above or below as this user with these groups, the first of which is the own one. Gives
/// what it says.
fn as_somebody_else(test: &str, socket: &Path, uid: u32, groups: &[u32]) -> Log {
    // Its folder may be closed to others.
    let folder = tempfile::tempdir().unwrap();
    set_mode(folder.path(), 0o755);
    let program = folder.path().join("program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let more: Vec<_> = groups[1..].iter().map(u32::to_string).collect();
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={uid}")).arg(format!("--regid={}", groups[0]));
    match &more[..] {
        [] => command.arg("--clear-groups"),
        more => command.arg(format!("--groups={}", more.join(","))),
    };
    command.arg(&program).args(["--exact", test, "--ignored", "--nocapture"]);
    command.current_dir("/").env("WEAVE_TEST_SOCKET", socket).stdin(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let said = Log::default();
    said.follow(child.stdout.take().unwrap());
    said.follow(child.stderr.take().unwrap());
    std::thread::spawn(move || {
        let _ = child.wait();
        drop(folder);
    });
    said
}

#[test]
fn users_and_groups_that_are_listed_come_in_and_no_others() {
    if !is_root() {
        return;
    }
    let (ann, ben, staff, other) = (54_321, 54_322, 54_401, 54_402);
    let served = |socket: &Path, uid, groups: &[u32]| {
        let said = as_somebody_else("be_somebody_else", socket, uid, groups);
        said.wait("test result: ");
        let said = said.all();
        assert!(
            said.contains("was served") || said.contains("was closed") || said.contains("Permission denied"),
            "{said}"
        );
        said.contains("was served: true")
    };

    // Users: the modes let everybody connect, the kernel's word decides.
    let daemon = Daemon::pattern(&[&format!("--allow-uids={ann},{}", ann + 7)]);
    assert_eq!((mode(&daemon.socket), mode(daemon.socket.parent().unwrap())), (0o666, 0o711));
    assert!(served(&daemon.socket, ann, &[ann]));
    for nth in 1..=2 {
        assert!(!served(&daemon.socket, ben, &[ben, staff]));
        let line = daemon.log.wait(&format!("({nth} so far)"));
        assert!(line.starts_with("WARN ") && line.contains(&format!("uid {ben}, gid {ben}")), "{line}");
    }
    daemon.assert_serves();
    let lines = daemon.log.all();
    assert_eq!(lines.matches("refused").count(), 2, "one line each: {lines}");
    assert_eq!(metric(&daemon, "weave_connections_refused_total{reason=\"peer\"}"), 2.0);
    // What such a one has said is not read, not even if it was there first.
    let read = metric(&daemon, "weave_received_bytes_total");
    daemon.freeze();
    let said = as_somebody_else("be_somebody_else", &daemon.socket, ben, &[ben]);
    said.wait("asked: true");
    daemon.signal(rustix::process::Signal::CONT);
    said.wait("was closed unread");
    assert_eq!(metric(&daemon, "weave_connections_refused_total{reason=\"peer\"}"), 3.0);
    assert_eq!(metric(&daemon, "weave_received_bytes_total"), read);

    // One group: the modes say it as well.
    let daemon = Daemon::pattern(&[&format!("--allow-gids={staff}")]);
    let folder = daemon.socket.parent().unwrap();
    assert_eq!((mode(&daemon.socket), mode(folder)), (0o660, 0o710));
    assert_eq!((daemon.socket.metadata().unwrap().gid(), folder.metadata().unwrap().gid()), (staff, staff));
    assert!(served(&daemon.socket, ann, &[staff]));
    assert!(served(&daemon.socket, ann, &[ann, other, staff]), "supplementary groups count");
    assert!(!served(&daemon.socket, ann, &[ann, other]));

    // Several groups: only the credentials can say it.
    let daemon = Daemon::pattern(&[&format!("--allow-gids={staff},{}", other + 1)]);
    assert_eq!(mode(&daemon.socket), 0o666);
    assert!(served(&daemon.socket, ben, &[ben, other, staff]));
    assert!(!served(&daemon.socket, ben, &[ben, other]));
    daemon.log.wait(&format!("uid {ben}, gid {ben} may not connect (1 so far)"));
    // More of them than are looked through: told, and not guessed.
    let many: Vec<_> = (60_000..61_100).collect();
    assert!(!served(&daemon.socket, ben, &[&[ben], &many[..]].concat()));
    daemon.log.wait("its other groups are unknown");
    daemon.assert_serves();
}

/// What a process of another user does in the test below.
#[test]
#[ignore = "part of another test"]
fn be_many() {
    let connect = || UnixStream::connect(std::env::var("WEAVE_TEST_SOCKET").unwrap()).unwrap();
    let mut streams: Vec<_> = std::iter::repeat_with(connect).take(260).collect();
    let mut last = [0; 16];
    streams[259].read_exact(&mut last).unwrap();
    println!("the last is refused: {}", last.starts_with(b"WEVE\0\x01\0\xff"));
    // Until the daemon ends, all of them stay.
    let _ = streams[0].read(&mut last);
}

#[test]
fn a_user_that_takes_all_it_can_does_not_keep_the_owner_out() {
    if !is_root() {
        return;
    }
    let (ann, ben) = (54_321, 54_322);
    let daemon = Daemon::pattern(&[&format!("--allow-uids={ann},{ben}")]);
    let said = as_somebody_else("be_many", &daemon.socket, ann, &[ann]);
    said.wait("the last is refused: true");
    daemon.assert_serves();
    let others = as_somebody_else("be_somebody_else", &daemon.socket, ben, &[ben]);
    others.wait("was served: true");
    daemon.log.wait("128 connections of uid 54321 are open, at most 128 may be");
}

#[test]
fn a_group_that_is_not_ours_to_give_is_refused() {
    if !is_root() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("run");
    fs::create_dir(&folder).unwrap();
    set_mode(scratch.path(), 0o755);
    set_mode(&folder, 0o700);
    std::os::unix::fs::chown(&folder, Some(54_321), Some(54_321)).unwrap();
    let program = scratch.path().join("weaved");
    fs::copy(env!("CARGO_BIN_EXE_weaved"), &program).unwrap();
    let socket = folder.join("weave.sock");
    let output = Command::new("setpriv")
        .args(["--reuid=54321", "--regid=54321", "--clear-groups"])
        .arg(&program)
        .args(["--no-config", "--engine=pattern", "--allow-gids=54401", "--socket"])
        .arg(&socket)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(77), "{text}");
    assert!(text.contains("to group 54401 of allow_gids"), "{text}");
    assert!(!socket.exists(), "it is not left behind");
}

fn tcp(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Writes what it can, and says whether an image came back or the end, without a byte.
fn is_served(mut stream: TcpStream, parts: &[&[u8]]) -> bool {
    for part in parts {
        // A peer that was refused may be closed already.
        let _ = stream.write_all(part).and_then(|()| stream.flush());
    }
    let mut first = [0];
    match stream.read(&mut first) {
        Ok(1) => {
            assert_eq!(first, *b"W");
            true
        }
        Ok(_) => false,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
        Err(error) => panic!("{error}"),
    }
}

fn token_file(folder: &Path, digits: &str) -> String {
    let file = folder.join("token");
    fs::write(&file, format!("{digits}\n")).unwrap();
    set_mode(&file, 0o600);
    file.to_str().unwrap().to_owned()
}

const DIGITS: &str = "00112233445566778899aabbccddeeffFFEEDDCCBBAA99887766554433221100";

#[test]
fn tcp_is_off_until_asked_for_and_then_within_this_machine() {
    // The inodes of what the process listens on, against the kernel's tables of TCP.
    let listens = |daemon: &Daemon| {
        let pid = daemon.child.id();
        let sockets: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .filter_map(|fd| fs::read_link(fd.ok()?.path()).ok()?.to_str().map(str::to_owned))
            .filter_map(|link| Some(link.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
            .collect();
        ["tcp", "tcp6"]
            .iter()
            .flat_map(|table| {
                let table = fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
                table.lines().map(str::to_owned).collect::<Vec<_>>()
            })
            .filter(|line| {
                line.split_whitespace().nth(9).is_some_and(|inode| sockets.iter().any(|s| s == inode))
            })
            .count()
    };
    assert_eq!(listens(&Daemon::pattern(&[])), 0);
    let daemon = Daemon::pattern(&["--tcp=127.0.0.1:0"]);
    assert_eq!(listens(&daemon), 1);
    let address = daemon.tcp_address();

    let mut client = weave_client::Client::new(format!("tcp://{address}"));
    client.set_timeout(Some(PATIENCE));
    let params = weave_client::Params { width: 64, height: 64, steps: 1, cfg_scale: 1.0, seed: 7 };
    for _ in 0..2 {
        let image = client.generate(&params, "over there").unwrap();
        assert!(image.pixels == harness::gradient("over there", 7));
    }
    daemon.assert_serves();

    // The same port again, whoever has it.
    let folder = private_folder();
    let socket = folder.path().join("weave.sock");
    let (code, text) = refused(&socket, &[&format!("--tcp={address}")]);
    assert_eq!(code, 69, "{text}");
    assert!(text.contains(&format!("can't listen on TCP at {address}")), "{text}");
    assert!(!socket.exists(), "the socket is not left behind");
}

#[test]
fn other_machines_come_in_with_a_token_or_not_at_all() {
    let folder = private_folder();
    let socket = folder.path().join("weave.sock");
    let file = token_file(folder.path(), DIGITS);
    let token = format!("--token-file={file}");
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:7433", "[::ffff:192.0.2.1]:7433"] {
        let (code, text) = refused(&socket, &["--tcp", address, &token]);
        assert_eq!(code, 78, "{text}");
        assert!(text.contains(address) && text.contains("--allow-remote"), "{text}");
        let (code, text) = refused(&socket, &["--tcp", address, "--allow-remote"]);
        assert_eq!(code, 78, "{text}");
        assert!(text.contains("--token-file") && text.contains("TCP.md"), "{text}");
    }
    let all = ["--tcp=0.0.0.0:0", "--allow-remote", &token];
    for (mode, code, words) in [
        (0o644, 77, "has mode 0644, must have at most 0640"),
        (0o604, 77, "has mode 0604"),
        (0o660, 77, "has mode 0660"),
    ] {
        set_mode(Path::new(&file), mode);
        let (its_code, text) = refused(&socket, &all);
        assert_eq!(its_code, code, "{text}");
        assert!(text.contains(words) && text.contains("openssl rand"), "{text}");
        assert!(!text.contains(&DIGITS[..8]), "the token is not told: {text}");
    }
    for wrong in ["", &DIGITS[1..], &format!("{DIGITS}0"), &format!("{DIGITS}\n{DIGITS}"), "correct horse"] {
        token_file(folder.path(), wrong);
        let (code, text) = refused(&socket, &all);
        assert_eq!(code, 78, "{text}");
        assert!(text.contains("holds something else; it takes 64 hexadecimal digits"), "{text}");
    }
    for (file, words) in [("/nonexistent", "No such file"), ("/dev/null", "is not a file")] {
        let (code, text) = refused(&socket, &["--tcp=0.0.0.0:0", "--allow-remote", "--token-file", file]);
        assert_eq!(code, 78, "{text}");
        assert!(text.contains(words), "{text}");
    }

    token_file(folder.path(), DIGITS);
    set_mode(Path::new(&file), 0o640);
    let daemon = Daemon::pattern(&all);
    let port = daemon.tcp_address().rsplit(':').next().unwrap().to_owned();
    let mut client = weave_client::Client::new(format!("tcp://localhost:{port}"));
    client.set_timeout(Some(PATIENCE));
    assert!(matches!(client.ping(), Err(weave_client::Error::HungUp { received: 0 })));
    client.set_token(Some(weave_client::Token::read(Path::new(&file)).unwrap()));
    client.ping().unwrap();
    assert!(!daemon.log.all().to_lowercase().contains(&DIGITS[..8]), "the token is not logged");
}

#[test]
fn a_wrong_token_costs_nothing_but_its_connection() {
    let folder = tempfile::tempdir().unwrap();
    let file = token_file(folder.path(), DIGITS);
    let daemon = Daemon::pattern(&["--tcp=[::1]:0", "--token-file", &file, "--connections=2"]);
    let address = daemon.tcp_address();
    let right = format!("weave-token {}\n", DIGITS.to_lowercase());
    let mut ask = request(1, "x", 1);

    let mut wrong_last = right.clone().into_bytes();
    wrong_last[75] ^= 1;
    let mut no_end = right.clone().into_bytes();
    no_end[76] = b' ';
    let refusals: [(&[u8], &str); 6] = [
        (&ask, "it did not begin with a token"),
        (b"GET / HTTP/1.1\r\n\r\n", "it did not begin with a token"),
        (b"Weave-token ", "it did not begin with a token"),
        (&wrong_last, "its token is wrong"),
        (&no_end, "its token is wrong"),
        (&[b'w'; 77], "it did not begin with a token"),
    ];
    for (at, (bytes, words)) in refusals.iter().enumerate() {
        assert!(!is_served(tcp(&address), &[bytes, &ask]), "{words}");
        let line = daemon.log.wait(&format!("({} so far)", at + 1));
        assert!(line.starts_with("WARN ") && line.contains(words) && line.contains("[::1]:"), "{line}");
    }
    // In part, and then no more.
    let stream = tcp(&address);
    (&stream).write_all(&right.as_bytes()[..40]).unwrap();
    drop(stream);
    daemon.log.wait("it closed before its token was there (7 so far)");

    // The token may come in pieces, in capitals, and together with what follows it.
    let pieces: Vec<&[u8]> = right.as_bytes().chunks(1).chain([&ask[..]]).collect();
    assert!(is_served(tcp(&address), &pieces));
    let capitals = format!("weave-token {}\n", DIGITS.to_uppercase());
    assert!(is_served(tcp(&address), &[capitals.as_bytes(), &ask]));
    let mut together = right.clone().into_bytes();
    together.append(&mut ask);
    assert!(is_served(tcp(&address), &[&together]));

    // Those who say nothing take no client's place, and the first of them go when there are too many.
    let silent: Vec<_> = (0..80).map(|_| tcp(&address)).collect();
    for nth in 1..=16 {
        daemon.log.wait_nth("no token yet, and others wait", nth);
    }
    assert!(is_served(tcp(&address), &[&together]));
    daemon.assert_serves();
    assert!(is_closed(&silent[0]) && !is_closed(&silent[79]));
    // They don't stay for ever either.
    let start = Instant::now();
    assert!(!is_served(silent.into_iter().next_back().unwrap(), &[]));
    assert!(start.elapsed() < Duration::from_secs(20));
    daemon.log.wait("no token within 10s");
}

#[test]
fn an_address_is_one_user_by_whatever_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = token_file(folder.path(), DIGITS);
    let daemon =
        Daemon::pattern(&["--tcp=[::]:0", "--allow-remote", "--token-file", &file, "--connections=4"]);
    let port: u16 = daemon.tcp_address().rsplit(':').next().unwrap().parse().unwrap();
    let enter = |host: &str| {
        let mut stream = tcp(&format!("{host}:{port}"));
        stream.write_all(format!("weave-token {DIGITS}\n").as_bytes()).unwrap();
        stream
    };
    let (_mapped, _loopback) = (enter("127.0.0.1"), enter("[::1]"));
    harness::eventually("both are in", || metric(&daemon, "weave_connections") == 2.0);
    let mut answer = Vec::new();
    enter("[::1]").read_to_end(&mut answer).unwrap();
    let text = String::from_utf8_lossy(&answer);
    assert!(text.contains("2 connections of 127.0.0.1 are open, at most 2 may be"), "{text}");
    daemon.assert_serves();
}

fn is_closed(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let is_closed = match (&mut &*stream).read(&mut [0]) {
        Ok(0) => true,
        Err(error) => error.kind() != ErrorKind::WouldBlock,
        Ok(_) => panic!("it said something"),
    };
    stream.set_nonblocking(false).unwrap();
    is_closed
}

/// The block of a configuration in TCP.md, with what stands there replaced by what is here.
fn documented(name: &str, replacements: &[(&str, String)]) -> String {
    let text = include_str!("../TCP.md");
    let block = text.split(&format!("```haproxy {name}\n")).nth(1).unwrap().split("```").next().unwrap();
    replacements.iter().fold(block.to_owned(), |block, (there, here)| {
        assert!(block.contains(there), "{there} is not in the block {name}");
        block.replace(there, here)
    })
}

fn run(folder: &Path, line: &str) {
    let output = Command::new("sh").arg("-ec").arg(line).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

struct Proxy(std::process::Child);

impl Proxy {
    fn start(folder: &Path, name: &str, config: &str) -> Self {
        fs::write(folder.join(name), config).unwrap();
        let command = Command::new("haproxy").arg("-db").arg("-f").arg(folder.join(name)).spawn();
        Self(command.unwrap())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_documented_proxies_let_certificates_in_and_nothing_else() {
    if Command::new("haproxy").arg("-v").stdout(Stdio::null()).status().is_err() {
        eprintln!("NOT CHECKED: haproxy is not installed");
        return;
    }
    let daemon = Daemon::pattern(&[]);
    let scratch = private_folder();
    let folder = scratch.path();
    run(
        folder,
        "new() { openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=$1 \
                 -keyout $1.key -out $1.crt $2 $3 $4 $5 $6 $7; cat $1.crt $1.key >$1.pem; }
         new authority
         new box.example -CA authority.crt -CAkey authority.key
         new client -CA authority.crt -CAkey authority.key
         new stranger",
    );
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (outside, inside, strange) = (free(), free(), free());
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let authority = ("/etc/weave/authority.pem", path("authority.pem"));
    let box_ = documented(
        "box",
        &[
            ("bind :7434", format!("bind 127.0.0.1:{outside}")),
            ("/etc/weave/box.pem", path("box.example.pem")),
            authority.clone(),
            ("/run/weave/weave.sock", daemon.socket.to_str().unwrap().to_owned()),
        ],
    );
    let client = |port: u16, certificate: &str| {
        let here = [
            ("127.0.0.1:7433", format!("127.0.0.1:{port}")),
            ("box.example:7434", format!("127.0.0.1:{outside}")),
            ("/etc/weave/client.pem", path(certificate)),
            authority.clone(),
        ];
        documented("client", &here)
    };
    let _box = Proxy::start(folder, "box.cfg", &box_);
    let _client = Proxy::start(folder, "client.cfg", &client(inside, "client.pem"));
    let _stranger = Proxy::start(folder, "stranger.cfg", &client(strange, "stranger.pem"));
    for port in [outside, inside, strange] {
        harness::eventually("the proxy listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    }
    let mut client = weave_client::Client::new(format!("tcp://127.0.0.1:{inside}"));
    client.set_timeout(Some(PATIENCE));
    let params = weave_client::Params { width: 64, height: 64, steps: 1, cfg_scale: 1.0, seed: 3 };
    let image = client.generate(&params, "far away").unwrap();
    assert!(image.pixels == harness::gradient("far away", 3));
    for port in [outside, strange] {
        let mut client = weave_client::Client::new(format!("tcp://127.0.0.1:{port}"));
        client.set_timeout(Some(PATIENCE));
        assert!(matches!(client.ping(), Err(weave_client::Error::HungUp { received: 0 })), "{port}");
    }
}
