//! Where the image goes: a file that is there complete or not at all, or standard output.

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
    pub(crate) fn finish(self, png: &[u8]) -> Result<Option<PathBuf>, Failure> {
        match self {
            Self::File(path, draft) => match draft.finish(&path, png) {
                Ok(()) => Ok(Some(path)),
                Err(Unnamed::Exists) => Err(appeared(&path)),
                Err(Unnamed::Swapped) => Err(swapped(&path)),
                Err(Unnamed::Io(error)) => {
                    Err(Failure::new(Exit::Local, format_args!("can't write {}: {error}", path.display())))
                }
            },
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

fn swapped(path: &Path) -> Failure {
    let what = format_args!(
        "{} is not the image: somebody else who may write to its folder has put another file there",
        path.display()
    );
    Failure::new(Exit::Local, what)
        .next("the same --seed makes the same image: name a file in a folder of your own with -o FILE")
}
