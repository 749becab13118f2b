//! Where the daemon listens unless somebody says otherwise.

use std::env;
use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Where a daemon is that serves all of a machine: the package's.
const SYSTEM: &str = "/run/weave/weave.sock";

/// Where a daemon is expected: `$WEAVE_SOCKET`, else the first of [`usual_socket_paths`] at which something is. If
/// nothing is there, it is the first of all.
///
/// # Errors
/// [`NoSocketPath`]: nothing is at `/run/weave/weave.sock`, and none of the variables is set that would say more.
pub fn default_socket_path() -> Result<PathBuf, NoSocketPath> {
    choose(&variable, is_there)
}

/// The places where a daemon is looked for that nobody has named: the user's own, which is
/// `$XDG_RUNTIME_DIR/weave/weave.sock`, or `~/.weave/weave.sock` where that variable isn't set; then the system's,
/// `/run/weave/weave.sock`.
#[must_use]
pub fn usual_socket_paths() -> Vec<PathBuf> {
    own(&variable).into_iter().chain([PathBuf::from(SYSTEM)]).collect()
}

fn choose(
    variable: &impl Fn(&str) -> Option<OsString>,
    is_there: impl Fn(&Path) -> bool,
) -> Result<PathBuf, NoSocketPath> {
    if let Some(named) = variable("WEAVE_SOCKET").map(trimmed).filter(|path| !path.is_empty()) {
        return Ok(named.into());
    }
    match own(variable) {
        Some(own) if is_there(&own) || !is_there(Path::new(SYSTEM)) => Ok(own),
        None if !is_there(Path::new(SYSTEM)) => Err(NoSocketPath),
        _ => Ok(PathBuf::from(SYSTEM)),
    }
}

/// Where a daemon of this user listens.
fn own(variable: &impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    // The XDG specification has relative paths ignored; that covers an empty one.
    let folder = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    // Users who can't log in often have / for a home.
    let home =
        || folder("HOME").filter(|home| home.parent().is_some()).map(|home| home.join(".weave/weave.sock"));
    folder("XDG_RUNTIME_DIR").map(|dir| dir.join("weave/weave.sock")).or_else(home)
}

fn variable(name: &str) -> Option<OsString> {
    env::var_os(name)
}

/// Without the blanks around it, as all values of variables are taken.
fn trimmed(value: OsString) -> OsString {
    value.to_str().map(|text| OsStr::new(text.trim()).to_owned()).unwrap_or(value)
}

/// Whether something is there, be it that this user may not look.
fn is_there(path: &Path) -> bool {
    match path.symlink_metadata() {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::PermissionDenied,
    }
}

/// Nothing says where the daemon's socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSocketPath;

impl fmt::Display for NoSocketPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "where the daemon listens isn't known: WEAVE_SOCKET, XDG_RUNTIME_DIR and HOME say nothing, and nothing \
             is at {SYSTEM}; set WEAVE_SOCKET to the path of its socket"
        )
    }
}

impl Error for NoSocketPath {}

#[cfg(test)]
mod tests {
    use super::*;

    /// With these variables, where something is at these paths.
    fn chosen(variables: &[(&str, &str)], there: &[&str]) -> Option<String> {
        let variable = |name: &str| {
            let (_, value) = variables.iter().find(|(other, _)| *other == name)?;
            Some(OsString::from(value))
        };
        let path = choose(&variable, |path| there.iter().any(|other| path == Path::new(other)));
        path.ok().map(|path| path.to_str().unwrap().to_owned())
    }

    #[test]
    fn the_first_that_is_set_decides_and_the_first_where_something_is() {
        let run = ("XDG_RUNTIME_DIR", "/run/user/1");
        let home = ("HOME", "/home/a");
        let (own, at_home) = ("/run/user/1/weave/weave.sock", "/home/a/.weave/weave.sock");
        for (variables, there, path) in [
            (&[("WEAVE_SOCKET", "s.sock"), run, home][..], &[own, SYSTEM][..], "s.sock"),
            (&[("WEAVE_SOCKET", " s.sock\t"), run], &[], "s.sock"),
            (&[("WEAVE_SOCKET", ""), run, home], &[], own),
            (&[("WEAVE_SOCKET", "  "), run, home], &[at_home], own),
            (&[run, home], &[SYSTEM], SYSTEM),
            (&[run, home], &[SYSTEM, own], own),
            (&[("XDG_RUNTIME_DIR", ""), home], &[], at_home),
            (&[("XDG_RUNTIME_DIR", "run/user/1"), home], &[], at_home),
            (&[home], &[SYSTEM], SYSTEM),
            (&[home], &[SYSTEM, at_home], at_home),
            (&[("HOME", "/")], &[SYSTEM], SYSTEM),
            (&[], &[SYSTEM], SYSTEM),
        ] {
            assert_eq!(chosen(variables, there).as_deref(), Some(path), "{variables:?} {there:?}");
        }
        for useless in ["", "/", "home/a"] {
            assert_eq!(chosen(&[("HOME", useless)], &[]), None, "{useless}");
        }
    }
}
