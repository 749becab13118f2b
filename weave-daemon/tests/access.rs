//! Who may come in, and what weaved does when the system has nothing left to give.

mod harness;

use std::fs::{self, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use harness::{DIGITS, Daemon, Log, PATIENCE, metric, private_folder, refused, request, token_file, weaved};

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
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

/// Whoever may ask for images is told what suits the model and how far they are, and not what the machine bears.
#[test]
fn clients_may_ask_for_what_is_about_them() {
    if !is_root() {
        return;
    }
    let (ann, ben, staff) = (54_321, 54_322, 54_401);
    let daemon = Daemon::pattern(&[&format!("--allow-gids={staff}")]);
    let admin = harness::admin(&daemon);
    assert_eq!((mode(&admin), admin.metadata().unwrap().gid()), (0o660, staff));
    let said = as_somebody_else("ask_as_somebody_else", &admin, ann, &[staff]);
    for page in ["/model", "/requests", "/healthz", "/readyz"] {
        said.wait(&format!("{page}: (200, "));
    }
    for page in ["/stats", "/metrics"] {
        let line = said.wait(&format!("{page}: (403, "));
        assert!(line.contains("others may ask for /model, /requests"), "{line}");
    }
    said.wait("at once: HTTP/1.1 503");
    said.wait("holds its places");
    assert_eq!(harness::get(&admin, "/stats").0, 200, "who runs it is not kept out");

    let daemon = Daemon::pattern(&[&format!("--allow-uids={ann}")]);
    let admin = harness::admin(&daemon);
    let said = as_somebody_else("ask_as_somebody_else", &admin, ben, &[ben]);
    for page in ["/model", "/requests", "/healthz", "/readyz", "/stats", "/metrics"] {
        said.wait(&format!(
            "{page}: (403, \"only weaved's own user, root, and users who may ask for images may ask here"
        ));
    }
    said.wait("at once: HTTP/1.1 403");
    daemon.log.wait(&format!("admin: refused a connection: uid {ben}"));
}

/// Whoever can rename a folder above the socket's can put another daemon in its place.
#[test]
fn a_folder_further_up_that_others_can_change_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let open = scratch.path().join("open");
    let socket = open.join("run/weave.sock");
    fs::create_dir(&open).unwrap();
    let check = || {
        let output = weaved().args(["check", "--engine=pattern", "--socket"]).arg(&socket).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    for exists in [false, true] {
        for mode in [0o777, 0o2777, 0o757] {
            set_mode(&open, mode);
            let (code, text) = refused(&socket, &[]);
            assert_eq!(code, 77, "{text}");
            let words = format!("open has mode {mode:04o}, so every user could replace what is in it");
            assert!(text.contains(&words) && text.contains("trusted_folders"), "{text}");
            assert!(check().lines().any(|line| line.starts_with("error socket: ") && line.contains(&words)));
            assert_eq!(socket.parent().unwrap().exists(), exists, "nothing is made there");
        }
        let flag = format!("--trusted-folders=/nonexistent,{}", open.display());
        let mut command = weaved();
        command.args(["--engine=pattern", "--pattern=gradient", &flag, "--socket"]).arg(&socket);
        Daemon::run(&mut command, &socket).assert_serves();
    }
    // As /tmp is.
    set_mode(&open, 0o1777);
    let mut command = weaved();
    command.args(["--engine=pattern", "--pattern=gradient", "--socket"]).arg(&socket);
    Daemon::run(&mut command, &socket).assert_serves();
    assert!(check().contains("ok    socket: "));

    if is_root() {
        std::os::unix::fs::chown(&open, Some(4242), None).unwrap();
        let (code, text) = refused(&socket, &[]);
        assert_eq!(code, 77, "{text}");
        assert!(text.contains("open belongs to uid 4242, who could replace what is in it"), "{text}");
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

/// The same at the administrative socket.
#[test]
#[ignore = "part of another test"]
fn ask_as_somebody_else() {
    let socket = std::env::var("WEAVE_TEST_SOCKET").unwrap();
    for page in ["/model", "/requests", "/healthz", "/readyz", "/stats", "/metrics"] {
        println!("{page}: {:?}", harness::get(Path::new(&socket), page));
    }
    // Who does no more than connect has a part of the places alone.
    let held: Vec<_> = (0..8).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    for mut stream in held.iter().rev() {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = [0; 12];
        if stream.read_exact(&mut answer).is_ok() {
            println!("at once: {}", String::from_utf8_lossy(&answer));
            break;
        }
    }
    println!("holds its places");
    std::thread::sleep(PATIENCE);
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
    for _ in 0..2 {
        assert!(!served(&daemon.socket, ben, &[ben, staff]));
        let line = daemon.log.wait("(1 so far)");
        assert!(line.starts_with("WARN ") && line.contains(&format!("uid {ben}, gid {ben}")), "{line}");
    }
    daemon.assert_serves();
    let lines = daemon.log.all();
    assert_eq!(lines.matches("refused").count(), 1, "one line a minute: {lines}");
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
    let daemon = Daemon::pattern(&[&format!("--allow-gids={staff},{}", other + 1)]);
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
    // At the other loopback address as well, if there is one.
    let ipv6 = std::net::TcpListener::bind("[::1]:0").is_ok();
    assert_eq!(listens(&daemon), 1 + usize::from(ipv6));
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
        (0o644, 77, "has mode 0644, must have at most 0600, or 0640 if it is root's"),
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
    let pipe = folder.path().join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    for (file, words) in [
        ("/nonexistent", "No such file"),
        ("/dev/null", "is a device, not a file"),
        // Nobody ever writes to it.
        (pipe.to_str().unwrap(), "is a pipe, not a file"),
    ] {
        let (code, text) = refused(&socket, &["--tcp=0.0.0.0:0", "--allow-remote", "--token-file", file]);
        assert_eq!(code, 78, "{text}");
        assert!(text.contains(words), "{text}");
    }
    // A private file in a folder where everybody could put another.
    let open = folder.path().join("open");
    fs::create_dir(&open).unwrap();
    set_mode(&open, 0o777);
    let within = token_file(&open, DIGITS);
    let (code, text) = refused(&socket, &["--tcp=0.0.0.0:0", "--allow-remote", "--token-file", &within]);
    assert_eq!(code, 77, "{text}");
    assert!(text.contains("open has mode 0777") && text.contains("openssl rand"), "{text}");

    token_file(folder.path(), DIGITS);
    // A group may read what is root's: that is how a service comes by it.
    set_mode(Path::new(&file), if rustix::process::geteuid().is_root() { 0o640 } else { 0o600 });
    let daemon = Daemon::pattern(&all);
    let port = daemon.tcp_address().rsplit(':').next().unwrap().to_owned();
    let mut client = weave_client::Client::new(format!("tcp://localhost:{port}"));
    client.set_timeout(Some(PATIENCE));
    let told = client.ping().unwrap_err().to_string();
    assert!(told.contains("give the client the daemon's token file"), "{told}");
    client.set_token(Some(weave_client::Token::read(Path::new(&file)).unwrap()));
    client.ping().unwrap();
    assert!(!daemon.log.all().to_lowercase().contains(&DIGITS[..8]), "the token is not logged");
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
