//! Files that hold a token or a key.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, openat};
use rustix::process::geteuid;

use crate::accounts::Who;
use crate::folder::{Distrust, Folder, Rules, Why, locate};
use crate::text::{NotText, text};

/// Why a file's secret isn't used. Its text goes on after the file's name.
#[derive(Debug)]
pub enum SecretError {
    /// It is something else than a regular file.
    Kind(&'static str),
    /// It belongs to somebody else.
    Owner(u32),
    /// Others can read or write it.
    Mode(u32),
    /// Others can put another file into its place.
    Folder(Distrust),
    /// It has more bytes than this.
    TooLong(usize),
    /// There is nothing in it.
    Empty,
    /// It isn't text.
    NotText(NotText),
    /// It can't be read.
    Io(io::Error),
}

impl SecretError {
    /// Whether others may know the secret, or have put it there.
    #[must_use]
    pub const fn is_exposed(&self) -> bool {
        matches!(self, Self::Owner(_) | Self::Mode(_) | Self::Folder(_))
    }
}

impl fmt::Display for SecretError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(what) => write!(f, "is {what}, not a file"),
            Self::Owner(uid) => write!(f, "belongs to {}", Who(*uid)),
            Self::Mode(mode) => {
                write!(f, "has mode {mode:04o}, must have at most 0600, or 0640 if it is root's")
            }
            Self::Folder(error) => write!(f, "lies where others can replace it: {error}"),
            Self::TooLong(max) => write!(f, "has more than {max} bytes"),
            Self::Empty => f.write_str("is empty"),
            Self::NotText(error) => error.fmt(f),
            Self::Io(error) => write!(f, "can't be read: {error}"),
        }
    }
}

impl std::error::Error for SecretError {}

/// Reads a secret of at most `max` bytes from a file that nobody else can have read or written, without white space at its
/// end. It may be written as [`text`] has it. Never waits: what is no regular file is refused before it is opened.
///
/// # Errors
/// [`SecretError`]
pub fn read_secret(path: &Path, max: usize, rules: &Rules) -> Result<String, SecretError> {
    let (folder, name) = locate(path, rules).map_err(judged)?;
    folder.judge().map_err(judged)?;
    let file = open(&folder, &name)?;
    check(&file.metadata().map_err(SecretError::Io)?)?;
    let mut bytes = Vec::new();
    // White space at the end is no part of it, so much of it is allowed; and each character may take two bytes.
    let most = 2 * (max + 1025);
    file.take(most as u64 + 1).read_to_end(&mut bytes).map_err(SecretError::Io)?;
    if bytes.len() > most {
        return Err(SecretError::TooLong(max));
    }
    let text = text(&bytes).map_err(SecretError::NotText)?;
    match text.trim_end() {
        "" => Err(SecretError::Empty),
        secret if secret.len() > max || text.len() > max + 1024 => Err(SecretError::TooLong(max)),
        secret => Ok(secret.to_owned()),
    }
}

/// Not through a link: [`locate`] has followed those that may be followed.
fn open(folder: &Folder, name: &OsStr) -> Result<File, SecretError> {
    // Opening a device can do something.
    let kind = folder.kind_of(name).map_err(SecretError::Io)?;
    if kind != FileType::RegularFile {
        return Err(SecretError::Kind(kind_name(kind)));
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match openat(folder, name, flags, Mode::empty()) {
        Ok(file) => Ok(file.into()),
        Err(error) => Err(SecretError::Io(error.into())),
    }
}

fn check(found: &Metadata) -> Result<(), SecretError> {
    let kind = found.file_type();
    if !kind.is_file() {
        let is_device = kind.is_char_device() || kind.is_block_device();
        return Err(SecretError::Kind(if is_device { "a device" } else { "something else" }));
    }
    if found.uid() != 0 && found.uid() != geteuid().as_raw() {
        return Err(SecretError::Owner(found.uid()));
    }
    // What systemd passes on with LoadCredential= is root's and can be read by a group, and so are a package's own files.
    let limit = if found.uid() == 0 { 0o740 } else { 0o700 };
    match found.mode() & 0o7777 {
        mode if mode & 0o777 & !limit == 0 => Ok(()),
        mode => Err(SecretError::Mode(mode)),
    }
}

fn judged(error: Distrust) -> SecretError {
    match error.why {
        Why::Io(error) => SecretError::Io(error),
        Why::Kind(kind) => SecretError::Kind(kind),
        _ => SecretError::Folder(error),
    }
}

fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "a folder",
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Symlink => "a symbolic link",
        _ => "something else",
    }
}
