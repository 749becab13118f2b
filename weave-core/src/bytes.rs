//! Bytes to fields and back: what every message is read and written with.

use core::fmt;

use nom::IResult;
use nom::error::{ErrorKind, ParseError};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// A length off the wire as a length in memory. Saturates where an address has fewer than 32 bits;
/// such a length then never fits and is refused like any that is too long.
pub(crate) fn to_usize(len: u32) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

/// The input ended before the field did. The only way in which taking a field can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Short;

impl ParseError<&[u8]> for Short {
    fn from_error_kind(_: &[u8], _: ErrorKind) -> Self {
        Self
    }

    fn append(_: &[u8], _: ErrorKind, other: Self) -> Self {
        other
    }
}

/// A nom parser for a layout of fixed size: a view of `T` over the front of the input.
pub(crate) fn fixed<T>(input: &[u8]) -> IResult<&[u8], &T, Short>
where
    T: FromBytes + KnownLayout + Immutable + Unaligned,
{
    match T::ref_from_prefix(input) {
        Ok((value, rest)) => Ok((rest, value)),
        Err(_) => Err(nom::Err::Error(Short)),
    }
}

/// Writes `parts` one after the other to the front of `out`.
pub(crate) fn write_parts<'o, const P: usize>(
    out: &'o mut [u8],
    parts: [&[u8]; P],
) -> Result<&'o [u8], NoRoom> {
    let have = out.len();
    let need = parts.iter().fold(0usize, |sum, part| sum.saturating_add(part.len()));
    let Some(target) = out.get_mut(..need) else {
        return Err(NoRoom { need, have });
    };
    let mut rest = &mut *target;
    for part in parts {
        let Some((place, after)) = rest.split_at_mut_checked(part.len()) else {
            return Err(NoRoom { need, have });
        };
        place.copy_from_slice(part);
        rest = after;
    }
    Ok(target)
}

/// The output slice is too small. Nothing useful was written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom {
    /// Bytes that the message takes.
    pub need: usize,
    /// Bytes that the slice has.
    pub have: usize,
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the message takes {} bytes, the buffer has {}", self.need, self.have)
    }
}

impl core::error::Error for NoRoom {}
