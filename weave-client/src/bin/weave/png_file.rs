//! The image as a PNG file that says how it was made.

use png::{BitDepth, ColorType, Encoder, EncodingError};
use serde::Serialize;
use weave_client::weave_core::limits::{MODEL_ID_SD35, VERSION};
use weave_client::{Channels, Image, Params};

/// The text chunk "Weave": all that it takes to make the image again, as JSON. Nothing else, so that
/// the same image gives the same file.
#[derive(Serialize)]
struct Recipe<'a> {
    protocol: u16,
    model_id: u32,
    prompt: &'a str,
    width: u32,
    height: u32,
    steps: u32,
    cfg_scale: f32,
    seed: u64,
}

/// Makes the file's bytes. `params` are those of the request, with the seed that was used.
pub(crate) fn encode(image: &Image, params: &Params, prompt: &str) -> Result<Vec<u8>, EncodingError> {
    let recipe = Recipe {
        protocol: VERSION,
        model_id: MODEL_ID_SD35,
        prompt,
        width: params.width,
        height: params.height,
        steps: params.steps,
        cfg_scale: params.cfg_scale,
        seed: params.seed,
    };
    let recipe = serde_json::to_string(&recipe).map_err(|error| EncodingError::IoError(error.into()))?;

    let mut file = Vec::new();
    let mut encoder = Encoder::new(&mut file, image.size.width(), image.size.height());
    encoder.set_depth(BitDepth::Eight);
    encoder.set_color(match image.size.channels() {
        Channels::Rgb => ColorType::Rgb,
        Channels::Rgba => ColorType::Rgba,
    });
    for (keyword, text) in [("parameters", parameters(params, prompt)), ("Weave", recipe)] {
        // tEXt is read everywhere, but holds Latin-1 only.
        if text.chars().all(|c| u32::from(c) <= 0xFF) {
            encoder.add_text_chunk(keyword.to_owned(), text)?;
        } else {
            encoder.add_itxt_chunk(keyword.to_owned(), text)?;
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&image.pixels)?;
    writer.finish()?;
    Ok(file)
}

/// The form that programs for Stable Diffusion have agreed on: the prompt, then a line of settings. The
/// protocol doesn't tell the sampler and the model's file; what it calls model 0 is SD 3.5.
fn parameters(params: &Params, prompt: &str) -> String {
    let Params { width, height, steps, cfg_scale, seed } = params;
    format!(
        "{prompt}\nSteps: {steps}, CFG scale: {cfg_scale}, Seed: {seed}, Size: {width}x{height}, \
         Model: SD 3.5, Version: Weave {}",
        env!("CARGO_PKG_VERSION")
    )
}
