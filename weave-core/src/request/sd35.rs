//! Stable Diffusion 3.5, model_id 0: what a request says after its prefix.
//!
//! | payload offset | size | field | range |
//! | --- | --- | --- | --- |
//! | 12 | 4 | width | 64 to 2048, a multiple of 64 |
//! | 16 | 4 | height | 64 to 2048, a multiple of 64 |
//! | 20 | 4 | steps | 1 to 100 |
//! | 24 | 4 | cfg_scale | 0.0 to 20.0 |
//! | 28 | 8 | seed | 0: the server draws one |
//! | 36 | 24 | (offset, length) of the prompt for CLIP-L, CLIP-G and T5 | length 1 to 2048 |
//! | 60 | … | prompt_data, at most 6,144 bytes | |
//!
//! The three ranges may overlap.

use core::fmt;

use nom::combinator::{consumed, rest};
use nom::{Finish, Parser};
use zerocopy::byteorder::big_endian::{F32, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::error::{Encoder, RequestError};
use crate::bytes::{Short, fixed, to_usize};
use crate::limits::{
    MAX_CFG_SCALE, MAX_PROMPT_DATA_LEN, MAX_PROMPT_LEN, MAX_SIDE, MAX_STEPS, MIN_CFG_SCALE, MIN_PROMPT_LEN,
    MIN_REQUEST_PAYLOAD, MIN_SIDE, MIN_STEPS, REQUEST_PARAMS_LEN, SIDE_STEP,
};

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawParams {
    width: U32,
    height: U32,
    steps: U32,
    cfg_scale: F32,
    seed: U64,
}

/// The offset table: offset and length for CLIP-L, CLIP-G and T5.
pub(super) type RawTable = [[U32; 2]; 3];

const _: () = assert!(size_of::<RawParams>() + size_of::<RawTable>() == REQUEST_PARAMS_LEN);

/// The numbers of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Params {
    /// Pixels, 64 to 2048, a multiple of 64.
    pub width: u32,
    /// Pixels, 64 to 2048, a multiple of 64.
    pub height: u32,
    /// Denoising steps, 1 to 100.
    pub steps: u32,
    /// Classifier-free guidance scale, 0.0 to 20.0.
    pub cfg_scale: f32,
    /// 0 lets the server draw one; any other value gives the same image again.
    pub seed: u64,
}

/// What clients ask for where neither the user nor the daemon says otherwise: 512×512 pixels, 28 steps, a guidance scale of 7,
/// and a seed that is drawn.
impl Default for Params {
    fn default() -> Self {
        Self { width: 512, height: 512, steps: 28, cfg_scale: 7.0, seed: 0 }
    }
}

impl Params {
    /// Checks every range, in the protocol's order.
    ///
    /// # Errors
    /// The first field that is out of its range.
    #[inline(always)]
    pub fn check(&self) -> Result<(), RequestError> {
        let side_is_legal =
            |side: u32| (MIN_SIDE..=MAX_SIDE).contains(&side) && side.is_multiple_of(SIDE_STEP);
        if !side_is_legal(self.width) {
            return Err(RequestError::Width(self.width));
        }
        if !side_is_legal(self.height) {
            return Err(RequestError::Height(self.height));
        }
        if !(MIN_STEPS..=MAX_STEPS).contains(&self.steps) {
            return Err(RequestError::Steps(self.steps));
        }
        // NaN is in no range; -0.0 equals 0.0.
        if !(MIN_CFG_SCALE..=MAX_CFG_SCALE).contains(&self.cfg_scale) {
            return Err(RequestError::CfgScale(self.cfg_scale));
        }
        Ok(())
    }

    /// The parameters as they stand on the wire.
    #[inline(always)]
    pub(super) fn emit(&self) -> RawParams {
        RawParams {
            width: U32::new(self.width),
            height: U32::new(self.height),
            steps: U32::new(self.steps),
            cfg_scale: F32::new(positive_zero(self.cfg_scale)),
            seed: U64::new(self.seed),
        }
    }
}

