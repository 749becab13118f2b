//! The files that an image can be asked for as.

use image::codecs::jpeg::JpegEncoder;
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder as _, ImageError};
use weave_cli_base::image::Made;
use weave_cli_base::png_file;
use weave_client::Channels;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Says how the image was made.
    Png,
    /// With this quality, 0 to 100.
    Jpeg(u8),
    /// Without loss.
    Webp,
}

impl Format {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg(_) => "jpeg",
            Self::Webp => "webp",
        }
    }

    /// Makes the file's bytes. The words of a failure are for the log.
    pub(crate) fn encode(self, made: &Made, prompt: &str) -> Result<Vec<u8>, String> {
        let mut file = Vec::new();
        let done: Result<(), ImageError> = match self {
            Self::Png => return png_file::encode(made, prompt).map_err(|error| error.to_string()),
            Self::Jpeg(quality) => JpegEncoder::new_with_quality(&mut file, quality.max(1)).write_image(
                &opaque(made),
                made.width,
                made.height,
                ExtendedColorType::Rgb8,
            ),
            Self::Webp => {
                let color = match made.channels {
                    Channels::Rgb => ExtendedColorType::Rgb8,
                    Channels::Rgba => ExtendedColorType::Rgba8,
                };
                WebPEncoder::new_lossless(&mut file).write_image(&made.pixels, made.width, made.height, color)
            }
        };
        done.map(|()| file).map_err(|error| error.to_string())
    }
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
    use weave_cli_base::image::{How, ProviderName};

    use super::*;

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
