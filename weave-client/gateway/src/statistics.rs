//! What the daemon says of itself on its administrative socket: how busy it is, which model it has, how far each request is.

use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use weave_cli_base::admin::{AdminSocket, Stats};
use weave_cli_base::model::Model;
use weave_cli_base::requests::Requests;

/// For how long figures are as good as new ones, and that nobody has answered: many may look at once.
const FRESH: Duration = Duration::from_millis(500);
/// For how long a model is: it changes with the daemon's settings.
const MODEL_FRESH: Duration = Duration::from_secs(3);

/// Where they come from, and what was said last.
pub(crate) struct Statistics {
    socket: Option<AdminSocket>,
    figures: Kept<Figures>,
    model: Kept<Model>,
    requests: Kept<Requests>,
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
        Self { socket, figures: Kept::new(FRESH), model: Kept::new(MODEL_FRESH), requests: Kept::new(FRESH) }
    }

    /// `None`: nobody answers.
    pub(crate) async fn figures(&self) -> Option<Figures> {
        let of = |socket: &AdminSocket| Stats::ask(socket).ok().map(|stats| Figures::of(&stats));
        self.ask(&self.figures, of).await
    }

    /// `None`: nobody answers, or doesn't say.
    pub(crate) async fn model(&self) -> Option<Model> {
        self.ask(&self.model, |socket| Model::ask(socket).ok().flatten()).await
    }

    /// `None`: nobody answers, or doesn't say.
    pub(crate) async fn requests(&self) -> Option<Requests> {
        self.ask(&self.requests, |socket| Requests::ask(socket).ok().flatten()).await
    }

    async fn ask<T: Clone + Send + 'static>(
        &self,
        kept: &Kept<T>,
        ask: impl FnOnce(&AdminSocket) -> Option<T> + Send + 'static,
    ) -> Option<T> {
        let socket = self.socket.clone()?;
        kept.get(move || ask(&socket)).await
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

/// The last answer, and when it came.
pub(crate) struct Kept<T> {
    fresh: Duration,
    last: Mutex<Option<(Instant, Option<T>)>>,
}

impl<T: Clone + Send + 'static> Kept<T> {
    pub(crate) fn new(fresh: Duration) -> Self {
        Self { fresh, last: Mutex::new(None) }
    }

    /// Asks, unless somebody has just asked.
    pub(crate) async fn get(&self, ask: impl FnOnce() -> Option<T> + Send + 'static) -> Option<T> {
        let mut last = self.last.lock().await;
        if let Some((at, answer)) = &*last
            && at.elapsed() < if answer.is_some() { self.fresh } else { FRESH }
        {
            return answer.clone();
        }
        let answer = tokio::task::spawn_blocking(ask).await.ok().flatten();
        *last = Some((Instant::now(), answer.clone()));
        answer
    }
}
