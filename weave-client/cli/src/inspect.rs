//! `weave inspect`: frames, field by field, and what is wrong with them.
//!
//! What is wrong is for weave-core to say, in the order in which a receiver finds it; here fields are only
//! shown.

use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::path::PathBuf;

use clap::ValueHint;
use weave_cli_base::console::{read_in, write_out};
use weave_cli_base::exit::{Exit, Failure, help};
use weave_client::weave_core::error::{self, ErrorCode};
use weave_client::weave_core::frame::{FrameError, Header, Kind, Split, split};
use weave_client::weave_core::limits::{
    HEADER_LEN, MAGIC, MAX_ERROR_MESSAGE_LEN, MAX_RESPONSE_PAYLOAD, MAX_SKIPPED_PAYLOAD, VERSION,
};
use weave_client::weave_core::text::Text;
use weave_client::weave_core::{request, response};

const EXAMPLES: &str = "\
Examples:
  weave inspect capture.bin
  socat -u UNIX-LISTEN:here.sock - | weave inspect -     what a client sends
  echo '57455645 0001 00ff 00000012' | weave inspect --hex -
  xxd frame.bin | weave inspect --hex -                  also what hexdump -C writes
";

/// Show frames field by field, and what is wrong with them.
///
/// The input is what went over a connection, in one direction or in both. Requests are checked as a server
/// checks them, answers as a client does; what is wrong comes with the requirement that it breaks. Prompts are
/// shown.
#[derive(Debug, clap::Args)]
#[command(after_help = help(EXAMPLES))]
pub(crate) struct Inspect {
    /// File with one or more frames; "-" is standard input
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    file: PathBuf,

    /// Read text: hexadecimal digits, with # before comments, or a dump by xxd or hexdump -C
    #[arg(long)]
    hex: bool,
}

/// Four of the largest images.
const MOST: u64 = 1 << 26;

/// What is collected before it is shown.
const PART: usize = 1 << 16;

/// What the lines of `weave-auth 1` begin with, which come before the first frame on TCP where a daemon wants that.
const AUTH: &[u8] = b"weave-auth 1 ";
/// The same of clients from before that.
const TOKEN: &[u8] = b"weave-token ";

/// How files of pcap (in either order of bytes, with micro- or nanoseconds) and pcapng begin.
const PCAP: [[u8; 4]; 5] = [
    [0xA1, 0xB2, 0xC3, 0xD4],
    [0xD4, 0xC3, 0xB2, 0xA1],
    [0xA1, 0xB2, 0x3C, 0x4D],
    [0x4D, 0x3C, 0xB2, 0xA1],
    [0x0A, 0x0D, 0x0D, 0x0A],
];

/// `false`: there is something that a receiver would refuse.
pub(crate) fn run(args: &Inspect) -> Result<bool, Failure> {
    let mut bytes = read_in(&args.file, MOST)?;
    if args.hex {
        let text = String::from_utf8_lossy(&bytes);
        bytes = from_hex(&text)
            .map_err(|error| Failure::new(Exit::NoInput, format_args!("{} {error}", args.file.display())))?;
    } else if bytes.first_chunk().is_some_and(|first| PCAP.contains(first)) {
        let what =
            format_args!("{} is a capture of packets, not the bytes of a connection", args.file.display());
        let next = "Wireshark reads it, with the dissector spec/weave.lua, and saves what \"Follow Stream\" shows as raw";
        return Err(Failure::new(Exit::NoInput, what).next(next));
    } else if looks_like_hex(&bytes) {
        let what = format_args!("{} is text with hexadecimal digits", args.file.display());
        return Err(Failure::new(Exit::NoInput, what).next("say --hex to have them read"));
    }
    let stdout = io::stdout();
    let mut report = Report { text: String::new(), sound: true, colours: has_colours(stdout.is_terminal()) };
    // A frame of sixteen bytes becomes fifty times as much.
    report.stream(&bytes, |text| write_out(text.as_bytes()))?;
    Ok(report.sound)
}

/// Whether a result may have colours, where they are shown.
fn has_colours(terminal: bool) -> bool {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    terminal && !no_color && !crate::terminal::is_dumb()
}

