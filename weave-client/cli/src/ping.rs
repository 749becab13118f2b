//! `weave ping`.

use std::time::Duration;

use serde_json::json;
use weave_cli_base::arguments::seconds;
use weave_cli_base::console::{Layout, tell, tell_json};
use weave_cli_base::daemon::Daemon;
use weave_cli_base::exit::{Failure, help};

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
    let took = client.ping()?.as_secs_f64();
    let address = client.address();
    match args.json {
        true => tell_json(&json!({ "address": address.to_string(), "seconds": took }), Layout::Line),
        false => tell(format_args!("{address}: answered in {:.1} ms", took * 1e3)),
    }
}
