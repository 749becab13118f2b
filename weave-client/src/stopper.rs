//! Ending a call that nobody waits for any more.

use std::fmt;
use std::net::Shutdown;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use socket2::Socket;

/// Ends a [`Client`](crate::Client)'s call from another thread, by closing its connection: the
/// daemon then cancels the image, unless its `abandoned` is `finish`. Clones are one and the same.
#[derive(Clone, Default)]
pub struct Stopper(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    stopped: Condvar,
}

#[derive(Default)]
struct State {
    stopped: bool,
    /// The connection of the call under way.
    stream: Weak<Socket>,
}

impl Stopper {
    /// Ends the call that is under way, and each that comes later, with
    /// [`Error::Stopped`](crate::Error::Stopped).
    pub fn stop(&self) {
        let mut state = self.lock();
        state.stopped = true;
        if let Some(stream) = state.stream.upgrade() {
            // One that is closed already needs no closing.
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.0.stopped.notify_all();
    }

    /// Whether it was stopped.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Waits for `time` to pass. `true`: it was stopped meanwhile, or before.
    #[must_use]
    pub fn wait(&self, time: Duration) -> bool {
        let waited = self.0.stopped.wait_timeout_while(self.lock(), time, |state| !state.stopped);
        waited.unwrap_or_else(PoisonError::into_inner).0.stopped
    }

    /// Whom to close. `false`: it is stopped already.
    pub(crate) fn watch(&self, stream: &Arc<Socket>) -> bool {
        let mut state = self.lock();
        state.stream = Arc::downgrade(stream);
        !state.stopped
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Stopper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stopper").field("stopped", &self.is_stopped()).finish_non_exhaustive()
    }
}
