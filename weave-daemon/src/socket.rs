//! The Unix socket: where it lies, who owns it, who may connect.
//!
//! The folder is private (0700) and so is the socket (0600), from its first moment. They are opened
//! as far as [`Access`] lists others, and no further. The folders above it are nobody else's either
//! ([`weave_trust`]): whoever could rename one of them could put another daemon in our place. A lock file beside the socket tells a daemon
//! that runs from one that left its socket behind.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, FileType, FlockOperation, Mode, OFlags, Stat, flock, fstat, openat, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::{geteuid, umask};
use weave_trust::{Distrust, Folder, Peer, Rules, Why, peer};

use crate::user::User;

/// Why there is no socket to listen on.
#[derive(Debug)]
pub enum SocketError {
    /// Nothing says where the socket belongs.
    NoPlace,
    /// Somebody listens there already.
    Taken(PathBuf),
    /// A daemon that was to listen there lives, but nobody can connect to it.
    Locked(PathBuf),
    /// Something else is in the socket's place.
    NotASocket(PathBuf),
    /// Others could put their own socket there, or reach ours.
    Folder(PathBuf, String),
    /// Others could do so by way of a folder further up.
    Way(Distrust),
    /// The group that may connect can't be given the socket.
    Group(PathBuf, u32, io::Error),
    /// The operating system said no.
    Io(&'static str, PathBuf, io::Error),
}

impl fmt::Display for SocketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPlace => f.write_str(
                "no place for the socket: neither XDG_RUNTIME_DIR nor HOME names a folder of this user; say --socket \
                 PATH, or set one of them",
            ),
            Self::Taken(path) => {
                write!(
                    f,
                    "another daemon already listens on {}; stop it or use another --socket",
                    path.display()
                )
            }
            Self::Locked(path) => write!(
                f,
                "another weaved that was started with {0} still runs, though nobody can connect to it there: it may stand \
                 still, or its socket was removed or replaced; restart that one, or use another --socket (it holds \
                 {0}.lock)",
                path.display()
            ),
            Self::NotASocket(path) => {
                write!(f, "{} exists and is not a socket; remove it or use another --socket", path.display())
            }
            Self::Folder(path, why) => write!(
                f,
                "{} {why}; the socket belongs in a folder that is yours alone: mend it, or use another --socket",
                path.display()
            ),
            Self::Way(distrust) => write!(
                f,
                "{distrust}; nobody else may be able to replace the socket's folder: mend that, use another \
                 --socket, or list it in trusted_folders if nobody else uses it"
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

/// The default place: `$XDG_RUNTIME_DIR/weave/weave.sock`, or `~/.weave/weave.sock` where that variable isn't set.
///
/// # Errors
/// [`SocketError::NoPlace`] if the home folder isn't known either.
pub fn default_path() -> Result<PathBuf, SocketError> {
    default_path_from(|name| std::env::var_os(name)).ok_or(SocketError::NoPlace)
}

fn default_path_from(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    // The XDG specification has relative paths ignored; that covers an empty one.
    let folder = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    // Users who can't log in often have / for a home.
    let home =
        || folder("HOME").filter(|home| home.parent().is_some()).map(|home| home.join(".weave/weave.sock"));
    folder("XDG_RUNTIME_DIR").map(|dir| dir.join("weave/weave.sock")).or_else(home)
}

/// Where a daemon is expected that nobody has named: at the default place, or where the system's is, if that is there
/// and the other isn't. Clients look for it in the same way.
///
/// # Errors
/// [`SocketError::NoPlace`] if it is at neither.
pub fn usual_path() -> Result<PathBuf, SocketError> {
    let system = Path::new(SYSTEM);
    match default_path() {
        Ok(own) if is_there(&own) || !is_there(system) => Ok(own),
        Err(error) if !is_there(system) => Err(error),
        _ => Ok(system.to_owned()),
    }
}

/// The places where [`usual_path`] looks, in their order.
#[must_use]
pub fn usual_paths() -> Vec<PathBuf> {
    default_path().into_iter().chain([PathBuf::from(SYSTEM)]).collect()
}

/// Where a daemon is that serves all of a machine: the package's.
const SYSTEM: &str = "/run/weave/weave.sock";

/// Whether something is there, be it that this user may not look.
fn is_there(path: &Path) -> bool {
    match path.symlink_metadata() {
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
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
        let Peer { uid, gid } = peer(stream).map_err(|error| format!("its user is unknown: {error}"))?;
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

/// Whose process has connected, where the kernel tells.
pub(crate) fn peer_user(stream: &impl AsFd) -> Option<User> {
    peer(stream).ok().map(|peer| user(peer.uid))
}

/// As what a user of this machine is counted.
pub(crate) fn user(uid: u32) -> User {
    if is_ours(uid) { User::Owner(uid) } else { User::Uid(uid) }
}

/// Our own user, and root, who can do anything anyway.
fn is_ours(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

/// More groups than this are not looked through.
const MAX_GROUPS: usize = 1024;

/// The supplementary groups of the peer as it connected (`SO_PEERGROUPS`, Linux 4.13).
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "neither std nor rustix has this option of sockets")]
fn peer_groups<'a>(stream: &impl AsFd, groups: &'a mut [u32; MAX_GROUPS]) -> io::Result<&'a [u32]> {
    use std::os::fd::AsRawFd;

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
    folder: Folder,
    name: OsString,
    /// Device and inode of the file that was made.
    identity: (u64, u64),
    /// How far it is open.
    reach: Reach,
    /// Locked as long as this daemon lives.
    lock: OwnedFd,
}

/// Why a path no longer leads to the socket that was bound there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Nothing is there.
    Removed,
    /// Something else is there.
    Replaced,
    /// The folder is another one, or none.
    Folder,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Removed => "it was removed",
            Self::Replaced => "something else is there now",
            Self::Folder => "its folder was removed, renamed or replaced",
        })
    }
}

