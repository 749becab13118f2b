//! What an image will need beside the model's weights, told by what images before it needed.
//!
//! The engine says how large the buffer is that each of its parts computes in, and parts run one after
//! another: the largest is the peak. How a part's buffer grows is known from its shape. Text encoders
//! don't see the size of the image. The diffusion model has a term that is linear in the number of
//! tokens, and, without flash attention, a matrix of all tokens by all tokens for each head. The decoder
//! is linear in pixels; in the VAE the one attention of its middle overtakes that where convolutions are
//! computed directly. So the first image, of whatever size, is enough for a first estimate, and each one
//! of a new size makes it better. `MEMORY.md` compares estimates with measurements.

use super::tuning::Tuning;

/// Where a buffer lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pool {
    /// The machine's memory.
    #[default]
    Ram,
    /// The GPU's.
    Vram,
}

impl Pool {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ram, Self::Vram];

    /// As people call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ram => "RAM",
            Self::Vram => "GPU memory",
        }
    }
}

/// What the engine has said of its memory in the course of one image.
#[derive(Debug, Default)]
pub struct Said {
    /// Of the diffusion model's attention.
    heads: Option<u64>,
    /// The largest buffer of each part.
    parts: Vec<(String, Pool, u64)>,
    /// Weights that came to the device for as long as they were needed: the most at once.
    staged: [u64; 2],
}

impl Said {
    /// Nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { heads: None, parts: Vec::new(), staged: [0; 2] }
    }

    /// Forgets the image before, which may have failed half way.
    pub fn start_image(&mut self) {
        self.parts.clear();
        self.staged = [0; 2];
    }

    /// Takes a line of the engine's log, most of which are about something else.
    pub fn hear(&mut self, line: &str) {
        if let Some((before, after)) = line.split_once(" compute buffer size: ") {
            let Some((size, place)) = after.split_once(" MB(") else { return };
            let (Some(name), Some(bytes)) = (before.split_whitespace().last(), mebibytes(size)) else {
                return;
            };
            let pool = if place.starts_with("RAM") { Pool::Ram } else { Pool::Vram };
            match self.parts.iter_mut().find(|(other, ..)| other == name) {
                Some((_, its_pool, most)) => (*its_pool, *most) = (pool, bytes.max(*most)),
                None => self.parts.push((name.to_owned(), pool, bytes)),
            }
        } else if let Some((_, after)) = line.split_once("staged compute params (") {
            let Some((size, rest)) = after.split_once(" MB") else { return };
            let to = rest.split_once(") to ").map_or("", |(_, to)| to);
            let pool = if to.starts_with("CPU") { Pool::Ram } else { Pool::Vram };
            let most = &mut self.staged[pool as usize];
            *most = mebibytes(size).unwrap_or(0).max(*most);
        } else if let Some((_, after)) = line.split_once("mmdit: num_layers = ") {
            // Stable Diffusion 3 has as many heads as layers.
            self.heads = after.split(',').next().and_then(|number| number.parse().ok());
        }
    }

    fn part(&self, name: &str) -> Option<(Pool, u64)> {
        self.parts.iter().find(|(other, ..)| other == name).map(|(_, pool, bytes)| (*pool, *bytes))
    }
}

/// `12.50`, times 2²⁰.
fn mebibytes(text: &str) -> Option<u64> {
    let (whole, hundredths) = text.trim().split_once('.')?;
    let hundredths: u64 = hundredths.get(..2)?.parse().ok()?;
    Some(((whole.parse::<u64>().ok()? * 100 + hundredths) << 20) / 100)
}

/// The size of an image, and how it is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// The side of the decoder's tiles in pixels, if it works in tiles.
    pub tile: Option<u32>,
}

impl Shape {
    fn tokens(self) -> u64 {
        u64::from(self.width / 16) * u64::from(self.height / 16)
    }

    /// Those that are decoded at once.
    fn pixels(self) -> u64 {
        let side = |side: u32| u64::from(self.tile.map_or(side, |tile| side.min(tile)));
        side(self.width) * side(self.height)
    }
}

/// Bytes of one part's buffer at the smallest and the largest size that was seen.
#[derive(Clone, Copy, Debug)]
struct Seen {
    least: (u64, u64),
    most: (u64, u64),
}

