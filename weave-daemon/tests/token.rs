//! The token over TCP: what is said before the first frame (`TCP.md`), and who holds up whom there.

mod harness;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use harness::{
    Answer, Client, DIGITS, Daemon, PATIENCE, eventually, metric, private_folder, refused, request,
    token_file,
};
use hmac::{Hmac, KeyInit, Mac};
use rustix::net::{AddressFamily, SocketType};
use sha2::Sha256;
use weave_core::error::ErrorCode;

const HELLO: &str = "weave-auth 1 ";
/// A nonce, for clients that don't care.
const NONCE: &str = "a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5";

fn unhex(digits: &str) -> Vec<u8> {
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

/// What proves that this side knows the token, in digits.
fn proof(side: &str, client_nonce: &str, server_nonce: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(&unhex(DIGITS)).unwrap();
    mac.update(HELLO.as_bytes());
    mac.update(side.as_bytes());
    mac.update(&unhex(client_nonce));
    mac.update(&unhex(server_nonce));
    mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn connect(address: &str) -> TcpStream {
    patient(TcpStream::connect(address).unwrap())
}

fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// A connection from an address of this machine's own.
fn connect_from(own: [u8; 4], address: &str) -> TcpStream {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddr::from((own, 0))).unwrap();
    rustix::net::connect(&socket, &address.parse::<SocketAddr>().unwrap()).unwrap();
    patient(TcpStream::from(socket))
}

/// Waits until so many connections were refused.
fn counted(daemon: &Daemon, refused: usize) {
    let metric = || metric(daemon, "weave_connections_refused_total{reason=\"peer\"}");
    eventually("they are counted", || metric() == refused as f64);
}

/// Sends the client's first line and checks the answer. Gives the line that is due next.
fn greet(stream: &TcpStream) -> String {
    (&mut &*stream).write_all(format!("{HELLO}{NONCE}\n").as_bytes()).unwrap();
    proof_for(stream)
}

/// Reads what the daemon answers to such a line.
fn proof_for(stream: &TcpStream) -> String {
    let mut line = [0; 143];
    (&mut &*stream).read_exact(&mut line).unwrap();
    let line = std::str::from_utf8(&line).unwrap();
    let (server_nonce, its_proof) =
        line.strip_prefix(HELLO).unwrap().strip_suffix('\n').unwrap().split_once(' ').unwrap();
    assert_eq!(its_proof, proof("server", NONCE, server_nonce), "a proof of its own first");
    assert!(server_nonce.len() == 64 && server_nonce != NONCE, "{server_nonce}");
    proof("client", NONCE, server_nonce) + "\n"
}

/// Writes what it can and reads to the end, without minding a reset.
fn told(mut stream: TcpStream, bytes: &[u8]) -> Vec<u8> {
    let _ = stream.write_all(bytes);
    let mut told = Vec::new();
    match stream.read_to_end(&mut told) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
        _ => told,
    }
}

/// The same as frames: a stream is a stream.
fn frames(stream: TcpStream) -> Client {
    Client::new(UnixStream::from(OwnedFd::from(stream)))
}

