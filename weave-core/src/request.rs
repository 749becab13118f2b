//! The generation request (msg_type 0x0001) for Stable Diffusion 3.5.
//!
//! | payload offset | size | field | range |
//! | --- | --- | --- | --- |
//! | 0 | 8 | request_id | chosen by the client |
//! | 8 | 4 | model_id | 0 |
//! | 12 | 4 | width | 64 to 2048, a multiple of 64 |
//! | 16 | 4 | height | 64 to 2048, a multiple of 64 |
//! | 20 | 4 | steps | 1 to 100 |
//! | 24 | 4 | cfg_scale | 0.0 to 20.0 |
//! | 28 | 8 | seed | 0: the server draws one |
//! | 36 | 24 | (offset, length) of the prompt for CLIP-L, CLIP-G and T5 | length 1 to 2048 |
//! | 60 | … | prompt_data, at most 6,144 bytes | |
//!
//! [`parse`] checks in the order of the protocol, and the first failure decides: version,
//! msg_type, room for the first 12 bytes, model_id, room for the parameters, width and height,
//! steps, cfg_scale, the three lengths, the size of prompt_data, the three ranges, UTF-8, NUL.
//! The three ranges may overlap.

use core::fmt;

use nom::combinator::{consumed, rest};
use nom::{Finish, Parser};
use zerocopy::byteorder::big_endian::{F32, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bytes::{NoRoom, Short, fixed, to_usize, write_parts};
use crate::code::ErrorCode;
use crate::frame::{Arrived, Frame, Header, Kind, Skipped};
use crate::limits::{
    HEADER_LEN, MAX_CFG_SCALE, MAX_PROMPT_DATA_LEN, MAX_PROMPT_LEN, MAX_SIDE, MAX_STEPS, MIN_CFG_SCALE,
    MIN_PROMPT_LEN, MIN_SIDE, MIN_STEPS, MODEL_ID_SD35, REQUEST_PARAMS_LEN, REQUEST_PREFIX_LEN, SIDE_STEP,
    VERSION,
};

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawPrefix {
    request_id: U64,
    model_id: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawParams {
    width: U32,
    height: U32,
    steps: U32,
    cfg_scale: F32,
    seed: U64,
}

/// The offset table: offset and length for CLIP-L, CLIP-G and T5.
type RawTable = [[U32; 2]; 3];

const _: () = assert!(size_of::<RawPrefix>() == REQUEST_PREFIX_LEN);
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
}

/// One of SD 3.5's three text encoders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoder {
    /// OpenAI CLIP ViT-L/14.
    ClipL,
    /// OpenCLIP ViT-G/14.
    ClipG,
    /// T5-XXL.
    T5,
}

impl Encoder {
    /// All three, in the order of the offset table.
    pub const ALL: [Self; 3] = [Self::ClipL, Self::ClipG, Self::T5];

    /// The prefix of the encoder's fields in the specification.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClipL => "clip_l",
            Self::ClipG => "clip_g",
            Self::T5 => "t5",
        }
    }
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

/// A generation request with every range checked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Request<'a> {
    /// Chosen by the client; comes back with the answer.
    pub request_id: u64,
    /// Size, steps, guidance, seed.
    pub params: Params,
    /// What to draw.
    pub prompts: Prompts<'a>,
}

