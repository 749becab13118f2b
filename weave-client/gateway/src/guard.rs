//! Who may ask.
//!
//! A browser sends what any page tells it to, also to this machine. Such a request names another origin,
//! or, where a name was made to point here, another host. Pages that one develops are named with `--allow-origin`: then
//! the answers tell the browser that these may read them.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use axum::Extension;
use axum::body::HttpBody as _;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::connections::Connection;
use crate::http_error::HttpError;
use crate::state::Shared;
use crate::{links, page};

/// What lets a request in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    /// The token, where there is one.
    Token,
    /// It may be known to all.
    NoneNeeded,
    /// A browser asks whether it may send a page's request.
    Preflight,
}

pub(crate) async fn guard(
    State(shared): State<Arc<Shared>>,
    Extension(connection): Extension<Arc<Connection>>,
    request: Request,
    next: Next,
) -> Response {
    let pass = check(&shared, &request).and_then(|pass| match pass {
        Pass::Token => connection.admit().map(|()| pass).map_err(|_| {
            HttpError::new(
                503,
                "unavailable",
                "this gateway has as many connections as it may; try again later",
            )
            .retry_after(1)
        }),
        Pass::NoneNeeded | Pass::Preflight => Ok(pass),
    });
    let keeps = pass.as_ref().is_ok_and(|pass| *pass == Pass::Token);
    let origin = allowed_origin(&shared, request.headers());
    let mut response = match pass {
        Ok(Pass::Preflight) => preflight(request.headers()),
        Ok(_) => {
            // One that waits for the rest of its request may be closed for another.
            let _answering = (keeps && request.body().is_end_stream()).then(|| connection.answering());
            next.run(request).await
        }
        Err(error) => error.into_response(),
    };
    let headers = response.headers_mut();
    if let Some(origin) = origin {
        let named = "x-weave-provider, x-weave-ignored, retry-after, x-should-retry";
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(named));
    }
    // A cache must not give one origin's answer to another one.
    if !shared.origins.is_empty() {
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }
    // Who has shown nothing keeps nothing.
    if !keeps {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

fn check(shared: &Shared, request: &Request) -> Result<Pass, HttpError> {
    let host = host(request)
        .ok_or_else(|| HttpError::new(400, "invalid_host", "the request must have one Host header"))?;
    if !may_be_called(host, &shared.hosts) {
        return Err(HttpError::new(
            403,
            "invalid_host",
            format!(
                "this gateway isn't called {host:?}; call it by its address, or start it with --allow-host and that name"
            ),
        )
        .about(host));
    }
    if request.headers().contains_key(header::ORIGIN) {
        let origin = only(request.headers(), &header::ORIGIN).unwrap_or("?");
        let of_origin = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        let is_own = of_origin.is_some_and(|of_origin| of_origin.eq_ignore_ascii_case(host));
        if !is_own && allowed_origin(shared, request.headers()).is_none() {
            let message = format!(
                "pages of {origin:?} may not use this gateway; if they are yours, start it with --allow-origin and that origin"
            );
            return Err(HttpError::new(403, "invalid_origin", message).about(origin));
        }
        // It has no token, by which alone it would be let in.
        if !is_own && is_preflight(request) {
            return Ok(Pass::Preflight);
        }
    }
    let Some(token) = &shared.token else { return Ok(Pass::Token) };
    let path = request.uri().path();
    if path == "/healthz" || page::is_part(path) {
        return Ok(Pass::NoneNeeded);
    }
    if path.starts_with(links::PATH) {
        // Who knows an image's link has shown enough.
        return Ok(if shared.links.has(path) { Pass::Token } else { Pass::NoneNeeded });
    }
    let shown = only(request.headers(), &header::AUTHORIZATION).and_then(|shown| shown.split_once(' '));
    match shown {
        Some((scheme, shown))
            if scheme.eq_ignore_ascii_case("bearer") && token.is(shown.trim().as_bytes()) =>
        {
            Ok(Pass::Token)
        }
        _ => Err(HttpError::new(
            401,
            "invalid_api_key",
            "this gateway wants its token, as Authorization: Bearer TOKEN (OpenAI's clients: api_key)",
        )),
    }
}

/// What the client calls this gateway.
pub(crate) fn host(request: &Request) -> Option<&str> {
    let host = only(request.headers(), &header::HOST)?;
    // Of a request with a whole URL, that counts.
    Some(request.uri().authority().map_or(host, |authority| authority.as_str()))
}

/// The origin of the page that has sent this, if it is one of those that may.
fn allowed_origin(shared: &Shared, headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = only(headers, &header::ORIGIN)?;
    let is_allowed = shared.origins.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin));
    is_allowed.then(|| headers.get(header::ORIGIN).cloned()).flatten()
}

fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// Yes to whatever a page of an allowed origin wants to send. Cookies aren't among it: there are none.
fn preflight(asked: &HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    if let Some(names) = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
    }
    // Chrome asks this where a page of the internet calls a private address.
    if asked.contains_key("access-control-request-private-network") {
        headers.insert("access-control-allow-private-network", HeaderValue::from_static("true"));
    }
    response
}

/// The value of a header that is there once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// Whether a Host header names this gateway. A name that somebody made to point here isn't among them;
/// an address can't be made to.
fn may_be_called(host: &str, names: &[String]) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => {
            return rest
                .split_once(']')
                .is_some_and(|(address, port)| address.parse::<Ipv6Addr>().is_ok() && is_port(port));
        }
        None => match host.split_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            Some(_) => return false,
            None => host,
        },
    };
    let name = name.to_ascii_lowercase();
    name == "localhost" || name.parse::<IpAddr>().is_ok() || names.contains(&name)
}

fn is_port(text: &str) -> bool {
    text.is_empty()
        || text.strip_prefix(':').is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_somebody_made_to_point_here_is_none_of_ours() {
        let names = ["weave.example".to_owned()];
        for good in [
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1:8080",
            "[::1]:8080",
            "[::1]",
            "192.168.0.7",
            "Weave.Example:80",
        ] {
            assert!(may_be_called(good, &names), "{good}");
        }
        for bad in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil.example:8080",
            "weave.example.",
            "[evil.example]",
            "[::1",
            "[::1]evil",
            "::1",
            "127.0.0.1:8080:1",
            "user@localhost",
        ] {
            assert!(!may_be_called(bad, &names), "{bad}");
        }
    }
}