impl Seen {
    fn add(seen: &mut Option<Self>, size: u64, bytes: u64) {
        let point = (size, bytes);
        let seen = seen.get_or_insert(Self { least: point, most: point });
        if size <= seen.least.0 {
            seen.least = point;
        }
        if size >= seen.most.0 {
            seen.most = point;
        }
    }
}

/// Everything that was learned.
#[derive(Debug, Default)]
pub struct Learned {
    /// `None`: flash attention makes no such matrix.
    heads: Option<u64>,
    /// Tokens of text in the diffusion model's attention.
    text: u64,
    diffusion: Option<Seen>,
    decoder: Option<Seen>,
    /// The VAE's attention makes a matrix of all latent pixels by all latent pixels.
    decoder_attends: bool,
    pools: [Pool; 2],
    /// The most that parts needed which don't see the image's size.
    others: [u64; 2],
    staged: [u64; 2],
}

impl Learned {
    /// Takes in what the engine said of an image that it has made.
    pub fn add(&mut self, said: &Said, shape: Shape, tuning: &Tuning) {
        let everywhere = tuning.flash_attention_everywhere;
        self.heads = said.heads.or(self.heads);
        if tuning.flash_attention || everywhere {
            self.heads = None;
        }
        let decoder = ["vae", "taesd"].into_iter().find_map(|name| Some((name, said.part(name)?)));
        if let Some((name, (pool, bytes))) = decoder {
            self.decoder_attends = name == "vae" && !everywhere;
            self.pools[1] = pool;
            Seen::add(&mut self.decoder, shape.pixels(), bytes);
        }
        if let Some((pool, bytes)) = said.part("mmdit") {
            self.pools[0] = pool;
            Seen::add(&mut self.diffusion, shape.tokens(), bytes);
        }
        for (name, pool, bytes) in &said.parts {
            if !["mmdit", "vae", "taesd"].contains(&&**name) {
                let most = &mut self.others[*pool as usize];
                *most = (*most).max(*bytes);
            }
        }
        // Each encoder's text comes in pieces of 77; T5's stand behind those of CLIP.
        self.text = if said.part("t5").is_some() { 154 } else { 77 }.max(self.text);
        for (most, bytes) in self.staged.iter_mut().zip(said.staged) {
            *most = (*most).max(bytes);
        }
    }

    /// How many bytes of this pool an image takes at its peak; `None`: nothing is known yet.
    #[must_use]
    pub fn need(&self, shape: Shape, pool: Pool) -> Option<u64> {
        let [diffusion, decoder] = [self.diffusion(shape.tokens())?, self.decoder(shape.pixels())?];
        let in_pool = |part: usize, bytes: u64| if self.pools[part] == pool { bytes } else { 0 };
        let peak = self.others[pool as usize].max(in_pool(0, diffusion)).max(in_pool(1, decoder));
        // The image itself, as numbers of 32 bits.
        let image = u64::from(shape.width) * u64::from(shape.height) * 12;
        let image = if pool == Pool::Ram { image } else { 0 };
        Some(peak.saturating_add(self.staged[pool as usize]).saturating_add(image))
    }

    fn diffusion(&self, tokens: u64) -> Option<u64> {
        let Seen { least, most } = self.diffusion?;
        let matrix = |tokens: u64| self.heads.unwrap_or(0) * 4 * (tokens + self.text).pow(2);
        let rest = |(tokens, bytes): (u64, u64)| bytes.saturating_sub(matrix(tokens));
        let linear = if most.0 == least.0 {
            rest(least) * (tokens + self.text) / (least.0 + self.text)
        } else {
            let slope = rest(most).saturating_sub(rest(least)) / (most.0 - least.0);
            (rest(least) + slope * tokens).saturating_sub(slope * least.0)
        };
        Some(linear.saturating_add(matrix(tokens)))
    }

