//! The demo model that is built into the program.
//!
//! stable-diffusion.cpp loads models from files only. The demo model's three files take 274 MB, nearly
//! all of it zeros and numbers that a formula gives, so the program carries the learned 4 MB and
//! [`unpack`] writes the files when they are first needed:
//!
//! | file | bytes | made from |
//! |---|---:|---|
//! | `mmdit.safetensors` | 22,234,400 | the built-in `mmdit-compact.safetensors`, zeros, a table of sines |
//! | `taesd.safetensors` | 4,938,444 | the built-in `taesd-compact.safetensors`, zeros |
//! | `clip_l.safetensors` | 246,386,064 | a pseudo-random generator, zeros, ones |
//!
//! `demo/README.md` describes the model; `demo/expand.py` and `demo/make_clip.py` do the same as this
//! module and are its reference.
//!
//! # The formats
//! A safetensors file is a length (8 bytes, little endian), that many bytes of JSON which give each
//! tensor's type, shape and place, padded with spaces to a multiple of 8, and then the numbers. The
//! files written here have the order that the safetensors library gives them: f32 before f16, then by
//! name. So every number is aligned to its size, and a file can be compared with the reference's as a
//! whole.
//!
//! A compact file is a safetensors file too, with the final names. A tensor that it lacks is zero or
//! follows a rule (`Fill`). One that is smaller than its final shape fills the corner at index 0 of every
//! dimension; the rest is zero.
//!
//! # On the disk
//! Tensors that are all zero are left out of what is written, so most file systems store them as holes:
//! the three files take about 86 MB.
//!
//! A file gets its name only when it is complete and on the disk, and the folder is named after a digest
//! of what the files are made from. So several processes may unpack at once, and any of them may be killed
//! meanwhile. Nobody waits for a lock; at worst the work is done twice.
//!
//! # Whose files
//! The folder and all folders above it have to be ours or root's, with nobody else who may write to them
//! ([`weave_trust`]); otherwise nothing there is read, written or removed. A file that is there is compared, at each
//! start, with what would be written: a disk may have changed it, or somebody when the folder was open once.

mod comparison;
mod draft;
mod error;
mod rules;
mod sink;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::env;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf, absolute};

use comparison::Comparison;
use draft::{Draft, sweep};
pub use error::Error;
use rules::{GRID, HIDDEN, POSITIONS, Signs, TOKENS, write_waves};
use sink::Sink;
use weave_trust::{Distrust, Folder, Rules, Why};

/// The width in pixels that suits the model best.
pub const WIDTH: u32 = 128;
/// The height in pixels that suits the model best.
pub const HEIGHT: u32 = 128;
/// The number of steps that suits the model. With 4 it loses colours.
pub const STEPS: u32 = 8;
/// The guidance that suits the model: it needs none, and without it a step is one pass, not two.
pub const CFG: f32 = 1.0;

/// Where the three files of the demo model are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The diffusion model, an MMDiT of SD 3.5 Medium's shape.
    pub diffusion_model: PathBuf,
    /// The text encoder.
    pub clip_l: PathBuf,
    /// The decoder from latents to pixels.
    pub taesd: PathBuf,
}

/// The folder for files that can be made again: `$WEAVE_CACHE_DIR`, else `$XDG_CACHE_HOME/weave`, else
/// `$HOME/.cache/weave`.
///
/// Empty variables count as unset. So do relative paths, as the XDG specification wants it, except in
/// `WEAVE_CACHE_DIR`, which counts from the current folder. The folder need not exist.
pub fn cache_dir() -> Result<PathBuf, Error> {
    cache_dir_from(|name| env::var_os(name))
}

