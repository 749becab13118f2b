//! What takes a model's file, from its first byte to its last.

use super::error::Error;

/// A file that is written, or one that is compared.
pub(super) trait Sink {
    /// Whether the digest of a calculated table is to be checked: not where it is compared with one for which it was.
    const CHECKS_TABLES: bool;

    /// The next bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error>;

    /// So many zeros.
    fn skip(&mut self, bytes: usize) -> Result<(), Error>;

    /// A calculated table came out wrong.
    fn wrong_table(&self, expected: &'static str, found: String) -> Error;
}
