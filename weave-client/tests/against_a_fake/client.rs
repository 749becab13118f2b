//! The library against a daemon that says what it is told to.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use weave_client::weave_core::error::ErrorParseError;
use weave_client::weave_core::frame::FrameError;
use weave_client::weave_core::response::ResponseError;
use weave_client::{
    Address, Channels, Client, Error, ErrorCode, ErrorKind, Nonsense, Params, Progress, RequestError, Status,
    Stopper,
};

use crate::fake::{Fake, Request, Response, error, header, in_time, says_nothing, send, until_closed};

/// `bytes` with others in one place.
fn with(mut bytes: Vec<u8>, at: usize, replacement: &[u8]) -> Vec<u8> {
    bytes[at..at + replacement.len()].copy_from_slice(replacement);
    bytes
}

const PARAMS: Params =
    Params { width: 64, height: 64, steps: 8, cfg_scale: 1.5, seed: 0x0102_0304_0506_0708 };

/// Asks a daemon that answers with these bytes, then waits for the client to close.
fn ask(answer: impl FnOnce(u64) -> Vec<u8> + Send + 'static) -> Result<weave_client::Image, Error> {
    let fake = Fake::serving(|stream, request| {
        send(stream, &answer(request.id()));
        until_closed(stream);
    });
    let mut client = Client::connect(fake.path()).unwrap();
    // Whoever waits for more than was sent fails here and doesn't hang.
    client.set_timeout(Some(Duration::from_secs(20)));
    let result = client.generate(&PARAMS, "a cat");
    drop(client);
    fake.end();
    result
}

fn nonsense(answer: impl FnOnce(u64) -> Vec<u8> + Send + 'static) -> Nonsense {
    match ask(answer) {
        Err(Error::Nonsense(nonsense)) => nonsense,
        other => panic!("{other:?}"),
    }
}

/// A prompt is for the daemon's user alone.
#[test]
fn a_server_of_another_user_is_told_nothing_unless_it_was_named() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("NOT CHECKED: only root can listen as somebody else");
        return;
    }
    let fake = Fake::of(4242, |listener| {
        let mut heard = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut heard).unwrap();
        assert_eq!(heard, b"");
        let (mut stream, _) = listener.accept().unwrap();
        let request = Request::read(&mut stream);
        send(&mut stream, &Response::good(request.id()).bytes());
    });
    let mut client = Client::new(fake.path());
    client.set_timeout(Some(Duration::from_secs(20)));
    let error = client.generate(&PARAMS, "a secret").unwrap_err();
    assert!(matches!(error, Error::Stranger { uid: 4242, .. }), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Stranger);
    assert!(error.to_string().contains(&format!("{} belongs to uid 4242", fake.path().display())), "{error}");
    client.set_server_uid(Some(4242));
    client.generate(&PARAMS, "a secret").unwrap();
    fake.end();
}

#[test]
fn a_request_and_its_image() {
    let fake = Fake::serving(|stream, request| {
        send(stream, &Response::good(request.id()).bytes());
        request
    });
    let mut client = Client::connect(fake.path()).unwrap();
    let mut steps = Vec::new();
    let image = client.generate_with(&PARAMS, "a cat", |step| steps.push(step)).unwrap();
    let request = fake.end();

    let numbers = [24, 28, 32, 36].map(|at| request.u32(at));
    assert_eq!(numbers, [0, 64, 64, 8], "model, width, height, steps");
    assert_eq!(request.u32(40), 0x3FC0_0000, "1.5");
    assert_eq!(request.u64(44), PARAMS.seed);
    assert_eq!([52, 56, 60, 64, 68, 72].map(|at| request.u32(at)), [0, 5, 5, 5, 10, 5]);
    assert_eq!(request.0[76..], *b"a cata cata cat");

    let sent = Response::good(request.id());
    assert_eq!(image.request_id, request.id());
    assert_eq!((image.size.width(), image.size.height()), (64, 64));
    assert_eq!((image.size.channels(), image.generation_time_ms), (Channels::Rgb, 1234));
    assert_eq!(image.pixels, sent.pixels);
    assert_eq!(steps.first(), Some(&Progress::Sent));
    assert_eq!(steps.last(), Some(&Progress::Received { bytes: 12_288, of: 12_288 }));
}

