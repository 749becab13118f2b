//! What can be wrong with a part.

use std::fmt;

/// What is wrong with a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Tensors are missing, of which this is the first.
    Missing {
        /// What the engine calls it.
        name: String,
        /// How many are missing.
        missing: usize,
        /// Of how many.
        of: usize,
    },
    /// A tensor is of another shape.
    Shape {
        /// Its name in the file.
        name: String,
        /// Its shape.
        found: String,
        /// The shape that it needs.
        needed: String,
    },
    /// A tensor's numbers can't be used.
    Type {
        /// Its name in the file.
        name: String,
        /// Its type.
        found: &'static str,
    },
    /// Numbers that count only together with others, which the engine doesn't know of.
    Scaled(String),
    /// The diffusion model has this many blocks.
    Blocks(u64),
    /// Its heads don't divide its width.
    Heads {
        /// The width.
        hidden: u64,
        /// The number of heads, and of blocks.
        blocks: u64,
    },
    /// It has no places for large images.
    Positions(u64),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { name, missing, of } if missing == of => {
                write!(f, "none of its {of} tensors is there, such as {name}")
            }
            Self::Missing { name, missing: 1, .. } => write!(f, "the tensor {name} is missing"),
            Self::Missing { name, missing, of } => {
                write!(f, "{missing} of its {of} tensors are missing, the first is {name}")
            }
            Self::Shape { name, found, needed } => {
                write!(f, "the tensor {name} has the shape {found}, and {needed} is needed")
            }
            Self::Type { name, found } => {
                write!(
                    f,
                    "the tensor {name} is of the type {found}, of which the engine makes no weights: get it as f16, bf16 or GGUF"
                )
            }
            Self::Scaled(name) => write!(
                f,
                "it is \"scaled\" fp8 (it has a tensor {name}), whose scales the engine doesn't apply: get fp16, plain \
                 fp8 or GGUF"
            ),
            Self::Blocks(blocks) => {
                write!(f, "it has {blocks} blocks; SD 3.5 Medium has 24 and Large has 38: get one of these")
            }
            Self::Heads { hidden, blocks } => {
                write!(
                    f,
                    "its hidden size is {hidden}, which its {blocks} heads can't share: get another copy"
                )
            }
            Self::Positions(positions) => {
                write!(f, "its pos_embed has {positions} positions: a square, of at least 128×128, is needed")
            }
        }
    }
}