impl Request<'_> {
    /// Writes the request frame into `out` and returns it. A request that was parsed becomes the
    /// same frame again (a reserved field that was not 0, and a cfg_scale of -0.0, become 0).
    ///
    /// # Errors
    /// [`EmitError::Invalid`]: a field is out of its range. [`EmitError::NoRoom`]: `out` is too
    /// small; [`MAX_REQUEST_FRAME`](crate::limits::MAX_REQUEST_FRAME) bytes always do.
    pub fn emit<'o>(&self, out: &'o mut [u8]) -> Result<&'o [u8], EmitError> {
        self.params.check().map_err(EmitError::Invalid)?;
        self.prompts.check().map_err(EmitError::Invalid)?;
        let table;
        let prompts = match &self.prompts.0 {
            Source::Received(prompts) => [prompts, &[][..], &[], &[]],
            Source::Texts(texts) => {
                table = table_of(texts);
                let [clip_l, clip_g, t5] = texts.map(str::as_bytes);
                [table.as_bytes(), clip_l, clip_g, t5]
            }
        };
        const BEFORE_TABLE: usize = size_of::<RawPrefix>() + size_of::<RawParams>();
        let payload_len = prompts.iter().fold(BEFORE_TABLE, |sum, part| sum.saturating_add(part.len()));
        let header = Header::emit(Kind::Request, u32::try_from(payload_len).unwrap_or(u32::MAX));
        let prefix = RawPrefix { request_id: U64::new(self.request_id), model_id: U32::new(MODEL_ID_SD35) };
        let params = RawParams {
            width: U32::new(self.params.width),
            height: U32::new(self.params.height),
            steps: U32::new(self.params.steps),
            cfg_scale: F32::new(positive_zero(self.params.cfg_scale)),
            seed: U64::new(self.params.seed),
        };
        let [a, b, c, d] = prompts;
        write_parts(out, [&header, prefix.as_bytes(), params.as_bytes(), a, b, c, d])
            .map_err(EmitError::NoRoom)
    }
}

/// A request for a model that no server has: whoever answers it with INVALID_MODEL_ID and the same
/// id speaks Weave, and no engine was troubled. v1 has no message of its own for that question.
#[must_use]
pub fn probe(request_id: u64) -> [u8; HEADER_LEN + REQUEST_PREFIX_LEN] {
    #[derive(IntoBytes, Immutable, Unaligned)]
    #[repr(C)]
    struct Probe {
        header: [u8; HEADER_LEN],
        prefix: RawPrefix,
    }
    zerocopy::transmute!(Probe {
        header: Header::emit(Kind::Request, 12),
        prefix: RawPrefix { request_id: U64::new(request_id), model_id: U32::new(u32::MAX) },
    })
}

/// Why a request can't be emitted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EmitError {
    /// A field is out of its range.
    Invalid(RequestError),
    /// The output slice is too small.
    NoRoom(NoRoom),
}

impl fmt::Display for EmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(error) => error.fmt(f),
            Self::NoRoom(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for EmitError {}

/// Why a request can't be served as it is. Holds no text of the request.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum RequestError {
    /// The header's version isn't 1.
    Version(u16),
    /// The header's msg_type isn't a request.
    Type(u16),
    /// The payload ends before its fixed fields do.
    Short {
        /// What the header announces.
        payload_len: u32,
        /// What the fields take.
        need: u32,
    },
    /// model_id isn't 0.
    ModelId(u32),
    /// width is out of range.
    Width(u32),
    /// height is out of range.
    Height(u32),
    /// steps is out of range.
    Steps(u32),
    /// cfg_scale is out of range or no number.
    CfgScale(f32),
    /// A prompt is empty or too long.
    PromptLength {
        /// Whose prompt.
        encoder: Encoder,
        /// Its length in bytes.
        length: u32,
    },
    /// prompt_data is longer than three longest prompts.
    PromptDataLength(u32),
    /// A prompt reaches beyond prompt_data.
    PromptRange {
        /// Whose prompt.
        encoder: Encoder,
        /// Where it begins.
        offset: u32,
        /// Its length in bytes.
        length: u32,
        /// Bytes of prompt_data.
        available: u32,
    },
    /// A prompt isn't UTF-8.
    PromptUtf8 {
        /// Whose prompt.
        encoder: Encoder,
        /// Bytes before the first that is wrong.
        valid_up_to: u32,
    },
    /// A prompt contains a NUL byte.
    PromptNul {
        /// Whose prompt.
        encoder: Encoder,
        /// Bytes before the first NUL.
        at: u32,
    },
}

impl RequestError {
    /// The code that a server answers with.
    #[must_use]
    pub const fn code(self) -> ErrorCode {
        match self {
            Self::Version(_) => ErrorCode::UnsupportedVersion,
            Self::Type(_) => ErrorCode::UnsupportedType,
            Self::Short { .. } => ErrorCode::Malformed,
            Self::ModelId(_) => ErrorCode::InvalidModelId,
            Self::Width(_) | Self::Height(_) => ErrorCode::InvalidDimensions,
            Self::Steps(_) => ErrorCode::InvalidSteps,
            Self::CfgScale(_) => ErrorCode::InvalidCfg,
            Self::PromptLength { .. }
            | Self::PromptDataLength(_)
            | Self::PromptRange { .. }
            | Self::PromptUtf8 { .. }
            | Self::PromptNul { .. } => ErrorCode::InvalidPrompt,
        }
    }

