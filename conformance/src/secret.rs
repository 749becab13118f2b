//! A prompt of which nothing may come back, and how a part of it is found in a text, in whatever encoding.

use std::fmt::Write as _;

/// No three letters in a row of it occur in a word, so that each is known for a part of it.
pub const PROMPT: &str = "qzxjvwkq gzfjqvhx kwzqjxgv";

/// How a part of [`PROMPT`] stands in `text`: at least `least` characters of it, as they are (in upper or lower case,
/// backwards, with anything between them), as hexadecimal, decimal or octal numbers, or in base64.
#[must_use]
pub fn part_of_prompt_in(text: &[u8], least: usize) -> Option<String> {
    let windows = || PROMPT.as_bytes().windows(least);
    let letters = |text: &[u8]| -> String {
        let letters = text.iter().filter(|byte| byte.is_ascii_alphabetic());
        letters.map(|byte| char::from(byte.to_ascii_lowercase())).collect()
    };
    let (said, secret) = (letters(text), letters(PROMPT.as_bytes()));
    let backwards: String = secret.chars().rev().collect();
    for secret in [&secret, &backwards] {
        for part in secret.as_bytes().windows(least).filter_map(|part| std::str::from_utf8(part).ok()) {
            if said.contains(part) {
                return Some(format!("{part:?}"));
            }
        }
    }
    let text = String::from_utf8_lossy(text);
    let digits = text.to_lowercase().replace("0x", "").replace("u00", "");
    let digits: String = digits.chars().filter(char::is_ascii_hexdigit).collect();
    for part in windows() {
        let hex = part.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        if digits.contains(&hex) {
            return Some(format!("{hex} (hexadecimal)"));
        }
    }
    let numbers: Vec<&str> =
        text.split(|letter: char| !letter.is_ascii_digit()).filter(|number| !number.is_empty()).collect();
    for part in windows() {
        for (base, written) in [
            ("decimal", part.iter().map(u8::to_string).collect::<Vec<_>>()),
            ("octal", part.iter().map(|byte| format!("{byte:o}")).collect()),
        ] {
            if numbers.windows(written.len()).any(|numbers| numbers == written) {
                return Some(format!("{} ({base})", written.join(" ")));
            }
        }
    }
    // Each three bytes are four characters, whatever stands before and after them.
    let whole = least.next_multiple_of(3);
    let found = PROMPT.as_bytes().windows(whole).map(base64).find(|part| text.contains(part.as_str()));
    found.map(|part| format!("{part} (base64)"))
}

/// Of whole groups of three bytes.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks_exact(3) {
        let bits = group.iter().fold(0usize, |bits, byte| bits << 8 | usize::from(*byte));
        text.extend([18, 12, 6, 0].map(|shift| char::from(ALPHABET[bits >> shift & 63])));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found_in_every_encoding() {
        for text in [
            "steps is 0 in qzxjvwkq",
            "width is 65 (\"QZX...\")",
            "q z x",
            "xzq",
            "717a78",
            "717A786A",
            "base64 cXp4",
            "[113, 122, 120]",
            r"\161\172\170",
            "&#113;&#122;&#120;",
        ] {
            assert!(part_of_prompt_in(text.as_bytes(), 3).is_some(), "{text}");
        }
        for text in [
            "71 7a 78 6a",
            r"\x71\x7a\x78\x6a",
            r"\u0071\u007a\u0078\u006a",
            "%71%7A%78%6A",
            "0x71, 0x7a, 0x78, 0x6a",
        ] {
            assert!(part_of_prompt_in(text.as_bytes(), 4).is_some(), "{text}");
        }
        assert!(part_of_prompt_in("q\0z\0x\0".as_bytes(), 3).is_some(), "UTF-16");
    }

    #[test]
    fn other_texts_have_no_part_of_it() {
        for text in [
            "t5_offset is 77777, must be such that the 26 bytes of t5_length lie within the 78 of prompt_data",
            "magic is 77 45 56 45, must be 57 45 56 45",
            "clip_l is not UTF-8: invalid byte 0xff at 25",
            "the queue is full: 113 requests wait, 122 at most",
        ] {
            assert_eq!(part_of_prompt_in(text.as_bytes(), 3), None, "{text}");
            assert_eq!(part_of_prompt_in(text.as_bytes(), 4), None, "{text}");
        }
    }
}
