//! What is owed to whom: requests that are admitted, errors that wait for room, and how both end.

use std::cmp::Reverse;
use std::fmt;
use std::time::Instant;

use log::Level;
use weave_core::error::{self, ErrorCode};
use weave_core::limits::MAX_ERROR_FRAME;
use weave_core::request::{self, EmitError, Request, RequestError};

use super::agenda::Due;
use super::connection::{Connections, Pressure, State, Timeout};
use super::interface::{Bound, ClientId, Full, Limits, User, WorkerId};
use super::jobs::{Job, JobId, Jobs};
use super::quarantine::Quarantine;
use super::refusal::{MAX_ATTEMPTS, Refusal, Telling};
use super::shared::Shared;
use super::users::Users;
use crate::causes::{Cut, Death, Outcome};
use crate::repeats::{About, Repeats};

/// Why a request gets an error at once.
enum No {
    Invalid(RequestError),
    Refused(Refusal),
    Unwritable(EmitError),
}

impl No {
    const fn code(&self) -> ErrorCode {
        match self {
            Self::Invalid(error) => error.code(),
            Self::Refused(refusal) => refusal.code(),
            Self::Unwritable(_) => ErrorCode::Internal,
        }
    }
}

impl No {
    /// How the log tells of it; `None`: not at all. Clients ask so whether somebody is there.
    const fn telling(&self) -> Option<Telling> {
        match self {
            Self::Invalid(RequestError::ModelId(u32::MAX)) => None,
            Self::Invalid(error) => Some(Telling::First(error.code().name())),
            Self::Refused(refusal) => Some(refusal.telling()),
            Self::Unwritable(_) => Some(Telling::Each),
        }
    }
}

impl fmt::Display for No {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(error) => error.fmt(f),
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Unwritable(error) => error.fmt(f),
        }
    }
}

/// Connections and the jobs of their clients. Every request is answered exactly once, unless its
/// client goes first.
pub(super) struct Requests {
    users: Users,
    pub(super) connections: Connections,
    pub(super) jobs: Jobs,
    quarantine: Quarantine,
    /// What the router refused: for the simulator, which takes it.
    #[cfg(feature = "simulator")]
    pub(super) refusals: Vec<super::interface::Refused>,
}

