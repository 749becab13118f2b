//! A file that is written under no name, and gets its own when it is complete.
//!
//! On Linux it has none until then (`O_TMPFILE`), so that nobody can take it for something else, and the kernel removes it
//! with the process, however that ends. Where the file system can't do that it has a temporary name meanwhile. Whoever may
//! write to the folder can put another file in the place of one with a name: so it is looked at again at the end.

use std::fs::{self, File};
use std::io::{self, Write};
#[cfg(target_os = "linux")]
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tempfile::TempPath;

/// What to do with a file that has the image's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Existing {
    /// Leave it, and fail.
    Keep,
    /// Replace it.
    Replace,
}

/// A file that is being written. If it has a temporary name it loses it when it is taken from here. Shared with the thread
/// that waits for signals, because ending the process drops nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unfinished(Arc<Mutex<Option<Name>>>);

impl Unfinished {
    pub(crate) fn remove(&self) {
        self.lock().take();
    }

    /// Held while the file gets its temporary or its final name, so that a signal comes before or
    /// after that.
    fn lock(&self) -> MutexGuard<'_, Option<Name>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What it is called meanwhile.
#[derive(Debug)]
enum Name {
    /// Nothing, in this folder.
    #[cfg(target_os = "linux")]
    None(OwnedFd),
    Temporary(TempPath),
}

/// Why the file has not got its name.
#[derive(Debug)]
pub(super) enum Unnamed {
    /// There is one of this name, which is not to be replaced.
    Exists,
    /// What has the name now, or had the temporary one, is another file.
    Swapped,
    Io(io::Error),
}

impl From<io::Error> for Unnamed {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::AlreadyExists { Self::Exists } else { Self::Io(error) }
    }
}

/// A file that has not got its name yet. Unless it gets it, it is removed.
#[derive(Debug)]
pub(crate) struct Draft {
    file: File,
    existing: Existing,
    unfinished: Unfinished,
}

impl Draft {
    /// A file in the folder of this path. The error is the reason alone.
    pub(super) fn create(path: &Path, existing: Existing, unfinished: &Unfinished) -> Result<Self, String> {
        let folder = folder_of(path);
        let mut name = unfinished.lock();
        let file = match Self::without_name(folder) {
            Some(made) => {
                let (file, its) = made.map_err(|error| error.to_string())?;
                *name = Some(its);
                file
            }
            None => {
                let (file, its) = temporary(folder).map_err(|error| error.to_string())?;
                *name = Some(Name::Temporary(its));
                file
            }
        };
        Ok(Self { file, existing, unfinished: unfinished.clone() })
    }

    /// `None`: that can't be done here.
    #[cfg(target_os = "linux")]
    fn without_name(folder: &Path) -> Option<io::Result<(File, Name)>> {
        use rustix::fs::{Mode, OFlags, open, openat};
        use rustix::io::Errno;

        // It is named by way of this folder.
        if !Path::new("/proc/self/fd").is_dir() {
            return None;
        }
        let folder = match open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(folder) => folder,
            Err(error) => return Some(Err(error.into())),
        };
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        // Like any new file: what the umask leaves of it.
        match openat(&folder, ".", flags, Mode::from_raw_mode(0o666)) {
            Ok(file) => Some(Ok((file.into(), Name::None(folder)))),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOSYS) => None,
            Err(error) => Some(Err(error.into())),
        }
    }

    /// Takes so much room for the file, as far as its file system can say that it has it. It is given back with the draft.
    #[cfg(target_os = "linux")]
    pub(super) fn reserve(&self, bytes: u64) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;

        match fallocate(&self.file, FallocateFlags::empty(), 0, bytes) {
            Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => Err(error.into()),
            // Not all can do that.
            _ => Ok(()),
        }
    }

    #[cfg(not(target_os = "linux"))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "as where it can be done")]
    pub(super) fn reserve(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    #[cfg(not(target_os = "linux"))]
    fn without_name(_: &Path) -> Option<io::Result<(File, Name)>> {
        None
    }

    /// Writes all of it and gives it its name.
    pub(super) fn finish(mut self, path: &Path, bytes: &[u8]) -> Result<(), Unnamed> {
        // Some file systems find out as late as this that they are full.
        self.file.write_all(bytes).and_then(|()| self.file.sync_all())?;
        let mut name = self.unfinished.lock();
        match name.take() {
            // A signal took it, and ends the process at any moment.
            None => Err(Unnamed::Io(io::ErrorKind::Interrupted.into())),
            #[cfg(target_os = "linux")]
            Some(Name::None(folder)) => {
                // In the folder that it was made in, whatever its path leads to by now.
                let within = within(&folder, path);
                match self::name(&self.file, bytes, &within, self.existing) {
                    // The image is there, so it is given a name in some way.
                    Err(Unnamed::Io(_)) => {
                        let (file, name) = temporary(folder_of(&within))?;
                        self.file = file;
                        self.file.write_all(bytes).and_then(|()| self.file.sync_all())?;
                        persist(&self.file, bytes, name, &within, self.existing)
                    }
                    named => named,
                }
            }
            Some(Name::Temporary(name)) => persist(&self.file, bytes, name, path, self.existing),
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        self.unfinished.remove();
    }
}

fn builder() -> tempfile::Builder<'static, 'static> {
    let mut temporary = tempfile::Builder::new();
    temporary.prefix(".weave.").suffix(".part");
    temporary
}

pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes an empty file of this name, which there is none of, and removes it again: only so can it be known whether the file
/// system takes the name.
pub(super) fn try_name(path: &Path, unfinished: &Unfinished) -> io::Result<()> {
    // A signal comes before or after that.
    let _held = unfinished.lock();
    let file = File::options().write(true).create_new(true).open(path)?;
    match check(&file, b"", path) {
        Ok(()) => fs::remove_file(path),
        // Somebody else has put another there just now.
        Err(_) => Err(io::ErrorKind::AlreadyExists.into()),
    }
}

/// Keeps these bytes in a new file whose name begins and ends like this.
pub(super) fn keep(folder: &Path, name: &str, suffix: &str, bytes: &[u8]) -> io::Result<PathBuf> {
    let mut file = tempfile::Builder::new().prefix(name).suffix(suffix).tempfile_in(folder)?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all())?;
    let (_, path) = file.keep().map_err(|error| error.error)?;
    // As people name it.
    let name = PathBuf::from(path.file_name().unwrap_or_default());
    Ok(if folder == Path::new(".") { name } else { folder.join(name) })
}

