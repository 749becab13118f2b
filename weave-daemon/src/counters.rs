//! What the daemon counts, and how it is shown: for Prometheus, or as JSON.
//!
//! One thread counts, so a counter is a plain number. Counting allocates nothing; showing does, when
//! somebody asks. `show` lists all of it once, for both ways of writing.

use std::fmt::{self, Write as _};
use std::time::Duration;

use weave_core::error::{ErrorCode, Status};

use crate::logger;
use crate::router::Death;
use crate::scoreboard::Progress;

/// Declares why things happen: the variants, and what each is called where it is shown.
macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $(#[doc = $what:literal] $variant:ident = $shown:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $(#[doc = $what] $variant,)*
        }

        impl $name {
            const NAMES: &[&str] = &[$($shown),*];

            /// What it is called where it is shown.
            #[must_use]
            pub const fn name(self) -> &'static str {
                Self::NAMES[self as usize]
            }
        }
    };
}

reasons! {
    /// Why a request was not served, where that was the daemon's own decision.
    Reason {
        /// As many wait as may.
        QueueFull = "queue_full",
        /// The connection has as many under way as it may.
        InFlight = "in_flight",
        /// It waited for too long.
        QueueWait = "queue_wait",
        /// The worker took too long.
        TooSlow = "too_slow",
        /// The worker died of it, or with it.
        WorkerDied = "worker_died",
        /// What the worker answered made no sense.
        WorkerLied = "worker_nonsense",
        /// No worker comes up.
        NoWorker = "no_worker",
        /// It has ended a worker twice.
        KilledBefore = "killed_before",
        /// The daemon ends.
        ShuttingDown = "shutting_down",
    }
}

reasons! {
    /// Why a client's connection was closed from this side.
    Cut {
        /// It took too little for too long.
        Stalled = "stalled",
        /// It did not finish a frame.
        HalfFrame = "half_frame",
        /// It wanted nothing.
        Idle = "idle",
        /// What it sent can't be followed any further.
        Malformed = "malformed",
        /// The worker died in the middle of its image.
        HalfImage = "half_image",
    }
}

reasons! {
    /// Why a worker was ended.
    Kill {
        /// It took too long.
        TooSlow = "too_slow",
        /// What it sent made no sense.
        Nonsense = "nonsense",
        /// It was idle, and its memory is of use to others.
        Parked = "parked",
        /// The client of what it made had gone.
        Abandoned = "abandoned",
        /// The daemon ends.
        ShuttingDown = "shutting_down",
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of its image was handed to the client.
    Image,
    /// An error was its answer.
    Error(ErrorCode),
    /// The client left, or was closed, before there was an answer.
    Abandoned,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image => f.write_str("done"),
            Self::Error(code) => write!(f, "answered with {code}"),
            Self::Abandoned => f.write_str("abandoned"),
        }
    }
}

/// Times, sorted into [`BUCKETS`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Histogram {
    /// How many fell between a bucket's bound and the one before; the last has no bound.
    buckets: [u64; BUCKETS.len() + 1],
    sum: Duration,
}

/// Upper bounds in seconds: from a queue that is empty to the longest images on a CPU.
pub const BUCKETS: [f64; 14] =
    [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1200.0, 3600.0];

