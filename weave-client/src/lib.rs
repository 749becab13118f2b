//! A blocking client for the Weave protocol.
//!
//! A daemon such as `weaved` makes images and listens on a Unix socket, or on TCP. A [`Client`] sends it a
//! prompt and waits for the pixels. There is no async runtime and no thread: a call returns when the
//! answer is there, or when the time is over that it was given.
//!
//! ```no_run
//! use weave_client::{Client, Params, default_socket_path};
//!
//! let mut client = Client::connect(default_socket_path()?)?;
//! let params = Params { seed: 1234, ..Params::default() };
//! let image = client.generate(&params, "a cat in space")?;
//! assert_eq!(image.pixels.len(), 512 * 512 * 3);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`Client::send`] and [`Client::receive`] have several requests under way on one connection. When
//! a connection is made anew, and whether a request is sent again then, is said at [`Client`]. The
//! folder `examples` has programs.
//!
//! Nothing that a peer sends is believed unchecked: an answer has to carry the request's id and the
//! size that was asked for before room is made for its pixels, so that no more than 16 MiB are ever
//! held for each. What goes wrong is an [`Error`], whose text says what to do next.
//!
//! Nor does a prompt go to anybody else than the daemon: on a Unix socket the kernel is asked whose it is before anything
//! is sent ([`Client::set_server_uid`]).
//!
//! The `weave` command is a package of its own, `weave-cli`.

#![forbid(unsafe_code)]

mod address;
mod answer;
mod auth;
mod client;
mod error;
mod link;
#[cfg(feature = "png")]
pub mod png_file;
mod socket_path;
mod stopper;

pub use address::{Address, Token};
pub use client::{Answer, Client, Image, Progress};
pub use error::{Error, ErrorKind, ErrorReply, NoProof, Nonsense};
pub use socket_path::{NoSocketPath, default_socket_path};
pub use stopper::Stopper;
pub use weave_core;
pub use weave_core::error::{ErrorCode, Status};
pub use weave_core::request::{Params, RequestError};
pub use weave_core::response::{Channels, ImageSize};
