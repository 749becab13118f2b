//! What a client is asked, in the order of the specification.
//!
//! A new case goes to the end of its requirement's, with the next letter. `cases.txt` has all ids that were
//! ever used.

use std::collections::BTreeSet;

use crate::case::{Case, informational, recommended, required, robustness};
use crate::client::{Message, Scene, Then, Wanted};
use crate::draft::{Draft, Segment, checkerboard};
use crate::verdict::{Remark, Told, fail};
use crate::wire::{
    self, Expectation, HEADER_LEN, MAX_REQUEST_PAYLOAD, MAX_RESPONSE_PAYLOAD, REQUEST, hex, size,
};

/// All of them.
pub(super) const CASES: &[Case] = &[
    // 2. Transport
    required("W1-TRN-001b", "an answer is read wherever the stream is cut").scenes(|id| {
        let image_bytes = image(id).bytes();
        let error_bytes = failure_of(id, "INTERNAL").bytes();
        let mut all = vec![
            Scene::new("an image", &[image(id)], Then::Wait, Wanted::Image),
            Scene::new("an error", &[failure_of(id, "INTERNAL")], Then::Wait, told()),
        ];
        let halves = |name: String, bytes: &[u8], at: usize, wanted: Wanted| {
            let half = |bytes: &[u8]| Segment { field: "half".to_owned(), bytes: bytes.to_vec() };
            Scene { name, sends: vec![half(&bytes[..at]), half(&bytes[at..])], then: Then::Wait, wanted }
        };
        for at in [1, 15, 16, 17, 47, 48, 49, image_bytes.len() - 1] {
            all.push(halves(format!("an image cut after {at} bytes"), &image_bytes, at, Wanted::Image));
        }
        for at in [4, 16, 33, 34, 35, error_bytes.len() - 1] {
            all.push(halves(format!("an error cut after {at} bytes"), &error_bytes, at, told()));
        }
        all
    }),
    required("W1-TRN-001c", "several answers are read wherever the stream is cut").client_streams(&[
        "stream-client-out-of-order",
        "stream-client-two-errors",
        "stream-client-trailing-between",
        "stream-client-unknown-code-between",
        "stream-client-largest-then-error",
        "stream-client-cut-second",
    ]),
    required("W1-TRN-005c", "integers of a request are big-endian").request(whole_request),
    informational("W1-TRN-005e", "cfg_scale of a request is 0 or a number that somebody would choose")
        .request(|bytes, seen| {
            let Expectation::Request { fields, .. } = seen else {
                return whole_request(bytes, seen);
            };
            let bits = u32::try_from(fields.get("cfg_scale")).unwrap_or(u32::MAX);
            if !f32::from_bits(bits).is_subnormal() {
                return Ok(Remark::Pass);
            }
            Ok(Remark::Warn(format!(
                "cfg_scale is {bits:08X}, nearly 0; with its bytes the other way round it is {}",
                f32::from_bits(bits.swap_bytes())
            )))
        }),
    required("W1-TRN-006b", "the fields of a request have no padding between them").request(whole_request),
    // 3. Frames
    required("W1-HDR-001b", "a request begins with the magic")
        .request(|bytes, _| field(bytes, "magic", 0..4, b"WEVE")),
    required("W1-HDR-002b", "a request has version 1")
        .request(|bytes, _| field(bytes, "version", 4..6, &[0, 1])),
    // The frame was read by its length; that nothing is left of it or missing is seen by what its fields say.
    required("W1-HDR-003c", "payload_len of a request is its payload's length").request(|bytes, seen| {
        let Expectation::Request { fields, .. } = seen else {
            return whole_request(bytes, seen);
        };
        let end = ["clip_l", "clip_g", "t5"]
            .map(|encoder| {
                fields.get(&format!("{encoder}_offset")) + fields.get(&format!("{encoder}_length"))
            })
            .into_iter()
            .max();
        let is = bytes.len() - HEADER_LEN - size(REQUEST);
        if end == u64::try_from(is).ok() {
            return Ok(Remark::Pass);
        }
        Ok(Remark::Warn(format!(
            "prompt_data has {is} bytes, and the last prompt ends after {}",
            end.unwrap_or(0)
        )))
    }),
    required("W1-HDR-003e", "nothing but frames comes from a client").scenes(|id| {
        vec![
            Scene::new("an image", &[image(id)], Then::Wait, Wanted::Image),
            Scene::new("an error", &[failure_of(id, "INTERNAL")], Then::Wait, told()),
        ]
    }),
    required("W1-HDR-004b", "reserved of a request is 0")
        .request(|bytes, _| field(bytes, "reserved", 12..16, &[0; 4])),
    required("W1-HDR-005b", "reserved of an answer is ignored")
        .client_vectors(&["response-reserved", "error-reserved"]),
    required("W1-FRM-001a", "the payload of a request has at most 6,204 bytes").request(|bytes, _| {
        let len = bytes.len() - HEADER_LEN;
        if u64::try_from(len).is_ok_and(|len| len <= MAX_REQUEST_PAYLOAD) {
            return Ok(Remark::Pass);
        }
        fail("", format!("the payload has {len} bytes"), "at most 6,204")
    }),
    required("W1-FRM-006a", "wrong magic: the client closes").client_vectors(&[
        "client-magic-*",
        "stream-client-garbage-after-response",
        "stream-client-lost-stream",
        "stream-client-magic-*",
    ]),
    required("W1-FRM-006b", "an image in a frame with a wrong magic is not taken").scenes(|id| {
        [0x5845_5645, 0x5744_5645, 0x5745_5545, 0x5745_5646, 0x4556_4557, 0x7765_7665]
            .into_iter()
            .map(|magic| {
                let name = format!("an image with the magic {magic:08x}");
                Scene::new(name, &[image(id).set("magic", magic)], Then::Wait, Wanted::Close)
            })
            .collect()
    }),
    required("W1-FRM-006c", "wrong magic after a good answer: the client closes").several(|ids| {
        let wrong = [0x5845_5645, 0x5744_5645, 0x5745_5545, 0x5745_5646];
        let image_of =
            |magic| (format!("an image with the magic {magic:08x}"), image(ids[1]).set("magic", magic));
        let error = failure_of(ids[1], "INTERNAL").set("magic", wrong[0]);
        let wrong =
            wrong.map(image_of).into_iter().chain([("an error with another magic".to_owned(), error)]);
        wrong.map(|(name, bad)| second(ids, name, bad)).collect()
    }),
    required("W1-FRM-007a", "payload_len over 16,777,248: the client closes")
        .client_vectors(&["client-payload-len-*"]),
    required("W1-FRM-007b", "payload_len over 16,777,248 after a good answer: the client closes").several(
        |ids| {
            [MAX_RESPONSE_PAYLOAD + 1, u32::MAX.into()]
                .map(|len| second(ids, format!("payload_len {len}"), image(ids[1]).set("payload_len", len)))
                .into()
        },
    ),
    required("W1-FRM-009d", "an incomplete answer is not taken").scenes(|id| {
        let (image, error) = (image(id).bytes(), failure_of(id, "INTERNAL").bytes());
        let cut = |what: &str, bytes: &[u8], at: usize| {
            Scene::bytes(format!("{what} of which {at} bytes come"), &bytes[..at], Then::Close, Wanted::Close)
        };
        let images = [1, 15, 16, 20, 47, 48, 5_000, image.len() - 1].map(|at| cut("an image", &image, at));
        let errors = [8, 16, 33, 34, error.len() - 1].map(|at| cut("an error", &error, at));
        images.into_iter().chain(errors).collect()
    }),
    required("W1-FRM-009e", "incomplete answer: the reader waits for the rest")
        .client_streams(&["client-cut-*", "response-head-example"]),
    required("W1-FRM-009f", "an incomplete answer after a good one is not taken").several(|ids| {
        let last = ids[ids.len() - 1];
        let (bytes, error) = (image(last).bytes(), failure_of(last, "INTERNAL").bytes());
        let cut = |what: &str, bytes: &[u8], at: usize| {
            let mut scene = all_but_last(ids, format!("{what} of which {at} bytes come"));
            scene.sends.push(Segment { field: "piece".to_owned(), bytes: bytes[..at].to_vec() });
            scene
        };
        vec![
            all_but_last(ids, "no fifth answer".to_owned()),
            cut("a fifth image", &bytes, 10),
            cut("a fifth image", &bytes, 48),
            cut("a fifth image", &bytes, bytes.len() - 1),
            cut("an error", &error, error.len() - 1),
        ]
    }),
    required("W1-FRM-010a", "another msg_type, or a response of another version: the client closes")
        .client_vectors(&["client-gets-type-*", "response-of-version-*"]),
    required("W1-FRM-010b", "another msg_type or version after a good answer: the client closes").several(
        |ids| {
            [
                ("msg_type", 0x0001),
                ("msg_type", 0x0102),
                ("msg_type", 0x0200),
                ("version", 2),
                ("version", 0x0101),
            ]
            .map(|(name, value)| second(ids, format!("{name} {value}"), image(ids[1]).set(name, value)))
            .into()
        },
    ),
    // 4. The request
    required("W1-REQ-001f", "the values of a request are in range").request(whole_request),
    required("W1-REQ-002b", "the prompt ranges of a request lie within prompt_data").request(whole_request),
    required("W1-REQ-003d", "the prompts of a request are UTF-8 without the byte 0").request(whole_request),
    recommended("W1-REQ-004a", "a request has three copies of one prompt in a row").request(|_, seen| {
        let Expectation::Request { fields, prompts } = seen else {
            return whole_request(&[], seen);
        };
        let [first, second, third] = prompts;
        let starts = ["clip_l_offset", "clip_g_offset", "t5_offset"].map(|name| fields.get(name));
        let len = first.len() as u64;
        if first == second && first == third && starts == [0, len, 2 * len] {
            return Ok(Remark::Pass);
        }
        fail("", format!("prompts of {} bytes each begin at {starts:?}", first.len()), "three copies")
    }),
    // 5. The response
    robustness("W1-RSP-001b", "an image for another request_id is not taken").scenes(|id| {
        let other = id.wrapping_add(1);
        vec![
            Scene::new("an image for another id, then a close", &[image(other)], Then::Close, Wanted::Close),
            Scene::new(
                "an image for the id with its bytes swapped",
                &[image(id.swap_bytes() ^ 1)],
                Then::Close,
                Wanted::Close,
            ),
        ]
    }),
    required("W1-RSP-005a", "status other than 200: the client closes")
        .client_vectors(&["response-status-*"]),
    required("W1-RSP-005b", "image_width or image_height out of range: the client closes")
        .client_vectors(&["response-image-width-*", "response-image-height-*"]),
    required("W1-RSP-005c", "channels other than 3 and 4: the client closes")
        .client_vectors(&["response-channels-*"]),
    required("W1-RSP-005d", "image_data_len is not width × height × channels: the client closes")
        .client_vectors(&["response-image-data-len-*", "response-product-*"]),
    required("W1-RSP-005e", "images of all sizes are accepted").client_vectors(&[
        "response-512-rgb",
        "response-smallest",
        "response-smallest-rgba",
        "response-largest-rgb",
        "response-largest",
        "response-wide",
        "response-tall",
        "response-128-192-rgba",
        "response-id-*",
        "response-time-*",
    ]),
    required("W1-RSP-005f", "each field of a response is checked after a good answer as before").several(
        |ids| {
            [
                ("status", 201),
                ("status", 0x0001_00C8),
                ("image_width", 128),
                ("image_height", 65),
                ("channels", 2),
                ("channels", 0x0100_0003),
                ("image_data_len", 12_287),
                ("image_data_len", 0x0100_3000),
            ]
            .map(|(name, value)| second(ids, format!("{name} {value}"), image(ids[1]).set(name, value)))
            .into()
        },
    ),
    required("W1-RSP-006a", "payload_len too small for the image: the client closes")
        .client_vectors(&["response-payload-len-*"]),
    required("W1-RSP-006b", "payload_len too small for the image after a good answer: the client closes")
        .several(|ids| {
            let pixels = checkerboard(64, 64, 3);
            [0, 31, 32, 32 + pixels.len() - 1]
                .map(|len| {
                    let bytes = image(ids[1]).set("payload_len", len as u64).bytes();
                    let mut scene = second(ids, format!("payload_len {len}"), image(ids[1]));
                    let first = image(ids[0]).bytes();
                    scene.sends = [first, bytes[..HEADER_LEN + len].to_vec()]
                        .map(|bytes| Segment { field: "frame".to_owned(), bytes })
                        .into();
                    scene
                })
                .into()
        }),
    required("W1-RSP-007a", "bytes after the image are ignored").client_vectors(&["response-trailing-*"]),
    required("W1-RSP-007b", "bytes after an image are no other answer").scenes(|id| {
        let error = failure_of(id, "INTERNAL").bytes();
        vec![Scene::new(
            "an image and an error behind it",
            &[image(id).tail("trailing", &error)],
            Then::Wait,
            Wanted::Image,
        )]
    }),
    required("W1-RSP-007c", "bytes after each of several images are ignored").several(|ids| {
        let one = |(n, id): (usize, &u64)| image(*id).tail("trailing", &vec![0x57; 1 + 1000 * n]);
        let frames: Vec<Draft> = ids.iter().enumerate().map(one).collect();
        vec![Scene::new("five images and bytes behind each", &frames, Then::Wait, Wanted::Image)]
    }),
    required("W1-RSP-008a", "a response that contradicts itself: the client closes").client_vectors(&[
        "response-status-500",
        "response-channels-2",
        "response-payload-len-one-less",
        "stream-client-bad-response-between",
    ]),
    required("W1-RSP-010a", "an image of another size than was asked for is not taken").scenes(|id| {
        [(128, 64), (64, 128), (128, 128), (64, 2048), (2048, 64), (512, 512)]
            .map(|(width, height)| {
                let image = Draft::response(id, width, height, &checkerboard(width, height, 3));
                Scene::new(format!("an image of {width}×{height}"), &[image], Then::Wait, Wanted::Close)
            })
            .into()
    }),
    required("W1-RSP-011a", "an answer to an unknown id is not taken for another request's").scenes(|id| {
        // Who ignores it waits for its own, and has an error then.
        [id.wrapping_add(1), id ^ 1 << 32, id ^ 1 << 63]
            .map(|other| {
                let frames = [image(other), failure_of(id, "INTERNAL")];
                Scene::new(
                    format!("an image for {other}, then an error"),
                    &frames,
                    Then::Wait,
                    Wanted::NoImage,
                )
            })
            .into()
    }),
    required("W1-RSP-011b", "a second answer to one request is not taken for another's").several(|ids| {
        let mut twice: Vec<Draft> = ids[..4].iter().map(|id| image(*id)).collect();
        twice.insert(2, image(ids[1]));
        vec![Scene::new("two images for the second of five", &twice, Then::Close, Wanted::Close)]
    }),
    // 6. The error
    required("W1-ERR-006a", "an unknown error_code is handled by its status").client_vectors(&[
        "error-code-11-of-*",
        "error-code-19-of-*",
        "error-code-25-of-*",
        "error-code-98-of-*",
        "error-code-100-of-*",
        "error-code-largest-of-*",
    ]),
    required("W1-ERR-006b", "every error_code is accepted").client_vectors(&[
        "error-example",
        "error-code-*",
        "error-status-500-for-400",
        "error-status-400-for-500",
    ]),
    required("W1-ERR-007a", "status other than 400 and 500: the client closes")
        .client_vectors(&["error-status-*"]),
    required("W1-ERR-007b", "status other than 400 and 500 after a good answer: the client closes").several(
        |ids| {
            [0, 200, 401, 0x0001_0190, 0x0100_01F4]
                .map(|status| {
                    second(
                        ids,
                        format!("status {status}"),
                        failure_of(ids[1], "INTERNAL").set("status", status),
                    )
                })
                .into()
        },
    ),
    required("W1-ERR-008a", "payload_len too small for error_msg: the client closes")
        .client_vectors(&["error-payload-len-*", "error-msg-len-*"]),
    required("W1-ERR-008b", "payload_len too small for error_msg after a good answer: the client closes")
        .several(|ids| {
            [TEXT.len() as u64 + 1, 0x0100, 0xFFFF]
                .map(|len| {
                    let error = failure_of(ids[1], "INTERNAL").set("error_msg_len", len);
                    second(ids, format!("error_msg_len {len}"), error)
                })
                .into()
        }),
    required("W1-ERR-009a", "bytes after error_msg are ignored").client_vectors(&["error-trailing-*"]),
    required("W1-ERR-009b", "bytes after error_msg are no other answer").scenes(|id| {
        let error = failure_of(id, "INTERNAL").tail("trailing", &image(id).bytes());
        vec![Scene::new("an error and an image behind it", &[error], Then::Wait, told())]
    }),
    required("W1-ERR-010a", "error_msg may be any bytes").client_vectors(&[
        "error-msg-empty",
        "error-msg-1",
        "error-msg-2*",
        "error-msg-65535",
        "error-msg-scripts",
        "error-msg-controls",
        "error-msg-c1-controls",
        "error-msg-nul",
        "error-msg-not-utf-8",
        "error-msg-cut-character",
        "error-msg-surrogate",
        "error-id-*",
    ]),
    required("W1-ERR-010b", "control characters of error_msg don't reach the terminal").scenes(|id| {
        let scene = |name: &str, message: &[u8]| {
            let draft = Draft::error(id, wire::code("INTERNAL"), &[b"before ", message, b" after"].concat());
            let message = [b"before ", message, b" after"].concat();
            Scene::new(name, &[draft], Then::Wait, Wanted::Error(Message::new(&message)))
        };
        vec![
            scene("an escape sequence", b"\x1b[2J\x1b]0;title\x07"),
            scene("C1 controls", "\u{9b}31m\u{85}".as_bytes()),
            scene("a carriage return and a backspace", b"\rgone\x08\x08"),
            scene("bytes that are no UTF-8", b"\xff\xfe\x1b"),
            scene("the byte 0", b"a\0b"),
        ]
    }),
    recommended("W1-ERR-010d", "a text without control characters is shown as it is").scenes(|id| {
        ["Größe naïve", "大きさ размер", "a fox 🦊 and 𝔘", "e\u{301}tude"]
            .map(|text| {
                let message = format!("before {text} after");
                shown(id, text, message.as_bytes(), &["before", text, "after"])
            })
            .into()
    }),
    recommended("W1-ERR-010e", "what is not UTF-8 is replaced, and the rest of the text stays").scenes(
        |id| {
            let scene = |name: &str, bytes: &[u8], parts: &[&str]| shown(id, name, bytes, parts);
            vec![
                scene("the byte FF", b"before \xff after", &["before", "after"]),
                scene("a cut character", b"before \xe2\x82 after", &["before", "after"]),
                scene("a surrogate", b"before \xed\xa0\x80 after", &["before", "after"]),
                scene("an overlong character", b"before \xc0\xaf after", &["before", "after"]),
                scene(
                    "a character beside a broken one",
                    b"before \xc3\xa9\xff after",
                    &["before é", "after"],
                ),
                scene("a cut character at the end", b"before and after \xf0\x9f\xa6", &["before and after"]),
            ]
        },
    ),
    recommended("W1-ERR-010f", "every control character is escaped, and the rest of the text stays").scenes(
        |id| {
            [0u8, 1, 7, 8, 9, 10, 11, 13, 27, 127]
                .map(|control| {
                    let message = [b"before ", &[control][..], b" after"].concat();
                    shown(id, &format!("the byte {control:02X}"), &message, &["before", "after"])
                })
                .into_iter()
                .chain(["\u{80}", "\u{85}", "\u{9b}", "\u{9f}"].map(|control| {
                    let message = format!("before {control} after");
                    shown(id, &control.escape_unicode().to_string(), message.as_bytes(), &["before", "after"])
                }))
                .collect()
        },
    ),
    // 8. Connections
    informational("W1-CON-001c", "a client may send several requests at once").several(|ids| {
        let frames: Vec<Draft> = ids.iter().map(|id| image(*id)).collect();
        vec![Scene::new("five images in order", &frames, Then::Wait, Wanted::Image)]
    }),
    required("W1-CON-003b", "answers in any order are told apart by request_id").several(|ids| {
        let frames: Vec<Draft> = ids.iter().rev().map(|id| image(*id)).collect();
        vec![Scene::new("five images backwards", &frames, Then::Wait, Wanted::Image)]
    }),
    required("W1-CON-003c", "an error between images belongs to its own request").several(|ids| {
        let answer = |(n, id): (usize, &u64)| if n == 2 { failure_of(*id, "INTERNAL") } else { image(*id) };
        let frames: Vec<Draft> = ids.iter().rev().enumerate().map(answer).collect();
        vec![Scene::new("an error between four images", &frames, Then::Wait, told())]
    }),
    recommended("W1-CON-004c", "several requests at once have different ids").ids(|ids| {
        let unique: BTreeSet<u64> = ids.iter().copied().collect();
        if unique.len() == ids.len() {
            return Ok(Remark::Pass);
        }
        fail("", format!("the requests have the ids {ids:?}"), "a different id each")
    }),
    recommended("W1-CON-004d", "for one image a client asks once")
        .scenes(|id| vec![Scene::new("an image", &[image(id)], Then::Wait, Wanted::OneImage)]),
    robustness("W1-CON-002b", "a close without an answer is not taken as an image").scenes(|id| {
        vec![
            Scene { name: "nothing".to_owned(), sends: Vec::new(), then: Then::Close, wanted: Wanted::Close },
            Scene::new("an error, then a close", &[failure_of(id, "SHUTTING_DOWN")], Then::Close, told()),
            Scene::new("an image, then a close", &[image(id)], Then::Close, Wanted::Image),
        ]
    }),
    robustness("W1-CON-008b", "BUSY for request 0, then a close: an error, not an image")
        .scenes(|_| vec![Scene::new("BUSY for request 0", &[failure_of(0, "BUSY")], Then::Close, told())]),
    robustness("W1-CON-008c", "an error for request 0 ends all that is under way").several(|ids| {
        ["BUSY", "TIMEOUT", "INVALID_MAGIC", "TOO_LARGE"]
            .map(|name| {
                let frames = [image(ids[0]), failure_of(0, name)];
                Scene::new(format!("an image, then {name} for request 0"), &frames, Then::Close, told())
            })
            .into()
    }),
    // 9. Versions
    required("W1-VER-001a", "a request has the highest version that there is, 1")
        .request(|bytes, _| field(bytes, "version", 4..6, &[0, 1])),
    required("W1-VER-005a", "fields that a later version appends are ignored")
        .client_vectors(&["response-trailing-1", "error-trailing-1"]),
    required("W1-VER-006a", "an error of another version is read").client_vectors(&["error-of-version-*"]),
    // 10. Security considerations
    robustness("W1-SEC-001d", "random bytes don't crash the client").scenes(|id| {
        let good = image(id).bytes();
        let mut state = 0x9E37_79B9_7F4A_7C15u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        (0..40)
            .map(|n| {
                let mut bytes = good.clone();
                for _ in 0..=n % 4 {
                    let at = usize::try_from(random() % 48).unwrap_or(0);
                    bytes[at] = random().to_le_bytes()[3];
                }
                Scene::bytes(
                    format!("an image with bytes changed, number {n}"),
                    &bytes,
                    Then::Close,
                    Wanted::Anything,
                )
            })
            .collect()
    }),
];