/// The texts for the three encoders. Two are equal if their texts are, wherever these lay in a frame.
#[derive(Clone, Copy)]
pub struct Prompts<'a>(Source<'a>);

#[derive(Clone, Copy)]
enum Source<'a> {
    Texts([&'a str; 3]),
    /// The offset table and prompt_data of a frame, all of it checked: what [`parse`] found needs no
    /// second place to stand in, and can be emitted again as it was.
    Received(&'a [u8]),
}

impl<'a> Prompts<'a> {
    /// The same text for all three encoders, which is what v1's engines take.
    #[must_use]
    pub const fn same(text: &'a str) -> Self {
        Self::each(text, text, text)
    }

    /// A text for each encoder.
    #[must_use]
    pub const fn each(clip_l: &'a str, clip_g: &'a str, t5: &'a str) -> Self {
        Self(Source::Texts([clip_l, clip_g, t5]))
    }

    /// The prompt for CLIP-L; v1's engines use this one for all three. Takes time in proportion to
    /// its length, as the two below do.
    #[must_use]
    pub fn clip_l(&self) -> &'a str {
        let [text, _, _] = self.bytes();
        as_str(text)
    }

    /// The prompt for CLIP-G.
    #[must_use]
    pub fn clip_g(&self) -> &'a str {
        let [_, text, _] = self.bytes();
        as_str(text)
    }

    /// The prompt for T5.
    #[must_use]
    pub fn t5(&self) -> &'a str {
        let [_, _, text] = self.bytes();
        as_str(text)
    }

    /// Whether all three are the same.
    #[must_use]
    pub fn are_equal(&self) -> bool {
        let [clip_l, clip_g, t5] = self.bytes();
        clip_l == clip_g && clip_l == t5
    }

    /// Checks lengths and NUL, in the protocol's order.
    ///
    /// # Errors
    /// The first text that can't be sent.
    pub fn check(&self) -> Result<(), RequestError> {
        let texts = self.bytes();
        for (encoder, text) in Encoder::ALL.into_iter().zip(texts) {
            check_length(encoder, u32::try_from(text.len()).unwrap_or(u32::MAX))?;
        }
        check_nul(texts)
    }

    /// The offset table and prompt_data as they stand on the wire. `table` is the place for a table that
    /// has to be made.
    #[inline(always)]
    pub(super) fn emit<'o>(&'o self, table: &'o mut Option<RawTable>) -> [&'o [u8]; 4] {
        match &self.0 {
            Source::Received(prompts) => [prompts, &[], &[], &[]],
            Source::Texts(texts) => {
                let [clip_l, clip_g, t5] = texts.map(str::as_bytes);
                [table.insert(table_of(texts)).as_bytes(), clip_l, clip_g, t5]
            }
        }
    }

    fn bytes(&self) -> [&'a [u8]; 3] {
        match self.0 {
            Source::Texts(texts) => texts.map(str::as_bytes),
            // What was checked has a table, and its regions lie within the data.
            Source::Received(prompts) => RawTable::ref_from_prefix(prompts)
                .ok()
                .and_then(|(table, data)| texts(table, data).ok())
                .unwrap_or_default(),
        }
    }
}

/// Text that was checked when it came in: without `unsafe`, a second look is what it takes to say so.
fn as_str(text: &[u8]) -> &str {
    core::str::from_utf8(text).unwrap_or_default()
}

impl PartialEq for Prompts<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for Prompts<'_> {}

/// Shows lengths only: prompts are private and have no place in a log.
impl fmt::Debug for Prompts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [clip_l, clip_g, t5] = self.bytes().map(<[u8]>::len);
        write!(f, "Prompts({clip_l}, {clip_g} and {t5} bytes)")
    }
}

