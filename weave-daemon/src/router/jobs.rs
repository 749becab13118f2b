//! The requests that are under way, and whose turn it is.
//!
//! A job stands in one list at a time: the free ones, those of its client that wait for a worker, or
//! those of its client that have failed and wait for a place in the client's output. Lists are
//! links inside the table, so that every step takes the same time however many jobs there are.
//!
//! Who waits is served in turns: the next job is the oldest of the client whose turn it is. A
//! client that sends a hundred requests at once delays another one by a single image.

use std::collections::VecDeque;
use std::time::Instant;

use weave_core::error::ErrorCode;
use weave_core::limits::MAX_REQUEST_FRAME;

use super::ClientId;

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
    pub(super) request_id: u64,
    pub(super) width: u32,
    pub(super) height: u32,
    /// Since when it waits for a worker.
    pub(super) since: Instant,
    /// Workers that were given it.
    pub(super) attempts: u8,
    /// The request; once the job has failed, the error frame that answers it.
    pub(super) frame: [u8; MAX_REQUEST_FRAME],
    /// Bytes of `frame` that count.
    pub(super) len: usize,
    /// What that error is.
    pub(super) code: ErrorCode,
    /// The job behind this one in its list.
    next: Option<usize>,
}

impl Job {
    pub(super) fn frame(&self) -> &[u8] {
        self.frame.get(..self.len).unwrap_or_default()
    }

    pub(super) const fn state(&self) -> JobState {
        self.state
    }
}

/// A chain of jobs, by their places in the table.
#[derive(Clone, Copy, Debug, Default)]
struct List {
    first: Option<usize>,
    last: Option<usize>,
}

impl List {
    fn push_back(&mut self, table: &mut [Job], index: usize) {
        table[index].next = None;
        match self.last.replace(index) {
            Some(last) => table[last].next = Some(index),
            None => self.first = Some(index),
        }
    }

    fn push_front(&mut self, table: &mut [Job], index: usize) {
        table[index].next = self.first.replace(index);
        self.last = self.last.or(Some(index));
    }

    /// Puts a job before those that have not waited as long. To be found near the front.
    fn insert_by_age(&mut self, table: &mut [Job], index: usize) {
        let (mut before, mut at) = (None, self.first);
        while let Some(older) = at.filter(|other| table[*other].since < table[index].since) {
            (before, at) = (at, table[older].next);
        }
        table[index].next = at;
        match before {
            Some(before) => table[before].next = Some(index),
            None => self.first = Some(index),
        }
        if at.is_none() {
            self.last = Some(index);
        }
    }

    fn pop_front(&mut self, table: &mut [Job]) -> Option<usize> {
        let index = self.first?;
        self.first = table[index].next.take();
        if self.first.is_none() {
            self.last = None;
        }
        Some(index)
    }
}

/// What a client has in the table, besides what runs.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
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
    /// Clients that have something queued, each once; the next one is in front.
    turns: VecDeque<ClientId>,
    queued_len: usize,
}

impl Jobs {
    pub(super) fn new(jobs: usize, clients: usize) -> Self {
        let shares = vec![Share::default(); clients].into();
        let table = Vec::with_capacity(jobs);
        let turns = VecDeque::with_capacity(clients);
        Self { table, limit: jobs, free: List::default(), shares, turns, queued_len: 0 }
    }

    pub(super) fn get(&self, index: usize) -> &Job {
        &self.table[index]
    }

    pub(super) fn get_mut(&mut self, index: usize) -> &mut Job {
        &mut self.table[index]
    }

    /// Jobs that wait for a worker.
    pub(super) const fn queued_len(&self) -> usize {
        self.queued_len
    }

