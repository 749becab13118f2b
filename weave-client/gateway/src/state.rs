//! What all requests share.

use std::sync::Arc;

use weave_client::Params;

use crate::provider::Providers;
use crate::secret::Secret;
use crate::shares::Shares;
use crate::statistics::Statistics;

/// What all requests share.
pub(crate) struct Shared {
    pub(crate) providers: Providers,
    /// For what a request leaves open. The seed is 0.
    pub(crate) defaults: Params,
    pub(crate) token: Option<Secret>,
    /// Names in lower case.
    pub(crate) hosts: Vec<String>,
    /// For requests that images are made for.
    pub(crate) shares: Arc<Shares>,
    pub(crate) statistics: Statistics,
}
