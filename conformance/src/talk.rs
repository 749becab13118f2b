//! Conversations with a server: what is sent on one connection, and what has to come of it.

use std::fmt::Write as _;

use crate::draft::{Draft, Segment};
use crate::wire::{End, Expectation, code, code_name};

/// An answer that has to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// The image of a request.
    Image {
        /// The request's id.
        id: u64,
        /// Pixels in a row.
        width: u64,
        /// Rows.
        height: u64,
    },
    /// An error.
    Error {
        /// The request's id, or 0.
        id: u64,
        /// error_code.
        code: u64,
    },
}

impl Expected {
    /// The image of a 64×64 request.
    #[must_use]
    pub const fn small_image(id: u64) -> Self {
        Self::Image { id, width: 64, height: 64 }
    }

    /// An error, by the code's name.
    #[must_use]
    pub fn error(id: u64, name: &str) -> Self {
        Self::Error { id, code: code(name) }
    }

    /// request_id.
    #[must_use]
    pub const fn id(&self) -> u64 {
        match self {
            Self::Image { id, .. } | Self::Error { id, .. } => *id,
        }
    }

    /// Whether it is an image.
    #[must_use]
    pub const fn is_image(&self) -> bool {
        matches!(self, Self::Image { .. })
    }

    /// What has to come of a vector's frame.
    ///
    /// # Panics
    /// If the frame is for a client.
    #[must_use]
    pub fn of(expectation: &Expectation) -> Self {
        match expectation {
            Expectation::Request { fields, .. } => Self::Image {
                id: fields.get("request_id"),
                width: fields.get("width"),
                height: fields.get("height"),
            },
            Expectation::Answer { request_id, code, .. } => Self::Error { id: *request_id, code: *code },
            other => panic!("no server makes {other:?}"),
        }
    }
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Image { id, width, height } => write!(f, "an image of {width}×{height} for request {id}"),
            Self::Error { id, code } => write!(f, "{} for request {id}", code_name(*code)),
        }
    }
}

/// What is sent on one connection, and what has to come of it.
#[derive(Clone, Debug)]
pub struct Talk {
    /// In reports.
    pub name: String,
    /// What is sent, field by field.
    pub sends: Vec<Segment>,
    /// The answers, in any order.
    pub expected: Vec<Expected>,
    /// How the connection stands then.
    pub end: End,
}

impl Talk {
    /// Frames after which the connection lives on.
    #[must_use]
    pub fn new(name: impl Into<String>, frames: &[Draft], expected: Vec<Expected>) -> Self {
        let sends = frames.iter().flat_map(Draft::segments).collect();
        Self { name: name.into(), sends, expected, end: End::BetweenFrames }
    }

    /// The same with another end.
    #[must_use]
    pub const fn ends(mut self, end: End) -> Self {
        self.end = end;
        self
    }

    /// The same talk between two other requests, if its connection lives on.
    #[must_use]
    pub fn between(mut self, before: (Draft, Expected), after: (Draft, Expected)) -> Self {
        self.sends = [before.0.segments(), self.sends, after.0.segments()].concat();
        self.expected.insert(0, before.1);
        self.expected.push(after.1);
        self
    }
}

/// Answers in words: the first few, and how many more.
pub(crate) fn list(expected: &[Expected]) -> String {
    const SHOWN: usize = 5;
    let mut text = String::new();
    for one in expected.iter().take(SHOWN) {
        let _ = write!(text, "{}{one}", if text.is_empty() { "" } else { "; " });
    }
    match expected.len() {
        0 => "nothing".to_owned(),
        n if n > SHOWN => format!("{text}; and {} more", n - SHOWN),
        _ => text,
    }
}
