//! Who may come in, and what weaved does when the system has nothing left to give.

mod harness;

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use harness::{Answer, Client, Daemon, private_folder, request, weaved};

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Starts weaved, which must not start. Gives its exit code and its one line.
fn refused(socket: &Path, flags: &[&str]) -> (i32, String) {
    let output = weaved().args(["--engine=pattern", "--socket"]).arg(socket).args(flags).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    (output.status.code().unwrap(), text)
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
    let daemon = Daemon::pattern(&[]);
    assert_eq!(mode(&daemon.socket), 0o600);
    assert_eq!(mode(daemon.socket.parent().unwrap()), 0o700);
    let lock = daemon.socket.with_extension("sock.lock");
    assert_eq!(mode(&lock), 0o600);
    daemon.assert_serves();
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
    let _ = stream.write_all(&request(1, "me too", 1));
    match Client::new(stream).answer() {
        Some(Answer::Image { .. }) => println!("was served"),
        Some(other) => panic!("{other:?}"),
        None => println!("was closed"),
    }
}

/// Connects as this user with these groups, the first of which is the own one. Gives what it says.
fn as_somebody_else(socket: &Path, uid: u32, groups: &[u32]) -> String {
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
    command.arg(&program).args(["--exact", "be_somebody_else", "--ignored", "--nocapture"]);
    command.current_dir("/").env("WEAVE_TEST_SOCKET", socket).stdin(Stdio::null());
    let output = command.output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn users_and_groups_that_are_listed_come_in_and_no_others() {
    if !is_root() {
        return;
    }
    let (ann, ben, staff, other) = (54_321, 54_322, 54_401, 54_402);
    let served = |socket: &Path, uid, groups: &[u32]| {
        let said = as_somebody_else(socket, uid, groups);
        assert!(
            said.contains("was served") || said.contains("was closed") || said.contains("Permission denied"),
            "{said}"
        );
        said.contains("was served")
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
