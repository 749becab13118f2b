//! Test pictures, and faults on request.
//!
//! Needs no model and takes no time: for clients under development, for the tests, and for trying
//! out how a client takes it when things go wrong.

use std::fmt;
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use weave_core::error::ErrorCode;
use weave_core::response::ImageSize;

use super::{Engine, EngineError, Generation, Image};
use crate::scoreboard::{Control, Phase};
use crate::values::{parts, seconds};

/// What is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Blocks of 8×8 pixels, black and white in turn, black first.
    Checkerboard,
    /// Red grows to the right, green downwards; where they begin, and blue, depend on prompt and
    /// seed.
    Gradient,
}

/// A way to go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Answers with GPU_ERROR.
    Fail,
    /// Never answers, and doesn't listen when it is cancelled.
    Hang,
    /// Ends the process as a failed assertion in the engine would.
    Crash,
}

/// When to go wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
enum When {
    /// At the nth request since the engine was started, counted from 1.
    Nth(u64),
    /// At every prompt that contains this.
    Prompt(String),
}

/// Faults to inject. Written as a list: `fail@3,crash@boom,slow=0.1`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    list: Vec<(Kind, When)>,
    slow: Option<Duration>,
}

impl Faults {
    /// Whether there is any.
    #[must_use]
    pub fn is_any(&self) -> bool {
        !self.list.is_empty() || self.slow.is_some()
    }

    fn at(&self, nth: u64, prompt: &str) -> Option<Kind> {
        let applies = |when: &When| match when {
            When::Nth(n) => *n == nth,
            When::Prompt(word) => prompt.contains(word.as_str()),
        };
        self.list.iter().find(|(_, when)| applies(when)).map(|(kind, _)| *kind)
    }
}

const KINDS: [(&str, Kind); 3] = [("fail", Kind::Fail), ("hang", Kind::Hang), ("crash", Kind::Crash)];

impl FromStr for Faults {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut faults = Self::default();
        for item in parts(text)? {
            if let Some(time) = item.strip_prefix("slow=") {
                faults.slow = Some(seconds(time).map_err(|reason| format!("slow={reason}"))?);
                continue;
            }
            let parsed = item.split_once('@').and_then(|(name, when)| {
                let kind = KINDS.iter().find(|(known, _)| *known == name)?.1;
                let when = match when.parse() {
                    Ok(0) => return None,
                    Ok(nth) => When::Nth(nth),
                    Err(_) if when.is_empty() => return None,
                    Err(_) => When::Prompt(when.to_owned()),
                };
                Some((kind, when))
            });
            faults.list.push(parsed.ok_or(
                "a list of fail@N, hang@N, crash@N (N from 1, or a word of the prompt) and slow=TIME",
            )?);
        }
        Ok(faults)
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for (kind, when) in &self.list {
            let name = KINDS.iter().find(|(_, known)| known == kind).map_or("", |(name, _)| name);
            match when {
                When::Nth(n) => write!(f, "{comma}{name}@{n}")?,
                When::Prompt(word) => write!(f, "{comma}{name}@{word}")?,
            }
            comma = ",";
        }
        match self.slow {
            Some(time) => write!(f, "{comma}slow={}", time.as_secs_f64()),
            None => Ok(()),
        }
    }
}

/// The engine.
pub struct Pattern {
    look: Look,
    faults: Faults,
    requests: u64,
}

impl Pattern {
    /// An engine that has had no request yet.
    #[must_use]
    pub const fn new(look: Look, faults: Faults) -> Self {
        Self { look, faults, requests: 0 }
    }
}

impl Engine for Pattern {
    fn generate(&mut self, generation: &Generation<'_>, control: &Control) -> Result<Image, EngineError> {
        self.requests += 1;
        let fault = self.faults.at(self.requests, generation.prompt);
        let steps = generation.params.steps;
        for step in 0..steps {
            control.report(Phase::Sample, step, steps);
            if fault != Some(Kind::Hang) && control.is_cancelled() {
                return Err(EngineError::cancelled());
            }
            if let Some(pause) = self.faults.slow {
                thread::sleep(pause);
            }
        }
        match fault {
            Some(Kind::Fail) => {
                let text = "the pattern engine was told to fail at this request".to_owned();
                return Err(EngineError { code: ErrorCode::GpuError, text });
            }
            Some(Kind::Hang) => loop {
                thread::park();
            },
            Some(Kind::Crash) => {
                eprintln!("pattern engine: told to crash at this request");
                std::process::abort()
            }
            None => {}
        }
        let size = ImageSize::new(generation.params.width, generation.params.height, 3)
            .map_err(|error| EngineError { code: ErrorCode::Internal, text: error.to_string() })?;
        Image::new(size, draw(self.look, size, generation))
    }
}

/// Draws the picture. Public so that a test can say what an answer must be.
#[must_use]
pub fn draw(look: Look, size: ImageSize, generation: &Generation<'_>) -> Vec<u8> {
    let [red, green, blue, ..] = hash(generation.prompt, generation.params.seed).to_le_bytes();
    let row = |pixel: &dyn Fn(u32) -> [u8; 3]| (0..size.width()).flat_map(pixel).collect::<Vec<u8>>();
    let mut pixels = Vec::with_capacity(usize::try_from(size.data_len()).unwrap_or(0));
    match look {
        Look::Checkerboard => {
            let [black, white] =
                [0, 1].map(|first| row(&|x| [if (x / 8 + first) % 2 == 0 { 0x00 } else { 0xFF }; 3]));
            for y in 0..size.height() {
                pixels.extend_from_slice(if (y / 8) % 2 == 0 { &black } else { &white });
            }
        }
        Look::Gradient => {
            let mut row = row(&|x| [along(x, size.width()).wrapping_add(red), 0, blue]);
            for y in 0..size.height() {
                let green = along(y, size.height()).wrapping_add(green);
                row.chunks_exact_mut(3).for_each(|pixel| pixel[1] = green);
                pixels.extend_from_slice(&row);
            }
        }
    }
    pixels
}

/// How far `at` is on the way to `end`, from 0 to 255.
fn along(at: u32, end: u32) -> u8 {
    u8::try_from(at * 256 / end).unwrap_or(u8::MAX)
}

/// FNV-1a over the seed and the prompt.
fn hash(prompt: &str, seed: u64) -> u64 {
    let bytes = seed.to_le_bytes().into_iter().chain(prompt.bytes());
    bytes.fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}
