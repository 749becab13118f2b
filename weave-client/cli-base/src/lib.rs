//! What the `weave` command and its gateway share, so that either is compiled without the other.
//!
//! Lowest first: [`exit`] says how a command ends, [`console`] writes and reads, [`daemon`] finds the daemon and
//! [`admin`] asks it for statistics; [`arguments`] has what several commands' arguments share; [`image`] is an
//! image with what made it, and [`png_file`] the file that says so.

#![forbid(unsafe_code)]

#[cfg(unix)]
pub mod admin;
pub mod arguments;
pub mod console;
pub mod daemon;
pub mod exit;
pub mod image;
pub mod png_file;
