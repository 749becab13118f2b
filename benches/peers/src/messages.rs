//! Encoding and decoding: times, bytes, allocations.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::time::Instant;

use prost::bytes::Bytes;

use crate::format::{SIDE, all};
use crate::measure::{percentile, say};

thread_local! {
    static ALLOCATED: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
}

/// The system's allocator; counts calls and bytes of each thread.
struct Counting;

// SAFETY: every call goes to `System` with the caller's own arguments, and `System` keeps the rules.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // The thread may be about to end.
        let _ = ALLOCATED.try_with(|at| at.set((at.get().0 + 1, at.get().1 + layout.size() as u64)));
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

const ROUNDS: usize = 25;

/// Nanoseconds of one call, and what it allocates once its buffers have grown.
fn cost(work: &mut dyn FnMut()) -> (f64, u64, u64) {
    // A round takes some milliseconds, or one call.
    let mut calls = 0;
    let began = Instant::now();
    while began.elapsed().as_millis() < 5 {
        (0..10).for_each(|_| work());
        calls += 10;
    }
    let before = ALLOCATED.get();
    work();
    let after = ALLOCATED.get();
    let round = |_| {
        let began = Instant::now();
        (0..calls).for_each(|_| work());
        began.elapsed().as_secs_f64() * 1e9 / calls as f64
    };
    let times: Vec<f64> = (0..ROUNDS).map(round).collect();
    (percentile(&times, 50), after.0 - before.0, after.1 - before.1)
}

pub fn measure() {
    let pixels = vec![0x80; usize::try_from(SIDE * SIDE * 3).expect("a length")].leak();
    for mut format in all(pixels) {
        let name = format.name.replace(' ', "_");
        let report = |what: &str, (time, calls, bytes): (f64, u64, u64)| {
            say(&format!("messages/{name}/{what}_ns"), time);
            say(&format!("messages/{name}/{what}_allocations"), calls as f64);
            say(&format!("messages/{name}/{what}_allocated"), bytes as f64);
        };
        let (mut request, mut response) = (Vec::new(), Vec::new());
        (format.encode_request)(&mut |bytes| request.extend_from_slice(bytes));
        (format.encode_response)(&mut |bytes| response.extend_from_slice(bytes));
        say(&format!("messages/{name}/request_bytes"), request.len() as f64);
        say(&format!("messages/{name}/response_bytes"), response.len() as f64);
        let (request, response) = (Bytes::from(request), Bytes::from(response));
        let mut nowhere = |bytes: &[u8]| {
            black_box(bytes);
        };
        report("encode_request", cost(&mut || (format.encode_request)(&mut nowhere)));
        report("decode_request", cost(&mut || (format.decode_request)(black_box(&request))));
        report("encode_response", cost(&mut || (format.encode_response)(&mut nowhere)));
        report("decode_response", cost(&mut || (format.decode_response)(black_box(&response))));
    }
}
