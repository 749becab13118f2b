//! Why the demo model could not be unpacked.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Why the demo model could not be unpacked. Each says what to do about it.
#[derive(Debug)]
pub enum Error {
    /// The environment names no folder for caches.
    NoCacheDir,
    /// The operating system refused something.
    Io {
        /// What was tried, to be read between "cannot" and the path.
        action: &'static str,
        /// What it was tried on.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others could change what is there, or have done so: what is wrong with which folder or file.
    Untrusted(String),
    /// A calculated table came out wrong.
    Digest {
        /// The file that it was for, which was not written.
        path: PathBuf,
        /// The SHA-256 that it should have.
        expected: &'static str,
        /// The SHA-256 that it has.
        found: String,
    },
    /// A file that is built into the program is not what it should be.
    Embedded {
        /// The file that was to be made from it.
        file: &'static str,
        /// What is wrong.
        reason: String,
    },
}

impl Error {
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.into(), source }
    }

    pub(super) fn embedded(file: &'static str, reason: String) -> Self {
        Self::Embedded { file, reason }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCacheDir => f.write_str(
                "no folder is known to unpack the demo model into: set WEAVE_CACHE_DIR \
                 (or HOME, to an absolute path)",
            ),
            Self::Io { action, path, source } => {
                let path = path.display();
                write!(f, "cannot {action} {path} ({source}), which the demo model needs: ")?;
                f.write_str(match source.kind() {
                    ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                        "free 100 MB of disk space, or set WEAVE_CACHE_DIR to a folder on another disk"
                    }
                    ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                        "make it writable for this user, or set WEAVE_CACHE_DIR to a folder that is"
                    }
                    ErrorKind::NotADirectory | ErrorKind::AlreadyExists | ErrorKind::IsADirectory => {
                        "remove what is in the way, or set WEAVE_CACHE_DIR to another folder"
                    }
                    _ => "try again, or set WEAVE_CACHE_DIR to another folder",
                })
            }
            Self::Untrusted(why) => write!(
                f,
                "the demo model can't be kept where others could change it: {why}; mend that, set WEAVE_CACHE_DIR \
                 to a folder of this user's, or list the folder in trusted_folders if nobody else uses it"
            ),
            Self::Digest { path, expected, found } => write!(
                f,
                "the demo model's {} was not written: a table for it has the SHA-256 {found}, \
                 not {expected}. \
                 Try again; if it stays like this, check the machine's memory or build the program anew",
                path.display()
            ),
            Self::Embedded { file, reason } => write!(
                f,
                "the demo model in this program is damaged, so {file} cannot be made ({reason}): \
                 build the program anew"
            ),
        }
    }
}

/// Without a source, because the text has it already.
impl std::error::Error for Error {}
