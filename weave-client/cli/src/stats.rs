//! `weave stats`.

use weave_cli_base::admin::{Admin, Stats as Statistics};
use weave_cli_base::console::{Layout, tell, tell_json};
use weave_cli_base::exit::{Failure, help};

const EXAMPLES: &str = "\
Examples:
  weave stats
  weave stats --json | jq .weave_queue_length
";

/// Show the daemon's statistics, under the names of its metrics.
#[derive(Debug, clap::Args)]
#[command(after_help = help(EXAMPLES))]
pub(crate) struct Stats {
    #[command(flatten)]
    admin: Admin,

    /// Print JSON, with the histograms of times
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Stats) -> Result<(), Failure> {
    let stats = Statistics::ask(&args.admin.find()?)?;
    if args.json {
        return tell_json(stats.json(), Layout::Indented);
    }
    let lines = stats.lines();
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<_> = lines.iter().map(|(name, value)| format!("{name:<width$}  {value}")).collect();
    tell(format_args!("{}", lines.join("\n")))
}
