//! What a worker sends and a client receives.

use std::collections::VecDeque;

/// What a worker says when it refuses a request.
pub(super) const NO_ROOM: &str = "no room";

/// A piece of what a worker sends.
#[derive(Clone, Debug)]
pub(super) enum Piece {
    Bytes(VecDeque<u8>),
    Pixels { tag: u64, at: u64, end: u64 },
}

impl Piece {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Pixels { at, end, .. } => usize::try_from(end - at).unwrap_or(usize::MAX),
        }
    }

    /// The first `n` bytes of it.
    pub(super) fn take(&mut self, n: usize) -> Self {
        match self {
            Self::Bytes(bytes) => Self::Bytes(bytes.drain(..n).collect()),
            Self::Pixels { tag, at, .. } => {
                let from = *at;
                *at += n as u64;
                Self::Pixels { tag: *tag, at: from, end: *at }
            }
        }
    }

    /// Its bytes, where somebody wants to look at them.
    pub(super) fn copy_to(self, out: &mut [u8]) {
        match self {
            Self::Bytes(bytes) => out.iter_mut().zip(bytes).for_each(|(out, byte)| *out = byte),
            Self::Pixels { tag, .. } => out.fill(tag.to_le_bytes()[0]),
        }
    }
}
