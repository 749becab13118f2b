//! What a cloud answers: read, understood and decoded within bounds.
//!
//! Whoever answers may mean harm, so nothing here takes more memory than the image that was asked for has reason to. Nor
//! does anything that a cloud has worded get any further: it may be the key, in one form or another.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Cursor, Read};
use std::marker::PhantomData;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use image::{DynamicImage, ImageDecoder as _, ImageFormat, ImageReader, Limits};
use png::{ColorType, Decoder, Transformations};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::error::Category;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use weave_client::{Channels, ErrorKind};

use super::ask::{Ask, Cause};

/// Longest answer: an image of [`MAX_SIDE`] that doesn't compress well, in base64.
const MAX_ANSWER: u64 = 64 << 20;
/// Largest width and height.
const MAX_SIDE: u32 = 4096;
/// What a file may have beside its pixels.
const MAX_METADATA: u64 = 1 << 20;
/// Bytes that all answers take together while they are read and decoded. A single one takes at most 322 MiB: its text, its
/// file, and twelve bytes a pixel for a JPEG.
const MEMORY: u64 = 512 << 20;
/// In which they are counted.
const UNIT: u64 = 1 << 20;

/// What answers may take of the memory, all together.
#[derive(Clone, Debug)]
pub(super) struct Memory(Arc<Semaphore>);

impl Memory {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(usize::try_from(MEMORY / UNIT).unwrap_or(usize::MAX))))
    }

    fn take(&self, bytes: u64) -> Result<OwnedSemaphorePermit, Cause> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        Arc::clone(&self.0).try_acquire_many_owned(units).map_err(|_| {
            let what = "its answer would take more memory than others under way leave; try again later";
            Cause::Cloud(ErrorKind::Busy, what.to_owned())
        })
    }
}

/// An image from a cloud.
pub(super) struct Drawn {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) channels: Channels,
    pub(super) pixels: Vec<u8>,
}

/// Longest answer to what was asked for.
fn max_answer(ask: &Ask) -> u64 {
    if !ask.named.size {
        return MAX_ANSWER;
    }
    // Four bytes a pixel, what deflate adds where it can't compress, all of it in base64, and the words around it.
    let pixels = 4 * u64::from(ask.params.width) * u64::from(ask.params.height);
    let file = pixels + pixels / 64 + MAX_METADATA;
    MAX_ANSWER.min(file * 4 / 3 + (64 << 10))
}

/// Reads an answer that isn't an error. The errors of `body` are for `broken`.
pub(super) fn read(
    body: impl Read,
    ask: &Ask,
    memory: &Memory,
    broken: impl Fn(io::Error) -> Cause,
) -> Result<Drawn, Cause> {
    let limit = max_answer(ask);
    let mut body = body.take(limit + 1);
    let (mut text, mut held) = (Vec::new(), memory.take(0)?);
    loop {
        // The text, and what is decoded of it.
        held.merge(memory.take(2 * UNIT)?);
        if body.by_ref().take(UNIT).read_to_end(&mut text).map_err(&broken)? == 0 {
            break;
        }
    }
    if text.len() as u64 > limit {
        return Err(garbage(format_args!("is longer than {limit} bytes")));
    }
    let file = file(&text)?;
    drop(text);
    decode(file, ask, memory)
}

/// The file in an answer's JSON.
fn file(text: &[u8]) -> Result<Vec<u8>, Cause> {
    let answer: Answer = serde_json::from_slice(text).map_err(|error| match error.classify() {
        Category::Data => garbage(format_args!("has no image")),
        _ => garbage(format_args!("is no JSON")),
    })?;
    let image = answer.data.0.ok_or_else(|| garbage(format_args!("has no image")))?;
    match (image.b64_json, image.url) {
        (Some(Text(encoded)), _) => {
            BASE64_STANDARD.decode(encoded.as_bytes()).map_err(|_| garbage(format_args!("has broken base64")))
        }
        (None, Some(_)) => Err(garbage(format_args!(
            "has a link instead of an image; for DALL·E behind another name say which model it is"
        ))),
        (None, None) => Err(garbage(format_args!("has no image"))),
    }
}

