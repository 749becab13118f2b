//! Why a request can't be served, of whatever model.

use core::fmt;

use crate::code::ErrorCode;
use crate::decimal::Decimal;
use crate::limits::{
    MAX_CFG_SCALE, MAX_PROMPT_DATA_LEN, MAX_PROMPT_LEN, MAX_SIDE, MAX_STEPS, MIN_CFG_SCALE, MIN_PROMPT_LEN,
    MIN_SIDE, MIN_STEPS, MODEL_ID_SD35, SIDE_STEP, VERSION,
};

/// One of SD 3.5's three text encoders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoder {
    /// OpenAI CLIP ViT-L/14.
    ClipL,
    /// OpenCLIP ViT-G/14.
    ClipG,
    /// T5-XXL.
    T5,
}

impl Encoder {
    /// All three, in the order of the offset table.
    pub const ALL: [Self; 3] = [Self::ClipL, Self::ClipG, Self::T5];

    /// The prefix of the encoder's fields in the specification.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClipL => "clip_l",
            Self::ClipG => "clip_g",
            Self::T5 => "t5",
        }
    }
}

/// Why a request can't be served as it is. Holds no text of the request.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum RequestError {
    /// The header's version isn't 1.
    Version(u16),
    /// The header's msg_type isn't a request.
    Type(u16),
    /// The payload ends before its fixed fields do.
    Short {
        /// What the header announces.
        payload_len: u32,
        /// What the fields take.
        need: u32,
    },
    /// model_id isn't 0.
    ModelId(u32),
    /// width is out of range.
    Width(u32),
    /// height is out of range.
    Height(u32),
    /// steps is out of range.
    Steps(u32),
    /// cfg_scale is out of range or no number.
    CfgScale(f32),
    /// A prompt is empty or too long.
    PromptLength {
        /// Whose prompt.
        encoder: Encoder,
        /// Its length in bytes.
        length: u32,
    },
    /// prompt_data is longer than three longest prompts.
    PromptDataLength(u32),
    /// A prompt reaches beyond prompt_data.
    PromptRange {
        /// Whose prompt.
        encoder: Encoder,
        /// Where it begins.
        offset: u32,
        /// Its length in bytes.
        length: u32,
        /// Bytes of prompt_data.
        available: u32,
    },
    /// A prompt isn't UTF-8.
    PromptUtf8 {
        /// Whose prompt.
        encoder: Encoder,
        /// Bytes before the first that is wrong.
        valid_up_to: u32,
    },
    /// A prompt contains a NUL byte.
    PromptNul {
        /// Whose prompt.
        encoder: Encoder,
        /// Bytes before the first NUL.
        at: u32,
    },
}

impl RequestError {
    /// The code that a server answers with.
    #[must_use]
    pub const fn code(self) -> ErrorCode {
        match self {
            Self::Version(_) => ErrorCode::UnsupportedVersion,
            Self::Type(_) => ErrorCode::UnsupportedType,
            Self::Short { .. } => ErrorCode::Malformed,
            Self::ModelId(_) => ErrorCode::InvalidModelId,
            Self::Width(_) | Self::Height(_) => ErrorCode::InvalidDimensions,
            Self::Steps(_) => ErrorCode::InvalidSteps,
            Self::CfgScale(_) => ErrorCode::InvalidCfg,
            Self::PromptLength { .. }
            | Self::PromptDataLength(_)
            | Self::PromptRange { .. }
            | Self::PromptUtf8 { .. }
            | Self::PromptNul { .. } => ErrorCode::InvalidPrompt,
        }
    }

    /// The requirement of the specification that the sender did not keep, or by which it is told so.
    #[must_use]
    pub const fn requirement(self) -> &'static str {
        match self {
            Self::Version(_) => "W1-VER-003",
            Self::Type(_) | Self::Short { .. } => "W1-VAL-001",
            Self::ModelId(_)
            | Self::Width(_)
            | Self::Height(_)
            | Self::Steps(_)
            | Self::CfgScale(_)
            | Self::PromptLength { .. } => "W1-REQ-001",
            Self::PromptDataLength(_) => "W1-FRM-001",
            Self::PromptRange { .. } => "W1-REQ-002",
            Self::PromptUtf8 { .. } | Self::PromptNul { .. } => "W1-REQ-003",
        }
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = |f: &mut fmt::Formatter<'_>, name: &str, value: u32| {
            write!(f, "{name} is {value}, must be {MIN_SIDE} to {MAX_SIDE} and a multiple of {SIDE_STEP}")
        };
        match *self {
            Self::Version(version) => write!(f, "version is {version}, must be {VERSION}"),
            Self::Type(msg_type) => {
                write!(f, "msg_type is {msg_type:#06x}, a server takes 0x0001 (generation request)")
            }
            Self::Short { payload_len, need } => {
                write!(f, "payload_len is {payload_len}, must be at least {need}")
            }
            Self::ModelId(id) => write!(f, "model_id is {id}, must be {MODEL_ID_SD35} (SD 3.5)"),
            Self::Width(value) => side(f, "width", value),
            Self::Height(value) => side(f, "height", value),
            Self::Steps(value) => write!(f, "steps is {value}, must be {MIN_STEPS} to {MAX_STEPS}"),
            Self::CfgScale(value) => {
                let (value, min, max) = (Decimal(value), Decimal(MIN_CFG_SCALE), Decimal(MAX_CFG_SCALE));
                write!(f, "cfg_scale is {value}, must be {min} to {max}")
            }
            Self::PromptLength { encoder, length } => write!(
                f,
                "{}_length is {length}, must be {MIN_PROMPT_LEN} to {MAX_PROMPT_LEN} bytes",
                encoder.name()
            ),
            Self::PromptDataLength(length) => {
                write!(f, "prompt_data has {length} bytes, must be at most {MAX_PROMPT_DATA_LEN}")
            }
            Self::PromptRange { encoder, offset, length, available } => write!(
                f,
                "{0}_offset is {offset} and {0}_length {length}, must end within the {available} bytes of prompt_data",
                encoder.name()
            ),
            Self::PromptUtf8 { encoder, valid_up_to } => {
                write!(f, "the {} prompt must be UTF-8, is not after {valid_up_to} bytes", encoder.name())
            }
            Self::PromptNul { encoder, at } => {
                write!(f, "the {} prompt has a NUL after {at} bytes, must have none", encoder.name())
            }
        }
    }
}

impl core::error::Error for RequestError {}
