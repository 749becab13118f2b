//! OpenAI's images API in front of the daemon, and a page for people: `weave gateway`; and clouds that stand in for
//! the daemon: `--providers`.
//!
//! The gateway is a process of its own: HTTP, and whoever speaks it, stay out of the daemon. It reads nothing from a
//! client without a limit on size and time, and makes nothing without knowing who asks: no browser that
//! another site has sent, and beyond this machine nobody without the token.

#![forbid(unsafe_code)]
#![cfg(unix)]

mod arguments;
mod connections;
mod fields;
mod guard;
mod http_error;
mod images;
mod links;
mod listen;
mod log;
mod models;
mod pace;
mod page;
mod provider;
mod refusals;
mod secret;
mod server;
mod shares;
mod state;
mod statistics;
mod status;
mod under_way;

pub use provider::{Ask, Attempt, Cause, Failed, Named, ProviderSettings, Providers};
pub use server::{Gateway, run};