impl Histogram {
    /// Counts one.
    pub fn observe(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        let at = BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len());
        self.buckets[at] += 1;
        self.sum = self.sum.saturating_add(time);
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// What happens between clients and workers. The router counts it.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Connections that became clients.
    pub connections: u64,
    /// Connections for which there was no place.
    pub refused_full: u64,
    /// Most clients at once.
    pub most_clients: usize,
    /// Connections closed from this side, by [`Cut`].
    pub cuts: [u64; Cut::NAMES.len()],
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
    /// Bytes of images for which there was no client any more.
    pub bytes_dropped: u64,
    /// Frames from clients, whether they could be understood or not.
    pub frames: u64,
    /// Requests that got a place in the queue.
    pub requests_queued: u64,
    /// Most requests that waited at once.
    pub longest_queue: usize,
    /// Requests that were given to a worker.
    pub dispatched: u64,
    /// Requests that went back into the queue because their worker died before it had begun.
    pub retried: u64,
    /// Requests that ended with an image.
    pub images: u64,
    /// Requests that ended with an error that was the client's fault.
    pub client_errors: u64,
    /// Requests that ended with BUSY.
    pub busy: u64,
    /// Requests that ended with any other error that was not.
    pub server_errors: u64,
    /// Requests that nobody waited for any more.
    pub abandoned: u64,
    /// Requests that the daemon itself did not serve, by [`Reason`].
    pub refusals: [u64; Reason::NAMES.len()],
    /// Requests that are refused from now on, because they have ended a worker twice.
    pub killers: u64,
    /// Errors sent, by their place in [`ErrorCode::ALL`]; the last is for codes of later versions.
    pub errors: [u64; ErrorCode::ALL.len() + 1],
    /// Pixels of images that were made.
    pub pixels: u64,
    /// From a place in the queue to a worker.
    pub queue_wait: Histogram,
    /// From a worker to the beginning of its answer, where that is an image.
    pub generation: Histogram,
    /// From a place in the queue to the last byte of the image.
    pub request: Histogram,
    /// Workers that came up.
    pub worker_starts: u64,
    /// Workers that have shown that they can make an image.
    pub warm_ups: u64,
    /// Workers that are gone, by [`Death`].
    pub worker_deaths: [u64; 4],
    /// Workers that were ended from this side, by [`Kill`].
    pub worker_kills: [u64; Kill::NAMES.len()],
    /// Requests that a worker was told to give up, by the reason for which it is ended if it doesn't.
    pub worker_cancels: [u64; Kill::NAMES.len()],
    /// From that word to a worker that is free.
    pub cancel: Histogram,
}

impl Counters {
    /// Requests that have ended, in whatever way.
    #[must_use]
    pub const fn requests(&self) -> u64 {
        self.images + self.client_errors + self.busy + self.server_errors + self.abandoned
    }

    /// A request got a place in the queue, which is now so long.
    pub fn queued(&mut self, length: usize) {
        self.requests_queued += 1;
        self.longest_queue = self.longest_queue.max(length);
    }

    /// A request has ended.
    pub fn ended(&mut self, outcome: Outcome) {
        let count = match outcome {
            Outcome::Image => &mut self.images,
            Outcome::Abandoned => &mut self.abandoned,
            Outcome::Error(ErrorCode::Busy) => &mut self.busy,
            Outcome::Error(code) if code.status() == Status::ClientError => &mut self.client_errors,
            Outcome::Error(_) => &mut self.server_errors,
        };
        *count += 1;
        if let Outcome::Error(code) = outcome {
            self.error(code);
        }
    }

    /// An error was sent, be it for a request or for a whole connection.
    pub fn error(&mut self, code: ErrorCode) {
        let known = ErrorCode::ALL.iter().position(|known| *known == code);
        self.errors[known.unwrap_or(ErrorCode::ALL.len())] += 1;
    }

    /// The daemon itself does not serve a request.
    pub fn refused(&mut self, why: Reason) {
        self.refusals[why as usize] += 1;
    }

    /// A connection was closed from this side.
    pub fn cut(&mut self, why: Cut) {
        self.cuts[why as usize] += 1;
    }

    /// A worker is gone.
    pub fn worker_died(&mut self, death: Death) {
        self.worker_deaths[match death {
            Death::Exited(_) => 0,
            Death::Killed(_) => 1,
            Death::NotStarted => 2,
            Death::Thread => 3,
        }] += 1;
    }

    /// A worker is ended from this side.
    pub fn worker_killed(&mut self, why: Kill) {
        self.worker_kills[why as usize] += 1;
    }

    /// A worker is told to give up what it does.
    pub fn worker_cancelled(&mut self, why: Kill) {
        self.worker_cancels[why as usize] += 1;
    }

    fn errors_named(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let names = ErrorCode::ALL.iter().map(|code| code.name()).chain(["UNKNOWN"]);
        // NONE is never sent.
        names.zip(self.errors).skip(1)
    }
}

