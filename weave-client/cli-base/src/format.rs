//! The files that an image can be written as.

use std::path::Path;

use image::codecs::jpeg::JpegEncoder;
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder as _, ImageError};
use weave_client::Channels;

use crate::image::Made;
use crate::png_file::{self, parameters};

/// A kind of file. Each of them says how the image was made, in the way that programs for Stable Diffusion look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Without loss, and with all that it takes to make the image again.
    Png,
    /// With this quality, 0 to 100.
    Jpeg(u8),
    /// Without loss.
    Webp,
}

/// The quality of a JPEG for which nobody has said one: no difference can be seen, in a third of the bytes that 100 takes.
const QUALITY: u8 = 95;

impl Format {
    /// What the suffix of a file's name asks for; PNG without one. A suffix has a letter: `cat.2` has none.
    ///
    /// # Errors
    /// The suffix, if it stands for something else.
    pub fn of(path: &Path) -> Result<Self, String> {
        let suffix = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        match suffix.as_str() {
            "png" => Ok(Self::Png),
            "jpg" | "jpeg" => Ok(Self::Jpeg(QUALITY)),
            "webp" => Ok(Self::Webp),
            other if !other.contains(char::is_alphabetic) => Ok(Self::Png),
            _ => Err(suffix),
        }
    }

    /// As programs ask for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg(_) => "jpeg",
            Self::Webp => "webp",
        }
    }

    /// Makes the file's bytes.
    ///
    /// # Errors
    /// The image doesn't have as many pixels as it says. The words are for the log.
    pub fn encode(self, made: &Made, prompt: &str) -> Result<Vec<u8>, String> {
        let mut file = Vec::new();
        let (width, height) = (made.width, made.height);
        let done: Result<(), ImageError> = match self {
            Self::Png => return png_file::encode(made, prompt).map_err(|error| error.to_string()),
            Self::Jpeg(quality) => {
                let mut encoder = JpegEncoder::new_with_quality(&mut file, quality.max(1));
                encoder
                    .set_exif_metadata(exif(&parameters(made, prompt)))
                    .map_err(|error| error.to_string())?;
                encoder.write_image(&opaque(made), width, height, ExtendedColorType::Rgb8)
            }
            Self::Webp => {
                let color = match made.channels {
                    Channels::Rgb => ExtendedColorType::Rgb8,
                    Channels::Rgba => ExtendedColorType::Rgba8,
                };
                let mut encoder = WebPEncoder::new_lossless(&mut file);
                encoder
                    .set_exif_metadata(exif(&parameters(made, prompt)))
                    .map_err(|error| error.to_string())?;
                encoder.write_image(&made.pixels, width, height, color)
            }
        };
        done.map(|()| file).map_err(|error| error.to_string())
    }
}

/// A text as the comment of Exif, which is where programs for Stable Diffusion look for parameters in files other than PNG:
/// a TIFF without an image, big-endian, as is the text.
fn exif(text: &str) -> Vec<u8> {
    const LONG: u16 = 4;
    const UNDEFINED: u16 = 7;
    /// The beginning, then two directories of one entry each: where the text comes to stand.
    const TEXT_AT: u32 = 8 + 2 * DIRECTORY;
    const DIRECTORY: u32 = 2 + 12 + 4;

    let comment: Vec<u8> =
        b"UNICODE\0".iter().copied().chain(text.encode_utf16().flat_map(u16::to_be_bytes)).collect();
    let mut exif = Vec::with_capacity(comment.len() + 64);
    exif.extend(b"MM\0*");
    exif.extend(8u32.to_be_bytes());
    let length = u32::try_from(comment.len()).unwrap_or(u32::MAX);
    // "Exif" is where the second directory stands, and "UserComment" is in it.
    for (tag, kind, count, value) in
        [(0x8769u16, LONG, 1, 8 + DIRECTORY), (0x9286, UNDEFINED, length, TEXT_AT)]
    {
        exif.extend(1u16.to_be_bytes());
        exif.extend(tag.to_be_bytes());
        exif.extend(kind.to_be_bytes());
        exif.extend([count, value, 0].map(u32::to_be_bytes).concat());
    }
    exif.extend(comment);
    exif
}

