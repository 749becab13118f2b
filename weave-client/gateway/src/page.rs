//! The page for people: what is drawn, how far it is, and what was drawn before.

use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::routing::get;

use crate::state::Shared;

/// Only from here, and nothing inline.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Path, media type and text of each part.
const PARTS: [(&str, &str, &str); 4] = [
    ("/", "text/html; charset=utf-8", include_str!("page.html")),
    ("/page.css", "text/css; charset=utf-8", include_str!("page.css")),
    ("/page.js", "text/javascript; charset=utf-8", include_str!("page.js")),
    ("/page.svg", "image/svg+xml", include_str!("page.svg")),
];

/// Whether `path` is a part of the page: no secret, and needed before a token can be typed.
pub(crate) fn is_part(path: &str) -> bool {
    PARTS.iter().any(|(part, ..)| *part == path)
}

pub(crate) fn router() -> Router<Arc<Shared>> {
    PARTS.into_iter().fold(Router::new(), |router, (path, kind, text)| {
        let headers = [
            (header::CONTENT_TYPE, kind),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::REFERRER_POLICY, "no-referrer"),
            (header::CACHE_CONTROL, "no-cache"),
        ];
        router.route(path, get(async move || (headers, text)))
    })
}
