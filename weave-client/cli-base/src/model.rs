//! What the daemon draws with: the page `/model` of its administrative socket.

use serde::Deserialize;
use weave_client::Params;

#[cfg(unix)]
use crate::admin::AdminSocket;
#[cfg(unix)]
use crate::exit::Failure;

/// The model that a daemon draws with, and what to ask of it where nobody says otherwise.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Model {
    /// What people call it: "Stable Diffusion 3.5 Medium", "demo model", "test pattern".
    pub name: String,
    /// Whether it is no real model, but one to try the programs with.
    pub toy: bool,
    /// In a sentence what it can draw, where that isn't everything.
    pub draws: Option<String>,
    /// What the operator has set, or what suits the model.
    pub defaults: Defaults,
}

/// What to ask for where nobody says otherwise.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
pub struct Defaults {
    /// In pixels: 64 to 2048, a multiple of 64.
    pub width: u32,
    /// In pixels: 64 to 2048, a multiple of 64.
    pub height: u32,
    /// Denoising steps: 1 to 100.
    pub steps: u32,
    /// Guidance scale: 0 to 20.
    pub cfg_scale: f32,
}

impl Model {
    /// Asks for it. `None`: the daemon doesn't say, as those before this page.
    ///
    /// # Errors
    /// The daemon doesn't answer, or something else does.
    #[cfg(unix)]
    pub fn ask(from: &AdminSocket) -> Result<Option<Self>, Failure> {
        let Some(page) = from.ask("/model")? else { return Ok(None) };
        let model: Self = serde_json::from_value(page).map_err(|_| from.not_weave())?;
        model.params().check().map_err(|_| from.not_weave())?;
        Ok(Some(model))
    }

    /// The defaults; the seed is drawn.
    #[must_use]
    pub const fn params(&self) -> Params {
        let Defaults { width, height, steps, cfg_scale } = self.defaults;
        Params { width, height, steps, cfg_scale, seed: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_read() {
        let page = r#"{"name":"demo model","toy":true,"draws":"coloured shapes","later":1,
            "defaults":{"width":128,"height":128,"steps":8,"cfg_scale":1.0}}"#;
        let model: Model = serde_json::from_str(page).unwrap();
        assert_eq!((model.name.as_str(), model.toy), ("demo model", true));
        assert_eq!(model.params(), Params { width: 128, height: 128, steps: 8, cfg_scale: 1.0, seed: 0 });
    }
}
