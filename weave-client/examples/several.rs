//! Several images at once on one connection: `cargo run --example several -- "a cat in space" 8`
//!
//! Two requests more than the daemon has workers keep it busy; here there are four under way. What
//! the daemon has no room for now is asked again later.

use std::error::Error;

use weave_client::{Address, Client, ErrorCode, Params, default_socket_path};

const UNDER_WAY: usize = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let prompt = args.next().ok_or("say what to draw")?;
    let count = args.next().map_or(Ok(8), |count| count.parse())?;
    draw(default_socket_path()?.into(), &prompt, count, |seed, pixels| {
        println!("seed {seed}: {} bytes", pixels.len());
    })
}

pub(crate) fn draw(
    daemon: Address,
    prompt: &str,
    count: u64,
    mut done: impl FnMut(u64, &[u8]),
) -> Result<(), Box<dyn Error>> {
    let mut client = Client::connect(daemon)?;
    let mut seeds: Vec<u64> = (1..=count).rev().collect();
    let mut sent = Vec::new();
    let mut most = UNDER_WAY;
    loop {
        while client.in_flight() < most
            && let Some(seed) = seeds.pop()
        {
            let params = Params { seed, ..Params::default() };
            sent.push((client.send(&params, prompt)?, seed));
        }
        let Some(answer) = client.receive() else { return Ok(()) };
        let at = sent.iter().position(|(id, _)| *id == answer.request_id).ok_or("an unknown request")?;
        let (_, seed) = sent.swap_remove(at);
        match answer.result {
            Ok(image) => {
                most = UNDER_WAY.min(most + 1);
                done(seed, &image.pixels);
            }
            // It can take it when one of those that are under way is done, and not before.
            Err(weave_client::Error::Refused(refusal))
                if refusal.code == ErrorCode::Busy && client.in_flight() > 0 =>
            {
                most = client.in_flight();
                seeds.push(seed);
            }
            Err(error) => return Err(error.into()),
        }
    }
}
