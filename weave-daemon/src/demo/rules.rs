//! The demo model's calculated parts: what no file carries, because a formula gives it.

use std::f64::consts::FRAC_PI_2;

use sha2::{Digest, Sha256};

use super::error::Error;
use super::sink::Sink;

/// Width of the MMDiT.
pub(super) const HIDDEN: usize = 96;
/// The table of positions covers GRID x GRID patches.
pub(super) const GRID: usize = 128;

/// Writes the table of positions. Its row for the patch at (i, j) is `wave(i)`, then `wave(j)`.
pub(super) fn write_waves(sink: &mut impl Sink) -> Result<(), Error> {
    let waves: Vec<_> = (0u8..).take(GRID).map(wave).collect();
    let mut row = Vec::with_capacity(GRID * HIDDEN * 2);
    for i in &waves {
        row.clear();
        for j in &waves {
            row.extend_from_slice(i);
            row.extend_from_slice(j);
        }
        sink.write(&row)?;
    }
    Ok(())
}

/// Sines, then cosines, of the distance from the middle at 24 frequencies, the highest first.
pub(super) fn wave(patch: u8) -> Vec<u8> {
    const FREQUENCIES: u8 = 24;
    let distance = f64::from(patch) - 63.5;
    let angle = |k| distance * FRAC_PI_2 * (-6.0 * f64::from(k) / f64::from(FREQUENCIES - 1)).exp2();
    let sines = (0..FREQUENCIES).map(|k| angle(k).sin());
    let cosines = (0..FREQUENCIES).map(|k| angle(k).cos());
    sines.chain(cosines).flat_map(f16).collect()
}

/// The nearest f16 as little-endian bytes; of two that are equally near, the even one.
///
/// By way of f32 some numbers would be rounded twice, so this goes straight from f64. Good for
/// magnitudes below 65520: infinities and NaN do not occur here.
pub(super) fn f16(value: f64) -> [u8; 2] {
    const FRACTION_BITS: u32 = f64::MANTISSA_DIGITS - 1;
    /// The exponent, as f64 stores it, of the smallest normal f16.
    const NORMAL: u64 = 1023 - 14;
    let bits = value.to_bits();
    let sign = (bits >> 48) & 0x8000;
    let exponent = (bits >> FRACTION_BITS) & 0x7FF;
    let fraction = bits & ((1 << FRACTION_BITS) - 1) | 1 << FRACTION_BITS;
    // Of the 52 bits behind the point 10 stay. Below the normal numbers there is one fewer per power of
    // two; shifted by 63, nothing is left but a remainder that rounds to zero.
    let dropped = 42 + NORMAL.saturating_sub(exponent).min(21);
    let kept = fraction >> dropped;
    let rest = fraction & ((1 << dropped) - 1);
    let half = 1 << (dropped - 1);
    let up = rest > half || (rest == half && kept & 1 == 1);
    // `kept` has the leading 1 of a normal number, which adds the 1 that the exponent lacks here; a carry
    // out of the rounding goes to the exponent in the same way.
    let magnitude = (exponent.saturating_sub(NORMAL) << 10) + kept + u64::from(up);
    let [low, high, ..] = (sign | magnitude).to_le_bytes();
    [low, high]
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A table of pseudo-random signs: `random` rows of plus or minus `magnitude`, then `plus` rows of plus
/// `magnitude`, then zeros.
pub(super) struct Signs {
    pub(super) seed: u64,
    pub(super) rows: usize,
    pub(super) random: usize,
    pub(super) plus: usize,
    /// As f16 bits.
    pub(super) magnitude: u16,
    /// The SHA-256 of the table's bytes. The diffusion model was trained on these very numbers: with
    /// others it would draw noise, and nothing else would say why.
    pub(super) digest: &'static str,
}

/// A row for each token. The last two: start of text, and end of text, which is the padding too.
pub(super) static TOKENS: Signs = Signs {
    seed: 0x746F_6B65_6E5F_6964,
    rows: 49408,
    random: 49406,
    plus: 1,
    magnitude: 0x3800, // 0.5
    digest: "579ccfdbf46018f7ca5f0f71f9eac867cb9941ad6b97c23d14a61014c7b3aaa1",
};

/// A row for each place in a prompt. Places beyond the 20th are not told apart.
pub(super) static POSITIONS: Signs = Signs {
    seed: 0x706F_7369_7469_6F6E,
    rows: 77,
    random: 20,
    plus: 0,
    magnitude: 0x3400, // 0.25
    digest: "de483a97b52d72a539be16f081de64f10e70ef8cd2e79fe47ba3d3d7b7c42108",
};

impl Signs {
    /// Numbers in a row.
    pub(super) const WIDTH: usize = 768;
    /// A word of the generator gives the signs of 64 numbers.
    const WORDS: usize = Self::WIDTH / 64;
    pub(super) const ROW_BYTES: usize = Self::WIDTH * 2;

    pub(super) fn write<S: Sink>(&self, sink: &mut S) -> Result<(), Error> {
        const ROWS_AT_ONCE: usize = 64;
        let octets = self.octets();
        let mut digest = Sha256::new();
        let mut buffer = vec![0; ROWS_AT_ONCE * Self::ROW_BYTES];
        for first in (0..self.rows).step_by(ROWS_AT_ONCE) {
            let rows = ROWS_AT_ONCE.min(self.rows - first);
            let Some(chunk) = buffer.get_mut(..rows * Self::ROW_BYTES) else { break };
            for (row, out) in (first..).zip(chunk.chunks_exact_mut(Self::ROW_BYTES)) {
                self.row(row, &octets, out);
            }
            if S::CHECKS_TABLES {
                digest.update(&*chunk);
            }
            sink.write(chunk)?;
        }
        if !S::CHECKS_TABLES {
            return Ok(());
        }
        match hex(&digest.finalize()) {
            found if found == self.digest => Ok(()),
            found => Err(sink.wrong_table(self.digest, found)),
        }
    }

    pub(super) fn row(&self, row: usize, octets: &[[u8; 16]; 256], out: &mut [u8]) {
        if row >= self.random + self.plus {
            out.fill(0);
            return;
        }
        let (words, _) = out.as_chunks_mut::<{ 64 * 2 }>();
        for (index, out) in (row * Self::WORDS..).zip(words) {
            let word = if row < self.random { mix(self.seed.wrapping_add(index as u64)) } else { u64::MAX };
            let (eights, _) = out.as_chunks_mut::<16>();
            for (out, byte) in eights.iter_mut().zip(word.to_le_bytes()) {
                *out = octets[usize::from(byte)];
            }
        }
    }

    /// The eight numbers that the bits of each possible byte stand for, the lowest bit first. A look-up
    /// for eight numbers keeps builds without optimisation bearable.
    pub(super) fn octets(&self) -> [[u8; 16]; 256] {
        let mut octets = [[0; 16]; 256];
        for (byte, octet) in octets.iter_mut().enumerate() {
            for (bit, out) in octet.chunks_exact_mut(2).enumerate() {
                let sign = if byte >> bit & 1 == 1 { 0 } else { 0x8000 };
                out.copy_from_slice(&(self.magnitude | sign).to_le_bytes());
            }
        }
        octets
    }
}

/// SplitMix64's output function: a good shuffle of 64 bits.
pub(super) fn mix(i: u64) -> u64 {
    let z = i.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
