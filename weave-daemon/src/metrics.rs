//! Metrics: what was counted, as Prometheus text or as JSON.
//!
//! `show` lists every metric once, for both ways of writing.

use std::fmt::Write as _;

use crate::causes::{Cut, Death, Kill, Reason};
use crate::counters::{Counters, Gauges, Histogram, LoopCounters};
use crate::logger;

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
pub fn prometheus(counters: &Counters, event_loop: &LoopCounters, gauges: &Gauges) -> String {
    let mut sink = Prometheus { out: String::with_capacity(16 * 1024), name: "" };
    show(&mut sink, counters, event_loop, gauges);
    sink.end()
}

/// An object with the same names. One with labels is an object of its own; times are `count`, `sum`
/// and `buckets`, which add up as Prometheus has it.
#[must_use]
pub fn json(counters: &Counters, event_loop: &LoopCounters, gauges: &Gauges) -> String {
    let mut sink = Json { out: String::with_capacity(8 * 1024), in_family: false, labelled: false };
    show(&mut sink, counters, event_loop, gauges);
    sink.end()
}

fn show(sink: &mut impl Sink, counters: &Counters, event_loop: &LoopCounters, gauges: &Gauges) {
    show_daemon(sink, gauges);
    show_connections(sink, counters, event_loop, gauges);
    show_requests(sink, counters);
    show_queue(sink, counters, gauges);
    show_workers(sink, counters, gauges);
    show_event_loop(sink, event_loop);
    show_process(sink, gauges);
}

fn show_daemon(sink: &mut impl Sink, gauges: &Gauges) {
    let version = env!("CARGO_PKG_VERSION");
    sink.family("weave_build_info", "gauge", "1, labelled with weaved's version.");
    sink.value(Some(("version", version)), 1.0);
    sink.family("weave_engine_info", "gauge", "1, labelled with the engine that generates images.");
    sink.value(Some(("engine", gauges.engine)), 1.0);
    let uptime = gauges.uptime.as_secs_f64();
    one(sink, "weave_uptime_seconds", "gauge", "Time since weaved started.", uptime);
    gauge(sink, "weave_ready", "1 if requests are accepted and a worker is up.", usize::from(gauges.ready));
    gauge(sink, "weave_draining", "1 if weaved is shutting down.", usize::from(gauges.draining));
}

fn show_connections(sink: &mut impl Sink, counters: &Counters, event_loop: &LoopCounters, gauges: &Gauges) {
    let accepted = counters.connections;
    count(sink, "weave_connections_accepted_total", "Client connections accepted.", accepted);
    by(
        sink,
        "weave_connections_refused_total",
        "Client connections refused.",
        "reason",
        [
            ("full", counters.refused_full),
            ("share", counters.refused_share),
            ("peer", event_loop.refused_peer),
            ("error", event_loop.refused_error),
        ],
    );
    by(
        sink,
        "weave_connections_cut_total",
        "Client connections closed by weaved while the client was connected.",
        "reason",
        Cut::NAMES.iter().copied().zip(counters.cuts),
    );
    let accept_errors = event_loop.accept_errors;
    count(sink, "weave_accept_errors_total", "Failures to accept a connection.", accept_errors);
    gauge(sink, "weave_connections", "Client connections open.", gauges.clients);
    gauge(sink, "weave_connections_limit", "Limit on open client connections.", gauges.client_limit);
    let most = counters.most_clients;
    gauge(sink, "weave_connections_max", "Highest number of open client connections so far.", most);
    count(sink, "weave_received_bytes_total", "Bytes received from clients.", counters.bytes_in);
    count(sink, "weave_sent_bytes_total", "Bytes sent to clients.", counters.bytes_out);
    by(
        sink,
        "weave_relayed_bytes_total",
        "Image bytes sent to clients: spliced by the kernel, or copied by weaved.",
        "how",
        [("spliced", event_loop.relayed.spliced), ("copied", event_loop.relayed.copied)],
    );
    let dropped = counters.bytes_dropped;
    count(sink, "weave_dropped_bytes_total", "Image bytes dropped because the client had gone.", dropped);
}

fn show_requests(sink: &mut impl Sink, counters: &Counters) {
    count(sink, "weave_frames_received_total", "Frames received from clients.", counters.frames);
    count(sink, "weave_requests_queued_total", "Requests queued.", counters.requests_queued);
    count(sink, "weave_requests_dispatched_total", "Requests given to a worker.", counters.dispatched);
    count(
        sink,
        "weave_requests_retried_total",
        "Requests queued again because the worker died before starting them.",
        counters.retried,
    );
    by(
        sink,
        "weave_requests_total",
        "Requests completed, by outcome.",
        "outcome",
        [
            ("image", counters.images),
            ("invalid", counters.client_errors),
            ("busy", counters.busy),
            ("failed", counters.server_errors),
            ("abandoned", counters.abandoned),
        ],
    );
    by(
        sink,
        "weave_refusals_total",
        "Requests refused by weaved itself, by reason.",
        "reason",
        Reason::NAMES.iter().copied().zip(counters.refusals),
    );
    count(
        sink,
        "weave_quarantined_total",
        "Requests put in quarantine because two workers died of them.",
        counters.quarantined,
    );
    by(sink, "weave_errors_total", "Errors sent to clients, by code.", "code", counters.errors_named());
    count(sink, "weave_image_pixels_total", "Pixels generated.", counters.pixels);
}

