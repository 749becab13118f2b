//! The library and the command against a daemon that answers with the bytes that a test puts into
//! its mouth.

#![allow(clippy::cast_possible_truncation, reason = "small numbers of the tests' own making")]

#[cfg(feature = "cli")]
mod bench;
mod client;
#[cfg(feature = "cli")]
mod command;
mod examples;
mod fake;
#[cfg(feature = "cli")]
mod generate;
#[cfg(feature = "cli")]
mod inspect;
#[cfg(feature = "gateway")]
mod kinds;
#[cfg(feature = "cli")]
mod manual;
#[cfg(feature = "cli")]
mod verify;
