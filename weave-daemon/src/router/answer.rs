//! Reading a worker's answer up to its first pixel: bytes in; more, a head, an error or a violation out.

use std::fmt;

use weave_core::error::{self, ErrorCode, ErrorParseError};
use weave_core::frame::{FrameError, Header, Kind, Split, split};
use weave_core::limits::{
    HEADER_LEN, MAX_ERROR_FRAME, MAX_RESPONSE_PAYLOAD, RESPONSE_FIXED_LEN, RESPONSE_HEAD_LEN,
};
use weave_core::request::Request;
use weave_core::response::{ImageSize, ResponseError, ResponseHead};

/// What a worker was asked for, as far as its answer has to agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) request_id: u64,
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) steps: u32,
}

impl Asked {
    pub(super) const fn by(request: &Request<'_>) -> Self {
        let Request { request_id, params, .. } = request;
        Self { request_id: *request_id, width: params.width, height: params.height, steps: params.steps }
    }

    pub(super) fn pixels(self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }
}

/// What an answer turned out to be.
#[derive(Debug)]
pub(super) enum Heard {
    /// It goes on; there is more to read.
    More,
    /// The head of a response, in [`Answer::head`]. So many bytes follow it.
    Head(usize),
    /// An error, all of it in [`Answer::frame`].
    Error(ErrorCode),
}

/// The beginning of an answer, as far as it was read: the head of a response, or a whole error.
pub(super) struct Answer {
    bytes: [u8; MAX_ERROR_FRAME],
    /// Bytes that are read.
    len: usize,
    /// Bytes that are to be read before more can be said.
    wanted: usize,
    /// The header, once it was read.
    header: Option<Header>,
}

impl Answer {
    pub(super) const fn new() -> Self {
        Self { bytes: [0; MAX_ERROR_FRAME], len: 0, wanted: HEADER_LEN, header: None }
    }

    /// The next answer begins.
    pub(super) fn begin(&mut self) {
        (self.len, self.wanted, self.header) = (0, HEADER_LEN, None);
    }

    /// Where to read to.
    pub(super) fn spare(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.len..self.wanted).unwrap_or_default()
    }

    /// `n` bytes were read into [`spare`](Self::spare). An answer that was heard to its end stays
    /// until the next one [begins](Self::begin).
    pub(super) fn filled(&mut self, n: usize, asked: Asked) -> Result<Heard, Violation> {
        self.len += n;
        if self.len < self.wanted {
            return Ok(Heard::More);
        }
        let header = match self.header {
            Some(header) => header,
            None => {
                let header = self.read_header()?;
                // An error without a payload is wrong, and all there.
                if self.wanted > HEADER_LEN {
                    return Ok(Heard::More);
                }
                header
            }
        };
        if header.kind() == Kind::Response { self.read_head(header, asked) } else { self.read_error(asked) }
    }

    /// The head of a response, once it was [heard](Heard::Head).
    pub(super) fn head(&self) -> &[u8] {
        &self.bytes[..RESPONSE_HEAD_LEN]
    }

    /// What was read: all of an error, once it was [heard](Heard::Error).
    pub(super) fn frame(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn read_header(&mut self) -> Result<Header, Violation> {
        let (header, _) = self.bytes.split_first_chunk().ok_or(Violation::Unasked)?;
        let header = Header::parse(header, MAX_RESPONSE_PAYLOAD).map_err(Violation::Frame)?;
        let payload_len = usize::try_from(header.payload_len()).unwrap_or(usize::MAX);
        self.wanted = match header.kind() {
            Kind::Response => RESPONSE_HEAD_LEN,
            Kind::Error if payload_len <= MAX_ERROR_FRAME - HEADER_LEN => HEADER_LEN + payload_len,
            _ => return Err(Violation::Kind(header)),
        };
        self.header = Some(header);
        Ok(header)
    }

    fn read_head(&self, header: Header, asked: Asked) -> Result<Heard, Violation> {
        let fields = self.head().last_chunk::<RESPONSE_FIXED_LEN>().ok_or(Violation::Unasked)?;
        let (head, trailing) = ResponseHead::parse(header, fields).map_err(Violation::Response)?;
        if head.request_id != asked.request_id {
            return Err(Violation::RequestId(head.request_id));
        }
        if (head.image.width(), head.image.height()) != (asked.width, asked.height) {
            return Err(Violation::Size(head.image));
        }
        let len = head.image.data_len().saturating_add(trailing);
        Ok(Heard::Head(usize::try_from(len).unwrap_or(usize::MAX)))
    }

    fn read_error(&self, asked: Asked) -> Result<Heard, Violation> {
        let Ok(Split::Frame(frame, _)) = split(self.frame(), MAX_RESPONSE_PAYLOAD) else {
            return Err(Violation::Unasked);
        };
        let error = error::parse(&frame).map_err(Violation::Error)?;
        if error.request_id != asked.request_id {
            return Err(Violation::RequestId(error.request_id));
        }
        Ok(Heard::Error(error.code))
    }
}