/// Reads what follows the prefix. The size of prompt_data is taken from `payload_len`, since not all of
/// it may have been kept.
#[inline(always)]
pub(super) fn parse(payload_len: u32, after_prefix: &[u8]) -> Result<(Params, Prompts<'_>), RequestError> {
    let short = |Short| RequestError::Short { payload_len, need: MIN_REQUEST_PAYLOAD };
    let (after, raw) = fixed::<RawParams>.parse_complete(after_prefix).finish().map_err(short)?;
    let (_, (prompts, (table, data))) =
        consumed((fixed::<RawTable>, rest)).parse_complete(after).finish().map_err(short)?;
    let params = Params {
        width: raw.width.get(),
        height: raw.height.get(),
        steps: raw.steps.get(),
        cfg_scale: positive_zero(raw.cfg_scale.get()),
        seed: raw.seed.get(),
    };
    params.check()?;

    let [clip_l, clip_g, t5] = regions(table);
    check_length(Encoder::ClipL, clip_l.length)?;
    check_length(Encoder::ClipG, clip_g.length)?;
    check_length(Encoder::T5, t5.length)?;
    let available = payload_len.saturating_sub(MIN_REQUEST_PAYLOAD);
    if available > MAX_PROMPT_DATA_LEN {
        return Err(RequestError::PromptDataLength(available));
    }
    // Most requests are soon seen to be right; the others are looked at step by step.
    let is_within = |region: Region| region.of(data).is_some();
    if !(is_within(clip_l) && is_within(clip_g) && is_within(t5) && is_plain(data)) {
        check_prompts(table, data)?;
    }
    Ok((params, Prompts(Source::Received(prompts))))
}

/// A place in prompt_data, in bytes.
#[derive(Clone, Copy)]
struct Region {
    offset: u32,
    length: u32,
}

impl Region {
    /// The bytes there; `None` if not all of them lie within `data`.
    #[inline(always)]
    fn of(self, data: &[u8]) -> Option<&[u8]> {
        let start = to_usize(self.offset);
        data.get(start..start.saturating_add(to_usize(self.length)))
    }
}

#[inline(always)]
fn regions(table: &RawTable) -> [Region; 3] {
    table.map(|[offset, length]| Region { offset: offset.get(), length: length.get() })
}

/// The table for texts that follow each other.
fn table_of(texts: &[&str; 3]) -> RawTable {
    let mut end = 0u32;
    texts.map(|text| {
        let (offset, length) = (end, u32::try_from(text.len()).unwrap_or(u32::MAX));
        end = end.saturating_add(length);
        [U32::new(offset), U32::new(length)]
    })
}

/// The bytes of the three regions, or the first that doesn't lie within `data`.
fn texts<'a>(table: &RawTable, data: &'a [u8]) -> Result<[&'a [u8]; 3], RequestError> {
    let mut texts = [&[][..]; 3];
    for ((text, encoder), region) in texts.iter_mut().zip(Encoder::ALL).zip(regions(table)) {
        *text = region.of(data).ok_or(RequestError::PromptRange {
            encoder,
            offset: region.offset,
            length: region.length,
            available: u32::try_from(data.len()).unwrap_or(u32::MAX),
        })?;
    }
    Ok(texts)
}

#[inline(always)]
fn check_length(encoder: Encoder, length: u32) -> Result<(), RequestError> {
    if length.wrapping_sub(MIN_PROMPT_LEN) <= MAX_PROMPT_LEN - MIN_PROMPT_LEN {
        Ok(())
    } else {
        Err(RequestError::PromptLength { encoder, length })
    }
}

/// Whether all bytes are ASCII and none is 0, which most prompts are and which is soon seen: a word
/// at a time, the last of which may overlap the one before it. Taking 1 from a byte borrows from its
/// highest bit only if the byte is 0 or the bit was set.
#[inline(always)]
fn is_plain(bytes: &[u8]) -> bool {
    const WORD: usize = size_of::<usize>();
    const ONES: usize = usize::MAX / 0xFF;
    let suspects = |word: &[u8; WORD]| {
        let word = usize::from_ne_bytes(*word);
        (word.wrapping_sub(ONES) | word) & (ONES << 7)
    };
    let Some(last) = bytes.last_chunk() else {
        return bytes.iter().all(|byte| (1..0x80).contains(byte));
    };
    let (words, _) = bytes.as_chunks();
    words.iter().fold(suspects(last), |found, word| found | suspects(word)) == 0
}

