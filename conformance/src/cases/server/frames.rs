//! Section 3 of the specification, frames: what is tried on a server.

use crate::case::{Case, required, robustness};
use crate::draft::{Cut, Draft, Segment};
use crate::talk::Talk;
use crate::verdict::{Remark, fail, not_applicable};
use crate::wire::End;

use super::probe::{NOT_OURS, header};

/// In the order of the text.
pub(super) const CASES: &[Case] = &[
    required("W1-HDR-001a", "answers begin with the magic").server(|server| header(server, "W1-HDR-001")),
    required("W1-HDR-002a", "answers have version 1").server(|server| header(server, "W1-HDR-002")),
    required("W1-HDR-003a", "payload_len of an answer is its payload's length")
        .server(|server| header(server, "W1-HDR-003")),
    required("W1-HDR-003b", "a request ends after payload_len bytes").server_vectors(&[
        "stream-payload-len-one-less",
        "stream-payload-len-one-more",
        "stream-empty-payloads",
    ]),
    required("W1-HDR-004a", "reserved of an answer is 0").server(|server| header(server, "W1-HDR-004")),
    required("W1-HDR-005a", "reserved of a request is ignored").server_vectors(&["reserved-*"]),
    required("W1-FRM-002a", "payload_len over 10,485,760: TOO_LARGE, then a close").server_vectors(&[
        "payload-len-10485761*",
        "payload-len-16777248",
        "payload-len-2147483648",
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
    ]),
    required("W1-FRM-004b", "wrong magic after valid frames: INVALID_MAGIC, and nothing after it is read")
        .server_vectors(&["stream-garbage-after-a-frame", "stream-nothing-is-read-after-garbage"]),
    required("W1-FRM-005a", "the magic is checked before payload_len, both before anything else")
        .server_vectors(&["order-magic-*", "order-payload-len-*"]),
    required("W1-FRM-008a", "payload_len alone reserves no memory").server(|server| {
        const CONNECTIONS: usize = 100;
        // A tenth of what would be reserved by a server that does.
        const ALLOWED: u64 = CONNECTIONS as u64 * 10_485_760 / 10;
        let Some(before) = server.memory() else { return not_applicable(NOT_OURS) };
        let header = Draft::request(1, "x").set("payload_len", 10_485_760).bytes();
        let mut open = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut connection = server.connect()?;
            connection.write(&header[..16]);
            open.push(connection);
        }
        // Its answer proves that the headers before it were read, as far as the server reads in the order of
        // arrival.
        server.still_serves()?;
        let Some(after) = server.memory() else { return not_applicable(NOT_OURS) };
        drop(open);
        let grown = after.saturating_sub(before);
        if grown > ALLOWED {
            let problem = format!(
                "{CONNECTIONS} headers that announce 10,485,760 bytes each cost {grown} bytes of memory"
            );
            return fail("W1-FRM-008", problem, format!("at most {ALLOWED} bytes"));
        }
        server.still_serves().map(|()| Remark::Pass)
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
];
