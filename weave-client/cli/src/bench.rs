//! `weave bench`: load on the daemon, and what it does under it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use weave_cli_base::arguments::seconds;
use weave_cli_base::console::{Layout, tell, tell_json};
use weave_cli_base::daemon::Daemon;
use weave_cli_base::exit::{Exit, Failure, help};
use weave_client::weave_core::limits::RESPONSE_HEAD_LEN;
use weave_client::weave_core::request::Prompts;
use weave_client::{Client, Error, Image, Params, Progress, random_seed};

use crate::beside::Beside;
use crate::interrupt;
use crate::parameters::{Parameters, count, seed};
use crate::waiting::{Far, Situation, Waiting};

const EXAMPLES: &str = "\
Examples:
  weave bench --size 1024x1024
  weave bench --requests 500 --connections 8 --size 64x64 --steps 1 --cfg-scale 1
  weave bench --duration 60 --in-flight 4 --json > bench.json
";

/// Put load on the daemon and measure throughput and latency.
///
/// Each connection keeps a number of requests in flight and sends the next one when an answer is there.
/// Latency is the time from sending a request to its last pixel. Seeds count up. If requests fail, the exit
/// status is that of the first failure.
#[derive(Debug, clap::Args)]
#[command(after_help = help(EXAMPLES))]
pub(crate) struct Bench {
    /// Number of requests, over all connections: 1 to 100000000
    #[arg(short = 'r', long, value_name = "N", default_value_t = 20, conflicts_with = "duration",
        value_parser = count::<100_000_000>, allow_negative_numbers = true)]
    requests: u64,

    /// Send requests for this long instead
    #[arg(short, long, value_name = "SECONDS", value_parser = seconds)]
    duration: Option<Duration>,

    /// Number of connections: 1 to 1000
    #[arg(short, long, value_name = "N", default_value_t = 1,
        value_parser = count::<1000>, allow_negative_numbers = true)]
    connections: u64,

    /// Requests in flight per connection: 1 to 1000
    #[arg(short, long, value_name = "N", default_value_t = 1,
        value_parser = count::<1000>, allow_negative_numbers = true)]
    in_flight: u64,

    /// What to draw
    #[arg(short, long, value_name = "TEXT", default_value = "a cat in space")]
    prompt: String,

    #[command(flatten)]
    parameters: Parameters,

    /// Seed of the first request; 0 and -1 draw one at random
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = seed, allow_negative_numbers = true)]
    seed: u64,

    #[command(flatten)]
    daemon: Daemon,

    #[command(flatten)]
    beside: Beside,

    /// Close a connection whose next answer takes longer than this [default: no limit]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,

    /// Print the results as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Bench) -> Result<(), Failure> {
    let named = args.parameters.or(Params::default());
    named.check().and_then(|()| Prompts::same(&args.prompt).check()).map_err(Error::Invalid)?;
    // One that can't be reached is found out before there are a thousand of them.
    let mut clients = vec![args.daemon.client()?];
    clients[0].set_timeout(args.timeout);
    clients[0].ping()?;
    for _ in 1..args.connections {
        let mut client = args.daemon.client()?;
        client.set_timeout(args.timeout);
        clients.push(client);
    }
    let defaults = args.beside.of(&args.daemon).model().map_or_else(Params::default, |model| model.params());
    let seed = match args.seed {
        0 => random_seed().map_err(|error| {
            Failure::new(Exit::Local, format_args!("the system gives no random numbers: {error}"))
                .next("choose a seed with --seed N")
        })?,
        seed => seed,
    };
    let params = Params { seed, ..args.parameters.or(defaults) };

    let tally = Arc::new(Mutex::new(Tally::new(args)));
    let (shown, form) = (Arc::clone(&tally), if args.json { Form::Json } else { Form::Text });
    let show = move || shown.lock().unwrap_or_else(PoisonError::into_inner).report().show(form);
    let mut waiting = Waiting::start(args.json);
    tally.lock().unwrap_or_else(PoisonError::into_inner).situation = waiting.situation().clone();
    let (interrupted, clear) = (show.clone(), waiting.clear());
    let tidy_up = move || {
        clear();
        drop(interrupted());
        interrupt::ASKED
    };
    interrupt::watch(tidy_up)
        .map_err(|error| Failure::new(Exit::Local, format_args!("can't watch for signals: {error}")))?;
    let Params { width, height, steps, cfg_scale, .. } = params;
    let (connections, in_flight) = (args.connections, args.in_flight);
    waiting.wait_for(format!(
        "{width}×{height}, {steps} steps, cfg {cfg_scale}; {in_flight} under way on each of {connections} connections"
    ));
    waiting.show(Progress::Sent);
    thread::scope(|scope| {
        for client in clients {
            let load = || load(client, args, params, &tally);
            // Without the thread its connection is missing, which the figures would not tell.
            thread::Builder::new().spawn_scoped(scope, load).map_err(|error| {
                Failure::new(Exit::Local, format_args!("can't start so many threads: {error}"))
                    .next("ask for fewer with --connections N")
            })?;
        }
        Ok::<(), Failure>(())
    })?;
    waiting.pause();
    show()?;
    match tally.lock().unwrap_or_else(PoisonError::into_inner).first_failure.take() {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

/// One connection's part.
fn load(mut client: Client, args: &Bench, params: Params, tally: &Mutex<Tally>) {
    let tally = || tally.lock().unwrap_or_else(PoisonError::into_inner);
    let mut sent = Vec::new();
    let mut reachable = true;
    let failed = |error: Error, reachable: &mut bool| {
        *reachable &= !matches!(error, Error::Unreachable { .. });
        tally().failed(error);
    };
    loop {
        while reachable
            && (sent.len() as u64) < args.in_flight
            && let Some(number) = tally().next()
        {
            let params = Params { seed: params.seed.wrapping_add(number).max(1), ..params };
            let since = Instant::now();
            match client.send(&params, &args.prompt) {
                Ok(request_id) => sent.push((request_id, since)),
                Err(error) => failed(error, &mut reachable),
            }
        }
        let Some(answer) = client.receive() else { return };
        let now = Instant::now();
        let Some(at) = sent.iter().position(|(id, _)| *id == answer.request_id) else { continue };
        let (_, since) = sent.swap_remove(at);
        match answer.result {
            Ok(image) => tally().made(&image, now - since),
            Err(error) => failed(error, &mut reachable),
        }
    }
}

/// What has come of the requests so far.
struct Tally {
    started: Instant,
    ended: Instant,
    until: Option<Instant>,
    /// Requests that were not sent yet.
    left: u64,
    sent: u64,
    latencies: Vec<Duration>,
    generations: Vec<Duration>,
    bytes: u64,
    errors: BTreeMap<String, u64>,
    first_failure: Option<Failure>,
    connections: u64,
    in_flight: u64,
    /// Requests that were answered, in whichever way, and of how many, if that is known.
    answered: u64,
    of: Option<u64>,
    /// Where that is shown.
    situation: Situation,
}

impl Tally {
    fn new(args: &Bench) -> Self {
        let now = Instant::now();
        let left = if args.duration.is_some() { u64::MAX } else { args.requests };
        Self {
            started: now,
            ended: now,
            until: args.duration.and_then(|duration| now.checked_add(duration)),
            left,
            sent: 0,
            latencies: Vec::new(),
            generations: Vec::new(),
            bytes: 0,
            errors: BTreeMap::new(),
            first_failure: None,
            connections: args.connections,
            in_flight: args.in_flight,
            answered: 0,
            of: args.duration.is_none().then_some(args.requests),
            situation: Situation::default(),
        }
    }

    fn answered(&mut self) {
        self.ended = Instant::now();
        self.answered += 1;
        let words = match self.of {
            Some(of) => format!("{} of {of} answered", self.answered),
            None => format!("{} answered", self.answered),
        };
        self.situation.set(Far { words, share: self.of.map(|of| (self.answered, of)) });
    }

    /// The number of the next request, counted from 0, if there is to be one.
    fn next(&mut self) -> Option<u64> {
        if self.until.is_some_and(|until| Instant::now() >= until) {
            return None;
        }
        self.left = self.left.checked_sub(1)?;
        self.sent += 1;
        Some(self.sent - 1)
    }

    fn made(&mut self, image: &Image, latency: Duration) {
        self.answered();
        self.latencies.push(latency);
        self.generations.push(Duration::from_millis(image.generation_time_ms.into()));
        self.bytes += (image.pixels.len() + RESPONSE_HEAD_LEN) as u64;
    }

    fn failed(&mut self, error: Error) {
        self.answered();
        let name = match &error {
            Error::Refused(refusal) => refusal.code.to_string(),
            Error::Unreachable { .. } => "unreachable".to_owned(),
            Error::HungUp { .. } => "hung up".to_owned(),
            Error::NoProof { .. } => "no proof of the token".to_owned(),
            Error::Timeout(_) => "time ran out".to_owned(),
            Error::Nonsense(_) => "not Weave".to_owned(),
            _ => "connection failed".to_owned(),
        };
        *self.errors.entry(name).or_default() += 1;
        self.first_failure.get_or_insert_with(|| error.into());
    }

    fn report(&self) -> Report {
        let seconds = (self.ended - self.started).as_secs_f64();
        let per_second = |number: f64| if seconds > 0.0 { number / seconds } else { 0.0 };
        #[allow(clippy::cast_precision_loss, reason = "figures for people")]
        let (images, bytes) = (self.latencies.len() as f64, self.bytes as f64);
        Report {
            connections: self.connections,
            in_flight: self.in_flight,
            requests: self.sent,
            images: self.latencies.len(),
            errors: self.errors.clone(),
            seconds,
            images_per_second: per_second(images),
            bytes_per_second: per_second(bytes),
            latency_seconds: Distribution::of(&self.latencies),
            generation_seconds: Distribution::of(&self.generations),
        }
    }
}

/// Of times, in seconds. A percentile is the smallest time that so many in a hundred don't exceed.
#[derive(Debug, PartialEq, Serialize)]
struct Distribution {
    min: f64,
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

impl Distribution {
    /// `None` of none.
    fn of(times: &[Duration]) -> Option<Self> {
        let mut sorted: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
        sorted.sort_by(f64::total_cmp);
        let percentile = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100);
            sorted.get(rank.saturating_sub(1)).copied()
        };
        #[allow(clippy::cast_precision_loss, reason = "nobody waits for 2^52 images")]
        let mean = sorted.iter().sum::<f64>() / sorted.len() as f64;
        Some(Self {
            min: percentile(0)?,
            mean,
            p50: percentile(50)?,
            p90: percentile(90)?,
            p99: percentile(99)?,
            max: percentile(100)?,
        })
    }
}

