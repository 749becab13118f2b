//! Who is at the other end of a Unix socket, and whether that may be a server.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::process::geteuid;

use crate::accounts::Who;
use crate::folder::{Rules, locate};

/// A process at the other end, by the kernel's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its effective user when it connected or, at a client's end, when it called `listen`.
    pub uid: u32,
    /// Its effective group then.
    pub gid: u32,
}

/// Asks the kernel who is at the other end.
///
/// # Errors
/// The kernel can't tell.
#[cfg(target_os = "linux")]
pub fn peer(stream: &impl AsFd) -> io::Result<Peer> {
    let peer = rustix::net::sockopt::socket_peercred(stream)?;
    Ok(Peer { uid: peer.uid.as_raw(), gid: peer.gid.as_raw() })
}

/// Asks the kernel who is at the other end.
///
/// # Errors
/// The kernel can't tell.
#[cfg(not(target_os = "linux"))]
#[expect(unsafe_code, reason = "neither std nor rustix has this call")]
pub fn peer(stream: &impl AsFd) -> io::Result<Peer> {
    use std::ffi::c_int;
    use std::os::fd::AsRawFd;

    unsafe extern "C" {
        // uid_t and gid_t have 32 bits on every system that has it.
        fn getpeereid(socket: c_int, uid: *mut u32, gid: *mut u32) -> c_int;
    }
    let (mut uid, mut gid) = (0, 0);
    let fd = stream.as_fd();
    // SAFETY: the descriptor is open as long as `fd` lives; the two numbers are the call's to write.
    match unsafe { getpeereid(fd.as_raw_fd(), &raw mut uid, &raw mut gid) } {
        0 => Ok(Peer { uid, gid }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Why a server gets nothing from us.
#[derive(Debug)]
pub enum Stranger {
    /// It belongs to this user, whom nobody has named.
    User(u32),
    /// The kernel doesn't say whose it is.
    Unknown(io::Error),
}

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(uid) => {
                write!(f, "belongs to {}, neither to root nor to {}", Who(*uid), Who(geteuid().as_raw()))
            }
            Self::Unknown(error) => write!(f, "can't be told whose it is: {error}"),
        }
    }
}

impl std::error::Error for Stranger {}

/// Whether the server to which `stream` has just been connected at `socket` may be told anything: it is ours or root's, or
/// `named`'s, or a system service. That is one whose socket lies in a folder that root has made for its user in `/run`,
/// where nobody else could have made it.
///
/// The kernel says who called `listen`. For a socket that systemd passes on that is systemd: root for the system's units, and
/// the user for a user's own.
///
/// # Errors
/// Whose it is.
pub fn check_server(stream: &impl AsFd, socket: &Path, named: Option<u32>) -> Result<(), Stranger> {
    let Peer { uid, .. } = peer(stream).map_err(Stranger::Unknown)?;
    let is_ours = uid == 0 || uid == geteuid().as_raw();
    if is_ours || named == Some(uid) || service(socket) == Some(uid) {
        Ok(())
    } else {
        Err(Stranger::User(uid))
    }
}

/// Where root makes folders for services.
const SERVICES: [&str; 3] = ["/run", "/var/run", "/private/var/run"];
/// Where root makes one for each user who logs in: nobody's but theirs.
const SESSIONS: &str = "/run/user";

/// To whom root gave the folder of this socket, if root did.
fn service(socket: &Path) -> Option<u32> {
    let (folder, _) = locate(socket, &Rules::of_root()).ok()?;
    let path = folder.path();
    let lies_there = SERVICES.iter().any(|run| path.starts_with(run) && path != Path::new(run));
    // Whom this user namespace doesn't map could be anybody.
    (lies_there && !path.starts_with(SESSIONS) && folder.uid() != 65534).then(|| folder.uid())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    use std::path::PathBuf;

    use super::*;

    /// In /run itself, which takes root. Removed at the end.
    struct InRun(PathBuf);

    impl InRun {
        fn new() -> Option<Self> {
            let path = PathBuf::from(format!("/run/weave-trust-{}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => Some(Self(path)),
                Err(error) => {
                    eprintln!("NOT CHECKED: only root can make folders in /run: {error}");
                    None
                }
            }
        }
    }

    impl Drop for InRun {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_service_is_whom_root_has_given_a_folder_in_run() {
        let Some(run) = InRun::new() else { return };
        let own = run.0.join("weave");
        fs::create_dir(&own).unwrap();
        // Closed to us, were we not root.
        fs::set_permissions(&own, Permissions::from_mode(0o710)).unwrap();
        chown(&own, Some(4242), Some(4242)).unwrap();
        fs::write(own.join("weave.sock"), "").unwrap();
        assert_eq!(service(&own.join("weave.sock")), Some(4242));
        // The name of a socket may lead there.
        symlink(own.join("weave.sock"), run.0.join("link")).unwrap();
        assert_eq!(service(&run.0.join("link")), Some(4242));

        // Its user may make folders in it, and hand them on.
        let within = own.join("within");
        fs::create_dir(&within).unwrap();
        chown(&within, Some(4243), None).unwrap();
        fs::write(within.join("weave.sock"), "").unwrap();
        assert_eq!(service(&within.join("weave.sock")), None);
        // And everybody in a folder that is open, sticky or not.
        chown(&run.0, None, Some(4242)).unwrap();
        for mode in [0o777, 0o1777, 0o775] {
            fs::set_permissions(&run.0, Permissions::from_mode(mode)).unwrap();
            assert_eq!(service(&own.join("weave.sock")), None, "{mode:o}");
        }
        fs::set_permissions(&run.0, Permissions::from_mode(0o755)).unwrap();
        assert_eq!(service(&own.join("weave.sock")), Some(4242));
        chown(&run.0, Some(4242), None).unwrap();
        assert_eq!(service(&own.join("weave.sock")), None);
    }

    #[test]
    fn a_folder_elsewhere_makes_no_service() {
        let folder = tempfile::tempdir().unwrap();
        for path in [
            folder.path().join("weave.sock"),
            "/run/weave.sock".into(),
            "/run/user/4242/weave.sock".into(),
            "/nonexistent/weave.sock".into(),
            "weave.sock".into(),
            "/".into(),
            "".into(),
        ] {
            let owner = service(&path);
            assert!(owner.is_none(), "{}: {owner:?}", path.display());
        }
    }
}