impl Socket {
    /// Binds `path`, taking over a socket that a daemon left behind when it died.
    ///
    /// Changes the process's umask for a moment: other threads make no files then, or only their own user's.
    ///
    /// # Errors
    /// [`SocketError`]; nothing of anybody else's was touched.
    pub fn bind(path: &Path, access: &Access, rules: &Rules) -> Result<(Self, UnixListener), SocketError> {
        let reach = access.reach();
        let at = |what| move |error| SocketError::Io(what, path.to_owned(), error);
        let Some(name) = path.file_name() else {
            return Err(at("listen on")(Errno::ISDIR.into()));
        };
        let place = folder_of(path);
        let is_new = fs::symlink_metadata(place).is_err();
        let folder = check_way(place, |place| Folder::make(place, rules)).map_err(|error| match error {
            SocketError::Io(_, _, error) => at("make the folder of")(error),
            error => error,
        })?;
        let folder_mode = check_reach(place, folder.metadata(), reach)?;
        if is_new && reach != Reach::Ours {
            open_to(place, reach.group(), reach.folder_mode())?;
        } else if folder_mode & reach.folder_mode() != reach.folder_mode() {
            log::warn!(
                "{} has mode {folder_mode:04o}, so some users who may connect can't reach the socket in it; set mode {:04o}",
                place.display(),
                reach.folder_mode()
            );
        }

        let until = Instant::now() + LOCK_LIMIT;
        let lock = loop {
            match take_lock(&folder, name, path)? {
                Some(lock) => break lock,
                None if UnixStream::connect(path).is_ok() => return Err(SocketError::Taken(path.to_owned())),
                // A daemon that has just died: what it was about to start may have the lock for a moment.
                None if Instant::now() < until => thread::sleep(LOCK_PAUSE),
                None => return Err(SocketError::Locked(path.to_owned())),
            }
        };
        match folder.kind_of(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(at("look at")(error)),
            Ok(kind) if kind != FileType::Socket => return Err(SocketError::NotASocket(path.to_owned())),
            // We hold the lock, but whoever listens may be a program that doesn't know it.
            Ok(_) if UnixStream::connect(path).is_ok() => return Err(SocketError::Taken(path.to_owned())),
            Ok(_) => {
                log::info!("replacing {}, the stale socket of a daemon that has died", path.display());
                unlinkat(&folder, name, AtFlags::empty()).map_err(|error| at("remove")(error.into()))?;
            }
        }
        let listener = listen(path)?;
        let identity = identity(&folder, name).map_err(|error| at("look at")(error.into()))?;
        let (path, name) = (path.to_owned(), name.to_owned());
        let socket = Self { path, folder, name, identity, reach, lock };
        socket.open()?;
        Ok((socket, listener))
    }

    /// Lets those in who may connect.
    fn open(&self) -> Result<(), SocketError> {
        match self.reach {
            Reach::Ours => Ok(()),
            reach => open_to(&self.path, reach.group(), reach.socket_mode()),
        }
    }

    /// Where clients look for it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether its path still leads to it.
    ///
    /// # Errors
    /// [`Lost`]: why not.
    pub fn look(&self) -> Result<(), Lost> {
        let ours = self.folder.metadata();
        let is_ours = |found: Metadata| (found.dev(), found.ino()) == (ours.dev(), ours.ino());
        if !fs::symlink_metadata(folder_of(&self.path)).is_ok_and(is_ours) {
            return Err(Lost::Folder);
        }
        match identity(&self.folder, &self.name) {
            Ok(found) if found == self.identity => Ok(()),
            Err(Errno::NOENT) => Err(Lost::Removed),
            _ => Err(Lost::Replaced),
        }
    }