fn cache_dir_from(variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, Error> {
    let path = |name| variable(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(own) = path("WEAVE_CACHE_DIR") {
        return absolute(&own).map_err(|source| Error::io("find the current folder for", &own, source));
    }
    if let Some(caches) = path("XDG_CACHE_HOME").filter(|p| p.is_absolute()) {
        return Ok(caches.join("weave"));
    }
    match path("HOME").filter(|p| p.is_absolute()) {
        Some(home) => Ok(home.join(".cache/weave")),
        None => Err(Error::NoCacheDir),
    }
}

/// Puts the demo model's files into a folder of their own below `cache`, unless they are there.
///
/// Files that are there are read once. Those that differ are written again.
///
/// # Errors
/// Others could change what is there, or the system refused something.
pub fn unpack(cache: &Path, rules: &Rules) -> Result<Files, Error> {
    let shown = cache.join(FOLDER);
    let open = || {
        let cache = Folder::make(cache, rules)?;
        cache.judge()?;
        let folder = cache.enter_or_make(FOLDER.as_ref())?;
        folder.judge_content()?;
        Ok(folder)
    };
    let folder = open().map_err(|distrust| untrusted(&shown, distrust))?;
    let place = |model: &Model| -> Result<PathBuf, Error> {
        let path = shown.join(model.file);
        ensure(&folder, &path, model)?;
        Ok(path)
    };
    sweep(&folder);
    Ok(Files { diffusion_model: place(&MMDIT)?, taesd: place(&TAESD)?, clip_l: place(&CLIP_L)? })
}

/// Whether they can be there, as far as that depends on whose folders these are. None need exist.
///
/// # Errors
/// Others could change what would be there.
pub fn check_place(cache: &Path, rules: &Rules) -> Result<(), Error> {
    let look = || {
        let cache = Folder::find(cache, rules)?;
        cache.judge()?;
        cache.enter(FOLDER.as_ref())?.judge_content()
    };
    match look() {
        Err(Distrust { why: Why::Io(error), .. }) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.map_err(|distrust| untrusted(&cache.join(FOLDER), distrust)),
    }
}

/// How many bytes [`unpack`] would write into `cache`: what isn't there, without what is all zero and takes no room.
///
/// # Errors
/// The built-in files are damaged.
pub fn missing(cache: &Path) -> Result<u64, Error> {
    let mut missing = Written(0);
    for model in [&MMDIT, &TAESD, &CLIP_L] {
        let layout = Layout::of(model);
        let file = std::fs::metadata(cache.join(FOLDER).join(model.file));
        if file.map_or(0, |file| file.len()) != layout.bytes as u64 {
            pour(model, &layout, &mut missing)?;
        }
    }
    Ok(missing.0)
}

/// Counts bytes that would be written.
struct Written(u64);

impl Sink for Written {
    const CHECKS_TABLES: bool = false;

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.0 += bytes.len() as u64;
        Ok(())
    }

    fn skip(&mut self, _: usize) -> Result<(), Error> {
        Ok(())
    }

    fn wrong_table(&self, expected: &'static str, found: String) -> Error {
        Error::embedded("a table", format!("its digest is {found}, not {expected}"))
    }
}

fn untrusted(folder: &Path, distrust: Distrust) -> Error {
    match distrust.why {
        Why::Io(source) => Error::io("create the folder", folder, source),
        _ => Error::Untrusted(distrust.to_string()),
    }
}

// ------------------------------------------------------------------------------------- the models

/// The digest of what the files are made from: a number for how, and what was learned. It stands here because computing it would
/// take longer than all the rest until `weaved` listens; a test holds it against the files.
const FOLDER: &str = "demo-model-538f04e967bd3f7c";

static MMDIT: Model = Model {
    file: "mmdit.safetensors",
    compact: include_bytes!("../demo/mmdit-compact.safetensors"),
    tensors: mmdit_tensors,
};
static TAESD: Model = Model {
    file: "taesd.safetensors",
    compact: include_bytes!("../demo/taesd-compact.safetensors"),
    tensors: taesd_tensors,
};
static CLIP_L: Model = Model { file: "clip_l.safetensors", compact: &[], tensors: clip_l_tensors };

/// One file of the demo model.
struct Model {
    file: &'static str,
    /// What was learned, as a safetensors file, or nothing.
    compact: &'static [u8],
    tensors: fn() -> Vec<Tensor>,
}

/// A tensor as the final file has it. Vectors are f32, all others f16.
struct Tensor {
    name: String,
    shape: Vec<usize>,
    /// What it holds where the compact file lacks it.
    fill: Fill,
}

/// The rules for tensors that were not learned.
#[derive(Clone, Copy)]
enum Fill {
    Zeros,
    /// A vector of ones, which is what a normalisation has that changes nothing.
    Ones,
    /// The MMDiT's table of positions, see [`write_waves`].
    Waves,
    Signs(&'static Signs),
}

impl Tensor {
    fn new(name: String, shape: &[usize], fill: Fill) -> Self {
        Self { name, shape: shape.to_vec(), fill }
    }

    fn is_vector(&self) -> bool {
        self.shape.len() == 1
    }

    fn dtype(&self) -> &'static str {
        if self.is_vector() { "F32" } else { "F16" }
    }

    fn bytes(&self) -> usize {
        let number = if self.is_vector() { 4 } else { 2 };
        self.shape.iter().fold(number, |bytes, rows| bytes.saturating_mul(*rows))
    }
}

/// Joint blocks of the MMDiT, and heads of each attention.
const DEPTH: usize = 24;
/// Only the first blocks have a second attention, in the image half.
const DUAL: usize = 13;

fn mmdit_tensors() -> Vec<Tensor> {
    fn linear(list: &mut Vec<Tensor>, name: &str, inputs: usize, outputs: usize) {
        plain(list, format!("model.diffusion_model.{name}.weight"), &[outputs, inputs]);
        plain(list, format!("model.diffusion_model.{name}.bias"), &[outputs]);
    }
    let mut list = Vec::new();
    plain(&mut list, "model.diffusion_model.x_embedder.proj.weight".into(), &[HIDDEN, 16, 2, 2]);
    plain(&mut list, "model.diffusion_model.x_embedder.proj.bias".into(), &[HIDDEN]);
    let positions = "model.diffusion_model.pos_embed".into();
    list.push(Tensor::new(positions, &[1, GRID * GRID, HIDDEN], Fill::Waves));
    linear(&mut list, "t_embedder.mlp.0", 256, HIDDEN);
    linear(&mut list, "t_embedder.mlp.2", HIDDEN, HIDDEN);
    linear(&mut list, "y_embedder.mlp.0", 2048, HIDDEN);
    linear(&mut list, "y_embedder.mlp.2", HIDDEN, HIDDEN);
    linear(&mut list, "context_embedder", 4096, HIDDEN);
    for index in 0..DEPTH {
        for half in ["context_block", "x_block"] {
            let block = format!("joint_blocks.{index}.{half}");
            // The text is not read again after the last block, so its text half has no output side.
            let last = half == "context_block" && index == DEPTH - 1;
            let dual = half == "x_block" && index < DUAL;
            let modulations = match (last, dual) {
                (true, _) => 2,
                (_, true) => 9,
                _ => 6,
            };
            let modulation = format!("{block}.adaLN_modulation.1");
            linear(&mut list, &modulation, HIDDEN, modulations * HIDDEN);
            for name in if dual { &["attn", "attn2"][..] } else { &["attn"] } {
                let attention = format!("{block}.{name}");
                linear(&mut list, &format!("{attention}.qkv"), HIDDEN, 3 * HIDDEN);
                for norm in ["ln_q", "ln_k"] {
                    let name = format!("model.diffusion_model.{attention}.{norm}.weight");
                    list.push(Tensor::new(name, &[HIDDEN / DEPTH], Fill::Ones));
                }
                if !last {
                    linear(&mut list, &format!("{attention}.proj"), HIDDEN, HIDDEN);
                }
            }
            if !last {
                linear(&mut list, &format!("{block}.mlp.fc1"), HIDDEN, 4 * HIDDEN);
                linear(&mut list, &format!("{block}.mlp.fc2"), 4 * HIDDEN, HIDDEN);
            }
        }
    }
    linear(&mut list, "final_layer.linear", HIDDEN, 64);
    linear(&mut list, "final_layer.adaLN_modulation.1", HIDDEN, 2 * HIDDEN);
    list
}

fn taesd_tensors() -> Vec<Tensor> {
    fn convolution(list: &mut Vec<Tensor>, name: &str, inputs: usize, outputs: usize) {
        plain(list, format!("{name}.weight"), &[outputs, inputs, 3, 3]);
        plain(list, format!("{name}.bias"), &[outputs]);
    }
    let mut list = Vec::new();
    // The engine asks for an encoder too; nobody trained one, so it is all zero.
    for (coder, first, last, blocks, resizes) in [
        ("decoder", (0, 16, 64), (18, 64, 3), [2, 3, 4, 7, 8, 9, 12, 13, 14, 17], [6, 11, 16]),
        ("encoder", (0, 3, 64), (14, 64, 16), [1, 3, 4, 5, 7, 8, 9, 11, 12, 13], [2, 6, 10]),
    ] {
        for (layer, inputs, outputs) in [first, last] {
            convolution(&mut list, &format!("{coder}.layers.{layer}"), inputs, outputs);
        }
        for layer in blocks {
            for part in [0, 2, 4] {
                convolution(&mut list, &format!("{coder}.layers.{layer}.conv.{part}"), 64, 64);
            }
        }
        for layer in resizes {
            plain(&mut list, format!("{coder}.layers.{layer}.weight"), &[64, 64, 3, 3]);
        }
    }
    list
}

fn clip_l_tensors() -> Vec<Tensor> {
    const WIDTH: usize = Signs::WIDTH;
    fn linear(list: &mut Vec<Tensor>, name: &str, inputs: usize, outputs: usize) {
        plain(list, format!("{name}.weight"), &[outputs, inputs]);
        plain(list, format!("{name}.bias"), &[outputs]);
    }
    fn norm(list: &mut Vec<Tensor>, name: &str) {
        list.push(Tensor::new(format!("{name}.weight"), &[WIDTH], Fill::Ones));
        plain(list, format!("{name}.bias"), &[WIDTH]);
    }
    let mut list = Vec::new();
    for (table, signs) in [("token", &TOKENS), ("position", &POSITIONS)] {
        let name = format!("text_model.embeddings.{table}_embedding.weight");
        list.push(Tensor::new(name, &[signs.rows, WIDTH], Fill::Signs(signs)));
    }
    for index in 0..12 {
        let layer = format!("text_model.encoder.layers.{index}");
        for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            linear(&mut list, &format!("{layer}.self_attn.{name}"), WIDTH, WIDTH);
        }
        linear(&mut list, &format!("{layer}.mlp.fc1"), WIDTH, 4 * WIDTH);
        linear(&mut list, &format!("{layer}.mlp.fc2"), 4 * WIDTH, WIDTH);
        norm(&mut list, &format!("{layer}.layer_norm1"));
        norm(&mut list, &format!("{layer}.layer_norm2"));
    }
    norm(&mut list, "text_model.final_layer_norm");
    list
}

