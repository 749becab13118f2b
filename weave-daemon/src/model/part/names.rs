//! By which names the engine takes the tensors of each part, and by which they are recognised in any file: one table
//! for both, so that what is said of a file follows from what would be read of it.

use std::fmt;

use super::needs::{self, LATENT};
use crate::model::header::Tensor;

/// A part of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The diffusion model.
    Mmdit,
    /// Text encoder.
    ClipL,
    /// Text encoder.
    ClipG,
    /// Text encoder.
    T5,
    /// Makes pixels of latents.
    Vae,
    /// The same, smaller and coarser.
    Taesd,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mmdit => "the diffusion model",
            Self::ClipL => "CLIP-L",
            Self::ClipG => "CLIP-G",
            Self::T5 => "T5-XXL",
            Self::Vae => "the VAE",
            Self::Taesd => "TAESD",
        })
    }
}

/// The setting of whole checkpoints.
pub const MODEL: &str = "model";

/// Beginnings of names, and whose they are. Nothing else counts, once the engine has added what [`added`] says.
const PLACES: [(&str, Part); 11] = [
    ("model.diffusion_model.", Part::Mmdit),
    ("diffusion_model.", Part::Mmdit),
    ("unet.", Part::Mmdit),
    ("transformer.", Part::Mmdit),
    ("text_encoders.clip_l", Part::ClipL),
    ("text_encoders.clip_g", Part::ClipG),
    ("text_encoders.t5xxl", Part::T5),
    ("te3.", Part::T5),
    ("first_stage_model.", Part::Vae),
    ("vae.", Part::Vae),
    ("tae.", Part::Taesd),
];

/// What the engine puts before the names in a file of one part, unless they begin with it.
fn added(setting: &str) -> &'static str {
    match setting {
        "diffusion_model" => "model.diffusion_model.",
        "clip_l" => "text_encoders.clip_l.transformer.",
        "clip_g" => "text_encoders.clip_g.transformer.",
        "t5xxl" => "text_encoders.t5xxl.transformer.",
        "vae" => "vae.",
        "taesd" => "tae.",
        _ => "",
    }
}

impl Part {
    /// Text encoders. One of them has to be there.
    pub const ENCODERS: [Self; 3] = [Self::ClipL, Self::ClipG, Self::T5];

    /// The part that a setting names, or that its file has to have.
    #[must_use]
    pub fn of_setting(setting: &str) -> Self {
        match setting {
            "clip_l" => Self::ClipL,
            "clip_g" => Self::ClipG,
            "t5xxl" => Self::T5,
            "vae" => Self::Vae,
            "taesd" => Self::Taesd,
            _ => Self::Mmdit,
        }
    }

    /// The setting that names a file of this part alone.
    #[must_use]
    pub const fn setting(self) -> &'static str {
        match self {
            Self::Mmdit => "diffusion_model",
            Self::ClipL => "clip_l",
            Self::ClipG => "clip_g",
            Self::T5 => "t5xxl",
            Self::Vae => "vae",
            Self::Taesd => "taesd",
        }
    }

    /// Which part a tensor belongs to and what it is called there, given the setting that names its
    /// file. `None`: the engine makes no use of it.
    #[must_use]
    pub fn of(setting: &str, name: &str) -> Option<(Self, String)> {
        let added = added(setting);
        let full = if name.starts_with(added) { name.to_owned() } else { format!("{added}{name}") };
        let (rest, part) =
            PLACES.into_iter().find_map(|(prefix, part)| Some((full.strip_prefix(prefix)?, part)))?;
        let rest = rest.strip_prefix(".transformer.").unwrap_or(rest);
        let name = match part {
            Self::ClipL | Self::ClipG if rest == "text_projection.weight" => {
                "text_model.text_projection".into()
            }
            Self::T5 => needs::t5_name(rest),
            Self::Vae => needs::vae_name(rest),
            _ => rest.to_owned(),
        };
        Some((part, name))
    }
}

/// Tensors that tell by their names, behind any prefix, what they are of; whether the engine knows these names.
const SIGNS: [(&str, Family, bool); 7] = [
    ("text_model.embeddings.token_embedding.weight", Family::Clip, true),
    ("model.token_embedding.weight", Family::Clip, false),
    ("shared.weight", Family::T5, true),
    ("token_embd.weight", Family::T5, true),
    ("decoder.conv_in.weight", Family::Vae, true),
    ("decoder.layers.0.weight", Family::Taesd, true),
    ("decoder.1.weight", Family::Taesd, false),
];

#[derive(Clone, Copy)]
enum Family {
    Clip,
    T5,
    Vae,
    Taesd,
}

