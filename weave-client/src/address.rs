//! Where a daemon listens.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// A Unix socket, or a TCP port.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Address {
    /// A Unix socket at this path.
    Unix(PathBuf),
    /// `HOST:PORT`, as it stands behind `tcp://`.
    Tcp(String),
}

impl Address {
    /// The address of a Unix socket's path, or of `tcp://HOST:PORT`.
    #[must_use]
    pub fn new(text: impl Into<PathBuf>) -> Self {
        let path = text.into();
        match path.to_str().and_then(|text| text.strip_prefix("tcp://")) {
            Some(host_and_port) => Self::Tcp(host_and_port.to_owned()),
            None => Self::Unix(path),
        }
    }
}

impl<T: Into<PathBuf>> From<T> for Address {
    fn from(text: T) -> Self {
        Self::new(text)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tcp(host_and_port) => write!(f, "tcp://{host_and_port}"),
        }
    }
}

/// What a daemon and its clients over TCP may both have to know: 256 bits, in hexadecimal digits.
#[derive(Clone)]
pub struct Token([u8; 32]);

impl Token {
    /// Reads a token from a file that holds its 64 digits and nothing else, and that nobody else can have read or written:
    /// the rules are `weave_trust`'s.
    ///
    /// # Errors
    /// The file can't be read, others may know what is in it, or it holds something else.
    pub fn read(path: &Path) -> io::Result<Self> {
        from_hex(read_secret(path)?.as_bytes()).map(Self).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "a token has 64 hexadecimal digits and nothing else")
        })
    }

    /// What proofs are made with.
    pub(crate) const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    #[cfg(test)]
    pub(crate) const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

/// The bytes that 64 hexadecimal digits stand for, in either case.
pub(crate) fn from_hex(digits: &[u8]) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if digits.len() != 64 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        for digit in pair {
            let value = char::from(*digit).to_digit(16)?;
            *byte = *byte << 4 | u8::try_from(value).ok()?;
        }
    }
    Some(bytes)
}

/// 256 bits in hexadecimal digits.
const DIGITS: usize = 64;

#[cfg(unix)]
fn read_secret(path: &Path) -> io::Result<String> {
    use weave_trust::{Rules, SecretError};

    weave_trust::read_secret(path, DIGITS, &Rules::default()).map_err(|error| match error {
        SecretError::Io(error) => error,
        error if error.is_exposed() => {
            let why = format!("the file {error}, so others may know the token; make a new one");
            io::Error::new(io::ErrorKind::PermissionDenied, why)
        }
        error => io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the file {error}; a token has 64 hexadecimal digits and nothing else"),
        ),
    })
}

/// Elsewhere the system's own rules have to do.
#[cfg(not(unix))]
fn read_secret(path: &Path) -> io::Result<String> {
    use std::io::Read;

    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(1024).read_to_end(&mut bytes)?;
    let text = weave_trust::text(&bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("the file {error}")))?;
    Ok(text.trim_end().to_owned())
}

/// Never the token itself.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_with_tcp_is_no_path() {
        assert_eq!(Address::new("tcp://[::1]:7433"), Address::Tcp("[::1]:7433".to_owned()));
        assert_eq!(Address::new("tcp:/a"), Address::Unix(PathBuf::from("tcp:/a")));
        for text in ["tcp://127.0.0.1:7433", "/run/weave/weave.sock"] {
            assert_eq!(Address::new(text).to_string(), text);
        }
    }

    #[test]
    fn a_token_has_64_digits_and_is_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let digits = "0123456789abcdefABCDEF".repeat(3)[..64].to_owned();
        for end in ["", "\n", "\r\n"] {
            std::fs::write(&file, format!("{digits}{end}")).unwrap();
            #[cfg(unix)]
            std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            let token = Token::read(&file).unwrap();
            let bytes = [1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0xab, 0xcd, 0xef];
            assert_eq!(token.bytes()[..22], [bytes, bytes].concat());
            assert_eq!(format!("{token:?}"), "Token(..)");
        }
        for wrong in
            [&digits[1..], &format!("{digits}0"), &format!("{digits}\n{digits}"), &"g".repeat(64), ""]
        {
            std::fs::write(&file, wrong).unwrap();
            assert_eq!(Token::read(&file).unwrap_err().kind(), io::ErrorKind::InvalidData, "{wrong}");
        }
    }
}
