//! Where the image goes: a file that is there complete or not at all, or standard output.
//!
//! All that can make writing fail is tried before there is an image, which takes long to come. What fails all the same
//! doesn't lose the image: it is kept elsewhere.

mod draft;

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use draft::{Draft, Unnamed, folder_of};
pub(crate) use draft::{Existing, Unfinished};
use weave_cli_base::exit::{Exit, Failure};

/// Where an image can be written, which was tried.
#[derive(Debug)]
pub(crate) enum Output {
    Stdout,
    File(PathBuf, Draft),
}

/// Tries whether files of all these names could be written, each with so many bytes, and leaves nothing behind.
pub(crate) fn check(
    paths: &[PathBuf],
    existing: Existing,
    bytes: u64,
    unfinished: &Unfinished,
) -> Result<(), Failure> {
    for path in paths.iter().filter(|path| !is_stdout(path)) {
        may_be_made(path, existing)?;
    }
    if let Some(first) = paths.first() {
        // One for all of them, which are in one folder.
        let output = Output::prepare(first.clone(), existing, unfinished)?;
        if let Output::File(path, draft) = &output {
            draft.reserve(bytes).map_err(|error| no_room(path, bytes, &error))?;
        }
    }
    for path in paths.iter().filter(|path| !is_stdout(path) && path.symlink_metadata().is_err()) {
        draft::try_name(path, unfinished).map_err(|error| no_name(path, &error))?;
    }
    Ok(())
}

impl Output {
    /// A place for a file of this name.
    pub(crate) fn prepare(
        path: PathBuf,
        existing: Existing,
        unfinished: &Unfinished,
    ) -> Result<Self, Failure> {
        if !is_stdout(&path) {
            may_be_made(&path, existing)?;
            let draft = Draft::create(&path, existing, unfinished).map_err(|reason| {
                let folder = folder_of(&path).display();
                Failure::new(Exit::Local, format_args!("can't write to the folder {folder}: {reason}"))
                    .next("choose another with -o FILE")
            })?;
            return Ok(Self::File(path, draft));
        }
        if io::stdout().is_terminal() {
            return Err(Failure::new(Exit::Local, "standard output is a terminal, which shows no PNG")
                .next("redirect it, or name a file with -o FILE"));
        }
        Ok(Self::Stdout)
    }

    /// Writes the image. Returns the file's name, if it has one.
    pub(crate) fn finish(self, image: &[u8], rescue: &Rescue) -> Result<Option<PathBuf>, Failure> {
        match self {
            Self::File(path, draft) => {
                let unnamed = match draft.finish(&path, image) {
                    Ok(()) => return Ok(Some(path)),
                    Err(unnamed) => unnamed,
                };
                let failure = match unnamed {
                    Unnamed::Exists => appeared(&path),
                    Unnamed::Swapped => swapped(&path),
                    Unnamed::Io(error) => {
                        let what = format_args!("can't write {}: {error}", path.display());
                        Failure::new(Exit::Local, what)
                    }
                };
                Err(rescue.keep(&path, image, &failure))
            }
            Self::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(image).and_then(|()| stdout.flush()).map(|()| None).map_err(|error| {
                    let what = format_args!("can't write to standard output: {error}");
                    let failure = Failure::new(Exit::Local, what);
                    // Whoever has read the beginning wants no more.
                    match error.kind() {
                        io::ErrorKind::BrokenPipe => failure,
                        _ => rescue.keep(Path::new("-"), image, &failure),
                    }
                })
            }
        }
    }
}

/// What to do with an image that can't be written where it was meant to be.
pub(crate) struct Rescue {
    /// The image's, if it has one.
    pub(crate) seed: Option<u64>,
    /// What the names of such files end in.
    pub(crate) suffix: &'static str,
}

impl Rescue {
    /// Keeps an image that could not be written at `path`: beside it, else among temporary files. The failure says where it
    /// is.
    pub(crate) fn keep(&self, path: &Path, image: &[u8], failure: &Failure) -> Failure {
        let beside = (!is_stdout(path)).then(|| folder_of(path).to_owned());
        let kept = beside.into_iter().chain([std::env::temp_dir()]).find_map(|folder| {
            let name = self.seed.map_or_else(|| "weave-".to_owned(), |seed| format!("weave-{seed}-"));
            draft::keep(&folder, &name, self.suffix, image).ok()
        });
        let what = failure.what();
        let seed = self.seed.map_or_else(String::new, |seed| format!(" (seed {seed})"));
        match kept {
            Some(kept) => {
                let what = format_args!("{what}; the image is in {}{seed}", kept.display());
                Failure::new(failure.exit(), what).next("move it to where it belongs")
            }
            None => Failure::new(failure.exit(), format_args!("{what}; the image is lost{seed}"))
                .next("the same --seed makes the same image: name another file with -o FILE"),
        }
    }
}

