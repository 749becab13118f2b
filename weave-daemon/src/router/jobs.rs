//! The requests that are under way, and whose turn it is.
//!
//! A job stands in one list at a time: the free ones, those of its client that wait for a worker, or
//! those of its client that have failed and wait for a place in the client's output. Lists are
//! links inside the table, so that every step takes the same time however many jobs there are.
//!
//! Who waits is served in turns: the next job is of the user whose turn it is, and there the oldest of the client
//! whose turn it is. A user with a hundred connections delays another one by a single image, and so does a client
//! that sends a hundred requests at once another client of its user.

use std::collections::VecDeque;
use std::time::Instant;

use weave_core::error::ErrorCode;
use weave_core::limits::{MAX_ERROR_FRAME, MAX_REQUEST_FRAME};
use weave_core::request::{EmitError, Request};

use super::answer::Asked;
use super::interface::{Bound, ClientId};
use super::turns::Turns;
use super::users::{Account, Tally};

/// A place in the table of jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct JobId(usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JobState {
    Free,
    Queued,
    Running,
    /// `frame` is the answer and waits for room in the client's output.
    Failed,
}

/// A request on its way, in a slot of its own.
pub(super) struct Job {
    state: JobState,
    /// Who waits for it; `None` once nobody does.
    pub(super) client: Option<ClientId>,
    pub(super) asked: Asked,
    /// Since when it waits for a worker.
    pub(super) since: Instant,
    /// Workers that were given it.
    pub(super) attempts: u8,
    /// The request; once the job has failed, the error frame that answers it.
    frame: [u8; MAX_REQUEST_FRAME],
    /// Bytes of `frame` that count.
    len: usize,
    /// What that error is.
    code: ErrorCode,
    /// The job behind this one in its list.
    next: Option<JobId>,
}

impl Job {
    /// The request, or the error.
    pub(super) fn frame(&self) -> &[u8] {
        &self.frame[..self.len]
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// What the error is that answers it, once it has failed.
    pub(super) const fn code(&self) -> ErrorCode {
        self.code
    }

    /// Keeps a request. What can't be written is said, and the job is as it was.
    pub(super) fn set_request(&mut self, request: &Request<'_>) -> Result<(), EmitError> {
        self.len = request.emit(&mut self.frame)?.len();
        self.asked = Asked::by(request);
        Ok(())
    }

    /// The job has failed; this is the whole frame that says so.
    pub(super) fn set_error(&mut self, code: ErrorCode, frame: &[u8]) {
        (self.code, self.len) = (code, frame.len());
        self.frame[..frame.len()].copy_from_slice(frame);
    }
}

const _: () = assert!(MAX_ERROR_FRAME <= MAX_REQUEST_FRAME, "an error stands where its request did");

/// A chain of jobs, by their places in the table.
#[derive(Clone, Copy, Debug, Default)]
struct List {
    first: Option<JobId>,
    last: Option<JobId>,
}

impl List {
    fn push_back(&mut self, table: &mut [Job], index: JobId) {
        table[index.0].next = None;
        match self.last.replace(index) {
            Some(last) => table[last.0].next = Some(index),
            None => self.first = Some(index),
        }
    }

    fn push_front(&mut self, table: &mut [Job], index: JobId) {
        table[index.0].next = self.first.replace(index);
        self.last = self.last.or(Some(index));
    }

    /// Puts a job before those that have not waited as long. To be found near the front.
    fn insert_by_age(&mut self, table: &mut [Job], index: JobId) {
        let (mut before, mut at) = (None, self.first);
        while let Some(older) = at.filter(|other| table[other.0].since < table[index.0].since) {
            (before, at) = (at, table[older.0].next);
        }
        table[index.0].next = at;
        match before {
            Some(before) => table[before.0].next = Some(index),
            None => self.first = Some(index),
        }
        if at.is_none() {
            self.last = Some(index);
        }
    }

