//! What trades the engine's memory, time and pixels against each other, in the engine's own words.
//!
//! Names and values are those of stable-diffusion.cpp, so that what is written about it elsewhere holds
//! here too. The values are checked when the settings are read; whether a device is there shows only
//! when an engine is made.

use weave_core::text::is_shown;

use crate::values::{named, parts};

/// The parts of the engine that can be put on devices.
pub const PARTS: &[&str] = &["diffusion", "te", "vae"];

/// The engine's samplers.
pub const SAMPLERS: &[&str] = &[
    "euler",
    "euler_a",
    "heun",
    "dpm2",
    "dpm++2s_a",
    "dpm++2m",
    "dpm++2mv2",
    "ipndm",
    "ipndm_v",
    "lcm",
    "ddim_trailing",
    "tcd",
    "res_multistep",
    "res_2s",
    "er_sde",
    "euler_cfg_pp",
    "euler_a_cfg_pp",
    "euler_ge",
];

/// The engine's schedulers, but for those that are made for other models (`ays`, `ltx2`).
pub const SCHEDULERS: &[&str] = &[
    "discrete",
    "karras",
    "exponential",
    "gits",
    "sgm_uniform",
    "simple",
    "smoothstep",
    "kl_optimal",
    "lcm",
    "bong_tangent",
];

/// The engine's generators of random numbers.
pub const RNGS: &[&str] = &["cuda", "cpu", "std_default"];

/// The types that the engine can turn weights into while it loads them.
pub const WEIGHT_TYPES: &[&str] =
    &["f32", "f16", "bf16", "q8_0", "q6_K", "q5_K", "q5_1", "q5_0", "q4_K", "q4_1", "q4_0", "q3_K", "q2_K"];

/// What stands for "as the engine would have it".
pub const AUTO: &str = "auto";

/// When the latent image is decoded in tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tiling {
    /// Above a size, and where memory is too short otherwise.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// How much memory an image may take beside the model's weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MemoryLimit {
    /// What is free.
    Free,
    /// So many GiB, and no more than is free.
    Gib(f32),
    /// Whatever it takes: that is not looked at.
    Off,
}

/// The settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Tuning {
    /// The [`PRESETS`] entry that some of the others come from.
    pub preset: Option<&'static str>,
    /// What everything is computed on; `None`: the first GPU, else the CPU.
    pub device: Option<String>,
    /// Whether to do without the CPU in place of a GPU.
    pub require_gpu: bool,
    /// Which part is computed on which other device: `te=cpu`; [`AUTO`]: none.
    pub backend: String,
    /// Where weights are kept while they are not needed: `cpu`, `diffusion=cpu,te=disk`; [`AUTO`]: on
    /// the device that computes.
    pub params_backend: String,
    /// Budget for one graph and its weights in GiB; 0: none, negative: what is free less that much.
    pub max_vram: f32,
    /// Whether weights are brought layer by layer, ahead of when they are needed.
    pub stream_layers: bool,
    /// Whether weight files are mapped into memory instead of read.
    pub mmap: bool,
    /// Whether the diffusion model's attention is computed without the whole matrix in memory.
    pub flash_attention: bool,
    /// Whether text encoders and VAE use flash attention too.
    pub flash_attention_everywhere: bool,
    /// Whether the VAE's convolutions are computed without unrolling the image first.
    pub vae_conv_direct: bool,
    /// How much memory an image may take.
    pub memory_limit: MemoryLimit,
    /// When the latent image is decoded in tiles.
    pub vae_tiling: Tiling,
    /// With [`Tiling::Auto`], images with more pixels than a square with this side; `None`: at no size.
    pub vae_tiling_above: Option<u16>,
    /// The side of a tile, in latent pixels of which each makes 8×8.
    pub vae_tile_size: u16,
    /// The share of a tile that it has in common with its neighbour.
    pub vae_tile_overlap: f32,
    /// What all weights are turned into; [`AUTO`]: they stay what they are.
    pub weight_type: &'static str,
    /// Exceptions to that: `PATTERN=TYPE,…`.
    pub tensor_type_rules: Option<String>,
    /// One of [`SAMPLERS`], or [`AUTO`].
    pub sampler: &'static str,
    /// One of [`SCHEDULERS`], or [`AUTO`].
    pub scheduler: &'static str,
    /// How much of the steps goes to the noisier half; `None`: what the model was trained with.
    pub flow_shift: Option<f32>,
    /// One of [`RNGS`].
    pub rng: &'static str,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            preset: None,
            device: None,
            require_gpu: false,
            backend: AUTO.to_owned(),
            params_backend: AUTO.to_owned(),
            max_vram: 0.0,
            stream_layers: false,
            mmap: false,
            flash_attention: false,
            flash_attention_everywhere: false,
            vae_conv_direct: false,
            memory_limit: MemoryLimit::Free,
            vae_tiling: Tiling::Auto,
            vae_tiling_above: None,
            vae_tile_size: 32,
            vae_tile_overlap: 0.5,
            weight_type: AUTO,
            tensor_type_rules: None,
            sampler: AUTO,
            scheduler: AUTO,
            flow_shift: None,
            rng: "cuda",
        }
    }
}

