//! Where the image goes: a file that is there complete or not at all, or standard output.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tempfile::TempPath;
use weave_cli_base::exit::{Exit, Failure};

/// The name of the file that is being written, which is removed when it is taken from here. Shared
/// with the thread that waits for signals, because ending the process drops nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unfinished(Arc<Mutex<Option<TempPath>>>);

impl Unfinished {
    pub(crate) fn remove(&self) {
        self.lock().take();
    }

    /// Held while the file gets its temporary or its final name, so that a signal comes before or
    /// after that.
    fn lock(&self) -> MutexGuard<'_, Option<TempPath>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What to do with a file that has the image's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Existing {
    /// Leave it, and fail.
    Keep,
    /// Replace it.
    Replace,
}

/// Where an image can be written, which was tried.
#[derive(Debug)]
pub(crate) enum Output {
    Stdout,
    File(Part),
}

impl Output {
    /// Checks that a file of this name may be made.
    pub(crate) fn check(path: &Path, existing: Existing) -> Result<(), Failure> {
        may_be_made(path, existing)
    }

    /// Checks all that can be checked while there is no image yet, which takes long to come.
    pub(crate) fn prepare(
        path: PathBuf,
        existing: Existing,
        unfinished: &Unfinished,
    ) -> Result<Self, Failure> {
        if path.as_os_str() != "-" {
            may_be_made(&path, existing)?;
            return Part::create(path, existing, unfinished).map(Self::File);
        }
        if io::stdout().is_terminal() {
            return Err(Failure::new(Exit::Local, "standard output is a terminal, which shows no PNG")
                .next("redirect it, or name a file with -o FILE"));
        }
        Ok(Self::Stdout)
    }

    /// Writes the image. Returns the file's name, if it has one.
    pub(crate) fn finish(self, png: &[u8]) -> Result<Option<PathBuf>, Failure> {
        match self {
            Self::File(part) => part.finish(png).map(Some),
            Self::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(png).and_then(|()| stdout.flush()).map_err(|error| {
                    Failure::new(Exit::Local, format_args!("can't write to standard output: {error}"))
                })?;
                Ok(None)
            }
        }
    }
}

/// A file that has not got its name yet. Unless it gets it, it is removed.
#[derive(Debug)]
pub(crate) struct Part {
    path: PathBuf,
    existing: Existing,
    file: File,
    unfinished: Unfinished,
}

impl Part {
    fn create(path: PathBuf, existing: Existing, unfinished: &Unfinished) -> Result<Self, Failure> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut name = unfinished.lock();
        let mut temporary = tempfile::Builder::new();
        temporary.prefix(".weave.").suffix(".part");
        // Like any new file: what the umask leaves of it.
        #[cfg(unix)]
        temporary.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        match temporary.tempfile_in(folder) {
            Ok(temporary) => {
                let (file, temporary_name) = temporary.into_parts();
                *name = Some(temporary_name);
                Ok(Self { path, existing, file, unfinished: unfinished.clone() })
            }
            Err(error) => {
                // The error itself goes on about the temporary name.
                let reason = error.get_ref().and_then(|error| error.source());
                let reason = reason.map_or_else(|| error.to_string(), ToString::to_string);
                let what = format!("can't write to the folder {}: {reason}", folder.display());
                Err(Failure::new(Exit::Local, what).next("choose another with -o FILE"))
            }
        }
    }

    fn finish(mut self, png: &[u8]) -> Result<PathBuf, Failure> {
        // Some file systems find out as late as this that they are full.
        let written = self.file.write_all(png).and_then(|()| self.file.sync_all());
        let named = written.and_then(|()| match self.unfinished.lock().take() {
            Some(name) if self.existing == Existing::Replace => Ok(name.persist(&self.path)?),
            Some(name) => Ok(name.persist_noclobber(&self.path)?),
            // A signal took it, and ends the process at any moment.
            None => Err(io::ErrorKind::Interrupted.into()),
        });
        match named {
            Ok(()) => Ok(mem::take(&mut self.path)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(appeared(&self.path)),
            Err(error) => {
                Err(Failure::new(Exit::Local, format_args!("can't write {}: {error}", self.path.display())))
            }
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.unfinished.remove();
    }
}

fn may_be_made(path: &Path, existing: Existing) -> Result<(), Failure> {
    // Not through a link: the name is what will be taken.
    let Ok(there) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if there.is_dir() {
        let what = format_args!("{} is a folder", path.display());
        return Err(Failure::new(Exit::Local, what).next("name a file in it with -o FILE"));
    }
    if existing == Existing::Keep {
        return Err(exists(path));
    }
    // A device is not to be replaced by an image, however it was named.
    if fs::metadata(path).is_ok_and(|target| !target.is_file()) {
        let what = format_args!("{} is not a regular file", path.display());
        return Err(
            Failure::new(Exit::Local, what).next("name a file with -o FILE, or write to a pipe with -o -")
        );
    }
    Ok(())
}

fn exists(path: &Path) -> Failure {
    Failure::new(Exit::Local, format_args!("{} exists already", path.display()))
        .next("replace it with --force, or name another file with -o FILE")
}

fn appeared(path: &Path) -> Failure {
    Failure::new(Exit::Local, format_args!("{} has appeared meanwhile and was left alone", path.display()))
        .next("the same --seed makes the same image: name another file with -o FILE")
}
