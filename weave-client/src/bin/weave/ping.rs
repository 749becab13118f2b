//! `weave ping`.

use crate::args::Ping;
use crate::exit::{self, Failure, tell};

pub(crate) fn run(args: &Ping) -> Result<(), Failure> {
    let mut client = exit::client(&args.daemon)?;
    client.set_timeout(Some(args.timeout));
    let took = client.ping()?;
    tell(format_args!("{}: answered in {:.1} ms", client.address(), took.as_secs_f64() * 1000.0))
}