    fn pop_front(&mut self, table: &mut [Job]) -> Option<JobId> {
        let index = self.first?;
        self.first = table[index.0].next.take();
        if self.first.is_none() {
            self.last = None;
        }
        Some(index)
    }
}

/// What a client has in the table, besides what runs.
#[derive(Clone, Copy, Debug)]
struct Share {
    of: Account,
    queued: List,
    failed: List,
    queued_len: usize,
}

/// The table.
pub(super) struct Jobs {
    /// As many as there ever were at once, in memory that is reserved for all that may be.
    table: Vec<Job>,
    limit: usize,
    free: List,
    shares: Box<[Share]>,
    turns: Turns,
    queue: usize,
    queued_len: usize,
    /// Those that are of guests.
    guests_queued: usize,
    /// Each user's jobs that no worker has: queued, or failed and not yet taken by the client.
    places: Tally,
    /// For the simulator: what became of turns since it asked last.
    #[cfg(feature = "simulator")]
    pub(super) turns_taken: Vec<super::interface::Turn>,
}

impl Jobs {
    pub(super) fn new(queue: usize, workers: usize, clients: usize) -> Self {
        let nothing =
            Share { of: Account::NONE, queued: List::default(), failed: List::default(), queued_len: 0 };
        // A worker's job may fail and wait to be taken while the worker has the next one.
        let limit = queue + 2 * workers;
        Self {
            table: Vec::with_capacity(limit),
            limit,
            free: List::default(),
            shares: vec![nothing; clients].into(),
            turns: Turns::new(clients),
            queue,
            queued_len: 0,
            guests_queued: 0,
            places: Tally::new(queue, clients),
            #[cfg(feature = "simulator")]
            turns_taken: Vec::new(),
        }
    }

    /// Whose jobs this client's are from now on. It has none yet.
    pub(super) fn set_account(&mut self, client: ClientId, account: Account) {
        self.shares[client.0].of = account;
    }

    pub(super) fn get(&self, index: JobId) -> &Job {
        &self.table[index.0]
    }

    pub(super) fn get_mut(&mut self, index: JobId) -> &mut Job {
        &mut self.table[index.0]
    }

    /// Whether this client waits for a job.
    pub(super) fn is_of(&self, index: JobId, client: ClientId) -> bool {
        self.table[index.0].client == Some(client)
    }

    /// Jobs that wait for a worker.
    pub(super) const fn queued_len(&self) -> usize {
        self.queued_len
    }

    /// Since when the job that waits longest has been waiting.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.shares.iter().filter_map(|share| share.queued.first).map(|index| self.table[index.0].since).min()
    }

    /// The jobs that wait for a worker, in the order in which they get one if no others come.
    pub(super) fn in_turn(&self) -> Vec<JobId> {
        let mut users: VecDeque<VecDeque<JobId>> = self
            .turns
            .standing()
            .map(|clients| clients.filter_map(|client| self.shares[client.0].queued.first).collect())
            .collect();
        let mut jobs = Vec::with_capacity(self.queued_len);
        // As `start_next` does it: a client that has had its turn goes behind the others, and so does its user.
        while let Some(mut clients) = users.pop_front() {
            let Some(job) = clients.pop_front() else { continue };
            jobs.push(job);
            clients.extend(self.table[job.0].next);
            users.push_back(clients);
        }
        jobs
    }

    /// Whether somebody else than `client` waits for a worker.
    pub(super) fn others_wait(&self, client: ClientId) -> bool {
        self.queued_len > self.shares[client.0].queued_len
    }

    /// What keeps this client from one more job in the queue. A job that goes back into it because its worker died
    /// needs no place, and takes none of those that are kept for the owner.
    pub(super) fn bound(&self, client: ClientId) -> Option<Bound> {
        let account = self.shares[client.0].of;
        let beyond =
            if account.is_guest() { 0 } else { self.guests_queued.saturating_sub(self.places.share().all) };
        let is_full = self.queued_len - beyond >= self.queue;
        self.places.bound(account).or_else(|| is_full.then_some(Bound::All(self.queue)))
    }

