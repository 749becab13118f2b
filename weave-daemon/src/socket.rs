//! The Unix socket: where it lies, who owns it, who may connect.
//!
//! The folder is private (0700) and so is the socket (0600), from its first moment. A lock file
//! beside it tells a daemon that runs from one that left its socket behind.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, flock};
use rustix::process::{geteuid, umask};

/// Why there is no socket to listen on.
#[derive(Debug)]
pub enum SocketError {
    /// Nothing says where the socket belongs.
    NoPlace,
    /// Somebody listens there already.
    Taken(PathBuf),
    /// Something else is in the socket's place.
    NotASocket(PathBuf),
    /// Others could put their own socket there.
    Folder(PathBuf, &'static str),
    /// The operating system said no.
    Io(&'static str, PathBuf, io::Error),
}

impl fmt::Display for SocketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPlace => f.write_str(
                "no place for the socket: XDG_RUNTIME_DIR is not set; log in with a session that sets it, or \
                 say --socket PATH",
            ),
            Self::Taken(path) => {
                write!(
                    f,
                    "another daemon already listens on {}; stop it or use another --socket",
                    path.display()
                )
            }
            Self::NotASocket(path) => {
                write!(f, "{} exists and is not a socket; remove it or use another --socket", path.display())
            }
            Self::Folder(path, why) => write!(
                f,
                "{} {why}, so others could take the socket's place; use a folder of your own with mode 0700",
                path.display()
            ),
            Self::Io(what, path, error) => write!(f, "can't {what} {}: {error}", path.display()),
        }
    }
}

impl std::error::Error for SocketError {}

/// The default place: `$XDG_RUNTIME_DIR/weave/weave.sock`.
///
/// # Errors
/// [`SocketError::NoPlace`] if the variable isn't set.
pub fn default_path() -> Result<PathBuf, SocketError> {
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        Some(folder) if folder.is_absolute() => Ok(folder.join("weave/weave.sock")),
        _ => Err(SocketError::NoPlace),
    }
}

/// A bound socket. Removes its own file, and no other, when dropped.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    /// Device and inode of the file that was made.
    identity: (u64, u64),
    /// Locked as long as this daemon lives.
    _lock: File,
}

impl Socket {
    /// Binds `path`, taking over a socket that a daemon left behind when it died.
    ///
    /// Changes the process's umask for a moment: to be called before there are other threads.
    ///
    /// # Errors
    /// [`SocketError`]; nothing of anybody else's was touched.
    pub fn bind(path: &Path) -> Result<(Self, UnixListener), SocketError> {
        let at = |what| move |error| SocketError::Io(what, path.to_owned(), error);
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        DirBuilder::new().mode(0o700).recursive(true).create(folder).map_err(at("make the folder of"))?;
        check_folder(folder)?;

        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(at("make the lock file of"))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(SocketError::Taken(path.to_owned())),
            Err(error) => return Err(at("lock the lock file of")(error.into())),
        }

        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(at("look at")(error)),
            Ok(file) if !file.file_type().is_socket() => {
                return Err(SocketError::NotASocket(path.to_owned()));
            }
            // We hold the lock, but whoever listens may be a program that doesn't know it.
            Ok(_) if UnixStream::connect(path).is_ok() => return Err(SocketError::Taken(path.to_owned())),
            Ok(_) => {
                log::info!("{} was left behind by a daemon that is gone; taking it over", path.display());
                fs::remove_file(path).map_err(at("remove"))?;
            }
        }
        let before = umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
        let listener = UnixListener::bind(path);
        umask(before);
        let listener = listener.map_err(at("listen on"))?;
        listener.set_nonblocking(true).map_err(at("listen on"))?;
        let made = fs::symlink_metadata(path).map_err(at("look at"))?;
        let socket = Self { path: path.to_owned(), identity: (made.dev(), made.ino()), _lock: lock };
        Ok((socket, listener))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            log::warn!("can't remove {}: {error}", self.path.display());
        }
    }
}

/// Others must not be able to replace what is in the folder.
pub(crate) fn check_folder(folder: &Path) -> Result<(), SocketError> {
    let wrong = |why| Err(SocketError::Folder(folder.to_owned(), why));
    let found = fs::metadata(folder).map_err(|error| SocketError::Io("look at", folder.to_owned(), error))?;
    let sticky = found.mode() & 0o1000 != 0;
    if found.uid() != geteuid().as_raw() && found.uid() != 0 {
        return wrong("belongs to another user");
    }
    if found.mode() & 0o022 != 0 && !sticky {
        return wrong("can be written by others");
    }
    Ok(())
}

/// Whether the process at the other end may talk to us: it runs as our own user or as root. The
/// kernel vouches for it as of the moment of connecting.
///
/// # Errors
/// The user id of a peer that may not, or why the kernel can't tell.
pub fn check_peer(stream: &impl AsFd) -> Result<(), String> {
    match rustix::net::sockopt::socket_peercred(stream) {
        Ok(peer) if peer.uid == geteuid() || peer.uid.is_root() => Ok(()),
        Ok(peer) => Err(format!("uid {} is not ours", peer.uid.as_raw())),
        Err(error) => Err(format!("its user is unknown: {error}")),
    }
}
