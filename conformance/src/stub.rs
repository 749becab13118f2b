//! The smallest correct server: one frame in, one frame out.

use std::io::{self, Read, Write};

use crate::draft::{Draft, checkerboard};
use crate::wire::{Expectation, HEADER_LEN, MAX_SKIPPED_PAYLOAD, Receiver, code_name, read};

/// Reads a frame and answers it. A frame that is cut off gets no answer (W1-FRM-009).
///
/// # Errors
/// The input's and the output's own.
pub fn stub(input: &mut impl Read, output: &mut impl Write) -> io::Result<()> {
    let mut frame = Vec::new();
    input.take(HEADER_LEN as u64).read_to_end(&mut frame)?;
    if let Some(len) = frame.get(8..12) {
        let payload_len = len.iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        // What is longer is not followed: the header decides.
        if payload_len <= MAX_SKIPPED_PAYLOAD {
            input.take(payload_len).read_to_end(&mut frame)?;
        }
    }
    let (expectations, _) = read(Receiver::Server, &frame);
    let answer = match expectations.first() {
        Some(Expectation::Request { fields, .. }) => {
            let [id, width, height] = ["request_id", "width", "height"].map(|name| fields.get(name));
            Draft::response(id, width, height, &checkerboard(width, height, 3)).set("generation_time_ms", 0)
        }
        Some(Expectation::Answer { request_id, code, field, .. }) => {
            Draft::error(*request_id, *code, format!("{}: {field} is wrong", code_name(*code)).as_bytes())
        }
        _ => return Ok(()),
    };
    output.write_all(&answer.bytes())?;
    output.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Fields;

    fn answer(bytes: &[u8]) -> Vec<Expectation> {
        let mut out = Vec::new();
        stub(&mut &*bytes, &mut out).unwrap();
        read(Receiver::Client, &out).0
    }

    #[test]
    fn a_request_gets_the_checkerboard_of_its_size() {
        let expectations = answer(&Draft::request(7, "x").set("height", 128).bytes());
        let [Expectation::Response { fields, image_data, trailing: 0 }] = expectations.as_slice() else {
            panic!()
        };
        let get =
            |fields: &Fields| ["request_id", "image_width", "image_height"].map(|name| fields.get(name));
        assert_eq!(get(fields), [7, 64, 128]);
        // Black at first, white after eight pixels, and after eight rows.
        let pixel = |x: usize, y: usize| image_data[3 * (y * 64 + x)];
        assert_eq!(
            [pixel(0, 0), pixel(7, 7), pixel(8, 0), pixel(0, 8), pixel(8, 8), pixel(63, 127)],
            [0, 0, 255, 255, 0, 0]
        );
    }

    #[test]
    fn anything_else_gets_the_right_error_or_nothing() {
        let code = |bytes: &[u8]| match answer(bytes).as_slice() {
            [Expectation::Error { fields, .. }] => Some((fields.get("request_id"), fields.get("error_code"))),
            _ => None,
        };
        assert_eq!(code(&Draft::request(7, "x").set("steps", 0).bytes()), Some((7, 6)));
        assert_eq!(
            code(&Draft::request(7, "x").set("payload_len", u64::from(u32::MAX)).bytes()),
            Some((0, 21))
        );
        assert_eq!(code(b"GET / HTTP/1.1\r\n\r\n"), Some((0, 1)));
        assert_eq!(answer(&Draft::request(7, "x").bytes()[..50]), []);
        assert_eq!(answer(b""), []);
    }
}
