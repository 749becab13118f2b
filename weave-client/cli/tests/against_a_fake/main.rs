//! The command against a daemon that answers with the bytes that a test puts into its mouth.

#![allow(clippy::cast_possible_truncation, reason = "small numbers of the tests' own making")]

mod bench;
mod beside;
mod bounds;
mod command;
#[path = "../../../tests/against_a_fake/fake.rs"]
mod fake;
mod generate;
mod inspect;
mod kept;
#[cfg(feature = "gateway")]
mod kinds;
mod manual;
mod trust;
mod verify;