    /// A free slot. It is the caller's until it is enqueued or released.
    pub(super) fn take_free(&mut self, now: Instant) -> Option<JobId> {
        let free = self.free.pop_front(&mut self.table);
        if free.is_some() || self.table.len() == self.limit {
            return free;
        }
        self.table.push(Job {
            state: JobState::Free,
            client: None,
            asked: Asked { request_id: 0, width: 0, height: 0, steps: 0 },
            since: now,
            attempts: 0,
            frame: [0; MAX_REQUEST_FRAME],
            len: 0,
            code: ErrorCode::None,
            next: None,
        });
        Some(JobId(self.table.len() - 1))
    }

    /// Puts a job behind those of its client, which has to be set.
    pub(super) fn enqueue(&mut self, index: JobId) {
        let Some(client) = self.set_queued(index) else { return };
        let share = &mut self.shares[client.0];
        share.queued.push_back(&mut self.table, index);
        if share.queued_len == 1 {
            self.turns.join(client, share.of);
        }
    }

    /// Puts a job that was begun in vain in its old place among its client's, whose turn is next.
    pub(super) fn enqueue_again(&mut self, index: JobId) {
        let Some(client) = self.set_queued(index) else { return };
        let share = &mut self.shares[client.0];
        share.queued.insert_by_age(&mut self.table, index);
        if share.queued_len > 1 {
            self.turns.leave(client, share.of);
        }
        self.turns.join_first(client, share.of);
        #[cfg(feature = "simulator")]
        self.turns_taken.push(super::interface::Turn::Again(client));
    }

    fn set_queued(&mut self, index: JobId) -> Option<ClientId> {
        let job = &mut self.table[index.0];
        let client = job.client?;
        job.state = JobState::Queued;
        let share = &mut self.shares[client.0];
        share.queued_len += 1;
        self.queued_len += 1;
        self.guests_queued += usize::from(share.of.is_guest());
        self.places.take(share.of);
        #[cfg(feature = "simulator")]
        if share.queued_len == 1 {
            self.turns_taken.push(super::interface::Turn::Waits(client));
        }
        Some(client)
    }

    /// The next job for a worker; it is running from now on. Its client goes behind the others, and so does its user.
    pub(super) fn start_next(&mut self) -> Option<JobId> {
        let client = self.turns.next()?;
        #[cfg(feature = "simulator")]
        self.turns_taken.push(super::interface::Turn::Taken(client));
        self.turns.pass();
        let index = self.take_queued(client)?;
        self.table[index.0].state = JobState::Running;
        Some(index)
    }

    /// Since when a client's oldest job has been waiting for a worker.
    pub(super) fn oldest_of(&self, client: ClientId) -> Option<Instant> {
        self.shares[client.0].queued.first.map(|index| self.table[index.0].since)
    }

    /// Takes a client's oldest job out of the queue.
    pub(super) fn take_queued(&mut self, client: ClientId) -> Option<JobId> {
        let share = &mut self.shares[client.0];
        let index = share.queued.pop_front(&mut self.table)?;
        share.queued_len -= 1;
        self.queued_len -= 1;
        self.guests_queued -= usize::from(share.of.is_guest());
        self.places.give_back(share.of);
        if share.queued_len == 0 {
            self.turns.leave(client, share.of);
            #[cfg(feature = "simulator")]
            self.turns_taken.push(super::interface::Turn::Leaves(client));
        }
        Some(index)
    }

    /// The oldest job of anybody, whoever's turn it is.
    pub(super) fn take_any(&mut self) -> Option<JobId> {
        self.take_queued(self.turns.next()?)
    }

