//! Weave's frames, as this suite reads and shows them.
//!
//! Made from the tables of `spec/weave-v1.md` alone and without a line of `weave-core`, so that a mistake of
//! one is seen by the other. It works on whole byte strings and copies as it likes: it is for judging, not
//! for serving.

use std::fmt::{self, Write};

/// A field of fixed size. Its value is a big-endian number of that many bytes.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The name in the specification.
    pub name: &'static str,
    /// Bytes: 2, 4 or 8.
    pub size: usize,
}

const fn field(name: &'static str, size: usize) -> Field {
    Field { name, size }
}

/// The header (section 3.1).
pub const HEADER: &[Field] = &[
    field("magic", 4),
    field("version", 2),
    field("msg_type", 2),
    field("payload_len", 4),
    field("reserved", 4),
];
/// A request's payload before prompt_data (section 4).
pub const REQUEST: &[Field] = &[
    field("request_id", 8),
    field("model_id", 4),
    field("width", 4),
    field("height", 4),
    field("steps", 4),
    field("cfg_scale", 4),
    field("seed", 8),
    field("clip_l_offset", 4),
    field("clip_l_length", 4),
    field("clip_g_offset", 4),
    field("clip_g_length", 4),
    field("t5_offset", 4),
    field("t5_length", 4),
];
/// A response's payload before image_data (section 5).
pub const RESPONSE: &[Field] = &[
    field("request_id", 8),
    field("status", 4),
    field("generation_time_ms", 4),
    field("image_width", 4),
    field("image_height", 4),
    field("channels", 4),
    field("image_data_len", 4),
];
/// An error's payload before error_msg (section 6).
pub const ERROR: &[Field] =
    &[field("request_id", 8), field("status", 4), field("error_code", 4), field("error_msg_len", 2)];

/// "WEVE".
pub const MAGIC: u32 = 0x5745_5645;
/// msg_type of a request.
pub const TYPE_REQUEST: u64 = 0x0001;
/// msg_type of a response.
pub const TYPE_RESPONSE: u64 = 0x0002;
/// msg_type of an error.
pub const TYPE_ERROR: u64 = 0x00FF;
/// Bytes of the header.
pub const HEADER_LEN: usize = 16;
/// The longest payload of a request.
pub const MAX_REQUEST_PAYLOAD: u64 = 6_204;
/// The longest payload that a server skips.
pub const MAX_SKIPPED_PAYLOAD: u64 = 10_485_760;
/// The longest payload of a response.
pub const MAX_RESPONSE_PAYLOAD: u64 = 16_777_248;

/// Number, name and status of each error code (section 6).
pub const CODES: &[(u64, &str, u64)] = &[
    (1, "INVALID_MAGIC", 400),
    (2, "UNSUPPORTED_VERSION", 400),
    (3, "INVALID_MODEL_ID", 400),
    (4, "INVALID_PROMPT", 400),
    (5, "INVALID_DIMENSIONS", 400),
    (6, "INVALID_STEPS", 400),
    (7, "INVALID_CFG", 400),
    (8, "OUT_OF_MEMORY", 500),
    (9, "GPU_ERROR", 500),
    (10, "TIMEOUT", 500),
    (20, "MALFORMED", 400),
    (21, "TOO_LARGE", 400),
    (22, "UNSUPPORTED_TYPE", 400),
    (23, "BUSY", 500),
    (24, "SHUTTING_DOWN", 500),
    (99, "INTERNAL", 500),
];

/// "INVALID_STEPS (6)", or the number alone if the specification has no name for it.
#[must_use]
pub fn code_name(code: u64) -> String {
    match CODES.iter().find(|(number, ..)| *number == code) {
        Some((_, name, _)) => format!("{name} ({code})"),
        None => format!("error code {code}"),
    }
}

/// The number of the code with this name.
///
/// # Panics
/// If there is none: names are written in this crate only.
#[must_use]
pub fn code(name: &str) -> u64 {
    CODES.iter().find(|(_, known, _)| *known == name).expect("a code of the specification").0
}

/// The fields of a table in some bytes, as far as they are there.
#[derive(Clone, Copy, Debug)]
struct View<'a> {
    table: &'static [Field],
    bytes: &'a [u8],
}

impl View<'_> {
    /// The value of a field; `None` if the bytes end before the field does.
    fn get(self, name: &str) -> Option<u64> {
        let mut at = 0;
        for field in self.table {
            let bytes = self.bytes.get(at..at + field.size)?;
            if field.name == name {
                return Some(bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)));
            }
            at += field.size;
        }
        None
    }

    /// All fields, which are there.
    fn all(self) -> Fields {
        Fields(self.table.iter().filter_map(|field| Some((field.name, self.get(field.name)?))).collect())
    }
}