/// The pixels without an alpha channel, on white.
fn opaque(made: &Made) -> Vec<u8> {
    match made.channels {
        Channels::Rgb => made.pixels.clone(),
        Channels::Rgba => {
            let (pixels, _) = made.pixels.as_chunks::<4>();
            let on_white = |value: u8, alpha: u8| {
                let (value, alpha) = (u32::from(value), u32::from(alpha));
                // At most 255.
                u8::try_from((value * alpha + 255 * (255 - alpha) + 127) / 255).unwrap_or(u8::MAX)
            };
            pixels
                .iter()
                .flat_map(|[red, green, blue, alpha]| {
                    [red, green, blue].map(|value| on_white(*value, *alpha))
                })
                .collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use image::ImageDecoder as _;
    use image::codecs::jpeg::JpegDecoder;
    use image::codecs::webp::WebPDecoder;
    use std::io::Cursor;

    use super::*;
    use crate::image::{How, ProviderName, known};

    #[test]
    fn a_suffix_says_what_it_becomes() {
        let of = |name: &str| Format::of(Path::new(name));
        for name in ["cat", "a.b/cat", "cat.png", "cat.PNG", ".png", "cat.2", "cat."] {
            assert_eq!(of(name), Ok(Format::Png), "{name}");
        }
        for name in ["cat.jpg", "cat.JPEG", "cat.x.Jpg"] {
            assert_eq!(of(name), Ok(Format::Jpeg(QUALITY)), "{name}");
        }
        assert_eq!(of("cat.WebP"), Ok(Format::Webp));
        for suffix in ["gif", "bmp", "tiff", "avif", "jp2", "pgn"] {
            assert_eq!(of(&format!("cat.{suffix}")), Err(suffix.to_owned()));
        }
    }

    /// The comment of Exif, as a reader takes it apart.
    fn comment(exif: &[u8]) -> String {
        let long = |at: usize| u32::from_be_bytes(exif[at..at + 4].try_into().unwrap()) as usize;
        assert_eq!(exif[..4], *b"MM\0*");
        let entry = |directory: usize, tag: [u8; 2]| {
            assert_eq!(exif[directory..directory + 4], [0, 1, tag[0], tag[1]]);
            assert_eq!(long(directory + 14), 0, "no more directories");
            (long(directory + 6), long(directory + 10))
        };
        let (_, second) = entry(long(4), [0x87, 0x69]);
        let (length, at) = entry(second, [0x92, 0x86]);
        let text = exif[at..at + length].strip_prefix(b"UNICODE\0").unwrap();
        let units = text.chunks(2).map(|unit| u16::from_be_bytes([unit[0], unit[1]]));
        String::from_utf16(&units.collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn jpeg_and_webp_have_the_parameters_where_others_look_for_them() {
        let params = weave_client::Params { width: 64, height: 64, steps: 8, cfg_scale: 1.5, seed: 7 };
        let how = How::Local { params, generation_time_ms: 1, model: Some("demo model".to_owned()) };
        let (pixels, channels) = (vec![7; 64 * 64 * 3], Channels::Rgb);
        let made = Made { by: ProviderName::Local, width: 64, height: 64, channels, pixels, how };
        for prompt in ["a cat", "eine Katze, größer 🐈", &"é".repeat(1024)] {
            let wanted = parameters(&made, prompt);
            assert!(wanted.contains("Seed: 7, Size: 64x64, Model: demo model"), "{wanted}");
            let file = Cursor::new(Format::Jpeg(95).encode(&made, prompt).unwrap());
            assert_eq!(known(file.get_ref()), Some("JPEG"));
            let exif = JpegDecoder::new(file).unwrap().exif_metadata().unwrap().unwrap();
            assert_eq!(comment(&exif), wanted);
            let file = Cursor::new(Format::Webp.encode(&made, prompt).unwrap());
            assert_eq!(known(file.get_ref()), Some("WebP"));
            let exif = WebPDecoder::new(file).unwrap().exif_metadata().unwrap().unwrap();
            assert_eq!(comment(&exif), wanted);
        }
    }

    #[test]
    fn jpeg_has_no_transparency_and_webp_keeps_every_bit() {
        let pixels = [[255, 0, 0, 255], [0, 0, 0, 0]].concat().repeat(64 * 32);
        let how = How::Cloud { model: String::new(), dropped: Vec::new() };
        let (width, height) = (64, 64);
        let made = Made { by: ProviderName::Openai, width, height, channels: Channels::Rgba, pixels, how };
        assert_eq!(opaque(&made)[..6], [255, 0, 0, 255, 255, 255]);
        let read = |format: Format| image::load_from_memory(&format.encode(&made, "x").unwrap()).unwrap();
        assert_eq!(read(Format::Webp).into_rgba8().into_raw(), made.pixels);
        assert_eq!(read(Format::Png).into_rgba8().into_raw(), made.pixels);
        assert_eq!(read(Format::Jpeg(100)).width(), 64);
        let sizes = [0, 50, 100].map(|quality| Format::Jpeg(quality).encode(&made, "x").unwrap().len());
        assert!(sizes.is_sorted() && sizes[0] < sizes[2], "{sizes:?}");
    }
}