/// How a worker broke the protocol.
#[derive(Clone, Copy, Debug)]
pub(super) enum Violation {
    Unasked,
    Frame(FrameError),
    Kind(Header),
    Response(ResponseError),
    Error(ErrorParseError),
    RequestId(u64),
    Size(ImageSize),
    NoWarmUp(ErrorCode),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unasked => f.write_str("sent what nothing asked for"),
            Self::Frame(error) => error.fmt(f),
            Self::Kind(header) => {
                write!(f, "answered with {:?} of {} bytes", header.kind(), header.payload_len())
            }
            Self::Response(error) => error.fmt(f),
            Self::Error(error) => error.fmt(f),
            Self::RequestId(id) => write!(f, "answered request {id}, which it was not given"),
            Self::Size(size) => {
                write!(f, "made {}×{} pixels, not what was asked", size.width(), size.height())
            }
            Self::NoWarmUp(code) => write!(f, "can't make an image to warm up: {code}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Asked = Asked { request_id: 7, width: 64, height: 128, steps: 1 };

    fn head(request_id: u64, width: u32, height: u32) -> Vec<u8> {
        let image = ImageSize::new(width, height, 3).unwrap();
        ResponseHead { request_id, generation_time_ms: 1, image }.emit().to_vec()
    }

    fn error(request_id: u64) -> Vec<u8> {
        let mut out = [0; MAX_ERROR_FRAME];
        error::emit_frame(request_id, ErrorCode::OutOfMemory, "no room", &mut out).to_vec()
    }

    /// What is heard of `bytes` when so many come at a time, and how many were read.
    fn hear(bytes: &[u8], at_a_time: usize) -> (Result<Heard, Violation>, usize) {
        let (mut answer, mut read) = (Answer::new(), 0);
        loop {
            let spare = answer.spare();
            let n = spare.len().min(at_a_time).min(bytes.len() - read);
            assert!(n > 0, "{read} of {} bytes, and nothing was heard", bytes.len());
            spare[..n].copy_from_slice(&bytes[read..read + n]);
            read += n;
            match answer.filled(n, ASKED) {
                Ok(Heard::More) => {}
                heard => return (heard, read),
            }
        }
    }

    #[test]
    fn a_head_is_heard_before_the_first_pixel_however_it_is_cut() {
        let mut bytes = head(7, 64, 128);
        bytes.extend([0xA5; 100]);
        for at_a_time in [1, 5, 16, 48, 1000] {
            let (heard, read) = hear(&bytes, at_a_time);
            assert!(matches!(heard, Ok(Heard::Head(24_576))), "{heard:?}");
            assert_eq!(read, RESPONSE_HEAD_LEN);
        }
    }

    #[test]
    fn an_error_is_heard_whole() {
        let bytes = error(7);
        for at_a_time in [1, 17, 1000] {
            let (heard, read) = hear(&bytes, at_a_time);
            assert!(matches!(heard, Ok(Heard::Error(ErrorCode::OutOfMemory))), "{heard:?}");
            assert_eq!(read, bytes.len());
        }
    }

    #[test]
    fn an_answer_to_something_else_is_a_violation() {
        for (bytes, expected) in [
            (head(8, 64, 128), "answered request 8, which it was not given"),
            (error(8), "answered request 8, which it was not given"),
            (head(7, 128, 64), "made 128×64 pixels, not what was asked"),
        ] {
            let (heard, _) = hear(&bytes, 1000);
            assert_eq!(heard.unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn what_is_no_answer_is_a_violation_as_soon_as_its_header_is_there() {
        let mut request = head(7, 64, 128);
        request[7] = 1;
        let mut long_error = error(7);
        long_error[8..12].copy_from_slice(&300_u32.to_be_bytes());
        let mut empty_error = error(7);
        empty_error[8..12].fill(0);
        for bytes in [request, long_error, empty_error, b"GET / HTTP/1.1\r\n".to_vec()] {
            let (heard, read) = hear(&bytes, 1);
            assert!(heard.is_err());
            assert_eq!(read, HEADER_LEN);
        }
    }
}