fn temporary(folder: &Path) -> io::Result<(File, TempPath)> {
    let mut own = None;
    let made = builder().make_in(folder, |path| {
        // Like any new file: what the umask leaves of it.
        let opened = File::options().write(true).create_new(true).open(path);
        opened.inspect_err(|error| own = error.raw_os_error())
    });
    // The error that comes out goes on about the temporary name.
    made.map(tempfile::NamedTempFile::into_parts)
        .map_err(|error| own.map_or(error, io::Error::from_raw_os_error))
}

/// Gives the file its final name instead of its temporary one.
fn persist(
    file: &File,
    bytes: &[u8],
    name: TempPath,
    path: &Path,
    existing: Existing,
) -> Result<(), Unnamed> {
    check(file, bytes, &name)?;
    match existing {
        Existing::Replace => name.persist(path),
        Existing::Keep => name.persist_noclobber(path),
    }
    .map_err(|error| Unnamed::from(error.error))?;
    check(file, bytes, path)
}

/// Whether this is the name of that file.
#[cfg(unix)]
fn check(file: &File, bytes: &[u8], path: &Path) -> Result<(), Unnamed> {
    use std::os::unix::fs::MetadataExt;

    let identity = |found: &fs::Metadata| (found.dev(), found.ino());
    let ours = identity(&file.metadata()?);
    let is_it = fs::symlink_metadata(path).is_ok_and(|found| identity(&found) == ours);
    // Some file systems of other machines number a file anew each time.
    if is_it || holds(path, bytes) { Ok(()) } else { Err(Unnamed::Swapped) }
}

/// Whether a file of this name has these bytes.
#[cfg(unix)]
fn holds(path: &Path, bytes: &[u8]) -> bool {
    use std::io::Read;

    use rustix::fs::{Mode, OFlags, open};

    // Whatever has the name now is not waited for.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let Ok(file) = open(path, flags, Mode::empty()) else { return false };
    let mut file = File::from(file);
    let has_its_size =
        file.metadata().is_ok_and(|found| found.is_file() && found.len() == bytes.len() as u64);
    let mut found = vec![0; bytes.len()];
    has_its_size && file.read_exact(&mut found).is_ok() && found == bytes
}

/// Elsewhere a file can't be replaced while it is open.
#[cfg(not(unix))]
fn check(_: &File, _: &[u8], path: &Path) -> Result<(), Unnamed> {
    fs::symlink_metadata(path).map(drop).map_err(|_| Unnamed::Swapped)
}

/// The path's name in this folder.
#[cfg(target_os = "linux")]
fn within(folder: &OwnedFd, path: &Path) -> PathBuf {
    use std::os::fd::AsRawFd;

    let folder = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
    folder.join(path.file_name().unwrap_or_default())
}

