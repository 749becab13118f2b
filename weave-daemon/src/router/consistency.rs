//! For the simulator: what must be true between any two events, and what it judges by.

use super::requests::Requests;
use super::{ClientId, Router, WorkerId};
use crate::causes::Reason;

impl Router {
    /// Why the router refused what it has refused since this was asked last, in order: client,
    /// request_id, reason.
    pub fn take_refusals(&mut self) -> Vec<(ClientId, u64, Reason)> {
        std::mem::take(&mut self.requests.refusals)
    }

    /// What must be true between any two events.
    ///
    /// # Panics
    /// If it is not.
    pub fn assert_consistent(&self) {
        self.requests.assert_consistent(&self.shared, self.running());
        let Requests { connections, jobs, .. } = &self.requests;
        let has = |worker: WorkerId| self.pool[worker].job().and_then(|job| jobs.get(job).client);
        for id in connections.ids() {
            let runs = self.pool.ids().filter(|worker| has(*worker) == Some(id)).count();
            assert_eq!(connections[id].outstanding, runs + jobs.waiting_len(id), "requests of {id:?}");
            let relay = connections[id].relay;
            assert!(relay.is_none_or(|worker| self.audience(worker) == Some(id)), "a relay from elsewhere");
        }
        let workers = self.pool.ids().filter_map(|id| self.worker_due(id).map(|due| due.at));
        let clients = connections.ids().filter_map(|id| self.client_due(id).map(|due| due.at));
        let is_busy = self.pool.ids().any(|id| self.pool[id].busy().is_some());
        let first = workers.chain(clients).chain(self.shared.draining.filter(|_| is_busy)).min();
        assert!(
            first.is_none_or(|first| self.wake_at().is_some_and(|wake_at| wake_at <= first)),
            "something is due that nothing wakes for"
        );
    }
}
