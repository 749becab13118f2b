//! Instruction counts under callgrind. `.ci/instructions` runs this and compares.

#![allow(missing_docs)] // What the macros make has none.

use std::hint::black_box;

use gungraun::{library_benchmark, library_benchmark_group, main};
use weave_benches::{
    Stream, example, frame, largest, largest_wide, request, response, response_head, shortest, split_all,
    stream,
};
use weave_core::frame::{Split, split};
use weave_core::limits::{MAX_REQUEST_FRAME, MAX_RESPONSE_PAYLOAD, MAX_SKIPPED_PAYLOAD, RESPONSE_HEAD_LEN};
use weave_core::request::Request;
use weave_core::response::ResponseHead;

/// Lives as long as the process, so that no benchmark counts freeing it.
fn kept<T>(value: T) -> &'static mut T {
    Box::leak(Box::new(value))
}

type Bytes = &'static [u8];

fn kept_bytes(make: fn() -> Vec<u8>) -> Bytes {
    make().leak()
}

#[library_benchmark]
#[bench::example(kept_bytes(example))]
#[bench::largest(kept_bytes(largest))]
#[bench::largest_wide(kept_bytes(largest_wide))]
#[bench::shortest(kept_bytes(shortest))]
fn request_parse(bytes: Bytes) {
    let frame = frame(bytes);
    let _ = black_box(&weave_core::request::parse(&frame));
}

#[library_benchmark]
#[bench::example(kept_bytes(example))]
fn frame_split(bytes: Bytes) {
    let _ = black_box(&frame(bytes));
}

#[library_benchmark]
#[bench::example(kept(request()), kept([0; MAX_REQUEST_FRAME]))]
fn request_emit(request: &Request<'static>, out: &'static mut [u8]) {
    let _ = black_box(request.emit(out));
}

#[library_benchmark]
#[bench::side_64(kept(response_head(64)))]
#[bench::side_2048(kept(response_head(2048)))]
fn response_head_emit(head: &ResponseHead) -> [u8; RESPONSE_HEAD_LEN] {
    head.emit()
}

#[library_benchmark]
#[bench::side_64(response(64).leak())]
#[bench::side_2048(response(2048).leak())]
fn response_parse(bytes: Bytes) {
    if let Ok(Split::Frame(frame, _)) = split(bytes, MAX_RESPONSE_PAYLOAD) {
        let _ = black_box(&weave_core::response::parse(&frame));
    }
}

#[library_benchmark]
#[bench::by_1(kept(Stream::new(MAX_SKIPPED_PAYLOAD)), stream(1 << 20).leak(), 1)]
#[bench::by_16(kept(Stream::new(MAX_SKIPPED_PAYLOAD)), stream(1 << 20).leak(), 16)]
#[bench::by_1500(kept(Stream::new(MAX_SKIPPED_PAYLOAD)), stream(1 << 20).leak(), 1_500)]
#[bench::by_65536(kept(Stream::new(MAX_SKIPPED_PAYLOAD)), stream(1 << 20).leak(), 65_536)]
// `.ci/instructions` compares these per byte: splitting is linear.
#[bench::kib_64_by_16(kept(Stream::new(MAX_SKIPPED_PAYLOAD)), stream(64 << 10).leak(), 16)]
#[bench::kib_64_by_1500(kept(Stream::new(MAX_SKIPPED_PAYLOAD)), stream(64 << 10).leak(), 1_500)]
#[bench::mib_4_by_16(kept(Stream::new(MAX_SKIPPED_PAYLOAD)), stream(4 << 20).leak(), 16)]
#[bench::mib_4_by_1500(kept(Stream::new(MAX_SKIPPED_PAYLOAD)), stream(4 << 20).leak(), 1_500)]
fn stream_split(stream: &mut Stream, bytes: Bytes, cut: usize) {
    let _ = black_box(split_all(stream, bytes, cut));
}

library_benchmark_group!(
    name = codec;
    benchmarks = request_parse, frame_split, request_emit, response_head_emit, response_parse, stream_split
);
main!(library_benchmark_groups = codec);