#[test]
fn one_connection_serves_many_requests_whatever_trails_behind_the_answers() {
    let fake = Fake::serving(|stream, mut request| {
        for round in 0..4u8 {
            let trailing = vec![0xEE; 5000 * usize::from(round)];
            let pixels = vec![round; 64 * 64 * 4];
            let good = Response::good(request.id());
            send(stream, &Response { channels: 4, pixels, trailing, ..good }.bytes());
            request = Request::read(stream);
            // A refusal with bytes after its words.
            let mut refusal = error(request.id(), 500, 23, "full");
            refusal.extend([0xEE; 9]);
            send(stream, &with(refusal, 8, &31u32.to_be_bytes()));
            request = Request::read(stream);
        }
        send(stream, &Response::good(request.id()).bytes());
    });
    let mut client = Client::connect(fake.path()).unwrap();
    client.set_timeout(Some(Duration::from_secs(20)));
    for round in 0..4u8 {
        let image = client.generate(&PARAMS, "a cat").unwrap();
        assert_eq!(image.size.channels(), Channels::Rgba);
        assert_eq!(image.pixels, [round; 64 * 64 * 4]);
        match client.generate(&PARAMS, "a cat") {
            Err(Error::Refused(refusal)) => assert_eq!(refusal.message, "full"),
            other => panic!("{other:?}"),
        }
    }
    client.generate(&PARAMS, "a cat").unwrap();
    fake.end();
}

#[test]
fn after_an_answer_that_was_cut_a_new_connection_is_made() {
    let fake = Fake::listening(|listener: UnixListener| {
        let accept = || {
            let (mut stream, _) = listener.accept().unwrap();
            let request = Request::read(&mut stream);
            (stream, request)
        };
        let (mut stream, request) = accept();
        send(&mut stream, &Response::good(request.id()).bytes()[..100]);
        drop(stream);
        // The daemon gave this one up: nothing more will come.
        let (mut stream, _) = accept();
        send(&mut stream, &error(0, 400, 21, "payload_len"));
        until_closed(&mut stream);
        let (mut stream, request) = accept();
        send(&mut stream, &Response::good(request.id()).bytes());
    });
    let mut client = Client::connect(fake.path()).unwrap();
    client.set_timeout(Some(Duration::from_secs(20)));
    assert!(matches!(client.generate(&PARAMS, "a cat"), Err(Error::HungUp { received: 100 })));
    assert!(matches!(client.generate(&PARAMS, "a cat"), Err(Error::Refused(_))));
    assert!(client.generate(&PARAMS, "a cat").is_ok());
    fake.end();
}

#[test]
fn what_cannot_be_asked_is_not_sent() {
    let fake = Fake::listening(|listener: UnixListener| {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::Read::read_to_end(&mut stream, &mut Vec::new()).unwrap()
    });
    let mut client = Client::connect(fake.path()).unwrap();
    let params = Params { steps: 101, ..PARAMS };
    let refused = client.generate(&params, "a cat");
    assert!(matches!(refused, Err(Error::Invalid(RequestError::Steps(101)))));
    for (prompt, words) in [
        ("", "the prompt is empty, must have 1 to 2048 bytes"),
        ("a\0cat", "the prompt has a NUL after 1 bytes, must have none"),
        (&"x".repeat(2049), "the prompt has 2049 bytes, must have 1 to 2048"),
    ] {
        let refused = client.generate(&PARAMS, prompt).unwrap_err();
        assert!(matches!(refused, Error::Invalid(_)), "{prompt:?}");
        assert_eq!(refused.to_string(), words);
    }
    drop(client);
    assert_eq!(fake.end(), 0);
}

