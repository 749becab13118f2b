//! Words of somebody else, as they may be shown.
//!
//! A terminal obeys control characters, and so may a file that is read line by line. Some other characters
//! show the text around them in another order, or hide it. What is received stays as it is; this is about
//! what is put before a person.

use core::fmt::{self, Write};

/// Whether a character may be shown as it is, wherever it comes from. These may not:
///
/// | characters | because |
/// | --- | --- |
/// | U+0000 to U+001F, U+007F to U+009F | terminals obey them; line ends are among them |
/// | U+2028, U+2029 | they end a line too |
/// | U+061C, U+200E, U+200F, U+202A to U+202E, U+2066 to U+2069 | they turn the direction of text around |
/// | U+00AD, U+034F, U+180B to U+180F, U+200B, U+2060 to U+2065, U+206A to U+206F, U+FEFF | they are invisible |
/// | U+115F, U+1160, U+17B4, U+17B5, U+3164, U+FFA0 | so are these, which count as letters |
/// | U+FFF9 to U+FFFB, U+1BCA0 to U+1BCA3, U+1D173 to U+1D17A | they annotate or format, and are invisible |
/// | U+E0000 to U+E0FFF | tags and selectors in which whole texts can be hidden |
///
/// U+200C and U+200D stay, without which Persian, Indic scripts and many emoji can't be written, and so do
/// U+FE00 to U+FE0F, which choose between forms of the character before them.
#[must_use]
pub const fn is_shown(c: char) -> bool {
    !matches!(
        c,
        '\0'..='\u{1f}'
            | '\u{7f}'..='\u{9f}'
            | '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'
            | '\u{200e}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

/// Shows bytes from a peer: what isn't UTF-8 is replaced, and what [may not be shown](is_shown) is escaped, as
/// in `\u{1b}`.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a>(&'a [u8]);

impl<'a> Text<'a> {
    /// Of these bytes.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if is_shown(c) {
                    f.write_char(c)?;
                } else {
                    write!(f, "{}", c.escape_default())?;
                }
            }
            if !chunk.invalid().is_empty() {
                f.write_char(char::REPLACEMENT_CHARACTER)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::ToString;

    use super::*;

    #[test]
    fn what_orders_or_hides_other_text_is_not_shown() {
        // Each end of each range that Unicode has for it, and what stands beside it.
        let refused = "\0\u{1b}\n\u{1f}\u{7f}\u{85}\u{9b}\u{9f}\u{ad}\u{34f}\u{61c}\u{115f}\u{1160}\u{17b4}\u{17b5}\
            \u{180b}\u{180e}\u{200b}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202e}\u{2060}\u{2066}\u{2069}\
            \u{206f}\u{3164}\u{feff}\u{ffa0}\u{fff9}\u{fffb}\u{1bca0}\u{1d173}\u{e0001}\u{e007f}\u{e01ef}";
        for c in refused.chars() {
            assert!(!is_shown(c), "{c:?}");
        }
        let shown = " ~\u{a0}\u{ac}\u{ae}ß\u{600}م\u{200c}\u{200d}\u{2027}\u{202f}\u{2070}宇\u{fe0f}\u{fffc}\u{fffd}\
            \u{1f408}\u{dffff}\u{e1000}\u{10ffff}";
        for c in shown.chars() {
            assert!(is_shown(c), "{c:?}");
        }
        assert!(('\0'..=char::MAX).all(|c| !c.is_control() || !is_shown(c)));
    }

    #[test]
    fn what_is_not_shown_is_escaped_and_what_is_no_text_is_replaced() {
        let text = Text::new(b"a\x1b[2J\xe2\x80\xaeb\xff\xc3").to_string();
        assert_eq!(text, "a\\u{1b}[2J\\u{202e}b\u{fffd}\u{fffd}");
        assert_eq!(Text::new("größer 猫 🐈".as_bytes()).to_string(), "größer 猫 🐈");
    }
}
