//! Section 4 of the specification, the request: what is tried on a server.

use std::collections::BTreeSet;

use crate::case::{Case, required};
use crate::connection::{Answer, Came};
use crate::draft::Draft;
use crate::server::Server;
use crate::verdict::{Failure, Remark, fail, skip};

use super::probe::NO_IMAGE;

/// In the order of the text.
pub(super) const CASES: &[Case] = &[
    required("W1-REQ-001a", "width: values in range are served, others refused")
        .server_vectors(&["request-width-*", "width-*"]),
    required("W1-REQ-001b", "height: values in range are served, others refused").server_vectors(&[
        "request-height-*",
        "height-*",
        "request-sides-largest",
    ]),
    required("W1-REQ-001c", "steps: values in range are served, others refused")
        .server_vectors(&["request-steps-*", "steps-*"]),
    required("W1-REQ-001d", "prompt lengths: values in range are served, others refused").server_vectors(&[
        "request-clip-*",
        "request-t5-*",
        "clip-l-length-*",
        "clip-g-length-*",
        "t5-length-*",
        "request-longest",
    ]),
    required("W1-REQ-001e", "a model_id other than 0 is refused").server_vectors(&["model-id-*"]),
    required("W1-REQ-002a", "a prompt range that leaves prompt_data is refused").server_vectors(&[
        "clip-l-range-*",
        "clip-g-range-*",
        "t5-range-*",
        "range-*",
    ]),
    required("W1-REQ-003a", "a prompt that is not UTF-8 is refused").server_vectors(&[
        "clip-l-not-utf-8",
        "clip-g-not-utf-8",
        "t5-not-utf-8",
        "not-utf-8-*",
    ]),
    required("W1-REQ-003b", "a prompt in valid UTF-8 is served").server_vectors(&["utf-8-*"]),
    required("W1-REQ-003c", "a prompt with the byte 0 is refused").server_vectors(&[
        "clip-l-nul",
        "clip-g-nul",
        "t5-nul",
        "nul-*",
    ]),
    required("W1-REQ-005a", "prompt ranges may overlap, coincide and be in any order").server_vectors(&[
        "ranges-coincide*",
        "ranges-overlap",
        "ranges-nest",
        "ranges-out-of-order",
        "ranges-at-the-end-of-longest",
        "ranges-2048-of-longest",
        "ranges-whole-characters-of-a-shared-text",
    ]),
    required("W1-REQ-006a", "bytes of prompt_data outside all ranges are ignored").server_vectors(&[
        "ranges-with-gaps",
        "ranges-after-a-gap",
        "ranges-before-a-rest",
        "ranges-uncovered-*",
    ]),
    required("W1-REQ-007a", "cfg_scale: -0.0 is served, NaN and infinities are refused").server_vectors(&[
        "request-cfg-scale-minus-zero",
        "cfg-scale-nan*",
        "cfg-scale-minus-nan",
        "cfg-scale-signalling-nan",
        "cfg-scale-infinity",
        "cfg-scale-minus-infinity",
    ]),
    required("W1-REQ-007b", "cfg_scale -0.0 gives the same image as 0.0").server(|server| {
        let requests =
            [0.0f32, -0.0].map(|cfg| Draft::request(1, "zero").set("cfg_scale", cfg.to_bits().into()));
        match pictures(server, &requests)? {
            Some(pictures) if pictures[0] == pictures[1] => Ok(Remark::Pass),
            Some(_) => fail("W1-REQ-007", "-0.0 and 0.0 give different images", "the same image"),
            None => skip(NO_IMAGE),
        }
    }),
    required("W1-REQ-008a", "with three different prompts, CLIP-L's is used").server(|server| {
        let same = |text: &str| Draft::request(1, text);
        // Three texts of the same length, one after the other.
        let mut different = same("one").segments();
        if let Some(last) = different.last_mut() {
            last.bytes = b"onetwothr".to_vec();
        }
        let bytes: Vec<u8> = different.into_iter().flat_map(|segment| segment.bytes).collect();
        let mut connection = server.connect()?;
        connection.write(&bytes);
        let got = match connection.receive()? {
            Came::Answer(Answer::Image { data, .. }) => data,
            Came::Answer(Answer::Error { status: 500, .. }) => return skip(NO_IMAGE),
            Came::Answer(answer) => return fail("W1-REQ-008", format!("the answer is {answer}"), "an image"),
            Came::Close => return fail("W1-CON-005", "the server closed the connection", "an image"),
        };
        match pictures(server, &[same("one"), same("two"), same("thr")])? {
            Some(pictures) if pictures[0] == pictures[1] && pictures[0] == pictures[2] => {
                skip("this server's images don't depend on the prompt")
            }
            Some(pictures) if pictures[0] == got => Ok(Remark::Pass),
            Some(_) => {
                fail("W1-REQ-008", "the image is not that of the prompt for CLIP-L", "the image of \"one\"")
            }
            None => skip(NO_IMAGE),
        }
    }),
    required("W1-REQ-008b", "the three prompts may differ").server_vectors(&["request-prompts-differ"]),
    required("W1-REQ-009a", "seed 0 gives a different image each time").server(|server| {
        match differs_by_seed(server)? {
            None => return skip(NO_IMAGE),
            Some(false) => return skip(SEEDS_DO_NOT_SHOW),
            Some(true) => {}
        }
        let drawn = |_| Draft::request(1, "a seed that shows").set("seed", 0);
        let Some(pictures) = pictures(server, &[0; 8].map(drawn))? else { return skip(NO_IMAGE) };
        let different: BTreeSet<_> = pictures.iter().collect();
        // A generator of 64 bits doesn't repeat itself in eight draws.
        if different.len() < pictures.len() {
            let problem = format!("8 requests with seed 0 gave {} different images", different.len());
            return fail("W1-REQ-009", problem, "8");
        }
        Ok(Remark::Pass)
    }),
    required("W1-REQ-010a", "the same request gives the same pixels").server(|server| {
        for seed in [1, 1 << 40, 1 << 63, u64::MAX] {
            let request = Draft::request(1, "again").set("seed", seed);
            match pictures(server, &[request.clone(), request])? {
                Some(pictures) if pictures[0] == pictures[1] => {}
                Some(_) => {
                    return fail(
                        "W1-REQ-010",
                        format!("seed {seed} gave two different images"),
                        "the same pixels",
                    );
                }
                None => return skip(NO_IMAGE),
            }
        }
        Ok(Remark::Pass)
    }),
    required("W1-REQ-010b", "all 64 bits of seed are used").server(|server| {
        match differs_by_seed(server)? {
            None => return skip(NO_IMAGE),
            Some(false) => return skip(SEEDS_DO_NOT_SHOW),
            Some(true) => {}
        }
        const SEED: u64 = 0x0123_4567_89AB_CDEF;
        let bits = [0u32, 31, 32, 52, 53, 62, 63];
        let mut requests = vec![Draft::request(1, "a seed that shows").set("seed", SEED)];
        requests.extend(bits.map(|bit| Draft::request(1, "a seed that shows").set("seed", SEED ^ 1 << bit)));
        let Some(pictures) = pictures(server, &requests)? else { return skip(NO_IMAGE) };
        match bits.iter().zip(&pictures[1..]).find(|(_, picture)| **picture == pictures[0]) {
            Some((bit, _)) => {
                fail("W1-REQ-010", format!("bit {bit} of the seed changes nothing"), "another image")
            }
            None => Ok(Remark::Pass),
        }
    }),
    required("W1-REQ-010c", "seeds up to 2^64 - 1 are served").server_vectors(&["request-seed-*"]),
];

/// The pixels of some requests.
fn pictures(server: &mut Server, requests: &[Draft]) -> Result<Option<Vec<Vec<u8>>>, Box<Failure>> {
    let mut pictures = Vec::new();
    for request in requests {
        let answers = server.ask(std::slice::from_ref(request))?;
        match answers[0].pixels() {
            Some(pixels) => pictures.push(pixels.to_vec()),
            None => return Ok(None),
        }
    }
    Ok(Some(pictures))
}

const SEEDS_DO_NOT_SHOW: &str = "this server's images don't depend on the seed";

fn differs_by_seed(server: &mut Server) -> Result<Option<bool>, Box<Failure>> {
    let requests = [5, 6].map(|seed| Draft::request(1, "a seed that shows").set("seed", seed));
    Ok(pictures(server, &requests)?.map(|pictures| pictures[0] != pictures[1]))
}