/// How results are printed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// For people.
    Text,
    /// For programs.
    Json,
}

#[derive(Serialize)]
struct Report {
    connections: u64,
    in_flight: u64,
    requests: u64,
    images: usize,
    /// By the protocol's name of the code.
    errors: BTreeMap<String, u64>,
    seconds: f64,
    images_per_second: f64,
    bytes_per_second: f64,
    latency_seconds: Option<Distribution>,
    generation_seconds: Option<Distribution>,
}

impl Report {
    fn show(&self, form: Form) -> Result<(), Failure> {
        if form == Form::Json {
            return tell_json(self, Layout::Line);
        }
        let mut lines = vec![
            format!("requests    {} in {:.1} s", self.requests, self.seconds),
            format!(
                "images      {}, {:.2} per second, {:.2} MB/s",
                self.images,
                self.images_per_second,
                self.bytes_per_second / 1e6
            ),
        ];
        let errors: Vec<_> = self.errors.iter().map(|(name, count)| format!("{name} {count}")).collect();
        lines.push(format!(
            "errors      {}",
            if errors.is_empty() { "none".into() } else { errors.join(", ") }
        ));
        lines.push(format!(
            "{:<12}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}",
            "ms", "min", "mean", "p50", "p90", "p99", "max"
        ));
        for (name, times) in [("latency", &self.latency_seconds), ("generation", &self.generation_seconds)] {
            if let Some(Distribution { min, mean, p50, p90, p99, max }) = times {
                let columns = [min, mean, p50, p90, p99, max].map(|time| format!("{:>9.1}", time * 1e3));
                lines.push(format!("{name:<12}{}", columns.concat()));
            }
        }
        tell(format_args!("{}", lines.join("\n")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_time_that_was_measured() {
        let ms = |from: u64, to: u64| (from..=to).rev().map(Duration::from_millis).collect::<Vec<_>>();
        let of = |times: &[Duration]| {
            let Distribution { min, mean, p50, p90, p99, max } = Distribution::of(times).unwrap();
            [min, mean, p50, p90, p99, max].map(|seconds| (seconds * 1e4).round() / 10.0)
        };
        assert_eq!(of(&ms(1, 200)), [1.0, 100.5, 100.0, 180.0, 198.0, 200.0]);
        assert_eq!(of(&ms(1, 4)), [1.0, 2.5, 2.0, 4.0, 4.0, 4.0]);
        assert_eq!(of(&ms(7, 7)), [7.0; 6]);
        assert_eq!(Distribution::of(&[]), None);
    }
}
