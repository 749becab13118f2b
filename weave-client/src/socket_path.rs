//! Where the daemon listens unless somebody says otherwise.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

/// Where a daemon is expected: `$WEAVE_SOCKET`, else `$XDG_RUNTIME_DIR/weave/weave.sock`.
///
/// # Errors
/// [`NoSocketPath`]: neither variable is set.
pub fn default_socket_path() -> Result<PathBuf, NoSocketPath> {
    choose(env::var_os("WEAVE_SOCKET"), env::var_os("XDG_RUNTIME_DIR"))
}

fn choose(socket: Option<OsString>, runtime_dir: Option<OsString>) -> Result<PathBuf, NoSocketPath> {
    if let Some(socket) = socket.filter(|path| !path.is_empty()) {
        return Ok(socket.into());
    }
    // The XDG specification has relative paths ignored; that covers an empty one.
    let runtime_dir = runtime_dir.map(PathBuf::from).filter(|dir| dir.is_absolute()).ok_or(NoSocketPath)?;
    Ok(runtime_dir.join("weave/weave.sock"))
}

/// Nothing in the environment says where the daemon's socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSocketPath;

impl fmt::Display for NoSocketPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "where the daemon listens isn't known: neither WEAVE_SOCKET nor XDG_RUNTIME_DIR is set; \
             set WEAVE_SOCKET to the path of its socket",
        )
    }
}

impl Error for NoSocketPath {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_is_set_decides() {
        let set = |text: &str| Some(OsString::from(text));
        let path = |text: &str| Ok(PathBuf::from(text));
        assert_eq!(choose(set("s.sock"), set("/run/user/1")), path("s.sock"));
        assert_eq!(choose(set(""), set("/run/user/1")), path("/run/user/1/weave/weave.sock"));
        assert_eq!(choose(None, set("/run/user/1")), path("/run/user/1/weave/weave.sock"));
        for useless in [None, set(""), set("run/user/1")] {
            assert_eq!(choose(None, useless), Err(NoSocketPath));
        }
    }
}
