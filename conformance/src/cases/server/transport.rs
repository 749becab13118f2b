//! Section 2 of the specification, transport: what is tried on a server.

use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::case::{Case, recommended, required};
use crate::connection::{Answer, Came};
use crate::draft::Draft;
use crate::secret::PROMPT;
use crate::server::Server;
use crate::talk::{Expected, Talk};
use crate::testee::Address;
use crate::verdict::{Failure, Remark, Told, fail, not_applicable};

/// In the order of the text.
pub(super) const CASES: &[Case] = &[
    required("W1-TRN-001a", "a request cut in two anywhere is served").server(|server| {
        const ID: u64 = 0x0102_0304_0506_0708;
        let request = Draft::request(ID, "a cat in space").bytes();
        let mut connection = server.connect()?;
        let mut has_room_beside = true;
        for at in 1..request.len() {
            let (first, second) = request.split_at(at);
            connection.write(first);
            // Somebody else is served in between: by then the first piece has been read, in a call of its
            // own.
            if has_room_beside {
                match server.still_serves() {
                    Ok(()) => {}
                    // A server may serve one connection after the other. What is begun may have waited too long then.
                    Err(failure) if failure.no_place => has_room_beside = false,
                    Err(failure) if failure.requirement == "W1-CON-012" => {
                        has_room_beside = false;
                        connection = server.connect()?;
                        connection.write(first);
                    }
                    Err(failure) => return Err(failure),
                }
            }
            connection.set_deadline(Instant::now() + server.timeout);
            connection.write(second);
            let wrong = |problem: String| {
                let mut failure = Failure::new("W1-TRN-001", problem, "an image for the request");
                failure.variant = format!("cut after {at} bytes");
                failure.sent.clone_from(&request);
                Err(Box::new(failure))
            };
            match connection.receive()? {
                Came::Answer(Answer::Image { id: ID, .. } | Answer::Error { id: ID, status: 500, .. }) => {}
                Came::Answer(answer) => return wrong(format!("the answer is {answer}")),
                Came::Close => return wrong("the server closed the connection".to_owned()),
            }
        }
        server.barrier(&mut connection).map(|()| Remark::Pass)
    }),
    recommended("W1-TRN-002a", "the socket has mode 0600, its directory mode 0700").server(|server| {
        let Address::Unix(path) = server.address().clone() else {
            return not_applicable("the server listens on TCP");
        };
        let mode = |path: &Path| std::fs::metadata(path).map(|data| data.permissions().mode() & 0o777);
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        match (mode(&path), folder.map(mode)) {
            (Ok(0o600), Some(Ok(0o700))) => Ok(Remark::Pass),
            (Ok(0o600), Some(Ok(folder))) => {
                fail("W1-TRN-002", format!("the socket's folder has the mode {folder:04o}"), "0700")
            }
            (Ok(socket), _) => fail("W1-TRN-002", format!("the socket has the mode {socket:04o}"), "0600"),
            (Err(error), _) => fail("W1-TRN-002", format!("{}: {error}", path.display()), "a socket"),
        }
    }),
    required("W1-TRN-003a", "a peer with another user id is refused before it sends a byte").server(stranger),
    required("W1-TRN-004a", "a peer with another user id gets no answer").server(stranger),
    required("W1-TRN-005a", "integers are big-endian: ids and sides come back as sent").talks(|| {
        let sized = |id: u64, width: u64, height: u64| {
            let request = Draft::request(id, PROMPT).set("width", width).set("height", height);
            Talk::new(format!("{width}×{height}"), &[request], vec![Expected::Image { id, width, height }])
        };
        vec![sized(0x0102_0304_0506_0708, 64, 128), sized(0x8000_0000_0000_0001, 256, 64), sized(1, 192, 320)]
    }),
    required("W1-TRN-005b", "cfg_scale is a big-endian binary32")
        .server_vectors(&["request-cfg-scale-*", "cfg-scale-*"]),
    required("W1-TRN-006a", "the fields of a request have no padding between them").server_vectors(&[
        "request-example",
        "request-plain",
        "request-smallest",
    ]),
    required("W1-TRN-007a", "nobody but the server's own user and root is let in").server(stranger),
    recommended("W1-TRN-007b", "the server's own user is let in")
        .server(|server| server.still_serves().map(|()| Remark::Pass)),
];