    /// Makes a socket anew that was [removed](Lost::Removed), with the same lock and mode.
    ///
    /// # Errors
    /// [`SocketError`]: another daemon has been started in the meantime, or what the operating system says.
    pub fn bind_again(&mut self) -> Result<UnixListener, SocketError> {
        let at = |what, error: Errno| SocketError::Io(what, self.path.clone(), error.into());
        let lock = fstat(&self.lock).map_err(|error| at("look at the lock file of", error))?;
        // Whoever removes all that is in the folder removes that one, too.
        let has_lock =
            identity(&self.folder, &lock_name(&self.name)).is_ok_and(|found| found == identity_of(&lock));
        if !has_lock {
            let lock = take_lock(&self.folder, &self.name, &self.path)?;
            self.lock = lock.ok_or_else(|| SocketError::Locked(self.path.clone()))?;
        }
        let listener = listen(&self.path)?;
        self.identity = identity(&self.folder, &self.name).map_err(|error| at("look at", error))?;
        self.open()?;
        Ok(listener)
    }
}

/// How long a daemon that is dying may keep its lock.
const LOCK_LIMIT: Duration = Duration::from_secs(1);
/// Between two tries to have it.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

fn lock_name(name: &OsStr) -> OsString {
    let mut lock_name = name.to_owned();
    lock_name.push(".lock");
    lock_name
}

/// Takes the lock for the socket of this name. `None`: another daemon has it.
fn take_lock(folder: &Folder, name: &OsStr, path: &Path) -> Result<Option<OwnedFd>, SocketError> {
    let at = |what| move |error: Errno| SocketError::Io(what, path.to_owned(), error.into());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let lock = openat(folder, lock_name(name), flags, Mode::RUSR | Mode::WUSR)
        .map_err(at("make the lock file of"))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(lock)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(at("lock the lock file of")(error)),
    }
}

/// Listens where nothing is, for our own user alone.
fn listen(path: &Path) -> Result<UnixListener, SocketError> {
    let at = |error| SocketError::Io("listen on", path.to_owned(), error);
    let before = umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
    // By its path, which clients use and the kernel tells. Nobody else can have changed where that leads.
    let listener = UnixListener::bind(path);
    umask(before);
    let listener = listener.map_err(at)?;
    listener.set_nonblocking(true).map_err(at)?;
    Ok(listener)
}

impl Drop for Socket {
    fn drop(&mut self) {
        let ours = identity(&self.folder, &self.name).is_ok_and(|found| found == self.identity);
        if ours && let Err(error) = unlinkat(&self.folder, &self.name, AtFlags::empty()) {
            log::warn!("can't remove {}: {error}", self.path.display());
        }
    }
}

/// Device and inode.
#[allow(
    clippy::cast_sign_loss,
    clippy::unnecessary_cast,
    reason = "other systems have other types for these"
)]
fn identity_of(found: &Stat) -> (u64, u64) {
    (found.st_dev as u64, found.st_ino as u64)
}

/// Those of what has this name.
fn identity(folder: &Folder, name: &OsStr) -> Result<(u64, u64), Errno> {
    statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).map(|found| identity_of(&found))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whether a socket can be at this path, as far as that depends on its folder. One that isn't there yet will do.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_folder(path: &Path, access: &Access, rules: &Rules) -> Result<(), SocketError> {
    let place = folder_of(path);
    match check_way(place, |place| Folder::find(place, rules)) {
        Ok(folder) => check_reach(place, folder.metadata(), access.reach()).map(|_| ()),
        Err(SocketError::Io(_, _, error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Goes to the folder, which is no link itself.
fn check_way(
    place: &Path,
    go: impl FnOnce(&Path) -> Result<Folder, Distrust>,
) -> Result<Folder, SocketError> {
    if fs::symlink_metadata(place).is_ok_and(|found| found.is_symlink()) {
        return Err(SocketError::Folder(place.to_owned(), "is a symbolic link".to_owned()));
    }
    go(place).map_err(|distrust| match distrust.why {
        Why::Io(error) => SocketError::Io("look at", distrust.path, error),
        _ => SocketError::Way(distrust),
    })
}

/// Others must not be able to replace what is in the folder, nor to reach it without need. Gives its
/// mode.
fn check_reach(folder: &Path, found: &Metadata, reach: Reach) -> Result<u32, SocketError> {
    let mode = found.mode() & 0o777;
    let (limit, us) = (reach.folder_limit(), geteuid().as_raw());
    let wrong = if found.uid() != us {
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