/// The line at this place, if it is one of those that come before the first frame: its length, and what it is.
fn line_at(bytes: &[u8], at: usize) -> Option<(usize, &'static str)> {
    let rest = &bytes[at..];
    let len = 1 + rest.iter().take(143).position(|byte| *byte == b'\n')?;
    match len {
        78 if rest.starts_with(AUTH) => Some((len, "a client's nonce (weave-auth 1)")),
        143 if rest.starts_with(AUTH) => Some((len, "a daemon's nonce and proof (weave-auth 1)")),
        65 if at > 0 && rest[..64].iter().all(u8::is_ascii_hexdigit) => {
            Some((len, "a client's proof (weave-auth 1)"))
        }
        77 if at == 0 && rest.starts_with(TOKEN) => Some((len, "the line with a token")),
        _ => None,
    }
}

struct Report {
    text: String,
    sound: bool,
    colours: bool,
}

/// A frame's bytes, as far as they are there, and how many of them were shown.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where the frame begins in the input.
    start: usize,
}

impl Report {
    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a `String` doesn't fail.
        let _ = writeln!(self.text, "{line}");
    }

    fn painted(&mut self, colour: u8, word: &str, rest: &str) {
        match self.colours {
            true => self.line(format_args!("  \x1b[{colour}m{word}\x1b[0m{rest}")),
            false => self.line(format_args!("  {word}{rest}")),
        }
    }

    /// A receiver would refuse it.
    fn wrong(&mut self, what: &str, requirement: &str, consequence: &str) {
        self.sound = false;
        self.painted(31, "wrong", &format!(": {what} ({requirement}); {consequence}"));
    }

    /// A receiver takes it, though it isn't as it should be or may be news.
    fn note(&mut self, what: &str, requirement: &str) {
        self.painted(33, "note", &format!(": {what} ({requirement})"));
    }

    /// `show` gets what is to be shown, a part at a time.
    fn stream<E>(&mut self, bytes: &[u8], mut show: impl FnMut(&str) -> Result<(), E>) -> Result<(), E> {
        let mut at = 0;
        while let Some((len, what)) = line_at(bytes, at) {
            self.line(format_args!("offset {at}: {what}, {len} bytes\n"));
            at += len;
        }
        let mut frames = 0;
        let mut bad = 0;
        while at < bytes.len() {
            let sound = std::mem::replace(&mut self.sound, true);
            let rest = &bytes[at..];
            if rest.starts_with(&MAGIC[..rest.len().min(MAGIC.len())]) {
                frames += 1;
                at += self.frame(rest, at, frames);
            } else {
                at += self.junk(rest, at);
            }
            bad += u32::from(!self.sound);
            self.sound &= sound;
            if self.text.len() > PART {
                show(&self.text)?;
                self.text.clear();
            }
        }
        let sound = match (frames, bad) {
            (0, 0) => {
                self.sound = false;
                "there is nothing to inspect".to_owned()
            }
            (_, 0) => "all is sound".to_owned(),
            (_, bad) => format!("{bad} that a receiver would refuse"),
        };
        let plural = if frames == 1 { "" } else { "s" };
        self.line(format_args!("{frames} frame{plural} in {} bytes, {sound}", bytes.len()));
        show(&self.text)
    }

    /// Bytes at which no frame begins. A receiver gives up; who looks for a fault wants to see the rest.
    fn junk(&mut self, bytes: &[u8], start: usize) -> usize {
        let next = bytes.windows(MAGIC.len()).position(|window| window == MAGIC).unwrap_or(bytes.len());
        self.line(format_args!("offset {start}: {next} bytes that belong to no frame"));
        let mut fields = Fields { bytes, at: 0, start };
        self.field(&mut fields, "magic", 4, "", |_| "must be \"WEVE\"".to_owned());
        let what = "the stream can't be followed from here on";
        self.wrong(
            what,
            "W1-FRM-004, W1-FRM-006",
            "a server answers INVALID_MAGIC and closes, a client closes",
        );
        self.text.push('\n');
        next
    }

    /// One frame at the front of `bytes`. Returns how long it is.
    fn frame(&mut self, bytes: &[u8], start: usize, number: u32) -> usize {
        let header = bytes.first_chunk::<HEADER_LEN>();
        let payload_len = header.map(|header| number_at(header, 8, 4)).unwrap_or_default();
        let kind = header.map(|header| Kind::from_wire(u16::try_from(number_at(header, 6, 2)).unwrap_or(0)));
        let limit = match kind {
            Some(Kind::Response | Kind::Error) => MAX_RESPONSE_PAYLOAD,
            _ => MAX_SKIPPED_PAYLOAD,
        };
        // As far as it can be followed.
        let length = HEADER_LEN + usize::try_from(payload_len.min(limit.into())).unwrap_or(usize::MAX);
        let frame = &bytes[..bytes.len().min(length)];
        let name = match kind {
            None => "a header that is cut off".to_owned(),
            Some(Kind::Request) => "request".to_owned(),
            Some(Kind::Response) => "response".to_owned(),
            Some(Kind::Error) => "error".to_owned(),
            Some(other) => format!("of unknown type {:#06x}", other.to_wire()),
        };
        self.line(format_args!("frame {number} at offset {start}: {name}"));
        let mut fields = Fields { bytes: frame, at: 0, start };
        self.header(&mut fields);
        let parsed = header.map(|header| Header::parse(header, limit));
        if let Some(Err(lost)) = parsed {
            self.lost(lost, limit);
            self.text.push('\n');
            // Where its payload would end is not to be believed.
            return HEADER_LEN;
        } else {
            let version = header.map_or(0, |header| number_at(header, 4, 2));
            match kind {
                Some(Kind::Request) if version == u64::from(VERSION) => self.request(&mut fields),
                Some(Kind::Response) if version == u64::from(VERSION) => self.response(&mut fields),
                Some(Kind::Error) => self.error(&mut fields),
                _ => {}
            }
            let left = fields.bytes.len() - fields.at;
            if left > 0 {
                self.field(&mut fields, "payload", left, "", |_| "not looked into".to_owned());
            }
            match split(frame, limit) {
                Ok(Split::Frame(..)) => self.judge(frame, limit),
                Ok(Split::Need(more)) => {
                    let whole = frame.len() + more;
                    let what = format!("cut off: {} of {whole} bytes are there", frame.len());
                    self.wrong(&what, "W1-FRM-009", "a receiver drops what is there of it");
                }
                Err(lost) => self.lost(lost, limit),
            }
        }
        self.text.push('\n');
        frame.len()
    }

    fn lost(&mut self, lost: FrameError, limit: u32) {
        let what = lost.to_string().replace("; closing", "");
        match limit {
            // Only answers may be so long.
            MAX_RESPONSE_PAYLOAD => self.wrong(&what, "W1-FRM-007", "a client closes the connection"),
            _ => {
                let consequence = format!("a server answers {} and closes", lost.code());
                self.wrong(&what, lost.requirement(), &consequence);
            }
        }
    }

    /// What a receiver makes of a whole frame.
    fn judge(&mut self, frame: &[u8], limit: u32) {
        let Ok(Split::Frame(frame, _)) = split(frame, limit) else { return };
        let closes = "a client closes the connection";
        match frame.header().kind() {
            Kind::Response => {
                if let Err(error) = response::parse(&frame) {
                    self.wrong(&error.to_string(), error.requirement(), closes);
                }
            }
            Kind::Error => match error::parse(&frame) {
                Err(error) => self.wrong(&error.to_string(), error.requirement(), closes),
                Ok(error) => {
                    let known = !matches!(error.code, ErrorCode::Unknown(_));
                    if known && error.code.status() != error.status {
                        let must = error.code.status().to_wire();
                        self.note(&format!("{} comes with status {must}", error.code), "W1-ERR-002");
                    }
                    if error.message.len() > MAX_ERROR_MESSAGE_LEN {
                        self.note("senders write at most 255 bytes of error_msg", "W1-ERR-003");
                    }
                    if std::str::from_utf8(error.message).is_err() {
                        self.note("error_msg is not UTF-8", "W1-ERR-010");
                    }
                }
            },
            _ => match request::parse(&frame) {
                Err(error) => {
                    let answer = format!("a server answers {} and reads on", error.code());
                    match frame.header().kind() {
                        Kind::Request => self.wrong(&error.to_string(), error.requirement(), &answer),
                        _ => {
                            let requirements = format!("{}, W1-FRM-010", error.requirement());
                            self.wrong(
                                &error.to_string(),
                                &requirements,
                                &format!("{answer}, a client closes"),
                            );
                        }
                    }
                }
                Ok(request) if !request.prompts.are_equal() => {
                    self.note(
                        "the prompts differ: an engine that takes one uses that of CLIP-L",
                        "W1-REQ-008",
                    );
                }
                Ok(_) => {}
            },
        }
    }

    fn header(&mut self, fields: &mut Fields<'_>) {
        self.field(fields, "magic", 4, "W1-HDR-001", |bytes| format!("\"{}\"", text(bytes)));
        self.field(fields, "version", 2, "W1-HDR-002", number);
        self.field(fields, "msg_type", 2, "W1-FRM-010", |bytes| {
            let number = number_at(bytes, 0, bytes.len());
            match Kind::from_wire(u16::try_from(number).unwrap_or(0)) {
                Kind::Request => "request".to_owned(),
                Kind::Response => "response".to_owned(),
                Kind::Error => "error".to_owned(),
                _ => format!("{number:#06x}"),
            }
        });
        self.field(fields, "payload_len", 4, "W1-HDR-003", number);
        if self.field(fields, "reserved", 4, "W1-HDR-004", number).is_some_and(|reserved| reserved > 0) {
            self.note("senders write 0 into reserved, receivers ignore it", "W1-HDR-004, W1-HDR-005");
        }
    }

    fn request(&mut self, fields: &mut Fields<'_>) {
        self.field(fields, "request_id", 8, "W1-CON-004", number);
        self.field(fields, "model_id", 4, "W1-REQ-001", |bytes| match number_at(bytes, 0, 4) {
            0 => "0, Stable Diffusion 3.5".to_owned(),
            other => other.to_string(),
        });
        self.field(fields, "width", 4, "W1-REQ-001", pixels);
        self.field(fields, "height", 4, "W1-REQ-001", pixels);
        self.field(fields, "steps", 4, "W1-REQ-001", number);
        self.field(fields, "cfg_scale", 4, "W1-REQ-007", |bytes| {
            let bits = u32::try_from(number_at(bytes, 0, 4)).unwrap_or(0);
            format!("{:?}", f32::from_bits(bits))
        });
        self.field(fields, "seed", 8, "W1-REQ-009", |bytes| match number_at(bytes, 0, 8) {
            0 => "0, the server draws one".to_owned(),
            other => other.to_string(),
        });
        let mut table = Vec::new();
        for encoder in request::Encoder::ALL {
            let name = encoder.name();
            let offset = self.field(fields, &format!("{name}_offset"), 4, "W1-REQ-002", number);
            let length = self.field(fields, &format!("{name}_length"), 4, "W1-REQ-001", number);
            if let (Some(offset), Some(length)) = (offset, length) {
                table.push((name, offset, length));
            }
        }
        // The regions may lie anywhere, also one over the other: each is shown where it lies.
        let data = fields.at;
        let end = fields.bytes.len();
        let mut covered = vec![false; end - data];
        for (name, offset, length) in table {
            let from = usize::try_from(offset).unwrap_or(usize::MAX).saturating_add(data);
            let to = from.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
            if from > end || to > end {
                let there = format!("{} bytes are there", end - data);
                self.line(format_args!(
                    "{:8}  {:<14}  reaches beyond prompt_data, of which {there}",
                    "", name
                ));
                continue;
            }
            covered[from - data..to - data].fill(true);
            fields.at = from;
            self.field(fields, name, to - from, "W1-REQ-003", |bytes| format!("\"{}\"", text(bytes)));
        }
        fields.at = end;
        let idle = covered.iter().filter(|covered| !**covered).count();
        if idle > 0 && idle < covered.len() {
            self.note(
                &format!("{idle} bytes of prompt_data belong to no prompt and are ignored"),
                "W1-REQ-006",
            );
        } else if idle > 0 {
            fields.at = data;
        }
    }

    fn response(&mut self, fields: &mut Fields<'_>) {
        self.field(fields, "request_id", 8, "W1-RSP-001", number);
        self.field(fields, "status", 4, "W1-RSP-004", number);
        self.field(fields, "generation_time_ms", 4, "W1-RSP-003", |bytes| format!("{} ms", number(bytes)));
        self.field(fields, "image_width", 4, "W1-RSP-002", pixels);
        self.field(fields, "image_height", 4, "W1-RSP-002", pixels);
        self.field(fields, "channels", 4, "W1-RSP-005", |bytes| match number_at(bytes, 0, 4) {
            3 => "3, RGB".to_owned(),
            4 => "4, RGBA".to_owned(),
            other => other.to_string(),
        });
        let length =
            self.field(fields, "image_data_len", 4, "W1-RSP-004", |bytes| format!("{} bytes", number(bytes)));
        self.data_and_trailing(fields, "image_data", length, "W1-RSP-006", "W1-RSP-007", |_| {
            "pixels".to_owned()
        });
    }

    fn error(&mut self, fields: &mut Fields<'_>) {
        self.field(fields, "request_id", 8, "W1-ERR-001", |bytes| match number_at(bytes, 0, 8) {
            0 => "0, none that was read".to_owned(),
            other => other.to_string(),
        });
        self.field(fields, "status", 4, "W1-ERR-007", |bytes| match number_at(bytes, 0, 4) {
            400 => "400, the client's fault".to_owned(),
            500 => "500, the server's fault".to_owned(),
            other => other.to_string(),
        });
        self.field(fields, "error_code", 4, "W1-ERR-006", |bytes| {
            let code = number_at(bytes, 0, 4);
            format!("{code}, {}", ErrorCode::from_wire(u32::try_from(code).unwrap_or(0)).name())
        });
        let length = self.field(fields, "error_msg_len", 2, "W1-ERR-003", number);
        let shown = |bytes: &[u8]| format!("\"{}\"", text(bytes));
        self.data_and_trailing(fields, "error_msg", length, "W1-ERR-008", "W1-ERR-009", shown);
    }

    fn data_and_trailing(
        &mut self,
        fields: &mut Fields<'_>,
        name: &str,
        length: Option<u64>,
        requirement: &str,
        ignored: &str,
        show: impl FnOnce(&[u8]) -> String,
    ) {
        let Some(length) = length else { return };
        let left = fields.bytes.len() - fields.at;
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(left);
        if length > 0 {
            self.field(fields, name, length, requirement, show);
        }
        if left > length {
            self.field(fields, "trailing", left - length, ignored, |_| {
                "of a later version, ignored".to_owned()
            });
        }
    }

    /// A line for the next field. Returns its value, if it is a number that is there.
    fn field(
        &mut self,
        fields: &mut Fields<'_>,
        name: &str,
        size: usize,
        requirement: &str,
        show: impl FnOnce(&[u8]) -> String,
    ) -> Option<u64> {
        let rest = &fields.bytes[fields.at..];
        let there = &rest[..rest.len().min(size)];
        if there.is_empty() && size > 0 {
            return None;
        }
        let value = if there.len() == size { show(there) } else { "cut off".to_owned() };
        let mut hex: String = there.iter().take(8).map(|byte| format!("{byte:02x} ")).collect();
        hex.truncate(hex.trim_end().len());
        if there.len() > 8 {
            let _ = write!(hex, " … {} bytes", there.len());
        }
        let at = fields.start + fields.at;
        self.line(format_args!("{at:8}  {name:<18}  {hex:<36}  {value:<28}  {requirement}"));
        // Nothing stands behind the last column that is filled.
        self.text.truncate(self.text.trim_end().len());
        self.text.push('\n');
        fields.at += there.len();
        (there.len() == size && size <= 8).then(|| number_at(there, 0, size))
    }
}

