//! The router's steps, without a socket. `cargo bench -p weave-benches --bench router`

#![allow(missing_docs)] // What the macros make has none.

mod cycle;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use cycle::World;

fn steps(c: &mut Criterion) {
    let mut group = c.benchmark_group("router");
    for idle in [0, 100, 10_000] {
        let mut world = World::new(idle);
        group.bench_function(BenchmarkId::new("request_beside_idle", idle), |b| {
            b.iter(|| {
                world.ask();
                world.answer();
            });
        });
    }
    for waiting in [1, 64, 4_000] {
        let mut world = World::new(0);
        (0..waiting).for_each(|_| world.ask());
        group.bench_function(BenchmarkId::new("request_behind_waiting", waiting), |b| {
            b.iter(|| {
                world.ask();
                world.answer();
            });
        });
    }
    group.finish();
}

criterion_group!(benches, steps);
criterion_main!(benches);
