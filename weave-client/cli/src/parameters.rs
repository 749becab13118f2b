//! What several commands ask the daemon for: the parameters of an image.

use weave_client::Params;

/// Size, steps and guidance scale, as far as somebody has named them.
#[derive(Debug, clap::Args)]
pub(crate) struct Parameters {
    /// Width and height in pixels, such as 128x128, instead of --width and --height
    #[arg(long, value_name = "WxH", value_parser = size, conflicts_with_all = ["width", "height"])]
    size: Option<(u32, u32)>,

    /// Width in pixels: 64 to 2048, a multiple of 64 [default: what suits the model, else 512]
    #[arg(short = 'W', long, value_name = "N", value_parser = pixels, allow_negative_numbers = true)]
    width: Option<u32>,

    /// Height in pixels: 64 to 2048, a multiple of 64 [default: what suits the model, else 512]
    #[arg(short = 'H', long, value_name = "N", value_parser = pixels, allow_negative_numbers = true)]
    height: Option<u32>,

    /// Denoising steps: 1 to 100 [default: what suits the model, else 28]
    #[arg(long, value_name = "N", value_parser = steps, allow_negative_numbers = true)]
    pub(crate) steps: Option<u32>,

    /// Guidance scale, how strictly the image follows the prompt: 0 to 20 [default: what suits the model, else 7]
    #[arg(long, visible_alias = "cfg", value_name = "X", value_parser = scale, allow_negative_numbers = true)]
    pub(crate) cfg_scale: Option<f32>,
}

impl Parameters {
    /// Whether somebody has named a size, or a part of it.
    #[cfg(feature = "gateway")]
    pub(crate) const fn has_size(&self) -> bool {
        self.size.is_some() || self.width.is_some() || self.height.is_some()
    }

    /// What was named, and for the rest these.
    pub(crate) fn or(&self, defaults: Params) -> Params {
        let (width, height) = self.size.unzip();
        Params {
            width: width.or(self.width).unwrap_or(defaults.width),
            height: height.or(self.height).unwrap_or(defaults.height),
            steps: self.steps.unwrap_or(defaults.steps),
            cfg_scale: self.cfg_scale.unwrap_or(defaults.cfg_scale),
            ..defaults
        }
    }
}

fn size(text: &str) -> Result<(u32, u32), String> {
    let number = |text: &str| text.parse().ok();
    let sides = text.split_once(['x', 'X', '×']);
    sides
        .and_then(|(width, height)| number(width).zip(number(height)))
        .ok_or_else(|| "must be WIDTHxHEIGHT in pixels, such as 512x512".to_owned())
}

// What is out of its range is refused later, in the same words as everywhere.

fn pixels(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "must be a whole number, 64 to 2048 and a multiple of 64".to_owned())
}

fn steps(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "must be a whole number, 1 to 100".to_owned())
}

fn scale(text: &str) -> Result<f32, String> {
    text.parse().map_err(|_| "must be a number, 0 to 20".to_owned())
}

/// A seed, for clap: 0 stands for one that is drawn at random, and -1 for the same, as other programs have it.
pub(crate) fn seed(text: &str) -> Result<u64, String> {
    match text {
        "-1" => Ok(0),
        _ => text
            .parse()
            .map_err(|_| format!("must be a whole number, 1 to {}; 0 and -1 draw one at random", u64::MAX)),
    }
}

/// A whole number from 1 to `MOST`, for clap.
pub(crate) fn count<const MOST: u64>(text: &str) -> Result<u64, String> {
    text.parse()
        .ok()
        .filter(|count| (1..=MOST).contains(count))
        .ok_or_else(|| format!("must be a whole number, 1 to {MOST}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_two_numbers() {
        assert_eq!(size("128x64"), Ok((128, 64)));
        assert_eq!(size("128X64"), Ok((128, 64)));
        for bad in ["", "128", "x", "128x", "ax64", "128x64x3", "-1x64"] {
            assert!(size(bad).unwrap_err().contains("WIDTHxHEIGHT"), "{bad}");
        }
    }

    #[test]
    fn minus_one_is_a_seed_like_zero() {
        assert_eq!((seed("-1"), seed("0"), seed("7")), (Ok(0), Ok(0), Ok(7)));
        assert_eq!(seed("18446744073709551615"), Ok(u64::MAX));
        for bad in ["", "-2", "1.5", "18446744073709551616", "any"] {
            assert!(seed(bad).unwrap_err().contains("0 and -1 draw one at random"), "{bad}");
        }
    }

    #[test]
    fn a_count_has_a_range() {
        assert_eq!((count::<1000>("1"), count::<1000>("1000")), (Ok(1), Ok(1000)));
        for bad in ["0", "1001", "-1", "many"] {
            assert_eq!(count::<1000>(bad), Err("must be a whole number, 1 to 1000".to_owned()), "{bad}");
        }
    }

    #[test]
    fn what_was_named_comes_first() {
        let defaults = Params { width: 128, height: 192, steps: 8, cfg_scale: 1.0, seed: 5 };
        let none = Parameters { size: None, width: None, height: None, steps: None, cfg_scale: None };
        assert_eq!(none.or(defaults), defaults);
        let some = Parameters { width: Some(64), steps: Some(3), ..none };
        assert_eq!(some.or(defaults), Params { width: 64, steps: 3, ..defaults });
        let size = Parameters { size: Some((256, 320)), width: None, ..some };
        assert_eq!(size.or(defaults), Params { width: 256, height: 320, steps: 3, ..defaults });
    }
}