fn assert_served(stream: TcpStream) {
    let mut client = frames(stream);
    client.send(7, "let in", 7);
    client.expect_gradient(7, "let in", 7);
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

struct Guarded {
    daemon: Daemon,
    address: String,
    file: String,
    _folder: tempfile::TempDir,
}

/// A daemon with the token above.
fn guarded(tcp: &str) -> Guarded {
    let folder = private_folder();
    let file = token_file(folder.path(), DIGITS);
    let daemon = Daemon::pattern(&["--tcp", tcp, "--token-file", &file, "--connections=8"]);
    Guarded { address: daemon.tcp_address(), daemon, file, _folder: folder }
}

#[test]
fn both_sides_prove_that_they_know_the_token() {
    let Guarded { daemon, address, file, .. } = &guarded("127.0.0.1:0");
    let ask = request(1, "x", 1);

    // One byte at a time, and the first frame in the segment of the proof.
    let stream = connect(address);
    for byte in format!("{HELLO}{NONCE}\n").bytes() {
        (&stream).write_all(&[byte]).unwrap();
    }
    let line = proof_for(&stream);
    for byte in line.bytes() {
        (&stream).write_all(&[byte]).unwrap();
    }
    assert_served(stream);
    let stream = connect(address);
    let line = greet(&stream);
    (&stream).write_all(&[line.as_bytes(), &ask].concat()).unwrap();
    let mut client = frames(stream);
    client.expect_gradient(1, "x", 1);

    // The library, and another connection of the same client.
    let mut client = weave_client::Client::new(format!("tcp://{address}"));
    client.set_timeout(Some(PATIENCE));
    client.set_token(Some(weave_client::Token::read(Path::new(file)).unwrap()));
    client.ping().unwrap();
    // The command, which is told localhost.
    let mut command = harness::weave();
    command.args(["ping", "--socket", &address.replace("127.0.0.1", "tcp://localhost")]);
    let output = command.env("WEAVE_TOKEN_FILE", file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(metric(daemon, "weave_connections_refused_total{reason=\"peer\"}"), 0.0);
    assert!(!daemon.log.all().to_lowercase().contains(&DIGITS[..8]), "the token is not logged");
}

#[test]
fn a_token_is_changed_without_a_restart() {
    let Guarded { daemon, address, file, _folder } = &guarded("127.0.0.1:0");
    let ping = |file: &str| {
        let mut client = weave_client::Client::new(format!("tcp://{address}"));
        client.set_timeout(Some(PATIENCE));
        client.set_token(Some(weave_client::Token::read(Path::new(file)).unwrap()));
        client.ping().map_err(|error| error.kind())
    };
    let (folder, new) = (private_folder(), private_folder());
    let old = token_file(folder.path(), DIGITS);
    let before = connect(address);
    let line = greet(&before);
    token_file(_folder.path(), &"b".repeat(64));
    assert!(ping(&old).is_ok(), "nothing changes by itself");

    daemon.signal(rustix::process::Signal::HUP);
    daemon.log.wait("token reloaded");
    assert!(ping(file).is_ok());
    assert_eq!(ping(&old).unwrap_err(), weave_client::ErrorKind::NotWeave);
    // Who has seen the proof of the old one may still come in by it.
    (&before).write_all(line.as_bytes()).unwrap();
    assert_served(before);

    std::fs::write(file, "no token").unwrap();
    daemon.signal(rustix::process::Signal::HUP);
    let line = daemon.log.wait("token not reloaded");
    assert!(line.contains("the old one still counts") && line.contains(file.as_str()), "{line}");
    assert!(ping(&token_file(new.path(), &"b".repeat(64))).is_ok());
    token_file(_folder.path(), &"b".repeat(64));
    daemon.signal(rustix::process::Signal::HUP);
    let times = |words: &str| daemon.log.all().matches(words).count();
    eventually("it has looked three times", || times("settings reloaded") == 3);
    assert!(ping(file).is_ok());
    assert_eq!(
        (times("token reloaded"), times("token not reloaded")),
        (1, 1),
        "what is the same is not told"
    );
}

#[test]
fn whoever_says_something_else_is_refused() {
    let Guarded { daemon, address, .. } = &guarded("127.0.0.1:0");
    let ask = request(1, "x", 1);
    let mut refused = 0;
    let mut logged = |words: &str| {
        refused += 1;
        counted(daemon, refused);
        let line = daemon.log.wait(words);
        assert!(line.starts_with("WARN ") && line.contains("refused a connection: 127.0.0.1:"), "{line}");
        assert_eq!(daemon.log.all().matches(words).count(), 1, "once for each reason");
    };
    let hello = format!("{HELLO}{NONCE}\n");
    let bad = "its line of weave-auth 1 is malformed";
    for (first, words) in [
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), "it did not begin with weave-auth 1"),
        ("Weave-auth 1 ".to_owned(), "it did not begin with weave-auth 1"),
        ("weave-toke\n".to_owned(), "it did not begin with weave-auth 1"),
        ("w".repeat(78), "it did not begin with weave-auth 1"),
        (hello.replace('\n', " "), bad),
        (hello.replace('\n', "\r\n"), bad),
        (hello.replace(&NONCE[1..], &NONCE[1..].to_uppercase()), bad),
        (hello.replace('5', "g"), bad),
        (hello.replace("\n", "0\n"), bad),
        (hello.replace("1 ", "1  "), bad),
    ] {
        assert_eq!(told(connect(address), &[first.as_bytes(), &ask].concat()), b"", "{first:?}");
        logged(words);
    }

    // In the place of a proof.
    let spoilt: [fn(String) -> String; 6] = [
        |line| line.to_uppercase(),
        |line| line.replace('\n', "\r\n"),
        |line| line.replace('\n', " "),
        |line| format!("{:x}{}", line.as_bytes()[0] % 10, &line[1..]),
        |line| format!("{}{}\n", &line[..63], if &line[63..64] == "0" { "1" } else { "0" }),
        |_| format!("{}\n", "0".repeat(64)),
    ];
    for spoil in spoilt {
        let stream = connect(address);
        let spoilt = spoil(greet(&stream));
        assert_eq!(told(stream, &[spoilt.as_bytes(), &ask].concat()), b"", "{spoilt:?}");
        logged("its proof is wrong");
    }
    // The daemon's own words back to it: its proof is not the client's.
    let stream = connect(address);
    (&stream).write_all(hello.as_bytes()).unwrap();
    let mut answer = [0; 143];
    (&stream).read_exact(&mut answer).unwrap();
    assert_eq!(told(stream, &answer[78..]), b"");
    logged("its proof is wrong");

    // In part, and then no more.
    for part in ["", "w", "weave-auth ", &hello[..40]] {
        let stream = connect(address);
        (&stream).write_all(part.as_bytes()).unwrap();
        drop(stream);
        logged("it closed before it had proved that it knows the token");
    }
    let stream = connect(address);
    let line = greet(&stream);
    (&stream).write_all(&line.as_bytes()[..64]).unwrap();
    drop(stream);
    logged("it closed before it had proved that it knows the token");
    daemon.assert_serves();
}

