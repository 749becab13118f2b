//! Pages of JSON on the administrative socket, for the `weave` command and the gateway.

use std::time::Instant;

use serde::Serialize;

use crate::router::{Router, Running, Waiting};
use crate::scoreboard::{Phase, Progress};

/// `/requests`: how far each request is. No longer than the queue and the workers are many.
#[derive(Serialize)]
pub(super) struct Requests {
    running: Vec<RunningRequest>,
    /// The next one first.
    waiting: Vec<WaitingRequest>,
}

#[derive(Serialize)]
struct RunningRequest {
    request_id: u64,
    worker: usize,
    /// Denoising steps that are done.
    step: u32,
    /// In all; 0 before the first one.
    steps: u32,
    seconds: f64,
    abandoned: bool,
}

#[derive(Serialize)]
struct WaitingRequest {
    request_id: u64,
    seconds: f64,
}

impl Requests {
    /// `progress`: each worker's.
    pub(super) fn of(router: &Router, progress: &[Progress], now: Instant) -> Self {
        let running = router.running_requests(now).map(|running| {
            let Running { request_id, worker, steps: asked, time, abandoned } = running;
            let (step, steps) = denoised(progress.get(worker.0).copied().unwrap_or_default(), asked);
            RunningRequest {
                request_id,
                worker: worker.0,
                step,
                steps,
                seconds: time.as_secs_f64(),
                abandoned,
            }
        });
        let waiting = router
            .waiting_requests(now)
            .map(|Waiting { request_id, time }| WaitingRequest { request_id, seconds: time.as_secs_f64() });
        Self { running: running.collect(), waiting: waiting.collect() }
    }
}

/// Denoising steps that are done, and how many there are. What a worker says of itself may be wrong.
fn denoised(progress: Progress, asked: u32) -> (u32, u32) {
    let Progress { phase, step, steps } = progress;
    match phase {
        Phase::Idle | Phase::Load | Phase::Encode => (0, 0),
        Phase::Sample => (step.min(steps), steps),
        Phase::Decode => (asked, asked),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_those_of_denoising_whatever_the_worker_counts() {
        let of = |phase, step, steps| denoised(Progress { phase, step, steps }, 8);
        assert_eq!([of(Phase::Idle, 0, 0), of(Phase::Load, 300, 700), of(Phase::Encode, 0, 0)], [(0, 0); 3]);
        assert_eq!([of(Phase::Sample, 3, 8), of(Phase::Sample, 9, 8)], [(3, 8), (8, 8)]);
        assert_eq!(of(Phase::Decode, 1, 4), (8, 8));
    }
}
