//! What all requests share.

use std::sync::Arc;

use weave_cli_base::model::Model;
use weave_client::Params;

use crate::links::Links;
use crate::models::Names;
use crate::provider::Providers;
use crate::refusals::Refusals;
use crate::secret::Secret;
use crate::shares::Shares;
use crate::statistics::{Kept, Statistics};
use crate::under_way::{UnderWay, Whereabouts};

/// What all requests share.
pub(crate) struct Shared {
    pub(crate) providers: Providers,
    /// What whoever started the gateway has said.
    pub(crate) own_defaults: OwnDefaults,
    pub(crate) token: Option<Secret>,
    /// Names in lower case.
    pub(crate) hosts: Vec<String>,
    /// Of pages that may use this gateway besides its own.
    pub(crate) origins: Vec<String>,
    pub(crate) names: Names,
    /// Whether hints without an effect are refused.
    pub(crate) is_strict: bool,
    /// For requests that images are made for.
    pub(crate) shares: Arc<Shares>,
    pub(crate) statistics: Statistics,
    pub(crate) under_way: Arc<UnderWay>,
    /// Whether anybody makes images.
    pub(crate) available: Kept<()>,
    pub(crate) links: Links,
    pub(crate) refusals: Arc<Refusals>,
}

/// What a request that leaves it open gets, whatever the model.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OwnDefaults {
    /// Width and height, in pixels.
    pub(crate) size: Option<(u32, u32)>,
    pub(crate) steps: Option<u32>,
    pub(crate) cfg_scale: Option<f32>,
}

impl OwnDefaults {
    /// With `others` where nothing was said.
    pub(crate) fn or(self, others: Params) -> Params {
        let (width, height) = self.size.unwrap_or((others.width, others.height));
        Params {
            width,
            height,
            steps: self.steps.unwrap_or(others.steps),
            cfg_scale: self.cfg_scale.unwrap_or(others.cfg_scale),
            seed: 0,
        }
    }
}

impl Shared {
    /// The model that the daemon draws with. `None`: it doesn't say, or isn't there.
    pub(crate) async fn model(&self) -> Option<Model> {
        self.statistics.model().await
    }

    /// What a request gets that leaves everything open. The seed is 0: it is drawn.
    pub(crate) async fn defaults(&self) -> Params {
        let OwnDefaults { size, steps, cfg_scale } = self.own_defaults;
        match size.is_some() && steps.is_some() && cfg_scale.is_some() {
            true => self.defaults_of(None),
            false => self.defaults_of(self.model().await.as_ref()),
        }
    }

    /// The same for this model.
    pub(crate) fn defaults_of(&self, model: Option<&Model>) -> Params {
        self.own_defaults.or(model.map_or_else(Params::default, Model::params))
    }

    /// How far the request is to which its client gave this name. `None`: there is none under way.
    pub(crate) async fn whereabouts(&self, name: &str) -> Option<Whereabouts> {
        let way = self.under_way.find(name)?;
        let requests = self.statistics.requests().await;
        let place = requests.and_then(|requests| requests.place(way.request_id));
        Some(Whereabouts { image: way.image, images: way.images, place })
    }
}