/// The bytes that the fields of a table take.
#[must_use]
pub fn size(table: &[Field]) -> usize {
    table.iter().map(|field| field.size).sum()
}

/// The values of a message's fields, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields(Vec<(&'static str, u64)>);

impl From<Vec<(&'static str, u64)>> for Fields {
    fn from(values: Vec<(&'static str, u64)>) -> Self {
        Self(values)
    }
}

impl Fields {
    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.iter().copied()
    }

    /// The value of a field.
    ///
    /// # Panics
    /// If the message has no such field: names are written in this crate only.
    #[must_use]
    pub fn get(&self, name: &str) -> u64 {
        self.0.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("no field {name}")).1
    }
}

// Reading ---------------------------------------------------------------------------------------------------

/// Who receives the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receiver {
    /// Requests come in.
    Server,
    /// Responses and errors come in.
    Client,
}

/// What a receiver makes of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expectation {
    /// A server can serve it. cfg_scale is 0 where the frame has -0.0.
    Request {
        /// request_id to t5_length.
        fields: Fields,
        /// For CLIP-L, CLIP-G and T5.
        prompts: [Vec<u8>; 3],
    },
    /// A server answers with an error.
    Answer {
        /// The one that the answer has to carry.
        request_id: u64,
        /// error_code.
        code: u64,
        /// The row of the table in section 7.
        step: u8,
        /// The field at fault.
        field: String,
    },
    /// A client has an image.
    Response {
        /// request_id to image_data_len.
        fields: Fields,
        /// The pixels.
        image_data: Vec<u8>,
        /// Bytes after them.
        trailing: usize,
    },
    /// A client has an error.
    Error {
        /// request_id to error_msg_len.
        fields: Fields,
        /// error_msg.
        message: Vec<u8>,
        /// Bytes after it.
        trailing: usize,
    },
    /// A client closes the connection.
    Close {
        /// The requirement that the frame breaks.
        because: &'static str,
        /// The field at fault.
        field: &'static str,
    },
}

/// How a connection stands after the last byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A frame may follow.
    BetweenFrames,
    /// The rest of a frame is missing.
    InsideAFrame,
    /// The receiver closes.
    Closed,
}

/// Reads all that came on one connection.
#[must_use]
pub fn read(receiver: Receiver, mut bytes: &[u8]) -> (Vec<Expectation>, End) {
    let mut expectations = Vec::new();
    loop {
        if bytes.is_empty() {
            return (expectations, End::BetweenFrames);
        }
        let Some((header, after)) = bytes.split_at_checked(HEADER_LEN) else {
            return (expectations, End::InsideAFrame);
        };
        let header = View { table: HEADER, bytes: header };
        let payload_len = header.get("payload_len").unwrap_or_default();
        if let Some(lost) = lost(receiver, header.get("magic").unwrap_or_default(), payload_len) {
            expectations.push(lost);
            return (expectations, End::Closed);
        }
        let whole = usize::try_from(payload_len).ok().and_then(|len| after.split_at_checked(len));
        let Some((payload, rest)) = whole else {
            return (expectations, End::InsideAFrame);
        };
        let expectation = match receiver {
            Receiver::Server => request(header, payload),
            Receiver::Client => answer(header, payload),
        };
        let closes = matches!(expectation, Expectation::Close { .. });
        expectations.push(expectation);
        if closes {
            return (expectations, End::Closed);
        }
        bytes = rest;
    }
}

/// What a header says for which the stream is given up (W1-FRM-002, W1-FRM-004 to W1-FRM-007).
fn lost(receiver: Receiver, magic: u64, payload_len: u64) -> Option<Expectation> {
    let bad_magic = magic != u64::from(MAGIC);
    match receiver {
        Receiver::Server if bad_magic => Some(refusal(0, "INVALID_MAGIC", 1, "magic")),
        Receiver::Server if payload_len > MAX_SKIPPED_PAYLOAD => {
            Some(refusal(0, "TOO_LARGE", 2, "payload_len"))
        }
        Receiver::Client if bad_magic => Some(Expectation::Close { because: "W1-FRM-006", field: "magic" }),
        Receiver::Client if payload_len > MAX_RESPONSE_PAYLOAD => {
            Some(Expectation::Close { because: "W1-FRM-007", field: "payload_len" })
        }
        _ => None,
    }
}

fn refusal(request_id: u64, name: &str, step: u8, field: &str) -> Expectation {
    Expectation::Answer { request_id, code: code(name), step, field: field.to_owned() }
}

const ENCODERS: [&str; 3] = ["clip_l", "clip_g", "t5"];

fn is_side(side: u64) -> bool {
    (64..=2048).contains(&side) && side.is_multiple_of(64)
}

