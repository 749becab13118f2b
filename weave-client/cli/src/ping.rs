//! `weave ping`.

use std::time::Duration;

use serde_json::json;
use weave_cli_base::arguments::seconds;
use weave_cli_base::console::{Layout, tell, tell_json};
use weave_cli_base::daemon::Daemon;
use weave_cli_base::exit::{Failure, help};
use weave_client::{Address, Error, ErrorCode, ErrorKind};

const EXAMPLES: &str = "\
Examples:
  weave ping
  weave ping --socket /run/weave/weave.sock --timeout 1 && echo up
";

/// Check that the daemon answers, without using its engine.
#[derive(Debug, clap::Args)]
#[command(after_help = help(EXAMPLES))]
pub(crate) struct Ping {
    #[command(flatten)]
    daemon: Daemon,

    /// Fail after this time
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "5")]
    timeout: Duration,

    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Ping) -> Result<(), Failure> {
    let mut client = args.daemon.client()?;
    client.set_timeout(Some(args.timeout));
    let took = client.ping().map_err(|error| failure(error, client.address()))?.as_secs_f64();
    let address = client.address();
    match args.json {
        true => tell_json(&json!({ "address": address.to_string(), "seconds": took }), Layout::Line),
        false => tell(format_args!("{address}: answered in {:.1} ms", took * 1e3)),
    }
}

/// A daemon refuses the probe with an error that tells that it has understood it; others have not.
fn failure(error: Error, address: &Address) -> Failure {
    match &error {
        Error::Refused(reply) if error.kind() == ErrorKind::Refused || error.kind() == ErrorKind::Failed => {
            let words = if reply.message.is_empty() { String::new() } else { format!(": {}", reply.message) };
            let what = format_args!(
                "{address} speaks Weave, but answers a ping with {}{words}, where a daemon says {}",
                reply.code,
                ErrorCode::InvalidModelId
            );
            Failure::new(error.kind().into(), what)
                .next("see whether that is weaved, and of this version: weave --version, weaved --version")
        }
        _ => error.into(),
    }
}
