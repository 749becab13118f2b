//! Images that are kept for a while, for clients that want a link to each: `"response_format": "url"`.
//!
//! Who has the link gets the image: it has 128 random bits. So it needs no token, which browsers and programs that fetch
//! a link don't send.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};

use crate::connections::{Answering, Origin};
use crate::http_error::HttpError;
use crate::shares::{NoRoom, Share, Shares};
use weave_cli_base::format::Format;

/// For how long an image is kept.
pub(crate) const LIFE: Duration = Duration::from_secs(600);
/// Bytes of all that are kept: a part of what requests share.
const MOST: u64 = crate::shares::MEMORY / 4;
/// What their paths begin with.
pub(crate) const PATH: &str = "/v1/images/files/";

/// All that are kept.
pub(crate) struct Links {
    shares: Arc<Shares>,
    /// Where clients reach the gateway, if it isn't where they say that they do.
    public_url: Option<String>,
    all: Mutex<HashMap<String, Arc<Kept>>>,
}

/// A file, and the memory that it takes until nobody reads it any more.
pub(crate) struct Kept {
    file: Vec<u8>,
    format: Format,
    /// What a browser saves it as.
    name: String,
    origin: Origin,
    since: Instant,
    _share: Share,
}

impl Links {
    pub(crate) fn new(shares: Arc<Shares>, public_url: Option<String>) -> Self {
        Self { shares, public_url, all: Mutex::default() }
    }

    /// What a path has to follow, for a client that has called this gateway `host`.
    pub(crate) fn base(&self, host: &str) -> String {
        self.public_url.clone().unwrap_or_else(|| format!("http://{host}"))
    }

    /// Keeps a file, and gives its path. The oldest of whoever has the most go if there is no room.
    pub(crate) fn keep(
        &self,
        origin: Origin,
        file: Vec<u8>,
        format: Format,
        seed: Option<u64>,
    ) -> Result<String, Unkept> {
        let len = file.len() as u64;
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(Unkept::Random)?;
        let kind = format.name();
        let path = format!("{PATH}{:032x}.{kind}", u128::from_be_bytes(random));
        let name = match seed {
            Some(seed) => format!("weave-{seed}.{kind}"),
            None => format!("weave.{kind}"),
        };
        let mut all = self.all();
        while total(&all) + len > MOST && remove_oldest(&mut all, None) {}
        let share = loop {
            match self.shares.take_memory(origin, len) {
                Ok(share) => break share,
                Err(no_room) if !remove_oldest(&mut all, Some(origin)) => {
                    return Err(Unkept::NoRoom(no_room));
                }
                Err(_) => {}
            }
        };
        let kept = Kept { file, format, name, origin, since: Instant::now(), _share: share };
        all.insert(path.clone(), Arc::new(kept));
        Ok(path)
    }

    /// Whether there is an image behind this path.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.find(path).is_some()
    }

    /// The image behind this path.
    pub(crate) fn find(&self, path: &str) -> Option<Arc<Kept>> {
        self.all().get(path).filter(|kept| kept.since.elapsed() < LIFE).cloned()
    }

    /// Forgets those whose time is over.
    pub(crate) fn sweep(&self) {
        self.all().retain(|_, kept| kept.since.elapsed() < LIFE);
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, Arc<Kept>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn total(all: &HashMap<String, Arc<Kept>>) -> u64 {
    all.values().map(|kept| kept.file.len() as u64).sum()
}

/// Forgets the oldest of this address, or of the one that has the most. False: there is none.
fn remove_oldest(all: &mut HashMap<String, Arc<Kept>>, of: Option<Origin>) -> bool {
    let mut bytes: HashMap<Origin, usize> = HashMap::new();
    for kept in all.values() {
        *bytes.entry(kept.origin).or_default() += kept.file.len();
    }
    let most = of.or_else(|| bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(origin, _)| origin));
    let theirs = all.iter().filter(|(_, kept)| Some(kept.origin) == most);
    let oldest = theirs.min_by_key(|(_, kept)| kept.since).map(|(path, _)| path.clone());
    oldest.is_some_and(|path| all.remove(&path).is_some())
}

/// Why an image can't be kept.
#[derive(Debug)]
pub(crate) enum Unkept {
    NoRoom(NoRoom),
    Random(getrandom::Error),
}

