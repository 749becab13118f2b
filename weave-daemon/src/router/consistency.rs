//! What must be true between any two events, for the simulator.

use super::interface::WorkerId;
use super::requests::Requests;
use super::shared::Shared;
use super::worker::Pool;

/// # Panics
/// If it is not.
pub(super) fn check(requests: &Requests, pool: &Pool, shared: &Shared) {
    requests.assert_consistent(shared, pool.with_job());
    let Requests { connections, jobs, .. } = requests;
    let has = |worker: WorkerId| pool[worker].job().and_then(|job| jobs.get(job).client);
    for id in connections.ids() {
        let runs = pool.ids().filter(|worker| has(*worker) == Some(id)).count();
        assert_eq!(connections[id].outstanding, runs + jobs.waiting_len(id), "requests of {id:?}");
        let relay = connections[id].relay;
        assert!(relay.is_none_or(|worker| pool.audience(worker, jobs) == Some(id)), "a relay from elsewhere");
    }
    let workers = pool.ids().filter_map(|id| pool.due(id, pool.audience(id, jobs), shared).map(|due| due.at));
    let clients = connections
        .ids()
        .filter_map(|id| requests.due(id, pool.pressure(id, jobs), &shared.limits).map(|due| due.at));
    let is_busy = pool.ids().any(|id| pool[id].busy().is_some());
    let first = workers.chain(clients).chain(shared.draining.filter(|_| is_busy)).min();
    assert!(
        first.is_none_or(|first| shared.agenda.wake_at().is_some_and(|wake_at| wake_at <= first)),
        "something is due that nothing wakes for"
    );
}