    /// The requirement of the specification that the sender did not keep, or by which it is told so.
    #[must_use]
    pub const fn requirement(self) -> &'static str {
        match self {
            Self::Version(_) => "W1-VER-003",
            Self::Type(_) | Self::Short { .. } => "W1-VAL-001",
            Self::ModelId(_)
            | Self::Width(_)
            | Self::Height(_)
            | Self::Steps(_)
            | Self::CfgScale(_)
            | Self::PromptLength { .. } => "W1-REQ-001",
            Self::PromptDataLength(_) => "W1-FRM-001",
            Self::PromptRange { .. } => "W1-REQ-002",
            Self::PromptUtf8 { .. } | Self::PromptNul { .. } => "W1-REQ-003",
        }
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = |f: &mut fmt::Formatter<'_>, name: &str, value: u32| {
            write!(f, "{name} is {value}, must be {MIN_SIDE} to {MAX_SIDE} and a multiple of {SIDE_STEP}")
        };
        match *self {
            Self::Version(version) => write!(f, "version is {version}, must be {VERSION}"),
            Self::Type(msg_type) => {
                write!(f, "msg_type is {msg_type:#06x}, a server takes 0x0001 (generation request)")
            }
            Self::Short { payload_len, need } => {
                write!(f, "payload_len is {payload_len}, must be at least {need}")
            }
            Self::ModelId(id) => write!(f, "model_id is {id}, must be {MODEL_ID_SD35} (SD 3.5)"),
            Self::Width(value) => side(f, "width", value),
            Self::Height(value) => side(f, "height", value),
            Self::Steps(value) => write!(f, "steps is {value}, must be {MIN_STEPS} to {MAX_STEPS}"),
            Self::CfgScale(value) => {
                let (value, min, max) = (Decimal(value), Decimal(MIN_CFG_SCALE), Decimal(MAX_CFG_SCALE));
                write!(f, "cfg_scale is {value}, must be {min} to {max}")
            }
            Self::PromptLength { encoder, length } => write!(
                f,
                "{}_length is {length}, must be {MIN_PROMPT_LEN} to {MAX_PROMPT_LEN} bytes",
                encoder.name()
            ),
            Self::PromptDataLength(length) => {
                write!(f, "prompt_data has {length} bytes, must be at most {MAX_PROMPT_DATA_LEN}")
            }
            Self::PromptRange { encoder, offset, length, available } => write!(
                f,
                "{0}_offset is {offset} and {0}_length {length}, must end within the {available} bytes of prompt_data",
                encoder.name()
            ),
            Self::PromptUtf8 { encoder, valid_up_to } => {
                write!(f, "the {} prompt must be UTF-8, is not after {valid_up_to} bytes", encoder.name())
            }
            Self::PromptNul { encoder, at } => {
                write!(f, "the {} prompt has a NUL after {at} bytes, must have none", encoder.name())
            }
        }
    }
}

impl core::error::Error for RequestError {}

/// A float for people, to six decimals. `core`'s own formatting of floats would take several
/// kilobytes of a microcontroller's flash and stack.
struct Decimal(f32);

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(value) = *self;
        if value.is_nan() {
            return f.write_str("NaN");
        }
        // The value is ± mantissa · 2^(exponent - 150).
        let bits = value.abs().to_bits();
        let (mantissa, exponent) = match bits >> 23 {
            0 => (bits, 1),
            exponent => (bits & 0x007F_FFFF | 0x0080_0000, exponent),
        };
        let sign = if value < 0.0 { "-" } else { "" };
        let (whole, mut millionths) = match 150u32.checked_sub(exponent) {
            None if exponent > 158 => {
                let than = if value < 0.0 { "less" } else { "more" };
                return write!(f, "{than} than {sign}{}", u32::MAX);
            }
            None | Some(0) => (mantissa.unbounded_shl(exponent.saturating_sub(150)), 0),
            Some(down) => {
                let whole = mantissa.unbounded_shr(down);
                let rest = u64::from(mantissa.saturating_sub(whole.unbounded_shl(down)));
                let halves = rest.saturating_mul(1_000_000).unbounded_shr(down.saturating_sub(1));
                match u32::try_from(halves.saturating_add(1) >> 1) {
                    Ok(millionths @ 0..1_000_000) => (whole, millionths),
                    _ => (whole.saturating_add(1), 0),
                }
            }
        };
        if value < 0.0 && whole == 0 && millionths == 0 {
            return f.write_str("barely below 0.0");
        }
        write!(f, "{sign}{whole}.")?;
        // Digit by digit, since a width that isn't constant could panic.
        loop {
            write!(f, "{}", millionths / 100_000)?;
            millionths = (millionths % 100_000).saturating_mul(10);
            if millionths == 0 {
                return Ok(());
            }
        }
    }
}

