//! What the daemon's administrative socket tells about images: what draws them, and how far they are.
//!
//! It may not be there, or be another user's, or a daemon's of an earlier version: then the command goes without, and says
//! nothing.

#[cfg(unix)]
use std::path::PathBuf;
#[cfg(unix)]
use std::time::Duration;

#[cfg(unix)]
use clap::ValueHint;
#[cfg(unix)]
use weave_cli_base::admin::{Admin, AdminSocket};
use weave_cli_base::daemon::Daemon;
use weave_cli_base::model::Model;
#[cfg(unix)]
use weave_cli_base::requests::{Place, Requests};
use weave_client::Client;

#[cfg(unix)]
use crate::waiting::Far;
use crate::waiting::Situation;

/// Where the administrative socket is.
#[derive(Debug, clap::Args)]
pub(crate) struct Beside {
    /// Socket that tells the daemon's model, and how far it is [default: $WEAVE_ADMIN_SOCKET, else NAME-admin.sock beside
    /// NAME.sock]
    #[cfg(unix)]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    admin_socket: Option<PathBuf>,
}

/// Longest wait for what a command can do without.
#[cfg(unix)]
const LIMIT: Duration = Duration::from_millis(500);

/// What there is to be asked.
#[derive(Clone, Debug)]
pub(crate) struct Teller {
    #[cfg(unix)]
    socket: Option<AdminSocket>,
}

#[cfg(unix)]
impl Beside {
    /// That of this daemon.
    pub(crate) fn of(&self, daemon: &Daemon) -> Teller {
        let admin = Admin {
            socket: daemon.socket.clone(),
            admin_socket: self.admin_socket.clone(),
            user: daemon.user.clone(),
        };
        Teller { socket: admin.find().ok().map(|socket| socket.within(LIMIT)) }
    }
}

#[cfg(not(unix))]
impl Beside {
    #[expect(clippy::unused_self, reason = "as where there is somebody to ask")]
    pub(crate) const fn of(&self, _: &Daemon) -> Teller {
        Teller {}
    }
}

impl Teller {
    /// Where nobody is asked.
    #[cfg(feature = "gateway")]
    pub(crate) const fn silent() -> Self {
        Self {
            #[cfg(unix)]
            socket: None,
        }
    }
}

#[cfg(unix)]
impl Teller {
    /// What the daemon draws with.
    pub(crate) fn model(&self) -> Option<Model> {
        Model::ask(self.socket.as_ref()?).ok().flatten()
    }

    /// Looks for this client's requests from now on, and says in `situation` how far they are.
    pub(crate) fn watch(&self, client: &mut Client, situation: &Situation) -> Option<Watch> {
        let socket = self.socket.clone()?;
        // Without it there is nothing to look for, and the numbers stay small ones.
        Requests::ask(&socket).ok().flatten()?;
        client.set_next_request_id(Requests::random_id().ok()?);
        Watch::start(socket, situation.clone())
    }
}

#[cfg(not(unix))]
#[expect(clippy::unused_self, reason = "as where there is somebody to ask")]
impl Teller {
    pub(crate) const fn model(&self) -> Option<Model> {
        None
    }

    pub(crate) const fn watch(&self, _: &mut Client, _: &Situation) -> Option<Watch> {
        None
    }
}

#[cfg(not(unix))]
pub(crate) use nobody::Watch;
#[cfg(unix)]
pub(crate) use watch::Watch;

#[cfg(not(unix))]
mod nobody {
    pub(crate) enum Watch {}

    impl Watch {
        pub(crate) fn asked(&self, _: u64) {
            match *self {}
        }

        pub(crate) fn answered(&self, _: u64) {
            match *self {}
        }
    }
}

#[cfg(unix)]
mod watch {
    use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
    use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
    use std::thread;

    use super::{AdminSocket, LIMIT, Requests, far};
    use crate::waiting::{Far, Situation};

    /// A thread that asks how far requests are, until this is dropped. Nobody waits for it: an answer that it is given late
    /// delays nothing.
    pub(crate) struct Watch {
        ids: Arc<Mutex<Vec<u64>>>,
        situation: Situation,
        /// Dropped, it ends the thread.
        _stop: Sender<()>,
    }