/// What happens around the router. The event loop counts it.
#[derive(Clone, Debug, Default)]
pub struct LoopCounters {
    /// Connections of users who may not connect.
    pub refused_peer: u64,
    /// Connections that could not be watched.
    pub refused_error: u64,
    /// Times that a connection could not be accepted.
    pub accept_errors: u64,
    /// Turns of the loop.
    pub turns: u64,
    /// Events that the operating system had to tell.
    pub events: u64,
    /// Bytes of images that went to clients, by how.
    pub relayed: crate::relay::Moved,
    /// Administrative requests, by their place in [`crate::admin::PAGES`]; the last is for others.
    pub admin_requests: [u64; crate::admin::PAGES.len() + 1],
    /// Settings that were read again and taken.
    pub reloads: u64,
    /// Settings that could not be taken.
    pub reload_failures: u64,
}

/// How things are at this moment.
#[derive(Clone, Debug, Default)]
pub struct Gauges {
    /// This daemon's engine.
    pub engine: &'static str,
    /// Since the daemon began.
    pub uptime: Duration,
    /// When it began, in seconds since 1970.
    pub started: f64,
    /// Whether a request that came now would get a worker in time.
    pub ready: bool,
    /// Whether the daemon is about to end.
    pub draining: bool,
    /// Clients.
    pub clients: usize,
    /// Most clients.
    pub client_limit: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Most requests that may wait.
    pub queue_limit: usize,
    /// Requests that workers have.
    pub running: usize,
    /// Workers.
    pub workers: usize,
    /// Workers that have a request or could take one.
    pub workers_up: usize,
    /// How long the oldest request has been waiting.
    pub oldest_wait: Duration,
    /// This process, as /proc has it.
    pub process: Process,
    /// The workers' processes.
    pub worker_memory: u64,
    /// How far each worker is.
    pub progress: Vec<Progress>,
}

/// What /proc says of a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process {
    /// Bytes in memory.
    pub resident: u64,
    /// Bytes of addresses.
    pub virtual_size: u64,
    /// Seconds of processor time.
    pub cpu: f64,
    /// Threads.
    pub threads: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Most open descriptors.
    pub descriptor_limit: u64,
}

impl Process {
    /// Looks at a process: `self`, or a number. What can't be read is 0.
    #[must_use]
    pub fn read(pid: &str) -> Self {
        let folder = format!("/proc/{pid}");
        let stat = std::fs::read_to_string(format!("{folder}/stat")).unwrap_or_default();
        // The name, in parentheses, may hold anything. The third field comes after it.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let field = |nth: usize| fields.get(nth - 3).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let ticks = rustix::param::clock_ticks_per_second();
        Self {
            resident: field(24) * rustix::param::page_size() as u64,
            virtual_size: field(23),
            cpu: (field(14) + field(15)) as f64 / ticks as f64,
            threads: field(20),
            descriptors: std::fs::read_dir(format!("{folder}/fd")).map_or(0, Iterator::count) as u64,
            descriptor_limit: rustix::process::getrlimit(rustix::process::Resource::Nofile)
                .current
                .unwrap_or(u64::MAX),
        }
    }
}

