//! Lines of the log about requests that got no image, and about nothing else of them: never a prompt, never a token.
//!
//! Anybody who reaches the gateway can cause them. So there are only so many in a minute, for each address and in all; the
//! others are counted, and told when the minute is over.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Extension;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;

use crate::connections::{Connection, Origin};
use crate::http_error::{MAX_WORDS, Refusal};
use crate::links;
use crate::log::log;

/// How often those are told that were only counted.
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
/// Lines of one address in a minute.
const LINES: u32 = 30;
/// Lines of all of them.
const ALL_LINES: u32 = 120;
/// Addresses that are told apart.
const ADDRESSES: usize = 1024;

/// The outermost layer.
pub(crate) async fn tell(
    State(refusals): State<Arc<Refusals>>,
    Extension(connection): Extension<Arc<Connection>>,
    request: Request,
    next: Next,
) -> Response {
    let (method, path) = (request.method().clone(), path(request.uri().path()));
    let response = next.run(request).await;
    let status = response.status().as_u16();
    if status >= 400 {
        let origin = connection.origin();
        match response.extensions().get::<Refusal>() {
            Some(Refusal { is_told: true, .. }) => {}
            Some(refusal) => refusals
                .log(origin, format_args!("refused: {status} {refusal}: {method:.20} {path}, from {origin}")),
            None => {
                refusals.log(origin, format_args!("refused: {status}: {method:.20} {path}, from {origin}"))
            }
        }
    }
    response
}

/// As much of a path as may be told: who knows a link gets an image.
fn path(path: &str) -> String {
    match path.starts_with(links::PATH) {
        true => format!("{}…", links::PATH),
        false => path.chars().take(MAX_WORDS).collect(),
    }
}

/// How many there were in this minute.
#[derive(Default)]
pub(crate) struct Refusals(Mutex<Minute>);

#[derive(Default)]
struct Minute {
    lines: u32,
    more: u64,
    by: HashMap<Origin, Counted>,
}

#[derive(Clone, Copy, Default)]
struct Counted {
    lines: u32,
    more: u64,
}

impl Refusals {
    /// A line that somebody there has caused, unless there were too many.
    pub(crate) fn log(&self, origin: Origin, line: fmt::Arguments<'_>) {
        if self.0.lock().unwrap_or_else(PoisonError::into_inner).may_log(origin) {
            log(line);
        }
    }

    /// Tells of those that were only counted, and begins another minute.
    pub(crate) fn next_minute(&self) {
        let minute = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(line) = minute.summary() {
            log(format_args!("{line}"));
        }
    }
}

impl Minute {
    fn may_log(&mut self, origin: Origin) -> bool {
        let is_known = self.by.contains_key(&origin) || self.by.len() < ADDRESSES;
        let mut nobody = Counted { lines: LINES, more: 0 };
        let by = if is_known { self.by.entry(origin).or_default() } else { &mut nobody };
        let may = by.lines < LINES && self.lines < ALL_LINES;
        if may {
            by.lines += 1;
            self.lines += 1;
        } else {
            by.more += 1;
            self.more += 1;
        }
        may
    }

    fn summary(&self) -> Option<String> {
        let (origin, most) = self.by.iter().max_by_key(|(_, counted)| counted.more)?;
        let Self { more, .. } = self;
        (*more > 0).then(|| {
            format!(
                "{more} more lines like these were left out in the last minute, {} of them of {origin}",
                most.more
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn from(number: u32) -> Origin {
        Origin::from(IpAddr::V4(Ipv4Addr::from(number)))
    }

    #[test]
    fn a_minute_has_so_many_lines() {
        let mut minute = Minute::default();
        assert_eq!(minute.summary(), None);
        assert_eq!((0..1000).filter(|_| minute.may_log(from(1))).count(), LINES as usize);
        assert!(minute.may_log(from(2)), "another one is heard");
        let line = minute.summary().unwrap();
        assert!(line.starts_with("970 more") && line.ends_with("970 of them of 0.0.0.1"), "{line}");
        let all = (0..100_000).filter(|number| minute.may_log(from(number % 5000))).count();
        assert_eq!(all, (ALL_LINES - LINES - 1) as usize);
        assert_eq!(minute.by.len(), ADDRESSES);
    }

    #[test]
    fn a_path_is_told_in_part() {
        assert_eq!(path(&format!("{}0123.png", links::PATH)), "/v1/images/files/…");
        assert_eq!(path(&"/x".repeat(100)).len(), MAX_WORDS);
    }
}