fn plain(list: &mut Vec<Tensor>, name: String, shape: &[usize]) {
    list.push(Tensor::new(name, shape, Fill::Zeros));
}

// --------------------------------------------------------------------------------- the final files

/// A final file's shape: its tensors in the file's order, and all bytes before the first of them.
struct Layout {
    tensors: Vec<Tensor>,
    header: Vec<u8>,
    bytes: usize,
}

impl Layout {
    fn of(model: &Model) -> Self {
        let mut tensors = (model.tensors)();
        tensors.sort_by(|a, b| b.is_vector().cmp(&a.is_vector()).then_with(|| a.name.cmp(&b.name)));
        let mut entries = Vec::with_capacity(tensors.len());
        let mut end = 0;
        for tensor in &tensors {
            let (name, dtype, start) = (&tensor.name, tensor.dtype(), end);
            let shape: Vec<String> = tensor.shape.iter().map(ToString::to_string).collect();
            let shape = shape.join(",");
            end += tensor.bytes();
            // The names are this module's own: none of them needs escaping.
            entries.push(format!(
                r#""{name}":{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[{start},{end}]}}"#
            ));
        }
        let mut json = format!("{{{}}}", entries.join(","));
        while !json.len().is_multiple_of(8) {
            json.push(' ');
        }
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.extend_from_slice(json.as_bytes());
        let bytes = header.len() + end;
        Self { tensors, header, bytes }
    }
}