/// One way of writing metrics.
trait Sink {
    /// What follows belongs to this metric.
    fn family(&mut self, name: &'static str, kind: &'static str, help: &'static str);
    /// A value of it, for a label where it has one.
    fn value(&mut self, label: Option<(&'static str, &str)>, value: f64);
    /// Its times.
    fn times(&mut self, times: &Histogram);
    /// The last one was written.
    fn end(self) -> String;
}

/// The text format of Prometheus, version 0.0.4.
#[must_use]
pub fn prometheus(counters: &Counters, turns: &LoopCounters, gauges: &Gauges) -> String {
    let mut sink = Prometheus { out: String::with_capacity(16 * 1024), name: "" };
    show(&mut sink, counters, turns, gauges);
    sink.end()
}

/// An object with the same names. One with labels is an object of its own; times are `count`, `sum`
/// and `buckets`, which add up as Prometheus has it.
#[must_use]
pub fn json(counters: &Counters, turns: &LoopCounters, gauges: &Gauges) -> String {
    let mut sink = Json { out: String::with_capacity(8 * 1024), in_family: false, labelled: false };
    show(&mut sink, counters, turns, gauges);
    sink.end()
}

fn show(sink: &mut impl Sink, counters: &Counters, turns: &LoopCounters, gauges: &Gauges) {
    let c = counters;
    let g = gauges;
    let version = env!("CARGO_PKG_VERSION");

    sink.family("weave_build_info", "gauge", "1, labelled with the version of this weaved.");
    sink.value(Some(("version", version)), 1.0);
    sink.family("weave_engine_info", "gauge", "1, labelled with what makes the images.");
    sink.value(Some(("engine", g.engine)), 1.0);
    one(sink, "weave_uptime_seconds", "gauge", "Time since this weaved began.", g.uptime.as_secs_f64());
    one(
        sink,
        "weave_ready",
        "gauge",
        "1 if a worker is up and requests are taken.",
        f64::from(u8::from(g.ready)),
    );
    one(
        sink,
        "weave_draining",
        "gauge",
        "1 if this weaved is about to end.",
        f64::from(u8::from(g.draining)),
    );

    count(sink, "weave_connections_accepted_total", "Connections that became clients.", c.connections);
    by(
        sink,
        "weave_connections_refused_total",
        "Connections that did not.",
        "reason",
        [("full", c.refused_full), ("peer", turns.refused_peer), ("error", turns.refused_error)],
    );
    by(
        sink,
        "weave_connections_cut_total",
        "Connections closed from this side while the client was there.",
        "reason",
        Cut::NAMES.iter().copied().zip(c.cuts),
    );
    count(
        sink,
        "weave_accept_errors_total",
        "Times that no connection could be accepted.",
        turns.accept_errors,
    );
    gauge(sink, "weave_connections", "Clients that are connected.", g.clients);
    gauge(sink, "weave_connections_limit", "Most clients at once.", g.client_limit);
    gauge(sink, "weave_connections_max", "Most clients at once so far.", c.most_clients);
    count(sink, "weave_received_bytes_total", "Bytes from clients.", c.bytes_in);
    count(sink, "weave_sent_bytes_total", "Bytes to clients.", c.bytes_out);
    by(
        sink,
        "weave_relayed_bytes_total",
        "Bytes of images to clients: moved by the kernel alone, or copied by this weaved.",
        "how",
        [("spliced", turns.relayed.spliced), ("copied", turns.relayed.copied)],
    );
    count(sink, "weave_dropped_bytes_total", "Bytes of images whose client had gone.", c.bytes_dropped);

    count(sink, "weave_frames_received_total", "Frames from clients.", c.frames);
    count(sink, "weave_requests_queued_total", "Requests that got a place in the queue.", c.requests_queued);
    count(sink, "weave_requests_dispatched_total", "Requests given to a worker.", c.dispatched);
    count(sink, "weave_requests_retried_total", "Requests whose worker died before it had begun.", c.retried);
    by(
        sink,
        "weave_requests_total",
        "Requests that have ended.",
        "outcome",
        [
            ("image", c.images),
            ("refused", c.client_errors),
            ("busy", c.busy),
            ("failed", c.server_errors),
            ("abandoned", c.abandoned),
        ],
    );
    by(
        sink,
        "weave_refusals_total",
        "Requests that this weaved itself did not serve.",
        "reason",
        Reason::NAMES.iter().copied().zip(c.refusals),
    );
    count(sink, "weave_killers_total", "Requests refused because they have ended a worker twice.", c.killers);
    by(sink, "weave_errors_total", "Errors sent to clients.", "code", c.errors_named());
    count(sink, "weave_image_pixels_total", "Pixels of images that were made.", c.pixels);
    gauge(sink, "weave_queue_length", "Requests that wait.", g.waiting);
    gauge(sink, "weave_queue_limit", "Most requests that may wait.", g.queue_limit);
    gauge(sink, "weave_queue_length_max", "Most requests that have waited at once so far.", c.longest_queue);
    one(
        sink,
        "weave_queue_oldest_seconds",
        "gauge",
        "How long the oldest request has been waiting.",
        g.oldest_wait.as_secs_f64(),
    );
    gauge(sink, "weave_requests_running", "Requests that workers have.", g.running);
    times(sink, "weave_queue_wait_seconds", "Time in the queue, up to a worker.", &c.queue_wait);
    times(sink, "weave_generation_seconds", "Time of a worker up to an image.", &c.generation);
    times(sink, "weave_request_seconds", "Time from the queue to the last byte of an image.", &c.request);

    gauge(sink, "weave_workers", "Workers that there should be.", g.workers);
    gauge(sink, "weave_workers_up", "Workers that have a request or could take one.", g.workers_up);
    count(sink, "weave_worker_starts_total", "Workers that came up.", c.worker_starts);
    count(sink, "weave_warm_ups_total", "Workers that have shown that they can make an image.", c.warm_ups);
    by(
        sink,
        "weave_worker_deaths_total",
        "Workers that are gone.",
        "cause",
        ["exit", "signal", "not_started", "thread"].into_iter().zip(c.worker_deaths),
    );
    by(
        sink,
        "weave_worker_kills_total",
        "Workers that were ended from this side.",
        "reason",
        Kill::NAMES.iter().copied().zip(c.worker_kills),
    );
    by(
        sink,
        "weave_worker_cancellations_total",
        "Requests that a worker was told to give up.",
        "reason",
        [Kill::Abandoned, Kill::TooSlow].map(|why| (why.name(), c.worker_cancels[why as usize])),
    );
    times(sink, "weave_worker_cancellation_seconds", "Time from that word to a free worker.", &c.cancel);
    of_workers(
        sink,
        "weave_worker_phase",
        "0: idle, 1: loads weights, 2: encodes the prompt, 3: samples, 4: decodes.",
        g.progress.iter().map(|progress| progress.phase as usize),
    );
    of_workers(
        sink,
        "weave_worker_step",
        "Steps that are done of the phase that a worker is in.",
        g.progress.iter().map(|progress| progress.step as usize),
    );
    of_workers(
        sink,
        "weave_worker_steps",
        "Steps of that phase; 0 where they are not counted.",
        g.progress.iter().map(|progress| progress.steps as usize),
    );
    bytes(sink, "weave_worker_resident_memory_bytes", "Memory of the workers' processes.", g.worker_memory);

    count(sink, "weave_loop_turns_total", "Turns of the event loop.", turns.turns);
    count(sink, "weave_loop_events_total", "Events that the operating system told it.", turns.events);
    by(
        sink,
        "weave_admin_requests_total",
        "Requests to the administrative socket.",
        "page",
        crate::admin::PAGES.into_iter().chain(["other"]).zip(turns.admin_requests),
    );
    by(
        sink,
        "weave_reloads_total",
        "Times that the settings were read again.",
        "outcome",
        [("done", turns.reloads), ("failed", turns.reload_failures)],
    );

    count(sink, "weave_log_lines_dropped_total", "Log lines that nobody read in time.", logger::dropped());

    let p = &g.process;
    one(sink, "process_start_time_seconds", "gauge", "When the process began, since 1970.", g.started);
    one(sink, "process_cpu_seconds_total", "counter", "Processor time, without the workers'.", p.cpu);
    bytes(sink, "process_resident_memory_bytes", "Memory, without the workers'.", p.resident);
    bytes(sink, "process_virtual_memory_bytes", "Addresses in use.", p.virtual_size);
    one(sink, "process_open_fds", "gauge", "Open descriptors.", p.descriptors as f64);
    one(sink, "process_max_fds", "gauge", "Most open descriptors.", p.descriptor_limit as f64);
    one(sink, "process_threads", "gauge", "Threads.", p.threads as f64);
}

fn one(sink: &mut impl Sink, name: &'static str, kind: &'static str, help: &'static str, value: f64) {
    sink.family(name, kind, help);
    sink.value(None, value);
}

fn count(sink: &mut impl Sink, name: &'static str, help: &'static str, value: u64) {
    one(sink, name, "counter", help, value as f64);
}

fn gauge(sink: &mut impl Sink, name: &'static str, help: &'static str, value: usize) {
    one(sink, name, "gauge", help, value as f64);
}

fn bytes(sink: &mut impl Sink, name: &'static str, help: &'static str, value: u64) {
    one(sink, name, "gauge", help, value as f64);
}

/// A counter with a label.
fn by(
    sink: &mut impl Sink,
    name: &'static str,
    help: &'static str,
    label: &'static str,
    values: impl IntoIterator<Item = (&'static str, u64)>,
) {
    sink.family(name, "counter", help);
    for (of, value) in values {
        sink.value(Some((label, of)), value as f64);
    }
}

/// A gauge for each worker.
fn of_workers(
    sink: &mut impl Sink,
    name: &'static str,
    help: &'static str,
    values: impl Iterator<Item = usize>,
) {
    sink.family(name, "gauge", help);
    for (worker, value) in values.enumerate() {
        sink.value(Some(("worker", &worker.to_string())), value as f64);
    }
}

fn times(sink: &mut impl Sink, name: &'static str, help: &'static str, times: &Histogram) {
    sink.family(name, "histogram", help);
    sink.times(times);
}

struct Prometheus {
    out: String,
    name: &'static str,
}

// Writing to a `String` doesn't fail.
impl Sink for Prometheus {
    fn family(&mut self, name: &'static str, kind: &'static str, help: &'static str) {
        self.name = name;
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn value(&mut self, label: Option<(&'static str, &str)>, value: f64) {
        let name = self.name;
        let _ = match label {
            // No label's value here needs escapes: they are all this file's, or names in a setting.
            Some((label, of)) => writeln!(self.out, "{name}{{{label}=\"{of}\"}} {value}"),
            None => writeln!(self.out, "{name} {value}"),
        };
    }

    fn times(&mut self, times: &Histogram) {
        let name = self.name;
        let mut sum = 0;
        for (bound, count) in BUCKETS.iter().zip(times.buckets) {
            sum += count;
            let _ = writeln!(self.out, "{name}_bucket{{le=\"{bound}\"}} {sum}");
        }
        let _ = writeln!(self.out, "{name}_bucket{{le=\"+Inf\"}} {}", times.count());
        let _ = writeln!(self.out, "{name}_sum {}\n{name}_count {}", times.sum.as_secs_f64(), times.count());
    }

    fn end(self) -> String {
        self.out
    }
}

struct Json {
    out: String,
    in_family: bool,
    /// The family's values stand in an object of their own.
    labelled: bool,
}

impl Json {
    fn close(&mut self) {
        if std::mem::take(&mut self.labelled) {
            self.out.push('}');
        }
    }
}

impl Sink for Json {
    fn family(&mut self, name: &'static str, _: &'static str, _: &'static str) {
        self.close();
        let comma = if std::mem::replace(&mut self.in_family, true) { ',' } else { '{' };
        let _ = write!(self.out, "{comma}\n\"{name}\": ");
    }

    fn value(&mut self, label: Option<(&'static str, &str)>, value: f64) {
        if let Some((_, of)) = label {
            let before = if std::mem::replace(&mut self.labelled, true) { ", " } else { "{" };
            let _ = write!(self.out, "{before}\"{of}\": ");
        }
        let _ = write!(self.out, "{value}");
    }

    fn times(&mut self, times: &Histogram) {
        let (count, sum) = (times.count(), times.sum.as_secs_f64());
        let _ = write!(self.out, "{{\"count\": {count}, \"sum\": {sum}, \"buckets\": {{");
        let mut up_to = 0;
        for (bound, count) in BUCKETS.iter().zip(times.buckets) {
            up_to += count;
            let _ = write!(self.out, "\"{bound}\": {up_to}, ");
        }
        let _ = write!(self.out, "\"+Inf\": {count}}}}}");
    }

    fn end(mut self) -> String {
        self.close();
        self.out.push_str("\n}\n");
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fall_into_the_bucket_whose_bound_they_do_not_exceed() {
        let mut times = Histogram::default();
        for millis in [0, 5, 6, 25, 3_600_000, 3_600_001] {
            times.observe(Duration::from_millis(millis));
        }
        assert_eq!((times.count(), times.buckets[0], times.buckets[1]), (6, 2, 2));
        assert_eq!((times.buckets[BUCKETS.len() - 1], times.buckets[BUCKETS.len()]), (1, 1));
        assert!(BUCKETS.is_sorted());
    }

    #[test]
    fn every_error_is_counted_once_whatever_it_is_called() {
        let mut counters = Counters::default();
        for code in ErrorCode::ALL.iter().skip(1).copied().chain([ErrorCode::Unknown(777)]) {
            counters.ended(Outcome::Error(code));
        }
        let all = u64::try_from(ErrorCode::ALL.len()).unwrap();
        assert!(counters.errors_named().all(|(_, count)| count == 1));
        assert_eq!((counters.busy, counters.requests()), (1, all));
    }
}
