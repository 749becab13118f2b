//! The diffusion model's measures: the engine takes them from the tensors, and asks for the others by them.

use std::fmt;

use super::fault::Fault;
use super::tensors::Tensors;

/// The diffusion model's measures, as the engine takes them from the tensors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mmdit {
    pub(super) blocks: u64,
    /// How many blocks, from the first on, have a second attention in their image half.
    pub(super) dual: u64,
    pub(super) hidden: u64,
    pub(super) positions: u64,
    pub(super) norm: Option<Norm>,
}

/// What is done to the queries and keys of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Norm {
    Rms,
    Layer,
}

/// Which of those models it is that people know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Sd35Medium,
    /// Large or Large Turbo, which have the same measures.
    Sd35Large,
    Sd3Medium,
    Other,
}

/// The tensor that tells the width.
pub(super) const WIDTH: &str = "x_embedder.proj.weight";
/// The fewest blocks that the engine takes.
const FEWEST_BLOCKS: u64 = 24;
/// Those of SD 3.5 Large.
const MOST_BLOCKS: u64 = 38;
/// Places along a side that an image of 2048 pixels takes, the largest that can be asked for.
const FEWEST_PLACES: u64 = 128;

impl Mmdit {
    pub(super) fn of(tensors: &Tensors<'_>) -> Self {
        let shape = |name: &str| tensors.get(name).map_or(&[][..], |(_, tensor)| tensor.shape());
        let mut this = Self { blocks: FEWEST_BLOCKS, dual: 0, hidden: 0, positions: 0, norm: None };
        for name in tensors.keys() {
            let Some((index, rest)) = name.strip_prefix("joint_blocks.").and_then(|n| n.split_once('.'))
            else {
                continue;
            };
            let after = index.parse::<u32>().map_or(u64::MAX, |index| u64::from(index) + 1);
            this.blocks = this.blocks.max(after);
            if rest.contains("attn2") {
                this.dual = this.dual.max(after);
            }
            if rest.contains("attn.ln") {
                this.norm = Some(if rest.contains(".bias") { Norm::Layer } else { Norm::Rms });
            }
        }
        this.hidden = shape(WIDTH).first().copied().unwrap_or(0);
        this.positions = match shape("pos_embed") {
            [_, positions, _] => *positions,
            // Where GGUF has left the first dimension away, the engine doesn't look at the others.
            _ if this.dual > 0 => 384 * 384,
            _ => 192 * 192,
        };
        this
    }

    pub(super) const fn family(&self) -> Family {
        match (self.blocks, self.hidden, self.dual, self.norm) {
            (24, 1536, 13, Some(_)) => Family::Sd35Medium,
            (38, 2432, 0, Some(_)) => Family::Sd35Large,
            (24, 1536, 0, None) => Family::Sd3Medium,
            _ => Family::Other,
        }
    }

    pub(super) fn check(&self) -> Result<(), Fault> {
        let Self { blocks, hidden, positions, .. } = *self;
        if blocks > MOST_BLOCKS {
            return Err(Fault::Blocks(blocks));
        }
        if !hidden.is_multiple_of(blocks) {
            return Err(Fault::Heads { hidden, blocks });
        }
        let side = positions.isqrt();
        if side * side != positions || side < FEWEST_PLACES {
            return Err(Fault::Positions(positions));
        }
        Ok(())
    }
}

impl fmt::Display for Mmdit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { blocks, hidden, .. } = self;
        match self.family() {
            Family::Sd35Medium => f.write_str("SD 3.5 Medium")?,
            Family::Sd35Large => f.write_str("SD 3.5 Large or Large Turbo")?,
            Family::Sd3Medium => f.write_str("SD 3 Medium")?,
            Family::Other => write!(f, "a model of SD 3.5's kind with hidden size {hidden}")?,
        }
        write!(f, ", {blocks} blocks")
    }
}
