//! Section 5 of the specification, the response: what is tried on a server.

use std::time::Instant;

use crate::case::{Case, required};
use crate::connection::Answer;
use crate::draft::Draft;
use crate::talk::{Expected, Talk};
use crate::verdict::{Remark, fail};

use super::probe::header;

/// In the order of the text.
pub(super) const CASES: &[Case] = &[
    required("W1-RSP-001a", "the answer has the request's request_id, all 64 bits of it")
        .server_vectors(&["request-id-*"]),
    required("W1-RSP-002a", "the image has the requested width and height").talks(|| {
        [(64, 64), (64, 2048), (2048, 64), (512, 768), (1984, 128)]
            .map(|(width, height)| {
                let request = Draft::request(3, "x").set("width", width).set("height", height);
                Talk::new(
                    format!("{width}×{height}"),
                    &[request],
                    vec![Expected::Image { id: 3, width, height }],
                )
            })
            .to_vec()
    }),
    required("W1-RSP-003a", "generation_time_ms excludes the time in the queue").server(|server| {
        // What eight images are said to have taken can't be more than it took until all were there, if they
        // were made one after the other; a server with several devices may take that much on each.
        const DEVICES: u64 = 16;
        let began = Instant::now();
        let requests: Vec<Draft> =
            (1..=8).map(|id| Draft::request(id, "x").set("width", 512).set("height", 512)).collect();
        let answers = server.ask(&requests)?;
        let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let claimed: Vec<u64> = answers
            .iter()
            .filter_map(|answer| match answer {
                Answer::Image { time, .. } => Some(*time),
                Answer::Error { .. } => None,
            })
            .collect();
        if let Some(time) = claimed.iter().find(|time| **time > took + 1) {
            let problem =
                format!("generation_time_ms is {time}, and all eight images together took {took} ms");
            return fail("W1-RSP-003", problem, "the time that generation took");
        }
        let sum: u64 = claimed.iter().sum();
        if claimed.len() == requests.len() && sum > took + 8 {
            let note = format!(
                "eight images are said to have taken {sum} ms together, and were there after {took} ms"
            );
            return if sum > took * DEVICES {
                fail("W1-RSP-003", note, "no wait")
            } else {
                Ok(Remark::Warn(note))
            };
        }
        Ok(Remark::Pass)
    }),
    required("W1-RSP-004a", "status is 200, image_data_len is width × height × channels")
        .server(|server| header(server, "W1-RSP-004")),
];
