//! Section 7 of the specification, the order of checks: what is tried on a server.

use crate::case::{Case, required};

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
    ];
