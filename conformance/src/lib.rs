//! The conformance suite of Weave: tests any implementation, in any language, from outside.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`wire`] | frames, read and written without a line of `weave-core` |
//! | [`spec`] | the requirements and the vectors of `spec/` |
//! | [`case`] | what a case is, and what comes of it |
//! | [`server`], [`server_cases`] | tests of servers |
//! | [`client`], [`codec`] | tests of clients, and of libraries behind an adapter |
//! | [`stub`] | the smallest correct server |
//! | [`testee`] | the processes and sockets under test |
//! | [`run`], [`report`] | which cases are run, and how their results are told |

#[cfg(feature = "suite")]
pub mod case;
#[cfg(feature = "suite")]
pub mod client;
#[cfg(feature = "suite")]
pub mod codec;
#[cfg(feature = "suite")]
pub mod report;
#[cfg(feature = "suite")]
pub mod run;
#[cfg(feature = "suite")]
pub mod server;
#[cfg(feature = "suite")]
pub mod server_cases;
pub mod spec;
#[cfg(feature = "suite")]
pub mod stub;
#[cfg(feature = "suite")]
pub mod testee;
pub mod wire;
