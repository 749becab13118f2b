//! The daemon's router in its simulator, which checks after every event what the router promises.

use weave_daemon::simulator::{Bytes, run};

/// More events than bytes can choose.
const EVENTS: u64 = 4096;

/// Clients and workers of every temperament: each byte is a choice of what happens next.
pub fn router(data: &[u8]) {
    run(Bytes(data), EVENTS, None);
}

/// The first half is choices, the second what workers send in place of answers: it may end them, and harms nobody else.
pub fn worker_link(data: &[u8]) {
    let (choices, sent) = data.split_at(data.len() / 2);
    run(Bytes(choices), EVENTS, Some(sent));
}