impl Requests {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            connections: Connections::new(limits.connections),
            users: Users::new(limits.connections),
            jobs: Jobs::new(limits.queue, limits.workers, limits.connections),
            quarantine: Quarantine::new(),
            #[cfg(feature = "simulator")]
            refusals: Vec::new(),
        }
    }

    // ---------------------------------------------------------------- what arrives

    /// The connection that has to go for one more of this user, if one has: where the places of everybody or of all
    /// guests are taken, the longest unused one of whoever has most, if that is more than this user has.
    pub(super) fn displaced_by(&self, user: User, now: Instant) -> Option<ClientId> {
        let (bound, has) = self.users.bound(user);
        let only_guests = match bound {
            Some(Bound::All(_)) => false,
            Some(Bound::Guests(_)) => true,
            Some(Bound::Each(_)) | None => return None,
        };
        let unused = self.connections.ids().filter_map(|id| {
            let connection = &self.connections[id];
            let since = connection.unused_since(now)?;
            let most = self.users.connections(connection.account);
            let is_in_the_way = connection.account.is_guest() || !only_guests;
            (most > has && is_in_the_way).then_some((id, most, since))
        });
        unused.min_by_key(|(_, most, since)| (Reverse(*most), *since)).map(|(id, ..)| id)
    }

    /// A client has connected.
    pub(super) fn accept(&mut self, user: User, shared: &mut Shared, now: Instant) -> Result<ClientId, Full> {
        let counters = &mut shared.counters;
        let account = self.users.enter(user).inspect_err(|full| {
            match full.bound {
                Bound::Each(_) => counters.refused_share += 1,
                Bound::Guests(_) | Bound::All(_) => counters.refused_full += 1,
            }
            counters.error(ErrorCode::Busy);
        })?;
        let id = self.connections.open(user, account, now);
        self.jobs.set_account(id, account);
        counters.connections += 1;
        counters.most_clients = counters.most_clients.max(self.connections.len());
        Ok(id)
    }

    /// The connection is no more.
    pub(super) fn release(&mut self, id: ClientId) {
        if let Some(account) = self.connections.release(id) {
            self.users.leave(account);
        }
    }

    /// Looks at the frames that have arrived, as long as the client may have one more request under way and an immediate
    /// answer has room. `hopeless`: no worker comes up; this is how one of them died.
    pub(super) fn take_frames(
        &mut self,
        id: ClientId,
        hopeless: Option<Death>,
        shared: &mut Shared,
        now: Instant,
    ) {
        let in_flight = shared.in_flight();
        let Shared { limits, counters, draining, .. } = shared;
        let mut admission = Admission {
            jobs: &mut self.jobs,
            quarantine: &mut self.quarantine,
            is_draining: draining.is_some(),
            hopeless,
            limits,
        };
        let connection = &mut self.connections[id];
        while connection.takes_frames(in_flight) {
            let arrived = match connection.input.next_frame() {
                Ok(Some(arrived)) => arrived,
                Ok(None) => break,
                Err(error) => {
                    let name = connection.name;
                    counters.cut(Cut::Malformed);
                    if shared.repeats.is_first(About::Malformed, Some(name.user()), now) {
                        log::info!("{name}: what it sends can't be followed any further: {error}; closing");
                    }
                    return self.reject_stream(id, error.code(), error, shared);
                }
            };
            counters.frames += 1;
            let (request_id, name) = (arrived.request_id(), connection.name);
            let admitted = match request::parse_arrived(&arrived) {
                Ok(request) => admission.admit(&request, id, name.user(), now),
                Err(error) => Err(No::Invalid(error)),
            };
            connection.frame_came(now);
            match admitted {
                Ok(()) => {
                    connection.outstanding += 1;
                    counters.queued(admission.jobs.queued_len());
                    log::debug!("request {request_id} of {name}: queued");
                }
                Err(no) => {
                    let level = no.telling().map_or(Level::Debug, |telling| {
                        level(telling, &mut shared.repeats, name.user(), now)
                    });
                    log::log!(level, "request {request_id} of {name} refused: {}: {no}", no.code());
                    if let No::Refused(refusal) = no {
                        counters.refused(refusal.reason());
                        #[cfg(feature = "simulator")]
                        self.refusals.push(super::interface::Refused {
                            client: id,
                            request_id,
                            reason: refusal.reason(),
                            owners_waiting: admission.jobs.owners_waiting(),
                        });
                    }
                    counters.ended(Outcome::Error(no.code()));
                    connection.push_error(request_id, no.code(), no);
                }
            }
        }
        connection.time_frame(in_flight, now);
    }

    /// This client's stream can't be read any further: answer, flush, close. Nobody waits for its
    /// requests any more; those that run are the caller's.
    pub(super) fn reject_stream(
        &mut self,
        id: ClientId,
        code: ErrorCode,
        why: impl fmt::Display,
        shared: &mut Shared,
    ) {
        shared.counters.error(code);
        let connection = &mut self.connections[id];
        connection.push_error(0, code, why);
        connection.end_input();
        shared.agenda.mark_client(id);
    }

    // ---------------------------------------------------------------- how jobs end

    /// A job's answer is a refusal.
    pub(super) fn fail(&mut self, id: JobId, refusal: Refusal, shared: &mut Shared, now: Instant) {
        let Job { client, asked, .. } = *self.jobs.get(id);
        shared.counters.refused(refusal.reason());
        if let Some(client) = client {
            let name = self.connections[client].name;
            let level = level(refusal.telling(), &mut shared.repeats, name.user(), now);
            let refused = if refusal.telling() == Telling::Each { "" } else { " refused" };
            log::log!(
                level,
                "request {} of {name}{refused}: {}: {refusal}",
                asked.request_id,
                refusal.code()
            );
            #[cfg(feature = "simulator")]
            self.refusals.push(super::interface::Refused {
                client,
                request_id: asked.request_id,
                reason: refusal.reason(),
                owners_waiting: self.jobs.owners_waiting(),
            });
        }
        let mut frame = [0; MAX_ERROR_FRAME];
        let frame = error::emit_frame(asked.request_id, refusal.code(), refusal, &mut frame);
        self.answer(id, refusal.code(), frame, shared);
    }

    /// Fails every job that waits for a worker.
    pub(super) fn fail_waiting(&mut self, refusal: Refusal, shared: &mut Shared, now: Instant) {
        while let Some(job) = self.jobs.take_any() {
            self.fail(job, refusal, shared, now);
        }
    }

    /// A job's answer is this error: it goes to the client, if there still is one.
    pub(super) fn answer(&mut self, id: JobId, code: ErrorCode, frame: &[u8], shared: &mut Shared) {
        let job = self.jobs.get_mut(id);
        match job.client {
            Some(client) => {
                job.set_error(code, frame);
                self.jobs.set_failed(id);
                shared.agenda.mark_client(client);
            }
            None => self.finish(id, Outcome::Abandoned, shared),
        }
    }

    /// Nobody waits for a job any more that is in no list, and no worker has it.
    pub(super) fn drop_job(&mut self, id: JobId, shared: &mut Shared) {
        self.leave(id);
        self.finish(id, Outcome::Abandoned, shared);
    }

    /// Nobody waits for this client's jobs any more that no worker has.
    pub(super) fn drop_waiting(&mut self, id: ClientId, shared: &mut Shared) {
        while let Some(job) = self.jobs.take_queued(id).or_else(|| self.jobs.take_failed(id)) {
            self.finish(job, Outcome::Abandoned, shared);
        }
    }

    /// A job's client waits no longer for it. It goes on.
    pub(super) fn leave(&mut self, id: JobId) {
        if let Some(client) = self.jobs.get_mut(id).client.take() {
            self.connections[client].outstanding -= 1;
        }
    }

    /// The last byte of a job's image has gone, to its client or to nobody.
    pub(super) fn finish_image(&mut self, id: JobId, shared: &mut Shared, now: Instant) {
        let Job { client, since, .. } = *self.jobs.get(id);
        if client.is_some() {
            shared.counters.request.observe(now.saturating_duration_since(since));
            self.finish(id, Outcome::Image, shared);
        } else {
            self.finish(id, Outcome::Abandoned, shared);
        }
    }

    /// A job is answered, or nobody waits for it: its slot is free.
    pub(super) fn finish(&mut self, id: JobId, outcome: Outcome, shared: &mut Shared) {
        let Job { client, asked, .. } = *self.jobs.get(id);
        shared.counters.ended(outcome);
        if let Some(client) = client {
            let connection = &mut self.connections[client];
            log::debug!("request {} of {}: {outcome}", asked.request_id, connection.name);
            connection.outstanding -= 1;
            shared.agenda.mark_client(client);
        }
        self.jobs.release(id);
    }

    // ---------------------------------------------------------------- workers

    /// The job whose turn it is, for this worker.
    pub(super) fn start_next(
        &mut self,
        worker: WorkerId,
        shared: &mut Shared,
        now: Instant,
    ) -> Option<JobId> {
        let id = self.jobs.start_next()?;
        let job = self.jobs.get_mut(id);
        job.attempts += 1;
        shared.counters.dispatched += 1;
        if job.attempts == 1 {
            shared.counters.queue_wait.observe(now.saturating_duration_since(job.since));
        }
        if let Some(client) = job.client {
            let (request_id, name) = (job.asked.request_id, self.connections[client].name);
            log::debug!("request {request_id} of {name}: given to worker {}", worker.0);
        }
        Some(id)
    }

    /// A worker died before it had begun with this job: another one can have it.
    pub(super) fn try_again(&mut self, id: JobId, death: Death, shared: &mut Shared, now: Instant) {
        let Job { client, attempts, .. } = *self.jobs.get(id);
        let Some(client) = client else { return self.drop_job(id, shared) };
        if shared.draining.is_some() {
            self.fail(id, Refusal::ShuttingDown, shared, now);
        } else if attempts >= MAX_ATTEMPTS {
            self.fail(id, Refusal::NoWorker(death), shared, now);
        } else {
            shared.counters.retried += 1;
            self.jobs.enqueue_again(id);
            self.rearm(client, Pressure::None, shared);
        }
    }

    /// A worker won't finish a job. If its pixels were on their way, half a frame is out, and only
    /// closing tells the client so: the connection that the caller has to close.
    pub(super) fn end_transfer(
        &mut self,
        id: JobId,
        worker: WorkerId,
        shared: &mut Shared,
    ) -> Option<ClientId> {
        let client = self.jobs.get(id).client?;
        let connection = &mut self.connections[client];
        connection.relay.take_if(|relay| *relay == worker)?;
        log::warn!("{}: its image can't be finished; closing", connection.name);
        shared.counters.cut(Cut::HalfImage);
        self.leave(id);
        Some(client)
    }

    /// A worker died while it had this job.
    pub(super) fn blame(&mut self, id: JobId, worker: WorkerId, shared: &mut Shared, now: Instant) {
        if let Some(digest) = self.quarantine.record_death(self.jobs.get(id).frame(), now) {
            shared.counters.quarantined += 1;
            log::error!(
                "worker {}: died of request {digest:016x} again; it is in quarantine for an hour",
                worker.0
            );
        }
    }

    // ---------------------------------------------------------------- connections

    /// Moves errors that wait into the client's output, as far as they have room. Whether the head of
    /// an image that it waits for has room now.
    pub(super) fn fill_output(&mut self, id: ClientId, shared: &mut Shared) -> bool {
        if self.connections[id].outstanding == 0 || self.connections[id].state == State::Closing {
            return false;
        }
        while self.connections[id].takes_error()
            && let Some(job) = self.jobs.take_failed(id)
        {
            self.connections[id].push(self.jobs.get(job).frame());
            self.finish(job, Outcome::Error(self.jobs.get(job).code()), shared);
        }
        self.connections[id].takes_head()
    }

    /// The connection is about to be closed for another user's.
    pub(super) fn log_displaced(&self, id: ClientId, shared: &mut Shared, now: Instant) {
        let name = self.connections[id].name;
        if shared.repeats.is_first(About::Displaced, Some(name.user()), now) {
            log::info!("{name}: no request, and another user has no place; closing");
        }
        shared.counters.cut(Cut::Displaced);
    }

    /// The connection is about to be closed for this.
    pub(super) fn log_close(&self, id: ClientId, why: Timeout, shared: &mut Shared, now: Instant) {
        let name = self.connections[id].name;
        if why == Timeout::Idle {
            shared.counters.cut(Cut::Idle);
            if shared.repeats.is_first(About::IdleTimeout, Some(name.user()), now) {
                log::info!("{name}: idle timeout, no request for {:?}; closing", shared.limits.idle);
            }
        } else {
            shared.counters.cut(Cut::Stalled);
            if shared.repeats.is_first(About::StallTimeout, Some(name.user()), now) {
                let Limits { stall, busy_stall, .. } = shared.limits;
                log::warn!(
                    "{name}: stall timeout, it took too little of its answer; closing (64 KiB are due every {stall:?}, \
                     every {busy_stall:?} while others wait)"
                );
            }
        }
    }

    /// A frame was begun, and its end has not come in time.
    pub(super) fn frame_timed_out(&mut self, id: ClientId, shared: &mut Shared, now: Instant) {
        let (limit, name) = (shared.limits.frame, self.connections[id].name);
        if shared.repeats.is_first(About::FrameTimeout, Some(name.user()), now) {
            log::warn!("{name}: frame timeout, not complete after {limit:?}; closing");
        }
        shared.counters.cut(Cut::HalfFrame);
        let why = format_args!(
            "a frame was not complete {} s after it was begun; send it at once, and connect anew",
            limit.as_secs_f32()
        );
        self.reject_stream(id, ErrorCode::Timeout, why, shared);
    }

    /// This client's oldest request has waited for too long.
    pub(super) fn queue_timed_out(&mut self, id: ClientId, shared: &mut Shared, now: Instant) {
        if let Some(job) = self.jobs.take_queued(id) {
            self.fail(job, Refusal::QueueWait { limit: shared.limits.queue_wait }, shared, now);
        }
    }

    /// When this connection runs out of time next, and for what.
    pub(super) fn due(&self, id: ClientId, pressure: Pressure, limits: &Limits) -> Option<Due<Timeout>> {
        self.connections[id].due(limits, pressure, self.jobs.oldest_of(id))
    }

    /// Something about a connection has changed: its next deadline is announced.
    pub(super) fn rearm(&self, id: ClientId, pressure: Pressure, shared: &mut Shared) {
        if let Some(Due { at, .. }) = self.due(id, pressure, &shared.limits) {
            shared.agenda.wake_by(at);
        }
    }
}

