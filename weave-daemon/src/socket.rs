//! The Unix socket: where it lies, who owns it, who may connect.
//!
//! The folder is private (0700) and so is the socket (0600), from its first moment. They are opened
//! as far as [`Access`] lists others, and no further. A lock file beside the socket tells a daemon
//! that runs from one that left its socket behind.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown};
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
    /// Others could put their own socket there, or reach ours.
    Folder(PathBuf, String),
    /// The group that may connect can't be given the socket.
    Group(PathBuf, u32, io::Error),
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
                "{} {why}; the socket belongs in a folder that is yours alone: mend it, or use another --socket",
                path.display()
            ),
            Self::Group(path, gid, error) => write!(
                f,
                "can't give {} to group {gid} of allow_gids: {error}; weaved must run as a member of it",
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

/// Who may connect beside our own user and root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Users.
    pub uids: Vec<u32>,
    /// Groups, be they a peer's own or supplementary ones.
    pub gids: Vec<u32>,
}

/// How far folder and socket are open: no further than the lists make it necessary. Where file modes
/// can't say who may connect, the peer's credentials alone decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Ours,
    Group(u32),
    Everybody,
}

impl Reach {
    const fn folder_mode(self) -> u32 {
        match self {
            Self::Ours => 0o700,
            Self::Group(_) => 0o710,
            Self::Everybody => 0o711,
        }
    }

    /// What a folder that exists already may allow at most.
    const fn folder_limit(self) -> u32 {
        match self {
            Self::Ours => 0o700,
            Self::Group(_) => 0o750,
            Self::Everybody => 0o755,
        }
    }

    const fn socket_mode(self) -> u32 {
        match self {
            Self::Ours => 0o600,
            Self::Group(_) => 0o660,
            Self::Everybody => 0o666,
        }
    }

    const fn group(self) -> Option<u32> {
        if let Self::Group(gid) = self { Some(gid) } else { None }
    }
}

impl Access {
    fn reach(&self) -> Reach {
        let others = self.uids.iter().any(|uid| !is_ours(*uid));
        match self.gids[..] {
            [] if !others => Reach::Ours,
            [gid] if !others => Reach::Group(gid),
            _ => Reach::Everybody,
        }
    }

    /// Whether the process at the other end may talk to us. The kernel vouches for who it was in the
    /// moment of connecting. Gives its uid.
    ///
    /// # Errors
    /// Who the peer is that may not, or why the kernel can't tell.
    pub fn check(&self, stream: &impl AsFd) -> Result<u32, String> {
        let (uid, gid) = peer(stream).map_err(|error| format!("its user is unknown: {error}"))?;
        if is_ours(uid) || self.uids.contains(&uid) || self.gids.contains(&gid) {
            return Ok(uid);
        }
        if !self.gids.is_empty() {
            let mut groups = [0; MAX_GROUPS];
            let groups = peer_groups(stream, &mut groups)
                .map_err(|error| format!("uid {uid}, gid {gid}: its other groups are unknown: {error}"))?;
            if groups.iter().any(|gid| self.gids.contains(gid)) {
                return Ok(uid);
            }
        }
        Err(format!("uid {uid}, gid {gid} may not connect"))
    }
}

/// Our own user, and root, who can do anything anyway.
pub(crate) fn is_ours(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

/// The peer's user and group as it connected.
#[cfg(target_os = "linux")]
fn peer(stream: &impl AsFd) -> io::Result<(u32, u32)> {
    let peer = rustix::net::sockopt::socket_peercred(stream)?;
    Ok((peer.uid.as_raw(), peer.gid.as_raw()))
}

#[cfg(not(target_os = "linux"))]
#[expect(unsafe_code, reason = "neither std nor rustix has this call")]
fn peer(stream: &impl AsFd) -> io::Result<(u32, u32)> {
    let (mut uid, mut gid) = (0, 0);
    let fd = stream.as_fd();
    // SAFETY: the descriptor is open as long as `fd` lives; the two numbers are the call's to write.
    match unsafe { libc::getpeereid(fd.as_raw_fd(), &raw mut uid, &raw mut gid) } {
        0 => Ok((uid, gid)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// More groups than this are not looked through.
const MAX_GROUPS: usize = 1024;

/// The supplementary groups of the peer as it connected (`SO_PEERGROUPS`, Linux 4.13).
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "neither std nor rustix has this option of sockets")]
fn peer_groups<'a>(stream: &impl AsFd, groups: &'a mut [u32; MAX_GROUPS]) -> io::Result<&'a [u32]> {
    let mut len = libc::socklen_t::try_from(size_of_val(groups)).unwrap_or(0);
    let fd = stream.as_fd();
    // SAFETY: the descriptor is open as long as `fd` lives; the kernel writes at most `len` bytes to
    // `groups`, which has as many and takes any bytes, and the number of them to `len`.
    let done = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(groups.get(..len as usize / size_of::<u32>()).unwrap_or_default())
}

