//! The daemon's statistics: how busy it is, for the page and for whoever has to wait.

use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use weave_cli_base::admin::{AdminSocket, Stats};

/// For how long statistics are as good as new ones: many may look at once.
const FRESH: Duration = Duration::from_millis(500);

/// Where they come from.
pub(crate) struct Statistics {
    socket: Option<AdminSocket>,
    last: Mutex<Option<(Instant, Option<Figures>)>>,
}

/// See `/stats` of the daemon's administrative socket.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    pub(crate) ready: bool,
    pub(crate) waiting: f64,
    pub(crate) running: f64,
    pub(crate) workers: f64,
    /// Step and steps of the image that is the furthest.
    pub(crate) step: Option<(f64, f64)>,
    /// What an image took at the mean.
    pub(crate) mean: Option<f64>,
}

impl Figures {
    fn of(stats: &Stats) -> Self {
        let n = |name: &str| stats.number(name);
        let workers = (0..).map_while(|worker| {
            let of = |name: &str| stats.known(&format!("{name}/{worker}"));
            Some((of("weave_worker_step")?, of("weave_worker_steps")?))
        });
        let count = n("weave_generation_seconds/count");
        Self {
            ready: n("weave_ready") > 0.0,
            waiting: n("weave_queue_length"),
            running: n("weave_requests_running"),
            workers: n("weave_workers_up"),
            step: workers
                .filter(|(_, steps)| *steps > 0.0)
                .max_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1))),
            mean: (count > 0.0).then(|| n("weave_generation_seconds/sum") / count),
        }
    }
}

impl Statistics {
    pub(crate) fn new(socket: Option<AdminSocket>) -> Self {
        Self { socket, last: Mutex::new(None) }
    }

    /// Asks, unless somebody has just asked. `None`: nobody answers.
    pub(crate) async fn figures(&self) -> Option<Figures> {
        let socket = self.socket.clone()?;
        let mut last = self.last.lock().await;
        if let Some((at, figures)) = &*last
            && at.elapsed() < FRESH
        {
            return figures.clone();
        }
        let asked =
            tokio::task::spawn_blocking(move || Stats::ask(&socket).ok().map(|stats| Figures::of(&stats)));
        let figures = asked.await.ok().flatten();
        *last = Some((Instant::now(), figures.clone()));
        figures
    }

    /// In how many seconds the daemon may have room again: what one image takes.
    pub(crate) async fn retry_after(&self) -> u32 {
        let figures = self.figures().await;
        let mean = figures.and_then(|figures| Some(figures.mean? / figures.workers.max(1.0))).unwrap_or(5.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 60")]
        let seconds = mean.ceil().clamp(1.0, 60.0) as u32;
        seconds
    }
}
