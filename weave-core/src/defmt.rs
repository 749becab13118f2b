//! Logging on microcontrollers: each type is shown by defmt as [`core::fmt`] shows it.

use defmt::{Debug2Format, Display2Format, Format, Formatter, write};

use crate::NoRoom;
use crate::error::{ErrorCode, ErrorMessage, ErrorParseError};
use crate::frame::{Arrived, Frame, FrameError, Header, Kind, Skipped};
use crate::request::{EmitError, Params, Prompts, Request, RequestError};
use crate::response::{ImageSize, Response, ResponseError, ResponseHead};

macro_rules! format_as {
    ($show:ident: $($type:ty),* $(,)?) => {
        $(impl Format for $type {
            fn format(&self, f: Formatter<'_>) {
                write!(f, "{}", $show(self));
            }
        })*
    };
}

format_as!(Display2Format: ErrorCode, ErrorParseError, FrameError, EmitError, RequestError, ResponseError, NoRoom);
format_as!(Debug2Format: ErrorMessage<'_>, Arrived<'_>, Frame<'_>, Skipped<'_>, Header, Kind, Params, Prompts<'_>, Request<'_>, ImageSize, ResponseHead);

/// Without the pixels.
impl Format for Response<'_> {
    fn format(&self, f: Formatter<'_>) {
        write!(f, "{}", self.head);
    }
}
