//! The Weave v1 protocol, without `std`, allocator, `unsafe` or a reachable panic.
//!
//! Weave is a binary protocol for local image generation: a client sends a request frame, a server
//! answers it with a response frame (a head and packed pixels) or an error frame. This crate turns
//! bytes into those messages and back. It does no input or output and keeps no clock.
//!
//! # The way through
//! ```text
//! bytes -> frame::Deframer -> Arrived -> request::parse_arrived -> Request   (a view into those bytes)
//! Request, Params          -> emit  -> bytes
//! ResponseHead + pixels    -> 48 bytes, then the pixels as they are
//! ```
//! Each arrow is one function, and each has one type for what can go wrong:
//!
//! | type | means | consequence |
//! | --- | --- | --- |
//! | [`frame::FrameError`] | the bytes are not Weave, or too long to follow | answer if possible, close |
//! | [`request::RequestError`] | this request can't be served as it is | answer with an error, read on |
//! | [`response::ResponseError`] | this response contradicts itself | the peer can't be trusted, close |
//! | [`error::ErrorParseError`] | this error frame is not one | the peer can't be trusted, close |
//! | [`NoRoom`] | the caller's output slice is too small | the caller's to handle |
//!
//! An error knows the requirement of the specification (`spec/weave-v1.md`) that it is about.
//!
//! # A server
//! Over a stream that arrives in pieces. It draws black images, and everything else is real.
//! ```
//! use weave_core::error;
//! use weave_core::frame::Deframer;
//! use weave_core::limits::{MAX_ERROR_FRAME, MAX_REQUEST_FRAME, MAX_SKIPPED_PAYLOAD};
//! use weave_core::request;
//! use weave_core::response::{ImageSize, ResponseHead};
//!
//! fn serve<'a>(mut pieces: impl Iterator<Item = &'a [u8]>, mut write: impl FnMut(&[u8])) {
//!     let mut input = Deframer::<MAX_REQUEST_FRAME>::new(MAX_SKIPPED_PAYLOAD);
//!     let mut out = [0; MAX_ERROR_FRAME];
//!     let mut piece: &[u8] = &[];
//!     loop {
//!         match input.next_frame() {
//!             Ok(Some(arrived)) => match request::parse_arrived(&arrived) {
//!                 Ok(request) => {
//!                     let request_id = request.request_id;
//!                     let image = ImageSize::new(request.params.width, request.params.height, 3).unwrap();
//!                     write(&ResponseHead { request_id, generation_time_ms: 0, image }.emit());
//!                     write(&vec![0; image.data_len() as usize]);
//!                 }
//!                 Err(wrong) => write(error::emit_frame(arrived.request_id(), wrong.code(), wrong, &mut out)),
//!             },
//!             Ok(None) => {
//!                 if piece.is_empty() {
//!                     let Some(next) = pieces.next() else { return };
//!                     piece = next;
//!                 }
//!                 let spare = input.spare();
//!                 let n = spare.len().min(piece.len());
//!                 spare[..n].copy_from_slice(&piece[..n]);
//!                 piece = &piece[n..];
//!                 input.filled(n);
//!             }
//!             Err(lost) => return write(error::emit_frame(0, lost.code(), lost, &mut out)),
//!         }
//!     }
//! }
//! # let mut answers: Vec<u8> = Vec::new();
//! # let mut wire = [0; 256];
//! # let params = request::Params { width: 64, height: 64, steps: 1, cfg_scale: 1.0, seed: 1 };
//! # let request = request::Request { request_id: 7, params, prompts: request::Prompts::same("x") };
//! # let sent = request.emit(&mut wire).unwrap();
//! # let probe = request::probe(8);
//! # serve(sent.chunks(5).chain([&probe[..], b"no more frames from here"]), |bytes| answers.extend(bytes));
//! # assert_eq!(answers.len(), 48 + 64 * 64 * 3 + (34 + 42) + (34 + 50));
//! ```
//!
//! # A client
//! Sends one request and reads answers until its own is there.
//! ```
//! use weave_core::error;
//! use weave_core::frame::{Kind, Split, split};
//! use weave_core::limits::{MAX_REQUEST_FRAME, MAX_RESPONSE_PAYLOAD};
//! use weave_core::request::{Params, Prompts, Request};
//! use weave_core::response;
//!
//! fn ask(prompt: &str, mut exchange: impl FnMut(&[u8]) -> Vec<u8>) -> Result<Vec<u8>, String> {
//!     let params = Params { width: 512, height: 512, steps: 28, cfg_scale: 7.0, seed: 0 };
//!     let request = Request { request_id: 1, params, prompts: Prompts::same(prompt) };
//!     let mut out = [0; MAX_REQUEST_FRAME];
//!     let received = exchange(request.emit(&mut out).map_err(|wrong| wrong.to_string())?);
//!     let mut rest = received.as_slice();
//!     while let Split::Frame(frame, after) = split(rest, MAX_RESPONSE_PAYLOAD).map_err(|e| e.to_string())? {
//!         rest = after;
//!         match frame.header().kind() {
//!             Kind::Response => {
//!                 let response = response::parse(&frame).map_err(|wrong| wrong.to_string())?;
//!                 if response.head.request_id == request.request_id {
//!                     return Ok(response.pixels.to_vec());
//!                 }
//!             }
//!             Kind::Error => {
//!                 let error = error::parse(&frame).map_err(|wrong| wrong.to_string())?;
//!                 if [0, request.request_id].contains(&error.request_id) {
//!                     return Err(format!("{}: {}", error.code, error.text()));
//!                 }
//!             }
//!             other => return Err(format!("a server sent {other:?}")),
//!         }
//!     }
//!     Err("the server hung up".to_owned())
//! }
//! # let busy = |_: &[u8]| {
//! #     let mut out = [0; 300];
//! #     error::emit(1, error::ErrorCode::Busy, "later", &mut out).unwrap().to_vec()
//! # };
//! # assert_eq!(ask("a cat in space", busy), Err("BUSY: later".to_owned()));
//! # assert!(ask("", busy).unwrap_err().starts_with("clip_l_length is 0"));
//! ```
//!
//! # Features
//! `defmt`: the types can be logged on a microcontroller. There is no feature for `std`: the error
//! types implement [`core::error::Error`], which is `std`'s.

#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_docs)]
// Tests may panic.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_possible_wrap,
        clippy::cast_precision_loss
    )
)]

#[cfg(feature = "defmt")]
mod defmt;

mod bytes;
mod code;
mod decimal;
pub mod error;
pub mod frame;
pub mod limits;
pub mod request;
pub mod response;
pub mod text;

pub use bytes::NoRoom;