    impl Watch {
        pub(super) fn start(socket: AdminSocket, situation: Situation) -> Option<Self> {
            let (stop, stopped) = channel();
            let ids = Arc::new(Mutex::new(Vec::new()));
            let (its, shown) = (Arc::clone(&ids), situation.clone());
            let ask = move || {
                while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(LIMIT) {
                    if lock(&its).is_empty() {
                        continue;
                    }
                    let requests = Requests::ask(&socket).ok().flatten().unwrap_or_default();
                    // It may have been answered meanwhile.
                    let ids = lock(&its);
                    shown.set(far(&requests, &ids));
                }
            };
            thread::Builder::new().name("how far".into()).spawn(ask).ok()?;
            Some(Self { ids, situation, _stop: stop })
        }

        /// This request is out.
        pub(crate) fn asked(&self, id: u64) {
            lock(&self.ids).push(id);
        }

        /// This one isn't waited for any more.
        pub(crate) fn answered(&self, id: u64) {
            let mut ids = lock(&self.ids);
            ids.retain(|other| *other != id);
            self.situation.set(Far::default());
        }
    }

    fn lock(ids: &Mutex<Vec<u64>>) -> MutexGuard<'_, Vec<u64>> {
        ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How far the first of these requests is; nothing if the daemon has none of them.
#[cfg(unix)]
fn far(requests: &Requests, ids: &[u64]) -> Far {
    let places = ids.iter().filter_map(|id| requests.place(*id));
    let mut running: Option<(u32, u32)> = None;
    let mut waiting: Option<usize> = None;
    for place in places {
        match place {
            Place::Running { step, steps } => running = running.max(Some((step, steps))),
            Place::Waiting { before } => {
                waiting = Some(waiting.map_or(before, |other| other.min(before)));
            }
        }
    }
    let (words, share) = match (running, waiting) {
        (Some((_, 0)), _) => ("begun".to_owned(), None),
        (Some((step, steps)), _) => (format!("step {step} of {steps}"), Some((step.into(), steps.into()))),
        (None, Some(before)) => {
            let place = match before {
                0 => "waiting, the next one in the queue".to_owned(),
                1 => "waiting, 1 other before this one".to_owned(),
                others => format!("waiting, {others} others before this one"),
            };
            // Which can take minutes that nobody would understand.
            let place = match requests.running.iter().any(|running| running.abandoned) {
                true => format!("{place}, behind an image that nobody waits for any more"),
                false => place,
            };
            (place, None)
        }
        (None, None) => return Far::default(),
    };
    Far { words, share }
}

#[cfg(all(test, unix))]
mod tests {
    use weave_cli_base::requests::{Running, Waiting};

    use super::*;

    #[test]
    fn it_is_said_how_far_the_first_one_is() {
        let running = |request_id, step, steps, abandoned| Running {
            request_id,
            worker: 0,
            step,
            steps,
            seconds: 1.0,
            abandoned,
        };
        let waiting = [4, 5, 6].map(|request_id| Waiting { request_id, seconds: 1.0 }).to_vec();
        let mut requests =
            Requests { running: vec![running(1, 3, 28, false), running(2, 0, 0, false)], waiting };
        let says = |requests: &Requests, ids: &[u64]| far(requests, ids).words;
        assert_eq!(says(&requests, &[1]), "step 3 of 28");
        assert_eq!(far(&requests, &[1]).share, Some((3, 28)));
        assert_eq!(says(&requests, &[2]), "begun");
        assert_eq!(says(&requests, &[2, 6, 1]), "step 3 of 28");
        assert_eq!(says(&requests, &[4, 5]), "waiting, the next one in the queue");
        assert_eq!(says(&requests, &[5]), "waiting, 1 other before this one");
        assert_eq!(says(&requests, &[6, 9]), "waiting, 2 others before this one");
        assert_eq!(says(&requests, &[9]), "");
        requests.running = vec![running(1, 3, 28, true)];
        assert_eq!(
            says(&requests, &[6]),
            "waiting, 2 others before this one, behind an image that nobody waits for any more"
        );
    }
}
