//! Worlds that are made of bytes come to their end as those do that are made of seeds.
#![cfg(feature = "simulator")]

use weave_daemon::simulator::{Bytes, Choices, Seeded, run};

#[test]
fn a_world_can_be_made_of_any_bytes() {
    let mut seeded = Seeded(7);
    for len in [0, 1, 10, 100, 1000, 10_000] {
        for _ in 0..20 {
            let bytes: Vec<u8> = (0..len).map(|_| u8::try_from(seeded.below(256)).unwrap()).collect();
            run(Bytes(&bytes), u64::MAX, None);
            run(Seeded(len), 500, Some(&bytes));
        }
    }
}

#[test]
fn a_seed_makes_the_same_world_each_time() {
    assert_eq!(run(Seeded(3), 2000, None), run(Seeded(3), 2000, None));
    assert_ne!(run(Seeded(3), 2000, None), run(Seeded(4), 2000, None));
}
