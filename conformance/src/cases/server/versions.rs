//! Section 9 of the specification, versions: what is tried on a server.

use crate::case::{Case, required};
use crate::draft::Draft;
use crate::secret::PROMPT;
use crate::talk::{Expected, Talk};

use super::probe::refusals;

/// In the order of the text.
pub(super) const CASES: &[Case] = &[
    required("W1-VER-002a", "a request of version 1 is answered in version 1")
        .server(|server| refusals(server, "W1-VER-002")),
    required("W1-VER-003a", "another version: UNSUPPORTED_VERSION")
        .server_vectors(&["version-*", "cut-version-2"]),
    required("W1-VER-004a", "a frame of another version is skipped by its payload_len").talks(|| {
        let unknown = |id: u64| {
            Draft::other(1, &[id.to_be_bytes().as_slice(), &[0xAB; 500]].concat()).set("version", 2)
        };
        let frames = [Draft::request(1, PROMPT), unknown(2), Draft::request(3, PROMPT)];
        let expected = vec![
            Expected::small_image(1),
            Expected::error(2, "UNSUPPORTED_VERSION"),
            Expected::small_image(3),
        ];
        vec![Talk::new("a frame of version 2 between two of version 1", &frames, expected)]
    }),
];