/// Gives a name to a file without one.
#[cfg(target_os = "linux")]
fn name(file: &File, bytes: &[u8], path: &Path, existing: Existing) -> Result<(), Unnamed> {
    match link(file, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && existing == Existing::Replace => {}
        other => {
            other?;
            return check(file, bytes, path);
        }
    }
    // A link replaces nothing, and renaming takes a name.
    let named = builder().make_in(folder_of(path), |name| link(file, name))?;
    persist(file, bytes, named.into_temp_path(), path, existing)
}

#[cfg(target_os = "linux")]
fn link(file: &File, path: &Path) -> io::Result<()> {
    use std::os::fd::AsRawFd;

    use rustix::fs::{AtFlags, CWD, linkat};

    // The other way takes a capability.
    let itself = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(linkat(CWD, itself, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A draft with a temporary name, as on file systems that know no other.
    fn named(folder: &Path, existing: Existing) -> (Draft, std::path::PathBuf) {
        let (file, name) = temporary(folder).unwrap();
        let path = name.to_path_buf();
        let unfinished = Unfinished(Arc::new(Mutex::new(Some(Name::Temporary(name)))));
        (Draft { file, existing, unfinished }, path)
    }

    #[test]
    fn a_file_that_was_put_in_its_place_is_told_from_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cat.png");
        for existing in [Existing::Keep, Existing::Replace] {
            let (draft, temporary) = named(folder.path(), existing);
            draft.finish(&path, b"ours").unwrap();
            assert_eq!((fs::read(&path).unwrap(), temporary.exists()), (b"ours".to_vec(), false));
            fs::remove_file(&path).unwrap();

            let (draft, temporary) = named(folder.path(), existing);
            fs::remove_file(&temporary).unwrap();
            fs::write(&temporary, "theirs").unwrap();
            assert!(matches!(draft.finish(&path, b"ours"), Err(Unnamed::Swapped)));
            assert!(!path.exists());
        }
        fs::write(&path, "theirs").unwrap();
        let (draft, _) = named(folder.path(), Existing::Keep);
        assert!(matches!(draft.finish(&path, b"ours"), Err(Unnamed::Exists)));
        let (draft, _) = named(folder.path(), Existing::Replace);
        draft.finish(&path, b"ours").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"ours");
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
        let other = File::create(folder.path().join("other")).unwrap();
        assert!(matches!(check(&other, b"their", &path), Err(Unnamed::Swapped)));
        assert!(matches!(check(&other, b"OURS", &path), Err(Unnamed::Swapped)));
        // Whatever its number is.
        check(&other, b"ours", &path).unwrap();
    }

    /// Whoever may write further up can rename the folder, and put a link in its place.
    #[test]
    #[cfg(target_os = "linux")]
    fn the_folder_stays_the_one_it_was() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        for existing in [Existing::Keep, Existing::Replace] {
            fs::create_dir(at("folder")).unwrap();
            fs::create_dir(at("precious")).unwrap();
            fs::write(at("precious/cat.png"), "precious").unwrap();
            if existing == Existing::Replace {
                fs::write(at("folder/cat.png"), "old").unwrap();
            }
            let draft = Draft::create(&at("folder/cat.png"), existing, &Unfinished::default()).unwrap();
            fs::rename(at("folder"), at("away")).unwrap();
            std::os::unix::fs::symlink("precious", at("folder")).unwrap();
            draft.finish(&at("folder/cat.png"), b"ours").unwrap();
            assert_eq!(fs::read(at("precious/cat.png")).unwrap(), b"precious");
            assert_eq!(fs::read(at("away/cat.png")).unwrap(), b"ours");
            assert_eq!(at("away").read_dir().unwrap().count(), 1);
            fs::remove_file(at("folder")).unwrap();
            fs::remove_dir_all(at("away")).unwrap();
            fs::remove_dir_all(at("precious")).unwrap();
        }
    }

    #[test]
    fn what_is_given_up_goes_and_can_not_be_finished() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cat.png");
        let draft = Draft::create(&path, Existing::Keep, &Unfinished::default()).unwrap();
        draft.unfinished.remove();
        assert!(matches!(draft.finish(&path, b"ours"), Err(Unnamed::Io(_))));
        let (draft, _) = named(folder.path(), Existing::Keep);
        draft.unfinished.clone().remove();
        assert!(draft.finish(&path, b"ours").is_err());
        drop(named(folder.path(), Existing::Keep));
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    }
}