#[test]
fn clients_that_know_no_better_are_told() {
    let Guarded { daemon, address, .. } = &guarded("127.0.0.1:0");
    let old = [format!("weave-token {}\n", DIGITS.to_lowercase()).as_bytes(), &request(1, "x", 1)].concat();
    for (nth, (bytes, code, words, logged)) in [
        (&old[..], ErrorCode::InvalidMagic, "travelled in clear", "it sent a token in clear"),
        (
            &request(1, "x", 1),
            ErrorCode::InvalidMagic,
            "give the client the daemon's token file",
            "it began with a frame",
        ),
        (
            format!("weave-auth 2 {NONCE}\n").as_bytes(),
            ErrorCode::UnsupportedVersion,
            "speaks weave-auth 1",
            "it wants another version of weave-auth",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let stream = connect(address);
        let _ = (&stream).write_all(bytes);
        let mut client = frames(stream);
        let Some(Answer::Error { id: 0, code: its_code, text }) = client.answer() else { panic!("{words}") };
        assert_eq!(its_code, code, "{text}");
        assert!(text.contains(words) && text.len() <= 255, "{text}");
        client.expect_close();
        daemon.log.wait(logged);
        counted(daemon, nth + 1);
    }
    let log = daemon.log.all();
    assert_eq!(log.matches("in clear").count(), 1, "{log}");
    assert!(!log.to_lowercase().contains(&DIGITS[..8].to_lowercase()), "the token is not logged");
}

/// Stands between a client and the daemon, and gives what the client has said.
fn overheard(address: &str, file: &str) -> Vec<u8> {
    let between = TcpListener::bind("127.0.0.1:0").unwrap();
    let here = between.local_addr().unwrap();
    let there = connect(address);
    let spy = std::thread::spawn(move || {
        let (client, _) = between.accept().unwrap();
        let client = patient(client);
        let back = (there.try_clone().unwrap(), client.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut &back.0, &mut &back.1));
        let mut said = Vec::new();
        let mut chunk = [0; 4096];
        while let Ok(n @ 1..) = (&client).read(&mut chunk) {
            said.extend(&chunk[..n]);
            (&there).write_all(&chunk[..n]).unwrap();
        }
        let _ = there.shutdown(std::net::Shutdown::Both);
        said
    });
    let mut client = weave_client::Client::new(format!("tcp://{here}"));
    client.set_timeout(Some(PATIENCE));
    client.set_token(Some(weave_client::Token::read(Path::new(file)).unwrap()));
    client.ping().unwrap();
    drop(client);
    spy.join().unwrap()
}

