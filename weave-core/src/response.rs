//! The generation response (msg_type 0x0002) for Stable Diffusion 3.5.
//!
//! | payload offset | size | field | value |
//! | --- | --- | --- | --- |
//! | 0 | 8 | request_id | the request's |
//! | 8 | 4 | status | 200 |
//! | 12 | 4 | generation_time_ms | what the engine took, without waiting; saturates |
//! | 16 | 4 | image_width | pixels, as in the request |
//! | 20 | 4 | image_height | pixels, as in the request |
//! | 24 | 4 | channels | 3 RGB, 4 RGBA |
//! | 28 | 4 | image_data_len | width · height · channels |
//! | 32 | … | image_data | rows from the top, pixels from the left, one byte a channel, no padding |
//!
//! A head is made and read without the pixels, which go from the engine's buffer to the socket and
//! from the socket to the client's buffer.

use core::fmt;

use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bytes::to_usize;
use crate::frame::{Frame, Header, Kind};
use crate::limits::{
    HEADER_LEN, MAX_SIDE, MIN_RESPONSE_PAYLOAD, MIN_SIDE, RESPONSE_FIXED_LEN, RESPONSE_HEAD_LEN, SIDE_STEP,
    STATUS_OK,
};

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawResponse {
    request_id: U64,
    status: U32,
    generation_time_ms: U32,
    image_width: U32,
    image_height: U32,
    channels: U32,
    image_data_len: U32,
}

const _: () = assert!(size_of::<RawResponse>() == RESPONSE_FIXED_LEN);

/// How a pixel is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channels {
    /// Red, green, blue: 3 bytes.
    Rgb,
    /// Red, green, blue, alpha: 4 bytes.
    Rgba,
}

impl Channels {
    /// Bytes of a pixel, which is the number on the wire.
    #[must_use]
    pub const fn count(self) -> u32 {
        match self {
            Self::Rgb => 3,
            Self::Rgba => 4,
        }
    }
}

/// The size of an image that v1 can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ImageSize {
    width: u32,
    height: u32,
    channels: Channels,
}

impl ImageSize {
    /// Checks the three numbers as they stand on the wire.
    ///
    /// # Errors
    /// The first that is out of its range.
    pub fn new(width: u32, height: u32, channels: u32) -> Result<Self, ResponseError> {
        for (name, side) in [("image_width", width), ("image_height", height)] {
            if !(MIN_SIDE..=MAX_SIDE).contains(&side) || !side.is_multiple_of(SIDE_STEP) {
                return Err(ResponseError::Side { name, side });
            }
        }
        let channels = match channels {
            3 => Channels::Rgb,
            4 => Channels::Rgba,
            other => return Err(ResponseError::Channels(other)),
        };
        Ok(Self { width, height, channels })
    }

    /// Pixels in a row.
    #[must_use]
    pub const fn width(&self) -> u32 {
        self.width
    }

    /// Rows.
    #[must_use]
    pub const fn height(&self) -> u32 {
        self.height
    }

    /// How a pixel is stored.
    #[must_use]
    pub const fn channels(&self) -> Channels {
        self.channels
    }

    /// Bytes of the image: width · height · channels, at most 16,777,216.
    #[must_use]
    pub const fn data_len(&self) -> u32 {
        // Both sides are at most 2048 and there are at most 4 channels: nothing saturates.
        self.width.saturating_mul(self.height).saturating_mul(self.channels.count())
    }
}

/// A response without its pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// The request that is answered.
    pub request_id: u64,
    /// Milliseconds that the engine took.
    pub generation_time_ms: u32,
    /// Size of the image.
    pub image: ImageSize,
}

/// A whole response, for callers that hold all of it anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response<'a> {
    /// Everything but the pixels.
    pub head: ResponseHead,
    /// [`ImageSize::data_len`] bytes, still where they were received.
    pub pixels: &'a [u8],
}

