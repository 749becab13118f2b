//! Errors in OpenAI's shape, and which of them each failure is.

use std::borrow::Cow;
use std::fmt;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use weave_client::weave_core::limits::MAX_PROMPT_LEN;
use weave_client::{Error, ErrorCode, ErrorKind, RequestError};

use crate::provider::Failed;

/// Seconds after which a daemon that isn't there may be back.
const RESTART: u32 = 5;
/// As much as the log shows of what a client has worded.
pub(crate) const MAX_WORDS: usize = 60;

/// `{"error": {"message", "type", "param", "code"}}`, and when to try again.
#[derive(Debug)]
pub(crate) struct HttpError {
    status: u16,
    code: Cow<'static, str>,
    message: String,
    param: Option<String>,
    /// For the log: a header's value that is wrong.
    about: Option<String>,
    /// The log has it already.
    is_logged: bool,
    retry_after: Option<u32>,
    /// OpenAI's clients would try again.
    is_final: bool,
}

impl HttpError {
    pub(crate) fn new(status: u16, code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self {
            status,
            code: code.into(),
            message: message.into(),
            param: None,
            about: None,
            is_logged: false,
            retry_after: None,
            is_final: false,
        }
    }

    /// A field of the request is wrong.
    pub(crate) fn field(name: impl Into<String>, code: &'static str, message: impl Into<String>) -> Self {
        Self { param: Some(name.into()), ..Self::new(400, code, message) }
    }

    /// A parameter that the protocol doesn't take.
    pub(crate) fn invalid(error: &RequestError) -> Self {
        let name = match error {
            RequestError::Width(_) | RequestError::Height(_) => "size",
            RequestError::Steps(_) => "steps",
            RequestError::CfgScale(_) => "cfg_scale",
            _ => "prompt",
        };
        let message = match error {
            RequestError::PromptLength { length: 0, .. } => "prompt is empty; say what to draw".to_owned(),
            RequestError::PromptLength { length, .. } => {
                format!(
                    "prompt has {length} bytes of UTF-8, may have {MAX_PROMPT_LEN}; say it in fewer words"
                )
            }
            RequestError::PromptNul { at, .. } => {
                format!("prompt has a NUL character, \\u0000, after {at} bytes; leave it out")
            }
            error => error.to_string(),
        };
        Self::field(name, "invalid_value", message)
    }

    /// The one table from what went wrong to HTTP's status. `weave_cli_base::exit` has the one to exit statuses.
    pub(crate) fn of(failed: &Failed) -> Self {
        let message = failed.to_string();
        let Some(kind) = failed.kind() else {
            return Self::new(400, "unsupported_parameter", message);
        };
        match (kind, failed.local()) {
            (ErrorKind::Invalid, Some(Error::Invalid(error))) => Self::invalid(error),
            (ErrorKind::Invalid, _) => Self::new(400, "invalid_value", message),
            (ErrorKind::Refused, _) => Self::new(400, "request_refused", message),
            (ErrorKind::Busy, _) => Self::new(429, "busy", message),
            (ErrorKind::ShuttingDown | ErrorKind::HungUp | ErrorKind::Unreachable, _) => {
                Self::new(503, "unavailable", message).retry_after(RESTART)
            }
            // It would take as long again.
            (ErrorKind::Timeout, _) => Self::new(504, "timeout", message).for_good(),
            (ErrorKind::Failed, Some(Error::Refused(reply))) if reply.code == ErrorCode::OutOfMemory => {
                Self::new(500, "out_of_memory", message).for_good()
            }
            (ErrorKind::Failed | ErrorKind::NotWeave | ErrorKind::Stranger | ErrorKind::Local, _) => {
                Self::new(500, "generation_failed", message)
            }
        }
    }

    pub(crate) fn param(self, name: &str) -> Self {
        Self { param: Some(name.to_owned()), ..self }
    }

    /// What the log says beside the code; not the client's secrets.
    pub(crate) fn about(self, value: impl Into<String>) -> Self {
        Self { about: Some(value.into()), ..self }
    }

    /// The log has it already.
    pub(crate) fn logged(self) -> Self {
        Self { is_logged: true, ..self }
    }

    pub(crate) fn retry_after(self, seconds: u32) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    /// The same request would end the same way.
    pub(crate) fn for_good(self) -> Self {
        Self { is_final: true, ..self }
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) const fn status(&self) -> u16 {
        self.status
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let kind = match self.status {
            401 | 403 => "authentication_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        let error = json!({ "message": self.message, "type": kind, "param": self.param, "code": self.code });
        let body = json!({ "error": error }).to_string();
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.is_final {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if self.status == 401 {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(Refusal {
            code: self.code.into_owned(),
            field: self.param,
            about: self.about,
            is_told: self.is_logged,
        });
        response
    }
}

/// What an answer is known by in the log.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) code: String,
    /// The field that is wrong.
    pub(crate) field: Option<String>,
    /// A header's value that is.
    pub(crate) about: Option<String>,
    /// A line has been written already, which says more.
    pub(crate) is_told: bool,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.code)?;
        if let Some(field) = &self.field {
            // Whatever isn't like one may be a prompt in the wrong place.
            let is_name = |name: &str| {
                name.len() <= MAX_WORDS
                    && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
            };
            write!(f, ", field {}", if is_name(field) { field } else { "?" })?;
        }
        match &self.about {
            Some(about) => write!(f, ", {:?}", about.chars().take(MAX_WORDS).collect::<String>()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_words_is_told_in_part_or_not_at_all() {
        let refusal = |field: &str| {
            let refusal = Refusal {
                code: "unknown_parameter".into(),
                field: Some(field.into()),
                about: Some("é".repeat(100)),
                is_told: false,
            };
            refusal.to_string()
        };
        assert!(refusal("negative_prompt").starts_with("unknown_parameter, field negative_prompt, \"éé"));
        assert!(refusal("a cat in space").starts_with("unknown_parameter, field ?, "));
        assert!(refusal("x").len() < 200);
    }
}