/// Writes the model's file into the folder, unless it is there. Its `path` is for messages.
fn ensure(folder: &Folder, path: &Path, model: &Model) -> Result<(), Error> {
    let layout = Layout::of(model);
    if let Some(mut comparison) = Comparison::open(folder, path, layout.bytes)? {
        pour(model, &layout, &mut comparison)?;
        if comparison.is_same() {
            return Ok(());
        }
    }
    let mut draft = Draft::create(folder, path, layout.bytes)?;
    pour(model, &layout, &mut draft)?;
    draft.finish()
}

/// Gives the sink all of the model's file, from its first byte to its last.
fn pour(model: &Model, layout: &Layout, sink: &mut impl Sink) -> Result<(), Error> {
    let mut learned = read_compact(model.file, model.compact)?;
    sink.write(&layout.header)?;
    for tensor in &layout.tensors {
        match (learned.remove(tensor.name.as_str()), tensor.fill) {
            (Some(part), _) => {
                let mut full = vec![0; tensor.bytes()];
                if !fill_corner(&mut full, &tensor.shape, part.data, &part.shape) {
                    return Err(Error::embedded(model.file, format!("{} does not fit", tensor.name)));
                }
                sink.write(&full)?;
            }
            (None, Fill::Zeros) => sink.skip(tensor.bytes())?,
            (None, Fill::Ones) => sink.write(&1f32.to_le_bytes().repeat(tensor.bytes() / 4))?,
            (None, Fill::Waves) => write_waves(sink)?,
            (None, Fill::Signs(signs)) => signs.write(sink)?,
        }
    }
    match learned.keys().next() {
        Some(name) => Err(Error::embedded(model.file, format!("{name} has no place in the model"))),
        None => Ok(()),
    }
}

