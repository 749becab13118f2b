//! Times. `cargo bench -p weave-benches --bench codec`

#![allow(missing_docs)] // What the macros make has none.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use weave_benches::{
    CUTS, STREAM_LENS, Stream, example, frame, largest, largest_wide, request, response, response_head,
    response_parts, shortest, split_all, stream,
};
use weave_core::frame::Header;
use weave_core::limits::{MAX_REQUEST_FRAME, MAX_RESPONSE_PAYLOAD, MAX_SKIPPED_PAYLOAD};
use weave_core::response::ResponseHead;

fn requests(c: &mut Criterion) {
    let mut group = c.benchmark_group("request");
    for (name, bytes) in [
        ("parse_example", example()),
        ("parse_largest", largest()),
        ("parse_largest_wide", largest_wide()),
        ("parse_shortest", shortest()),
    ] {
        group.bench_function(name, |b| {
            b.iter(|| {
                let frame = frame(black_box(&bytes));
                let _ = black_box(&weave_core::request::parse(&frame));
            });
        });
    }
    let bytes = example();
    group.bench_function("split_example", |b| b.iter(|| frame(black_box(&bytes))));
    let (request, mut out) = (request(), [0; MAX_REQUEST_FRAME]);
    group.bench_function("emit_example", |b| {
        b.iter(|| {
            let _ = black_box(black_box(&request).emit(black_box(&mut out)));
        });
    });
    group.finish();
}

fn responses(c: &mut Criterion) {
    let mut group = c.benchmark_group("response");
    for side in [64, 2048] {
        let head = response_head(side);
        group.bench_function(BenchmarkId::new("emit_head", side), |b| {
            b.iter(|| black_box(&head).emit());
        });
    }
    for side in [64, 2048] {
        let bytes = response(side);
        let (header, fields) = response_parts(&bytes);
        group.bench_function(BenchmarkId::new("parse_head", side), |b| {
            b.iter(|| {
                let header = Header::parse(black_box(header), MAX_RESPONSE_PAYLOAD).unwrap();
                let _ = black_box(&ResponseHead::parse(header, black_box(fields)));
            });
        });
        group.bench_function(BenchmarkId::new("parse", side), |b| {
            b.iter(|| {
                let frame = weave_core::frame::split(black_box(&bytes), MAX_RESPONSE_PAYLOAD);
                let Ok(weave_core::frame::Split::Frame(frame, _)) = frame else { unreachable!() };
                let _ = black_box(&weave_core::response::parse(&frame));
            });
        });
    }
    group.finish();
}

fn splitting(c: &mut Criterion) {
    let mut group = c.benchmark_group("split");
    group.sample_size(20);
    for len in STREAM_LENS {
        let bytes = stream(len);
        group.throughput(Throughput::Bytes(len as u64));
        for cut in CUTS {
            let mut stream = Stream::new(MAX_SKIPPED_PAYLOAD);
            group.bench_function(BenchmarkId::new(format!("{}_KiB", len / 1024), cut), |b| {
                b.iter(|| split_all(&mut stream, black_box(&bytes), cut));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, requests, responses, splitting);
criterion_main!(benches);
