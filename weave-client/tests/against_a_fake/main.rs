//! The library against a daemon that answers with the bytes that a test puts into its mouth.

#![allow(clippy::cast_possible_truncation, reason = "small numbers of the tests' own making")]

mod client;
mod examples;
mod fake;
#[cfg(feature = "png")]
mod saved;
mod token;
