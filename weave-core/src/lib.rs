//! The Weave v1 protocol, without `std`, allocator, `unsafe` or a reachable panic.
//!
//! Weave is a binary protocol for local image generation: a client sends a request frame, a server
//! answers it with a response frame (a head and packed pixels) or an error frame. This crate turns
//! bytes into those messages and back. It does no input or output and keeps no clock.
//!
//! # The way through
//! ```text
//! bytes -> frame::Deframer -> Frame -> request::parse -> Request   (a view into those bytes)
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
//! # Example: one frame in, one answer out
//! ```
//! use weave_core::error::{ErrorCode, emit};
//! use weave_core::frame::{Split, split};
//! use weave_core::limits::{MAX_ERROR_FRAME, MAX_SKIPPED_PAYLOAD};
//! use weave_core::request::{self, Params, Prompts, Request};
//!
//! let params = Params { width: 512, height: 512, steps: 28, cfg_scale: 7.0, seed: 0 };
//! let request = Request { request_id: 1, params, prompts: Prompts::same("a cat in space") };
//! let mut wire = [0; 256];
//! let sent = request.emit(&mut wire).unwrap();
//! assert_eq!(sent.len(), 118);
//!
//! let Ok(Split::Frame(frame, _)) = split(sent, MAX_SKIPPED_PAYLOAD) else { unreachable!() };
//! let received = request::parse(&frame).unwrap();
//! assert_eq!(received.prompts.clip_l(), "a cat in space");
//!
//! let mut answer = [0; MAX_ERROR_FRAME];
//! let busy = emit(received.request_id, ErrorCode::Busy, "the queue is full", &mut answer).unwrap();
//! assert_eq!(busy.len(), 16 + 18 + 17);
//! ```

#![no_std]
#![forbid(unsafe_code)]
#![deny(
    missing_docs,
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
)]

pub mod error;
pub mod frame;
pub mod limits;
pub mod request;
pub mod response;

/// The output slice is too small. Nothing useful was written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom {
    /// Bytes that the message takes.
    pub need: usize,
    /// Bytes that the slice has.
    pub have: usize,
}

impl core::fmt::Display for NoRoom {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "the message takes {} bytes, the buffer has {}", self.need, self.have)
    }
}

impl core::error::Error for NoRoom {}