    /// A job's `frame` is now the error that its client, which has to be set, is to get.
    pub(super) fn set_failed(&mut self, index: JobId) {
        let Some(client) = self.table[index.0].client else { return };
        self.table[index.0].state = JobState::Failed;
        let share = &mut self.shares[client.0];
        share.failed.push_back(&mut self.table, index);
        self.places.take(share.of);
    }

    /// Takes the error that this client is to get next.
    pub(super) fn take_failed(&mut self, client: ClientId) -> Option<JobId> {
        let share = &mut self.shares[client.0];
        let index = share.failed.pop_front(&mut self.table)?;
        self.places.give_back(share.of);
        Some(index)
    }

    /// Gives a slot back that is in no list.
    pub(super) fn release(&mut self, index: JobId) {
        let job = &mut self.table[index.0];
        (job.state, job.client) = (JobState::Free, None);
        self.free.push_front(&mut self.table, index);
    }
}

/// For the simulator: what must be true at any time.
#[cfg(feature = "simulator")]
impl Jobs {
    fn walk(&self, list: List) -> impl Iterator<Item = JobId> {
        std::iter::successors(list.first, |index| self.table[index.0].next).take(self.table.len() + 1)
    }

    /// Jobs that are not answered yet.
    pub(super) fn taken_len(&self) -> usize {
        self.table.iter().filter(|job| job.state != JobState::Free).count()
    }

    /// Jobs of the owner and root that no worker has.
    pub(super) fn owners_waiting(&self) -> usize {
        self.accounts(|_| true).filter(|account| !account.is_guest()).count()
    }

    /// Whose the jobs are that no worker has, and of which this is true.
    fn accounts(&self, is_meant: impl Fn(&Job) -> bool) -> impl Iterator<Item = Account> {
        let waits = |job: &&Job| matches!(job.state, JobState::Queued | JobState::Failed);
        let meant = self.table.iter().filter(waits).filter(move |job| is_meant(job));
        meant.filter_map(|job| Some(self.shares[job.client?.0].of))
    }

    /// Jobs of a client that don't run.
    pub(super) fn waiting_len(&self, client: ClientId) -> usize {
        let share = self.shares[client.0];
        self.walk(share.queued).count() + self.walk(share.failed).count()
    }

    /// # Panics
    /// If the lists and the table disagree.
    pub(super) fn assert_consistent(&self, running: usize) {
        let mut seen = vec![0; self.table.len()];
        let mut look = |list: List, state: JobState, client: Option<usize>| {
            let mut last = None;
            for index in self.walk(list) {
                assert_eq!(self.table[index.0].state, state, "a job in the wrong list");
                assert_eq!(self.table[index.0].client.map(|id| id.0), client, "a job in another's list");
                seen[index.0] += 1;
                last = Some(index);
            }
            assert_eq!(list.last, last, "a list without its end");
        };
        look(self.free, JobState::Free, None);
        let mut queued = 0;
        for (client, share) in self.shares.iter().enumerate() {
            look(share.queued, JobState::Queued, Some(client));
            look(share.failed, JobState::Failed, Some(client));
            assert_eq!(self.walk(share.queued).count(), share.queued_len);
            queued += share.queued_len;
        }
        assert_eq!(queued, self.queued_len);
        let waiting = self.shares.iter().enumerate().filter(|(_, share)| share.queued_len > 0);
        let waiting: Vec<_> = waiting.map(|(client, share)| (ClientId(client), share.of)).collect();
        self.turns.assert_consistent(&waiting);
        self.places.assert_is(&self.accounts(|_| true).collect::<Vec<_>>());
        // What was begun in vain is back in the queue beyond all bounds.
        let never_begun: Vec<_> =
            self.accounts(|job| job.state == JobState::Queued && job.attempts == 0).collect();
        assert!(never_begun.len() <= self.queue, "the queue is over its bound");
        self.places.assert_bounded(&never_begun);
        let lost = seen.iter().filter(|times| **times != 1).count();
        assert_eq!(lost, running, "jobs that are in no list, or in two");
    }
}
