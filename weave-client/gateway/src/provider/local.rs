//! The daemon.

use std::time::{Duration, Instant};

use weave_cli_base::daemon::Target;
use weave_cli_base::image::Made;
use weave_client::{ErrorKind, Progress, Stopper};

use super::ask::{Ask, Cause};

/// How long after a BUSY it is asked again.
const PAUSE: Duration = Duration::from_millis(250);

/// What to do when the daemon is busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnBusy {
    /// Ask again, for as long as it may be busy.
    Wait,
    /// Say so.
    Fail,
}

#[derive(Debug)]
pub(super) struct Local {
    pub(super) daemon: Target,
    /// Longest time for an image.
    pub(super) timeout: Option<Duration>,
    /// How long it may be busy before somebody else is asked.
    pub(super) busy_wait: Duration,
}

impl Local {
    /// On a connection of its own: if nobody waits any more, closing that ends this image and no other.
    pub(super) fn make(
        &self,
        ask: &Ask,
        stopper: &Stopper,
        on_busy: OnBusy,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Made, Cause> {
        let mut client = self.daemon.client();
        client.set_timeout(self.timeout);
        client.set_stopper(stopper.clone());
        let until = Instant::now() + self.busy_wait;
        loop {
            client.set_next_request_id(ask.request_id);
            match client.generate_with(&ask.params, &ask.prompt, &mut *progress).map_err(Cause::Local) {
                Ok(image) => return Ok(Made::local(image, ask.params)),
                Err(busy) if busy.kind() == Some(ErrorKind::Busy) && on_busy == OnBusy::Wait => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() || stopper.wait(PAUSE.min(left)) {
                        return Err(busy);
                    }
                }
                Err(cause) => return Err(cause),
            }
        }
    }
}