fn is_stdout(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn may_be_made(path: &Path, existing: Existing) -> Result<(), Failure> {
    let shown = path.display();
    let local = |what: std::fmt::Arguments<'_>| Failure::new(Exit::Local, what);
    // A `Path` leaves such ends out of what it calls the name.
    let bytes = path.as_os_str().as_encoded_bytes();
    let last = bytes.rsplit(|byte| std::path::is_separator(char::from(*byte))).next().unwrap_or_default();
    if [b"".as_slice(), b".", b".."].contains(&last) {
        return Err(local(format_args!("{shown} names a folder")).next("name a file in it with -o FILE"));
    }
    #[cfg(unix)]
    if is_descriptor(path) {
        return Err(local(format_args!("{shown} is one of the program's own open files"))
            .next("write to standard output with -o -, or name a file with -o FILE"));
    }
    // Not through a link: the name is what will be taken.
    let Ok(there) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    let target = fs::metadata(path);
    let is_link = there.file_type().is_symlink();
    if there.is_dir() {
        return Err(local(format_args!("{shown} is a folder")).next("name a file in it with -o FILE"));
    }
    if is_link && target.as_ref().is_ok_and(fs::Metadata::is_dir) {
        return Err(
            local(format_args!("{shown} is a link to a folder")).next("name a file in it with -o FILE")
        );
    }
    // A device is not to be replaced by an image, however it was named.
    if target.as_ref().is_ok_and(|target| !target.is_file()) {
        return Err(local(format_args!("{shown} is not a regular file"))
            .next("name a file with -o FILE, or write to a pipe with -o -"));
    }
    if existing == Existing::Keep {
        let to = fs::read_link(path).ok().filter(|_| is_link);
        return Err(exists(path, to.as_deref()));
    }
    #[cfg(unix)]
    if is_anothers(path, &there) {
        let what =
            format_args!("{shown} belongs to another user, whose files can't be replaced in this folder");
        return Err(local(what).next("name another file with -o FILE"));
    }
    Ok(())
}

/// Whether this leads to what the program has open, such as /dev/stdout, /dev/fd/1, /proc/self/fd/1, or a link to one.
#[cfg(unix)]
fn is_descriptor(path: &Path) -> bool {
    /// As many as Linux follows.
    const LINKS: usize = 40;

    let mut at = path.to_owned();
    for _ in 0..LINKS {
        let Ok(folder) = fs::canonicalize(folder_of(&at)) else { return false };
        if folder == Path::new("/dev/fd") || folder.starts_with("/proc") && folder.ends_with("fd") {
            return true;
        }
        let Ok(target) = fs::read_link(&at) else { return false };
        at = folder.join(target);
    }
    false
}

/// Whether a folder that belongs to nobody in particular, such as /tmp, keeps others from replacing this file.
#[cfg(unix)]
fn is_anothers(path: &Path, file: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;

    let own = rustix::process::geteuid().as_raw();
    let sticky = |folder: &fs::Metadata| folder.mode() & 0o1000 != 0 && folder.uid() != own;
    own != 0 && file.uid() != own && fs::metadata(folder_of(path)).is_ok_and(|folder| sticky(&folder))
}

fn no_room(path: &Path, bytes: u64, error: &io::Error) -> Failure {
    let folder = folder_of(path).display();
    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    let megabytes = bytes as f64 / 1e6;
    let what =
        format_args!("the folder {folder} has no room for an image of up to {megabytes:.1} MB: {error}");
    Failure::new(Exit::Local, what).next("make some, or choose another with -o FILE")
}

fn no_name(path: &Path, error: &io::Error) -> Failure {
    let name = path.file_name().unwrap_or_default();
    match error.kind() {
        io::ErrorKind::AlreadyExists => exists(path, None),
        io::ErrorKind::InvalidFilename => {
            let what = format_args!("the file's name has {} bytes, which is too long: {error}", name.len());
            Failure::new(Exit::Local, what)
                .next("choose a shorter one with -o FILE; most folders take up to 255")
        }
        _ => {
            let what = format_args!("can't make a file of the name {}: {error}", path.display());
            Failure::new(Exit::Local, what)
                .next("choose another with -o FILE; some disks take no name with one of : ? * \" < > |")
        }
    }
}

fn exists(path: &Path, link_to: Option<&Path>) -> Failure {
    let link = link_to.map_or_else(String::new, |to| format!(", a link to {}", to.display()));
    Failure::new(Exit::Local, format_args!("{} exists already{link}", path.display()))
        .next("replace it with --force, or name another file with -o FILE")
}

fn appeared(path: &Path) -> Failure {
    Failure::new(Exit::Local, format_args!("{} has appeared meanwhile and was left alone", path.display()))
}

fn swapped(path: &Path) -> Failure {
    let what = format_args!(
        "{} is not the image: somebody else who may write to its folder has put another file there",
        path.display()
    );
    Failure::new(Exit::Local, what)
}
