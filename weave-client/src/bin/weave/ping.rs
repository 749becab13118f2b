//! `weave ping`.

use serde_json::json;

use crate::args::Ping;
use crate::exit::{self, Failure, tell};

pub(crate) fn run(args: &Ping) -> Result<(), Failure> {
    let mut client = exit::client(&args.daemon)?;
    client.set_timeout(Some(args.timeout));
    let took = client.ping()?.as_secs_f64();
    let address = client.address();
    match args.json {
        true => tell(format_args!("{}", json!({ "address": address.to_string(), "seconds": took }))),
        false => tell(format_args!("{address}: answered in {:.1} ms", took * 1e3)),
    }
}
