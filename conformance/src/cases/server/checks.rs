//! Section 7 of the specification, the order of checks: what is tried on a server.

use crate::case::{Case, required};
use crate::draft::Draft;
use crate::secret::PROMPT;
use crate::verdict::{Remark, fail, skip};

use super::probe::{NO_IMAGE, picture};

/// In the order of the text.
pub(super) const CASES: &[Case] =
    &[
        required("W1-VAL-001a", "a msg_type that is no request: UNSUPPORTED_TYPE")
            .server_vectors(&["msg-type-0*", "msg-type-ff*"]),
        required("W1-VAL-001b", "a payload too short for its fields: MALFORMED").server_vectors(&[
            "payload-len-11",
            "payload-len-12",
            "payload-len-13",
            "payload-len-36",
            "payload-len-59",
            "payload-len-60",
        ]),
        required("W1-VAL-001c", "order of checks: version, msg_type, lengths, model_id").server_vectors(&[
            "order-version-*",
            "order-msg-type-*",
            "order-first-length-*",
            "order-model-id-*",
            "order-second-length-*",
        ]),
        required("W1-VAL-001d", "order of checks: width, height, steps, cfg_scale").server_vectors(&[
            "order-width-*",
            "order-height-*",
            "order-steps-*",
            "order-cfg-scale-*",
        ]),
        required("W1-VAL-001e", "order of checks: the prompts").server_vectors(&[
            "order-clip-*",
            "order-t5-*",
            "order-prompt-data-*",
            "order-utf-8-*",
        ]),
        required("W1-VAL-001f", "order of checks: everything wrong at once")
            .server_vectors(&["order-everything-*"]),
        required("W1-VAL-002a", "offset + length is computed without overflow").server_vectors(&[
            "clip-l-range-wraps*",
            "clip-g-range-wraps*",
            "t5-range-wraps*",
            "clip-l-range-negative",
            "clip-g-range-negative",
            "t5-range-negative",
        ]),
        required("W1-VAL-003a", "a valid request gets an image, or an error with status 500")
            .server_vectors(&["request-example", "request-longest", "stream-longest-three-times"]),
        required("W1-VAL-003b", "a request that can be served gets an image, if not each time").server(
            |server| {
                if server.makes_images()? {
                    return Ok(Remark::Pass);
                }
                fail("W1-VAL-003", "ten requests that can be served got no image", "an image")
            },
        ),
        required("W1-VAL-004a", "no value that is allowed gets an error of status 500 each time").server(
            |server| {
                for (field, value) in ALLOWED {
                    if picture(server, &Draft::request(1, PROMPT).set(field, *value))?.is_none() {
                        return skip(NO_IMAGE);
                    }
                }
                Ok(Remark::Pass)
            },
        ),
    ];

/// Values at the ends of the table's ranges, and where a number is often taken for a shorter or a signed one.
const ALLOWED: &[(&str, u64)] = &[
    ("request_id", 0),
    ("request_id", 1 << 31),
    ("request_id", 1 << 32),
    ("request_id", 1 << 53 | 1),
    ("request_id", 1 << 63),
    ("request_id", u64::MAX),
    ("width", 128),
    ("height", 128),
    ("steps", 2),
    ("cfg_scale", 0),
    ("cfg_scale", 0x8000_0000),
    ("cfg_scale", 1),
    ("cfg_scale", 0x41A0_0000),
    ("seed", 0),
    ("seed", 1),
    ("seed", 1 << 31),
    ("seed", 1 << 32),
    ("seed", 1 << 53 | 1),
    ("seed", (1 << 63) - 1),
    ("seed", 1 << 63),
    ("seed", 1 << 63 | 1),
    ("seed", u64::MAX),
    ("clip_l_length", 1),
    ("clip_g_length", 1),
    ("t5_length", 1),
    ("t5_offset", 0),
];
