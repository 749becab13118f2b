//! Which format a model file has, by its first bytes, and what it is if it is no model.

use std::collections::HashSet;
use std::io::{self, Read};

use weave_core::text::is_shown;

use super::header::{Bytes, Header, HeaderError};
use super::{gguf, safetensors};

impl Header {
    /// Reads the header of a file of `len` bytes, of which `source` begins with the first.
    ///
    /// # Errors
    /// [`HeaderError`]: what the file is instead, or what is wrong with it.
    pub fn read(mut source: impl Read, len: u64) -> Result<Self, HeaderError> {
        let mut start = [0; 512];
        let mut filled = 0;
        loop {
            match source.read(start.get_mut(filled..).unwrap_or_default()) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(HeaderError::Read(error)),
            }
        }
        let start = start.get(..filled).unwrap_or_default();
        let mut bytes = Bytes::new(start.chain(source), len);
        let header = match start {
            [b'G', b'G', b'U', b'F', ..] => gguf::read(&mut bytes)?,
            [_, _, _, _, 0, 0, 0, 0, b'{', ..] => safetensors::read(&mut bytes)?,
            _ => return Err(other(start)),
        };
        let mut names = HashSet::with_capacity(header.tensors().size_hint().0);
        if let Some((name, _)) = header.tensors().find(|(name, _)| !names.insert(*name)) {
            return Err(HeaderError::Damaged(format!("two tensors have the name {name:?}")));
        }
        Ok(header)
    }
}

/// What a file is that is no model, by how it begins.
fn other(start: &[u8]) -> HeaderError {
    let text = start.trim_ascii_start();
    let begins = |with: &str| text.get(..with.len()).is_some_and(|s| s.eq_ignore_ascii_case(with.as_bytes()));
    let zip = begins("PK\u{3}\u{4}");
    if start.is_empty() {
        return HeaderError::Empty;
    }
    if zip || (start.first() == Some(&0x80) && start.get(1).is_some_and(|version| (1..=5).contains(version)))
    {
        return HeaderError::Pickle;
    }
    if ["<!doctype", "<html", "<head", "<?xml"].into_iter().any(begins) {
        return HeaderError::WebPage;
    }
    let text = String::from_utf8_lossy(text);
    if text.starts_with("version https://git-lfs.github.com/") {
        let size = text.lines().find_map(|line| line.strip_prefix("size ")?.trim().parse().ok());
        return HeaderError::Pointer(size);
    }
    let shown: String = text.chars().take(48).collect();
    if shown.chars().all(|c| is_shown(c) || c.is_ascii_whitespace()) && !shown.contains('\u{fffd}') {
        HeaderError::Text(shown)
    } else {
        HeaderError::Unknown
    }
}
