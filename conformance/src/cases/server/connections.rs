//! Section 8 of the specification, connections: what is tried on a server.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::case::{Case, informational, recommended, required, robustness};
use crate::connection::{AfterWriting, Answer, Came, Connection};
use crate::draft::Draft;
use crate::secret::PROMPT;
use crate::server::NO_DEADLINE;
use crate::talk::{Expected, Talk, list};
use crate::testee::{how_it_ended, signal_of};
use crate::verdict::{Failure, Remark, Verdict, fail, not_applicable, skip};
use crate::wire::{End, code, code_name};

use super::probe::{NO_IMAGE, NOT_OURS, picture};

/// In the order of the text.
pub(super) const CASES: &[Case] = &[
    required("W1-CON-001a", "requests may be sent before earlier ones are answered")
        .server_vectors(&["stream-two-requests", "stream-five-requests"]),
    robustness("W1-CON-001b", "2,000 requests at once on one connection").server(|server| {
        // A quarter of them are for images.
        let (frames, expected) = mixture(4 * server.affordable(50, 500));
        server.hold_in_cuts(&Talk::new(format!("{} requests", frames.len()), &frames, expected))
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
        let requests: Vec<Draft> = (1..=10).map(|id| Draft::request(id, PROMPT)).collect();
        let mut ids: Vec<u64> = server.ask(&requests)?.iter().map(Answer::id).collect();
        ids.sort_unstable();
        if ids.into_iter().eq(1..=10) {
            Ok(Remark::Pass)
        } else {
            fail("W1-CON-002", "ten requests got other answers than one each", "one answer to each")
        }
    }),
    required("W1-CON-004a", "request_ids may repeat").server_vectors(&["stream-same-id-twice"]),
    robustness("W1-CON-004b", "50 requests at once with the same request_id").talks(|| {
        let frames = vec![Draft::request(77, PROMPT); 50];
        vec![Talk::new("50 requests with the id 77", &frames, vec![Expected::small_image(77); 50])]
    }),
    required("W1-CON-004e", "requests of different sizes with the same request_id, all under way").talks(|| {
        let sizes = [(512, 512), (64, 128), (128, 64), (64, 64), (192, 64), (64, 192), (128, 128)];
        let request = |(width, height)| Draft::request(5, PROMPT).set("width", width).set("height", height);
        let expected = |(width, height)| Expected::Image { id: 5, width, height };
        vec![Talk::new("seven with the id 5", &sizes.map(request), sizes.map(expected).to_vec())]
    }),
    required("W1-CON-004f", "a request_id that was used before is that of a new request").server(|server| {
        let mut connection = server.connect()?;
        let mut told = Remark::Pass;
        for (width, height, steps) in [(64, 64, 1), (128, 64, 1), (64, 64, 0), (64, 128, 1), (64, 64, 0)] {
            let sized = [("width", width), ("height", height), ("steps", steps)];
            let draft = sized.into_iter().fold(Draft::request(5, PROMPT), |draft, (name, value)| draft.set(name, value));
            let expected = match steps {
                0 => Expected::error(5, "INVALID_STEPS"),
                _ => Expected::Image { id: 5, width, height },
            };
            connection.write(&draft.bytes());
            match connection.receive()? {
                Came::Answer(answer) if answer.is(&expected) => {
                    if expected.is_image() && answer.pixels().is_none() {
                        told = Remark::Skip(NO_IMAGE.to_owned());
                    }
                }
                Came::Answer(answer) => {
                    return fail("W1-CON-004", format!("the answer is {answer}"), expected.to_string());
                }
                Came::Close => {
                    return fail("W1-CON-005", "the server closed the connection", expected.to_string());
                }
            }
        }
        server.barrier(&mut connection).map(|()| told)
    }),
    required("W1-CON-005a", "the connection stays open after a refusal")
        .server_vectors(&["stream-refused-between-two", "stream-one-refusal-of-each-kind"]),
    required("W1-CON-006a", "a client that reads slowly gets whole frames").server(|server| {
        let mut connection = server.connect()?;
        connection.read_at_most(4093);
        for id in 1..=3 {
            connection.write(&Draft::request(id, PROMPT).set("width", 1024).set("height", 1024).bytes());
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
        // From several connections: a server may read one no further that has requests under way (W1-CON-014).
        const CONNECTIONS: usize = 16;
        let count = server.room(CONNECTIONS);
        let each = server.affordable(320, 4000) / count as u64;
        let all = each * count as u64;
        let requests: Vec<u8> = (1..=each).flat_map(|id| Draft::request(id, PROMPT).bytes()).collect();
        let mut connections = Vec::new();
        for _ in 0..count {
            connections.push(server.connect()?);
        }
        let rush = Rush::begin(server.pace());
        let began = Instant::now();
        let told = thread::scope(|scope| {
            let readers: Vec<_> = connections
                .iter_mut()
                .map(|connection| scope.spawn(|| served_or_busy(connection, requests.clone(), each, &rush)))
                .collect();
            let joined =
                readers.into_iter().map(|reader| reader.join().unwrap_or_else(|_| Ok(Times::default())));
            joined.collect::<Result<Vec<_>, _>>()
        });
        let took = began.elapsed();
        drop(connections);
        let told = told?;
        let images: u64 = told.iter().map(|times| times.images).sum();
        let errors: Vec<u64> = told.iter().flat_map(|times| times.errors.iter().copied()).collect();
        if images > 0 {
            server.recovers("W1-CON-007")?;
        }
        // An engine may fail now and then, but not because there is much to do.
        if let Some(code) = errors.first().filter(|_| errors.len() as u64 > all / 10) {
            let alone = server.affordable(10, 30);
            let mut denied = 0;
            for id in 1..=alone {
                denied += usize::from(server.ask(&[Draft::request(id, PROMPT)])?[0].pixels().is_none());
            }
            let problem = format!(
                "of {all} requests at once {} were answered with errors of status 500 other than BUSY, the first with {}",
                errors.len(),
                code_name(*code)
            );
            return if denied == 0 {
                let problem = format!("{problem}; of {alone} one after the other none was");
                fail("W1-CON-007", problem, "BUSY where there is no room")
            } else {
                skip(&problem)
            };
        }
        let first_busy = told.iter().filter_map(|times| times.first_busy).min();
        match (first_busy, told.iter().filter_map(|times| times.last_image).max()) {
            // Who is fast, or stops reading, has none that is full (W1-CON-014).
            (None, _) => not_applicable(&format!(
                "the queue could not be filled: of {all} requests {images} got an image in {took:.1?}, and none BUSY"
            )),
            (Some(_), None) if errors.is_empty() => {
                fail("W1-CON-007", "only BUSY came", "images for the requests that the queue has room for")
            }
            (Some(_), None) => skip(NO_IMAGE),
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
            match connection.receive() {
                Ok(Came::Answer(Answer::Error { id: 1, .. })) => served += 1,
                Ok(Came::Answer(answer)) => {
                    return fail("W1-CON-008", format!("the answer is {answer}"), "BUSY for request 0");
                }
                Ok(Came::Close) => {}
                Err(failure) if failure.no_place => {}
                Err(failure) => return Err(failure),
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
            return not_applicable(NOT_OURS);
        }
        let mut connection = server.connect()?;
        let count = server.affordable(5, 20);
        for id in 1..=count {
            connection.write(&Draft::request(id, PROMPT).set("width", 512).set("height", 512).bytes());
        }
        // It has begun with them when the first image is there.
        let mut missing: BTreeSet<u64> = (1..=count).collect();
        loop {
            match connection.receive()? {
                Came::Answer(answer) if !missing.remove(&answer.id()) => {
                    return fail("W1-CON-002", format!("nobody asked for {answer}"), "an answer to a request");
                }
                Came::Answer(Answer::Image { .. }) => break,
                Came::Answer(_) if missing.len() > 2 => {}
                _ => return skip(NO_IMAGE),
            }
        }
        if let Some(process) = server.process() {
            process.signal(Signal::TERM);
        }
        let told = loop {
            match connection.receive() {
                Ok(Came::Answer(answer)) if !missing.remove(&answer.id()) => {
                    let expected = "the request_id of a request that has no answer yet";
                    break fail("W1-ERR-001", format!("nobody asked for {answer}"), expected);
                }
                Ok(Came::Answer(Answer::Image { .. } | Answer::Error { status: 500, .. })) => {}
                Ok(Came::Answer(answer)) => {
                    break fail("W1-CON-009", format!("the answer is {answer}"), "an image, SHUTTING_DOWN, or another error of status 500");
                }
                Ok(Came::Close) if missing.is_empty() => break Ok(Remark::Pass),
                Ok(Came::Close) => {
                    break fail(
                        "W1-CON-009",
                        format!("a close with {} of {count} answers missing", missing.len()),
                        "all answers",
                    );
                }
                Err(failure) => break Err(failure),
            }
        };
        let deadline = Instant::now() + server.timeout;
        let ended = server.process().and_then(|process| process.wait(deadline));
        server.stop();
        let told = told.map_err(|mut failure| {
            // It was told to end: that it did is no crash.
            failure.verdict = Verdict::Fail;
            failure
        })?;
        match ended {
            // The text has no exit status: many end by the signal, or say so by theirs.
            Some(status) if status.success() || signal_of(status) == Some(Signal::TERM.as_raw()) => Ok(told),
            Some(status) => {
                Ok(Remark::Warn(format!("the server ended with {} after SIGTERM", how_it_ended(status))))
            }
            None => fail("W1-CON-009", "the server did not end after SIGTERM", "an end"),
        }
    }),
    required("W1-CON-010a", "half-close: the client gets its answers, then a close").talks(|| {
        let (frames, expected) = mixture(12);
        vec![
            Talk::new("one request", &[Draft::request(6, PROMPT)], vec![Expected::small_image(6)])
                .ends(End::InsideAFrame),
            Talk::new(
                "a refused one",
                &[Draft::request(6, PROMPT).set("steps", 0)],
                vec![Expected::error(6, "INVALID_STEPS")],
            )
            .ends(End::InsideAFrame),
            Talk::new("twelve", &frames, expected).ends(End::InsideAFrame),
        ]
    }),
    robustness("W1-CON-011a", "a client that reads no answers doesn't block others").server(|server| {
        let mut deaf = server.connect()?;
        for id in 1..=4 {
            deaf.write(&Draft::request(id, PROMPT).set("width", 1024).set("height", 1024).bytes());
        }
        // It may take until the server has given the deaf one up, but not longer than any answer may take.
        for _ in 0..20 {
            server.still_serves()?;
        }
        deaf.abandon();
        server.still_serves().map(|()| Remark::Pass)
    }),
    required("W1-CON-012a", "an invalid or broken connection doesn't harm another").server(|server| {
        // An engine may fail once.
        const TRIES: usize = 3;
        let request = Draft::request(1, PROMPT).bytes();
        let (first, second) = request.split_at(60);
        let troubles: [&[u8]; 4] = [
            b"GET / HTTP/1.1\r\n\r\n",
            &Draft::request(1, PROMPT).set("payload_len", u32::MAX.into()).bytes(),
            &Draft::request(1, PROMPT).set("steps", 0).bytes(),
            &Draft::request(1, PROMPT).bytes()[..50],
        ];
        for _ in 0..TRIES {
            let mut good = server.connect()?;
            good.write(first);
            for trouble in troubles {
                let mut bad = server.connect()?;
                bad.write(trouble);
                bad.reset();
                server.still_serves()?;
            }
            good.write(second);
            match good.receive()? {
                Came::Answer(Answer::Image { id: 1, .. }) => {
                    return server.barrier(&mut good).map(|()| Remark::Pass);
                }
                Came::Answer(Answer::Error { id: 1, status: 500, .. }) => {}
                Came::Answer(answer) => {
                    return fail("W1-CON-012", format!("the answer is {answer}"), "an image for request 1");
                }
                Came::Close => {
                    return fail("W1-CON-012", "the server closed the connection", "an image for request 1");
                }
            }
        }
        if server.makes_images()? {
            return fail("W1-CON-012", "beside invalid connections a request got no image", "an image, as without them");
        }
        skip(NO_IMAGE)
    }),
    robustness("W1-CON-012b", "a client that sends byte by byte doesn't block others").server(|server| {
        let request = Draft::request(1, PROMPT).bytes();
        let mut slow = server.connect()?;
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
        let header = Draft::request(1, PROMPT).bytes();
        for n in 0..server.room(100) {
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
            let serves = server.makes_images()?;
            for n in 0..40 {
                let mut connection = server.connect()?;
                let side = [64, 512, 1024][n % 3];
                connection.write(&Draft::request(1, PROMPT).set("width", side).set("height", side).bytes());
                if n % 2 == 0 {
                    connection.write(&Draft::request(2, PROMPT).bytes());
                }
                // In the middle of the image rather than before it.
                if n % 4 == 1 && connection.await_beginning()? {
                    connection.read_some(1000)?;
                }
                if n % 8 < 4 {
                    connection.reset()
                } else {
                    connection.abandon()
                }
                server.still_serves()?;
            }
            if serves {
                server.recovers("W1-CON-012")?;
            }
            Ok(Remark::Pass)
        },
    ),
    required("W1-CON-012e", "the same request_ids at the same time on several connections").server(|server| {
        const DEPTH: u64 = 6;
        let count = server.room(3) as u64 + 1;
        let mut connections = Vec::new();
        for _ in 0..count {
            connections.push(server.connect()?);
        }
        let (mut images, mut denied, busy) = (0, Vec::new(), code("BUSY"));
        // In the second round the ids are those of other requests than in the first.
        for round in 0..2 {
            let talks: Vec<(Vec<u8>, Vec<Expected>)> = (round..round + count)
                .map(|number| {
                    let (frames, expected): (Vec<_>, Vec<_>) =
                        (1..=DEPTH).map(|id| one_of_many(number, id)).unzip();
                    (frames.iter().flat_map(Draft::bytes).collect(), expected)
                })
                .collect();
            // All are under way before the first answer is read.
            for (connection, (bytes, _)) in connections.iter_mut().zip(&talks) {
                connection.write(bytes);
            }
            let results: Vec<_> = thread::scope(|scope| {
                let readers: Vec<_> = connections
                    .iter_mut()
                    .zip(talks)
                    .map(|(connection, (_, expected))| scope.spawn(move || collect(connection, expected)))
                    .collect();
                readers.into_iter().filter_map(|reader| reader.join().ok()).collect()
            });
            for result in results {
                for answer in result? {
                    match answer {
                        Answer::Image { .. } => images += 1,
                        Answer::Error { status: 500, code, .. } if code != busy => denied.push(answer),
                        Answer::Error { .. } => {}
                    }
                }
            }
        }
        for connection in &mut connections {
            server.barrier(connection)?;
        }
        drop(connections);
        // An engine may fail now and then, but not because of what others ask for.
        match denied.first() {
            Some(answer) if denied.len() > images / 4 => {
                let problem =
                    format!("{} requests that can be served got no image, the first {answer}", denied.len());
                if server.makes_images()? {
                    let problem = format!("{problem}; alone, such a request gets one");
                    fail("W1-CON-012", problem, "an image for each, or BUSY")
                } else {
                    skip(NO_IMAGE)
                }
            }
            _ => Ok(Remark::Pass),
        }
    }),
    required("W1-CON-012f", "pixels go to the connection that asked for them, whatever its request_ids").server(
        |server| {
            const DEPTH: u64 = 4;
            let count = server.room(3) as u64 + 1;
            let request = |number: u64, id: u64| {
                Draft::request(id, &format!("picture {number} {id}")).set("seed", 100 * number + id)
            };
            // What each looks like is asked before, one by one.
            let mut pictures = BTreeMap::new();
            for number in 0..count {
                for id in 1..=DEPTH {
                    let Some(pixels) = picture(server, &request(number, id))? else { return skip(NO_IMAGE) };
                    pictures.entry(pixels).or_insert((number, id));
                }
            }
            if (pictures.len() as u64) < count * DEPTH {
                return skip("this server's images depend on neither prompt nor seed");
            }
            let mut connections = Vec::new();
            for _ in 0..count {
                connections.push(server.connect()?);
            }
            for (connection, number) in connections.iter_mut().zip(0..) {
                // The first one takes longer, so that the others wait for it.
                let large = Draft::request(DEPTH + 1, PROMPT).set("width", 512).set("height", 512);
                let mut bytes = large.bytes();
                bytes.extend((1..=DEPTH).flat_map(|id| request(number, id).bytes()));
                connection.write(&bytes);
            }
            for (connection, number) in connections.iter_mut().zip(0..) {
                for _ in 0..=DEPTH {
                    let Came::Answer(answer) = connection.receive()? else {
                        return fail("W1-CON-005", "the server closed the connection", "all answers");
                    };
                    let whose = answer.pixels().and_then(|pixels| pictures.get(pixels));
                    if let Some(whose) = whose.filter(|whose| **whose != (number, answer.id())) {
                        let problem = format!(
                            "request {} of connection {number} got the pixels of request {} of connection {}",
                            answer.id(),
                            whose.1,
                            whose.0
                        );
                        return fail("W1-CON-012", problem, "its own");
                    }
                }
            }
            Ok(Remark::Pass)
        },
    ),
    required("W1-CON-013a", "three seconds are not a long time, nor is one without reading").server(
        |server| {
            // A server whose engine waits for a client that reads nothing may soon have others waiting for that.
            const DEAF: Duration = Duration::from_secs(1);
            const IDLE: Duration = Duration::from_secs(2);
            let request = Draft::request(1, PROMPT).bytes();
            let (first, second) = request.split_at(60);
            let large = Draft::request(1, PROMPT).set("width", 1024).set("height", 1024).bytes();
            // What is sent before, how many answers come to that, and what is sent afterwards.
            let kinds: [(&str, &[u8], usize, &[u8]); 4] = [
                ("a client that reads nothing", &large, 0, &[]),
                ("a connection without a request", &[], 0, &request),
                ("a frame that is not complete", first, 0, second),
                ("a connection after its answers", &request, 1, &request),
            ];
            let mut open = Vec::new();
            let kinds = &kinds[..server.room(3) + 1];
            for (_, before, answers, _) in kinds.iter().rev() {
                let mut connection = server.connect()?;
                connection.write(before);
                for _ in 0..*answers {
                    connection.receive()?;
                }
                open.push(connection);
            }
            let mut pause = DEAF;
            for (connection, (name, _, _, after)) in open.iter_mut().rev().zip(kinds) {
                thread::sleep(pause);
                pause = if pause == DEAF { IDLE } else { Duration::ZERO };
                connection.write(after);
                let problem = match connection.receive() {
                    Ok(Came::Answer(Answer::Image { id: 1, .. } | Answer::Error { id: 1, status: 500, .. })) => continue,
                    Ok(Came::Answer(answer)) => format!("the answer is {answer}"),
                    Ok(Came::Close) => "the server closed the connection".to_owned(),
                    Err(failure) if failure.verdict == Verdict::Fail && !failure.no_place => failure.problem,
                    Err(failure) => return Err(failure),
                };
                return fail("", format!("{name}, after a few seconds: {problem}"), "an answer");
            }
            Ok(Remark::Pass)
        },
    ),
    robustness("W1-CON-014a", "500 requests at once on one connection: read later, or BUSY").server(
        |server| {
            let count = server.affordable(50, 500);
            let requests = (1..=count).flat_map(|id| Draft::request(id, PROMPT).bytes()).collect();
            let rush = Rush::begin(server.pace());
            let mut connection = server.connect()?;
            served_or_busy(&mut connection, requests, count, &rush)?;
            server.barrier(&mut connection).map(|()| Remark::Pass)
        },
    ),
    recommended("W1-CON-015a", "a stream that is given up ends without a reset, whatever is still unread").server(
        |server| {
            const UNREAD: usize = 30_000;
            let header = |name, value| Draft::request(1, PROMPT).set(name, value).bytes();
            let given_up = [
                ("INVALID_MAGIC", header("magic", 0)),
                ("TOO_LARGE", header("payload_len", u64::from(u32::MAX))),
            ];
            for (error, mut bytes) in given_up {
                bytes.resize(UNREAD, b'-');
                let mut connection = server.connect()?;
                let writer = connection.write_beside(vec![bytes], AfterWriting::Go)?;
                let came = connection.receive()?;
                match came {
                    Came::Answer(answer) if answer.is(&Expected::error(0, error)) => {}
                    Came::Answer(answer) => return fail("", format!("the answer is {answer}"), error),
                    Came::Close => {
                        return fail("W1-CON-015", format!("a close, and no {error} came before it"), error);
                    }
                }
                let came = connection.receive()?;
                let was_reset = connection.was_reset();
                connection.close();
                let _ = writer.join();
                if let Came::Answer(answer) = came {
                    return fail("W1-CON-002", format!("after {error} came {answer}"), "a close");
                }
                if was_reset {
                    let problem = format!("after {error} the connection was reset, with bytes of the client unread");
                    return fail("W1-CON-015", problem, "the end of the server's direction, and no reset");
                }
            }
            Ok(Remark::Pass)
        },
    ),
];

/// When a connection had its first BUSY, and its last image.
#[derive(Default)]
struct Times {
    first_busy: Option<Instant>,
    last_image: Option<Instant>,
    images: u64,
    /// The codes of errors that are neither BUSY nor for a deadline that may have passed.
    errors: Vec<u64>,
}

/// What a queue that is filled from several connections does meanwhile.
///
/// While it is full its engine draws, so an answer comes after every few images' time. Where none comes for long, and then
/// BUSY, the queue was empty by then. That a machine stood still looks the same, but not several times, and not if
/// an earlier request of the connection gets its answer later than BUSY: that one was in the queue.
struct Rush {
    /// So long no full queue is silent.
    long: Duration,
    seen: Mutex<Seen>,
}

struct Seen {
    last_answer: Instant,
    has_drawn: bool,
    late: u32,
    longest: Duration,
    overtook: bool,
}

impl Rush {
    fn begin(pace: Duration) -> Self {
        const LEAST: Duration = Duration::from_millis(500);
        const IMAGES: u32 = 20;
        let last_answer = Instant::now();
        let seen = Seen { last_answer, has_drawn: false, late: 0, longest: Duration::ZERO, overtook: false };
        Self { long: LEAST.max(IMAGES * pace), seen: Mutex::new(seen) }
    }

    /// Notes an answer, and whether BUSY for a later request of its connection came before it. Says what is wrong once
    /// that is certain.
    fn note(&self, is_busy: bool, was_overtaken: bool) -> Option<String> {
        const CERTAIN: u32 = 3;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let silence = seen.last_answer.elapsed();
        seen.last_answer = Instant::now();
        if is_busy && seen.has_drawn && silence >= self.long {
            seen.late += 1;
            seen.longest = seen.longest.max(silence);
        }
        seen.has_drawn |= !is_busy;
        seen.overtook |= was_overtaken;
        (seen.late >= CERTAIN && !seen.overtook).then(|| {
            format!("BUSY came up to {:.1?} after all that the queue had room for was answered", seen.longest)
        })
    }
}

/// Sends requests with the ids from 1 to `count`, each of which has to be answered once, with an image or with BUSY;
/// errors of status 500 are for the caller to judge.
fn served_or_busy(
    connection: &mut Connection,
    requests: Vec<u8>,
    count: u64,
    rush: &Rush,
) -> Result<Times, Box<Failure>> {
    let (busy, timeout) = (code("BUSY"), code("TIMEOUT"));
    let began = Instant::now();
    let writer = connection.write_beside(vec![requests], AfterWriting::Go)?;
    let mut missing: BTreeSet<u64> = (1..=count).collect();
    let mut times = Times::default();
    let mut last_busy = 0;
    while !missing.is_empty() {
        let came = connection.receive().inspect_err(|_| connection.close())?;
        let problem = match &came {
            Came::Answer(answer) if missing.remove(&answer.id()) => {
                let is_busy = matches!(answer, Answer::Error { code, .. } if *code == busy);
                if let Some(problem) = rush.note(is_busy, !is_busy && answer.id() < last_busy) {
                    connection.close();
                    return fail_with("W1-CON-007", problem, "BUSY at once");
                }
                if is_busy {
                    last_busy = last_busy.max(answer.id());
                }
                match answer {
                    Answer::Error { code, .. } if *code == busy => {
                        times.first_busy.get_or_insert_with(Instant::now);
                    }
                    Answer::Image { .. } => {
                        times.last_image = Some(Instant::now());
                        times.images += 1;
                    }
                    Answer::Error { code, .. } if *code == timeout && began.elapsed() > NO_DEADLINE => {}
                    Answer::Error { status: 500, code, .. } => times.errors.push(*code),
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

/// What connection `number` sends with this id, when others send something else with it: first what takes longer, then
/// images of all sizes and refusals.
fn one_of_many(number: u64, id: u64) -> (Draft, Expected) {
    const REFUSED: [(&str, u64, &str); 4] = [
        ("steps", 0, "INVALID_STEPS"),
        ("width", 65, "INVALID_DIMENSIONS"),
        ("model_id", 7, "INVALID_MODEL_ID"),
        ("t5_length", 0, "INVALID_PROMPT"),
    ];
    let kind = (number + id) % 4;
    if id.is_multiple_of(3)
        && let Some((field, value, error)) =
            REFUSED.into_iter().zip(0..).find_map(|(one, n)| (n == kind).then_some(one))
    {
        return (Draft::request(id, PROMPT).set(field, value), Expected::error(id, error));
    }
    let (width, height) = if id == 1 { (512, 512 + 64 * kind) } else { (64 * (1 + kind), 64 * id) };
    let draft = Draft::request(id, PROMPT).set("width", width).set("height", height);
    (draft, Expected::Image { id, width, height })
}

/// Reads the answers that have to come on one of several connections.
fn collect(connection: &mut Connection, mut missing: Vec<Expected>) -> Result<Vec<Answer>, Box<Failure>> {
    let mut answers = Vec::new();
    while !missing.is_empty() {
        match connection.receive()? {
            Came::Answer(answer) => {
                let Some(at) = missing.iter().position(|expected| answer.is(expected)) else {
                    return fail_with(
                        "W1-CON-012",
                        format!("with requests under way on other connections the answer is {answer}"),
                        list(&missing),
                    );
                };
                missing.remove(at);
                answers.push(answer);
            }
            Came::Close => {
                let problem = format!("the server closed the connection; missing: {}", list(&missing));
                return fail_with("W1-CON-005", problem, "all answers");
            }
        }
    }
    Ok(answers)
}

fn fail_with<T>(requirement: &str, problem: String, expected: impl Into<String>) -> Result<T, Box<Failure>> {
    Err(Box::new(Failure::new(requirement, problem, expected)))
}

/// Requests of all kinds, most of them refused, so that no engine is troubled.
fn mixture(count: u64) -> (Vec<Draft>, Vec<Expected>) {
    (1..=count)
        .map(|id| match id % 4 {
            0 => (Draft::request(id, PROMPT), Expected::small_image(id)),
            1 => (Draft::unknown_model(id), Expected::error(id, "INVALID_MODEL_ID")),
            2 => (Draft::request(id, PROMPT).set("steps", 0), Expected::error(id, "INVALID_STEPS")),
            _ => (Draft::other(9, &id.to_be_bytes()), Expected::error(id, "UNSUPPORTED_TYPE")),
        })
        .unzip()
}