/// Reads a response frame. Copies nothing; bytes after the pixels are ignored.
///
/// # Errors
/// [`ResponseError`]: the response contradicts itself.
pub fn parse<'a>(frame: &Frame<'a>) -> Result<Response<'a>, ResponseError> {
    let payload_len = frame.header().payload_len();
    let Some((fields, after)) = frame.payload().split_first_chunk::<RESPONSE_FIXED_LEN>() else {
        return Err(match frame.header().kind() {
            Kind::Response => ResponseError::Short { payload_len, need: MIN_RESPONSE_PAYLOAD },
            _ => ResponseError::NotAResponse,
        });
    };
    let (head, _) = ResponseHead::parse(frame.header(), fields)?;
    let data_len = head.image.data_len();
    let pixels = after
        .get(..to_usize(data_len))
        .ok_or(ResponseError::Short { payload_len, need: data_len.saturating_add(MIN_RESPONSE_PAYLOAD) })?;
    Ok(Response { head, pixels })
}

impl ResponseHead {
    /// Reads what follows a response's header, up to the first pixel. Also says how many bytes of
    /// the payload come after the pixels: a later version may append fields there, to be skipped.
    ///
    /// # Errors
    /// [`ResponseError`]: the response contradicts itself.
    pub fn parse(header: Header, fields: &[u8; RESPONSE_FIXED_LEN]) -> Result<(Self, u32), ResponseError> {
        if !header.is_supported() || header.kind() != Kind::Response {
            return Err(ResponseError::NotAResponse);
        }
        let payload_len = header.payload_len();
        let Some(after_fields) = payload_len.checked_sub(MIN_RESPONSE_PAYLOAD) else {
            return Err(ResponseError::Short { payload_len, need: MIN_RESPONSE_PAYLOAD });
        };
        let raw: RawResponse = zerocopy::transmute!(*fields);
        if raw.status.get() != STATUS_OK {
            return Err(ResponseError::Status(raw.status.get()));
        }
        let image = ImageSize::new(raw.image_width.get(), raw.image_height.get(), raw.channels.get())?;
        let data_len = image.data_len();
        if raw.image_data_len.get() != data_len {
            return Err(ResponseError::DataLen { is: raw.image_data_len.get(), must_be: data_len });
        }
        let Some(trailing) = after_fields.checked_sub(data_len) else {
            return Err(ResponseError::Short {
                payload_len,
                need: data_len.saturating_add(MIN_RESPONSE_PAYLOAD),
            });
        };
        let head = Self {
            request_id: raw.request_id.get(),
            generation_time_ms: raw.generation_time_ms.get(),
            image,
        };
        Ok((head, trailing))
    }

    /// The bytes that stand before the pixels: header and fields.
    #[must_use]
    pub fn emit(&self) -> [u8; RESPONSE_HEAD_LEN] {
        #[derive(IntoBytes, Immutable, Unaligned)]
        #[repr(C)]
        struct Head {
            header: [u8; HEADER_LEN],
            fields: RawResponse,
        }
        let data_len = self.image.data_len();
        zerocopy::transmute!(Head {
            header: Header::emit(Kind::Response, data_len.saturating_add(MIN_RESPONSE_PAYLOAD)),
            fields: RawResponse {
                request_id: U64::new(self.request_id),
                status: U32::new(STATUS_OK),
                generation_time_ms: U32::new(self.generation_time_ms),
                image_width: U32::new(self.image.width),
                image_height: U32::new(self.image.height),
                channels: U32::new(self.image.channels.count()),
                image_data_len: U32::new(data_len),
            },
        })
    }
}

/// Why a response can't be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResponseError {
    /// The frame is of another version or type.
    NotAResponse,
    /// The payload ends before the image does.
    Short {
        /// What the header announces.
        payload_len: u32,
        /// What fields and pixels take.
        need: u32,
    },
    /// The status isn't 200.
    Status(u32),
    /// A side of the image is out of range.
    Side {
        /// The field's name.
        name: &'static str,
        /// Its value.
        side: u32,
    },
    /// The number of channels is neither 3 nor 4.
    Channels(u32),
    /// image_data_len isn't width · height · channels.
    DataLen {
        /// What the response says.
        is: u32,
        /// What the dimensions make.
        must_be: u32,
    },
}

