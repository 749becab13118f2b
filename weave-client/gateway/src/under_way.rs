//! Requests that are under way, by the names that their clients gave them: so that a client that waits can ask how far
//! its own is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::HeaderMap;
use weave_cli_base::requests::Place;

use crate::http_error::HttpError;

/// The header in which a client names its request.
pub(crate) const HEADER: &str = "x-weave-request";
/// Longest name.
const MAX_NAME: usize = 64;

/// The name that a request has, if its client gave it one.
pub(crate) fn name(headers: &HeaderMap) -> Result<Option<String>, HttpError> {
    let Some(name) = headers.get(HEADER) else { return Ok(None) };
    let name = name.to_str().unwrap_or_default();
    if !is_name(name) {
        let message = format!(
            "X-Weave-Request must have 1 to {MAX_NAME} letters, digits, - and _, such as a UUID; or leave it out"
        );
        return Err(HttpError::new(400, "invalid_header", message));
    }
    Ok(Some(name.to_owned()))
}

fn is_name(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// Those that have a name. There are as many as requests have places.
#[derive(Default)]
pub(crate) struct UnderWay(Mutex<HashMap<String, Arc<Mutex<Way>>>>);

/// What is known of one here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Way {
    /// The daemon's number for the image that is being made; 0 before the first one.
    pub(crate) request_id: u64,
    /// Which of its images that is, from 0.
    pub(crate) image: u64,
    /// How many it wants.
    pub(crate) images: u64,
}

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Whereabouts {
    /// Which of its images is being made, from 0.
    pub(crate) image: u64,
    /// How many it wants.
    pub(crate) images: u64,
    /// Where the daemon has that. `None`: it isn't known, or somebody else makes it.
    pub(crate) place: Option<Place>,
}

impl UnderWay {
    /// Of several with the same name the last one counts.
    pub(crate) fn enter(self: &Arc<Self>, name: Option<String>, images: u64) -> Entry {
        let way = Arc::new(Mutex::new(Way { images, ..Way::default() }));
        if let Some(name) = &name {
            self.all().insert(name.clone(), Arc::clone(&way));
        }
        Entry { name, way, all: Arc::clone(self) }
    }

    pub(crate) fn find(&self, name: &str) -> Option<Way> {
        self.all().get(name).map(|way| *way.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, Arc<Mutex<Way>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of them, until this is dropped.
pub(crate) struct Entry {
    name: Option<String>,
    way: Arc<Mutex<Way>>,
    all: Arc<UnderWay>,
}

impl Entry {
    /// The next image is asked for.
    pub(crate) fn asks(&self, image: u64, request_id: u64) {
        let mut way = self.way.lock().unwrap_or_else(PoisonError::into_inner);
        (way.image, way.request_id) = (image, request_id);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let Some(name) = &self.name else { return };
        let mut all = self.all.all();
        if all.get(name).is_some_and(|way| Arc::ptr_eq(way, &self.way)) {
            all.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_there_while_it_is_under_way() {
        let all = Arc::new(UnderWay::default());
        let first = all.enter(Some("a".into()), 2);
        first.asks(1, 7);
        assert_eq!(all.find("a"), Some(Way { request_id: 7, image: 1, images: 2 }));
        let second = all.enter(Some("a".into()), 1);
        let nameless = all.enter(None, 1);
        drop(first);
        assert_eq!(all.find("a"), Some(Way { request_id: 0, image: 0, images: 1 }), "the last one counts");
        assert_eq!(all.all().len(), 1);
        drop((second, nameless));
        assert_eq!((all.find("a"), all.all().len()), (None, 0));
    }

    #[test]
    fn a_name_is_short_and_plain() {
        for good in ["a", "1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed", &"f".repeat(64)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "a b", "é", "a/b", &"f".repeat(65)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
