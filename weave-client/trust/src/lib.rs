//! Which files, folders and peers of this machine may be trusted: the rules that `weaved`, `weave`, the gateway and the
//! client library share; and what [`text`] is in a file. All but that is for Unix only.
//!
//! "Us" is the effective user of this process. Whoever can become that one, and root, is beyond all rules.
//!
//! | what | is trusted if |
//! | --- | --- |
//! | a **folder** on the way to something | it is ours or root's and nobody else may write to it, or it is sticky, as `/tmp` is; so is every folder above it. Each symbolic link on the way is ours or root's |
//! | a folder **for our files** | the same, and it isn't sticky |
//! | a **secret file** | it lies in such a folder, is a regular file, ours or root's, and nobody else can read or write it. A group may read a file of root's: so a service gets its secrets |
//! | a **server** on TCP | nothing tells whose it is; so our own listen at [both addresses](other_localhost) of `localhost` |
//! | a **server** on a Unix socket | it is ours or root's, or of a user who was named, or of the user to whom root gave the socket's folder in `/run` |
//!
//! A group counts as nobody else if it has its owner's name and no other member, as Debian, Ubuntu and Fedora make one for
//! each user: `/etc/passwd` and `/etc/group` have to say so, groups from elsewhere don't count. Access control lists are
//! looked at only as far as the mode shows them.
//!
//! In a user namespace that doesn't map all users, those that it doesn't map, root of the machine among them, are all called
//! 65534. A folder on the way may belong to that user there, since the root folder does; nothing else may.

#[cfg(unix)]
mod accounts;
#[cfg(unix)]
mod folder;
#[cfg(unix)]
mod localhost;
#[cfg(unix)]
mod peer;
#[cfg(unix)]
mod secret;
mod text;

#[cfg(unix)]
pub use accounts::Who;
#[cfg(unix)]
pub use folder::{Distrust, Folder, Rules, Why};
#[cfg(unix)]
pub use localhost::{has_no_such_address, other_localhost};
#[cfg(unix)]
pub use peer::{Peer, Stranger, check_server, peer};
#[cfg(unix)]
pub use secret::{SecretError, read_secret};
pub use text::{NotText, text};