fn garbage(what: fmt::Arguments<'_>) -> Cause {
    Cause::Cloud(ErrorKind::Failed, format!("its answer {what}"))
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow, default)]
    data: First<Image<'a>>,
}

#[derive(Deserialize)]
struct Image<'a> {
    #[serde(borrow)]
    b64_json: Option<Text<'a>>,
    url: Option<IgnoredAny>,
}

/// Not copied if it stands there as it is.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The first of a list: one was asked for, and nobody knows how many there are.
struct First<T>(Option<T>);

impl<T> Default for First<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for First<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Of<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Of<T> {
            type Value = First<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<First<T>, A::Error> {
                let first = list.next_element()?;
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(First(first))
            }
        }

        deserializer.deserialize_seq(Of(PhantomData))
    }
}

/// PNG, JPEG or WebP.
fn decode(file: Vec<u8>, ask: &Ask, memory: &Memory) -> Result<Drawn, Cause> {
    let decoded = match image::guess_format(&file) {
        Ok(ImageFormat::Png) => decode_png(file, ask, memory),
        Ok(format @ (ImageFormat::Jpeg | ImageFormat::WebP)) => decode_other(file, format, ask, memory),
        _ => Err(Undecoded::Broken),
    };
    decoded.map_err(|error| match error {
        Undecoded::Refused(cause) => cause,
        Undecoded::Broken => garbage(format_args!("has no image that can be read")),
    })
}

enum Undecoded {
    Refused(Cause),
    Broken,
}

impl From<png::DecodingError> for Undecoded {
    fn from(_: png::DecodingError) -> Self {
        Self::Broken
    }
}

impl From<image::ImageError> for Undecoded {
    fn from(_: image::ImageError) -> Self {
        Self::Broken
    }
}

/// Memory for an image that may have this size, with so many bytes a pixel.
fn take(
    (width, height): (u32, u32),
    bytes: u64,
    ask: &Ask,
    memory: &Memory,
) -> Result<OwnedSemaphorePermit, Undecoded> {
    let asked = (ask.params.width, ask.params.height);
    if width > MAX_SIDE || height > MAX_SIDE {
        return Err(Undecoded::Broken);
    }
    if ask.named.size && (width, height) != asked {
        let what = format_args!("is {width}×{height}, not {}×{}", asked.0, asked.1);
        return Err(Undecoded::Refused(garbage(what)));
    }
    memory.take(u64::from(width) * u64::from(height) * bytes).map_err(Undecoded::Refused)
}

/// Its pixels with eight bits a channel, and nothing else of it.
fn decode_png(file: Vec<u8>, ask: &Ask, memory: &Memory) -> Result<Drawn, Undecoded> {
    let limits = png::Limits { bytes: usize::try_from(MAX_METADATA).unwrap_or(usize::MAX) };
    let mut decoder = Decoder::new_with_limits(Cursor::new(file), limits);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_transformations(Transformations::normalize_to_color8());
    let (width, height) = decoder.read_header_info()?.size();
    let _held = take((width, height), 8, ask, memory)?;
    let mut reader = decoder.read_info()?;
    let mut pixels = vec![0; reader.output_buffer_size().ok_or(Undecoded::Broken)?];
    let info = reader.next_frame(&mut pixels)?;
    pixels.truncate(info.buffer_size());
    let (channels, pixels) = match info.color_type {
        ColorType::Rgb => (Channels::Rgb, pixels),
        ColorType::Rgba => (Channels::Rgba, pixels),
        ColorType::Grayscale => (Channels::Rgb, pixels.iter().flat_map(|gray| [*gray; 3]).collect()),
        ColorType::GrayscaleAlpha => {
            let (pixels, _) = pixels.as_chunks::<2>();
            (Channels::Rgba, pixels.iter().flat_map(|[gray, alpha]| [*gray, *gray, *gray, *alpha]).collect())
        }
        // The decoder has replaced them by colours.
        ColorType::Indexed => return Err(Undecoded::Broken),
    };
    Ok(Drawn { width, height, channels, pixels })
}

