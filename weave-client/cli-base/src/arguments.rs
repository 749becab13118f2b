//! What several commands' arguments have in common.
//!
//! Values are read by the rules that `docs/operating.md` has under "How values are written", which `weaved` follows too.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

/// A time, for clap: a number of seconds, or numbers with units.
///
/// # Errors
/// It is none, or not above 0.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let time = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        // Capitals would be other units: M is a month.
        Err(_) if text.contains(|c: char| c.is_ascii_uppercase()) => None,
        Err(_) => humantime::parse_duration(text).ok(),
    };
    time.filter(|time| !time.is_zero())
        .ok_or_else(|| "must be a time above 0: seconds, or such as 90s, 250ms, 5m, 1h30m".to_owned())
}

/// A path, for clap, behind [`clap::builder::OsStringValueParser`].
///
/// # Errors
/// It is empty, or begins with `~`.
pub fn path(value: OsString) -> Result<PathBuf, String> {
    let path = trimmed(value);
    match path.to_str() {
        Some("") => Err("must be a path".to_owned()),
        Some(text) if text.starts_with('~') => Err(no_tilde(text)),
        _ => Ok(path.into()),
    }
}

/// The value of a variable. One that is empty is not set.
#[must_use]
pub fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).map(trimmed).filter(|value| !value.is_empty())
}

/// What to write instead of a path with `~`, which only a shell replaces, and only where it begins a word.
pub(crate) fn no_tilde(path: &str) -> String {
    let home = variable("HOME").and_then(|home| home.into_string().ok());
    match path.strip_prefix("~/").zip(home.filter(|home| home.starts_with('/'))) {
        Some((rest, home)) => {
            format!("must be a path without ~, which only shells know: {}/{rest}", home.trim_end_matches('/'))
        }
        None => format!("must be a path without ~, which only shells know; ./{path} is a file of that name"),
    }
}

/// Without the blanks around it.
fn trimmed(value: OsString) -> OsString {
    value.to_str().map(|text| OsStr::new(text.trim()).to_owned()).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_what_weaved_takes_for_one() {
        // A time and its seconds; without these it is none.
        for line in include_str!("times.txt").lines() {
            let (text, time) = line.split_once('=').unwrap();
            let time = time.trim().parse().ok().map(Duration::from_secs_f64);
            assert_eq!(seconds(text).ok(), time, "{text}");
        }
    }

    #[test]
    fn a_path_is_something_and_has_no_tilde() {
        assert_eq!(path(" /a b\t".into()), Ok("/a b".into()));
        for bad in ["", " ", "~", "~/a", "~bob/a"] {
            assert!(path(bad.into()).is_err(), "{bad}");
        }
    }
}