#[cfg(not(target_os = "linux"))]
fn peer_groups<'a>(_: &impl AsFd, _: &'a mut [u32; MAX_GROUPS]) -> io::Result<&'a [u32]> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "only Linux tells them"))
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
    pub fn bind(path: &Path, access: &Access) -> Result<(Self, UnixListener), SocketError> {
        Self::bind_for(path, access.reach(), access.reach())
    }

    /// The same for a socket that is our own user's alone, in a folder where `access` may lead others.
    ///
    /// # Errors
    /// [`SocketError`]; nothing of anybody else's was touched.
    pub fn bind_private(path: &Path, access: &Access) -> Result<(Self, UnixListener), SocketError> {
        Self::bind_for(path, access.reach(), Reach::Ours)
    }

    fn bind_for(path: &Path, folder_reach: Reach, reach: Reach) -> Result<(Self, UnixListener), SocketError> {
        let at = |what| move |error| SocketError::Io(what, path.to_owned(), error);
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let is_new = fs::symlink_metadata(folder).is_err();
        DirBuilder::new().mode(0o700).recursive(true).create(folder).map_err(at("make the folder of"))?;
        let folder_mode = check_reach(folder, folder_reach)?;
        if is_new && folder_reach != Reach::Ours {
            open_to(folder, folder_reach.group(), folder_reach.folder_mode())?;
        } else if folder_mode & reach.folder_mode() != reach.folder_mode() {
            log::warn!(
                "{} has mode {folder_mode:04o}, so some users who may connect can't reach the socket in it; set mode {:04o}",
                folder.display(),
                reach.folder_mode()
            );
        }

        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
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
                log::info!("replacing {}, the stale socket of a daemon that has died", path.display());
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
        if reach != Reach::Ours {
            open_to(path, reach.group(), reach.socket_mode())?;
        }
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

/// Whether sockets can be in this folder, as far as that depends on the folder.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_folder(folder: &Path, access: &Access) -> Result<(), SocketError> {
    check_reach(folder, access.reach()).map(|_| ())
}

/// Others must not be able to replace what is in the folder, nor to reach it without need. Gives its
/// mode.
fn check_reach(folder: &Path, reach: Reach) -> Result<u32, SocketError> {
    let found =
        fs::symlink_metadata(folder).map_err(|error| SocketError::Io("look at", folder.to_owned(), error))?;
    let mode = found.mode() & 0o777;
    let (limit, us) = (reach.folder_limit(), geteuid().as_raw());
    let wrong = if found.is_symlink() {
        "is a symbolic link".to_owned()
    } else if !found.is_dir() {
        "is not a folder".to_owned()
    } else if found.uid() != us {
        format!("belongs to uid {}, not to uid {us}", found.uid())
    } else if mode & !limit != 0 {
        format!("has mode {mode:04o}, must have at most {limit:04o}")
    } else if let Reach::Group(gid) = reach
        && mode & 0o070 != 0
        && found.gid() != gid
    {
        format!("is open to group {}, not to group {gid}", found.gid())
    } else {
        return Ok(mode);
    };
    Err(SocketError::Folder(folder.to_owned(), wrong))
}

/// Opens what was private until now: first the group, then the mode, so that nobody else gets in
/// in between.
fn open_to(path: &Path, group: Option<u32>, mode: u32) -> Result<(), SocketError> {
    if let Some(gid) = group {
        lchown(path, None, Some(gid)).map_err(|error| SocketError::Group(path.to_owned(), gid, error))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(|error| SocketError::Io("open", path.to_owned(), error))
}
