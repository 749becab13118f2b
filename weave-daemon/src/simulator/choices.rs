//! Where all that happens in a world comes from.

/// Where all that happens in a world comes from.
pub trait Choices {
    /// A number below `n`, which is at least 1.
    fn below(&mut self, n: u32) -> u32;
    /// Whether there is nothing more to choose from: the world comes to its end.
    fn is_over(&self) -> bool;
}

/// Choices from a seed (SplitMix64), without an end.
#[derive(Clone, Debug)]
pub struct Seeded(pub u64);

impl Choices for Seeded {
    fn below(&mut self, n: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let high = u32::try_from((z ^ (z >> 31)) >> 32).unwrap_or(0);
        // The product's upper half: even enough, and without a division.
        u32::try_from((u64::from(high) * u64::from(n)) >> 32).unwrap_or(0)
    }

    fn is_over(&self) -> bool {
        false
    }
}

/// Choices from bytes, as a fuzzer makes them: one byte each. After the last one, the largest.
#[derive(Clone, Debug)]
pub struct Bytes<'a>(pub &'a [u8]);

impl Choices for Bytes<'_> {
    fn below(&mut self, n: u32) -> u32 {
        let Some((first, rest)) = self.0.split_first() else { return n - 1 };
        self.0 = rest;
        u32::from(*first) % n
    }

    fn is_over(&self) -> bool {
        self.0.is_empty()
    }
}

/// Choices in the sizes that a world asks for.
pub(super) struct Luck<C>(pub(super) C);

impl<C: Choices> Luck<C> {
    pub(super) fn below(&mut self, n: usize) -> usize {
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        usize::try_from(self.0.below(n.max(1))).unwrap_or(0)
    }

    /// From the one to the other, both included.
    pub(super) fn between(&mut self, from: usize, to: usize) -> usize {
        from + self.below(to - from + 1)
    }

    /// One of `n` times.
    pub(super) fn seldom(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }
}
