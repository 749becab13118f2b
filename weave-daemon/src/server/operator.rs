//! Whoever runs the daemon: the pages of the administrative socket, the status for systemd, and SIGHUP.

use std::io;
use std::time::{Duration, Instant, SystemTime};

use mio::{Registry, Token};

use super::pages;
use super::slots::Slots;
use super::tokens::FIRST_ADMIN;
use crate::admin::{Admin, PAGES, Page};
use crate::config::{Config, ConfigError, EngineKind};
use crate::counters::{Gauges, LoopCounters};
use crate::metrics;
use crate::model::Profile;
use crate::proc::Process;
use crate::repeats::Repeats;
use crate::router::Router;
use crate::socket::{Access, Socket};
use crate::systemd::{Notifier, Status};

/// Reads the settings again, from where they came the first time.
pub type Reread = Box<dyn FnMut() -> Result<Config, ConfigError> + Send>;

/// What there is to look at.
pub(super) struct View<'a> {
    pub(super) router: &'a Router,
    pub(super) slots: &'a Slots,
    pub(super) config: &'a Config,
    pub(super) is_draining: bool,
    /// Why clients can't come in.
    pub(super) lost: Option<&'a str>,
    pub(super) now: Instant,
}

/// Who looks, and what it takes to answer.
pub(super) struct Operator {
    admin: Option<Admin>,
    /// What the images are made with.
    model: Profile,
    notifier: Notifier,
    reread: Reread,
    /// By the clock that counts on, and by the one that people read.
    started: (Instant, SystemTime),
}

impl Operator {
    pub(super) fn new(reread: Reread) -> Self {
        let now = Instant::now();
        let notifier = Notifier::from_env(now);
        Self { admin: None, model: Profile::PATTERN, notifier, reread, started: (now, SystemTime::now()) }
    }

    /// Shows metrics, health and what the images are made with on this socket.
    pub(super) fn show_on(
        &mut self,
        listener: std::os::unix::net::UnixListener,
        socket: Option<Socket>,
        model: Profile,
        access: Access,
        registry: &Registry,
    ) -> io::Result<()> {
        self.model = model;
        self.admin = Some(Admin::new(listener, socket, access, registry, FIRST_ADMIN)?);
        Ok(())
    }

    /// One of the administrative socket's tokens has an event.
    pub(super) fn event(&mut self, token: Token) {
        if let Some(admin) = &mut self.admin {
            admin.event(token);
        }
    }

    /// Whether somebody may have asked.
    pub(super) fn is_asked(&self) -> bool {
        self.admin.as_ref().is_some_and(Admin::is_awake)
    }

    /// Whether there is a file to look at.
    pub(super) fn has_file(&self) -> bool {
        self.admin.as_ref().is_some_and(|admin| admin.door().is_ours())
    }

    /// Looks whether one can still ask.
    pub(super) fn look(&mut self, registry: &Registry) {
        if let Some(admin) = &mut self.admin {
            admin.look(registry);
        }
    }

    /// When there is something to do at the latest.
    pub(super) fn wake_at(&self, now: Instant) -> Option<Instant> {
        let admin = self.admin.as_ref().and_then(|admin| admin.wake_at(now));
        self.notifier.wake_at().into_iter().chain(admin).min()
    }

    /// Clients can connect.
    pub(super) fn ready(&self) {
        self.notifier.ready();
    }

    /// The end has begun and may take so long.
    pub(super) fn stopping(&self, limit: Duration) {
        self.notifier.stopping(limit);
    }

    /// Tells systemd how things are, where that is due.
    pub(super) fn tell_status(&mut self, router: &Router, lost: Option<&str>, now: Instant) {
        let status = Status {
            running: router.running(),
            waiting: router.waiting(),
            answered: router.counters().requests(),
            worker: router.is_ready(),
            lost: match (lost, self.admin.as_ref().and_then(|admin| admin.door().lost())) {
                (Some(_), _) => Some("clients can't come in, the log says why"),
                (None, Some(_)) => Some("nobody can ask for metrics and health, the log says why"),
                (None, None) => None,
            },
        };
        self.notifier.tick(now, status);
    }