/// Steps 3 to 15 of section 7.
fn request(header: View<'_>, payload: &[u8]) -> Expectation {
    let view = View { table: REQUEST, bytes: payload };
    let id = view.get("request_id").unwrap_or(0);
    let refuse = |name, step, field: &str| refusal(id, name, step, field);
    if header.get("version") != Some(1) {
        return refuse("UNSUPPORTED_VERSION", 3, "version");
    }
    if header.get("msg_type") != Some(TYPE_REQUEST) {
        return refuse("UNSUPPORTED_TYPE", 4, "msg_type");
    }
    match view.get("model_id") {
        None => return refuse("MALFORMED", 5, "payload_len"),
        Some(0) => {}
        Some(_) => return refuse("INVALID_MODEL_ID", 6, "model_id"),
    }
    if payload.len() < size(REQUEST) {
        return refuse("MALFORMED", 7, "payload_len");
    }
    let mut fields = view.all();
    for side in ["width", "height"] {
        if !is_side(fields.get(side)) {
            return refuse("INVALID_DIMENSIONS", 8, side);
        }
    }
    if !(1..=100).contains(&fields.get("steps")) {
        return refuse("INVALID_STEPS", 9, "steps");
    }
    let cfg_scale = f32::from_bits(u32::try_from(fields.get("cfg_scale")).unwrap_or(u32::MAX));
    if !(0.0..=20.0).contains(&cfg_scale) {
        return refuse("INVALID_CFG", 10, "cfg_scale");
    }
    if cfg_scale == 0.0
        && let Some((_, value)) = fields.0.iter_mut().find(|(name, _)| *name == "cfg_scale")
    {
        *value = 0;
    }
    for encoder in ENCODERS {
        let name = format!("{encoder}_length");
        if !(1..=2048).contains(&fields.get(&name)) {
            return refuse("INVALID_PROMPT", 11, &name);
        }
    }
    let data = &payload[size(REQUEST)..];
    if data.len() > 6_144 {
        return refuse("INVALID_PROMPT", 12, "payload_len");
    }
    let mut prompts: [Vec<u8>; 3] = Default::default();
    for (prompt, encoder) in prompts.iter_mut().zip(ENCODERS) {
        let name = format!("{encoder}_offset");
        let [start, len] = [&name, &format!("{encoder}_length")].map(|name| fields.get(name));
        // Both are below 2^32: their sum can't overflow 64 bits.
        let place = usize::try_from(start).ok().zip(usize::try_from(start + len).ok());
        match place.and_then(|(start, end)| data.get(start..end)) {
            Some(bytes) => *prompt = bytes.to_vec(),
            None => return refuse("INVALID_PROMPT", 13, &name),
        }
    }
    for (prompt, encoder) in prompts.iter().zip(ENCODERS) {
        if std::str::from_utf8(prompt).is_err() {
            return refuse("INVALID_PROMPT", 14, encoder);
        }
    }
    for (prompt, encoder) in prompts.iter().zip(ENCODERS) {
        if prompt.contains(&0) {
            return refuse("INVALID_PROMPT", 15, encoder);
        }
    }
    Expectation::Request { fields, prompts }
}

/// Sections 5 and 6, as a client reads them.
fn answer(header: View<'_>, payload: &[u8]) -> Expectation {
    let close = |because, field| Expectation::Close { because, field };
    let version = header.get("version");
    match header.get("msg_type") {
        // Of any version (W1-VER-006).
        Some(TYPE_ERROR) => error(payload),
        Some(TYPE_RESPONSE) if version == Some(1) => response(payload),
        Some(TYPE_RESPONSE) => close("W1-FRM-010", "version"),
        _ => close("W1-FRM-010", "msg_type"),
    }
}

fn response(payload: &[u8]) -> Expectation {
    let close = |because, field| Expectation::Close { because, field };
    let Some((fixed, after)) = payload.split_at_checked(size(RESPONSE)) else {
        return close("W1-RSP-006", "payload_len");
    };
    let fields = View { table: RESPONSE, bytes: fixed }.all();
    if fields.get("status") != 200 {
        return close("W1-RSP-005", "status");
    }
    for side in ["image_width", "image_height"] {
        if !is_side(fields.get(side)) {
            return close("W1-RSP-005", side);
        }
    }
    if ![3, 4].contains(&fields.get("channels")) {
        return close("W1-RSP-005", "channels");
    }
    let len = fields.get("image_width") * fields.get("image_height") * fields.get("channels");
    if fields.get("image_data_len") != len {
        return close("W1-RSP-005", "image_data_len");
    }
    match usize::try_from(len).ok().and_then(|len| after.split_at_checked(len)) {
        Some((pixels, rest)) => {
            Expectation::Response { fields, image_data: pixels.to_vec(), trailing: rest.len() }
        }
        None => close("W1-RSP-006", "payload_len"),
    }
}