#[test]
fn what_was_overheard_opens_nothing() {
    let Guarded { daemon, address, file, .. } = &guarded("127.0.0.1:0");
    let said = overheard(address, file);
    let text = String::from_utf8_lossy(&said).to_lowercase();
    assert!(!text.contains(&DIGITS.to_lowercase()[..16]), "the token is in it: {text}");
    assert!(!said.windows(8).any(|bytes| bytes == &unhex(DIGITS)[..8]), "the token is in it");

    // All at once, and at the pace of the conversation.
    let answer = told(connect(address), &said);
    assert!(answer.len() <= 143 && !answer.windows(4).any(|bytes| bytes == b"WEVE"), "{answer:?}");
    daemon.log.wait("its proof is wrong, for it has another token (1 so far)");
    let stream = connect(address);
    (&stream).write_all(&said[..78]).unwrap();
    (&stream).read_exact(&mut [0; 143]).unwrap();
    assert_eq!(told(stream, &said[78..]), b"");
    counted(daemon, 2);
    assert_ne!(said[..78], overheard(address, file)[..78], "each connection has a nonce of its own");
}

#[test]
fn those_who_say_nothing_hold_up_nobody() {
    let Guarded { daemon, address, .. } = &guarded("[::1]:0");
    // The first of them go when there are too many. It makes no difference that they began.
    let mut silent = Vec::new();
    for nth in 0..300 {
        let stream = connect(address);
        if nth % 2 == 0 {
            (&stream).write_all(format!("{HELLO}{NONCE}\n").as_bytes()).unwrap();
        }
        silent.push(stream);
    }
    daemon.log.wait("no proof of the token yet, and others wait");
    counted(daemon, 300 - 64);
    let stream = connect(address);
    let line = greet(&stream);
    (&stream).write_all(line.as_bytes()).unwrap();
    assert_served(stream);
    daemon.assert_serves();
    assert!(is_closed(&silent[1]) && !is_closed(&silent[299]));
    // They don't stay for ever either.
    let start = Instant::now();
    assert_eq!(told(silent.pop().unwrap(), b""), b"");
    assert!(start.elapsed() < Duration::from_secs(20));
    daemon.log.wait("no proof of the token within 10s");
}

#[test]
fn one_address_takes_no_place_from_another() {
    let Guarded { daemon, address, .. } = &guarded("127.0.0.1:0");
    let slow = connect_from([127, 0, 0, 2], address);
    let line = greet(&slow);
    let crowd: Vec<_> = (0..200).map(|_| connect_from([127, 0, 0, 3], address)).collect();
    counted(daemon, 200 - 63);
    (&slow).write_all(line.as_bytes()).unwrap();
    assert_served(slow);
    let log = daemon.log.all();
    assert_eq!(log.matches("refused a connection: 127.0.0.3").count(), 1, "{log}");
    assert!(!log.contains("127.0.0.2"), "{log}");
    assert!(is_closed(&crowd[0]) && !is_closed(&crowd[199]));
}