/// What is answered where nothing is kept.
pub(crate) fn gone() -> HttpError {
    let message = format!(
        "there is no image here any more: links live for {} minutes, or less where many images are kept; ask for \
         \"response_format\": \"b64_json\" to have images in the answer",
        LIFE.as_secs() / 60
    );
    HttpError::new(404, "not_found", message)
}

/// The answer with an image.
pub(crate) fn show(kept: Arc<Kept>, answering: Answering) -> Response {
    let kind = HeaderValue::try_from(format!("image/{}", kept.format.name()));
    let disposition = HeaderValue::try_from(format!("inline; filename=\"{}\"", kept.name));
    let left = LIFE.saturating_sub(kept.since.elapsed()).as_secs();
    let control = HeaderValue::try_from(format!("private, max-age={left}"));
    let unread = Bytes::from_owner(Unread { kept, _answering: answering });
    let mut response = Body::from(unread).into_response();
    for (name, value) in [
        (header::CONTENT_TYPE, kind.ok()),
        (header::CONTENT_DISPOSITION, disposition.ok()),
        (header::CACHE_CONTROL, control.ok()),
        (header::REFERRER_POLICY, Some(HeaderValue::from_static("no-referrer"))),
        (header::CONTENT_SECURITY_POLICY, Some(HeaderValue::from_static("default-src 'none'; sandbox"))),
        // Pages of chats show it.
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            Some(HeaderValue::from_static("cross-origin")),
        ),
    ] {
        if let Some(value) = value {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// An image on its way to a client.
struct Unread {
    kept: Arc<Kept>,
    _answering: Answering,
}

impl AsRef<[u8]> for Unread {
    fn as_ref(&self) -> &[u8] {
        &self.kept.file
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::shares::Addresses;

    fn from(last: u8) -> Origin {
        Origin::from(IpAddr::from([192, 0, 2, last]))
    }

    fn links() -> Links {
        Links::new(Shares::new(2, Addresses::Share), None)
    }

    #[test]
    fn a_link_cant_be_guessed_and_has_its_end() {
        let links = links();
        let path = links.keep(from(1), vec![1, 2, 3], Format::Png, Some(7)).unwrap();
        let (random, kind) = path.strip_prefix(PATH).unwrap().split_once('.').unwrap();
        assert_eq!((random.len(), kind), (32, "png"));
        assert_ne!(links.keep(from(1), vec![1, 2, 3], Format::Png, Some(7)).unwrap(), path);
        let kept = links.find(&path).unwrap();
        assert_eq!((kept.file.as_slice(), kept.name.as_str()), ([1, 2, 3].as_slice(), "weave-7.png"));
        assert!(!links.has(&path.replace(".png", ".jpeg")) && !links.has(PATH));
        let Some(long_ago) = Instant::now().checked_sub(LIFE) else { return };
        let old = Kept { since: long_ago, ..links_kept(&links, &path) };
        links.all().insert(path.clone(), Arc::new(old));
        assert!(!links.has(&path));
        links.sweep();
        assert_eq!(links.all().len(), 1);
    }

    fn links_kept(links: &Links, path: &str) -> Kept {
        let kept = links.find(path).unwrap();
        Kept {
            file: kept.file.clone(),
            format: kept.format,
            name: kept.name.clone(),
            origin: kept.origin,
            since: kept.since,
            _share: links.shares.take_memory(kept.origin, 3).unwrap(),
        }
    }

    #[test]
    fn who_has_the_most_loses_the_oldest() {
        let links = links();
        let part = usize::try_from(MOST / 8).unwrap();
        let other = links.keep(from(2), vec![0; part], Format::Png, None).unwrap();
        let own: Vec<_> =
            (0..20).map(|_| links.keep(from(1), vec![0; part], Format::Png, None).unwrap()).collect();
        assert!(links.has(&other));
        assert_eq!(
            own.iter().map(|path| links.has(path)).collect::<Vec<_>>(),
            [[false; 13].as_slice(), &[true; 7]].concat()
        );
        assert!(total(&links.all()) <= MOST);
    }

    #[test]
    fn an_image_that_is_read_takes_memory_until_it_is_read() {
        let links = links();
        let path = links.keep(from(1), vec![0; 1000], Format::Webp, None).unwrap();
        let reader = links.find(&path).unwrap();
        links.all().clear();
        assert!(links.shares.take_memory(from(2), crate::shares::MEMORY - 999).is_err());
        drop(reader);
        assert!(links.shares.take_memory(from(2), crate::shares::MEMORY).is_ok());
    }
}
