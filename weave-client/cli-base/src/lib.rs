//! What the `weave` command and its gateway share, so that either is compiled without the other.
//!
//! Lowest first: [`exit`] says how a command ends, [`console`] writes and reads, [`daemon`] finds the daemon and
//! [`admin`] asks it for statistics, [`model`]
//! what it draws with, and [`requests`] how far it is; [`arguments`] has what several commands' arguments share; [`image`] is an
//! image with what made it, [`png_file`] the file that says so, and [`mod@format`] the other files that it can be;
//! [`syntax`] finds other programs' syntax in prompts.

#![forbid(unsafe_code)]

#[cfg(unix)]
pub mod admin;
pub mod arguments;
pub mod console;
pub mod daemon;
pub mod exit;
pub mod format;
pub mod image;
pub mod model;
pub mod png_file;
#[cfg(unix)]
pub mod requests;
pub mod syntax;