fn error(payload: &[u8]) -> Expectation {
    let close = |because, field| Expectation::Close { because, field };
    let Some((fixed, after)) = payload.split_at_checked(size(ERROR)) else {
        return close("W1-ERR-008", "payload_len");
    };
    let fields = View { table: ERROR, bytes: fixed }.all();
    if ![400, 500].contains(&fields.get("status")) {
        return close("W1-ERR-007", "status");
    }
    match usize::try_from(fields.get("error_msg_len")).ok().and_then(|len| after.split_at_checked(len)) {
        Some((message, rest)) => {
            Expectation::Error { fields, message: message.to_vec(), trailing: rest.len() }
        }
        None => close("W1-ERR-008", "payload_len"),
    }
}

// Showing ---------------------------------------------------------------------------------------------------

/// How many bytes of a longer piece are shown.
const SHOWN: usize = 24;

/// Hexadecimal, with a space between two bytes.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(3 * bytes.len());
    for byte in bytes {
        let space = if text.is_empty() { "" } else { " " };
        let _ = write!(text, "{space}{byte:02x}");
    }
    text
}

/// Shows the frames of a stream to a person: a line for each field, with its bytes and its value.
pub struct Shown<'a>(pub &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = self.0;
        if bytes.is_empty() {
            return f.write_str("nothing");
        }
        let mut lines = Lines { f, first: true };
        while !bytes.is_empty() {
            bytes = lines.frame(bytes)?;
        }
        Ok(())
    }
}

struct Lines<'a, 'f> {
    f: &'a mut fmt::Formatter<'f>,
    first: bool,
}

impl Lines<'_, '_> {
    fn line(&mut self, bytes: &[u8], text: fmt::Arguments<'_>) -> fmt::Result {
        if !std::mem::take(&mut self.first) {
            self.f.write_char('\n')?;
        }
        let more = if bytes.len() > SHOWN { format!(" … {} bytes", bytes.len()) } else { String::new() };
        write!(self.f, "{:<26} {text}", hex(&bytes[..bytes.len().min(SHOWN)]) + &more)
    }

    fn fields<'b>(&mut self, table: &'static [Field], mut bytes: &'b [u8]) -> Result<&'b [u8], fmt::Error> {
        for field in table {
            if bytes.is_empty() {
                break;
            }
            let (own, rest) = bytes.split_at(field.size.min(bytes.len()));
            let value = own.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
            match field.name {
                name if own.len() < field.size => self.line(own, format_args!("{name}, cut short"))?,
                "magic" if value == u64::from(MAGIC) => self.line(own, format_args!("magic \"WEVE\""))?,
                "msg_type" => self.line(own, format_args!("msg_type {value:#06x}"))?,
                "cfg_scale" => {
                    let value = f32::from_bits(u32::try_from(value).unwrap_or_default());
                    self.line(own, format_args!("cfg_scale {value:?}"))?;
                }
                "error_code" => self.line(own, format_args!("error_code {}", code_name(value)))?,
                name => self.line(own, format_args!("{name} {value}"))?,
            }
            bytes = rest;
        }
        Ok(bytes)
    }

    fn frame<'b>(&mut self, bytes: &'b [u8]) -> Result<&'b [u8], fmt::Error> {
        let header = View { table: HEADER, bytes };
        if header.get("magic").is_some_and(|magic| magic != u64::from(MAGIC)) {
            self.line(
                bytes,
                format_args!("no frame: {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)])),
            )?;
            return Ok(&[]);
        }
        let after = self.fields(HEADER, bytes)?;
        let payload_len = usize::try_from(header.get("payload_len").unwrap_or(0)).unwrap_or(usize::MAX);
        let (payload, rest) = after.split_at(payload_len.min(after.len()));
        let (table, tail): (&'static [Field], _) = match header.get("msg_type") {
            Some(TYPE_REQUEST) => (REQUEST, "prompt_data"),
            Some(TYPE_RESPONSE) => (RESPONSE, "image_data"),
            Some(TYPE_ERROR) => (ERROR, "error_msg"),
            _ => (&[], "payload"),
        };
        let tail_bytes = self.fields(table, payload)?;
        if !tail_bytes.is_empty() {
            match tail {
                "error_msg" => {
                    let text: String = String::from_utf8_lossy(tail_bytes).chars().take(100).collect();
                    self.line(tail_bytes, format_args!("error_msg {text:?}"))?;
                }
                tail => self.line(tail_bytes, format_args!("{tail}"))?,
            }
        }
        if payload.len() < payload_len && after.len() >= payload.len() && bytes.len() >= HEADER_LEN {
            self.line(&[], format_args!("(of {payload_len} bytes of payload these are {})", payload.len()))?;
        }
        Ok(rest)
    }
}
