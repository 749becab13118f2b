//! What people call a model, and what to ask of it where nobody says otherwise.

use std::path::Path;

use serde::Serialize;

use super::Found;
use super::ModelFiles;
use super::part::{Content, Family};

/// A model as those who use it see it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Profile {
    /// What people call it.
    pub name: &'static str,
    /// Whether it is no real model, but one to try the programs with.
    pub toy: bool,
    /// What it can draw, where that isn't everything.
    pub draws: Option<&'static str>,
    /// What to ask for.
    pub defaults: Defaults,
}

/// What to ask for where nobody says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Defaults {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// Denoising steps.
    pub steps: u32,
    /// Guidance scale.
    pub cfg_scale: f32,
}

impl Defaults {
    const fn square(side: u32, steps: u32, cfg_scale: f32) -> Self {
        Self { width: side, height: side, steps, cfg_scale }
    }
}

impl Profile {
    /// The built-in model.
    pub const DEMO: Self = Self {
        name: "demo model",
        toy: true,
        draws: Some("coloured shapes on coloured backgrounds"),
        defaults: Defaults::square(128, 8, 1.0),
    };

    /// The engine that needs none.
    pub const PATTERN: Self = Self {
        name: "test pattern",
        toy: true,
        draws: Some("a checkerboard or a gradient, whatever the prompt says"),
        defaults: Defaults::square(512, 28, 7.0),
    };

    const fn real(name: &'static str, steps: u32, cfg_scale: f32) -> Self {
        Self { name, toy: false, draws: None, defaults: Defaults::square(512, steps, cfg_scale) }
    }
}

impl ModelFiles {
    /// What these files are, given what [`check`](Self::check) has found in them.
    #[must_use]
    pub fn profile(&self, found: Option<&Found>) -> Profile {
        let Some(found) = found else { return Profile::DEMO };
        let is_turbo = self.model.as_deref().or(self.diffusion_model.as_deref()).is_some_and(is_turbo);
        match found.parts().find_map(|(_, content)| Content::family(content)) {
            Some(Family::Sd35Medium) => Profile::real("Stable Diffusion 3.5 Medium", 40, 4.5),
            Some(Family::Sd35Large) if is_turbo => Profile::real("Stable Diffusion 3.5 Large Turbo", 4, 1.0),
            Some(Family::Sd35Large) => Profile::real("Stable Diffusion 3.5 Large", 28, 3.5),
            Some(Family::Sd3Medium) => Profile::real("Stable Diffusion 3 Medium", 28, 7.0),
            Some(Family::Other) | None => {
                Profile::real("Stable Diffusion 3.5, of a size of its own", 28, 4.5)
            }
        }
    }
}

/// Whether a diffusion model is distilled for few steps. Its tensors are those of the one that it was made of, so only
/// the name of its file, or of the folder that it was downloaded to, tells.
fn is_turbo(path: &Path) -> bool {
    let names = path.iter().rev().take(2);
    names.into_iter().any(|name| name.to_string_lossy().to_lowercase().contains("turbo"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turbo_is_told_by_the_name() {
        for path in ["/m/sd3.5_large_turbo.safetensors", "SD3.5-Large-Turbo-Q4_0.gguf", "sd-turbo/model.gguf"]
        {
            assert!(is_turbo(Path::new(path)), "{path}");
        }
        for path in ["/m/sd3.5_large.safetensors", "/turbo/models/sd3.5_large.safetensors"] {
            assert!(!is_turbo(Path::new(path)), "{path}");
        }
    }
}
