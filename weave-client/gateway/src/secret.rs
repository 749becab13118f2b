//! Keys and tokens: where they may come from, and that they are never shown.

use std::env;
use std::fmt;
use std::path::Path;

use subtle::ConstantTimeEq;
use weave_cli_base::exit::{Exit, Failure};
use weave_trust::{Rules, SecretError, read_secret};

/// Longest secret. Keys of clouds have some hundred bytes.
const MAX_LEN: usize = 4096;

/// Something that only two know.
#[derive(Clone)]
pub(crate) struct Secret(String);

impl Secret {
    /// Reads it from a file that nobody else can read, or from a variable. `None`: neither was named.
    pub(crate) fn find(file: Option<&Path>, variable: &str) -> Result<Option<Self>, Failure> {
        if let Some(file) = file {
            return Self::read(file).map(Some);
        }
        let Some(text) = env::var_os(variable).filter(|text| !text.is_empty()) else { return Ok(None) };
        let secret = text.to_str().and_then(Self::new);
        secret.map(Some).ok_or_else(|| usage(format_args!("{variable} holds no key: {SHAPE}")))
    }

    /// Reads it from a file that nobody else can have read or written: the rules are `weave_trust`'s.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let wrong = |what: fmt::Arguments<'_>| usage(format_args!("the secret in {} {what}", path.display()));
        let text = read_secret(path, MAX_LEN, &Rules::default()).map_err(|error| match error {
            error if error.is_exposed() => wrong(format_args!(
                "{error}, so others may know it; replace it by a new one: chmod 600 is too late"
            )),
            SecretError::Io(_) | SecretError::Kind(_) => wrong(format_args!("{error}")),
            error => wrong(format_args!("{error}: {SHAPE}")),
        })?;
        Self::new(&text).ok_or_else(|| wrong(format_args!("is none: {SHAPE}")))
    }

    fn new(text: &str) -> Option<Self> {
        let fits = (16..MAX_LEN).contains(&text.len());
        (fits && text.bytes().all(|byte| byte.is_ascii_graphic())).then(|| Self(text.to_owned()))
    }

    /// Whether this is it, in a time that tells nothing but the length.
    pub(crate) fn is(&self, text: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(text).into()
    }

    /// For the header that it belongs into, and for nothing else.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

const SHAPE: &str = "it takes 16 or more printable ASCII characters without a space, and nothing else";

fn usage(what: fmt::Arguments<'_>) -> Failure {
    Failure::new(Exit::Usage, what)
}

/// Never the secret itself.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_that_others_can_read_is_refused_and_nothing_shows_the_secret() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        let key = "sk-0123456789abcdef";
        fs::write(&file, format!("{key}\n")).unwrap();
        for mode in [0o644, 0o660, 0o604, 0o620, 0o602, 0o610] {
            fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            let failure = Secret::read(&file).unwrap_err();
            assert!(failure.what().contains(&format!("has mode {mode:04o}")), "{}", failure.what());
        }
        for mode in [0o600, 0o400] {
            fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            let secret = Secret::read(&file).unwrap();
            assert_eq!((secret.reveal(), format!("{secret:?}").as_str()), (key, "Secret(..)"));
            assert!(secret.is(key.as_bytes()) && !secret.is(b"sk-0123456789abcdeg") && !secret.is(b""));
        }
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        for wrong in ["short", "sk-0123456789 abcdef", "sk-0123456789\nabcdef", "schlüssel-0123456789"] {
            fs::write(&file, wrong).unwrap();
            let failure = Secret::read(&file).unwrap_err();
            assert!(failure.what().contains("is none"), "{wrong:?}");
            assert!(!failure.what().contains(wrong), "{}", failure.what());
        }
        fs::write(&file, "\n").unwrap();
        assert!(Secret::read(&file).unwrap_err().what().contains("is empty: it takes 16"));
        // Nothing is waited for, whatever it is: `weave_trust` has a test for each kind.
        assert!(Secret::read(folder.path()).unwrap_err().what().contains("is a folder"));
    }
}