/// Reads what a server's stream brought. Copies nothing.
///
/// # Errors
/// Those of [`parse`] and [`check_skipped`]. The answer to them carries [`Arrived::request_id`].
pub fn parse_arrived<'a>(arrived: &Arrived<'a>) -> Result<Request<'a>, RequestError> {
    match arrived {
        Arrived::Whole(frame) => parse(frame),
        Arrived::Skipped(skipped) => Err(check_skipped(skipped)),
    }
}

/// Reads a request frame and checks all of it. Copies nothing.
///
/// # Errors
/// The first [`RequestError`] in the protocol's order of checks. The answer to it carries
/// [`Frame::request_id`].
pub fn parse<'a>(frame: &Frame<'a>) -> Result<Request<'a>, RequestError> {
    let Fields { request_id, params, prompts, table, data } = Fields::parse(frame.header(), frame.payload())?;
    let [clip_l, clip_g, t5] = regions(table);
    // Most requests are soon seen to be right; the others are looked at step by step.
    let is_within = |region: Region| region.of(data).is_some();
    if !(is_within(clip_l) && is_within(clip_g) && is_within(t5) && is_plain(data)) {
        check_prompts(table, data)?;
    }
    Ok(Request { request_id, params, prompts: Prompts(Source::Received(prompts)) })
}

/// What is wrong with a request whose prompts were dropped, being too long to keep: the first
/// failure in the protocol's order of checks. The answer to it carries [`Skipped::request_id`].
#[cold]
#[must_use]
pub fn check_skipped(skipped: &Skipped<'_>) -> RequestError {
    let first = Fields::parse(skipped.header(), skipped.front()).and_then(|fields| texts(fields.table, &[]));
    // No range lies within nothing, so there always is a first.
    first.err().unwrap_or(RequestError::PromptDataLength(skipped.header().payload_len().saturating_sub(60)))
}

/// A request that was checked up to the size of prompt_data, which doesn't take the prompts.
struct Fields<'a> {
    request_id: u64,
    params: Params,
    /// The table and the data.
    prompts: &'a [u8],
    table: &'a RawTable,
    /// prompt_data, as far as it was kept.
    data: &'a [u8],
}

impl<'a> Fields<'a> {
    #[inline(always)]
    fn parse(header: Header, payload: &'a [u8]) -> Result<Self, RequestError> {
        if header.version() != VERSION {
            return Err(RequestError::Version(header.version()));
        }
        if header.kind() != Kind::Request {
            return Err(RequestError::Type(header.kind().to_wire()));
        }
        let short = |need| move |Short| RequestError::Short { payload_len: header.payload_len(), need };

        let (after, prefix) = fixed::<RawPrefix>.parse_complete(payload).finish().map_err(short(12))?;
        if prefix.model_id.get() != MODEL_ID_SD35 {
            return Err(RequestError::ModelId(prefix.model_id.get()));
        }
        let (after, raw) = fixed::<RawParams>.parse_complete(after).finish().map_err(short(60))?;
        let (_, (prompts, (table, data))) =
            consumed((fixed::<RawTable>, rest)).parse_complete(after).finish().map_err(short(60))?;
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
        // From the header, not from `data`, which may have been dropped.
        let available = header.payload_len().saturating_sub(60);
        if available > MAX_PROMPT_DATA_LEN {
            return Err(RequestError::PromptDataLength(available));
        }
        Ok(Self { request_id: prefix.request_id.get(), params, prompts, table, data })
    }
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