impl Tuning {
    /// What the engine is to compute which part on, as it reads it; `None`: as it would choose.
    #[must_use]
    pub fn backend_spec(&self) -> Option<String> {
        let parts = Some(&*self.backend).filter(|list| *list != AUTO);
        let spec: Vec<_> = self.device.as_deref().into_iter().chain(parts).collect();
        (!spec.is_empty()).then(|| spec.join(","))
    }

    /// Where weights are kept, as the engine reads it; `None`: as it would choose.
    #[must_use]
    pub fn params_backend_spec(&self) -> Option<&str> {
        Some(&*self.params_backend).filter(|list| *list != AUTO)
    }

    /// Whether weights are read from their files whenever they are needed.
    #[must_use]
    pub fn keeps_weights_on_disk(&self) -> bool {
        self.params_backend.split(',').any(|item| item.rsplit('=').next() == Some("disk"))
    }

    /// All devices that are named, whatever for.
    pub fn devices(&self) -> impl Iterator<Item = &str> {
        let lists = [&self.backend, &self.params_backend].into_iter();
        let named = lists.filter(|list| *list != AUTO).flat_map(|list| list.split(','));
        let named = named.map(|item| item.split_once('=').map_or(item, |(_, device)| device));
        self.device.as_deref().into_iter().chain(named.filter(|name| *name != "disk"))
    }

    /// What a part is to be computed on, if anything is said of it.
    #[must_use]
    pub fn device_of(&self, part: &str) -> Option<&str> {
        let mut items = self.backend.rsplit(',').filter_map(|item| item.split_once('='));
        items.find(|(of, _)| *of == part).map(|(_, device)| device).or(self.device.as_deref())
    }

    /// What is set and has no effect, with the reason.
    #[must_use]
    pub fn without_effect(&self) -> Option<&'static str> {
        if self.stream_layers && self.max_vram == 0.0 {
            Some("stream_layers has no effect while max_vram is 0")
        } else if self.stream_layers && !self.keeps_diffusion_elsewhere() {
            Some("stream_layers has no effect unless params_backend keeps the diffusion model on the cpu")
        } else {
            None
        }
    }

    fn keeps_diffusion_elsewhere(&self) -> bool {
        self.params_backend.split(',').any(|item| matches!(item, "cpu" | "diffusion=cpu"))
    }

    /// Whether an image is to be decoded in tiles for its size alone.
    #[must_use]
    pub fn tiles(&self, width: u32, height: u32) -> bool {
        let above = |side: u16| u64::from(width) * u64::from(height) > u64::from(side).pow(2);
        match self.vae_tiling {
            Tiling::On => true,
            Tiling::Off => false,
            Tiling::Auto => self.vae_tiling_above.is_some_and(above),
        }
    }
}