/// Copies a tensor to the corner at index 0 of every dimension of a larger one. False if it does not fit.
fn fill_corner(full: &mut [u8], shape: &[usize], part: &[u8], part_shape: &[usize]) -> bool {
    if shape == part_shape {
        full.copy_from_slice(part);
        return true;
    }
    let ([rows, shape @ ..], [part_rows, part_shape @ ..]) = (shape, part_shape) else {
        return false;
    };
    if *part_rows == 0 || part_rows > rows {
        return false;
    }
    let full_rows = full.chunks_exact_mut(full.len() / rows);
    let part_rows = part.chunks_exact(part.len() / part_rows);
    full_rows.zip(part_rows).all(|(full, part)| fill_corner(full, shape, part, part_shape))
}

// ------------------------------------------------------------------------------- the compact files

/// A tensor of a compact file.
#[derive(Debug, PartialEq)]
struct Learned<'a> {
    shape: Vec<usize>,
    data: &'a [u8],
}

/// Takes a compact file apart. Nothing at all is a compact file without tensors.
fn read_compact<'a>(file: &'static str, bytes: &'a [u8]) -> Result<HashMap<&'a str, Learned<'a>>, Error> {
    if bytes.is_empty() {
        return Ok(HashMap::new());
    }
    let (header, data) = split_header(bytes).ok_or_else(|| Error::embedded(file, "no header".into()))?;
    let mut reader = HeaderReader { rest: header };
    let mut learned = HashMap::new();
    loop {
        let open = if learned.is_empty() { "{" } else { "," };
        let (name, tensor) = reader.entry(open, data).ok_or_else(|| {
            let at = header.len() - reader.rest.len();
            Error::embedded(file, format!("the header is not understood near byte {at}"))
        })?;
        learned.insert(name, tensor);
        if reader.rest.trim_end_matches(' ') == "}" {
            return Ok(learned);
        }
    }
}

fn split_header(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (header, data) = rest.split_at_checked(length)?;
    Some((str::from_utf8(header).ok()?, data))
}

/// Reads the very spelling of JSON that the safetensors library writes. The two files are part of the
/// program, so a full JSON parser would only be more to build.
struct HeaderReader<'a> {
    rest: &'a str,
}

impl<'a> HeaderReader<'a> {
    fn entry(&mut self, open: &str, data: &'a [u8]) -> Option<(&'a str, Learned<'a>)> {
        self.skip(open)?;
        self.skip("\"")?;
        let name = self.until("\":{\"dtype\":\"")?;
        let dtype = self.until("\",\"shape\":[")?;
        let shape = numbers(self.until("],\"data_offsets\":[")?)?;
        let [start, end] = numbers(self.until("]}")?)?[..] else {
            return None;
        };
        let data = data.get(start..end).filter(|data| !data.is_empty())?;
        let expected = Tensor::new(String::new(), &shape, Fill::Zeros);
        (dtype == expected.dtype() && data.len() == expected.bytes())
            .then_some((name, Learned { shape, data }))
    }

    fn skip(&mut self, text: &str) -> Option<()> {
        self.rest = self.rest.strip_prefix(text)?;
        Some(())
    }

    fn until(&mut self, text: &str) -> Option<&'a str> {
        let (before, after) = self.rest.split_once(text)?;
        self.rest = after;
        Some(before)
    }
}

fn numbers(list: &str) -> Option<Vec<usize>> {
    list.split(',').map(|n| n.parse().ok()).collect()
}
