//! The token over TCP: who gets to know what (`weave-daemon/TCP.md`).

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use weave_client::{Client, Error, ErrorKind, Stopper, Token};

use crate::fake::{Request, Response, error, in_time};

const DIGITS: &str = "00112233445566778899aabbccddeeffFFEEDDCCBBAA99887766554433221100";
const PATIENCE: Duration = Duration::from_secs(20);

fn token() -> Token {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), DIGITS).unwrap();
    Token::read(file.path()).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(digits: &str) -> Vec<u8> {
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

/// What proves that this side knows the token.
fn proof(side: &str, client_nonce: &str, server_nonce: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(&unhex(DIGITS)).unwrap();
    mac.update(format!("weave-auth 1 {side}").as_bytes());
    mac.update(&unhex(client_nonce));
    mac.update(&unhex(server_nonce));
    hex(&mac.finalize().into_bytes())
}

/// The line that a daemon with the token answers to this nonce.
fn answer(client_nonce: &str) -> String {
    let server_nonce = "5a".repeat(32);
    format!("weave-auth 1 {server_nonce} {}\n", proof("server", client_nonce, &server_nonce))
}

fn nonce(hello: &str) -> &str {
    hello.strip_prefix("weave-auth 1 ").and_then(|rest| rest.strip_suffix('\n')).expect(hello)
}

/// Somebody at a TCP port who listens to one client and answers its first line with what `script` makes of it.
/// Returns what the client made of that, and all that it has said.
fn met(script: impl FnOnce(&str) -> Vec<u8> + Send + 'static) -> (Error, Vec<u8>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    let listens = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut heard = vec![0; 78];
        stream.read_exact(&mut heard).unwrap();
        let answer = script(std::str::from_utf8(&heard).unwrap());
        let _ = stream.write_all(&answer).and_then(|()| stream.shutdown(std::net::Shutdown::Write));
        // A reset is an end as well.
        let _ = stream.read_to_end(&mut heard);
        heard
    });
    let mut client = Client::new(address);
    client.set_timeout(Some(PATIENCE));
    client.set_token(Some(token()));
    let result = client.ping();
    drop(client);
    (result.unwrap_err(), listens.join().unwrap())
}

#[test]
fn whoever_listens_learns_no_token() {
    type Script = fn(&str) -> Vec<u8>;
    let wrong = "doesn't know the token";
    let other = "doesn't answer weave-auth 1 as weaved does";
    let hung_up = "hung up on weave-auth 1";
    let scripts: [(&str, Script, &str); 17] = [
        ("nothing", |_| Vec::new(), hung_up),
        ("half a line", |hello| answer(nonce(hello)).as_bytes()[..142].to_vec(), hung_up),
        ("the first bytes", |_| b"weave-auth".to_vec(), hung_up),
        ("its own line", |hello| hello.as_bytes().to_vec(), hung_up),
        ("its own line twice", |hello| hello.repeat(2).into_bytes(), other),
        ("HTTP", |_| b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), other),
        ("a byte", |_| b"x".to_vec(), other),
        ("too much", |_| vec![b'w'; 100_000], other),
        ("CR LF", |hello| answer(nonce(hello)).replace('\n', "\r\n").into_bytes(), other),
        ("capitals", |hello| answer(&nonce(hello).to_uppercase()).replace('a', "A").into_bytes(), other),
        ("another version", |hello| answer(nonce(hello)).replace("auth 1", "auth 2").into_bytes(), other),
        ("its own nonce", |hello| format!("weave-auth 1 {0} {0}\n", nonce(hello)).into_bytes(), wrong),
        ("a guess", |_| format!("weave-auth 1 {} {}\n", "0".repeat(64), "0".repeat(64)).into_bytes(), wrong),
        ("somebody else's", |_| answer(&"0".repeat(64)).into_bytes(), wrong),
        (
            "the proof of a client",
            |hello| {
                let own = "5a".repeat(32);
                format!("weave-auth 1 {own} {}\n", proof("client", nonce(hello), &own)).into_bytes()
            },
            wrong,
        ),
        (
            "one bit",
            |hello| {
                let mut answer = answer(nonce(hello)).into_bytes();
                answer[141] = if answer[141] == b'0' { b'1' } else { b'0' };
                answer
            },
            wrong,
        ),
        ("an image", |_| Response::good(0).bytes(), other),
    ];
    for (name, script, words) in scripts {
        let (error, heard) = met(script);
        let text = error.to_string();
        assert!(text.contains(words) && text.contains("tcp://127.0.0.1:"), "{name}: {text}");
        let kind = if words == hung_up { ErrorKind::HungUp } else { ErrorKind::NotWeave };
        assert_eq!(error.kind(), kind, "{name}");
        assert_eq!(heard.len(), 78, "{name}: nothing but the nonce: {:?}", String::from_utf8_lossy(&heard));
        let said = String::from_utf8_lossy(&heard).to_lowercase();
        assert!(!said.contains(&DIGITS.to_lowercase()[..16]) && nonce(&said).len() == 64, "{name}: {said}");
    }
}

