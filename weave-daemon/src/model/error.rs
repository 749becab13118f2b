//! Why a model can't be run, and what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::header::HeaderError;
use super::part::names::{Inside, MODEL};
use super::part::{Fault, Kind, Part};

/// Why the model can't be run. The text of each ends with its [`Advice`].
#[derive(Debug)]
pub enum ModelError {
    /// A file can't be opened or read.
    Unreadable(&'static str, PathBuf, io::Error),
    /// A path leads to something that isn't a file.
    NotAFile(&'static str, PathBuf, Other),
    /// A file is of no format that is read, or damaged.
    Header(&'static str, PathBuf, HeaderError),
    /// A file is something else than its setting wants.
    Kind(&'static str, PathBuf, Kind, Advice),
    /// It is what its setting wants, and its tensors have other names: the first of them.
    Names(&'static str, PathBuf, Inside),
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

/// What to do about it, so that the answer is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Name the file in this setting instead. There is one of `model` and `diffusion_model`.
    Move(&'static str),
    /// Set this to another file.
    Replace(&'static str),
    /// Don't set this.
    LeaveOut(&'static str),
    /// Set one of these as well.
    Add(&'static [&'static str]),
}

/// What a path leads to that is no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    /// A folder.
    Folder,
    /// A pipe with a name.
    Fifo,
    /// A socket.
    Socket,
    /// A device.
    Device,
    /// Something else.
    Unknown,
}

impl ModelError {
    /// What to do.
    #[must_use]
    pub const fn advice(&self) -> Advice {
        match self {
            Self::Kind(.., advice) => *advice,
            Self::Part(setting, _, part, _) => Advice::Replace(own_setting(setting, *part)),
            Self::Unreadable(setting, ..)
            | Self::NotAFile(setting, ..)
            | Self::Header(setting, ..)
            | Self::Names(setting, ..) => Advice::Replace(setting),
            Self::BothModels => Advice::LeaveOut("diffusion_model"),
            Self::NoDiffusionModel => Advice::Add(&[MODEL, "diffusion_model"]),
            Self::NoEncoder(_) => Advice::Add(&["clip_l", "clip_g", "t5xxl"]),
            Self::NoDecoder(_) => Advice::Add(&["vae", "taesd"]),
        }
    }

    /// Whether a file is damaged, cut off or no model at all: another copy of it may do. Of the other errors the
    /// files are sound, and not what is needed here.
    #[must_use]
    pub const fn is_broken(&self) -> bool {
        match self {
            Self::Header(.., error) => error.is_broken(),
            Self::Unreadable(..) | Self::NotAFile(..) | Self::Part(.., Fault::Missing { .. }) => true,
            Self::Kind(.., kind, _) => matches!(kind, Kind::Empty),
            _ => false,
        }
    }
}

/// The setting that decides about a part which was found in the file of another: what is inside of a checkpoint can be
/// had from a file of its own.
const fn own_setting(setting: &'static str, part: Part) -> &'static str {
    match part {
        Part::Mmdit => setting,
        part => part.setting(),
    }
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(name, path, error) => unreadable(f, name, path, error),
            Self::NotAFile(name, path, what) => write!(f, "{name}: {} {what}", path.display()),
            Self::Header(name, path, error) => write!(f, "{name}: {} {error}", path.display()),
            Self::Kind(name, path, found, advice) => wrong_kind(f, name, path, found, *advice),
            Self::Names(name, path, found) => {
                let part = found.part;
                write!(
                    f,
                    "{name}: {} is {}, but the name of its tensor {} is one that the engine doesn't know there; get {}, \
                     whose names it knows",
                    path.display(),
                    Kind::Part(part),
                    found.name,
                    source(part)
                )?;
                if found.is_known {
                    write!(f, ", or take {:?} away from the front of all names", found.prefix())?;
                }
                Ok(())
            }
            Self::Part(name, path, part, fault) => wrong_part(f, name, path, *part, fault),
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

fn unreadable(f: &mut fmt::Formatter<'_>, name: &str, path: &Path, error: &io::Error) -> fmt::Result {
    let shown = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => match path.read_link() {
            Ok(target) => write!(
                f,
                "{name}: {shown} is a link to {}, where nothing is; download the model again, or name the file itself",
                target.display()
            ),
            Err(_) => write!(
                f,
                "{name}: can't read {shown}: there is no such file; set {name} to one that is there"
            ),
        },
        io::ErrorKind::PermissionDenied => write!(
            f,
            "{name}: can't read {shown}: {error}; let the user read it that weaved runs as, and search its folders"
        ),
        _ if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => write!(
            f,
            "{name}: can't read {shown}: its symbolic links lead round in a circle; name the file itself"
        ),
        _ => write!(f, "{name}: can't read {shown}: {error}; set {name} to a file that can be read"),
    }
}

impl fmt::Display for Other {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Folder => "is a folder; name the file in it that is meant",
            Self::Fifo => {
                "is a pipe, which can be read only once, and a model is read several times; name a file"
            }
            Self::Socket => "is a socket; name a file",
            Self::Device => "is a device; name a file",
            Self::Unknown => "is not a file; name one",
        })
    }
}

/// What a setting needs.
fn wanted(setting: &str) -> &'static str {
    match setting {
        "clip_l" => "CLIP-L (hidden size 768)",
        "clip_g" => "CLIP-G (hidden size 1280)",
        "t5xxl" => "T5-XXL (hidden size 4096)",
        "vae" => "a VAE with 16 latent channels",
        "taesd" => "a TAESD with 16 latent channels",
        _ => "SD 3.5",
    }
}

/// A file of this part that can be had, and works.
const fn source(part: Part) -> &'static str {
    match part {
        Part::Mmdit => "SD 3.5 Large, Large Turbo or Medium as stabilityai publishes it",
        Part::ClipL => "clip_l.safetensors from the text_encoders of stabilityai/stable-diffusion-3.5-large",
        Part::ClipG => "clip_g.safetensors from the text_encoders of stabilityai/stable-diffusion-3.5-large",
        Part::T5 => "t5xxl_fp16.safetensors from the text_encoders of stabilityai/stable-diffusion-3.5-large",
        Part::Vae => "the file in the vae folder of stabilityai/stable-diffusion-3.5-large",
        Part::Taesd => "TAESD from madebyollin/taesd3",
    }
}

fn wrong_kind(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    path: &Path,
    found: &Kind,
    advice: Advice,
) -> fmt::Result {
    write!(f, "{name}: {} is {found}", path.display())?;
    let own = Part::of_setting(name);
    match (own, found, advice) {
        (Part::Mmdit, Kind::Sd3 { .. }, Advice::Move(to)) => return write!(f, "; set {to} to it instead"),
        (Part::Mmdit, Kind::Part(_), Advice::Move(to)) => {
            return write!(f, " and no diffusion model; set {to} to it instead");
        }
        (Part::Mmdit, Kind::Part(_), _) => f.write_str(" and no diffusion model")?,
        (Part::Mmdit, Kind::Empty, _) => return f.write_str("; download it again"),
        (Part::Mmdit, _, _) => {
            return write!(f, "; weaved runs SD 3.5 Large, Large Turbo and Medium: get one of these");
        }
        _ => write!(f, ", and {} is needed", wanted(name))?,
    }
    match (found, advice) {
        (_, Advice::Move(to)) => write!(f, "; set {to} to it instead"),
        (_, Advice::LeaveOut(_)) => {
            write!(f, "; model is the same file and has {own} in it: leave {name} out")
        }
        (Kind::Empty, _) => f.write_str("; download it again"),
        (Kind::Sd3 { .. }, _) => write!(f, " in a file of its own; get {}", source(own)),
        _ => write!(f, "; get {}", source(own)),
    }
}

fn wrong_part(
    f: &mut fmt::Formatter<'_>,
    name: &'static str,
    path: &Path,
    part: Part,
    fault: &Fault,
) -> fmt::Result {
    write!(f, "{name}: {} can't be used as {part}: {fault}", path.display())?;
    if own_setting(name, part) != name {
        return write!(f, "; set {} to a file of its own: {}", part.setting(), source(part));
    }
    match fault {
        Fault::Missing { .. } if is_piece(path) => {
            f.write_str("; it is one piece of several, which weaved doesn't join: get it as one file")
        }
        Fault::Missing { .. } => write!(f, "; download it again, or get {}", source(part)),
        Fault::Shape { .. } => write!(f, "; it is another model's: get {}", source(part)),
        // They say it themselves.
        Fault::Type { .. }
        | Fault::Scaled(_)
        | Fault::Blocks(_)
        | Fault::Heads { .. }
        | Fault::Positions(_) => Ok(()),
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