impl Family {
    /// Which part has a tensor of this shape there, or what else it is the mark of.
    fn member(self, shape: &[u64]) -> Result<Part, String> {
        match (self, shape) {
            (Self::Clip, [_, 768]) => Ok(Part::ClipL),
            (Self::Clip, [_, 1280]) => Ok(Part::ClipG),
            (Self::Clip, [_, width]) => Err(format!("a CLIP text encoder with hidden size {width}")),
            (Self::T5, [words, width]) if (*words, *width) != (32_128, 4096) => Err(format!(
                "a T5 text encoder with hidden size {width} and {words} words (T5-XXL has 4096 and 32128)"
            )),
            (Self::T5, _) => Ok(Part::T5),
            (Self::Vae, [_, LATENT, ..]) => Ok(Part::Vae),
            (Self::Taesd, [_, LATENT, ..]) => Ok(Part::Taesd),
            (Self::Vae, [_, channels, ..]) => Err(of_latents("a VAE", *channels)),
            (Self::Taesd, [_, channels, ..]) => Err(of_latents("a TAESD", *channels)),
            (Self::Clip, _) => Err("a CLIP text encoder of an unknown size".to_owned()),
            (Self::Vae | Self::Taesd, _) => Err("a decoder of an unknown size".to_owned()),
        }
    }
}

fn of_latents(what: &str, channels: u64) -> String {
    let whose = if channels == 4 { ", as SD 1, SD 2 and SDXL have it" } else { "" };
    format!("{what} with {channels} latent channels{whose} (SD 3.5 has {LATENT})")
}

/// A part in a file, under any prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inside {
    /// Which.
    pub part: Part,
    /// The name of the tensor by which it was recognised.
    pub name: String,
    /// The same without its prefix.
    pub bare: String,
    /// Whether the engine knows that, and so all of them without their prefix.
    pub is_known: bool,
}

impl Inside {
    /// Whether the engine finds it in a file of this setting.
    #[must_use]
    pub fn is_read_in(&self, setting: &str) -> bool {
        let found = Part::of(setting, &self.name);
        // TAESD counts only where it is set.
        self.is_known
            && (setting != MODEL || self.part != Part::Taesd)
            && found.as_ref().is_some_and(|(part, _)| *part == self.part)
            && found == Part::of(self.part.setting(), &self.bare)
    }

    /// What stands before the names of its tensors.
    #[must_use]
    pub fn prefix(&self) -> &str {
        self.name.strip_suffix(&self.bare).unwrap_or_default()
    }
}

/// What is in a file, by the names and shapes of its tensors: parts of SD 3.5, and what looks like parts of other
/// models. A part is there once for each prefix.
#[must_use]
pub fn inside<'a>(
    tensors: impl Iterator<Item = (&'a str, &'a Tensor)> + Clone,
) -> (Vec<Inside>, Vec<String>) {
    let (mut parts, mut others) = (Vec::<Inside>::new(), Vec::new());
    // llama.cpp has its word for the words of every language model.
    let has_t5 = tensors.clone().any(|(name, _)| {
        ["encoder.block.", "enc.blk."].iter().any(|piece| begins_or_has(name, piece).is_some())
    });
    let mut add = |part, name: &str, at: usize, is_known| {
        if let Some((prefix, bare)) = name.split_at_checked(at)
            && !parts.iter().any(|it| it.part == part && it.prefix() == prefix)
        {
            parts.push(Inside { part, name: name.to_owned(), bare: bare.to_owned(), is_known });
        }
    };
    for (name, tensor) in tensors {
        if let Some(at) = begins_or_has(name, "joint_blocks.") {
            add(Part::Mmdit, name, at, true);
            continue;
        }
        let sign = SIGNS.into_iter().find_map(|(sign, family, is_known)| {
            let front = name.strip_suffix(sign)?;
            (front.is_empty() || front.ends_with('.')).then_some((front.len(), family, is_known))
        });
        match sign {
            None => {}
            Some((_, Family::T5, _)) if !has_t5 => {}
            Some((at, family, is_known)) => match family.member(tensor.shape()) {
                Ok(part) => add(part, name, at, is_known),
                Err(what) => others.push(what),
            },
        }
    }
    (parts, others)
}

/// Where a piece of a name begins in it: in front, or behind a point.
fn begins_or_has(name: &str, piece: &str) -> Option<usize> {
    if name.starts_with(piece) {
        return Some(0);
    }
    name.match_indices(piece).map(|(at, _)| at).find(|at| name.get(..*at).is_some_and(|s| s.ends_with('.')))
}

/// The setting by whose rules a file with these parts is read: the engine knows some names of the diffusion model in a
/// whole checkpoint only, and is given a file that has it under these as one.
#[must_use]
pub fn read_as(setting: &'static str, parts: &[Inside]) -> &'static str {
    let is_read = |setting: &str| parts.iter().any(|it| it.part == Part::Mmdit && it.is_read_in(setting));
    if setting == Part::Mmdit.setting() && !is_read(setting) && is_read(MODEL) { MODEL } else { setting }
}