#[test]
fn daemons_that_answer_with_an_error_are_heard() {
    let (error_, heard) = met(|_| error(0, 400, 1, "magic is 0x77656176"));
    assert_eq!(heard.len(), 78);
    assert!(error_.to_string().contains("asks for no token"), "{error_}");
    assert_eq!(error_.kind(), ErrorKind::NotWeave);
    let (error_, heard) = met(|_| error(0, 500, 23, "all 2 connections are taken"));
    assert_eq!((error_.kind(), heard.len()), (ErrorKind::Busy, 78));
    let (error_, _) = met(|_| error(0, 400, 2, "this weaved speaks weave-auth 7\x1b["));
    assert_eq!(error_.kind(), ErrorKind::Refused);
    let text = error_.to_string();
    assert!(text.contains("speaks weave-auth 7") && !text.contains('\x1b'), "{text}");
}

/// One who knows the token, and lets its answer out a byte at a time.
fn honest(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut hello = [0; 78];
    stream.read_exact(&mut hello).unwrap();
    let nonce = nonce(std::str::from_utf8(&hello).unwrap()).to_owned();
    for byte in answer(&nonce).bytes() {
        stream.write_all(&[byte]).unwrap();
    }
    let mut line = [0; 65];
    stream.read_exact(&mut line).unwrap();
    let expected = proof("client", &nonce, &"5a".repeat(32)) + "\n";
    assert_eq!(std::str::from_utf8(&line).unwrap(), expected);
    let request = Request::read(stream);
    stream.write_all(&error(request.id(), 400, 3, "model_id")).unwrap();
    nonce
}

#[test]
fn a_daemon_that_knows_the_token_is_talked_to() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    let daemon = thread::spawn(move || [(); 2].map(|()| honest(&mut listener.accept().unwrap().0)));
    let mut client = Client::new(address);
    client.set_timeout(Some(PATIENCE));
    client.set_token(Some(token()));
    client.ping().unwrap();
    // The first connection is closed by now, or will be found to be: this is another.
    let mut again = Client::new(client.address().clone());
    again.set_token(Some(token()));
    again.set_timeout(Some(PATIENCE));
    again.ping().unwrap();
    let [first, second] = daemon.join().unwrap();
    assert_ne!(first, second, "a nonce of its own for each connection");
}

#[test]
fn who_says_nothing_is_not_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = Client::new(format!("tcp://{}", listener.local_addr().unwrap()));
    client.set_token(Some(token()));
    client.set_connect_timeout(Some(Duration::from_millis(50)));
    let error = in_time(move || client.ping()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.to_string().contains("no proof that it knows the token within 50ms"), "{error}");

    let mut client = Client::new(format!("tcp://{}", listener.local_addr().unwrap()));
    client.set_token(Some(token()));
    client.set_timeout(Some(Duration::from_millis(50)));
    let error = in_time(move || client.ping()).unwrap_err();
    assert!(matches!(error, Error::Timeout(limit) if limit == Duration::from_millis(50)), "{error}");

    // A call can be stopped there as well. It has begun when its line is here.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = Client::new(format!("tcp://{}", listener.local_addr().unwrap()));
    let stopper = Stopper::default();
    client.set_token(Some(token()));
    client.set_connect_timeout(None);
    client.set_stopper(stopper.clone());
    let call = thread::spawn(move || client.ping());
    let (mut stream, _) = listener.accept().unwrap();
    stream.read_exact(&mut [0; 78]).unwrap();
    stopper.stop();
    let error = in_time(move || call.join().unwrap()).unwrap_err();
    assert!(matches!(error, Error::Stopped), "{error}");
}

#[test]
fn localhost_is_127_0_0_1_and_then_the_other() {
    // A pair with one port.
    let (first, second) = loop {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        match TcpListener::bind(("::1", first.local_addr().unwrap().port())) {
            Ok(second) => break (first, second),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
            Err(_) => {
                eprintln!("NOT CHECKED: there is no [::1] here");
                return;
            }
        }
    };
    let port = first.local_addr().unwrap().port();
    for host in ["localhost", "LOCALHOST"] {
        let _client = Client::connect(format!("tcp://{host}:{port}")).unwrap();
        assert!(first.accept().unwrap().1.is_ipv4());
    }
    drop(first);
    let _client = Client::connect(format!("tcp://localhost:{port}")).unwrap();
    assert!(second.accept().unwrap().1.is_ipv6());
    drop(second);
    let error = Client::connect(format!("tcp://localhost:{port}")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
}
