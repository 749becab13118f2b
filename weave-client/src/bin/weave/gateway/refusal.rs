//! Errors in OpenAI's shape.

use std::borrow::Cow;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// `{"error": {"message", "type", "param", "code"}}`, and when to try again.
#[derive(Debug)]
pub(super) struct Refusal {
    status: u16,
    code: Cow<'static, str>,
    message: String,
    param: Option<String>,
    retry_after: Option<u32>,
    /// OpenAI's clients would try again.
    is_final: bool,
}

impl Refusal {
    pub(super) fn new(status: u16, code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self {
            status,
            code: code.into(),
            message: message.into(),
            param: None,
            retry_after: None,
            is_final: false,
        }
    }

    /// A field of the request is wrong.
    pub(super) fn field(name: impl Into<String>, code: &'static str, message: impl Into<String>) -> Self {
        Self { param: Some(name.into()), ..Self::new(400, code, message) }
    }

    pub(super) fn param(self, name: &str) -> Self {
        Self { param: Some(name.to_owned()), ..self }
    }

    pub(super) fn retry_after(self, seconds: u32) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    /// The same request would end the same way.
    pub(super) fn for_good(self) -> Self {
        Self { is_final: true, ..self }
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }

    pub(super) const fn status(&self) -> u16 {
        self.status
    }
}

impl IntoResponse for Refusal {
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
        response
    }
}