/// Settings that go together, for GPUs with so much memory: names and values as in a settings file.
///
/// The budgets follow from the sizes of SD 3.5 (Medium 5 GB in 16 bits, Large 16 GB, T5-XXL 10 GB) and
/// leave room for the desktop and for CUDA itself. Up to 16 GB all weights stay in RAM and visit the GPU;
/// 24 GB hold Medium with all of its encoders.
pub const PRESETS: &[(&str, &[(&str, &str)])] = &[
    (
        "4gb",
        &[
            ("params_backend", "cpu"),
            ("max_vram", "3"),
            ("stream_layers", "true"),
            ("mmap", "true"),
            ("flash_attention", "true"),
            ("flash_attention_everywhere", "true"),
            ("vae_tiling_above", "512"),
        ],
    ),
    (
        "8gb",
        &[
            ("params_backend", "cpu"),
            ("max_vram", "6.5"),
            ("stream_layers", "true"),
            ("mmap", "true"),
            ("flash_attention", "true"),
            ("flash_attention_everywhere", "true"),
            ("vae_tiling_above", "1024"),
        ],
    ),
    (
        "12gb",
        &[
            ("params_backend", "cpu"),
            ("max_vram", "10"),
            ("stream_layers", "true"),
            ("flash_attention", "true"),
            ("flash_attention_everywhere", "true"),
            ("vae_tiling_above", "1536"),
        ],
    ),
    (
        "16gb",
        &[
            ("params_backend", "cpu"),
            ("max_vram", "14"),
            ("stream_layers", "true"),
            ("flash_attention", "true"),
            ("flash_attention_everywhere", "true"),
        ],
    ),
    ("24gb", &[("flash_attention", "true"), ("flash_attention_everywhere", "true")]),
];

/// What [`PRESETS`] are called.
pub(crate) fn preset_names() -> Vec<&'static str> {
    PRESETS.iter().map(|(name, _)| *name).collect()
}

/// One of the names, or [`AUTO`].
pub(crate) fn named_or_auto(names: &[&'static str]) -> impl Fn(&str) -> Result<&'static str, String> {
    move |text| {
        if text == AUTO {
            return Ok(AUTO);
        }
        named(names)(text).map_err(|error| format!("{AUTO}, or {error}"))
    }
}

/// A device as the engine names it: `CUDA0`, `cpu`, `gpu`.
pub(crate) fn device(text: &str) -> Result<String, String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_-.:".contains(c);
    if !text.is_empty() && text.chars().all(is_name) && text != "disk" {
        Ok(text.to_owned())
    } else {
        Err("a device's name, such as CUDA0, gpu or cpu; `weaved devices` lists them".to_owned())
    }
}

/// What a list says of the engine's parts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    /// What they are computed on.
    Computing,
    /// Where their weights are kept: a device alone stands for all parts, and `disk` is one.
    Keeping,
}

/// `PART=DEVICE,…`.
pub(crate) fn part_devices(text: &str) -> Result<String, String> {
    assignments(text, Of::Computing)
}

/// `DEVICE,PART=DEVICE,…`, with `disk` for a device.
pub(crate) fn part_places(text: &str) -> Result<String, String> {
    assignments(text, Of::Keeping)
}

fn assignments(text: &str, of: Of) -> Result<String, String> {
    if text == AUTO {
        return Ok(text.to_owned());
    }
    let keeps = of == Of::Keeping;
    let mut items = Vec::new();
    for item in parts(text)? {
        let (part, name) = match item.split_once('=') {
            Some((part, name)) => (part.trim(), name.trim()),
            None if keeps => ("", item),
            None => ("?", item),
        };
        let known = part.is_empty() && keeps || PARTS.contains(&part);
        if !known || !(keeps && name == "disk" || device(name).is_ok()) {
            let (all, disk) = if keeps { ("DEVICE, or ", ", or disk") } else { ("", "") };
            return Err(format!(
                "{AUTO}, or {all}PART=DEVICE with commas in between; parts are {}, devices those of `weaved devices`{disk}",
                PARTS.join(", ")
            ));
        }
        items.push(if part.is_empty() { name.to_owned() } else { format!("{part}={name}") });
    }
    Ok(items.join(","))
}

/// `PATTERN=TYPE,…`.
pub(crate) fn type_rules(text: &str) -> Result<String, String> {
    let is_rule = |rule: &&str| {
        let is_pattern = |text: &str| !text.is_empty() && text.chars().all(is_shown);
        rule.split_once('=')
            .is_some_and(|(pattern, kind)| is_pattern(pattern) && WEIGHT_TYPES.contains(&kind))
    };
    let rules = parts(text)?;
    if rules.iter().all(is_rule) {
        Ok(rules.join(","))
    } else {
        Err(format!("PATTERN=TYPE with commas in between; types are {}", WEIGHT_TYPES.join(", ")))
    }
}