#[test]
fn a_refusal_says_whose_fault_it_is() {
    let refused = ask(|id| error(id, 400, 6, "steps is 0\x1b[2J"));
    let Err(Error::Refused(refusal)) = refused else { panic!("{refused:?}") };
    assert_eq!((refusal.status, refusal.code), (Status::ClientError, ErrorCode::InvalidSteps));
    assert!(refusal.message.starts_with("steps is 0") && !refusal.message.contains('\x1b'));
    assert_eq!(refusal.to_string(), Error::Refused(refusal).to_string());
    // What a later version appends is as long as any payload may be.
    let refused = ask(|id| {
        let mut bytes = error(id, 400, 6, "steps is 0");
        bytes.resize(16 + 16_777_248, 0xAB);
        with(bytes, 8, &16_777_248u32.to_be_bytes())
    });
    let Err(Error::Refused(refusal)) = refused else { panic!("{refused:?}") };
    assert_eq!(refusal.message, "steps is 0");
    let refused = ask(|_| error(0, 500, 4242, ""));
    let Err(Error::Refused(refusal)) = refused else { panic!("{refused:?}") };
    assert_eq!((refusal.status, refusal.code), (Status::ServerError, ErrorCode::Unknown(4242)));
}

/// Each is told from the bytes that are there, while the daemon holds the connection open.
#[test]
fn an_answer_that_breaks_the_protocol_is_not_believed() {
    let good = |id| Response::good(id).bytes();
    let spoilt = |at: usize, value: u32| move |id| with(good(id), at, &value.to_be_bytes());

    assert_eq!(
        nonsense(|_| b"HTTP/1.1 400 Bad Request".to_vec()),
        Nonsense::Frame(FrameError::Magic(*b"HTTP"))
    );
    assert_eq!(nonsense(move |id| with(good(id), 4, &[0, 2])), Nonsense::Version(2));
    assert_eq!(nonsense(move |id| with(good(id), 6, &[0, 1])), Nonsense::Type(1));
    assert_eq!(nonsense(move |id| with(good(id), 6, &[9, 9])), Nonsense::Type(0x0909));

    let too_large = FrameError::TooLarge { payload_len: u32::MAX, max_payload: 16_777_248 };
    assert_eq!(nonsense(|_| header(2, u32::MAX)), Nonsense::Frame(too_large));
    assert_eq!(nonsense(|_| header(0xFF, u32::MAX)), Nonsense::Frame(too_large));
    let short = |payload_len, need| Nonsense::Response(ResponseError::Short { payload_len, need });
    assert_eq!(nonsense(|_| header(2, 0)), short(0, 32));
    assert_eq!(nonsense(|_| [header(2, 31), vec![0; 31]].concat()), short(31, 32));
    assert_eq!(nonsense(spoilt(8, 32 + 12_287)), short(12_319, 12_320));

    assert_eq!(nonsense(spoilt(24, 400)), Nonsense::Response(ResponseError::Status(400)));
    let data_len = ResponseError::DataLen { is: 12_289, must_be: 12_288 };
    assert_eq!(nonsense(spoilt(44, 12_289)), Nonsense::Response(data_len));
    assert_eq!(nonsense(spoilt(40, 5)), Nonsense::Response(ResponseError::Channels(5)));
    let side = ResponseError::Side { name: "image_width", side: 0x8000_0000 };
    assert_eq!(nonsense(spoilt(32, 0x8000_0000)), Nonsense::Response(side));

    assert_eq!(nonsense(move |id| good(id + 1)), Nonsense::RequestId { sent: 1, received: 2 });
    assert_eq!(nonsense(move |_| good(0)), Nonsense::RequestId { sent: 1, received: 0 });
    assert_eq!(nonsense(|id| error(id + 7, 500, 99, "")), Nonsense::RequestId { sent: 1, received: 8 });

    // Right in itself, but not what was asked for; and the pixels never come.
    let mut large = header(2, 32 + 2048 * 2048 * 4);
    large.extend(1u64.to_be_bytes());
    large.extend([200, 0, 2048, 2048, 4, 2048 * 2048 * 4u32].into_iter().flat_map(u32::to_be_bytes));
    let size = Nonsense::Size { asked: (64, 64), received: (2048, 2048) };
    assert_eq!(nonsense(|_| large), size);
    let turned = |id| Response { width: 128, pixels: vec![0; 128 * 64 * 3], ..Response::good(id) }.bytes();
    assert_eq!(nonsense(turned), Nonsense::Size { asked: (64, 64), received: (128, 64) });

    assert_eq!(nonsense(|id| error(id, 200, 99, "")), Nonsense::Error(ErrorParseError::Status(200)));
    let short = Nonsense::Error(ErrorParseError::Short { payload_len: 20 });
    assert_eq!(nonsense(|id| with(error(id, 500, 99, "ab"), 33, &[3])), short);
}