fn decode_other(file: Vec<u8>, format: ImageFormat, ask: &Ask, memory: &Memory) -> Result<Drawn, Undecoded> {
    let mut reader = ImageReader::with_format(Cursor::new(file), format);
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(u64::from(MAX_SIDE) * u64::from(MAX_SIDE) * 4 + (16 << 20));
    reader.limits(limits);
    let decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    // A progressive JPEG has two bytes for each coefficient, beside the pixels.
    let _held = take((width, height), 12, ask, memory)?;
    let image = DynamicImage::from_decoder(decoder)?;
    let (channels, pixels) = match image.color().has_alpha() {
        true => (Channels::Rgba, image.into_rgba8().into_raw()),
        false => (Channels::Rgb, image.into_rgb8().into_raw()),
    };
    Ok(Drawn { width, height, channels, pixels })
}

/// Codes by which clouds say what is wrong. No other is passed on.
const CODES: [&str; 40] = [
    "DeploymentNotFound",
    "Forbidden",
    "InternalServerError",
    "NotFound",
    "OperationNotSupported",
    "PermissionDenied",
    "ServiceUnavailable",
    "Unauthorized",
    "account_deactivated",
    "billing_hard_limit_reached",
    "busy",
    "contentFilter",
    "content_filter",
    "content_policy_violation",
    "generation_failed",
    "image_generation_user_error",
    "insufficient_quota",
    "internal_error",
    "invalid_api_key",
    "invalid_json",
    "invalid_organization",
    "invalid_request_error",
    "invalid_size",
    "invalid_type",
    "invalid_value",
    "missing_required_parameter",
    "model_not_found",
    "moderation_blocked",
    "not_found",
    "out_of_memory",
    "permission_error",
    "rate_limit_error",
    "rate_limit_exceeded",
    "request_refused",
    "request_too_large",
    "server_error",
    "unavailable",
    "unknown_parameter",
    "unsupported_parameter",
    "unsupported_value",
];

/// What of a request an error may be about.
const PARAMS: [&str; 6] = ["model", "n", "prompt", "response_format", "size", "user"];

/// What is known of the error in an answer: its status, and its code and parameter if they are known.
pub(super) fn describe(status: u16, body: &[u8]) -> String {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let error = &body["error"];
    let known = |list: &[&'static str], value: &Value| {
        value.as_str().and_then(|text| list.iter().find(|known| **known == text).copied())
    };
    let code = known(&CODES, &error["code"]).or_else(|| known(&CODES, &error["type"]));
    let words = [code, known(&PARAMS, &error["param"])].into_iter().flatten();
    words.fold(status.to_string(), |words, word| format!("{words}, {word}"))
}

#[cfg(test)]
mod tests {
    use image::{GrayAlphaImage, GrayImage, RgbImage, RgbaImage};
    use serde_json::json;
    use weave_client::Params;

    use super::super::ask::Named;
    use super::*;

    fn ask(size: Option<(u32, u32)>) -> Ask {
        let (width, height) = size.unwrap_or((512, 512));
        let params = Params { width, height, steps: 1, cfg_scale: 1.0, seed: 1 };
        Ask {
            prompt: "x".to_owned(),
            params,
            request_id: 1,
            named: Named { size: size.is_some(), ..Named::default() },
        }
    }

    fn answer(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut file = Cursor::new(Vec::new());
        image.write_to(&mut file, format).unwrap();
        json!({ "data": [{ "b64_json": BASE64_STANDARD.encode(file.into_inner()) }] })
            .to_string()
            .into_bytes()
    }

