//! One image, as PPM on standard output: `cargo run --example one_image -- "a cat in space" >cat.ppm`

use std::error::Error;
use std::io::{self, Write};
use std::time::Duration;

use weave_client::{Address, Channels, Client, Params, Progress, default_socket_path};

fn main() -> Result<(), Box<dyn Error>> {
    let prompt = std::env::args().nth(1).ok_or("say what to draw")?;
    draw(default_socket_path()?.into(), &prompt, &mut io::stdout())
}

pub(crate) fn draw(daemon: Address, prompt: &str, out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    let mut client = Client::new(daemon);
    client.set_timeout(Some(Duration::from_secs(600)));
    let params = Params { seed: 1234, ..Params::default() };
    let image = client.generate_with(&params, prompt, |progress| {
        if progress == Progress::Sent {
            eprintln!("the daemon is at work");
        }
    })?;
    writeln!(out, "P6 {} {} 255", image.size.width(), image.size.height())?;
    // PPM has no alpha.
    match image.size.channels() {
        Channels::Rgb => out.write_all(&image.pixels)?,
        Channels::Rgba => image.pixels.chunks_exact(4).try_for_each(|pixel| out.write_all(&pixel[..3]))?,
    }
    Ok(out.flush()?)
}
