//! Who makes an image: the daemon, and clouds that may stand in for it.
//!
//! They are asked in the order of a list, which has only the daemon unless somebody says otherwise. The
//! next one is asked only if one can't be reached, is busy for too long, or fails. A request that one of
//! them has refused is over: what is wrong with it is wrong everywhere, and whoever asked has to know.

mod answer;
mod ask;
mod cloud;
mod list;
mod local;
mod settings;

pub use ask::{Ask, Cause, Named};
pub use list::{Attempt, Failed, Providers};
pub use settings::ProviderSettings;
