//! The conformance suite of Weave: tests any implementation, in any language, from outside.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`wire`], [`draft`] | frames, read and written without a line of `weave-core` |
//! | [`spec`] | the requirements and the vectors of `spec/` |
//! | [`stub`] | the smallest correct server |
//! | [`secret`] | a prompt of which nothing may come back |
//! | [`testee`] | the processes and sockets under test |
//! | [`verdict`] | what running a case can come to |
//! | [`server`], [`connection`], [`talk`] | how a server is tested |
//! | [`client`], [`codec`] | how a client is tested, and a library behind an adapter |
//! | [`case`], [`cases`] | what a case is, and all of them |
//! | [`run`], [`report`] | which cases are run, and how their results are told |
//!
//! No module uses one that stands further down.

#[cfg(feature = "suite")]
pub mod case;
#[cfg(feature = "suite")]
pub mod cases;
#[cfg(feature = "suite")]
pub mod client;
#[cfg(feature = "suite")]
pub mod codec;
#[cfg(feature = "suite")]
pub mod connection;
pub mod draft;
#[cfg(feature = "suite")]
pub mod report;
#[cfg(feature = "suite")]
pub mod run;
#[cfg(feature = "suite")]
pub mod secret;
#[cfg(feature = "suite")]
pub mod server;
pub mod spec;
#[cfg(feature = "suite")]
pub mod stub;
#[cfg(feature = "suite")]
pub mod talk;
#[cfg(feature = "suite")]
pub mod testee;
#[cfg(feature = "suite")]
pub mod verdict;
pub mod wire;