/// The last three steps in the order of checks: the ranges, UTF-8, NUL.
#[cold]
fn check_prompts(table: &RawTable, data: &[u8]) -> Result<(), RequestError> {
    let texts = texts(table, data)?;
    for (encoder, text) in Encoder::ALL.into_iter().zip(texts) {
        core::str::from_utf8(text).map_err(|error| RequestError::PromptUtf8 {
            encoder,
            valid_up_to: u32::try_from(error.valid_up_to()).unwrap_or(u32::MAX),
        })?;
    }
    check_nul(texts)
}

/// The engine takes C strings: a NUL would cut the prompt short without a word.
fn check_nul(texts: [&[u8]; 3]) -> Result<(), RequestError> {
    Encoder::ALL.into_iter().zip(texts).try_for_each(|(encoder, text)| {
        if is_plain(text) {
            return Ok(());
        }
        match text.iter().position(|byte| *byte == 0) {
            None => Ok(()),
            Some(at) => Err(RequestError::PromptNul { encoder, at: u32::try_from(at).unwrap_or(u32::MAX) }),
        }
    })
}

/// -0.0 means 0.0, so that equal requests have equal values.
fn positive_zero(value: f32) -> f32 {
    if value == 0.0 { 0.0 } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What follows the prefix.
    #[rustfmt::skip]
    static BYTES: [u8; 51] = [
        0, 0, 0, 64, 0, 0, 8, 0, // width, height
        0, 0, 0, 100, 0x3F, 0, 0, 0, // steps, cfg_scale
        0x10, 0, 0, 0, 0, 0, 0, 1, // seed
        0, 0, 0, 0, 0, 0, 0, 1, // CLIP-L
        0, 0, 0, 1, 0, 0, 0, 1, // CLIP-G
        0, 0, 0, 2, 0, 0, 0, 1, // T5
        b'a', b'b', b'c',
    ];
    const PARAMS: Params =
        Params { width: 64, height: 2048, steps: 100, cfg_scale: 0.5, seed: 0x1000_0000_0000_0001 };

    #[test]
    fn the_default_can_be_asked_for_and_leaves_the_seed_open() {
        assert_eq!(Params::default().check(), Ok(()));
        assert_eq!(Params::default().seed, 0);
    }

    #[test]
    fn known_bytes_are_taken_apart() {
        assert_eq!(parse(63, &BYTES), Ok((PARAMS, Prompts::each("a", "b", "c"))));
    }

    #[test]
    fn values_are_rebuilt_to_the_same_bytes() {
        let (params, prompts) = parse(63, &BYTES).unwrap();
        assert_eq!(params.emit().as_bytes(), &BYTES[..24]);
        let mut table = None;
        assert_eq!(prompts.emit(&mut table), [&BYTES[24..], &[], &[], &[]]);
        let made = Prompts::each("a", "b", "c");
        assert_eq!(made.emit(&mut table), [&BYTES[24..48], b"a", b"b", b"c"]);
    }

    #[test]
    fn a_negative_zero_is_sent_as_zero() {
        let params = Params { cfg_scale: -0.0, ..PARAMS };
        assert_eq!(params.emit().cfg_scale.as_bytes(), [0; 4]);
    }

    #[test]
    fn every_length_before_prompt_data_is_short() {
        for len in 0..REQUEST_PARAMS_LEN {
            let payload_len = 12 + u32::try_from(len).unwrap();
            let short = RequestError::Short { payload_len, need: 60 };
            assert_eq!(parse(payload_len, &BYTES[..len]), Err(short));
        }
    }

    #[test]
    fn plain_is_ascii_without_nul() {
        for len in 0..40 {
            let mut bytes = [b'~'; 40];
            let bytes = &mut bytes[..len];
            assert!(is_plain(bytes), "{len} bytes");
            for at in 0..len {
                for (byte, plain) in [(0, false), (1, true), (0x7F, true), (0x80, false), (0xFF, false)] {
                    bytes[at] = byte;
                    assert_eq!(is_plain(bytes), plain, "{byte} at {at} of {len}");
                }
                bytes[at] = b'~';
            }
        }
    }
}
