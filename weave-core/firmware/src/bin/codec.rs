//! All that weave-core can do, called with bytes that the compiler can't foresee: what is in this program is what the
//! codec takes in flash, and every panic that it could reach. `.ci/bare-metal` looks at both. Only `Debug` is left out: what
//! `core` has for floats and 64-bit numbers there holds panics of its own, which nothing reaches.

#![no_std]
#![no_main]

#[cfg(feature = "texts")]
use core::fmt;
use core::hint::black_box;

use weave_core::error::{self, ErrorCode};
use weave_core::frame::{Deframer, Kind, Split, split};
use weave_core::limits::{MAX_ERROR_FRAME, MAX_REQUEST_FRAME, MAX_RESPONSE_PAYLOAD, MAX_SKIPPED_PAYLOAD};
use weave_core::request::{self, Prompts, Request};
use weave_core::response::{self, ImageSize, ResponseHead};
use weave_firmware as _;

/// What an answer says: the error's own words, or, where there is no flash for them, the code alone.
#[cfg(feature = "texts")]
fn words<T: fmt::Display>(error: T) -> impl fmt::Display {
    error
}

#[cfg(not(feature = "texts"))]
fn words<T>(_: T) -> &'static str {
    ""
}

#[cfg(feature = "texts")]
fn show(value: impl fmt::Display) {
    /// Takes text and does nothing with it.
    struct Sink;

    impl fmt::Write for Sink {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            black_box(text);
            Ok(())
        }
    }

    black_box(fmt::Write::write_fmt(&mut Sink, format_args!("{value}"))).ok();
}

#[cfg(not(feature = "texts"))]
fn show<T>(value: T) {
    black_box(value);
}

/// A server: requests in, answers out.
fn serve(input: &mut Deframer<MAX_REQUEST_FRAME>, out: &mut [u8; MAX_ERROR_FRAME]) {
    let spare = input.spare();
    let n = black_box(spare.len());
    input.filled(n);
    loop {
        match input.next_frame() {
            Ok(Some(arrived)) => match request::parse_arrived(&arrived) {
                Ok(request) => {
                    let Ok(image) = ImageSize::new(request.params.width, request.params.height, 3) else {
                        return;
                    };
                    let head = ResponseHead {
                        request_id: request.request_id,
                        generation_time_ms: black_box(0),
                        image,
                    };
                    black_box(head.emit());
                    black_box(request.prompts.are_equal());
                    black_box((request.prompts.clip_l(), request.prompts.clip_g(), request.prompts.t5()));
                }
                Err(wrong) => {
                    black_box(wrong.requirement());
                    black_box(error::emit_frame(arrived.request_id(), wrong.code(), words(wrong), out));
                }
            },
            Ok(None) => break,
            Err(lost) => {
                black_box(lost.requirement());
                black_box(error::emit_frame(0, lost.code(), words(lost), out));
                break;
            }
        }
    }
    black_box(input.is_between_frames());
    input.reset();
}

/// A client: a request out, answers in.
fn ask(prompts: Prompts<'_>, params: request::Params, received: &[u8], out: &mut [u8]) {
    let request = Request { request_id: black_box(1), params, prompts };
    if let Err(wrong) = black_box(request.emit(out)) {
        show(wrong);
    }
    black_box(request::probe(black_box(2)));
    match split(received, MAX_RESPONSE_PAYLOAD) {
        Ok(Split::Frame(frame, _)) => match frame.header().kind() {
            Kind::Response => match response::parse(&frame) {
                Ok(response) => {
                    black_box(response.pixels);
                }
                Err(wrong) => {
                    black_box(wrong.requirement());
                    show(wrong);
                }
            },
            _ => match error::parse(&frame) {
                Ok(error) => {
                    black_box(error.status.to_wire());
                    show(error.code);
                    show(error.text());
                }
                Err(wrong) => {
                    black_box(wrong.requirement());
                    show(wrong);
                }
            },
        },
        Ok(Split::Need(n)) => {
            black_box(n);
        }
        Err(lost) => show(lost),
    }
}

#[unsafe(no_mangle)]
extern "C" fn firmware() -> bool {
    let mut input = Deframer::<MAX_REQUEST_FRAME>::new(MAX_SKIPPED_PAYLOAD);
    let mut out = [0; MAX_REQUEST_FRAME];
    serve(black_box(&mut input), black_box(&mut [0; MAX_ERROR_FRAME]));
    let params = black_box(request::Params { width: 64, height: 64, steps: 1, cfg_scale: 1.0, seed: 1 });
    let received = [0; 256];
    ask(black_box(Prompts::same("x")), params, black_box(&received), &mut out);
    #[cfg(feature = "indexing")]
    black_box(received[black_box(0)]);
    black_box(error::emit(1, ErrorCode::from_wire(black_box(1)), "", black_box(&mut out[..MAX_ERROR_FRAME])))
        .is_ok()
}
