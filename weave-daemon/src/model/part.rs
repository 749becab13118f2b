//! The parts of SD 3.5: which tensors the engine asks each of them for, and by which names it takes
//! them.
//!
//! This follows the engine's loader: what passes here, it loads, and what it would refuse with a line
//! in its log is named here first. The tests hold both against each other.

mod fault;
mod mmdit;
mod needs;
mod tensors;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::header::{Shape, Tensor};
pub use fault::Fault;
pub(super) use mmdit::Family;
use mmdit::Mmdit;
use needs::{Clip, LATENT, Need, Needs};
pub use tensors::Tensors;
use tensors::{loaded, same};

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

impl Part {
    /// Text encoders. One of them has to be there.
    pub const ENCODERS: [Self; 3] = [Self::ClipL, Self::ClipG, Self::T5];

    /// Which part a tensor belongs to and what it is called there, given the setting that names its
    /// file. `None`: the engine makes no use of it.
    #[must_use]
    pub fn of(setting: &str, name: &str) -> Option<(Self, String)> {
        // The engine puts this before the names in a file of a part.
        let added = match setting {
            "diffusion_model" => "model.diffusion_model.",
            "clip_l" => "text_encoders.clip_l.transformer.",
            "clip_g" => "text_encoders.clip_g.transformer.",
            "t5xxl" => "text_encoders.t5xxl.transformer.",
            "vae" => "vae.",
            "taesd" => "tae.",
            _ => "",
        };
        let full = if name.starts_with(added) { name.to_owned() } else { format!("{added}{name}") };
        let places: [(&str, Self); 10] = [
            ("model.diffusion_model.", Self::Mmdit),
            ("diffusion_model.", Self::Mmdit),
            ("unet.", Self::Mmdit),
            ("transformer.", Self::Mmdit),
            ("text_encoders.clip_l", Self::ClipL),
            ("text_encoders.clip_g", Self::ClipG),
            ("text_encoders.t5xxl", Self::T5),
            ("first_stage_model.", Self::Vae),
            ("vae.", Self::Vae),
            ("tae.", Self::Taesd),
        ];
        let (rest, part) =
            places.into_iter().find_map(|(prefix, part)| Some((full.strip_prefix(prefix)?, part)))?;
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

    /// What the engine asks for, given what is there.
    fn needs(self, tensors: &Tensors<'_>) -> Vec<Need> {
        let mut needs = Needs::default();
        match self {
            Self::Mmdit => needs::mmdit(&mut needs, &Mmdit::of(tensors)),
            Self::ClipL => {
                needs::clip(&mut needs, tensors, &Clip { width: 768, layers: 12, projection: None })
            }
            Self::ClipG => {
                needs::clip(&mut needs, tensors, &Clip { width: 1280, layers: 32, projection: Some(1280) })
            }
            Self::T5 => needs::t5(&mut needs),
            Self::Vae => needs::vae(&mut needs, tensors),
            Self::Taesd => needs::taesd(&mut needs),
        }
        needs.0
    }

    /// Holds a part against what the engine asks for.
    ///
    /// # Errors
    /// [`Fault`]: the first thing that is wrong with it.
    pub fn check(self, tensors: &Tensors<'_>) -> Result<Content, Fault> {
        let scaled = |name: &str| {
            [".scale_weight", ".weight_scale", "scaled_fp8"].iter().any(|end| name.ends_with(end))
        };
        if let Some((name, _)) = tensors.values().find(|(name, _)| scaled(name)) {
            return Err(Fault::Scaled((*name).to_owned()));
        }
        if self == Self::Mmdit {
            Mmdit::of(tensors).check()?;
        }
        let needs = self.needs(tensors);
        let absent: Vec<_> = needs.iter().filter(|need| !tensors.contains_key(&need.name)).collect();
        let mut content = Content { part: self, numbers: 0, bytes: 0, kind: "", mmdit: None };
        let mut kinds = BTreeMap::<&str, u64>::new();
        for need in &needs {
            let Some((name, tensor)) = tensors.get(&need.name) else { continue };
            if !same(tensor.shape(), &need.shape) {
                return Err(Fault::Shape {
                    name: (*name).to_owned(),
                    found: Shape(tensor.shape()).to_string(),
                    needed: Shape(&need.shape).to_string(),
                });
            }
            if !tensor.kind.is_weight {
                return Err(Fault::Type { name: (*name).to_owned(), found: tensor.kind.name });
            }
            content.numbers += tensor.numbers();
            content.bytes += loaded(&need.name, tensor);
            *kinds.entry(tensor.kind.name).or_default() += tensor.numbers();
        }
        if let Some(first) = absent.first() {
            return Err(Fault::Missing { name: first.name.clone(), missing: absent.len(), of: needs.len() });
        }
        content.kind = kinds.into_iter().max_by_key(|(_, numbers)| *numbers).map_or("", |(kind, _)| kind);
        content.mmdit = (self == Self::Mmdit).then(|| Mmdit::of(tensors));
        Ok(content)
    }
}

/// A part that is all there.
#[derive(Clone, Debug)]
pub struct Content {
    /// Which.
    pub part: Part,
    /// How many weights it has.
    pub numbers: u64,
    /// What they take in memory, about.
    pub bytes: u64,
    /// How most of them are stored.
    pub kind: &'static str,
    mmdit: Option<Mmdit>,
}

impl Content {
    /// Which model of SD 3's kind it is, if it is a diffusion model.
    pub(super) fn family(&self) -> Option<Family> {
        self.mmdit.as_ref().map(Mmdit::family)
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.mmdit {
            None => self.part.fmt(f)?,
            Some(mmdit) => mmdit.fmt(f)?,
        }
        write!(f, ", {}", self.kind)
    }
}

/// What a file is, going by its tensors, for one that isn't what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SD 3 or 3.5, with whatever else is in it; whether the names have the prefix of a whole checkpoint.
    Sd3 {
        /// They have it.
        whole: bool,
    },
    /// A part of it, that can stand in a file of its own.
    Part(Part),
    /// Something else.
    Other(String),
    /// Nothing is in it.
    Empty,
    /// Nobody knows.
    Unknown,
}

