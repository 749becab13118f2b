//! What a server is asked: a file for each section of the specification.
//!
//! A new case goes to the end of its requirement's, with the next letter. `cases.txt` has all ids that were
//! ever used.

mod checks;
mod connections;
mod error;
mod frames;
mod picture;
mod probe;
mod request;
mod response;
mod security;
mod transport;
mod versions;

pub use transport::be_a_stranger;

use crate::case::Case;

/// The sections of the specification, and the cases for each.
pub const SECTIONS: &[(&str, &[Case])] = &[
    ("2. Transport", transport::CASES),
    ("3. Frames", frames::CASES),
    ("4. The request", request::CASES),
    ("5. The response", response::CASES),
    ("6. The error", error::CASES),
    ("7. The order of checks", checks::CASES),
    ("8. Connections", connections::CASES),
    ("9. Versions", versions::CASES),
    ("10. Security considerations", security::CASES),
];
