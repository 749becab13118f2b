//! How far the daemon is with each request: the page `/requests` of its administrative socket.

use std::io;

use serde::Deserialize;

use crate::admin::AdminSocket;
use crate::exit::Failure;

/// All requests that a daemon has.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Requests {
    /// Whose images are being made.
    pub running: Vec<Running>,
    /// Those that wait, the next one first.
    pub waiting: Vec<Waiting>,
}

/// A request whose image is being made.
#[derive(Clone, Debug, Deserialize)]
pub struct Running {
    /// The number that its client gave it.
    pub request_id: u64,
    /// Which worker makes it, from 0.
    pub worker: u32,
    /// Denoising steps that are done.
    pub step: u32,
    /// Denoising steps in all; 0 before the first one.
    pub steps: u32,
    /// For how long.
    pub seconds: f64,
    /// Whether its client has gone, so that nobody will get the image.
    pub abandoned: bool,
}

/// A request that waits.
#[derive(Clone, Debug, Deserialize)]
pub struct Waiting {
    /// The number that its client gave it.
    pub request_id: u64,
    /// For how long.
    pub seconds: f64,
}

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// So many others begin before it.
    Waiting {
        /// 0: it is the next one.
        before: usize,
    },
    /// Its image is being made.
    Running {
        /// Denoising steps that are done.
        step: u32,
        /// Denoising steps in all; 0 before the first one.
        steps: u32,
    },
}

impl Requests {
    /// A number for one's own next request, by which it can be told from those of others. Programs that have no whole
    /// numbers but those of floating point can tell it, too.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn random_id() -> io::Result<u64> {
        Ok((getrandom::u64()? >> 11).max(1))
    }

    /// Asks for them. `None`: the daemon doesn't say, as those before this page.
    ///
    /// # Errors
    /// The daemon doesn't answer, or something else does.
    pub fn ask(from: &AdminSocket) -> Result<Option<Self>, Failure> {
        let Some(page) = from.ask("/requests")? else { return Ok(None) };
        serde_json::from_value(page).map(Some).map_err(|_| from.not_weave())
    }

    /// Where a request is: see [`Client::set_next_request_id`](weave_client::Client::set_next_request_id).
    #[must_use]
    pub fn place(&self, request_id: u64) -> Option<Place> {
        let running = self.running.iter().find(|running| running.request_id == request_id);
        if let Some(Running { step, steps, .. }) = running {
            return Some(Place::Running { step: *step, steps: *steps });
        }
        let before = self.waiting.iter().position(|waiting| waiting.request_id == request_id)?;
        Some(Place::Waiting { before })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_found_by_its_number() {
        let page = r#"{"running":[{"request_id":18446744073709551615,"worker":0,"step":3,"steps":8,"seconds":1.5,
            "abandoned":true}],"waiting":[{"request_id":5,"seconds":2},{"request_id":7,"seconds":1}]}"#;
        let requests: Requests = serde_json::from_str(page).unwrap();
        assert_eq!(requests.place(u64::MAX), Some(Place::Running { step: 3, steps: 8 }));
        assert_eq!(requests.place(7), Some(Place::Waiting { before: 1 }));
        assert_eq!(requests.place(8), None);
    }
}
