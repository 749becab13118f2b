//! The parts of SD 3.5: which tensors the engine asks each of them for, and by which names it takes
//! them.
//!
//! This follows the engine's loader: what passes here, it loads, and what it would refuse with a line
//! in its log is named here first. The tests hold both against each other.

mod fault;
mod mmdit;
pub mod names;
mod needs;
mod tensors;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::header::{Shape, Tensor};
pub use fault::Fault;
pub(super) use mmdit::Family;
use mmdit::Mmdit;
pub use names::Part;
use names::inside;
use needs::{Clip, Need, Needs};
pub use tensors::Tensors;
use tensors::{loaded, same};

impl Part {
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
        let missing = || {
            let first = absent.first()?;
            Some(Fault::Missing { name: first.name.clone(), missing: absent.len(), of: needs.len() })
        };
        // The shapes of all others follow from it.
        if self == Self::Mmdit
            && !tensors.contains_key(mmdit::WIDTH)
            && let Some(fault) = missing()
        {
            return Err(fault);
        }
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
        if let Some(fault) = missing() {
            return Err(fault);
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
    /// SD 3 or 3.5.
    Sd3 {
        /// With other parts in it.
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
    pub fn of<'a>(tensors: impl Iterator<Item = (&'a str, &'a Tensor)> + Clone) -> Self {
        let pieces: BTreeSet<&str> = tensors.clone().flat_map(|(name, _)| name.split('.')).collect();
        if pieces.is_empty() {
            return Self::Empty;
        }
        let has = |piece: &str| pieces.contains(piece);
        let any = |test: fn(&str) -> bool| pieces.iter().any(|piece| test(piece));
        let begins = |prefix: &str| tensors.clone().any(|(name, _)| name.starts_with(prefix));
        let other = |text: &str| Self::Other(text.to_owned());
        if any(|piece| {
            piece == "lora"
                || piece.starts_with("lora_")
                || piece.starts_with("lokr_")
                || piece.starts_with("hada_")
        }) {
            return other("a LoRA");
        }
        if any(|piece| piece.starts_with("controlnet_") || piece == "control_model") {
            return other("a ControlNet");
        }
        if any(|piece| piece == "ip_adapter" || piece == "image_proj") {
            return other("an IP-Adapter");
        }
        let (parts, others) = inside(tensors.clone());
        if parts.iter().any(|it| it.part == Part::Mmdit) {
            return Self::Sd3 { whole: parts.iter().any(|it| it.part != Part::Mmdit) };
        }
        if has("double_blocks") || has("single_transformer_blocks") {
            return other("a Flux model");
        }
        if has("transformer_blocks") && has("norm1_context") {
            return other("an SD 3 model under the names of diffusers, which the engine doesn't know");
        }
        let unet = begins("model.diffusion_model.input_blocks.")
            || begins("input_blocks.")
            || begins("unet.down_blocks.")
            || begins("down_blocks.");
        if unet {
            let large = has("label_emb") || has("add_embedding") || begins("conditioner.embedders.1.");
            return other(if large { "an SDXL model" } else { "an SD 1 or SD 2 model" });
        }
        if has("emb_params") || has("string_to_param") {
            return other("a textual inversion");
        }
        match (parts.first(), others.into_iter().next()) {
            (Some(it), _) => Self::Part(it.part),
            (None, Some(what)) => Self::Other(what),
            (None, None) if begins("blk.0.") || begins("model.layers.0.") => other("a language model"),
            (None, None) => Self::Unknown,
        }
    }
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
