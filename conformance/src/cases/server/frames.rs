//! Section 3 of the specification, frames: what is tried on a server.

use crate::case::{Case, required, robustness};
use crate::connection::Came;
use crate::draft::{Cut, Draft, Segment};
use crate::secret::PROMPT;
use crate::talk::{Expected, Talk};
use crate::verdict::{Remark, fail, not_applicable, skip};
use crate::wire::End;

use super::probe::{NO_IMAGE, NOT_OURS, costs, header, refused};

/// In the order of the text.
pub(super) const CASES: &[Case] = &[
    required("W1-HDR-001a", "answers begin with the magic").server(|server| header(server, &["W1-HDR-001"])),
    required("W1-HDR-002a", "answers have version 1")
        .server(|server| header(server, &["W1-HDR-002", "W1-VER-002", "W1-VER-003"])),
    required("W1-HDR-003a", "payload_len of an answer is its payload's length")
        .server(|server| header(server, &["W1-HDR-003"])),
    required("W1-HDR-003b", "a request ends after payload_len bytes").server_vectors(&[
        "stream-payload-len-one-less",
        "stream-payload-len-one-more",
        "stream-empty-payloads",
    ]),
    required("W1-HDR-004a", "reserved of an answer is 0").server(|server| header(server, &["W1-HDR-004"])),
    required("W1-HDR-005a", "reserved of a request is ignored").server_vectors(&["reserved-*"]),
    required("W1-FRM-002a", "payload_len over 10,485,760: TOO_LARGE, then a close").server_vectors(&[
        "payload-len-10485761*",
        "payload-len-16777*",
        "payload-len-2147483*",
        "payload-len-largest",
        "stream-nothing-is-read-after-too-large",
    ]),
    required("W1-FRM-003a", "a payload that is too long for a request is skipped").server_vectors(&[
        "prompt-data-*",
        "payload-len-10485760",
        "stream-6205-between-two",
        "stream-10-mib-between-two",
        "stream-longest-around-oversized",
    ]),
    required("W1-FRM-003b", "a skipped payload is not parsed").server_vectors(&[
        "stream-frames-within-a-skipped-payload",
        "stream-frame-within-an-unknown-type",
        "magic-within-a-payload",
    ]),
    required("W1-FRM-004a", "wrong magic: INVALID_MAGIC, then a close").server_vectors(&[
        "magic-first-byte",
        "magic-second-byte",
        "magic-third-byte",
        "magic-last-byte",
        "magic-backwards",
        "magic-lower-case",
        "magic-zeros",
        "magic-http",
        "magic-after-one-byte",
        "magic-header-only",
        "magic-payload-len-0",
    ]),
    required("W1-FRM-004b", "wrong magic after valid frames: INVALID_MAGIC, and nothing after it is read")
        .server_vectors(&[
            "stream-garbage-after-a-frame",
            "stream-magic-*",
            "stream-nothing-is-read-after-garbage",
        ]),
    required("W1-FRM-004c", "a wrong byte of the magic after frames of all kinds: INVALID_MAGIC, then a close").talks(
        || {
            let before = [
                (Draft::request(1, PROMPT), Expected::small_image(1)),
                (Draft::request(2, PROMPT).set("steps", 0), Expected::error(2, "INVALID_STEPS")),
                (Draft::other(9, &[7; 7_000]), Expected::error(0x0707_0707_0707_0707, "UNSUPPORTED_TYPE")),
            ];
            let mut talks = Vec::new();
            for (at, (frame, answer)) in (0..4).zip(before.iter().cycle()) {
                for byte in [b"WEVE"[at] ^ 0x20, 0, 0xFF] {
                    let mut magic = *b"WEVE";
                    magic[at] = byte;
                    let bad = Draft::request(3, PROMPT).set("magic", u32::from_be_bytes(magic).into());
                    let expected = vec![answer.clone(), Expected::error(0, "INVALID_MAGIC")];
                    let name = format!("byte {at} of the magic is {byte:#04x}, after another frame");
                    talks.push(Talk::new(name, &[frame.clone(), bad], expected).ends(End::Closed));
                }
            }
            talks
        },
    ),
    required("W1-FRM-004d", "wrong magic while an answer is being written: that answer, INVALID_MAGIC, a close").server(
        |server| {
            // An engine may fail once; that there was no place is told by what is received.
            const TRIES: usize = 3;
            let large = Draft::request(1, PROMPT).set("width", 1024).set("height", 1024);
            let mut answered = None;
            for _ in 0..TRIES {
                let mut connection = server.connect()?;
                connection.write(&large.bytes());
                // It doesn't fit into the buffers between the two, so the server can't have written all of it.
                if connection.await_beginning()? {
                    answered = Some(connection);
                    break;
                }
                connection.receive()?;
            }
            let Some(mut connection) = answered else { return skip(NO_IMAGE) };
            connection.write(&Draft::request(2, PROMPT).set("magic", 0).bytes());
            let expected = [
                Some(Expected::Image { id: 1, width: 1024, height: 1024 }),
                Some(Expected::error(0, "INVALID_MAGIC")),
                None,
            ];
            for expected in expected {
                match (connection.receive()?, expected) {
                    (Came::Answer(answer), Some(expected)) if answer.is(&expected) => {}
                    (Came::Close, None) => {}
                    (Came::Answer(answer), expected) => {
                        let expected = expected.map_or("a close".to_owned(), |expected| expected.to_string());
                        return fail("W1-FRM-004", format!("the answer is {answer}"), expected);
                    }
                    (Came::Close, Some(expected)) => {
                        return fail("W1-FRM-004", "the server closed the connection", expected.to_string());
                    }
                }
            }
            Ok(Remark::Pass)
        },
    ),
    required("W1-FRM-005a", "the magic is checked before payload_len, both before anything else")
        .server_vectors(&["order-magic-*", "order-payload-len-*"]),
    required("W1-FRM-008a", "payload_len alone reserves no memory").server(|server| {
        // So much is sent of either payload that the server must have read most of it, header included.
        const SENT: usize = 1 << 20;
        const SHORTER: u64 = 3 << 19;
        const LONGER: u64 = 10_485_760;
        // A quarter of what would be reserved by a server that does.
        const EACH: u64 = LONGER / 4;
        // What a server with a heap of its own asks for at times shows in one round, and not in each.
        const ROUNDS: usize = 3;
        let announces = |payload_len: u64| {
            let mut frame = Draft::request(1, PROMPT).set("payload_len", payload_len).bytes();
            frame.resize(SENT, 0);
            frame
        };
        let mut problem = String::new();
        for _ in 0..ROUNDS {
            let Some(costs) = costs(server, &announces(SHORTER), SHORTER, &announces(LONGER))? else {
                return not_applicable(NOT_OURS);
            };
            let (reserved, touched) = costs.more();
            if reserved.max(touched) <= EACH * costs.connections {
                return Ok(Remark::Pass);
            }
            problem = format!(
                "{} headers that announce {LONGER} bytes each cost {reserved} bytes of reserved and {touched} of \
                 touched memory more than those that announce {SHORTER}",
                costs.connections
            );
        }
        fail("W1-FRM-008", problem, format!("at most {EACH} bytes more for each"))
    }),
    required("W1-FRM-009a", "an incomplete frame is dropped without an answer")
        .server_vectors(&["cut-*", "stream-cut-*"]),
    robustness("W1-FRM-009b", "a request cut off after any number of bytes is dropped").server(|server| {
        let request = Draft::request(5, "a cat in space").bytes();
        for len in 1..request.len() {
            let talk = Talk {
                name: format!("cut off after {len} bytes"),
                sends: vec![Segment { field: "beginning".to_owned(), bytes: request[..len].to_vec() }],
                expected: Vec::new(),
                end: End::InsideAFrame,
            };
            server.hold(&talk, Cut::Whole).map_err(|mut failure| {
                failure.variant = talk.name.clone();
                failure
            })?;
        }
        server.still_serves().map(|()| Remark::Pass)
    }),
    required("W1-FRM-009c", "a connection that sends nothing is closed without an answer")
        .server_vectors(&["nothing"]),
    required("W1-FRM-011a", "no frame is answered before its last byte").talks(|| {
        let mut frames = refused();
        frames.push(("prompt_data", 0, Draft::request(1, PROMPT).tail("prompt_data", &[b'-'; 100_000])));
        let cut = |(field, _, draft): (&str, u64, Draft)| {
            let mut sends = draft.segments();
            if let Some(last) = sends.last_mut() {
                last.bytes.pop();
            }
            let name = format!("{field} is wrong, and the last byte is missing");
            Talk { name, sends, expected: Vec::new(), end: End::InsideAFrame }
        };
        frames.into_iter().map(cut).collect()
    }),
    required("W1-FRM-012a", "magic and payload_len are judged when the header is there").talks(|| {
        let header = |name: &str, draft: Draft, error: &str| {
            let sends = draft.segments().into_iter().take(5).collect();
            let expected = vec![Expected::error(0, error)];
            Talk { name: name.to_owned(), sends, expected, end: End::Closed }
        };
        let request = || Draft::request(1, PROMPT);
        vec![
            header("the magic", request().set("magic", 0x5745_5646), "INVALID_MAGIC"),
            header("payload_len", request().set("payload_len", 10_485_761), "TOO_LARGE"),
        ]
    }),
];