    /// Answers those who ask on the administrative socket.
    pub(super) fn answer(
        &mut self,
        registry: &Registry,
        counters: &mut LoopCounters,
        repeats: &mut Repeats,
        view: &View<'_>,
    ) {
        let Self { admin: Some(admin), model, started, .. } = self else { return };
        let View { router, is_draining, lost, now, .. } = *view;
        admin.turn(registry, repeats, now, |path| {
            let page = PAGES.iter().position(|page| *page == path);
            counters.admin_requests[page.unwrap_or(PAGES.len())] += 1;
            let gauges = || view.gauges(*started);
            match path {
                "/metrics" => Page {
                    status: 200,
                    kind: "text/plain; version=0.0.4; charset=utf-8",
                    body: metrics::prometheus(router.counters(), counters, &gauges()),
                },
                "/stats" => Page {
                    status: 200,
                    kind: "application/json",
                    body: metrics::json(router.counters(), counters, &gauges()),
                },
                "/model" => {
                    let defaults = view.config.defaults(model.defaults);
                    Page::json(&Profile { defaults, ..*model })
                }
                "/requests" => Page::json(&pages::Requests::of(router, &view.slots.progress(), now)),
                "/healthz" => match lost {
                    Some(why) => Page::words(503, why),
                    None => Page::words(200, "weaved runs, and clients can come in"),
                },
                "/readyz" if is_draining => Page::words(503, "not ready: stopping"),
                "/readyz" if lost.is_some() => {
                    Page::words(503, format!("not ready: {}", lost.unwrap_or_default()))
                }
                "/readyz" if !router.is_ready() => match router.workers_up() {
                    0 => Page::words(503, "not ready: no worker is up"),
                    _ => Page::words(503, "not ready: no worker has made its first image yet"),
                },
                "/readyz" => Page::words(
                    200,
                    format!("ready: {} running, {} waiting", router.running(), router.waiting()),
                ),
                _ => Page::words(404, format!("no such page; there are {}", PAGES.join(", "))),
            }
        });
    }

    /// SIGHUP: takes what can be changed from the settings as they are now, or leaves all as it is.
    pub(super) fn reload(
        &mut self,
        config: &mut Config,
        router: &mut Router,
        counters: &mut LoopCounters,
        now: Instant,
    ) {
        self.notifier.reloading();
        match (self.reread)() {
            Ok(new) => {
                counters.reloads += 1;
                let (taken, left) = config.take_live(&new);
                log::set_max_level(config.log);
                router.set_limits(config.limits(), now);
                let (taken, left) = (taken.join(", "), left.join(", "));
                match (taken.is_empty(), left.is_empty()) {
                    (true, true) => log::info!("settings reloaded: nothing changed"),
                    (false, true) => log::info!("settings reloaded: {taken} changed"),
                    (true, false) => log::warn!("settings reloaded: only a restart can change {left}"),
                    (false, false) => {
                        log::warn!("settings reloaded: {taken} changed; only a restart can change {left}");
                    }
                }
            }
            Err(error) => {
                counters.reload_failures += 1;
                log::error!("settings not reloaded: {error}");
            }
        }
        self.notifier.ready();
    }
}

impl View<'_> {
    fn gauges(&self, (started, since): (Instant, SystemTime)) -> Gauges {
        let Self { router, slots, config, is_draining, lost, now } = *self;
        Gauges {
            engine: if config.engine == EngineKind::Sdcpp { "sdcpp" } else { "pattern" },
            uptime: now.saturating_duration_since(started),
            started: since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
            ready: router.is_ready() && lost.is_none(),
            draining: is_draining,
            clients: router.clients(),
            client_limit: config.connections,
            waiting: router.waiting(),
            queue_limit: config.queue,
            running: router.running(),
            running_abandoned: router.running_abandoned(),
            workers: slots.len(),
            workers_up: router.workers_up(),
            oldest_wait: router.oldest_wait(now),
            process: Process::read("self"),
            progress: slots.progress(),
            worker_memory: slots.resident_memory(),
        }
    }
}