impl ResponseError {
    /// The requirement of the specification by which a client doesn't believe the response.
    #[must_use]
    pub const fn requirement(self) -> &'static str {
        match self {
            Self::NotAResponse => "W1-FRM-010",
            Self::Short { .. } => "W1-RSP-006",
            Self::Status(_) | Self::Side { .. } | Self::Channels(_) | Self::DataLen { .. } => "W1-RSP-005",
        }
    }
}

impl fmt::Display for ResponseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotAResponse => f.write_str("the frame is not a version 1 response"),
            Self::Short { payload_len, need } => {
                write!(f, "payload_len is {payload_len}, must be at least {need}")
            }
            Self::Status(status) => write!(f, "status is {status}, must be {STATUS_OK} in a response"),
            Self::Side { name, side } => {
                write!(f, "{name} is {side}, must be {MIN_SIDE} to {MAX_SIDE} and a multiple of {SIDE_STEP}")
            }
            Self::Channels(channels) => write!(f, "channels is {channels}, must be 3 or 4"),
            Self::DataLen { is, must_be } => {
                write!(f, "image_data_len is {is}, width, height and channels make {must_be}")
            }
        }
    }
}

impl core::error::Error for ResponseError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Split, split};
    use crate::limits::MAX_RESPONSE_PAYLOAD;

    const DATA_LEN: u32 = 64 * 128 * 3;
    const FRAME_LEN: usize = RESPONSE_HEAD_LEN + DATA_LEN as usize;

    #[rustfmt::skip]
    static HEAD: [u8; 48] = [
        0x57, 0x45, 0x56, 0x45, 0, 1, 0, 2, 0, 0, 0x60, 0x20, 0, 0, 0, 0, // header
        1, 2, 3, 4, 5, 6, 7, 8, // request_id
        0, 0, 0, 200, // status
        0, 0, 0x12, 0x34, // generation_time_ms
        0, 0, 0, 64, 0, 0, 0, 128, 0, 0, 0, 3, // width, height, channels
        0, 0, 0x60, 0, // image_data_len
    ];

    fn values() -> ResponseHead {
        let image = ImageSize::new(64, 128, 3).unwrap();
        ResponseHead { request_id: 0x0102_0304_0506_0708, generation_time_ms: 0x1234, image }
    }

    /// The known head before pixels of 7, in a payload of another length.
    fn cut_to(payload_len: u32) -> Result<ResponseHead, ResponseError> {
        let mut bytes = [7; FRAME_LEN + 1];
        bytes[..HEAD.len()].copy_from_slice(&HEAD);
        bytes[8..12].copy_from_slice(&payload_len.to_be_bytes());
        match split(&bytes[..HEADER_LEN + payload_len as usize], MAX_RESPONSE_PAYLOAD) {
            Ok(Split::Frame(frame, [])) => parse(&frame).map(|response| {
                assert_eq!(response.pixels, [7; DATA_LEN as usize]);
                response.head
            }),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn known_bytes_are_taken_apart() {
        let (header, fields) = HEAD.split_first_chunk().unwrap();
        let header = Header::parse(header, MAX_RESPONSE_PAYLOAD).unwrap();
        assert_eq!(ResponseHead::parse(header, fields.first_chunk().unwrap()), Ok((values(), 0)));
        assert_eq!(cut_to(MIN_RESPONSE_PAYLOAD + DATA_LEN), Ok(values()));
        assert_eq!(cut_to(MIN_RESPONSE_PAYLOAD + DATA_LEN + 1), Ok(values()), "a later version's field");
    }

    #[test]
    fn values_are_rebuilt_to_the_same_bytes() {
        assert_eq!(values().emit(), HEAD);
    }

    #[test]
    fn a_payload_without_room_for_the_fields_is_short() {
        for payload_len in 0..MIN_RESPONSE_PAYLOAD {
            assert_eq!(cut_to(payload_len), Err(ResponseError::Short { payload_len, need: 32 }));
        }
    }

    #[test]
    fn a_payload_without_room_for_the_pixels_is_short() {
        for payload_len in [32, 33, 32 + DATA_LEN - 1] {
            let short = ResponseError::Short { payload_len, need: 32 + DATA_LEN };
            assert_eq!(cut_to(payload_len), Err(short));
        }
    }
}
