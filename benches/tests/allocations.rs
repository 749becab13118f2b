//! Parsing, emitting and splitting allocate nothing, and what they hand out still lies where it was
//! received.

#![allow(unsafe_code)] // A global allocator can't be had without.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;

use weave_benches::{
    CUTS, Stream, example, frame, largest, refused, request, response, response_head, split_all, stream,
};
use weave_core::error::ErrorCode;
use weave_core::frame::{Split, split};
use weave_core::limits::{MAX_ERROR_FRAME, MAX_REQUEST_FRAME, MAX_RESPONSE_PAYLOAD, MAX_SKIPPED_PAYLOAD};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator; counts what each thread asks of it.
struct Counting;

// SAFETY: every call goes to `System` with the caller's own arguments, and `System` keeps the rules.
// Counting touches a thread-local without a destructor, which allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise about `layout` is the one that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: `block` came from `System`, by way of `alloc` above, with this layout.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often `work` allocates.
fn allocations<T>(work: impl FnOnce() -> T) -> u64 {
    let before = ALLOCATIONS.get();
    black_box(work());
    ALLOCATIONS.get() - before
}

fn lies_within(part: &[u8], whole: &[u8]) -> bool {
    let (part, whole) = (part.as_ptr_range(), whole.as_ptr_range());
    whole.start <= part.start && part.end <= whole.end
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| Box::new(1)), 1);
    assert_eq!(allocations(|| ()), 0);
}

#[test]
fn parsing_a_request_allocates_nothing() {
    for bytes in [example(), largest()] {
        assert_eq!(allocations(|| weave_core::request::parse(&frame(&bytes)).unwrap()), 0);
    }
    let refused = refused();
    assert_eq!(allocations(|| weave_core::request::parse(&frame(&refused)).unwrap_err()), 0);
}

#[test]
fn parsing_a_response_allocates_nothing() {
    let bytes = response(2048);
    let count = allocations(|| {
        let Ok(Split::Frame(frame, _)) = split(&bytes, MAX_RESPONSE_PAYLOAD) else { unreachable!() };
        weave_core::response::parse(&frame).unwrap()
    });
    assert_eq!(count, 0);
}

#[test]
fn emitting_allocates_nothing() {
    let mut out = [0; MAX_REQUEST_FRAME];
    assert_eq!(allocations(|| request().emit(&mut out).unwrap().len()), 0);
    assert_eq!(allocations(|| response_head(2048).emit()), 0);
    let mut out = [0; MAX_ERROR_FRAME];
    let emit = || weave_core::error::emit(7, ErrorCode::Busy, "the queue is full", &mut out).unwrap().len();
    assert_eq!(allocations(emit), 0);
}

#[test]
fn splitting_allocates_nothing() {
    let bytes = stream(64 * 1024);
    for cut in CUTS {
        let count = allocations(|| {
            let mut stream = Stream::new(MAX_SKIPPED_PAYLOAD);
            assert_eq!(split_all(&mut stream, &bytes, cut), Ok(556));
        });
        assert_eq!(count, 0, "cut by {cut}");
    }
}

#[test]
fn prompts_and_pixels_stay_where_they_are() {
    for bytes in [example(), largest()] {
        let frame = frame(&bytes);
        assert!(lies_within(frame.payload(), &bytes));
        let prompts = weave_core::request::parse(&frame).unwrap().prompts;
        for text in [prompts.clip_l(), prompts.clip_g(), prompts.t5()] {
            assert!(lies_within(text.as_bytes(), &bytes));
        }
    }
    let bytes = response(64);
    let Ok(Split::Frame(frame, _)) = split(&bytes, MAX_RESPONSE_PAYLOAD) else { unreachable!() };
    assert!(lies_within(weave_core::response::parse(&frame).unwrap().pixels, &bytes));
}

#[test]
fn the_inputs_are_what_they_are_called() {
    assert_eq!((example().len(), largest().len()), (118, 6_220));
    assert_eq!(weave_benches::largest_wide().len(), 6_220);
    assert!(weave_core::request::parse(&frame(&weave_benches::largest_wide())).is_ok());
    let shortest = weave_benches::shortest();
    assert_eq!(weave_core::request::parse(&frame(&shortest)).unwrap().prompts.t5(), "a");
    assert_eq!(shortest.len(), 77);
    for len in weave_benches::STREAM_LENS {
        assert_eq!(stream(len).len(), len);
    }
}