impl Kind {
    /// Goes by names as they are in files, and by the one shape that tells sizes apart.
    #[must_use]
    pub fn of<'a>(tensors: impl Iterator<Item = (&'a str, &'a Tensor)>) -> Self {
        let all: BTreeMap<&str, &Tensor> = tensors.collect();
        if all.is_empty() {
            return Self::Empty;
        }
        let pieces: BTreeSet<&str> = all.keys().flat_map(|name| name.split('.')).collect();
        let begins = |prefix: &str| all.keys().any(|name| name.starts_with(prefix));
        let shape = |suffix: &str| {
            all.iter().find(|(name, _)| name.ends_with(suffix)).map(|(_, tensor)| tensor.shape())
        };
        let other = |text: &str| Self::Other(text.to_owned());
        if pieces.iter().any(|piece| *piece == "lora" || piece.starts_with("lora_")) {
            return other("a LoRA");
        }
        if pieces.iter().any(|piece| piece.starts_with("controlnet_")) {
            return other("a ControlNet");
        }
        if pieces.contains("joint_blocks") {
            let whole = all.keys().any(|name| name.contains("diffusion_model.joint_blocks."));
            return Self::Sd3 { whole };
        }
        if pieces.contains("double_blocks") || pieces.contains("single_transformer_blocks") {
            return other("a Flux model");
        }
        if pieces.contains("transformer_blocks") && pieces.contains("norm1_context") {
            return other("an SD 3 model under the names of diffusers, which the engine doesn't know");
        }
        let unet = begins("model.diffusion_model.input_blocks.")
            || begins("input_blocks.")
            || begins("unet.down_blocks.")
            || begins("down_blocks.");
        if unet {
            let large = pieces.contains("label_emb")
                || pieces.contains("add_embedding")
                || begins("conditioner.embedders.1.");
            return other(if large { "an SDXL model" } else { "an SD 1 or SD 2 model" });
        }
        match shape("embeddings.token_embedding.weight").or_else(|| shape("model.token_embedding.weight")) {
            Some([_, 768]) => return Self::Part(Part::ClipL),
            Some([_, 1280]) => return Self::Part(Part::ClipG),
            Some([_, width]) => {
                return Self::Other(format!("a CLIP text encoder with hidden size {width}"));
            }
            _ => {}
        }
        if begins("encoder.block.") || begins("enc.blk.") || begins("text_encoders.t5xxl.") {
            return match shape("shared.weight").or_else(|| shape("token_embd.weight")) {
                Some([32_128, 4096]) => Self::Part(Part::T5),
                Some([words, width]) => Self::Other(format!(
                    "a T5 text encoder with hidden size {width} and {words} words (T5-XXL has 4096 and 32128)"
                )),
                _ => Self::Part(Part::T5),
            };
        }
        match shape("decoder.conv_in.weight") {
            Some([_, LATENT, ..]) => return Self::Part(Part::Vae),
            Some([_, channels, ..]) => return Self::Other(vae_of("a VAE", *channels)),
            _ => {}
        }
        match shape("decoder.layers.0.weight").or_else(|| shape("decoder.1.weight")) {
            Some([_, LATENT, ..]) => Self::Part(Part::Taesd),
            Some([_, channels, ..]) => Self::Other(vae_of("a TAESD", *channels)),
            _ => Self::Unknown,
        }
    }
}

fn vae_of(what: &str, channels: u64) -> String {
    let whose = if channels == 4 { ", as SD 1, SD 2 and SDXL have it" } else { "" };
    format!("{what} with {channels} latent channels{whose} (SD 3.5 has {LATENT})")
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sd3 { whole: true } => f.write_str("an SD 3 checkpoint"),
            Self::Sd3 { whole: false } => f.write_str("the diffusion model of SD 3 alone"),
            Self::Part(Part::ClipL) => f.write_str("CLIP-L (hidden size 768)"),
            Self::Part(Part::ClipG) => f.write_str("CLIP-G (hidden size 1280)"),
            Self::Part(Part::Vae) => f.write_str("a VAE"),
            Self::Part(part) => part.fmt(f),
            Self::Other(what) => f.write_str(what),
            Self::Empty => f.write_str("without any tensor"),
            Self::Unknown => f.write_str("of no kind that weaved knows"),
        }
    }
}