#[test]
fn an_address_is_one_user_by_whatever_name() {
    let folder = private_folder();
    let file = token_file(folder.path(), DIGITS);
    let daemon =
        Daemon::pattern(&["--tcp=[::]:0", "--allow-remote", "--token-file", &file, "--connections=4"]);
    let port: u16 = daemon.tcp_address().rsplit(':').next().unwrap().parse().unwrap();
    let enter = |host: &str| {
        let stream = connect(&format!("{host}:{port}"));
        let line = greet(&stream);
        (&stream).write_all(line.as_bytes()).unwrap();
        stream
    };
    let (_mapped, _loopback) = (enter("127.0.0.1"), enter("[::1]"));
    eventually("both are in", || metric(&daemon, "weave_connections") == 2.0);
    let mut answer = Vec::new();
    enter("[::1]").read_to_end(&mut answer).unwrap();
    let text = String::from_utf8_lossy(&answer);
    assert!(text.contains("2 connections of 127.0.0.1 are open, at most 2 may be"), "{text}");
    daemon.assert_serves();
}

#[test]
fn nobody_else_can_be_at_localhost() {
    if TcpListener::bind("[::1]:0").is_err() {
        eprintln!("NOT CHECKED: there is no [::1] here");
        return;
    }
    let folder = private_folder();
    let socket = folder.path().join("weave.sock");
    for (own, other) in [("127.0.0.1", "[::1]"), ("[::1]", "127.0.0.1"), ("0.0.0.0", "[::1]")] {
        let file = token_file(folder.path(), DIGITS);
        let flags = ["--allow-remote", "--token-file", &file];
        let tcp = format!("--tcp={own}:0");
        let daemon = Daemon::pattern(&[&[&*tcp], &flags[..]].concat());
        let port = daemon.tcp_address().rsplit(':').next().unwrap().to_owned();
        let other = format!("{other}:{port}");
        assert_eq!(TcpListener::bind(&*other).unwrap_err().kind(), ErrorKind::AddrInUse, "{own}");
        let stream = connect(&other);
        let line = greet(&stream);
        (&stream).write_all(line.as_bytes()).unwrap();
        assert_served(stream);
        drop(daemon);

        // Somebody was there first.
        let first = TcpListener::bind(&*other).unwrap();
        let tcp = format!("--tcp={own}:{port}");
        let flags = [&[&*tcp], &flags[..]].concat();
        let (code, text) = refused(&socket, &flags);
        assert_eq!(code, 69, "{text}");
        let words = format!("can't listen on TCP at {other} beside {own}:{port}: ");
        assert!(text.contains(&words) && text.contains("take another port"), "{text}");
        let mut check = harness::weaved();
        check.args(["check", "--engine=pattern", "--socket"]).arg(&socket).args(&flags);
        let found = check.output().unwrap();
        let found = (found.status.code(), String::from_utf8(found.stdout).unwrap());
        assert!(found.0 == Some(78) && found.1.contains(&format!("error tcp: {words}")), "{}", found.1);
        drop(first);
    }
}

/// The function in docs/clients.md, as it stands there.
#[test]
fn the_documented_python_comes_in() {
    let page = include_str!("../../docs/clients.md");
    let function = page.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    let Guarded { address, .. } = &guarded("127.0.0.1:0");
    let port = address.rsplit(':').next().unwrap();
    let ask: String = request(7, "x", 1).iter().map(|byte| format!("{byte:02x}")).collect();
    let python = |token: &str, before: &str| {
        let program = format!(
            "import socket\n{function}\n\
             sock = socket.create_connection(('127.0.0.1', {port}))\n\
             {before}authenticate(sock, bytes.fromhex('{token}'))\n\
             sock.sendall(bytes.fromhex('{ask}'))\n\
             print(sock.recv(4))\n"
        );
        let output = Command::new("python3").args(["-W", "error", "-c", &program]).output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap(), output.stderr)
    };
    let (good, said, error) = python(DIGITS, "");
    assert!(good && said == "b'WEVE'\n", "{said} {}", String::from_utf8_lossy(&error));
    let (good, said, error) = python(&"5a".repeat(32), "");
    let error = String::from_utf8_lossy(&error).into_owned();
    assert!(!good && said.is_empty() && error.contains("doesn't know the token"), "{error}");
}