/// The big-endian number in so many bytes, at most eight; 0 if they are not there.
fn number_at(bytes: &[u8], at: usize, size: usize) -> u64 {
    let bytes = bytes.get(at..at + size).unwrap_or_default();
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn number(bytes: &[u8]) -> String {
    number_at(bytes, 0, bytes.len()).to_string()
}

fn pixels(bytes: &[u8]) -> String {
    format!("{} pixels", number(bytes))
}

/// Text from a stranger, on one line.
fn text(bytes: &[u8]) -> String {
    Text::new(bytes).to_string()
}

/// Whether this is no frame but text that describes one.
fn looks_like_hex(bytes: &[u8]) -> bool {
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let digits: String = line.iter().take(80).map(|byte| char::from(*byte)).collect();
    let digits = digits.split([':', '#', '|']).next().unwrap_or_default().replace([' ', '\t'], "");
    digits.len() >= 8 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The bytes that hexadecimal digits stand for: in any groups, with comments behind `#`, or as xxd and
/// `hexdump -C` write them.
fn from_hex(text: &str) -> Result<Vec<u8>, String> {
    let is_hexdump = text.lines().any(|line| line.ends_with('|') && line.contains("  |"));
    let mut bytes = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let says = |what: String| format!("line {number}: {what}");
        let digits = if is_hexdump {
            if line.trim() == "*" {
                return Err(says("hexdump has left out what repeats; say hexdump -Cv".to_owned()));
            }
            let (digits, _) = line.split_once("  |").unwrap_or((line, ""));
            // The offset, which stands alone in the last line.
            digits.split_once(' ').map_or("", |(_, digits)| digits)
        } else if let Some((offset, rest)) = line.split_once(": ")
            && offset.bytes().all(|byte| byte.is_ascii_hexdigit())
        {
            rest.split_once("  ").map_or(rest, |(digits, _)| digits)
        } else {
            line.split('#').next().unwrap_or_default()
        };
        let mut half = None;
        for word in digits.split([' ', '\t', ',', '\r']) {
            for c in word.strip_prefix("0x").unwrap_or(word).chars() {
                let digit = c.to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                let digit = digit.ok_or_else(|| says(format!("{c:?} is no hexadecimal digit")))?;
                match half.take() {
                    None => half = Some(digit << 4),
                    Some(high) => bytes.push(high | digit),
                }
            }
        }
        if half.is_some() {
            return Err(says("there is half a byte too much".to_owned()));
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use serde_json::Value;

    use super::*;

    fn inspected(bytes: &[u8]) -> Report {
        let mut report = Report { text: String::new(), sound: true, colours: false };
        let mut text = String::new();
        let Ok(()) = report.stream::<Infallible>(bytes, |part| {
            text.push_str(part);
            Ok(())
        });
        report.text = text;
        report
    }

    /// The bytes of a vector, and the names of their fields, each where it begins.
    fn bytes_of(vector: &Value) -> (Vec<u8>, Vec<(usize, String)>) {
        let (mut bytes, mut fields) = (Vec::new(), Vec::new());
        for piece in vector["bytes"].as_array().unwrap() {
            let once = from_hex(piece["hex"].as_str().unwrap()).unwrap();
            if let Some(name) = piece["field"].as_str() {
                fields.push((bytes.len(), name.to_owned()));
            }
            for _ in 0..piece["times"].as_u64().unwrap_or(1) {
                bytes.extend(&once);
            }
        }
        (bytes, fields)
    }

    /// What the project's vectors say of bytes, and what is said of them here.
    #[test]
    fn the_vectors_are_judged_as_they_say_themselves() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../spec/vectors");
        let (mut sound, mut unsound) = (0, 0);
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "json") || path.ends_with("schema.json") {
                continue;
            }
            let file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
            for vector in file["vectors"].as_array().unwrap() {
                // A few have megabytes of the same, which take seconds in a program for debugging.
                let pieces = vector["bytes"].as_array().unwrap();
                if pieces.iter().any(|piece| piece["times"].as_u64().is_some_and(|times| times > 100_000)) {
                    continue;
                }
                let (bytes, fields) = bytes_of(vector);
                let frames = vector["expect"]["frames"].as_array().unwrap();
                let report = inspected(&bytes);
                let name = vector["name"].as_str().unwrap();
                let says = |what: &Value| {
                    let what = what.as_str().unwrap();
                    assert!(report.text.contains(what), "{name}: {what} isn't in\n{}", report.text);
                };
                // Whom a frame is for isn't in the input: this receiver takes no frames of this type.
                let others = if vector["receiver"] == "server" { ["00 02", "00 FF"] } else { ["00 01"; 2] };
                if pieces.iter().any(|piece| {
                    piece["field"] == "msg_type" && others.iter().any(|other| piece["hex"] == *other)
                }) {
                    continue;
                }
                let refused = frames.iter().any(|frame| frame.get("answer").or(frame.get("close")).is_some());
                let whole = vector["expect"]["end"] != "inside-a-frame";
                assert_eq!(report.sound, whole && !refused && !bytes.is_empty(), "{name}:\n{}", report.text);
                for frame in frames {
                    // What has no name is null.
                    for what in
                        [&frame["answer"]["name"], &frame["close"]["because"], &frame["error"]["name"]]
                    {
                        if !what.is_null() {
                            says(what);
                        }
                    }
                }
                if report.sound {
                    for (at, field) in fields {
                        // Prompts overlap in some; and these names are not those of fields.
                        if !["prompt_data", "payload", "trailing", "junk"].contains(&&*field) {
                            let line = format!("\n{at:8}  {field} ");
                            assert!(
                                report.text.contains(&line),
                                "{name}: {line:?} isn't in\n{}",
                                report.text
                            );
                        }
                    }
                }
                if report.sound { sound += 1 } else { unsound += 1 }
            }
        }
        assert!(sound > 100 && unsound > 200, "{sound} sound, {unsound} not");
    }

    #[test]
    fn what_follows_a_fault_is_shown_as_well() {
        let error =
            b"WEVE\x00\x01\x00\xFF\0\0\0\x14\0\0\0\x01\0\0\0\0\0\0\0\x07\0\0\x01\x90\0\0\0\x17\0\x02\x1b[";
        let token = [b"weave-token ".as_slice(), &[b'a'; 64], b"\n"].concat();
        let report = inspected(&[&token, b"noise".as_slice(), error, b"WEV"].concat());
        let lines: Vec<_> = report.text.lines().collect();
        assert!(!report.sound);
        assert_eq!(lines[0], "offset 0: the line with a token, 77 bytes");
        assert_eq!(lines[2], "offset 77: 5 bytes that belong to no frame");
        assert!(
            lines[4].ends_with("a server answers INVALID_MAGIC and closes, a client closes"),
            "{}",
            lines[4]
        );
        assert_eq!(lines[6], "frame 1 at offset 82: error");
        let has = |line: &str| assert!(lines.iter().any(|has| has.starts_with(line)), "{line}: {lines:#?}");
        has("      94  reserved            00 00 00 01                           1  ");
        has("  note: senders write 0 into reserved, receivers ignore it (W1-HDR-004, W1-HDR-005)");
        has("     110  error_code          00 00 00 17                           23, BUSY  ");
        has("     116  error_msg           1b 5b                                 \"\\u{1b}[\"  ");
        has("  note: BUSY comes with status 500 (W1-ERR-002)");
        has("frame 2 at offset 118: a header that is cut off");
        has("     118  magic               57 45 56                              cut off  ");
        assert_eq!(lines[lines.len() - 1], "2 frames in 121 bytes, 2 that a receiver would refuse");
        assert!(!report.text.contains(&"a".repeat(64)), "the token is shown");
    }

    #[test]
    fn the_lines_before_the_first_frame_are_told_apart() {
        let digits = "5a".repeat(32);
        let hello = format!("weave-auth 1 {digits}\n");
        let answer = format!("weave-auth 1 {digits} {digits}\n");
        let report = inspected(&[(hello + &answer + &digits + "\n").as_bytes(), &a_request()].concat());
        let lines: Vec<_> = report.text.lines().collect();
        assert_eq!(lines[0], "offset 0: a client's nonce (weave-auth 1), 78 bytes");
        assert_eq!(lines[2], "offset 78: a daemon's nonce and proof (weave-auth 1), 143 bytes");
        assert_eq!(lines[4], "offset 221: a client's proof (weave-auth 1), 65 bytes");
        assert_eq!(lines[6], "frame 1 at offset 286: request");
        assert!(report.sound && !report.text.contains(&digits));
        let report = inspected(&[digits.as_bytes(), b"\n", &a_request()].concat());
        assert!(!report.sound, "a proof is no beginning");
    }

    fn a_request() -> Vec<u8> {
        let params = request::Params { width: 64, height: 64, steps: 1, cfg_scale: 1.0, seed: 7 };
        let prompts = request::Prompts::each("cat", "dog", "cat");
        request::Request { request_id: 7, params, prompts }.emit(&mut [0; 256]).unwrap().to_vec()
    }

    #[test]
    fn a_length_that_is_not_believed_hides_nothing() {
        let mut bytes = a_request();
        bytes[8] = 0xFF;
        bytes.extend(a_request());
        let report = inspected(&bytes);
        assert!(report.text.contains("payload_len is 4278190149, must be at most 10485760 (W1-FRM-002)"));
        let follows = format!("\nframe 2 at offset {}: request\n", a_request().len());
        assert!(report.text.contains(&follows), "{}", report.text);
    }

    #[test]
    fn what_is_legal_and_odd_is_noted() {
        let mut bytes = a_request();
        bytes.extend(*b"spare");
        bytes[11] += 5;
        let report = inspected(&bytes);
        assert!(report.sound, "{}", report.text);
        let notes: Vec<_> = report.text.lines().filter(|line| line.starts_with("  note: ")).collect();
        assert_eq!(
            notes,
            [
                "  note: 5 bytes of prompt_data belong to no prompt and are ignored (W1-REQ-006)",
                "  note: the prompts differ: an engine that takes one uses that of CLIP-L (W1-REQ-008)"
            ]
        );
        assert!(!inspected(&a_request()).text.contains("W1-REQ-006"));
    }

    #[test]
    fn hexadecimal_digits_come_in_many_forms() {
        let frame = b"WEVE\x00\x01\x00\xFF\x00\x00\x00\x12\x00\x00\x00\x00\x00|".to_vec();
        let forms = [
            "57455645 0001 00ff 00000012 00000000 007c",
            "57 45 56 45  # magic \"WEVE\"\n\n00 01 00 FF\r\n\t00000012\n00000000007C # 1",
            "0x57, 0x45, 0x56, 0x45, 0x00, 0x01, 0x00, 0xff,\n0x00000012, 0x00000000, 0x00, 0x7c",
            "00000000: 5745 5645 0001 00ff 0000 0012 0000 0000  WEVE............\n00000010: 007c       .|",
            "00000000  57 45 56 45 00 01 00 ff  00 00 00 12 00 00 00 00  |WEVE............|\n\
             00000010  00 7c                                             |.||\n00000012\n",
        ];
        for form in forms {
            assert_eq!(from_hex(form), Ok(frame.clone()), "{form}");
            assert!(looks_like_hex(form.as_bytes()) || form.starts_with("0x"), "{form}");
        }
        assert_eq!(from_hex("57 45\n5 56").unwrap_err(), "line 2: there is half a byte too much");
        assert_eq!(from_hex("WEVE").unwrap_err(), "line 1: 'W' is no hexadecimal digit");
        let repeats = "00000000  00 00  |..|\n*\n00000020\n";
        assert_eq!(
            from_hex(repeats).unwrap_err(),
            "line 2: hexdump has left out what repeats; say hexdump -Cv"
        );
        assert!(!looks_like_hex(&frame) && !looks_like_hex(b"WEVE 01 02 03 04"));
    }
}
