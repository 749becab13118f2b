//! Section 8 of the specification, connections: what is tried on a server.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::case::{Case, informational, recommended, required, robustness};
use crate::connection::{AfterWriting, Answer, Came, Connection};
use crate::draft::Draft;
use crate::talk::{Expected, Talk};
use crate::testee::how_it_ended;
use crate::verdict::{Failure, Remark, Verdict, fail, skip};
use crate::wire::{End, code};

use super::probe::{NO_IMAGE, NOT_OURS};

/// In the order of the text.
pub(super) const CASES: &[Case] = &[
    required("W1-CON-001a", "requests may be sent before earlier ones are answered")
        .server_vectors(&["stream-two-requests", "stream-five-requests"]),
    robustness("W1-CON-001b", "2,000 requests at once on one connection").talks(|| {
        let (frames, expected) = mixture(2_000);
        vec![Talk::new("2,000 requests", &frames, expected)]
    }),
    required("W1-CON-002a", "every request is answered exactly once").server(|server| {
        let (frames, expected) = mixture(200);
        let mut connection = server.connect()?;
        let bytes: Vec<u8> = frames.iter().flat_map(Draft::bytes).collect();
        connection.write(&bytes);
        let mut counts = vec![0u32; expected.len()];
        let mut seen = 0;
        while seen < expected.len() {
            match connection.receive()? {
                Came::Answer(answer) => {
                    let count =
                        usize::try_from(answer.id()).ok().and_then(|id| counts.get_mut(id.wrapping_sub(1)));
                    match count {
                        Some(count) if *count == 0 => *count += 1,
                        Some(_) => {
                            return fail(
                                "W1-CON-002",
                                format!("request {} was answered twice", answer.id()),
                                "once",
                            );
                        }
                        None => {
                            return fail(
                                "W1-CON-002",
                                format!("nobody asked for {answer}"),
                                "an answer to a request",
                            );
                        }
                    }
                    seen += 1;
                }
                Came::Close => {
                    return fail("W1-CON-002", format!("a close after {seen} of 200 answers"), "all answers");
                }
            }
        }
        server.barrier(&mut connection)?;
        connection.end_writing();
        match connection.receive() {
            Ok(Came::Close) => Ok(Remark::Pass),
            Ok(Came::Answer(answer)) => fail("W1-CON-002", format!("one more answer: {answer}"), "a close"),
            Err(failure) if failure.verdict == Verdict::Hang => Ok(Remark::Warn(
                "the server did not close after the client had ended its direction".to_owned(),
            )),
            Err(failure) => Err(failure),
        }
    }),
    informational("W1-CON-003a", "answers may come in any order").server(|server| {
        let requests: Vec<Draft> = (1..=10).map(|id| Draft::request(id, "x")).collect();
        let ids: Vec<u64> = server.ask(&requests)?.iter().map(Answer::id).collect();
        if ids.is_sorted() {
            Ok(Remark::Pass)
        } else {
            Ok(Remark::Warn(format!("ten answers came in the order {ids:?}")))
        }
    }),
    required("W1-CON-004a", "request_ids may repeat").server_vectors(&["stream-same-id-twice"]),
    robustness("W1-CON-004b", "50 requests at once with the same request_id").talks(|| {
        let frames = vec![Draft::request(77, "x"); 50];
        vec![Talk::new("50 requests with the id 77", &frames, vec![Expected::small_image(77); 50])]
    }),
    required("W1-CON-005a", "the connection stays open after a refusal")
        .server_vectors(&["stream-refused-between-two", "stream-one-refusal-of-each-kind"]),
    required("W1-CON-006a", "a client that reads slowly gets whole frames").server(|server| {
        let mut connection = server.connect()?;
        connection.read_at_most(4093);
        for id in 1..=3 {
            connection.write(&Draft::request(id, "x").set("width", 1024).set("height", 1024).bytes());
            connection.write(&Draft::unknown_model(100 + id).bytes());
        }
        let mut missing: Vec<u64> = vec![1, 2, 3, 101, 102, 103];
        while !missing.is_empty() {
            match connection.receive()? {
                Came::Answer(answer) => match missing.iter().position(|id| *id == answer.id()) {
                    Some(at) => drop(missing.remove(at)),
                    None => {
                        return fail(
                            "W1-CON-002",
                            format!("an answer that nobody asked for: {answer}"),
                            "one each",
                        );
                    }
                },
                Came::Close => {
                    return fail("W1-CON-006", "the server closed the connection", "all six answers");
                }
            }
        }
        server.barrier(&mut connection).map(|()| Remark::Pass)
    }),
    required("W1-CON-007a", "full queue: BUSY at once").server(|server| {
        // From several connections: a server may read one no further that has many requests under way (W1-CON-014).
        const CONNECTIONS: usize = 16;
        const EACH: u64 = 250;
        let requests: Vec<u8> = (1..=EACH).flat_map(|id| Draft::request(id, "x").bytes()).collect();
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            connections.push(server.connect()?);
        }
        let began = Instant::now();
        let told = thread::scope(|scope| {
            let readers: Vec<_> = connections
                .iter_mut()
                .map(|connection| scope.spawn(|| served_or_busy(connection, requests.clone(), EACH)))
                .collect();
            let joined =
                readers.into_iter().map(|reader| reader.join().unwrap_or_else(|_| Ok(Times::default())));
            joined.collect::<Result<Vec<_>, _>>()
        });
        let took = began.elapsed();
        let told = told?;
        server.still_serves()?;
        let first_busy = told.iter().filter_map(|times| times.first_busy).min();
        match (first_busy, told.iter().filter_map(|times| times.last_image).max()) {
            (None, _) => skip(&format!(
                "the queue could not be filled: of {} requests {} got an image, in {took:.1?}",
                CONNECTIONS as u64 * EACH,
                told.iter().map(|times| times.images).sum::<u64>()
            )),
            (Some(_), None) => {
                fail("W1-CON-007", "only BUSY came", "images for the requests that the queue has room for")
            }
            (Some(busy), Some(image)) if busy > image => {
                fail("W1-CON-007", "the first BUSY came after the last image", "BUSY at once")
            }
            _ => Ok(Remark::Pass),
        }
    }),
    robustness("W1-CON-008a", "2,000 connections at once: served, BUSY, or a close").server(|server| {
        const CONNECTIONS: usize = 2_000;
        let mut open = Vec::new();
        for n in 0..CONNECTIONS {
            match server.connect() {
                Ok(connection) => open.push(connection),
                Err(failure) if failure.verdict == Verdict::Crash => return Err(failure),
                Err(failure) => return Ok(Remark::Warn(format!("connection {n}: {}", failure.problem))),
            }
        }
        // The first ones have a place for sure; of the others each is served, or told that it is not.
        let mut served = 0;
        for connection in &mut open {
            connection.write(&Draft::unknown_model(1).bytes());
        }
        for connection in &mut open {
            match connection.receive()? {
                Came::Answer(Answer::Error { id: 1, .. }) => served += 1,
                Came::Answer(Answer::Error { id: 0, code: number, .. }) if number == code("BUSY") => {}
                Came::Answer(answer) => {
                    return fail("W1-CON-008", format!("the answer is {answer}"), "BUSY for request 0");
                }
                Came::Close => {}
            }
        }
        if served == 0 {
            return fail(
                "W1-CON-008",
                format!("none of {CONNECTIONS} connections was served"),
                "those that there is room for",
            );
        }
        drop(open);
        server.still_serves()?;
        Ok(Remark::Pass)
    }),
    recommended("W1-CON-009a", "SIGTERM: requests in progress are finished").server(|server| {
        if server.process().is_none() {
            return skip(NOT_OURS);
        }
        let mut connection = server.connect()?;
        let count = 20;
        for id in 1..=count {
            connection.write(&Draft::request(id, "x").set("width", 512).set("height", 512).bytes());
        }
        // It has begun with them when the first one is there.
        let first = connection.receive()?;
        if !matches!(first, Came::Answer(Answer::Image { .. })) {
            return skip(NO_IMAGE);
        }
        let deadline = Instant::now() + server.timeout;
        if let Some(process) = server.process() {
            process.signal(Signal::TERM);
        }
        let mut answered = 1;
        let told = loop {
            match connection.receive() {
                Ok(Came::Answer(Answer::Image { .. })) => answered += 1,
                Ok(Came::Answer(Answer::Error { code: number, .. })) if number == code("SHUTTING_DOWN") => {
                    answered += 1
                }
                Ok(Came::Answer(answer)) => {
                    break fail("W1-CON-009", format!("the answer is {answer}"), "an image or SHUTTING_DOWN");
                }
                Ok(Came::Close) if answered == count => break Ok(Remark::Pass),
                Ok(Came::Close) => {
                    break fail(
                        "W1-CON-009",
                        format!("a close after {answered} of {count} answers"),
                        "all answers",
                    );
                }
                Err(failure) => break Err(failure),
            }
        };
        let ended = server.process().and_then(|process| process.wait(deadline));
        server.stop();
        let told = told.map_err(|mut failure| {
            // It was told to end: that it did is no crash.
            failure.verdict = Verdict::Fail;
            failure
        })?;
        match ended {
            Some(status) if status.success() => Ok(told),
            Some(status) => {
                Ok(Remark::Warn(format!("the server ended with {} after SIGTERM", how_it_ended(status))))
            }
            None => fail("W1-CON-009", "the server did not end after SIGTERM", "an end"),
        }
    }),
    required("W1-CON-010a", "half-close: the client gets its answers, then a close").talks(|| {
        let (frames, expected) = mixture(12);
        vec![
            Talk::new("one request", &[Draft::request(6, "x")], vec![Expected::small_image(6)])
                .ends(End::InsideAFrame),
            Talk::new(
                "a refused one",
                &[Draft::request(6, "x").set("steps", 0)],
                vec![Expected::error(6, "INVALID_STEPS")],
            )
            .ends(End::InsideAFrame),
            Talk::new("twelve", &frames, expected).ends(End::InsideAFrame),
        ]
    }),
    robustness("W1-CON-011a", "a client that reads no answers doesn't block others").server(|server| {
        let mut deaf = server.connect()?;
        for id in 1..=4 {
            deaf.write(&Draft::request(id, "x").set("width", 1024).set("height", 1024).bytes());
        }
        // It may take until the server has given the deaf one up, but not longer than any answer may take.
        for _ in 0..20 {
            server.still_serves()?;
        }
        drop(deaf);
        server.still_serves().map(|()| Remark::Pass)
    }),
    required("W1-CON-012a", "an invalid or broken connection doesn't harm another").server(|server| {
        let request = Draft::request(1, "a cat in space").bytes();
        let (first, second) = request.split_at(60);
        let mut good = server.connect()?;
        good.write(first);
        let troubles: [&[u8]; 4] = [
            b"GET / HTTP/1.1\r\n\r\n",
            &Draft::request(1, "x").set("payload_len", u32::MAX.into()).bytes(),
            &Draft::request(1, "x").set("steps", 0).bytes(),
            &Draft::request(1, "x").bytes()[..50],
        ];
        for trouble in troubles {
            let mut bad = server.connect()?;
            bad.write(trouble);
            bad.reset();
            server.still_serves()?;
        }
        good.write(second);
        match good.receive()? {
            Came::Answer(Answer::Image { id: 1, .. }) => server.barrier(&mut good).map(|()| Remark::Pass),
            Came::Answer(Answer::Error { status: 500, .. }) => skip(NO_IMAGE),
            Came::Answer(answer) => {
                fail("W1-CON-012", format!("the answer is {answer}"), "an image for request 1")
            }
            Came::Close => fail("W1-CON-012", "the server closed the connection", "an image for request 1"),
        }
    }),
    robustness("W1-CON-012b", "a client that sends byte by byte doesn't block others").server(|server| {
        let request = Draft::request(1, "drop by drop").bytes();
        let mut slow = server.connect()?;
        slow.set_deadline(Instant::now() + server.timeout + Duration::from_secs(10));
        for byte in &request {
            slow.write(std::slice::from_ref(byte));
            // Between two drops others are served, which takes as long as it takes.
            server.still_serves()?;
        }
        match slow.receive()? {
            Came::Answer(Answer::Image { id: 1, .. } | Answer::Error { id: 1, status: 500, .. }) => {
                Ok(Remark::Pass)
            }
            Came::Answer(answer) => {
                fail("W1-CON-012", format!("the answer is {answer}"), "an image for request 1")
            }
            Came::Close => Ok(Remark::Warn("the server closed the connection of the slow client".to_owned())),
        }
    }),
    robustness("W1-CON-012c", "idle connections and unfinished frames don't block others").server(|server| {
        let mut open = Vec::new();
        let header = Draft::request(1, "x").bytes();
        // A server may allow fewer to one peer than to all.
        for n in 0..100 {
            let mut connection = server.connect()?;
            connection.write(&header[..[0, 1, 8, 15, 16, 40][n % 6]]);
            open.push(connection);
        }
        for _ in 0..20 {
            server.still_serves()?;
        }
        Ok(Remark::Pass)
    }),
    robustness("W1-CON-012d", "clients that disconnect during an answer don't harm others").server(
        |server| {
            for n in 0..40 {
                let mut connection = server.connect()?;
                let side = [64, 512, 1024][n % 3];
                connection.write(&Draft::request(1, "x").set("width", side).set("height", side).bytes());
                if n % 2 == 0 {
                    connection.write(&Draft::request(2, "x").bytes());
                }
                if n % 4 == 1 {
                    // In the middle of the image rather than before it.
                    connection.read_some(1000)?;
                }
                if n % 8 < 4 {
                    connection.reset()
                } else {
                    drop(connection)
                }
                server.still_serves()?;
            }
            Ok(Remark::Pass)
        },
    ),
    robustness("W1-CON-014a", "500 requests at once on one connection: read later, or BUSY").server(
        |server| {
            const REQUESTS: u64 = 500;
            let requests = (1..=REQUESTS).flat_map(|id| Draft::request(id, "x").bytes()).collect();
            let mut connection = server.connect()?;
            served_or_busy(&mut connection, requests, REQUESTS)?;
            server.barrier(&mut connection).map(|()| Remark::Pass)
        },
    ),
];