#[test]
fn a_daemon_that_hangs_up_is_told_from_one_that_answers() {
    let answer = Response { trailing: vec![1, 2], ..Response::good(1) }.bytes();
    let ends = [0, 1, 15, 16, 17, 47, 48, 49, 1000, answer.len() - 3, answer.len() - 2, answer.len() - 1];
    for end in ends {
        let part = answer[..end].to_vec();
        let fake = Fake::serving(move |stream, _| send(stream, &part));
        let result = Client::new(fake.path()).generate(&PARAMS, "a cat");
        let Err(Error::HungUp { received }) = result else { panic!("after {end} bytes: {result:?}") };
        assert_eq!(received, end as u64);
        fake.end();
    }
}

#[test]
fn a_daemon_without_room_says_so_before_it_is_asked() {
    // It answers and closes, with the request unread, at the latest when the client begins to read;
    // or before the client writes.
    let fake = Fake::listening(|listener: UnixListener| {
        let (mut stream, _) = listener.accept().unwrap();
        send(&mut stream, &error(0, 500, 23, "too many connections"));
    });
    let mut client = Client::connect(fake.path()).unwrap();
    fake.end();
    match client.ping() {
        Err(Error::Refused(refusal)) => assert_eq!(refusal.code, ErrorCode::Busy),
        other => panic!("{other:?}"),
    }
}

#[test]
fn nobody_listens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weave.sock");
    let kind = |result| match result {
        Err(Error::Unreachable { address, source }) if address == Address::new(&path) => source.kind(),
        other => panic!("{other:?}"),
    };
    assert_eq!(kind(Client::connect(&path)), io::ErrorKind::NotFound);
    drop(UnixListener::bind(&path).unwrap());
    assert_eq!(kind(Client::connect(&path)), io::ErrorKind::ConnectionRefused);
    let long = folder.path().join("x".repeat(200));
    assert!(matches!(Client::connect(long), Err(Error::Unreachable { .. })));
}

#[test]
fn a_ping_asks_for_a_model_that_does_not_exist() {
    let fake = Fake::serving(|stream, request| {
        send(stream, &error(request.id(), 400, 3, "model_id"));
        let second = Request::read(stream);
        send(stream, &error(second.id(), 500, 24, "ending"));
        let third = Request::read(stream);
        send(stream, &Response::good(third.id()).bytes());
        request
    });
    let mut client = Client::connect(fake.path()).unwrap();
    assert!(client.ping().is_ok());
    match client.ping() {
        Err(Error::Refused(refusal)) => assert_eq!(refusal.code, ErrorCode::ShuttingDown),
        other => panic!("{other:?}"),
    }
    assert!(matches!(client.ping(), Err(Error::Nonsense(Nonsense::Image))));
    let request = fake.end();
    assert_eq!((request.0.len(), request.u32(24)), (28, u32::MAX));
}

#[test]
fn a_call_ends_in_time_wherever_the_daemon_stops() {
    let timeout = Duration::from_millis(50);
    for sent in [0, 5, 16, 40, 48, 5000] {
        let fake = Fake::serving(move |stream, request| {
            send(stream, &Response::good(request.id()).bytes()[..sent]);
            until_closed(stream);
        });
        let mut client = Client::connect(fake.path()).unwrap();
        client.set_timeout(Some(timeout));
        let result = in_time(move || client.generate(&PARAMS, "a cat"));
        assert!(matches!(result, Err(Error::Timeout(limit)) if limit == timeout), "{sent}: {result:?}");
        fake.end();
    }
}

