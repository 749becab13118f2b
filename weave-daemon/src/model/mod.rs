//! Which model files there are, and whether SD 3.5 can run with them.
//!
//! Everything here happens before the engine sees a file: a missing encoder would otherwise end its
//! process, a mistyped path or the wrong file would be found only after minutes of loading, and the
//! engine's own words for it name tensors, not files. Only headers are read ([`header`]) and held
//! against what the engine asks for ([`part`]).

mod format;
mod gguf;
pub mod header;
pub mod part;
mod profile;
mod safetensors;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use header::{Header, HeaderError};
use part::{Content, Fault, Kind, Part, Tensors};
pub use profile::{Defaults, Profile};

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
    /// A file is of no format that is read, or damaged.
    Header(&'static str, PathBuf, HeaderError),
    /// A file is something else than its setting wants.
    Kind(&'static str, PathBuf, Kind),
    /// A part is not as the engine needs it.
    Part(&'static str, PathBuf, Part, Fault),
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
            Self::NotAFile(name, path) => {
                write!(f, "{name}: {} is not a file; name the one in it that is meant", path.display())
            }
            Self::Header(name, path, error) => write!(f, "{name}: {} {error}", path.display()),
            Self::Kind(name, path, found) => wrong_kind(f, name, path, found),
            Self::Part(name, path, part, fault) => {
                write!(f, "{name}: {} can't be used as {part}: {fault}", path.display())?;
                if matches!(fault, Fault::Missing { .. }) && is_piece(path) {
                    f.write_str(
                        "; it is one piece of several, which weaved doesn't join: get it as one file",
                    )?;
                }
                Ok(())
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

fn wrong_kind(f: &mut fmt::Formatter<'_>, name: &str, path: &Path, found: &Kind) -> fmt::Result {
    write!(f, "{name}: {} is {found}", path.display())?;
    let wanted = match name {
        "model" | "diffusion_model" => {
            return match found {
                Kind::Sd3 { whole: false } => f.write_str("; set diffusion_model to it instead"),
                Kind::Part(part) => {
                    write!(f, " and no diffusion model; set {} to it instead", setting_of(*part))
                }
                _ => f.write_str("; weaved runs SD 3.5 Large, Large Turbo and Medium"),
            };
        }
        "clip_l" => "CLIP-L (hidden size 768)",
        "clip_g" => "CLIP-G (hidden size 1280)",
        "t5xxl" => "T5-XXL (hidden size 4096)",
        "vae" => "a VAE with 16 latent channels",
        _ => "a TAESD with 16 latent channels",
    };
    write!(f, ", and {wanted} is needed")?;
    match found {
        Kind::Part(part) => write!(f, "; set {} to it instead", setting_of(*part)),
        Kind::Sd3 { whole: true } => f.write_str("; set model to it instead"),
        Kind::Sd3 { whole: false } => f.write_str("; set diffusion_model to it instead"),
        Kind::Empty => f.write_str("; download it again"),
        Kind::Other(_) | Kind::Unknown => Ok(()),
    }
}

fn setting_of(part: Part) -> &'static str {
    match part {
        Part::Mmdit => "diffusion_model",
        Part::ClipL => "clip_l",
        Part::ClipG => "clip_g",
        Part::T5 => "t5xxl",
        Part::Vae => "vae",
        Part::Taesd => "taesd",
    }
}

/// Whether it is called like `model-00001-of-00002.safetensors`.
fn is_piece(path: &Path) -> bool {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    name.rsplit_once("-of-").is_some_and(|(front, count)| {
        number(count) && front.rsplit_once('-').is_some_and(|(_, index)| number(index))
    })
}

/// What the model consists of, all of it as the engine needs it.
#[derive(Debug)]
pub struct Found {
    /// Each part with the setting that names its file.
    parts: BTreeMap<Part, (&'static str, Content)>,
}

impl Found {
    /// The parts, and the setting that names the file of each.
    pub fn parts(&self) -> impl Iterator<Item = (&'static str, &Content)> {
        self.parts.values().map(|(setting, content)| (*setting, content))
    }

    /// What all weights take in memory, about. An image takes more.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.parts.values().map(|(_, content)| content.bytes).sum()
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (part, (setting, content))) in self.parts.iter().enumerate() {
            let inside = if *setting == "model" && *part != Part::Mmdit { " in the checkpoint" } else { "" };
            write!(f, "{}{content}{inside}", if i > 0 { "; " } else { "" })?;
        }
        for encoder in Part::ENCODERS {
            if !self.parts.contains_key(&encoder) {
                write!(f, "; no {encoder}")?;
            }
        }
        Ok(())
    }
}

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

    /// Reads the headers of all files, and checks that every file is what its setting says and that
    /// together they make something that the engine can run. `None`: the demo model is meant.
    ///
    /// # Errors
    /// [`ModelError`]: what is missing, wrong, or too much.
    pub fn check(&self) -> Result<Option<Found>, ModelError> {
        if self.is_empty() {
            return Ok(None);
        }
        let main = match (&self.model, &self.diffusion_model) {
            (Some(_), Some(_)) => return Err(ModelError::BothModels),
            (None, None) => return Err(ModelError::NoDiffusionModel),
            (Some(main), None) | (None, Some(main)) => main,
        };
        let mut files = Vec::new();
        for (setting, path) in self.parts() {
            if let Some(path) = path {
                files.push((setting, path, open(setting, path)?));
            }
        }
        // As the engine does it: a part's own file comes before what a checkpoint has in it.
        let mut parts = BTreeMap::new();
        for (setting, path, header) in &files {
            let of_file = sort(setting, header);
            let own = match *setting {
                "model" | "diffusion_model" => Part::Mmdit,
                "clip_l" => Part::ClipL,
                "clip_g" => Part::ClipG,
                "t5xxl" => Part::T5,
                "vae" => Part::Vae,
                _ => Part::Taesd,
            };
            // The engine knows SD 3 by these names alone.
            let is_sd3 = |tensors: &Tensors<'_>| tensors.keys().any(|name| name.starts_with("joint_blocks."));
            let kind = Kind::of(header.tensors());
            let fits = match own {
                Part::Mmdit => of_file.get(&own).is_some_and(is_sd3),
                // Of the unknown, what is missing says more.
                part => kind == Kind::Part(part) || kind == Kind::Unknown,
            };
            if !fits {
                return Err(ModelError::Kind(setting, path.to_path_buf(), kind));
            }
            for (part, tensors) in of_file {
                // TAESD counts only where it is set, and there are no other parts beside one.
                if part == own || (*setting == "model" && part != Part::Taesd) {
                    parts.insert(part, (*setting, *path, tensors));
                }
            }
        }
        if self.taesd.is_some() && self.vae.is_none() {
            parts.remove(&Part::Vae);
        }
        let mut found = Found { parts: BTreeMap::new() };
        for (part, (setting, path, tensors)) in parts {
            let content = part
                .check(&tensors)
                .map_err(|fault| ModelError::Part(setting, path.to_owned(), part, fault))?;
            found.parts.insert(part, (setting, content));
        }
        if !Part::ENCODERS.iter().any(|encoder| found.parts.contains_key(encoder)) {
            return Err(ModelError::NoEncoder(main.clone()));
        }
        if !found.parts.contains_key(&Part::Vae) && !found.parts.contains_key(&Part::Taesd) {
            return Err(ModelError::NoDecoder(main.clone()));
        }
        Ok(Some(found))
    }
}

/// The tensors of a file, by the parts that they belong to.
fn sort<'a>(setting: &str, header: &'a Header) -> BTreeMap<Part, Tensors<'a>> {
    let mut parts = BTreeMap::<_, Tensors<'_>>::new();
    for (name, tensor) in header.tensors() {
        if let Some((part, its_name)) = Part::of(setting, name) {
            parts.entry(part).or_default().insert(its_name, (name, tensor));
        }
    }
    parts
}

fn open(setting: &'static str, path: &Path) -> Result<Header, ModelError> {
    let unreadable = |error| ModelError::Unreadable(setting, path.to_owned(), error);
    let metadata = path.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(ModelError::NotAFile(setting, path.to_owned()));
    }
    let file = File::open(path).map_err(unreadable)?;
    Header::read(io::BufReader::new(file), metadata.len()).map_err(|error| match error {
        HeaderError::Read(error) => unreadable(error),
        error => ModelError::Header(setting, path.to_owned(), error),
    })
}
