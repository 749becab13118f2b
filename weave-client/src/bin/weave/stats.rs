//! `weave stats`.

use crate::admin::{self, Stats};
use crate::args;
use crate::exit::{Failure, tell};

pub(crate) fn run(args: &args::Stats) -> Result<(), Failure> {
    let stats = Stats::ask(&admin::socket(&args.admin)?)?;
    if args.json {
        return tell(format_args!("{stats}"));
    }
    let lines = stats.lines();
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<_> = lines.iter().map(|(name, value)| format!("{name:<width$}  {value}")).collect();
    tell(format_args!("{}", lines.join("\n")))
}
