//! Text files as editors and shells of all systems write them.

use std::fmt;

/// Why something isn't text that can be read. Goes on after the file's name, and never repeats what is in it. Bytes are
/// counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotText {
    /// From this byte on it isn't UTF-8.
    Utf8(usize),
    /// It begins as UTF-16 does, and isn't from this byte on.
    Utf16(usize),
    /// This byte is the first NUL: text has none, unless it is UTF-16 that doesn't say so.
    Nul(usize),
}

impl fmt::Display for NotText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Utf8(at) => write!(
                f,
                "is not UTF-8 text from its byte {at} on (Latin-1 or Windows-1252, perhaps); save it as UTF-8"
            ),
            Self::Utf16(at) => {
                write!(f, "begins as UTF-16 and is damaged from its byte {at} on; save it as UTF-8")
            }
            Self::Nul(at) => write!(
                f,
                "has a NUL as its byte {at}, which no text has (UTF-16 without a byte order mark, perhaps); save it as UTF-8"
            ),
        }
    }
}

impl std::error::Error for NotText {}

/// The text in a file: UTF-8, or UTF-16 with the mark that Windows' programs put in front of it. The mark is left away, as
/// is that of UTF-8, and all line ends are those of Unix.
///
/// # Errors
/// [`NotText`]
pub fn text(bytes: &[u8]) -> Result<String, NotText> {
    let text = match bytes {
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes)?,
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes)?,
        _ => {
            let rest = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
            if let Some(at) = bytes.iter().position(|byte| *byte == 0) {
                return Err(NotText::Nul(at));
            }
            let before = bytes.len() - rest.len();
            let text = std::str::from_utf8(rest);
            text.map_err(|error| NotText::Utf8(before + error.valid_up_to()))?.to_owned()
        }
    };
    if text.contains('\r') {
        return Ok(text.replace("\r\n", "\n").replace('\r', "\n"));
    }
    Ok(text)
}

/// UTF-16 behind its mark, of two bytes.
fn utf16(rest: &[u8], unit: fn([u8; 2]) -> u16) -> Result<String, NotText> {
    let (pairs, last) = rest.as_chunks::<2>();
    let mut text = String::with_capacity(pairs.len());
    let mut at = 2;
    for c in char::decode_utf16(pairs.iter().map(|pair| unit(*pair))) {
        match c {
            Ok('\0') => return Err(NotText::Nul(at)),
            Ok(c) => {
                text.push(c);
                at += 2 * c.len_utf16();
            }
            Err(_) => return Err(NotText::Utf16(at)),
        }
    }
    if last.is_empty() { Ok(text) } else { Err(NotText::Utf16(at)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A text as Windows' programs write it.
    fn encoded(text: &str, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        "\u{feff}".encode_utf16().chain(text.encode_utf16()).flat_map(bytes).collect()
    }

    #[test]
    fn every_systems_text_is_the_same() {
        let text = "a \u{e9}l\u{e9}phant \u{1f418}\nand a \u{732b}\n";
        let crlf = text.replace('\n', "\r\n");
        for (what, bytes) in [
            ("UTF-8", text.as_bytes().to_vec()),
            ("with a mark", [b"\xef\xbb\xbf", text.as_bytes()].concat()),
            ("CR LF", crlf.clone().into_bytes()),
            ("CR", text.replace('\n', "\r").into_bytes()),
            ("UTF-16 LE", encoded(&crlf, u16::to_le_bytes)),
            ("UTF-16 BE", encoded(&crlf, u16::to_be_bytes)),
        ] {
            assert_eq!(super::text(&bytes).as_deref(), Ok(text), "{what}");
        }
        for nothing in [&b""[..], b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"] {
            assert_eq!(super::text(nothing).as_deref(), Ok(""));
        }
    }

    #[test]
    fn what_is_no_text_is_told_by_its_place() {
        for (bytes, error) in [
            (&b"caf\xe9 noir"[..], NotText::Utf8(3)),
            (b"\xef\xbb\xbfcaf\xe9", NotText::Utf8(6)),
            (b"\xff", NotText::Utf8(0)),
            (b"a\0b", NotText::Nul(1)),
            (b"c\0a\0t\0", NotText::Nul(1)),
            (b"\xff\xfea\0\0\0", NotText::Nul(4)),
            (b"\xff\xfea\0b", NotText::Utf16(4)),
            (b"\xff\xfea\0\x3d\xd8b\0", NotText::Utf16(4)),
            // UTF-32.
            (b"\xff\xfe\0\0a\0\0\0", NotText::Nul(2)),
        ] {
            assert_eq!(text(bytes), Err(error), "{bytes:?}");
            let words = error.to_string();
            assert!(words.contains("save it as UTF-8") && !words.contains("caf"), "{words}");
        }
    }
}