/// Wherever the daemon is with its answer; and it is told, by a connection that closes.
#[test]
fn a_call_is_stopped_from_another_thread() {
    for sent in [0, 5, 48, 5000] {
        let stopper = Stopper::default();
        let stop = stopper.clone();
        let fake = Fake::serving(move |stream, request| {
            send(stream, &Response::good(request.id()).bytes()[..sent]);
            stop.stop();
            until_closed(stream);
        });
        let mut client = Client::new(fake.path());
        client.set_stopper(stopper.clone());
        let mut client = in_time(move || {
            let result = client.generate(&PARAMS, "a cat");
            assert!(matches!(result, Err(Error::Stopped)), "{sent}: {result:?}");
            client
        });
        assert!(stopper.is_stopped());
        assert!(stopper.wait(Duration::MAX));
        assert!(matches!(client.ping(), Err(Error::Stopped)));
        fake.end();
    }
    assert!(!Stopper::default().wait(Duration::from_millis(1)));
}

/// The limit is for the whole call: bytes that keep coming don't extend it.
#[test]
fn a_daemon_that_trickles_does_not_get_more_time() {
    let fake = Fake::serving(|stream, request| {
        let answer = Response::good(request.id()).bytes();
        let (mut sent, mut buf) = (0, [0]);
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        // A byte every 20 ms, which is how long this end waits for the client to go.
        while std::io::Read::read(stream, &mut buf).is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock) {
            send(stream, &answer[sent..=sent]);
            sent += 1;
        }
        sent
    });
    let mut client = Client::new(fake.path());
    client.set_timeout(Some(Duration::from_millis(200)));
    assert!(matches!(in_time(move || client.generate(&PARAMS, "a cat")), Err(Error::Timeout(_))));
    assert!(fake.end() < 100);
}

/// Nobody accepts and the backlog is full: connecting itself has to end.
#[test]
fn connecting_ends_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weave.sock");
    let listener = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    listener.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
    listener.listen(0).unwrap();
    let _in_the_backlog = UnixStream::connect(&path).unwrap();
    let mut client = Client::new(&path);
    client.set_timeout(Some(Duration::from_millis(50)));
    let (result, mut client) = in_time(move || (client.ping(), client));
    assert!(matches!(result, Err(Error::Timeout(_))), "{result:?}");
    // It has a limit of its own as well.
    client.set_timeout(Some(Duration::from_secs(20)));
    client.set_connect_timeout(Some(Duration::from_millis(50)));
    let result = in_time(move || client.ping());
    let Err(Error::Unreachable { source, .. }) = &result else { panic!("{result:?}") };
    assert_eq!(
        (source.kind(), source.to_string().as_str()),
        (io::ErrorKind::TimedOut, "no connection within 50ms")
    );
}

/// Answers the connection's next request.
fn answer_one(stream: &mut UnixStream) -> Request {
    let request = Request::read(stream);
    send(stream, &Response::good(request.id()).bytes());
    request
}

fn client(fake: &Fake<impl Send + 'static>) -> Client {
    let mut client = Client::new(fake.path());
    client.set_timeout(Some(Duration::from_secs(20)));
    client
}

#[test]
fn several_requests_are_answered_in_any_order() {
    let fake = Fake::serving(|stream, first| {
        let (second, third) = (Request::read(stream), Request::read(stream));
        let image = |request: &Request, fill| Response {
            pixels: vec![fill; 64 * 64 * 3],
            ..Response::good(request.id())
        };
        send(stream, &image(&third, 3).bytes());
        send(stream, &error(first.id(), 500, 9, "the worker died"));
        send(stream, &image(&second, 2).bytes());
    });
    let mut client = client(&fake);
    let ids = [1, 2, 3].map(|seed| client.send(&Params { seed, ..PARAMS }, "a cat").unwrap());
    assert_eq!((ids, client.in_flight()), ([1, 2, 3], 3));
    let mut answers = Vec::new();
    while let Some(answer) = client.receive() {
        answers.push((answer.request_id, answer.result.map(|image| image.pixels[0]).ok()));
    }
    assert_eq!(answers, [(3, Some(3)), (1, None), (2, Some(2))]);
    assert_eq!(client.in_flight(), 0);
    fake.end();
}