    fn drawn(answer: &[u8], size: Option<(u32, u32)>, memory: &Memory) -> Result<Drawn, Cause> {
        read(answer, &ask(size), memory, |error| panic!("{error}"))
    }

    #[test]
    fn every_kind_of_file_gives_its_pixels() {
        let byte = |x: u32, y: u32, channel: u32| u8::try_from((x * 7 + y * 3 + channel * 50) % 256).unwrap();
        let gray = GrayImage::from_fn(64, 65, |x, y| [byte(x, y, 0)].into());
        let gray_alpha = GrayAlphaImage::from_fn(64, 65, |x, y| [byte(x, y, 0), byte(x, y, 1)].into());
        let rgb = RgbImage::from_fn(64, 65, |x, y| [0, 1, 2].map(|channel| byte(x, y, channel)).into());
        let rgba = RgbaImage::from_fn(64, 65, |x, y| [0, 1, 2, 3].map(|channel| byte(x, y, channel)).into());
        let images: [DynamicImage; 4] = [gray.into(), gray_alpha.into(), rgb.into(), rgba.into()];
        let memory = Memory::new();
        for image in &images {
            let deep: DynamicImage = match image.color().has_alpha() {
                true => image.to_rgba16().into(),
                false => image.to_rgb16().into(),
            };
            for (image, format) in
                [(image, ImageFormat::Png), (&deep, ImageFormat::Png), (image, ImageFormat::WebP)]
            {
                if format == ImageFormat::WebP && image.color().channel_count() < 3 {
                    continue;
                }
                for size in [None, Some((64, 65))] {
                    let drawn = drawn(&answer(image, format), size, &memory)
                        .unwrap_or_else(|error| panic!("{error}"));
                    let pixels = match drawn.channels {
                        Channels::Rgb => image.to_rgb8().into_raw(),
                        Channels::Rgba => image.to_rgba8().into_raw(),
                    };
                    assert_eq!(drawn.channels == Channels::Rgba, image.color().has_alpha());
                    assert!(
                        drawn.pixels == pixels && (drawn.width, drawn.height) == (64, 65),
                        "{:?}",
                        image.color()
                    );
                }
            }
        }
        for image in [&images[0], &images[2]] {
            let drawn = drawn(&answer(image, ImageFormat::Jpeg), None, &memory)
                .unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((drawn.channels, drawn.pixels.len()), (Channels::Rgb, 3 * 64 * 65));
        }
        assert_eq!(memory.0.available_permits() as u64, MEMORY / UNIT, "nothing is held");
    }

    #[test]
    fn answers_share_the_memory_that_there_is() {
        let image = answer(&RgbImage::new(1024, 1024).into(), ImageFormat::Png);
        let memory = Memory::new();
        // Reading takes two units at the beginning and two at the end, decoding eight.
        let others = memory.take(MEMORY - 12 * UNIT).unwrap();
        assert!(drawn(&image, None, &memory).is_ok());
        let one_more = memory.take(1).unwrap();
        let refused = drawn(&image, None, &memory).err().unwrap();
        assert_eq!(refused.kind(), Some(ErrorKind::Busy));
        drop((others, one_more));
        assert_eq!(memory.0.available_permits() as u64, MEMORY / UNIT);
        // The largest fits if it is alone.
        let side = u64::from(MAX_SIDE);
        assert!(2 * (MAX_ANSWER + UNIT) + 12 * side * side <= MEMORY);
    }

    #[test]
    fn who_asks_for_little_takes_little() {
        let long = |size| max_answer(&ask(size));
        assert!(long(Some((64, 64))) < 2 << 20);
        // Noise with an alpha channel, which can't be compressed, in base64.
        let noise = 4 * 2048 * 2048 * 4 / 3;
        assert!((noise + noise / 100..noise + noise / 10).contains(&long(Some((2048, 2048)))));
        assert_eq!((long(None), long(Some((4096, 4096)))), (MAX_ANSWER, MAX_ANSWER));
    }
}
