//! An image, and what is known about how it was made.

use weave_client::{Channels, Image, Params};

/// Who makes images, as lists name it and as results tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ProviderName {
    /// The daemon.
    Local,
    /// OpenAI, or something that speaks as it does.
    Openai,
    /// Azure OpenAI.
    Azure,
}

impl ProviderName {
    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Openai => "openai",
            Self::Azure => "azure",
        }
    }
}

/// An image.
pub struct Made {
    /// Who made it.
    pub by: ProviderName,
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// What a pixel has.
    pub channels: Channels,
    /// Rows from the top, pixels from the left, one byte a channel, no padding.
    pub pixels: Vec<u8>,
    /// What else is known.
    pub how: How,
}

impl Made {
    /// What the daemon has made of `params`.
    #[must_use]
    pub fn local(image: Image, params: Params) -> Self {
        Self {
            by: ProviderName::Local,
            width: image.size.width(),
            height: image.size.height(),
            channels: image.size.channels(),
            how: How::Local { params, generation_time_ms: image.generation_time_ms, model: None },
            pixels: image.pixels,
        }
    }

    /// With the name of the model that the daemon has said it draws with. A cloud's image keeps the model that made it.
    #[must_use]
    pub fn drawn_by(mut self, name: Option<&str>) -> Self {
        if let How::Local { model, .. } = &mut self.how {
            *model = name.map(str::to_owned);
        }
        self
    }
}

/// What is known about how an image was made.
pub enum How {
    /// By the daemon: all of it.
    Local {
        /// What it was asked for.
        params: Params,
        /// What the engine took, without waiting.
        generation_time_ms: u32,
        /// The model, if the daemon has said which it draws with.
        model: Option<String>,
    },
    /// By a cloud.
    Cloud {
        /// Its model.
        model: String,
        /// What was named and had no effect.
        dropped: Vec<&'static str>,
    },
}

/// What a file is by its first bytes, if it is an image of a kind that people know.
#[must_use]
pub fn known(file: &[u8]) -> Option<&'static str> {
    let webp = file.starts_with(b"RIFF") && file.get(8..12) == Some(b"WEBP");
    let kinds: [(&[u8], _); 6] = [
        (b"\xFF\xD8\xFF", "JPEG"),
        (b"GIF8", "GIF"),
        (b"BM", "BMP"),
        (b"II*\0", "TIFF"),
        (b"MM\0*", "TIFF"),
        (b"\0\0\0 ftypavif", "AVIF"),
    ];
    let by_beginning = kinds.iter().find(|(beginning, _)| file.starts_with(beginning));
    if webp { Some("WebP") } else { by_beginning.map(|(_, name)| *name) }
}