#[test]
fn who_waits_for_one_answer_leaves_the_others_for_later() {
    let fake = Fake::serving(|stream, first| {
        let second = Request::read(stream);
        send(stream, &Response::good(first.id()).bytes());
        send(stream, &Response { pixels: vec![7; 64 * 64 * 3], ..Response::good(second.id()) }.bytes());
        let third = Request::read(stream);
        send(stream, &error(third.id(), 400, 3, "model_id"));
    });
    let mut client = client(&fake);
    assert_eq!(client.send(&PARAMS, "a cat").unwrap(), 1);
    let mut steps = Vec::new();
    let image = client.generate_with(&PARAMS, "a dog", |step| steps.push(step)).unwrap();
    assert_eq!((image.request_id, image.pixels[0]), (2, 7));
    // Only of its own image.
    let sizes = steps.iter().filter(|step| matches!(step, Progress::Received { bytes: 12_288, .. }));
    assert_eq!(sizes.count(), 1, "{steps:?}");
    client.ping().unwrap();
    assert_eq!(client.in_flight(), 1);
    let answer = client.receive().unwrap();
    assert_eq!((answer.request_id, answer.result.unwrap().pixels), (1, Response::good(1).pixels));
    assert!(client.receive().is_none());
    fake.end();
}

/// A daemon that writes and doesn't read, and a client that does the same: one has to give way.
#[test]
fn a_daemon_that_reads_no_more_before_its_answer_is_taken() {
    const REQUESTS: u64 = 300;
    let fake = Fake::serving(|stream, first| {
        let large = Response {
            width: 2048,
            height: 2048,
            pixels: vec![5; 2048 * 2048 * 3],
            ..Response::good(first.id())
        };
        stream.write_all(&large.bytes()).unwrap();
        for _ in 1..REQUESTS {
            let request = Request::read(stream);
            send(stream, &error(request.id(), 500, 23, "later"));
        }
    });
    let mut client = client(&fake);
    let answers = in_time(move || {
        client.send(&Params { width: 2048, height: 2048, ..PARAMS }, "a cat").unwrap();
        let prompt = "x".repeat(2048);
        for _ in 1..REQUESTS {
            client.send(&PARAMS, &prompt).unwrap();
        }
        std::iter::from_fn(move || client.receive()).map(|answer| answer.result.is_ok()).collect::<Vec<_>>()
    });
    assert_eq!(answers.len() as u64, REQUESTS);
    assert!(answers[0] && !answers[1..].contains(&true));
    fake.end();
}

/// A frame that was begun on a connection that then ends is begun anew on the next one.
#[test]
fn a_frame_is_never_sent_in_two_parts() {
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.set_recv_buffer_size(4096).unwrap();
    listener.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(8).unwrap();
    let listener = std::net::TcpListener::from(listener);
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    let fake = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        // The next connection need not be such a small hole.
        socket2::SockRef::from(&listener).set_recv_buffer_size(1 << 20).unwrap();
        let first = Request::read(&mut stream);
        let pixels = vec![5; 2048 * 2048 * 3];
        let large = Response { width: 2048, height: 2048, pixels, ..Response::good(first.id()) }.bytes();
        // More than fits between the two: the client takes it when it can write no more.
        stream.write_all(&large[..large.len() - 1]).unwrap();
        drop(stream);
        let (mut stream, _) = listener.accept().unwrap();
        let mut count = 0;
        while stream.peek(&mut [0]).is_ok_and(|there| there > 0) {
            let request = Request::read(&mut stream);
            assert_eq!(request.0.len(), 76 + 3 * 2048);
            let _ = stream.write_all(&error(request.id(), 500, 23, "later"));
            count += 1;
        }
        count
    });
    let mut client = Client::new(address);
    client.set_timeout(Some(Duration::from_secs(20)));
    in_time(move || {
        client.send(&Params { width: 2048, height: 2048, ..PARAMS }, "a cat").unwrap();
        let prompt = "x".repeat(2048);
        for _ in 0..2000 {
            client.send(&PARAMS, &prompt).unwrap();
        }
        while client.receive().is_some() {}
    });
    assert!(fake.join().unwrap() > 0);
}

