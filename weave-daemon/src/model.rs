//! Which model files there are, and whether SD 3.5 can run with them.
//!
//! Everything here happens before the engine sees a file: a missing encoder would otherwise end its
//! process, and a mistyped path would be found only after minutes of loading.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Paths of the model's parts. None at all stands for the demo model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelFiles {
    /// A checkpoint: diffusion model and what else is in it.
    pub model: Option<PathBuf>,
    /// The diffusion model alone.
    pub diffusion_model: Option<PathBuf>,
    /// CLIP-L text encoder.
    pub clip_l: Option<PathBuf>,
    /// CLIP-G text encoder.
    pub clip_g: Option<PathBuf>,
    /// T5-XXL text encoder.
    pub t5xxl: Option<PathBuf>,
    /// VAE.
    pub vae: Option<PathBuf>,
    /// TAESD.
    pub taesd: Option<PathBuf>,
}

/// Why the model can't be run.
#[derive(Debug)]
pub enum ModelError {
    /// A file can't be opened or read.
    Unreadable(&'static str, PathBuf, io::Error),
    /// A path leads to something that isn't a file.
    NotAFile(&'static str, PathBuf),
    /// A file is of no format that the engine reads.
    Format(&'static str, PathBuf),
    /// Two settings exclude each other.
    BothModels,
    /// Parts without the diffusion model.
    NoDiffusionModel,
    /// No text encoder.
    NoEncoder(PathBuf),
    /// Nothing that makes pixels of latents.
    NoDecoder(PathBuf),
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(name, path, error) => {
                write!(f, "{name}: can't read {}: {error}", path.display())
            }
            Self::NotAFile(name, path) => write!(f, "{name}: {} is not a file", path.display()),
            Self::Format(name, path) => {
                write!(f, "{name}: {} is neither safetensors nor GGUF nor a checkpoint", path.display())
            }
            Self::BothModels => f.write_str(
                "model and diffusion_model are both set; model is a whole checkpoint, diffusion_model only \
                 its largest part: set one of them",
            ),
            Self::NoDiffusionModel => f.write_str(
                "parts of a model are set, but neither model nor diffusion_model; set one, or none of the \
                 parts for the demo model",
            ),
            Self::NoEncoder(path) => write!(
                f,
                "{} has no text encoder; set clip_l, clip_g or t5xxl (SD 3.5 is at its best with all three)",
                path.display()
            ),
            Self::NoDecoder(path) => {
                write!(
                    f,
                    "{} has no decoder; set vae, or taesd for a smaller and coarser one",
                    path.display()
                )
            }
        }
    }
}

impl std::error::Error for ModelError {}

/// What the beginning of tensor names says about a checkpoint's content.
const ENCODERS: [&str; 4] = ["text_encoders.", "cond_stage_model.", "conditioner.", "text_model."];
const DECODERS: [&str; 3] = ["first_stage_model.", "vae.", "tae."];

impl ModelFiles {
    /// Whether no file is set: the demo model is meant.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts().iter().all(|(_, path)| path.is_none())
    }

    /// The settings' names and values.
    #[must_use]
    pub fn parts(&self) -> [(&'static str, Option<&Path>); 7] {
        [
            ("model", self.model.as_deref()),
            ("diffusion_model", self.diffusion_model.as_deref()),
            ("clip_l", self.clip_l.as_deref()),
            ("clip_g", self.clip_g.as_deref()),
            ("t5xxl", self.t5xxl.as_deref()),
            ("vae", self.vae.as_deref()),
            ("taesd", self.taesd.as_deref()),
        ]
    }

    /// Checks that every file is there and that together they make something that SD 3.5 can run.
    ///
    /// # Errors
    /// [`ModelError`]: what is missing, wrong, or too much.
    pub fn check(&self) -> Result<(), ModelError> {
        if self.is_empty() {
            return Ok(());
        }
        let main = match (&self.model, &self.diffusion_model) {
            (Some(_), Some(_)) => return Err(ModelError::BothModels),
            (None, None) => return Err(ModelError::NoDiffusionModel),
            (Some(main), None) | (None, Some(main)) => main,
        };
        for (name, path) in self.parts() {
            if let Some(path) = path {
                check_file(name, path)?;
            }
        }
        let inside = if self.model.is_some() {
            tensor_names(main).map_err(|e| ModelError::Unreadable("model", main.clone(), e))?
        } else {
            Vec::new()
        };
        let holds = |prefixes: &[&str]| prefixes.iter().any(|prefix| find(&inside, prefix.as_bytes()));
        let encoders = [&self.clip_l, &self.clip_g, &self.t5xxl];
        if encoders.iter().all(|path| path.is_none()) && !holds(&ENCODERS) {
            return Err(ModelError::NoEncoder(main.clone()));
        }
        if self.vae.is_none() && self.taesd.is_none() && !holds(&DECODERS) {
            return Err(ModelError::NoDecoder(main.clone()));
        }
        Ok(())
    }
}

/// How a file begins, as far as that tells its format.
enum Format {
    /// The header's length.
    Safetensors(u64),
    Gguf,
    /// PyTorch's zip archive, or a bare pickle.
    Checkpoint,
}

/// The longest header that the safetensors format allows.
const MAX_SAFETENSORS_HEADER: u64 = 100_000_000;

fn format_of(file: &mut File) -> io::Result<Option<Format>> {
    let mut start = [0; 9];
    let len = file.metadata()?.len();
    if len < 9 {
        return Ok(None);
    }
    file.read_exact(&mut start)?;
    let [length @ .., brace] = start;
    let header_len = u64::from_le_bytes(length);
    Ok(match &start {
        [b'G', b'G', b'U', b'F', ..] => Some(Format::Gguf),
        [b'P', b'K', 3, 4, ..] | [0x80, 2, ..] => Some(Format::Checkpoint),
        _ if brace == b'{' && header_len <= MAX_SAFETENSORS_HEADER && header_len < len => {
            Some(Format::Safetensors(header_len))
        }
        _ => None,
    })
}

fn check_file(name: &'static str, path: &Path) -> Result<(), ModelError> {
    let unreadable = |error| ModelError::Unreadable(name, path.to_owned(), error);
    if !path.metadata().map_err(unreadable)?.is_file() {
        return Err(ModelError::NotAFile(name, path.to_owned()));
    }
    let mut file = File::open(path).map_err(unreadable)?;
    match format_of(&mut file).map_err(unreadable)? {
        Some(_) => Ok(()),
        None => Err(ModelError::Format(name, path.to_owned())),
    }
}

/// The part of a checkpoint in which the tensors' names stand, as bytes to search.
fn tensor_names(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let len = match format_of(&mut file)? {
        Some(Format::Safetensors(len)) => len,
        // Names come before the data, after metadata of which vocabularies are the largest part.
        Some(Format::Gguf | Format::Checkpoint) | None => 32 << 20,
    };
    let mut names = Vec::new();
    file.take(len).read_to_end(&mut names)?;
    Ok(names)
}

fn find(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
