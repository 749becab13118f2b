//! Files that get their names only once they are complete, and what runs that were killed have left of theirs.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, renameat, statat, unlinkat};
use rustix::io::Errno;
use rustix::process::geteuid;
use weave_trust::Folder;

use super::error::Error;
use super::sink::Sink;

/// A file on its way to its name. Dropped before [`Draft::finish`], it leaves nothing behind.
pub(super) struct Draft<'a> {
    folder: &'a Folder,
    file: File,
    pub(super) temporary: OsString,
    /// For messages, and the name in the folder.
    path: &'a Path,
    at: u64,
    finished: bool,
}

/// How the names of drafts end. They start with a dot and the final name.
const DRAFT: &str = ".draft";

impl<'a> Draft<'a> {
    pub(super) fn create(folder: &'a Folder, path: &'a Path, bytes: usize) -> Result<Self, Error> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = path.file_name().unwrap_or_default().display();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Root may have made it for others. Whatever the umask is, they can't write to it.
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let temporary = OsString::from(format!(".{name}.{}-{count}{DRAFT}", process::id()));
            let file = match openat(folder, &temporary, flags, mode) {
                Ok(file) => File::from(file),
                // Of a dead process with the same number, or a live one in another container.
                Err(Errno::EXIST) => continue,
                Err(error) => return Err(Error::io("create a file in", folder.path(), error.into())),
            };
            let draft = Self { folder, file, temporary, path, at: 0, finished: false };
            draft.file.set_len(bytes as u64).map_err(|source| draft.error(source))?;
            return Ok(draft);
        }
    }

    pub(super) fn finish(mut self) -> Result<(), Error> {
        // Some file systems find out only now that they are full. And a power cut must not leave zeros
        // under a final name.
        self.file.sync_data().map_err(|source| self.error(source))?;
        renameat(self.folder, &self.temporary, self.folder, self.path.file_name().unwrap_or_default())
            .map_err(|error| self.error(error.into()))?;
        self.finished = true;
        Ok(())
    }

    fn error(&self, source: io::Error) -> Error {
        Error::io("write", self.path, source)
    }
}

impl Sink for Draft<'_> {
    const CHECKS_TABLES: bool = true;

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all_at(bytes, self.at).map_err(|source| self.error(source))?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Leaves a hole, which reads as zeros.
    fn skip(&mut self, bytes: usize) -> Result<(), Error> {
        self.at += bytes as u64;
        Ok(())
    }

    fn wrong_table(&self, expected: &'static str, found: String) -> Error {
        Error::Digest { path: self.path.to_owned(), expected, found }
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.finished {
            // If it cannot be removed either, the next start will try again.
            let _ = unlinkat(self.folder, &self.temporary, AtFlags::empty());
        }
    }
}

/// Removes the drafts of our dead runs. Their age tells: writing a file takes seconds.
pub(super) fn sweep(folder: &Folder) {
    // Not an error: a draft too many harms nobody.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(list) = openat(folder, ".", flags, Mode::empty()).and_then(Dir::new) else { return };
    for entry in list.flatten() {
        let name = entry.file_name();
        if name.to_bytes().starts_with(b".") && name.to_bytes().ends_with(DRAFT.as_bytes()) {
            let name = std::ffi::OsStr::from_bytes(name.to_bytes());
            if is_dead(folder, name) {
                let _ = unlinkat(folder, name, AtFlags::empty());
            }
        }
    }
}

fn is_dead(folder: &Folder, name: &std::ffi::OsStr) -> bool {
    const OLD: Duration = Duration::from_secs(600);
    let Ok(found) = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) else { return false };
    let is_ours =
        found.st_uid == geteuid().as_raw() && FileType::from_raw_mode(found.st_mode) == FileType::RegularFile;
    let since = u64::try_from(found.st_mtime).unwrap_or(0);
    let age = SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_secs(since));
    is_ours && age.is_ok_and(|age| age > OLD)
}
