//! PNG files that say how their image was made, as `weave` writes them and `weave verify` reads them.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use png::{BitDepth, ColorType, Encoder};
use serde::ser::{Serialize, SerializeStruct, Serializer};
use weave_core::limits::{MODEL_ID_SD35, VERSION};
use weave_core::request::Params;
use weave_core::response::Channels;

use crate::client::Image;

/// What `weave verify` reads: all that it takes to make the image again, as JSON.
const RECIPE: &str = "Weave";

/// An image, and what its file says about it.
#[derive(Clone, Copy)]
pub struct Picture<'a> {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// What a pixel has.
    pub channels: Channels,
    /// Rows from the top, pixels from the left, one byte a channel, no padding.
    pub pixels: &'a [u8],
    /// What was to be drawn.
    pub prompt: &'a str,
    /// The model's name, for people, if it is known: the protocol doesn't tell it.
    pub model: Option<&'a str>,
    /// Who has made it.
    pub by: MadeBy<'a>,
}

/// Who has made an image.
#[derive(Clone, Copy)]
pub enum MadeBy<'a> {
    /// A daemon, with these parameters, which make the same image again. Width and height are the [`Picture`]'s.
    Daemon(Params),
    /// Another provider of images, of this name, which can't make it again.
    Other(&'a str),
}

impl Picture<'_> {
    /// The file's bytes. The same image and words give the same file.
    ///
    /// # Errors
    /// There are not as many pixels as there should be.
    pub fn encode(&self) -> io::Result<Vec<u8>> {
        let recipe = serde_json::to_string(&Recipe(self))?;
        let mut file = Vec::new();
        let mut encoder = Encoder::new(&mut file, self.width, self.height);
        encoder.set_depth(BitDepth::Eight);
        encoder.set_color(match self.channels {
            Channels::Rgb => ColorType::Rgb,
            Channels::Rgba => ColorType::Rgba,
        });
        for (keyword, text) in [("parameters", self.parameters()), (RECIPE, recipe)] {
            // tEXt is read everywhere, but holds Latin-1 only.
            if text.chars().all(|c| u32::from(c) <= 0xFF) {
                encoder.add_text_chunk(keyword.to_owned(), text)?;
            } else {
                encoder.add_itxt_chunk(keyword.to_owned(), text)?;
            }
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(self.pixels)?;
        writer.finish()?;
        Ok(file)
    }

    /// The form that programs for Stable Diffusion have agreed on: the prompt, then a line of settings. The
    /// protocol doesn't tell the sampler, without which some of them don't take the line for settings.
    #[must_use]
    pub fn parameters(&self) -> String {
        let Self { width, height, prompt, model, .. } = self;
        let settings = match self.by {
            MadeBy::Daemon(Params { steps, cfg_scale, seed, .. }) => {
                format!("Steps: {steps}, Sampler: unknown, CFG scale: {cfg_scale}, Seed: {seed}, ")
            }
            MadeBy::Other(_) => String::new(),
        };
        // A comma would end it.
        let model =
            model.map(|model| format!(", Model: {}", model.replace([',', '\n'], " "))).unwrap_or_default();
        let version = env!("CARGO_PKG_VERSION");
        format!("{prompt}\n{settings}Size: {width}x{height}{model}, Version: Weave {version}")
    }
}

/// The recipe's JSON: of an image that can't be made again, what is known.
struct Recipe<'a>(&'a Picture<'a>);

impl Serialize for Recipe<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Picture { width, height, prompt, model, by, .. } = self.0;
        let mut fields = serializer.serialize_struct(RECIPE, 10)?;
        if let MadeBy::Daemon(_) = by {
            fields.serialize_field("protocol", &VERSION)?;
            fields.serialize_field("model_id", &MODEL_ID_SD35)?;
        }
        fields.serialize_field("prompt", prompt)?;
        fields.serialize_field("width", width)?;
        fields.serialize_field("height", height)?;
        match by {
            MadeBy::Daemon(Params { steps, cfg_scale, seed, .. }) => {
                fields.serialize_field("steps", steps)?;
                fields.serialize_field("cfg_scale", cfg_scale)?;
                fields.serialize_field("seed", seed)?;
                fields.serialize_field("provider", "local")?;
            }
            MadeBy::Other(provider) => {
                fields.serialize_field("provider", provider)?;
            }
        }
        if let Some(model) = model {
            fields.serialize_field("model", model)?;
        }
        fields.end()
    }
}

impl Image {
    /// The image as a PNG file that says how it was made.
    ///
    /// # Errors
    /// There are not as many pixels as there should be, because somebody has changed them.
    pub fn png(&self) -> io::Result<Vec<u8>> {
        let picture = Picture {
            width: self.size.width(),
            height: self.size.height(),
            channels: self.size.channels(),
            pixels: &self.pixels,
            prompt: &self.prompt,
            model: None,
            by: MadeBy::Daemon(self.params),
        };
        picture.encode()
    }

    /// Writes the image to a PNG file that says how it was made, so that `weave verify` can make it again. The file has this
    /// name when it is complete, and replaces one that has it already.
    ///
    /// # Errors
    /// The file can't be written, or its name is that of something else than a file: then nothing is changed.
    pub fn save(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let path = path.as_ref();
        let written = self.png().and_then(|png| write_whole(path, &png));
        written
            .map_err(|error| io::Error::new(error.kind(), format!("can't write {}: {error}", path.display())))
    }
}

/// Writes a file that is there complete or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // A link's target is what gets replaced.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut permissions = None;
    if let Ok(there) = fs::metadata(&path) {
        if !there.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is there and is no regular file"));
        }
        permissions = Some(there.permissions());
    }
    let mut drawn = [0; 8];
    getrandom::fill(&mut drawn)?;
    let unfinished = path.with_file_name(format!(".weave.{:016x}.part", u64::from_ne_bytes(drawn)));
    // Never a file or a link that somebody else has put there.
    let mut file = OpenOptions::new().write(true).create_new(true).open(&unfinished)?;
    let written = file
        .write_all(bytes)
        .and_then(|()| permissions.map_or(Ok(()), |permissions| file.set_permissions(permissions)))
        .and_then(|()| fs::rename(&unfinished, &path));
    if written.is_err() {
        // What has failed says more than that it can't be removed either.
        let _ = fs::remove_file(&unfinished);
    }
    written
}
