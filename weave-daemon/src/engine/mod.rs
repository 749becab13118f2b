//! What makes images.

#[cfg(feature = "sdcpp")]
pub mod device;
pub mod memory;
pub mod pattern;
#[cfg(feature = "sdcpp")]
pub mod sdcpp;
pub mod tuning;

use std::fmt;

use weave_core::error::ErrorCode;
use weave_core::request::Params;
use weave_core::response::ImageSize;

use crate::scoreboard::Control;

/// What to draw: a request whose ranges are checked and whose seed is drawn.
#[derive(Clone, Copy)]
pub struct Generation<'a> {
    /// Size, steps, guidance; the seed is not 0.
    pub params: Params,
    /// The text, for all encoders. Has no NUL.
    pub prompt: &'a str,
}

/// An image, still in the memory in which the engine made it.
pub struct Image {
    size: ImageSize,
    pixels: Box<dyn AsRef<[u8]>>,
}

impl Image {
    /// Takes the engine's buffer over. It is given back to the engine's allocator when the image
    /// is dropped.
    ///
    /// # Errors
    /// The buffer isn't as long as the size says.
    pub fn new(size: ImageSize, pixels: impl AsRef<[u8]> + 'static) -> Result<Self, EngineError> {
        let is = pixels.as_ref().len();
        if u32::try_from(is) == Ok(size.data_len()) {
            return Ok(Self { size, pixels: Box::new(pixels) });
        }
        let text = format!("the engine made {is} bytes for an image of {}", size.data_len());
        Err(EngineError { code: ErrorCode::GpuError, text })
    }

    /// Width, height, channels.
    #[must_use]
    pub const fn size(&self) -> ImageSize {
        self.size
    }

    /// Rows from the top, pixels from the left, without padding.
    #[must_use]
    pub fn pixels(&self) -> &[u8] {
        (*self.pixels).as_ref()
    }
}

/// Why there is no image. Goes to the client as it is: no prompt and no path in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineError {
    /// GPU_ERROR, OUT_OF_MEMORY or INTERNAL.
    pub code: ErrorCode,
    /// What happened and what to do.
    pub text: String,
}

impl EngineError {
    /// The answer to a request that was cancelled. Nobody waits for it.
    #[must_use]
    pub fn cancelled() -> Self {
        Self { code: ErrorCode::Internal, text: "given up: nobody waits for this image any more".to_owned() }
    }
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether an engine has files to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// It has not read all of its model.
    Before,
    /// It has read all that it needs.
    Done,
    /// It has lost its model, and has to read that once more.
    Again,
}

/// Something that turns a prompt into pixels, one image at a time.
pub trait Engine {
    /// Draws one image. The same generation gives the same pixels. Tells `control` how far it is, and ends with
    /// [`EngineError::cancelled`] within a step once that says that the generation is cancelled.
    ///
    /// # Errors
    /// [`EngineError`]; the engine can be used again after it.
    fn generate(&mut self, generation: &Generation<'_>, control: &Control) -> Result<Image, EngineError>;

    /// Whether it still has files to read.
    fn reading(&self) -> Reading {
        Reading::Done
    }
}
