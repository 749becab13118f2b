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
//! let image = client.generate(&Params::default(), "a cat in space")?;
//! assert_eq!(image.pixels.len(), 512 * 512 * 3);
//! println!("seed {} makes it again", image.params.seed);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! With the feature `png` an [`Image`] can be saved as the `weave` command does it, and `weave verify` makes it again.
//!
//! [`Client::send`] and [`Client::receive`] have several requests under way on one connection. When
//! a connection is made anew, and whether a request is sent again then, is said at [`Client`]. The
//! folder `examples` has programs.
//!
//! # Async programs
//! A call blocks its thread, so it gets one of its own, and a [`Stopper`] ends it when nobody waits any more: that closes the
//! connection, and a daemon with `abandoned = "cancel"` stops drawing. This is with a thread of `std`. In an async function of
//! tokio's it is `tokio::task::spawn_blocking(…).await` in place of `thread::spawn(…).join()`, and the guard stops the call as
//! well when the function's future is dropped, by `select!` or `timeout`.
//!
//! ```no_run
//! use std::thread;
//!
//! use weave_client::{Client, Params, Stopper, default_socket_path};
//!
//! /// Stops the call when it goes out of scope.
//! struct Guard(Stopper);
//!
//! impl Drop for Guard {
//!     fn drop(&mut self) {
//!         self.0.stop();
//!     }
//! }
//!
//! let mut client = Client::new(default_socket_path()?);
//! let guard = Guard(Stopper::default());
//! client.set_stopper(guard.0.clone());
//! let call = thread::spawn(move || client.generate(&Params::default(), "a cat in space"));
//! let image = call.join().expect("it doesn't panic")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is believed
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

/// What the README shows is compiled.
#[cfg(all(doctest, feature = "png"))]
#[doc = include_str!("../README.md")]
struct Readme;

pub use address::{Address, Token};
pub use client::{Answer, Client, Image, Progress, random_seed};
pub use error::{Error, ErrorKind, ErrorReply, NoProof, Nonsense};
pub use socket_path::{NoSocketPath, default_socket_path, usual_socket_paths};
pub use stopper::Stopper;
pub use weave_core;
pub use weave_core::error::{ErrorCode, Status};
pub use weave_core::request::{Params, RequestError};
pub use weave_core::response::{Channels, ImageSize};
