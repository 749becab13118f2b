//! What stands at the front of a model file: the tensors' names, types, shapes and places.
//!
//! Model files come from strangers and from downloads that broke off. Nothing here believes a number
//! before it is held against the file's length and a bound: a header is at most [`MAX_HEADER`] long
//! and lists at most [`MAX_TENSORS`] tensors, so reading one takes a bounded amount of memory,
//! whatever it says. Only headers are read, never weights.

use std::fmt;
use std::io::{self, Read};

use weave_core::text::{Text, is_shown};

/// The longest header that is read. Those of SD 3.5 have less than 1 MB; GGUF files for language
/// models, whose vocabulary is in there, some 10 MB.
pub const MAX_HEADER: u64 = 32 << 20;

/// The most tensors in a file. All of SD 3.5 in one file has some 2,400.
pub const MAX_TENSORS: usize = 1 << 16;

/// The longest name of a tensor.
pub(super) const MAX_NAME: usize = 1024;

/// The most dimensions that the engine reads.
pub(super) const MAX_DIMENSIONS: usize = 5;

/// How a tensor's numbers are stored.
#[derive(Debug, PartialEq, Eq)]
pub struct Type {
    /// As people call it: `f16`, `q4_K`.
    pub name: &'static str,
    /// How many numbers are stored together.
    pub(super) block: u64,
    /// The bytes of such a block.
    pub(super) size: u64,
    /// The engine can make weights of it.
    pub(super) is_weight: bool,
}

/// A tensor, as the header describes it.
#[derive(Clone, Copy, Debug)]
pub struct Tensor {
    /// How its numbers are stored.
    pub kind: &'static Type,
    dimensions: [u64; MAX_DIMENSIONS],
    rank: usize,
    /// What it takes in the file.
    pub bytes: u64,
}

impl Tensor {
    /// A tensor of this shape, whose last dimension is the one that lies together in the file. What is
    /// wrong with it otherwise.
    pub(super) fn new(kind: &'static Type, shape: &[u64]) -> Result<Self, String> {
        let mut dimensions = [1; MAX_DIMENSIONS];
        let Some(places) = dimensions.get_mut(..shape.len()) else {
            return Err(format!("{} dimensions, at most {MAX_DIMENSIONS} are possible", shape.len()));
        };
        places.copy_from_slice(shape);
        let row = shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(kind.block) {
            return Err(format!("rows of {row} numbers, which {} stores by {}", kind.name, kind.block));
        }
        let bytes = shape
            .iter()
            .try_fold(1u64, |product, n| product.checked_mul(*n))
            .and_then(|numbers| (numbers / kind.block).checked_mul(kind.size))
            .filter(|bytes| *bytes < 1 << 60)
            .ok_or_else(|| format!("the impossible shape {}", Shape(shape)))?;
        Ok(Self { kind, dimensions, rank: shape.len(), bytes })
    }

    /// Its shape, slowest dimension first.
    #[must_use]
    pub fn shape(&self) -> &[u64] {
        self.dimensions.get(..self.rank).unwrap_or_default()
    }

    /// How many numbers it has.
    #[must_use]
    pub fn numbers(&self) -> u64 {
        self.bytes / self.kind.size * self.kind.block
    }
}

/// A shape in words: `[77, 768]`.
pub(super) struct Shape<'a>(pub(super) &'a [u64]);

impl fmt::Display for Shape<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, n) in self.0.iter().enumerate() {
            write!(f, "{}{n}", if i > 0 { ", " } else { "" })?;
        }
        f.write_str("]")
    }
}

/// The tensors of a file, by name.
#[derive(Debug, Default)]
pub struct Header {
    tensors: Vec<(String, Tensor)>,
}

impl Header {
    /// All tensors, in the order of the file.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> + Clone {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    pub(super) fn push(&mut self, name: String, tensor: Tensor) -> Result<(), HeaderError> {
        if self.tensors.len() >= MAX_TENSORS {
            return Err(HeaderError::Damaged(format!("more than {MAX_TENSORS} tensors")));
        }
        // Names are shown on terminals, which obey some of these.
        if !name.chars().all(is_shown) {
            return Err(HeaderError::Damaged(format!(
                "a tensor has the name {name:?}, with characters that can't be shown"
            )));
        }
        self.tensors.push((name, tensor));
        Ok(())
    }
}

/// Bytes that are read from the front, with an eye on how many there can be.
pub(super) struct Bytes<R> {
    source: R,
    read: u64,
    len: u64,
}

impl<R: Read> Bytes<R> {
    /// Those of a file of `len` bytes.
    pub(super) const fn new(source: R, len: u64) -> Self {
        Self { source, read: 0, len }
    }

