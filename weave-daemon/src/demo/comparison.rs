//! Whether a file is there and has in it what would be written.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;
use rustix::process::geteuid;
use weave_trust::{Folder, Who};

use super::error::Error;
use super::sink::Sink;

/// Bytes that are read at once.
const CHUNK: usize = 1 << 18;

/// A file that is there, on its way through what would be written.
pub(super) struct Comparison<'a> {
    file: File,
    path: &'a Path,
    at: u64,
    is_same: bool,
    buffer: Vec<u8>,
}

impl<'a> Comparison<'a> {
    /// Opens the file of this path's name in the folder. `None`: what is there can't be the right file, so it can be
    /// written again, unless it is somebody else's.
    pub(super) fn open(folder: &Folder, path: &'a Path, bytes: usize) -> Result<Option<Self>, Error> {
        let name = path.file_name().unwrap_or_default();
        let unreadable = |error: io::Error| Error::io("read", path, error);
        let found = match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => found,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(unreadable(error.into())),
        };
        if found.st_uid != 0 && found.st_uid != geteuid().as_raw() {
            let shown = path.display();
            return Err(Error::Untrusted(format!("{shown} belongs to {}", Who(found.st_uid))));
        }
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return Ok(None);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(folder, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(error) => return Err(unreadable(error.into())),
        };
        let opened = file.metadata().map_err(unreadable)?;
        let as_written = opened.is_file() && opened.len() == bytes as u64 && opened.mode() & 0o022 == 0;
        Ok(as_written.then(|| Self { file, path, at: 0, is_same: true, buffer: vec![0; CHUNK] }))
    }

    /// Whether it was, as far as it has come.
    pub(super) const fn is_same(&self) -> bool {
        self.is_same
    }

    /// Whether the next bytes are what `expect` says of each piece of them.
    fn next(&mut self, bytes: usize, expect: impl Fn(usize, &[u8]) -> bool) -> Result<(), Error> {
        let mut done = 0;
        while self.is_same && done < bytes {
            let count = self.buffer.len().min(bytes - done);
            let Some(piece) = self.buffer.get_mut(..count) else { break };
            match self.file.read_exact_at(piece, self.at + done as u64) {
                Ok(()) => self.is_same = expect(done, piece),
                // Somebody cuts it off just now.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => self.is_same = false,
                Err(error) => return Err(Error::io("read", self.path, error)),
            }
            done += count;
        }
        self.at += bytes as u64;
        Ok(())
    }

    /// Whether the next bytes are a hole, which takes no reading.
    #[cfg(target_os = "linux")]
    fn is_hole(&self, bytes: usize) -> bool {
        use rustix::fs::{SeekFrom, seek};

        match seek(&self.file, SeekFrom::Data(self.at)) {
            Ok(data) => data >= self.at + bytes as u64,
            // There is no more data.
            Err(error) => error == Errno::NXIO,
        }
    }

    #[cfg(not(target_os = "linux"))]
    #[expect(clippy::unused_self, reason = "as on Linux")]
    const fn is_hole(&self, _: usize) -> bool {
        false
    }
}

impl Sink for Comparison<'_> {
    const CHECKS_TABLES: bool = false;

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.next(bytes.len(), |at, piece| bytes.get(at..at + piece.len()) == Some(piece))
    }

    fn skip(&mut self, bytes: usize) -> Result<(), Error> {
        if self.is_same && self.is_hole(bytes) {
            self.at += bytes as u64;
            return Ok(());
        }
        static ZEROS: [u8; CHUNK] = [0; CHUNK];
        self.next(bytes, |_, piece| ZEROS.get(..piece.len()) == Some(piece))
    }

    fn wrong_table(&self, expected: &'static str, found: String) -> Error {
        Error::Digest { path: self.path.to_owned(), expected, found }
    }
}
