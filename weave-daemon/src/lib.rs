//! `weaved`: image generation behind a Unix socket, with supervised workers.
//!
//! ```text
//! clients ── Unix socket ── server + router ── socket pair ── worker (engine)
//!            Weave v1       one thread          Weave v1       a child process
//! ```
//! Everything is a Weave stream: clients talk it to the daemon, the daemon to its worker.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`router`] | who gets what next: a state machine without sockets, clocks or threads |
//! | [`server`] | binds the router to `mio` |
//! | [`relay`] | pixels from a worker's socket to a client's, without a copy |
//! | [`worker`] | an engine on a stream |
//! | [`worker_log`] | what a worker writes on its standard error |
//! | [`scoreboard`] | how far a worker is, and which request it is to cancel |
//! | [`engine`] | stable-diffusion.cpp, and test pictures |
//! | [`process`] | starts, watches and ends the children that are workers |
//! | [`sandbox`] | what a worker process gives up |
//! | [`socket`] | where the Unix socket lies and who may connect |
//! | `door` | whether the way to a Unix socket is still there |
//! | [`tcp`] | listening on TCP, and the token |
//! | [`gate`] | where TCP clients prove that they know the token |
//! | [`stream`] | a connection of either kind |
//! | [`config`] | settings: their table, their sources, and what is decided where none was set |
//! | `values` | text to value and back, for settings and for the engine |
//! | [`model`] | model files, and whether they can be used |
//! | [`admin`] | metrics and health over HTTP, for whoever runs the daemon |
//! | [`counters`], [`metrics`], [`proc`] | what is counted, how it is shown, and what /proc says |
//! | [`causes`] | why requests, connections and workers end |
//! | [`check`] | whether all that serving takes is there |
//! | [`demo`] | the built-in model |
//! | [`logger`], [`worker_log`], [`repeats`] | log lines, those of workers, and those that others can cause at will |
//! | `simulator` | a world that tries to break the router, for tests and fuzzing |
//! | [`systemd`] | sockets that were handed over, readiness, the watchdog |
//!
//! This library exists for the `weaved` program and its tests; its interface follows their needs.

pub mod admin;
pub mod causes;
pub mod check;
pub mod config;
pub mod counters;
#[cfg(feature = "sdcpp")]
pub mod demo;
mod door;
pub mod engine;
pub mod gate;
pub mod logger;
pub mod metrics;
pub mod model;
pub mod proc;
pub mod process;
pub mod relay;
pub mod repeats;
pub mod router;
#[cfg(target_os = "linux")]
pub mod sandbox;
#[cfg(not(target_os = "linux"))]
pub mod sandbox {
    //! There is none here.

    use std::path::Path;

    use crate::worker::Settled;

    /// What a worker would be left.
    #[derive(Debug)]
    pub struct Rules {
        /// Whether its engine maps files into memory.
        pub maps_files: bool,
    }

    impl Rules {
        /// All that there is.
        #[must_use]
        pub const fn new(_: &[&Path]) -> Self {
            Self { maps_files: false }
        }
    }

    /// No sandbox.
    #[derive(Debug)]
    pub struct Entered(Vec<String>);

    /// Gives up nothing.
    #[must_use]
    pub fn enter(_: &Rules) -> Entered {
        Entered(vec!["everything (only Linux has a sandbox)".to_owned()])
    }

    impl Entered {
        /// All of it.
        #[must_use]
        pub fn missing(&self) -> &[String] {
            &self.0
        }

        /// Gives up no more.
        ///
        /// # Errors
        /// None.
        pub fn settle(&self) -> Result<Settled, String> {
            Ok(Settled::Open)
        }
    }
}
pub mod scoreboard;
pub mod server;
#[cfg(feature = "simulator")]
pub mod simulator;
pub mod socket;
pub mod stream;
pub mod systemd;
pub mod tcp;
pub mod user;
mod values;
pub mod worker;
pub mod worker_log;