/// How loudly the log tells of a refusal.
fn level(telling: Telling, repeats: &mut Repeats, user: User, now: Instant) -> Level {
    match telling {
        Telling::Each => Level::Warn,
        Telling::First(why) if repeats.is_first(About::Request(why), Some(user), now) => Level::Info,
        Telling::First(_) => Level::Debug,
    }
}

/// What decides whether a request gets a place in the queue.
struct Admission<'a> {
    jobs: &'a mut Jobs,
    quarantine: &'a mut Quarantine,
    is_draining: bool,
    hopeless: Option<Death>,
    limits: &'a Limits,
}

impl Admission<'_> {
    /// Puts a request into the queue, or says why not.
    fn admit(&mut self, request: &Request<'_>, client: ClientId, user: User, now: Instant) -> Result<(), No> {
        self.check(request, now).map_err(No::Refused)?;
        let busy = |bound| No::Refused(Refusal::Busy { bound, user });
        if let Some(bound) = self.jobs.bound(client) {
            return Err(busy(bound));
        }
        let Some(id) = self.jobs.take_free(now) else { return Err(busy(Bound::All(self.limits.queue))) };
        let job = self.jobs.get_mut(id);
        // Written again, not copied: the worker is another trust domain, and gets canonical bytes.
        if let Err(error) = job.set_request(request) {
            self.jobs.release(id);
            return Err(No::Unwritable(error));
        }
        (job.client, job.since, job.attempts) = (Some(client), now, 0);
        self.jobs.enqueue(id);
        Ok(())
    }

    fn check(&mut self, request: &Request<'_>, now: Instant) -> Result<(), Refusal> {
        if self.is_draining {
            Err(Refusal::ShuttingDown)
        } else if self.quarantine.holds(request, now) {
            Err(Refusal::Quarantined)
        } else if let Some(death) = self.hopeless {
            Err(Refusal::NoWorker(death))
        } else {
            Ok(())
        }
    }
}

/// For the simulator: what must be true between any two events.
#[cfg(feature = "simulator")]
impl Requests {
    /// # Panics
    /// If it is not. `running`: jobs that workers have.
    pub(super) fn assert_consistent(&self, shared: &Shared, running: usize) {
        self.jobs.assert_consistent(running);
        self.users.assert_consistent(&self.connections.accounts());
        let c = &shared.counters;
        assert_eq!(c.frames, c.requests() + self.jobs.taken_len() as u64, "every request is counted once");
        self.connections.assert_consistent(shared.limits.in_flight);
    }
}