    /// Since when the job that waits longest has been waiting.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.shares.iter().filter_map(|share| share.queued.first).map(|index| self.table[index].since).min()
    }

    /// Whether somebody else than `client` waits for a worker.
    pub(super) fn others_wait(&self, client: ClientId) -> bool {
        self.queued_len > self.shares[client.0].queued_len
    }

    /// A free slot. It is the caller's until it is enqueued or released.
    pub(super) fn take_free(&mut self, now: Instant) -> Option<usize> {
        let free = self.free.pop_front(&mut self.table);
        if free.is_some() || self.table.len() == self.limit {
            return free;
        }
        self.table.push(Job {
            state: JobState::Free,
            client: None,
            request_id: 0,
            width: 0,
            height: 0,
            since: now,
            attempts: 0,
            frame: [0; MAX_REQUEST_FRAME],
            len: 0,
            code: ErrorCode::None,
            next: None,
        });
        Some(self.table.len() - 1)
    }

    /// Puts a job behind those of its client, which has to be set.
    pub(super) fn enqueue(&mut self, index: usize) {
        self.queue(index, false);
    }

    /// Puts a job that was begun in vain in its old place among its client's, whose turn is next.
    pub(super) fn enqueue_again(&mut self, index: usize) {
        self.queue(index, true);
    }

    fn queue(&mut self, index: usize, first: bool) {
        let Some(client) = self.table[index].client else { return };
        self.table[index].state = JobState::Queued;
        let share = &mut self.shares[client.0];
        share.queued_len += 1;
        self.queued_len += 1;
        match (first, share.queued_len) {
            (true, _) => {
                share.queued.insert_by_age(&mut self.table, index);
                self.turns.retain(|other| *other != client);
                self.turns.push_front(client);
            }
            (false, len) => {
                share.queued.push_back(&mut self.table, index);
                if len == 1 {
                    self.turns.push_back(client);
                }
            }
        }
    }

    /// The next job for a worker; it is running from now on. Its client goes behind the others.
    pub(super) fn start_next(&mut self) -> Option<usize> {
        let client = self.turns.pop_front()?;
        let index = self.pop_queued(client)?;
        if self.shares[client.0].queued_len > 0 {
            self.turns.push_back(client);
        }
        self.table[index].state = JobState::Running;
        Some(index)
    }

    /// Takes a client's oldest job out of the queue if it waits since `before` or longer. For how
    /// long the oldest one waits otherwise: `Err`.
    pub(super) fn take_waiting_since(
        &mut self,
        client: ClientId,
        before: Option<Instant>,
    ) -> Result<usize, Option<Instant>> {
        let Some(index) = self.shares[client.0].queued.first else { return Err(None) };
        let since = self.table[index].since;
        if before.is_none_or(|before| since > before) {
            return Err(Some(since));
        }
        self.take_queued(client).ok_or(None)
    }

    /// Takes a client's oldest job out of the queue.
    pub(super) fn take_queued(&mut self, client: ClientId) -> Option<usize> {
        let index = self.pop_queued(client)?;
        if self.shares[client.0].queued_len == 0 {
            self.turns.retain(|other| *other != client);
        }
        Some(index)
    }

    /// The oldest job of anybody, whoever's turn it is.
    pub(super) fn take_any(&mut self) -> Option<usize> {
        let client = *self.turns.front()?;
        self.take_queued(client)
    }

    fn pop_queued(&mut self, client: ClientId) -> Option<usize> {
        let share = &mut self.shares[client.0];
        let index = share.queued.pop_front(&mut self.table)?;
        share.queued_len -= 1;
        self.queued_len -= 1;
        Some(index)
    }

    /// A job's `frame` is now the error that its client, which has to be set, is to get.
    pub(super) fn set_failed(&mut self, index: usize) {
        let Some(client) = self.table[index].client else { return };
        self.table[index].state = JobState::Failed;
        self.shares[client.0].failed.push_back(&mut self.table, index);
    }

    /// Takes the error that this client is to get next.
    pub(super) fn take_failed(&mut self, client: ClientId) -> Option<usize> {
        self.shares[client.0].failed.pop_front(&mut self.table)
    }

    /// Gives a slot back that is in no list.
    pub(super) fn release(&mut self, index: usize) {
        let job = &mut self.table[index];
        (job.state, job.client) = (JobState::Free, None);
        self.free.push_front(&mut self.table, index);
    }
}

/// For the simulator: what must be true at any time.
#[cfg(feature = "simulator")]
impl Jobs {
    fn walk(&self, list: List) -> impl Iterator<Item = usize> {
        std::iter::successors(list.first, |index| self.table[*index].next).take(self.table.len() + 1)
    }

    /// Jobs that are not answered yet.
    pub(super) fn taken_len(&self) -> usize {
        self.table.iter().filter(|job| job.state != JobState::Free).count()
    }

    /// Queued jobs that no worker was given yet.
    pub(super) fn never_begun_len(&self) -> usize {
        self.table.iter().filter(|job| job.state == JobState::Queued && job.attempts == 0).count()
    }

    /// Since when a client's oldest job has been waiting for a worker.
    pub(super) fn oldest_of(&self, client: ClientId) -> Option<Instant> {
        self.shares[client.0].queued.first.map(|index| self.table[index].since)
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
                assert_eq!(self.table[index].state, state, "a job in the wrong list");
                assert_eq!(self.table[index].client.map(|id| id.0), client, "a job in another's list");
                seen[index] += 1;
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
            let turns = self.turns.iter().filter(|turn| turn.0 == client).count();
            assert_eq!(turns, usize::from(share.queued_len > 0), "turns of client {client}");
            queued += share.queued_len;
        }
        assert_eq!(queued, self.queued_len);
        let lost = seen.iter().filter(|times| **times != 1).count();
        assert_eq!(lost, running, "jobs that are in no list, or in two");
        assert!(self.turns.len() <= self.shares.len());
    }
}
