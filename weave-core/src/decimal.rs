//! A number with a fraction, in an error's text.

use core::fmt;

/// A float for people, to six decimals. `core`'s own formatting of floats would take several
/// kilobytes of a microcontroller's flash and stack.
pub(crate) struct Decimal(pub(crate) f32);

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(value) = *self;
        if value.is_nan() {
            return f.write_str("NaN");
        }
        // The value is ± mantissa · 2^(exponent - 150).
        let bits = value.abs().to_bits();
        let (mantissa, exponent) = match bits >> 23 {
            0 => (bits, 1),
            exponent => (bits & 0x007F_FFFF | 0x0080_0000, exponent),
        };
        let sign = if value < 0.0 { "-" } else { "" };
        let (whole, mut millionths) = match 150u32.checked_sub(exponent) {
            None if exponent > 158 => {
                let than = if value < 0.0 { "less" } else { "more" };
                return write!(f, "{than} than {sign}{}", u32::MAX);
            }
            None | Some(0) => (mantissa.unbounded_shl(exponent.saturating_sub(150)), 0),
            Some(down) => {
                let whole = mantissa.unbounded_shr(down);
                let rest = u64::from(mantissa.saturating_sub(whole.unbounded_shl(down)));
                let halves = rest.saturating_mul(1_000_000).unbounded_shr(down.saturating_sub(1));
                match u32::try_from(halves.saturating_add(1) >> 1) {
                    Ok(millionths @ 0..1_000_000) => (whole, millionths),
                    _ => (whole.saturating_add(1), 0),
                }
            }
        };
        if value < 0.0 && whole == 0 && millionths == 0 {
            return f.write_str("barely below 0.0");
        }
        write!(f, "{sign}{whole}.")?;
        // Digit by digit, since a width that isn't constant could panic.
        loop {
            write!(f, "{}", millionths / 100_000)?;
            millionths = (millionths % 100_000).saturating_mul(10);
            if millionths == 0 {
                return Ok(());
            }
        }
    }
}