#[test]
fn all_that_wait_learn_why_the_connection_has_ended() {
    type Ends = fn(&mut UnixStream);
    type IsWhy = fn(&Error) -> bool;
    let cases: [(Ends, IsWhy); 3] = [
        (
            |stream| send(stream, &Response::good(2).bytes()[..1000]),
            |error| matches!(error, Error::HungUp { received: 1000 }),
        ),
        (
            |stream| send(stream, &error(0, 400, 21, "payload_len")),
            |error| matches!(error, Error::Refused(refusal) if refusal.code == ErrorCode::TooLarge),
        ),
        (
            |stream| send(stream, &Response::good(9).bytes()),
            |error| matches!(error, Error::Nonsense(Nonsense::RequestId { sent: 2, received: 9 })),
        ),
    ];
    for (ends, is_why) in cases {
        let fake = Fake::listening(move |listener: UnixListener| {
            let (mut stream, _) = listener.accept().unwrap();
            let requests = [(); 4].map(|()| Request::read(&mut stream));
            send(&mut stream, &Response::good(requests[0].id()).bytes());
            ends(&mut stream);
            drop(stream);
            answer_one(&mut listener.accept().unwrap().0);
        });
        let mut client = client(&fake);
        for _ in 0..4 {
            client.send(&PARAMS, "a cat").unwrap();
        }
        assert!(client.receive().unwrap().result.is_ok());
        for request_id in 2..=4 {
            let answer = client.receive().unwrap();
            assert_eq!(answer.request_id, request_id);
            assert!(is_why(answer.result.as_ref().unwrap_err()), "{answer:?}");
        }
        assert!(client.receive().is_none());
        assert_eq!(client.generate(&PARAMS, "a cat").unwrap().request_id, 5, "on a new connection");
        fake.end();
    }
}

#[test]
fn a_connection_that_was_closed_while_idle_is_replaced() {
    let (closed, wait) = std::sync::mpsc::channel();
    let fake = Fake::listening(move |listener: UnixListener| {
        for last_words in [false, true, false] {
            let (mut stream, _) = listener.accept().unwrap();
            answer_one(&mut stream);
            if last_words {
                send(&mut stream, &error(0, 500, 24, "ending"));
            }
            drop(stream);
            closed.send(()).unwrap();
        }
    });
    let mut client = client(&fake);
    for seed in [1, 0, 0] {
        client.generate(&Params { seed, ..PARAMS }, "a cat").unwrap();
        wait.recv().unwrap();
    }
    fake.end();
}

/// The daemon closes just when the next request arrives: whether it took it can't be known.
#[test]
fn a_request_is_sent_again_unless_it_may_be_what_ends_the_connection() {
    let fake = Fake::listening(|listener: UnixListener| {
        let accept = || listener.accept().unwrap().0;
        let mut stream = accept();
        answer_one(&mut stream);
        let request = Request::read(&mut stream);
        let ping = Request::read(&mut stream);
        drop(stream);
        // The same once more, and its answer.
        let mut stream = accept();
        assert_eq!(Request::read(&mut stream).0, request.0);
        assert_eq!(Request::read(&mut stream).0, ping.0);
        send(&mut stream, &error(ping.id(), 400, 3, "model_id"));
        send(&mut stream, &Response::good(request.id()).bytes());
        // One for which the client has drawn the seed has the same seed again.
        let drawn = Request::read(&mut stream);
        drop(stream);
        let mut stream = accept();
        assert_eq!(Request::read(&mut stream).0, drawn.0);
        drop(stream);
        // One on a connection that was made for it is not sent again.
        Request::read(&mut accept());
        // Nor one that was sent again already.
        let mut stream = accept();
        answer_one(&mut stream);
        Request::read(&mut stream);
        drop(stream);
        Request::read(&mut accept());
        answer_one(&mut accept()).id()
    });
    let mut client = client(&fake);
    let hung_up = |result| matches!(result, Err(Error::HungUp { received: 0 }));
    client.generate(&PARAMS, "a cat").unwrap();
    assert_eq!(client.send(&PARAMS, "a cat").unwrap(), 2);
    client.ping().unwrap();
    assert!(client.receive().unwrap().result.is_ok());
    assert!(hung_up(client.generate(&Params { seed: 0, ..PARAMS }, "a cat")));
    assert!(hung_up(client.generate(&PARAMS, "a cat")));
    client.generate(&PARAMS, "a cat").unwrap();
    assert!(hung_up(client.generate(&PARAMS, "a cat")));
    client.generate(&PARAMS, "a cat").unwrap();
    assert_eq!(fake.end(), 8);
}