    /// How many have been read.
    pub(super) fn position(&self) -> u64 {
        self.read
    }

    /// The length of the file.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Asks whether `n` more can be read.
    pub(super) fn expect(&self, n: u64) -> Result<(), HeaderError> {
        match self.read.checked_add(n) {
            Some(end) if end > MAX_HEADER && n < self.len => {
                Err(HeaderError::Damaged(format!("it is longer than {} MB", MAX_HEADER >> 20)))
            }
            Some(end) if end <= self.len => Ok(()),
            Some(end) if end <= MAX_HEADER => Err(HeaderError::CutOff { has: self.len, needs: end }),
            _ => Err(HeaderError::Damaged(format!("something in it is {n} bytes long"))),
        }
    }

    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> Result<(), HeaderError> {
        self.expect(buffer.len() as u64)?;
        self.source.read_exact(buffer).map_err(|error| self.ended(error))?;
        self.read += buffer.len() as u64;
        Ok(())
    }

    pub(super) fn skip(&mut self, n: u64) -> Result<(), HeaderError> {
        self.expect(n)?;
        let skipped = io::copy(&mut self.source.by_ref().take(n), &mut io::sink());
        match skipped {
            Ok(skipped) if skipped == n => {
                self.read += n;
                Ok(())
            }
            Ok(_) => Err(self.ended(io::ErrorKind::UnexpectedEof.into())),
            Err(error) => Err(HeaderError::Read(error)),
        }
    }

    /// A file that ends before the length that it had is being written just now.
    fn ended(&self, error: io::Error) -> HeaderError {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            HeaderError::CutOff { has: self.read, needs: self.len }
        } else {
            HeaderError::Read(error)
        }
    }
}

/// Why there is no header.
#[derive(Debug)]
pub enum HeaderError {
    /// The file can't be read.
    Read(io::Error),
    /// Nothing is in it.
    Empty,
    /// A page for a browser.
    WebPage,
    /// What git has in place of a large file, and the size of that file.
    Pointer(Option<u64>),
    /// PyTorch's format.
    Pickle,
    /// Some other text; its beginning.
    Text(String),
    /// Nothing that is known.
    Unknown,
    /// The file ends too early.
    CutOff {
        /// The bytes that are there.
        has: u64,
        /// The bytes that its header speaks of, or more.
        needs: u64,
    },
    /// It contradicts itself or the format.
    Damaged(String),
    /// It is as the format has it, and has something that the engine doesn't read.
    Unsupported(String),
}

impl HeaderError {
    /// Whether there is something wrong with the file itself, and not only for this engine.
    #[must_use]
    pub const fn is_broken(&self) -> bool {
        !matches!(self, Self::Pickle | Self::Unsupported(_))
    }
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(error) => write!(f, "can't be read: {error}"),
            Self::Empty => f.write_str("is empty: download it again"),
            Self::WebPage => f.write_str(
                "is a web page and no model: log in where it comes from, accept the licence there, and download it again",
            ),
            Self::Pointer(size) => {
                f.write_str("is a pointer of git-lfs and not the file that it stands for")?;
                if let Some(size) = size {
                    write!(f, " ({size} bytes)")?;
                }
                f.write_str(": run `git lfs pull` in its folder, or download it")
            }
            Self::Pickle => f.write_str(
                "is a PyTorch file (.ckpt, .pt, .pth, .bin), which weaved doesn't load: get it as safetensors or GGUF",
            ),
            Self::Text(start) => write!(
                f,
                "is neither safetensors nor GGUF but text that begins with {start:?}: download the model itself"
            ),
            Self::Unknown => f.write_str("is neither safetensors nor GGUF: get the model in one of these formats"),
            Self::CutOff { has, needs } => {
                write!(f, "is cut off: it has {has} bytes and needs {needs}; download it again")
            }
            Self::Damaged(what) => write!(f, "has a damaged header ({}): download it again", beginning(what)),
            Self::Unsupported(what) => write!(
                f,
                "is sound, but {}: get the model as f16, bf16, q8_0 or q4_0 in safetensors or GGUF version 3",
                beginning(what)
            ),
        }
    }
}

/// As much as is shown of what a file contains, in characters.
const MAX_WORDS: usize = 300;

/// Words in which a file is quoted, as they can be shown.
pub(super) fn beginning(words: &str) -> String {
    match words.char_indices().nth(MAX_WORDS) {
        Some((end, _)) => format!("{}…", Text::new(words.as_bytes().get(..end).unwrap_or_default())),
        None => Text::new(words.as_bytes()).to_string(),
    }
}