/// When a connection had its first BUSY, and its last image.
#[derive(Default)]
struct Times {
    first_busy: Option<Instant>,
    last_image: Option<Instant>,
    images: u64,
}

/// Sends requests with the ids from 1 to `count`, each of which has to be answered once, with an image or with BUSY.
fn served_or_busy(connection: &mut Connection, requests: Vec<u8>, count: u64) -> Result<Times, Box<Failure>> {
    let busy = code("BUSY");
    let writer = connection.write_beside(vec![requests], AfterWriting::Go)?;
    let mut missing: BTreeSet<u64> = (1..=count).collect();
    let mut times = Times::default();
    while !missing.is_empty() {
        let came = connection.receive().inspect_err(|_| connection.close())?;
        let problem = match &came {
            // A connection that there is no place for (W1-CON-008).
            Came::Answer(Answer::Error { id: 0, code, .. }) if *code == busy => break,
            Came::Answer(answer) if missing.remove(&answer.id()) => {
                match answer {
                    Answer::Error { code, .. } if *code == busy => {
                        times.first_busy.get_or_insert_with(Instant::now);
                    }
                    Answer::Image { .. } => {
                        times.last_image = Some(Instant::now());
                        times.images += 1;
                    }
                    // A server that can't serve a right request may say so (W1-VAL-003).
                    Answer::Error { status: 500, .. } => {}
                    Answer::Error { .. } => {
                        connection.close();
                        return fail_with(
                            "W1-CON-007",
                            format!("the answer is {answer}"),
                            "an image, or BUSY",
                        );
                    }
                }
                continue;
            }
            Came::Answer(answer) => format!("an answer that nobody asked for: {answer}"),
            Came::Close => format!("a close with {} of {count} answers missing", missing.len()),
        };
        connection.close();
        return fail_with("W1-CON-002", problem, "one answer to each request");
    }
    let _ = writer.join();
    Ok(times)
}

fn fail_with<T>(requirement: &str, problem: String, expected: &str) -> Result<T, Box<Failure>> {
    Err(Box::new(Failure::new(requirement, problem, expected)))
}

/// Requests of all kinds, most of them refused, so that no engine is troubled.
fn mixture(count: u64) -> (Vec<Draft>, Vec<Expected>) {
    (1..=count)
        .map(|id| match id % 4 {
            0 => (Draft::request(id, "x"), Expected::small_image(id)),
            1 => (Draft::unknown_model(id), Expected::error(id, "INVALID_MODEL_ID")),
            2 => (Draft::request(id, "x").set("steps", 0), Expected::error(id, "INVALID_STEPS")),
            _ => (Draft::other(9, &id.to_be_bytes()), Expected::error(id, "UNSUPPORTED_TYPE")),
        })
        .unzip()
}
