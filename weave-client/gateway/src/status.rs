//! What the page says while somebody waits.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use serde_json::{Value, json};
use weave_cli_base::model::Model;
use weave_cli_base::requests::Place;

use crate::state::Shared;
use crate::under_way::Whereabouts;

/// `GET /status`, for the page: how busy the daemon is and what it draws with, `null` if that isn't known, and whether
/// anybody draws at all. With `?request=NAME` also how far the request is that was sent with `X-Weave-Request: NAME`.
pub(crate) async fn show(State(shared): State<Arc<Shared>>, uri: Uri) -> Json<Value> {
    let name = uri.query().and_then(|query| query.split('&').find_map(|part| part.strip_prefix("request=")));
    let request = match name {
        Some(name) => shared.whereabouts(name).await.map(whereabouts),
        None => None,
    };
    let defaults = shared.defaults().await;
    let model = shared
        .model()
        .await
        .map(|Model { name, toy, draws, .. }| json!({ "name": name, "toy": toy, "draws": draws }));
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
    let available = daemon.is_some() || anybody_draws(&shared).await;
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "available": available,
        "model": model,
        "daemon": daemon,
        "request": request,
        "defaults": {
            "size": format!("{}x{}", defaults.width, defaults.height),
            "steps": defaults.steps,
            "cfg_scale": defaults.cfg_scale,
        },
    }))
}

/// Whether there is somebody who makes images: a daemon whose administrative socket can't be read may be there all the same.
async fn anybody_draws(shared: &Arc<Shared>) -> bool {
    let state = Arc::clone(shared);
    shared.available.get(move || state.providers.are_there().then_some(())).await.is_some()
}

/// Which of its images is being made, and whether that waits, behind how many others, or at which step it is.
fn whereabouts(of: Whereabouts) -> Value {
    let (before, step, steps) = match of.place {
        None => (None, None, None),
        Some(Place::Waiting { before }) => (Some(before), None, None),
        Some(Place::Running { step, steps }) => (None, Some(step), Some(steps)),
    };
    json!({ "image": of.image, "images": of.images, "before": before, "step": step, "steps": steps })
}
