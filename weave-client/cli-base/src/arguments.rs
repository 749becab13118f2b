//! What several commands' arguments have in common.

use std::time::Duration;

use weave_client::Params;

/// What is asked for where nobody says otherwise; the seed is drawn. Texts for people name them as well.
pub const DEFAULTS: Params = Params { width: 512, height: 512, steps: 28, cfg_scale: 7.0, seed: 0 };

/// A seed of 32 bits, never 0: that is what other programs take, and not too much to type.
///
/// # Errors
/// The system gives no random numbers.
pub fn random_seed() -> Result<u64, getrandom::Error> {
    getrandom::u32().map(|drawn| u64::from(drawn.max(1)))
}

/// A duration, for clap.
///
/// # Errors
/// It is no number above 0.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.filter(|time| !time.is_zero()).ok_or_else(|| "must be a number of seconds above 0".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_limit_is_a_positive_number_of_seconds() {
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        assert_eq!(seconds("90"), Ok(Duration::from_secs(90)));
        for bad in ["", "0", "-1", "nan", "inf", "1e30", "5s"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