/// Connects as another user, which only root can.
fn stranger(server: &mut Server) -> Told {
    let Address::Unix(path) = server.address().clone() else {
        return not_applicable("the server listens on TCP");
    };
    if !rustix::process::geteuid().is_root() {
        return not_applicable("only root can connect as another user");
    }
    if std::fs::metadata(&path).is_ok_and(|data| data.uid() != 0) {
        return not_applicable("the server runs as another user than root already");
    }
    // The socket, and what of ours is above it, is opened to everybody for this, so that the server has to
    // decide.
    let temp = std::env::temp_dir();
    let shared = std::path::absolute(&temp).unwrap_or(temp);
    let opened: Vec<_> = path
        .ancestors()
        .take_while(|path| path.starts_with(&shared) && **path != *shared)
        .filter_map(|path| Some((path.to_path_buf(), std::fs::metadata(path).ok()?.permissions())))
        .collect();
    for (path, _) in &opened {
        let _ = std::fs::set_permissions(path, PermissionsExt::from_mode(0o777));
    }
    // Nobody, a user of the system, and one who may be logged in.
    let mut told = Ok(Remark::Pass);
    for uid in [65_534, 1, 12_345] {
        told = as_stranger(&path, server.timeout, uid);
        if !matches!(told, Ok(Remark::Pass)) {
            break;
        }
    }
    for (path, permissions) in opened {
        let _ = std::fs::set_permissions(path, permissions);
    }
    server.still_serves()?;
    told
}

/// Starts this program again as another user, to connect and to say what comes.
fn as_stranger(path: &Path, timeout: Duration, uid: u32) -> Told {
    use std::os::unix::process::CommandExt;
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return not_applicable(&format!("this program can't be started again: {error}")),
    };
    let output = Command::new(&program)
        .arg("stranger")
        .arg(path)
        .arg(timeout.as_secs().max(1).to_string())
        .uid(uid)
        .gid(uid)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .output();
    let said = match output {
        Ok(output) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Err(error) => {
            return not_applicable(&format!("this program can't be started as another user: {error}"));
        }
    };
    match said.as_str() {
        "closed" | "refused" => Ok(Remark::Pass),
        "late" => fail(
            "W1-TRN-003",
            format!("a peer with the user id {uid} was closed only after it had sent something"),
            "a close at once",
        ),
        "served" => fail("W1-TRN-007", format!("a peer with the user id {uid} was served"), "a close"),
        "answered" => fail(
            "W1-TRN-004",
            format!("a peer with the user id {uid} got an answer"),
            "a close without an answer",
        ),
        "silent" => {
            let problem = format!("a peer with the user id {uid} was neither served nor turned away");
            fail("W1-TRN-004", problem, "a close")
        }
        _ => not_applicable("this program could not connect as another user"),
    }
}

/// What the program does when it was started as another user: connects, sends nothing at first, and prints
/// what comes.
pub fn be_a_stranger(path: &Path, timeout: Duration) {
    let mut stream = match UnixStream::connect(path) {
        Ok(stream) => stream,
        Err(_) => return println!("refused"),
    };
    let _ = stream.set_read_timeout(Some(timeout));
    // A server that decides by the kernel's credentials needs no byte for that. One that lets strangers stay waits
    // for a request, so it gets one then.
    let said = match what_comes(&mut stream) {
        "silent" => {
            let _ = stream.write_all(&Draft::request(1, "a stranger").bytes());
            match what_comes(&mut stream) {
                "closed" => "late",
                other => other,
            }
        }
        other => other,
    };
    println!("{said}");
}

fn what_comes(stream: &mut UnixStream) -> &'static str {
    let mut header = [0; 16];
    match stream.read(&mut header) {
        Ok(0) => "closed",
        Ok(n) if n >= 8 && header[7] == 2 => "served",
        Ok(_) => "answered",
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => "closed",
        Err(_) => "silent",
    }
}
