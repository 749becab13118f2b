//! The image as a PNG file that says how it was made.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Cursor};

use png::{ColorType, Decoder, DecodingError, Info, Limits, Transformations};
use serde::Deserialize;
use weave_client::png_file::{MadeBy, Picture};
use weave_client::weave_core::limits::{MAX_SIDE, MODEL_ID_SD35};
use weave_client::weave_core::request::Prompts;
use weave_client::{Error, Params, RequestError};

use crate::image::{How, Made, ProviderName, known};

/// The text chunk "Weave": all that it takes to make the image again, as JSON.
#[derive(Deserialize)]
struct Recipe<'a> {
    model_id: u32,
    prompt: Cow<'a, str>,
    width: u32,
    height: u32,
    steps: u32,
    cfg_scale: f32,
    seed: u64,
    /// What drew it, if the daemon has said so.
    #[serde(default)]
    model: Option<Cow<'a, str>>,
}

/// Who made it, which is also said of images that can't be made again.
#[derive(Deserialize)]
struct Maker<'a> {
    /// Earlier versions had none.
    #[serde(default)]
    provider: Cow<'a, str>,
}

const RECIPE: &str = "Weave";
/// More than a recipe has, with the longest prompt in escapes.
const MAX_RECIPE: usize = 1 << 16;
/// What the decoder may take beside the pixels: rows in the making, and texts as they stand in the file.
const MAX_DECODER: usize = 1 << 26;

/// Makes the file's bytes.
///
/// # Errors
/// The image doesn't have as many pixels as it says.
pub fn encode(made: &Made, prompt: &str) -> io::Result<Vec<u8>> {
    picture(made, prompt).encode()
}

/// What its file says is `weave_client`'s to decide, whose images can be checked by `weave verify` as well.
fn picture<'a>(made: &'a Made, prompt: &'a str) -> Picture<'a> {
    let (model, by) = match &made.how {
        How::Local { params, model, .. } => (model.as_deref(), MadeBy::Daemon(*params)),
        How::Cloud { model, .. } => (Some(model.as_str()), MadeBy::Other(made.by.as_str())),
    };
    let Made { width, height, channels, ref pixels, .. } = *made;
    Picture { width, height, channels, pixels, prompt, model, by }
}

/// What a file holds.
pub struct Decoded {
    /// Pixels in a row, as they are.
    pub width: u32,
    /// Rows, as they are.
    pub height: u32,
    /// Red, green, blue, alpha.
    pub pixels: Vec<[u8; 4]>,
    /// What it was made with.
    pub params: Params,
    /// What it was made of.
    pub prompt: String,
    /// What drew it, if the file says so.
    pub model: Option<String>,
}

/// Reads an image and how it was made. A file from a stranger takes little more memory than its own length: neither the
/// size in its head nor what it has compressed is believed.
///
/// # Errors
/// Why that can't be read.
pub fn decode(file: &[u8]) -> Result<Decoded, String> {
    let mut decoder = Decoder::new_with_limits(Cursor::new(file), Limits { bytes: MAX_DECODER });
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_transformations(Transformations::normalize_to_color8());
    let not_png = |error: DecodingError| match error {
        _ if known(file).is_some() => format!(
            "is a {} file, and only a PNG file from `weave generate` has both the pixels as they were and what it takes to \
             make them again",
            known(file).unwrap_or_default()
        ),
        DecodingError::IoError(_) => "is cut off, or no PNG file".to_owned(),
        error => format!("is no sound PNG file: {error}"),
    };
    let mut reader = decoder.read_info().map_err(not_png)?;
    let (width, height) = reader.info().size();
    if width.max(height) > MAX_SIDE {
        return Err(format!(
            "has {width}×{height} pixels, and an image of Weave has at most {MAX_SIDE}×{MAX_SIDE}"
        ));
    }
    let size = reader.output_buffer_size().ok_or("is too large")?;
    let mut bytes = vec![0; size];
    let frame = reader.next_frame(&mut bytes).map_err(not_png)?;
    // Text may also stand behind the pixels.
    reader.finish().map_err(not_png)?;
    let recipe = recipe(reader.info()).ok_or(
        "doesn't say how to make it: it has no text \"Weave\", which `weave generate` writes and some programs drop",
    )??;
    let unreadable = |error: &dyn fmt::Display| format!("has parameters that can't be used: {error}");
    if let Ok(Maker { provider }) = serde_json::from_str(&recipe)
        && !["", ProviderName::Local.as_str()].contains(&provider.as_ref())
    {
        return Err(format!("was made by {provider:?}, which can't make the same image again"));
    }
    let recipe: Recipe<'_> = serde_json::from_str(&recipe).map_err(|error| unreadable(&error))?;
    let Recipe { width, height, steps, cfg_scale, seed, .. } = recipe;
    let params = Params { width, height, steps, cfg_scale, seed };
    params
        .check()
        .and_then(|()| Prompts::same(&recipe.prompt).check())
        .and(match recipe.model_id {
            MODEL_ID_SD35 => Ok(()),
            other => Err(RequestError::ModelId(other)),
        })
        .map_err(|error| unreadable(&Error::Invalid(error)))?;
    if seed == 0 {
        return Err(unreadable(&"seed is 0, which is another image each time"));
    }
    let pixels = match frame.color_type {
        ColorType::Rgba => bytes.chunks_exact(4).map(|p| [p[0], p[1], p[2], p[3]]).collect(),
        ColorType::Rgb => bytes.chunks_exact(3).map(|p| [p[0], p[1], p[2], 255]).collect(),
        ColorType::GrayscaleAlpha => bytes.chunks_exact(2).map(|p| [p[0], p[0], p[0], p[1]]).collect(),
        _ => bytes.iter().map(|p| [*p, *p, *p, 255]).collect(),
    };
    let (prompt, model) = (recipe.prompt.into_owned(), recipe.model.map(Cow::into_owned));
    Ok(Decoded { width: frame.width, height: frame.height, pixels, params, prompt, model })
}

/// The first text that is called so.
fn recipe(info: &Info<'_>) -> Option<Result<String, String>> {
    let latin1 = info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == RECIPE);
    let text = latin1.map(|chunk| chunk.text.clone());
    let text = text.map(Some).or_else(|| {
        let mut chunk = info.utf8_text.iter().find(|chunk| chunk.keyword == RECIPE)?.clone();
        Some(chunk.decompress_text_with_limit(MAX_RECIPE).and_then(|()| chunk.get_text()).ok())
    })?;
    Some(text.filter(|text| text.len() <= MAX_RECIPE).ok_or_else(|| {
        format!("has a text \"{RECIPE}\" of more than {MAX_RECIPE} bytes, or one that can't be read")
    }))
}

/// The form that programs for Stable Diffusion have agreed on.
pub(crate) fn parameters(made: &Made, prompt: &str) -> String {
    picture(made, prompt).parameters()
}
