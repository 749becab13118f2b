//! What the page says while somebody waits.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::state::Shared;

/// `GET /status`: how busy the daemon is, for the page. All `null` if that isn't known.
pub(crate) async fn show(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let defaults = shared.defaults;
    let daemon = shared.statistics.figures().await.map(|figures| {
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
