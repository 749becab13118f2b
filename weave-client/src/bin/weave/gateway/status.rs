//! What the page says while somebody waits: figures of the daemon's.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::Shared;
use crate::admin::Stats;

/// For how long figures are as good as new ones: many may look at once.
const FRESH: Duration = Duration::from_millis(500);

/// Where figures come from.
pub(super) struct Source {
    socket: Option<PathBuf>,
    last: Mutex<Option<(Instant, Option<Figures>)>>,
}

/// See `/stats` of the daemon's administrative socket.
#[derive(Clone, Debug)]
struct Figures {
    ready: bool,
    waiting: f64,
    running: f64,
    workers: f64,
    /// Step and steps of the image that is the furthest.
    step: Option<(f64, f64)>,
    /// What an image took at the mean.
    mean: Option<f64>,
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

impl Source {
    pub(super) fn new(socket: Option<PathBuf>) -> Self {
        Self { socket, last: Mutex::new(None) }
    }

    /// Asks, unless somebody has just asked. `None`: nobody answers.
    async fn figures(&self) -> Option<Figures> {
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
    pub(super) async fn retry_after(&self) -> u32 {
        let figures = self.figures().await;
        let mean = figures.and_then(|figures| Some(figures.mean? / figures.workers.max(1.0))).unwrap_or(5.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 60")]
        let seconds = mean.ceil().clamp(1.0, 60.0) as u32;
        seconds
    }
}

/// `GET /status`: how busy the daemon is, for the page. All `null` if that isn't known.
pub(super) async fn show(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let defaults = shared.defaults;
    let daemon = shared.status.figures().await.map(|figures| {
        json!({
            "ready": figures.ready,
            "waiting": figures.waiting,
            "running": figures.running,
            "workers": figures.workers,
            "step": figures.step.map(|(step, _)| step),
            "steps": figures.step.map(|(_, steps)| steps),
            "mean_seconds": figures.mean,
        })
    });
    Json(json!({
        "daemon": daemon,
        "defaults": {
            "size": format!("{}x{}", defaults.width, defaults.height),
            "steps": defaults.steps,
            "cfg": defaults.cfg_scale,
        },
    }))
}