    fn decoder(&self, pixels: u64) -> Option<u64> {
        let Seen { most, .. } = self.decoder?;
        let linear = most.1.saturating_mul(pixels) / most.0.max(1);
        let matrix = if self.decoder_attends { 4 * (pixels / 64).pow(2) } else { 0 };
        Some(linear.max(matrix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(mmdit: &str, taesd: &str) -> Said {
        let mut said = Said::new();
        for line in [
            "mmdit.hpp:123 - mmdit: num_layers = 24, num_mmdit_x_layers = 13, hidden_size = 96".to_owned(),
            "ggml_extend.hpp:1995 - clip compute buffer size: 1.42 MB(RAM)".to_owned(),
            format!("ggml_extend.hpp:1995 - mmdit compute buffer size: {mmdit} MB(RAM)"),
            "ggml_extend.hpp:1995 - mmdit compute buffer size: 0.01 MB(RAM)".to_owned(),
            format!("ggml_extend.hpp:1995 - taesd compute buffer size: {taesd} MB(RAM)"),
            "something else, 4.00 MB(RAM)".to_owned(),
        ] {
            said.hear(&line);
        }
        said
    }

    const fn square(side: u32) -> Shape {
        Shape { width: side, height: side, tile: None }
    }

    fn mib(bytes: Option<u64>) -> u64 {
        bytes.unwrap() >> 20
    }

    /// What the engine said at these sizes, with the demo model.
    const SAID: [(u32, &str, &str); 5] = [
        (64, "5.13", "7.50"),
        (128, "6.86", "30.02"),
        (192, "10.69", "67.54"),
        (256, "17.96", "120.06"),
        (384, "51.55", "270.14"),
    ];

    #[test]
    fn one_small_image_tells_of_larger_ones_and_two_tell_more() {
        let tuning = Tuning::default();
        let mut learned = Learned::default();
        assert_eq!(learned.need(square(64), Pool::Ram), None);
        learned.add(&said("5.13", "7.50"), square(64), &tuning);
        for (side, mmdit, taesd) in SAID {
            let [mmdit, taesd] = [mmdit, taesd].map(|size| mebibytes(size).unwrap());
            let pixels = u64::from(side * side);
            let decoder = learned.decoder(pixels).unwrap();
            assert!(decoder.abs_diff(taesd) * 1000 <= taesd, "{side}: {decoder}, not {taesd}");
            let diffusion = learned.diffusion(pixels / 256).unwrap();
            assert!(diffusion >= mmdit && diffusion < 2 * mmdit, "{side}: {diffusion}, not {mmdit}");
            let need = learned.need(square(side), Pool::Ram).unwrap();
            assert_eq!(need, decoder + pixels * 12);
        }
        learned.add(&said("17.96", "120.06"), square(256), &tuning);
        let diffusion = learned.diffusion(576).unwrap();
        let measured = mebibytes("51.55").unwrap();
        assert!(diffusion.abs_diff(measured) * 50 <= measured, "{diffusion}, not {measured}");
        assert_eq!(learned.need(square(384), Pool::Vram), Some(0));
    }

    #[test]
    fn tiles_flash_attention_and_staged_weights_count() {
        let tuning = Tuning::default();
        let mut learned = Learned::default();
        learned.add(&said("5.13", "7.50"), square(64), &tuning);
        let whole = learned.need(square(1024), Pool::Ram);
        let tiled = learned.need(Shape { tile: Some(256), ..square(1024) }, Pool::Ram);
        // 24 heads, 4096 + 77 tokens: 1.6 GB; without tiles the decoder needs more than that.
        assert!((1600..2000).contains(&mib(tiled)) && mib(whole) > 1900, "{tiled:?} {whole:?}");
        let mut flash = Learned::default();
        flash.add(&said("5.13", "7.50"), square(64), &Tuning { flash_attention: true, ..tuning.clone() });
        let tiled = flash.need(Shape { tile: Some(256), ..square(1024) }, Pool::Ram);
        assert!(mib(tiled) < 400, "{tiled:?}");

        let mut said = said("5.13", "7.50");
        said.hear("model_manager.cpp:309 - model manager staged compute params (100.50 MB, 7 tensors) to CUDA0, taking 1s");
        said.hear("ggml_extend.hpp:1995 - mmdit compute buffer size: 9.00 MB(VRAM)");
        let mut both = Learned::default();
        both.add(&said, square(64), &tuning);
        assert_eq!(mib(both.need(square(64), Pool::Vram)), 109);
        assert_eq!(mib(both.need(square(64), Pool::Ram)), 7);
    }

    #[test]
    fn the_attention_of_the_vae_overtakes_its_convolutions() {
        let mut said = said("5.13", "7.50");
        said.hear("ggml_extend.hpp:1995 - vae compute buffer size: 8.00 MB(RAM)");
        let mut learned = Learned::default();
        learned.add(&said, square(64), &Tuning::default());
        assert_eq!(mib(learned.decoder(1024 * 1024)), 2048);
        assert_eq!(mib(learned.decoder(2048 * 2048)), 16384);
    }
}