fn show_queue(sink: &mut impl Sink, counters: &Counters, gauges: &Gauges) {
    gauge(sink, "weave_queue_length", "Requests waiting in the queue.", gauges.waiting);
    gauge(sink, "weave_queue_limit", "Limit on requests waiting in the queue.", gauges.queue_limit);
    let longest = counters.longest_queue;
    gauge(sink, "weave_queue_length_max", "Highest number of waiting requests so far.", longest);
    one(
        sink,
        "weave_queue_oldest_seconds",
        "gauge",
        "Time the oldest waiting request has been in the queue.",
        gauges.oldest_wait.as_secs_f64(),
    );
    gauge(sink, "weave_requests_running", "Requests in progress on workers.", gauges.running);
    gauge(
        sink,
        "weave_requests_running_abandoned",
        "Those of them that nobody waits for any more.",
        gauges.running_abandoned,
    );
    times(sink, "weave_queue_wait_seconds", "Time from queueing to dispatch.", &counters.queue_wait);
    let generation = &counters.generation;
    times(sink, "weave_generation_seconds", "Time from dispatch to the start of the image.", generation);
    let request = &counters.request;
    times(sink, "weave_request_seconds", "Time from queueing to the last byte of the image.", request);
}

fn show_workers(sink: &mut impl Sink, counters: &Counters, gauges: &Gauges) {
    gauge(sink, "weave_workers", "Workers configured.", gauges.workers);
    gauge(sink, "weave_workers_up", "Workers that run a request or can take one.", gauges.workers_up);
    count(sink, "weave_worker_starts_total", "Workers that came up.", counters.worker_starts);
    count(sink, "weave_warm_ups_total", "Warm-up images completed by workers.", counters.warm_ups);
    by(
        sink,
        "weave_worker_deaths_total",
        "Workers that ended, by cause.",
        "cause",
        Death::NAMES.iter().copied().zip(counters.worker_deaths),
    );
    by(
        sink,
        "weave_worker_kills_total",
        "Workers killed by weaved, by reason.",
        "reason",
        Kill::NAMES.iter().copied().zip(counters.worker_kills),
    );
    by(
        sink,
        "weave_worker_cancellations_total",
        "Requests that a worker was told to cancel, by reason.",
        "reason",
        [Kill::Abandoned, Kill::TooSlow].map(|why| (why.name(), counters.worker_cancels[why as usize])),
    );
    times(
        sink,
        "weave_worker_cancellation_seconds",
        "Time from cancelling a request to an idle worker.",
        &counters.cancel,
    );
    of_workers(
        sink,
        "weave_worker_phase",
        "0: idle, 1: loading weights, 2: encoding the prompt, 3: sampling, 4: decoding.",
        gauges.progress.iter().map(|progress| progress.phase as usize),
    );
    of_workers(
        sink,
        "weave_worker_step",
        "Steps completed of the worker's current phase.",
        gauges.progress.iter().map(|progress| progress.step as usize),
    );
    of_workers(
        sink,
        "weave_worker_steps",
        "Steps of the worker's current phase; 0 if unknown.",
        gauges.progress.iter().map(|progress| progress.steps as usize),
    );
    let memory = gauges.worker_memory;
    size(sink, "weave_worker_resident_memory_bytes", "Resident memory of the worker processes.", memory);
}

fn show_event_loop(sink: &mut impl Sink, event_loop: &LoopCounters) {
    count(sink, "weave_loop_turns_total", "Iterations of the event loop.", event_loop.turns);
    let events = event_loop.events;
    count(sink, "weave_loop_events_total", "Events received from the operating system.", events);
    by(
        sink,
        "weave_admin_requests_total",
        "Requests to the admin socket, by page.",
        "page",
        crate::admin::PAGES.into_iter().chain(["other"]).zip(event_loop.admin_requests),
    );
    by(
        sink,
        "weave_reloads_total",
        "Reloads of the settings, by outcome.",
        "outcome",
        [("done", event_loop.reloads), ("failed", event_loop.reload_failures)],
    );
    let dropped = logger::dropped();
    count(sink, "weave_log_lines_dropped_total", "Log lines dropped because nobody read them.", dropped);
}

fn show_process(sink: &mut impl Sink, gauges: &Gauges) {
    let process = &gauges.process;
    let since = "Start time of the process, in seconds since 1970.";
    one(sink, "process_start_time_seconds", "gauge", since, gauges.started);
    one(sink, "process_cpu_seconds_total", "counter", "CPU time, workers excluded.", process.cpu);
    let resident = process.resident;
    size(sink, "process_resident_memory_bytes", "Resident memory, workers excluded.", resident);
    size(sink, "process_virtual_memory_bytes", "Virtual memory.", process.virtual_size);
    size(sink, "process_open_fds", "Open file descriptors.", process.descriptors);
    size(sink, "process_max_fds", "Limit on open file descriptors.", process.descriptor_limit);
    size(sink, "process_threads", "Threads.", process.threads);
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

fn size(sink: &mut impl Sink, name: &'static str, help: &'static str, value: u64) {
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
        let (name, count, sum) = (self.name, times.count(), times.sum().as_secs_f64());
        for (bound, up_to) in times.cumulative() {
            let _ = writeln!(self.out, "{name}_bucket{{le=\"{bound}\"}} {up_to}");
        }
        let _ = writeln!(self.out, "{name}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(self.out, "{name}_sum {sum}\n{name}_count {count}");
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
        let (count, sum) = (times.count(), times.sum().as_secs_f64());
        let _ = write!(self.out, "{{\"count\": {count}, \"sum\": {sum}, \"buckets\": {{");
        for (bound, up_to) in times.cumulative() {
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
