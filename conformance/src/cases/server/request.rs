//! Section 4 of the specification, the request: what is tried on a server.

use std::collections::BTreeSet;

use crate::case::{Case, informational, required};
use crate::draft::Draft;
use crate::server::Server;
use crate::verdict::{Failure, Remark, fail, not_applicable, skip};

use super::probe::{NO_IMAGE, NOT_OURS, picture, pictures};

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
    informational("W1-REQ-003f", "a prompt is drawn as it was sent, to the last byte").server(|server| {
        let pairs = [
            ("e\u{301} and \u{e9}", "\u{e9} and \u{e9}"),
            ("a space", "a space "),
            ("a space", " a space"),
            ("two\nlines", "two\r\nlines"),
            ("a mark", "\u{feff}a mark"),
            ("Upper Case", "upper case"),
        ];
        let long = ["x", "y"].map(|end| "long".repeat(511) + end);
        let pairs = pairs.iter().copied().chain([(long[0].as_str(), long[1].as_str())]);
        let shows = pictures(server, &["a cat", "a dog"].map(|text| Draft::request(1, text)))?;
        match shows {
            None => return skip(NO_IMAGE),
            Some(pictures) if pictures[0] == pictures[1] => {
                return skip("this server's images don't depend on the prompt");
            }
            Some(_) => {}
        }
        for (one, other) in pairs {
            let Some(pictures) = pictures(server, &[one, other].map(|text| Draft::request(1, text)))? else {
                return skip(NO_IMAGE);
            };
            if pictures[0] == pictures[1] {
                let cut = |text: &str| {
                    text.chars().rev().take(20).collect::<String>().chars().rev().collect::<String>()
                };
                return Ok(Remark::Warn(format!("{:?} and {:?} give the same image", cut(one), cut(other))));
            }
        }
        Ok(Remark::Pass)
    }),
    required("W1-REQ-005a", "prompt ranges may overlap, coincide and be in any order").server_vectors(&[
        "ranges-coincide*",
        "ranges-from-one-offset",
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
    required("W1-REQ-006b", "bytes of prompt_data outside all ranges change no pixel").server(|server| {
        let alone = Draft::request(1, "one").set("seed", 7);
        let followed = alone.clone().tail("prompt_data", b" and more");
        match pictures(server, &[alone, followed])? {
            Some(pictures) if pictures[0] == pictures[1] => Ok(Remark::Pass),
            Some(_) => fail("W1-REQ-006", "bytes behind the prompts give another image", "the same image"),
            None => skip(NO_IMAGE),
        }
    }),
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
        // Whoever takes the longest or the shortest must not get it right by chance.
        let kinds = [
            ["one", "two", "thr"],
            ["short", "a longer one", "the longest one"],
            ["the longest", "a long one", "one"],
        ];
        for texts in kinds {
            // The others follow the three copies of the first.
            let [first, second, third] = texts.map(|text| text.len() as u64);
            let different = Draft::request(1, texts[0])
                .tail("prompt_data", texts[1..].concat().as_bytes())
                .set("clip_g_offset", 3 * first)
                .set("clip_g_length", second)
                .set("t5_offset", 3 * first + second)
                .set("t5_length", third);
            let Some(got) = picture(server, &different)? else { return skip(NO_IMAGE) };
            match pictures(server, &texts.map(|text| Draft::request(1, text)))? {
                Some(pictures) if pictures[0] == pictures[1] && pictures[0] == pictures[2] => {
                    return skip("this server's images don't depend on the prompt");
                }
                Some(pictures) if pictures[0] == got => {}
                Some(pictures) if pictures.contains(&got) => {
                    let problem = "the image is not that of the prompt for CLIP-L";
                    return fail("W1-REQ-008", problem, format!("the image of {:?}", texts[0]));
                }
                Some(_) => return not_applicable("this server's engine takes more than one prompt"),
                None => return skip(NO_IMAGE),
            }
        }
        Ok(Remark::Pass)
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
    required("W1-REQ-009b", "seed 0 gives other images after a restart").server(|server| {
        const TIMES: usize = 4;
        if server.process().is_none() {
            return not_applicable(NOT_OURS);
        }
        match differs_by_seed(server)? {
            None => return skip(NO_IMAGE),
            Some(false) => return skip(SEEDS_DO_NOT_SHOW),
            Some(true) => {}
        }
        let mut seen = BTreeSet::new();
        for _ in 0..2 {
            server.restart()?;
            let drawn = [0; TIMES].map(|seed| Draft::request(1, "a seed that shows").set("seed", seed));
            let Some(pictures) = pictures(server, &drawn)? else { return skip(NO_IMAGE) };
            if pictures.iter().any(|picture| seen.contains(picture)) {
                let problem = "after a restart seed 0 gave an image that it had given before it";
                return fail("W1-REQ-009", problem, "a seed that clients can't foresee");
            }
            seen.extend(pictures);
        }
        Ok(Remark::Pass)
    }),
    required("W1-REQ-009c", "seed 0 gives none of the first seeds' images").server(|server| {
        const FIRST: u64 = 20;
        match differs_by_seed(server)? {
            None => return skip(NO_IMAGE),
            Some(false) => return skip(SEEDS_DO_NOT_SHOW),
            Some(true) => {}
        }
        let request = |seed| Draft::request(1, "a seed that shows").set("seed", seed);
        let drawn: Vec<Draft> = (0..=FIRST).map(request).collect();
        let Some(pictures) = pictures(server, &drawn)? else { return skip(NO_IMAGE) };
        match pictures[1..].iter().zip(1..).find(|(picture, _)| **picture == pictures[0]) {
            Some((_, seed)) => {
                let problem = format!("seed 0 gave the image of seed {seed}");
                fail("W1-REQ-009", problem, "a seed that clients can't foresee")
            }
            None => Ok(Remark::Pass),
        }
    }),
    required("W1-REQ-010a", "the same request gives the same pixels").server(|server| {
        for seed in SEEDS {
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
    required("W1-REQ-010d", "the same request gives the same pixels after a restart").server(|server| {
        if server.process().is_none() {
            return not_applicable(NOT_OURS);
        }
        // The first image of a process may be another than those after it.
        let requests: Vec<Draft> = [SEEDS[0], SEEDS[0], SEEDS[2], SEEDS[3]]
            .map(|seed| Draft::request(1, "again").set("seed", seed))
            .to_vec();
        let mut earlier: Option<Vec<Vec<u8>>> = None;
        for _ in 0..3 {
            server.restart()?;
            let Some(pictures) = pictures(server, &requests)? else { return skip(NO_IMAGE) };
            if pictures[0] != pictures[1] {
                return fail(
                    "W1-REQ-010",
                    "the first image of a process is another than the second",
                    "the same pixels",
                );
            }
            if earlier.is_some_and(|earlier| earlier != pictures) {
                return fail("W1-REQ-010", "after a restart there are other pixels", "the same pixels");
            }
            earlier = Some(pictures);
        }
        Ok(Remark::Pass)
    }),
    required("W1-REQ-010e", "the same request gives the same pixels, whatever comes before it and beside it")
        .server(|server| {
            let request = |id: u64, seed: u64| Draft::request(id, "again").set("seed", seed);
            let Some(alone) = picture(server, &request(1, SEEDS[0]))? else { return skip(NO_IMAGE) };
            let others = [request(2, SEEDS[1]), Draft::request(3, "another"), Draft::unknown_model(4)];
            let frames =
                [others.as_slice(), &[request(5, SEEDS[0])], &others, &[request(6, SEEDS[0])]].concat();
            for answer in server.ask(&frames)? {
                if [5, 6].contains(&answer.id()) && answer.pixels().is_some_and(|pixels| pixels != alone) {
                    return fail(
                        "W1-REQ-010",
                        "among other requests there are other pixels",
                        "the same pixels",
                    );
                }
            }
            Ok(Remark::Pass)
        }),
    required("W1-REQ-011a", "the same request with another request_id gives the same pixels").server(
        |server| {
            let requests = [1, 0, 2, 1 << 32, u64::MAX].map(|id| Draft::request(id, "again"));
            let Some(pictures) = pictures(server, &requests)? else { return skip(NO_IMAGE) };
            if pictures.iter().any(|picture| *picture != pictures[0]) {
                return fail("W1-REQ-011", "another request_id gave other pixels", "the same pixels");
            }
            Ok(Remark::Pass)
        },
    ),
];

const SEEDS: [u64; 4] = [1, 1 << 40, 1 << 63, u64::MAX];

const SEEDS_DO_NOT_SHOW: &str = "this server's images don't depend on the seed";

fn differs_by_seed(server: &mut Server) -> Result<Option<bool>, Box<Failure>> {
    let requests = [5, 6].map(|seed| Draft::request(1, "a seed that shows").set("seed", seed));
    Ok(pictures(server, &requests)?.map(|pictures| pictures[0] != pictures[1]))
}
