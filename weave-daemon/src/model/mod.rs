//! Which model files there are, and whether SD 3.5 can run with them.
//!
//! Everything here happens before the engine sees a file: a missing encoder would otherwise end its
//! process, a mistyped path or the wrong file would be found only after minutes of loading, and the
//! engine's own words for it name tensors, not files. Only headers are read ([`header`]) and held
//! against what the engine asks for ([`part`]).

mod error;
mod format;
mod gguf;
pub mod header;
pub mod part;
mod profile;
mod safetensors;
mod stamp;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub use error::{Advice, ModelError, Other};
use header::{Header, HeaderError};
use part::names::{Inside, MODEL, inside, read_as};
use part::{Content, Fault, Kind, Part, Tensors};
pub use profile::{Defaults, Profile};
pub use stamp::Stamps;

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
            let is_inside = *part != Part::Mmdit && *setting != part.setting();
            let inside = if is_inside { " in the checkpoint" } else { "" };
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
                files.push((setting, path, read(setting, path)?));
            }
        }
        // As the engine does it: a part's own file comes before what a checkpoint has in it.
        let mut parts = BTreeMap::new();
        for (setting, path, header) in &files {
            let own = Part::of_setting(setting);
            let (inside, _) = inside(header.tensors());
            let read_as = read_as(setting, &inside);
            self.judge(setting, read_as, path, header, &inside)?;
            for (part, tensors) in sort(read_as, header) {
                // TAESD counts only where it is set, and there are no other parts beside one.
                if part == own || (read_as == MODEL && part != Part::Taesd) {
                    parts.insert(part, (*setting, *path, tensors));
                }
            }
        }
        if self.taesd.is_some() && self.vae.is_none() {
            parts.remove(&Part::Vae);
        }
        let mut found = Found { parts: BTreeMap::new() };
        for (part, (setting, path, tensors)) in parts {
            let content = part.check(&tensors).map_err(|fault| match fault {
                // Nothing of it is there: what there is says more.
                Fault::Missing { missing, of, .. } if missing == of && part == Part::of_setting(setting) => {
                    ModelError::Kind(setting, path.to_owned(), Kind::Unknown, Advice::Replace(setting))
                }
                fault => ModelError::Part(setting, path.to_owned(), part, fault),
            })?;
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

    /// Whether a file is what its setting is for, under names that the engine knows there.
    fn judge(
        &self,
        setting: &'static str,
        read_as: &str,
        path: &Path,
        header: &Header,
        found: &[Inside],
    ) -> Result<(), ModelError> {
        let own = Part::of_setting(setting);
        let kind = Kind::of(header.tensors());
        let is_own = |it: &&Inside| it.part == own;
        if !matches!(kind, Kind::Other(_)) && found.iter().filter(is_own).any(|it| it.is_read_in(read_as)) {
            return Ok(());
        }
        let refuse = |kind, advice| Err(ModelError::Kind(setting, path.to_owned(), kind, advice));
        let is_checkpoint = matches!(kind, Kind::Sd3 { .. });
        match kind {
            // Of the unknown, what is missing says more.
            Kind::Unknown if own != Part::Mmdit => return Ok(()),
            Kind::Other(_) | Kind::Unknown | Kind::Empty => return refuse(kind, Advice::Replace(setting)),
            Kind::Sd3 { .. } | Kind::Part(_) => {}
        }
        // The same thing, somewhere else.
        let elsewhere = |it: &Inside| {
            let places = [it.part.setting(), MODEL];
            places.into_iter().find(|to| *to != setting && it.is_read_in(to))
        };
        if own != Part::Mmdit && is_checkpoint {
            let has_own = found.iter().filter(is_own).any(|it| it.is_read_in(MODEL));
            return match &self.model {
                Some(model) if has_own && model == path => refuse(kind, Advice::LeaveOut(setting)),
                // There is a diffusion model already.
                _ => refuse(kind, Advice::Replace(setting)),
            };
        }
        match found.iter().find(is_own) {
            Some(it) if own != Part::Mmdit => {
                return Err(ModelError::Names(setting, path.to_owned(), it.clone()));
            }
            _ => {}
        }
        match found.iter().find_map(|it| Some((it, elsewhere(it)?))) {
            // An encoder that is to be a checkpoint is still no diffusion model.
            Some((it, to)) if to != MODEL || it.part == Part::Mmdit => refuse(kind, Advice::Move(to)),
            _ => match found.iter().find(is_own) {
                Some(it) => Err(ModelError::Names(setting, path.to_owned(), it.clone())),
                None => refuse(kind, Advice::Replace(setting)),
            },
        }
    }

    /// The files as the engine is to be given them: a diffusion model whose tensors it knows only in a whole checkpoint is
    /// one to it.
    #[must_use]
    pub fn for_engine(&self) -> Self {
        let setting = Part::Mmdit.setting();
        match &self.diffusion_model {
            // What can't be read is for the engine to refuse.
            Some(path)
                if read(setting, path)
                    .is_ok_and(|header| read_as(setting, &inside(header.tensors()).0) == MODEL) =>
            {
                Self { model: Some(path.clone()), diffusion_model: None, ..self.clone() }
            }
            _ => self.clone(),
        }
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

/// Opens a model file, and nothing that is none: a device may do something when it is opened, and a pipe makes wait.
fn open(setting: &'static str, path: &Path) -> Result<(File, Metadata), ModelError> {
    let unreadable = |error| ModelError::Unreadable(setting, path.to_owned(), error);
    let check = |found: Metadata| {
        let kind = found.file_type();
        let other = match kind {
            kind if kind.is_file() => return Ok(found),
            kind if kind.is_dir() => Other::Folder,
            kind if kind.is_fifo() => Other::Fifo,
            kind if kind.is_socket() => Other::Socket,
            kind if kind.is_block_device() || kind.is_char_device() => Other::Device,
            _ => Other::Unknown,
        };
        Err(ModelError::NotAFile(setting, path.to_owned(), other))
    };
    check(path.metadata().map_err(unreadable)?)?;
    // It may be another one by now.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).unwrap_or(0);
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(unreadable)?;
    let found = check(file.metadata().map_err(unreadable)?)?;
    Ok((file, found))
}

fn read(setting: &'static str, path: &Path) -> Result<Header, ModelError> {
    let (file, found) = open(setting, path)?;
    Header::read(io::BufReader::new(file), found.len()).map_err(|error| match error {
        HeaderError::Read(error) => ModelError::Unreadable(setting, path.to_owned(), error),
        error => ModelError::Header(setting, path.to_owned(), error),
    })
}