fn field(bytes: &[u8], name: &str, place: std::ops::Range<usize>, expected: &[u8]) -> Told {
    match bytes.get(place) {
        Some(is) if is == expected => Ok(Remark::Pass),
        is => {
            let problem = format!("{name} is {}", hex(is.unwrap_or_default()));
            fail("", problem, hex(expected))
        }
    }
}

fn whole_request(_: &[u8], expectation: &Expectation) -> Told {
    match expectation {
        Expectation::Request { fields, .. } if (fields.get("width"), fields.get("height")) == (64, 64) => {
            Ok(Remark::Pass)
        }
        Expectation::Request { fields, .. } => {
            let problem =
                format!("the request is for {}×{} pixels", fields.get("width"), fields.get("height"));
            fail("", problem, "64×64, which is what the client has to ask for")
        }
        Expectation::Answer { code, field, .. } => {
            let problem = format!("a server answers {}, because of {field}", wire::code_name(*code));
            fail("", problem, "a request that can be served")
        }
        _ => fail("", "this is no request", "a request"),
    }
}

/// A good answer to the first of several requests, this to the second, and good ones to the others.
fn second(ids: &[u64], name: String, bad: Draft) -> Scene {
    let mut frames: Vec<Draft> = ids.iter().map(|id| image(*id)).collect();
    frames[1] = bad;
    Scene::new(name, &frames, Then::Wait, Wanted::Close)
}

/// Images for all requests but the last, and then the server's end.
fn all_but_last(ids: &[u64], name: String) -> Scene {
    let frames: Vec<Draft> = ids[..ids.len() - 1].iter().map(|id| image(*id)).collect();
    Scene::new(name, &frames, Then::Close, Wanted::Close)
}

/// An error of whose message these parts have to be shown, and no control character.
fn shown(id: u64, name: &str, message: &[u8], parts: &[&str]) -> Scene {
    let error = Draft::error(id, wire::code("INTERNAL"), message);
    Scene::new(name, &[error], Then::Wait, Wanted::Error(Message::escaped(message, parts)))
}

fn image(id: u64) -> Draft {
    Draft::response(id, 64, 64, &checkerboard(64, 64, 3))
}

const TEXT: &str = "the xylophone is out of tune";

/// That the client has an error with [`TEXT`].
fn told() -> Wanted {
    Wanted::Error(Message::new(TEXT.as_bytes()))
}

fn failure_of(id: u64, name: &str) -> Draft {
    Draft::error(id, wire::code(name), TEXT.as_bytes())
}
