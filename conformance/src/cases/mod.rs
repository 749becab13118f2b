//! The cases: what servers, clients and libraries are asked.

mod client;
mod codec;
pub mod server;

use crate::case::Case;

/// Every case of every mode.
#[must_use]
pub fn all_cases() -> Vec<Case> {
    let server = server::SECTIONS.iter().flat_map(|(_, cases)| *cases);
    server.chain(client::CASES).chain(codec::CASES).copied().collect()
}
