//! Error codes and the two statuses: the numbers by which an error frame says what went wrong.

use core::fmt;

use crate::limits::{STATUS_CLIENT_ERROR, STATUS_SERVER_ERROR};

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// 400: the same request will fail again.
    ClientError,
    /// 500: the same request may succeed later.
    ServerError,
}

impl Status {
    /// The number on the wire.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        match self {
            Self::ClientError => STATUS_CLIENT_ERROR,
            Self::ServerError => STATUS_SERVER_ERROR,
        }
    }
}

/// Declares the codes once: variant, number, name in the specification, status, meaning.
macro_rules! error_codes {
    ($($variant:ident = $number:literal, $name:literal, $status:ident, $doc:literal;)*) => {
        /// What went wrong. A code that this crate doesn't know is kept; go by the status then.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $(#[doc = $doc] $variant,)*
            /// A code from a later version.
            Unknown(u32),
        }

        impl ErrorCode {
            /// Every code that v1 defines.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The number on the wire.
            #[must_use]
            pub const fn to_wire(self) -> u32 {
                match self {
                    $(Self::$variant => $number,)*
                    Self::Unknown(other) => other,
                }
            }

            /// The meaning of a number on the wire.
            #[must_use]
            pub const fn from_wire(number: u32) -> Self {
                match number {
                    $($number => Self::$variant,)*
                    other => Self::Unknown(other),
                }
            }

            /// The name in the specification; "UNKNOWN" for a code of a later version.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                    Self::Unknown(_) => "UNKNOWN",
                }
            }

            /// The status that goes with the code. For an unknown code the frame's own counts.
            #[must_use]
            pub const fn status(self) -> Status {
                match self {
                    $(Self::$variant => Status::$status,)*
                    Self::Unknown(_) => Status::ServerError,
                }
            }
        }
    };
}

error_codes! {
    None = 0, "NONE", ServerError, "0: reserved, never sent.";
    InvalidMagic = 1, "INVALID_MAGIC", ClientError, "1: the frame doesn't begin with \"WEVE\".";
    UnsupportedVersion = 2, "UNSUPPORTED_VERSION", ClientError, "2: the header's version isn't spoken here.";
    InvalidModelId = 3, "INVALID_MODEL_ID", ClientError, "3: no such model here.";
    InvalidPrompt = 4, "INVALID_PROMPT", ClientError, "4: a prompt's length, place or text.";
    InvalidDimensions = 5, "INVALID_DIMENSIONS", ClientError, "5: width or height.";
    InvalidSteps = 6, "INVALID_STEPS", ClientError, "6: steps.";
    InvalidCfg = 7, "INVALID_CFG", ClientError, "7: cfg_scale.";
    OutOfMemory = 8, "OUT_OF_MEMORY", ServerError, "8: the image doesn't fit into the device's memory.";
    GpuError = 9, "GPU_ERROR", ServerError, "9: the engine failed or died.";
    Timeout = 10, "TIMEOUT", ServerError, "10: a deadline passed.";
    Malformed = 20, "MALFORMED", ClientError, "20: the payload is too short.";
    TooLarge = 21, "TOO_LARGE", ClientError, "21: the payload is too long to follow; the server closes.";
    UnsupportedType = 22, "UNSUPPORTED_TYPE", ClientError, "22: a msg_type that a server doesn't take.";
    Busy = 23, "BUSY", ServerError, "23: the queue is full.";
    ShuttingDown = 24, "SHUTTING_DOWN", ServerError, "24: the server is ending.";
    Internal = 99, "INTERNAL", ServerError, "99: anything else on the server's side.";
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(number) => write!(f, "error code {number}"),
            known => f.write_str(known.name()),
        }
    }
}
