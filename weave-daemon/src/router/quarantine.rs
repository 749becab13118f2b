//! Quarantine: requests that workers have died of.
//!
//! One death is an accident; the second one of the same request within an hour is a pattern, and
//! then the request is refused instead of being the end of a third worker. What is remembered is a
//! digest, not the request.

use std::hash::{DefaultHasher, Hasher};
use std::time::{Duration, Instant};

use weave_core::frame::{Split, split};
use weave_core::limits::MAX_SKIPPED_PAYLOAD;
use weave_core::request::{self, Request};

/// Deaths that make a request one that is refused.
const DEATHS: u8 = 2;
/// How long a death counts.
const MEMORY: Duration = Duration::from_secs(3600);
/// Requests that are remembered; the one that was seen longest ago makes room for a new one.
const ENTRIES: usize = 64;

/// A digest of what is asked for: everything but the request_id.
fn digest(request: &Request<'_>) -> u64 {
    // With fixed keys: the digest in a log means the same after a restart.
    let mut hasher = DefaultHasher::new();
    let params = request.params;
    for number in [params.width, params.height, params.steps, params.cfg_scale.to_bits()] {
        hasher.write_u32(number);
    }
    hasher.write_u64(params.seed);
    for prompt in [request.prompts.clip_l(), request.prompts.clip_g(), request.prompts.t5()] {
        hasher.write_usize(prompt.len());
        hasher.write(prompt.as_bytes());
    }
    hasher.finish()
}

/// The table. Memory is taken once.
pub(super) struct Quarantine {
    entries: heapless::Vec<Entry, ENTRIES>,
}

struct Entry {
    digest: u64,
    deaths: u8,
    last: Instant,
}

impl Quarantine {
    pub(super) const fn new() -> Self {
        Self { entries: heapless::Vec::new() }
    }

    /// A worker died while it had this request, a whole frame. If the request is refused from now
    /// on: its digest.
    pub(super) fn record_death(&mut self, frame: &[u8], now: Instant) -> Option<u64> {
        self.forget_old(now);
        let Ok(Split::Frame(frame, _)) = split(frame, MAX_SKIPPED_PAYLOAD) else { return None };
        let digest = digest(&request::parse(&frame).ok()?);
        if let Some(known) = self.entries.iter_mut().find(|entry| entry.digest == digest) {
            known.deaths = known.deaths.saturating_add(1);
            known.last = now;
            return (known.deaths >= DEATHS).then_some(digest);
        }
        if self.entries.is_full()
            && let Some(oldest) = (0..self.entries.len()).min_by_key(|at| self.entries[*at].last)
        {
            self.entries.swap_remove(oldest);
        }
        // There is room now.
        let _ = self.entries.push(Entry { digest, deaths: 1, last: now });
        None
    }

    /// Whether this request is refused.
    pub(super) fn holds(&mut self, request: &Request<'_>, now: Instant) -> bool {
        if self.entries.is_empty() {
            return false;
        }
        self.forget_old(now);
        let digest = digest(request);
        self.entries.iter().any(|entry| entry.digest == digest && entry.deaths >= DEATHS)
    }

    fn forget_old(&mut self, now: Instant) {
        self.entries.retain(|entry| now.saturating_duration_since(entry.last) < MEMORY);
    }
}
