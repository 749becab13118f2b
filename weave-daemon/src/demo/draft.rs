//! Files that get their names only once they are complete, and what runs that were killed have left of theirs.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::error::Error;

/// A file on its way to its name. Dropped before [`Draft::finish`], it leaves nothing behind.
pub(super) struct Draft<'a> {
    file: File,
    pub(super) temporary: PathBuf,
    pub(super) path: &'a Path,
    at: u64,
    finished: bool,
}

/// How the names of drafts end. They start with a dot and the final name.
const DRAFT: &str = ".draft";

impl<'a> Draft<'a> {
    pub(super) fn create(path: &'a Path, bytes: usize) -> Result<Self, Error> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let folder = path.parent().unwrap_or(Path::new("."));
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|source| Error::io("create the folder", folder, source))?;
        let name = path.file_name().unwrap_or_default().display();
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let temporary = folder.join(format!(".{name}.{}-{count}{DRAFT}", process::id()));
            let file = match OpenOptions::new().write(true).create_new(true).open(&temporary) {
                Ok(file) => file,
                // Of a dead process with the same number, or a live one in another container.
                Err(taken) if taken.kind() == ErrorKind::AlreadyExists => continue,
                Err(source) => return Err(Error::io("create a file in", folder, source)),
            };
            let draft = Self { file, temporary, path, at: 0, finished: false };
            draft.file.set_len(bytes as u64).map_err(|source| draft.error(source))?;
            return Ok(draft);
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all_at(bytes, self.at).map_err(|source| self.error(source))?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Leaves a hole, which reads as zeros.
    pub(super) fn skip(&mut self, bytes: usize) {
        self.at += bytes as u64;
    }

    pub(super) fn finish(mut self) -> Result<(), Error> {
        // Some file systems find out only now that they are full. And a power cut must not leave zeros
        // under a final name: nothing would notice them.
        self.file.sync_data().map_err(|source| self.error(source))?;
        fs::rename(&self.temporary, self.path).map_err(|source| self.error(source))?;
        self.finished = true;
        Ok(())
    }

    fn error(&self, source: io::Error) -> Error {
        Error::io("write", self.path, source)
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.finished {
            // If it cannot be removed either, the next start will try again.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Removes the drafts of dead runs. Their age tells: writing a file takes seconds.
pub(super) fn sweep(folder: &Path) {
    const OLD: Duration = Duration::from_secs(600);
    // Not an error: mostly the folder is not there yet, and a draft too many harms nobody.
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let draft = name.starts_with('.') && name.ends_with(DRAFT);
        let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        if draft && age().is_some_and(|age| age > OLD) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