/// It doesn't get at once again what it will draw in vain.
#[test]
fn a_server_that_closes_after_each_answer_gets_one_request_at_a_time() {
    let fake = Fake::listening(|listener: UnixListener| {
        let mut answered = Vec::new();
        let (mut stream, _) = listener.accept().unwrap();
        let requests = [(); 4].map(|()| Request::read(&mut stream));
        send(&mut stream, &Response::good(requests[0].id()).bytes());
        drop(stream);
        while answered.len() < 5 {
            let (mut stream, _) = listener.accept().unwrap();
            let request = Request::read(&mut stream);
            says_nothing(&mut stream);
            send(&mut stream, &Response::good(request.id()).bytes());
            answered.push(request.id());
        }
        answered
    });
    let mut client = client(&fake);
    let ask = |client: &mut Client| client.send(&PARAMS, "a cat").unwrap();
    let mut asked = Vec::from([(); 4].map(|()| ask(&mut client)));
    let mut received = Vec::new();
    while let Some(answer) = client.receive() {
        answer.result.unwrap();
        received.push(answer.request_id);
        if let 2 | 3 = received.len() {
            asked.push(ask(&mut client));
        }
        assert_eq!(client.in_flight(), asked.len() - received.len());
    }
    assert_eq!((received, asked), (vec![1, 2, 3, 4, 5, 6], vec![1, 2, 3, 4, 5, 6]));
    assert_eq!(fake.end(), [2, 3, 4, 5, 6]);
}

#[test]
fn a_server_that_closes_on_a_request_once_more_is_not_asked_for_the_others() {
    let fake = Fake::listening(|listener: UnixListener| {
        let (mut stream, _) = listener.accept().unwrap();
        let requests = [(); 3].map(|()| Request::read(&mut stream));
        send(&mut stream, &Response::good(requests[0].id()).bytes());
        drop(stream);
        let (mut stream, _) = listener.accept().unwrap();
        assert_eq!(Request::read(&mut stream).id(), 2);
        drop(stream);
        answer_one(&mut listener.accept().unwrap().0).id()
    });
    let mut client = client(&fake);
    for _ in 0..3 {
        client.send(&PARAMS, "a cat").unwrap();
    }
    assert!(client.receive().unwrap().result.is_ok());
    for request_id in 2..=3 {
        let answer = client.receive().unwrap();
        assert_eq!(answer.request_id, request_id);
        assert!(matches!(answer.result, Err(Error::HungUp { received: 0 })), "{answer:?}");
    }
    assert!(client.receive().is_none());
    client.generate(&PARAMS, "a cat").unwrap();
    assert_eq!(fake.end(), 4);
}

#[test]
fn an_image_knows_what_it_was_made_of_and_a_seed_that_was_drawn() {
    let fake = Fake::listening(|listener: UnixListener| {
        let (mut stream, _) = listener.accept().unwrap();
        [(); 3].map(|()| answer_one(&mut stream).u64(44))
    });
    let mut client = client(&fake);
    let images =
        [PARAMS.seed, 0, 0].map(|seed| client.generate(&Params { seed, ..PARAMS }, "a cat").unwrap());
    let seeds = images.clone().map(|image| image.params.seed);
    assert_eq!(seeds, fake.end(), "as sent");
    assert_eq!(
        images.map(|image| (image.params, image.prompt)),
        seeds.map(|seed| { (Params { seed, ..PARAMS }, "a cat".to_owned()) })
    );
    assert_eq!(seeds[0], PARAMS.seed);
    assert!(seeds[1..].iter().all(|seed| (1..=u64::from(u32::MAX)).contains(seed)), "{seeds:?}");
    assert_ne!(seeds[1], seeds[2]);
}

#[test]
fn a_daemon_that_has_gone_meanwhile_is_unreachable() {
    let fake = Fake::serving(|stream, request| send(stream, &Response::good(request.id()).bytes()));
    let mut client = client(&fake);
    client.generate(&PARAMS, "a cat").unwrap();
    fake.end();
    assert!(matches!(client.generate(&PARAMS, "a cat"), Err(Error::Unreachable { .. })));
}
