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
//! of what the files are made from. So a file that is there is the right one, whoever wrote it: several
//! processes may unpack at once, and any of them may be killed meanwhile. Nobody waits for a lock; at
//! worst the work is done twice.

use std::collections::HashMap;
use std::env;
use std::f64::consts::FRAC_PI_2;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf, absolute};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sha2::{Digest, Sha256};

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
/// Files that are there cost a look at their length and header. Damaged ones are written again.
pub fn unpack(cache: &Path) -> Result<Files, Error> {
    let folder = cache.join(FOLDER);
    let place = |model: &Model| -> Result<PathBuf, Error> {
        let path = folder.join(model.file);
        ensure(&path, model)?;
        Ok(path)
    };
    sweep(&folder);
    Ok(Files { diffusion_model: place(&MMDIT)?, taesd: place(&TAESD)?, clip_l: place(&CLIP_L)? })
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

/// Width of the MMDiT.
const HIDDEN: usize = 96;
/// Joint blocks of the MMDiT, and heads of each attention.
const DEPTH: usize = 24;
/// Only the first blocks have a second attention, in the image half.
const DUAL: usize = 13;
/// The table of positions covers GRID x GRID patches.
const GRID: usize = 128;

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

    /// Whether a file of this length with this header is there. What follows the header is believed:
    /// reading it all would take longer than anything else at a start.
    fn is_at(&self, path: &Path) -> bool {
        // Asked before opening, because opening a pipe would wait for its other end.
        let regular = |m: fs::Metadata| m.is_file() && m.len() == self.bytes as u64;
        if !fs::metadata(path).is_ok_and(regular) {
            return false;
        }
        let mut header = vec![0; self.header.len()];
        File::open(path).and_then(|mut f| f.read_exact(&mut header)).is_ok() && header == self.header
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Writes the model's file to `path`, unless it is there.
fn ensure(path: &Path, model: &Model) -> Result<(), Error> {
    let layout = Layout::of(model);
    if layout.is_at(path) {
        return Ok(());
    }
    let mut learned = read_compact(model.file, model.compact)?;
    let mut draft = Draft::create(path, layout.bytes)?;
    draft.write(&layout.header)?;
    for tensor in &layout.tensors {
        match (learned.remove(tensor.name.as_str()), tensor.fill) {
            (Some(part), _) => {
                let mut full = vec![0; tensor.bytes()];
                if !fill_corner(&mut full, &tensor.shape, part.data, &part.shape) {
                    return Err(Error::embedded(model.file, format!("{} does not fit", tensor.name)));
                }
                draft.write(&full)?;
            }
            (None, Fill::Zeros) => draft.skip(tensor.bytes()),
            (None, Fill::Ones) => draft.write(&1f32.to_le_bytes().repeat(tensor.bytes() / 4))?,
            (None, Fill::Waves) => write_waves(&mut draft)?,
            (None, Fill::Signs(signs)) => signs.write(&mut draft)?,
        }
    }
    if let Some(name) = learned.keys().next() {
        return Err(Error::embedded(model.file, format!("{name} has no place in the model")));
    }
    draft.finish()
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

/// A file on its way to its name. Dropped before [`Draft::finish`], it leaves nothing behind.
struct Draft<'a> {
    file: File,
    temporary: PathBuf,
    path: &'a Path,
    at: u64,
    finished: bool,
}

/// How the names of drafts end. They start with a dot and the final name.
const DRAFT: &str = ".draft";

impl<'a> Draft<'a> {
    fn create(path: &'a Path, bytes: usize) -> Result<Self, Error> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let folder = path.parent().unwrap_or(Path::new("."));
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|source| Error::io("create the folder", folder, source))?;
        let name = path.file_name().unwrap_or_default().display();
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let temporary = folder.join(format!(".{name}.{}-{count}{DRAFT}", process::id()));
            let file = match OpenOptions::new().write(true).create_new(true).open(&temporary) {
                Ok(file) => file,
                // Of a dead process with the same number, or a live one in another container.
                Err(taken) if taken.kind() == ErrorKind::AlreadyExists => continue,
                Err(source) => return Err(Error::io("create a file in", folder, source)),
            };
            let draft = Self { file, temporary, path, at: 0, finished: false };
            draft.file.set_len(bytes as u64).map_err(|source| draft.error(source))?;
            return Ok(draft);
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all_at(bytes, self.at).map_err(|source| self.error(source))?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Leaves a hole, which reads as zeros.
    fn skip(&mut self, bytes: usize) {
        self.at += bytes as u64;
    }

    fn finish(mut self) -> Result<(), Error> {
        // Some file systems find out only now that they are full. And a power cut must not leave zeros
        // under a final name: nothing would notice them.
        self.file.sync_data().map_err(|source| self.error(source))?;
        fs::rename(&self.temporary, self.path).map_err(|source| self.error(source))?;
        self.finished = true;
        Ok(())
    }

    fn error(&self, source: io::Error) -> Error {
        Error::io("write", self.path, source)
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.finished {
            // If it cannot be removed either, the next start will try again.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Removes the drafts of dead runs. Their age tells: writing a file takes seconds.
fn sweep(folder: &Path) {
    const OLD: Duration = Duration::from_secs(600);
    // Not an error: mostly the folder is not there yet, and a draft too many harms nobody.
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let draft = name.starts_with('.') && name.ends_with(DRAFT);
        let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        if draft && age().is_some_and(|age| age > OLD) {
            let _ = fs::remove_file(entry.path());
        }
    }
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

// ---------------------------------------------------------------------------- the calculated parts

/// Writes the table of positions. Its row for the patch at (i, j) is `wave(i)`, then `wave(j)`.
fn write_waves(draft: &mut Draft<'_>) -> Result<(), Error> {
    let waves: Vec<_> = (0u8..).take(GRID).map(wave).collect();
    let mut row = Vec::with_capacity(GRID * HIDDEN * 2);
    for i in &waves {
        row.clear();
        for j in &waves {
            row.extend_from_slice(i);
            row.extend_from_slice(j);
        }
        draft.write(&row)?;
    }
    Ok(())
}

/// Sines, then cosines, of the distance from the middle at 24 frequencies, the highest first.
fn wave(patch: u8) -> Vec<u8> {
    const FREQUENCIES: u8 = 24;
    let distance = f64::from(patch) - 63.5;
    let angle = |k| distance * FRAC_PI_2 * (-6.0 * f64::from(k) / f64::from(FREQUENCIES - 1)).exp2();
    let sines = (0..FREQUENCIES).map(|k| angle(k).sin());
    let cosines = (0..FREQUENCIES).map(|k| angle(k).cos());
    sines.chain(cosines).flat_map(f16).collect()
}

/// The nearest f16 as little-endian bytes; of two that are equally near, the even one.
///
/// By way of f32 some numbers would be rounded twice, so this goes straight from f64. Good for
/// magnitudes below 65520: infinities and NaN do not occur here.
fn f16(value: f64) -> [u8; 2] {
    const FRACTION_BITS: u32 = f64::MANTISSA_DIGITS - 1;
    /// The exponent, as f64 stores it, of the smallest normal f16.
    const NORMAL: u64 = 1023 - 14;
    let bits = value.to_bits();
    let sign = (bits >> 48) & 0x8000;
    let exponent = (bits >> FRACTION_BITS) & 0x7FF;
    let fraction = bits & ((1 << FRACTION_BITS) - 1) | 1 << FRACTION_BITS;
    // Of the 52 bits behind the point 10 stay. Below the normal numbers there is one fewer per power of
    // two; shifted by 63, nothing is left but a remainder that rounds to zero.
    let dropped = 42 + NORMAL.saturating_sub(exponent).min(21);
    let kept = fraction >> dropped;
    let rest = fraction & ((1 << dropped) - 1);
    let half = 1 << (dropped - 1);
    let up = rest > half || (rest == half && kept & 1 == 1);
    // `kept` has the leading 1 of a normal number, which adds the 1 that the exponent lacks here; a carry
    // out of the rounding goes to the exponent in the same way.
    let magnitude = (exponent.saturating_sub(NORMAL) << 10) + kept + u64::from(up);
    let [low, high, ..] = (sign | magnitude).to_le_bytes();
    [low, high]
}

/// A table of pseudo-random signs: `random` rows of plus or minus `magnitude`, then `plus` rows of plus
/// `magnitude`, then zeros.
struct Signs {
    seed: u64,
    rows: usize,
    random: usize,
    plus: usize,
    /// As f16 bits.
    magnitude: u16,
    /// The SHA-256 of the table's bytes. The diffusion model was trained on these very numbers: with
    /// others it would draw noise, and nothing else would say why.
    digest: &'static str,
}

/// A row for each token. The last two: start of text, and end of text, which is the padding too.
static TOKENS: Signs = Signs {
    seed: 0x746F_6B65_6E5F_6964,
    rows: 49408,
    random: 49406,
    plus: 1,
    magnitude: 0x3800, // 0.5
    digest: "579ccfdbf46018f7ca5f0f71f9eac867cb9941ad6b97c23d14a61014c7b3aaa1",
};

/// A row for each place in a prompt. Places beyond the 20th are not told apart.
static POSITIONS: Signs = Signs {
    seed: 0x706F_7369_7469_6F6E,
    rows: 77,
    random: 20,
    plus: 0,
    magnitude: 0x3400, // 0.25
    digest: "de483a97b52d72a539be16f081de64f10e70ef8cd2e79fe47ba3d3d7b7c42108",
};

impl Signs {
    /// Numbers in a row.
    const WIDTH: usize = 768;
    /// A word of the generator gives the signs of 64 numbers.
    const WORDS: usize = Self::WIDTH / 64;
    const ROW_BYTES: usize = Self::WIDTH * 2;

    fn write(&self, draft: &mut Draft<'_>) -> Result<(), Error> {
        const ROWS_AT_ONCE: usize = 64;
        let octets = self.octets();
        let mut digest = Sha256::new();
        let mut buffer = vec![0; ROWS_AT_ONCE * Self::ROW_BYTES];
        for first in (0..self.rows).step_by(ROWS_AT_ONCE) {
            let rows = ROWS_AT_ONCE.min(self.rows - first);
            let Some(chunk) = buffer.get_mut(..rows * Self::ROW_BYTES) else { break };
            for (row, out) in (first..).zip(chunk.chunks_exact_mut(Self::ROW_BYTES)) {
                self.row(row, &octets, out);
            }
            digest.update(&*chunk);
            draft.write(chunk)?;
        }
        let found = hex(&digest.finalize());
        if found != self.digest {
            return Err(Error::Digest { path: draft.path.into(), expected: self.digest, found });
        }
        Ok(())
    }

    fn row(&self, row: usize, octets: &[[u8; 16]; 256], out: &mut [u8]) {
        if row >= self.random + self.plus {
            out.fill(0);
            return;
        }
        for (index, out) in (row * Self::WORDS..).zip(out.chunks_exact_mut(64 * 2)) {
            let word = if row < self.random { mix(self.seed.wrapping_add(index as u64)) } else { u64::MAX };
            for (out, byte) in out.chunks_exact_mut(16).zip(word.to_le_bytes()) {
                out.copy_from_slice(&octets[usize::from(byte)]);
            }
        }
    }

    /// The eight numbers that the bits of each possible byte stand for, the lowest bit first. A look-up
    /// for eight numbers keeps builds without optimisation bearable.
    fn octets(&self) -> [[u8; 16]; 256] {
        let mut octets = [[0; 16]; 256];
        for (byte, octet) in octets.iter_mut().enumerate() {
            for (bit, out) in octet.chunks_exact_mut(2).enumerate() {
                let sign = if byte >> bit & 1 == 1 { 0 } else { 0x8000 };
                out.copy_from_slice(&(self.magnitude | sign).to_le_bytes());
            }
        }
        octets
    }
}

/// SplitMix64's output function: a good shuffle of 64 bits.
fn mix(i: u64) -> u64 {
    let z = i.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

// ------------------------------------------------------------------------------------------ errors

/// Why the demo model could not be unpacked. Each says what to do about it.
#[derive(Debug)]
pub enum Error {
    /// The environment names no folder for caches.
    NoCacheDir,
    /// The operating system refused something.
    Io {
        /// What was tried, to be read between "cannot" and the path.
        action: &'static str,
        /// What it was tried on.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A calculated table came out wrong.
    Digest {
        /// The file that it was for, which was not written.
        path: PathBuf,
        /// The SHA-256 that it should have.
        expected: &'static str,
        /// The SHA-256 that it has.
        found: String,
    },
    /// A file that is built into the program is not what it should be.
    Embedded {
        /// The file that was to be made from it.
        file: &'static str,
        /// What is wrong.
        reason: String,
    },
}

impl Error {
    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.into(), source }
    }

    fn embedded(file: &'static str, reason: String) -> Self {
        Self::Embedded { file, reason }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCacheDir => f.write_str(
                "no folder is known to unpack the demo model into: set WEAVE_CACHE_DIR \
                 (or HOME, to an absolute path)",
            ),
            Self::Io { action, path, source } => {
                let path = path.display();
                write!(f, "cannot {action} {path} ({source}), which the demo model needs: ")?;
                f.write_str(match source.kind() {
                    ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                        "free 100 MB of disk space, or set WEAVE_CACHE_DIR to a folder on another disk"
                    }
                    ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                        "make it writable for this user, or set WEAVE_CACHE_DIR to a folder that is"
                    }
                    ErrorKind::NotADirectory | ErrorKind::AlreadyExists | ErrorKind::IsADirectory => {
                        "remove what is in the way, or set WEAVE_CACHE_DIR to another folder"
                    }
                    _ => "try again, or set WEAVE_CACHE_DIR to another folder",
                })
            }
            Self::Digest { path, expected, found } => write!(
                f,
                "the demo model's {} was not written: a table for it has the SHA-256 {found}, \
                 not {expected}. \
                 Try again; if it stays like this, check the machine's memory or build the program anew",
                path.display()
            ),
            Self::Embedded { file, reason } => write!(
                f,
                "the demo model in this program is damaged, so {file} cannot be made ({reason}): \
                 build the program anew"
            ),
        }
    }
}

/// Without a source, because the text has it already.
impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::thread;
    use std::time::SystemTime;

    use tempfile::TempDir;

    use super::*;

    /// The files that `demo/expand.py` and `demo/make_clip.py` write, and what they may take on the disk.
    const REFERENCE: [(&str, u64, &str, u64); 3] = [
        (
            "mmdit.safetensors",
            22_234_400,
            "143c0387f118bb26c9b1cbae79d41c89bff46d24df6148c726514ce065972c40",
            10_000_000,
        ),
        (
            "taesd.safetensors",
            4_938_444,
            "b320e813be79136c2c4d71de456fe89d09e51fdd189efe06d2e44a2516d78658",
            2_000_000,
        ),
        (
            "clip_l.safetensors",
            246_386_064,
            "3420dc0e9e944c65264ddd98d9d527d3778b26d794751800610c9b5e6a8b34bb",
            80_000_000,
        ),
    ];

    fn cache() -> TempDir {
        tempfile::tempdir().expect("a temporary folder")
    }

    fn sha256(path: &Path) -> String {
        let mut digest = Sha256::new();
        let mut file = File::open(path).expect("opens");
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer).expect("reads") {
                0 => return hex(&digest.finalize()),
                n => digest.update(&buffer[..n]),
            }
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("a folder");
        let mut names: Vec<_> =
            entries.map(|e| e.expect("an entry").file_name().display().to_string()).collect();
        names.sort();
        names
    }

    /// When the folder and each file in it last changed, and which file it is.
    fn state(folder: &Path) -> Vec<(SystemTime, u64)> {
        let paths = names(folder).into_iter().map(|n| folder.join(n)).chain([folder.to_path_buf()]);
        let metadata = paths.map(|p| fs::metadata(p).expect("metadata"));
        metadata.map(|m| (m.modified().expect("a time"), m.ino())).collect()
    }

    /// The one test that writes the large file: twice, at once.
    #[test]
    fn two_at_once_write_what_the_reference_writes() {
        let cache = cache();
        // The cache itself and its parent need not exist.
        let root = cache.path().join("a/b");
        let (one, two) = thread::scope(|s| {
            let other = s.spawn(|| unpack(&root));
            (unpack(&root), other.join().expect("no panic"))
        });
        let files = one.expect("unpacks");
        assert_eq!(files, two.expect("unpacks"));
        assert_eq!(files.diffusion_model, root.join(FOLDER).join("mmdit.safetensors"));
        assert_eq!(files.taesd, root.join(FOLDER).join("taesd.safetensors"));
        assert_eq!(files.clip_l, root.join(FOLDER).join("clip_l.safetensors"));

        let folder = root.join(FOLDER);
        assert_eq!(names(&folder), ["clip_l.safetensors", "mmdit.safetensors", "taesd.safetensors"]);
        for path in [&root, &folder] {
            assert_eq!(fs::metadata(path).expect("metadata").mode() & 0o777, 0o700);
        }
        for (name, bytes, digest, on_disk) in REFERENCE {
            let path = folder.join(name);
            let metadata = fs::metadata(&path).expect("metadata");
            assert_eq!(metadata.len(), bytes, "{name}");
            assert_eq!(sha256(&path), digest, "{name}");
            let blocks = metadata.blocks() * 512;
            assert!(blocks < on_disk, "{name} takes {blocks} bytes: does this file system have no holes?");
        }

        let before = state(&folder);
        assert_eq!(unpack(&root).expect("is there"), files);
        assert_eq!(state(&folder), before, "the second time nothing is written");
    }

    #[test]
    fn the_description_has_the_tables_digests() {
        let description = include_str!("../demo/README.md");
        assert!(description.contains(TOKENS.digest));
        assert!(description.contains(POSITIONS.digest));
    }

    /// To be raised when this module writes other files from the same input.
    const FORMAT: u32 = 1;

    #[test]
    fn the_folder_is_named_after_what_the_files_are_made_from() {
        let mut digest = Sha256::new();
        digest.update(FORMAT.to_le_bytes());
        for model in [&MMDIT, &TAESD] {
            digest.update(model.compact);
        }
        assert_eq!(FOLDER, format!("demo-model-{:.16}", hex(&digest.finalize())));
    }

    #[test]
    fn damaged_files_are_written_again() {
        let cache = cache();
        let path = cache.path().join("taesd.safetensors");
        ensure(&path, &TAESD).expect("writes");
        let (_, bytes, digest, _) = REFERENCE[1];
        type Damage<'a> = &'a dyn Fn(&File) -> io::Result<()>;
        let damages: [(&str, Damage<'_>); 5] = [
            ("empty", &|f| f.set_len(0)),
            ("cut off", &|f| f.set_len(bytes - 1)),
            ("longer", &|f| f.set_len(bytes + 1)),
            ("another header length", &|f| f.write_all_at(b"x", 0)),
            ("the header's last byte", &|f| f.write_all_at(b"x", Layout::of(&TAESD).header.len() as u64 - 1)),
        ];
        for (name, damage) in damages {
            damage(&OpenOptions::new().write(true).open(&path).expect("opens")).expect(name);
            ensure(&path, &TAESD).expect(name);
            assert_eq!(sha256(&path), digest, "{name}");
        }
        fs::remove_file(&path).expect("removes");
        ensure(&path, &TAESD).expect("writes");
        assert_eq!(sha256(&path), digest);
        assert_eq!(names(cache.path()), ["taesd.safetensors"]);
    }

    #[test]
    fn drafts_of_dead_runs_go_and_others_stay() {
        let cache = cache();
        let file = |name: &str, age| {
            let file = File::create(cache.path().join(name)).expect("creates");
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).expect("sets the time");
        };
        file(".taesd.safetensors.7-0.draft", 700);
        file(".taesd.safetensors.7-1.draft", 500);
        file("taesd.safetensors", 700);
        file("notes.draft", 700);
        file(".notes", 700);
        sweep(cache.path());
        assert_eq!(
            names(cache.path()),
            [".notes", ".taesd.safetensors.7-1.draft", "notes.draft", "taesd.safetensors"]
        );
        sweep(&cache.path().join("absent"));
    }

    /// Of a dead process that had this process's number.
    #[test]
    fn a_draft_in_the_way_is_passed_by() {
        let cache = cache();
        let path = cache.path().join("x");
        let name = |n| format!(".x.{}-{n}.draft", process::id());
        let first = Draft::create(&path, 1).expect("creates");
        let count: u32 = (0..1000).find(|n| first.temporary.ends_with(name(*n))).expect("a number");
        // Tests that run beside this one count too.
        for n in count + 1..count + 100 {
            File::create(cache.path().join(name(n))).expect("creates");
        }
        let second = Draft::create(&path, 1).expect("creates");
        assert!(second.temporary.exists());
        drop((first, second));
        assert_eq!(names(cache.path()).len(), 99);
    }

    #[test]
    fn errors_name_the_path_and_the_way_out() {
        let cache = cache();
        let file = cache.path().join("file");
        File::create(&file).expect("creates");
        let text = unpack(&file.join("cache")).expect_err("not a folder").to_string();
        assert!(
            text.contains(&format!("cannot create the folder {}/cache/demo-model-", file.display())),
            "{text}"
        );
        assert!(text.contains("(Not a directory") && text.contains("remove what is in the way"), "{text}");

        let path = cache.path().join("taesd.safetensors");
        fs::create_dir(&path).expect("creates");
        let text = ensure(&path, &TAESD).expect_err("a folder").to_string();
        assert!(text.contains(&format!("cannot write {}", path.display())), "{text}");
        assert!(text.contains("remove what is in the way"), "{text}");
        assert_eq!(names(cache.path()), ["file", "taesd.safetensors"], "no draft is left");

        for (kind, way_out) in [
            (ErrorKind::StorageFull, "free 100 MB"),
            (ErrorKind::QuotaExceeded, "free 100 MB"),
            (ErrorKind::PermissionDenied, "make it writable"),
            (ErrorKind::ReadOnlyFilesystem, "make it writable"),
            (ErrorKind::Other, "try again"),
        ] {
            let text = Error::io("write", Path::new("/a/b"), kind.into()).to_string();
            assert!(text.contains("cannot write /a/b (") && text.contains(way_out), "{text}");
            assert!(text.contains("set WEAVE_CACHE_DIR"), "{text}");
        }
    }

    #[test]
    fn an_unwritable_folder_is_an_error() {
        let cache = cache();
        fs::set_permissions(cache.path(), fs::Permissions::from_mode(0o500)).expect("sets the mode");
        if File::create(cache.path().join("probe")).is_ok() {
            return; // Root may write everywhere.
        }
        let text = unpack(cache.path()).expect_err("unwritable").to_string();
        assert!(text.contains("cannot create the folder") && text.contains("make it writable"), "{text}");
    }

    #[test]
    fn the_cache_folder_comes_from_the_environment() {
        let dir = |variables: &[(&str, &str)]| {
            let find = |name: &str| variables.iter().find(|(n, _)| *n == name);
            cache_dir_from(|name| find(name).map(|(_, value)| value.into())).ok()
        };
        let [own, xdg, home] = [("WEAVE_CACHE_DIR", "/w"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")];
        assert_eq!(dir(&[own, xdg, home]), Some("/w".into()));
        assert_eq!(dir(&[xdg, home]), Some("/x/weave".into()));
        assert_eq!(dir(&[home]), Some("/h/.cache/weave".into()));
        assert_eq!(dir(&[]), None);
        assert_eq!(
            dir(&[("WEAVE_CACHE_DIR", ""), ("XDG_CACHE_HOME", ""), home]),
            Some("/h/.cache/weave".into())
        );
        assert_eq!(dir(&[("XDG_CACHE_HOME", "x"), home]), Some("/h/.cache/weave".into()));
        assert_eq!(dir(&[("HOME", "h")]), None);
        let here = env::current_dir().expect("a current folder");
        assert_eq!(dir(&[("WEAVE_CACHE_DIR", "w"), home]), Some(here.join("w")));
        assert!(Error::NoCacheDir.to_string().contains("set WEAVE_CACHE_DIR"));
    }

    #[test]
    fn layouts_are_aligned_and_lack_no_tensor() {
        for (model, count) in [(&MMDIT, 665), (&TAESD, 134), (&CLIP_L, 196)] {
            let layout = Layout::of(model);
            assert_eq!(layout.tensors.len(), count, "{}", model.file);
            assert_eq!(layout.header.len() % 8, 0, "{}", model.file);
            // The reader reads what the writer writes; a tensor's place is a multiple of its numbers' size.
            let data = vec![0; layout.bytes - layout.header.len()];
            let whole = [&layout.header[..], &data].concat();
            let found = read_compact(model.file, &whole).expect("reads");
            assert_eq!(found.len(), count, "{}", model.file);
            for tensor in &layout.tensors {
                let place = &found[tensor.name.as_str()];
                let offset = place.data.as_ptr().addr() - whole.as_ptr().addr();
                assert_eq!(place.shape, tensor.shape, "{}", tensor.name);
                assert_eq!(offset % if tensor.is_vector() { 4 } else { 2 }, 0, "{}", tensor.name);
            }
        }
    }

    #[test]
    fn f16_is_rounded_to_the_nearest_even() {
        let e = f64::exp2;
        for (value, bits) in [
            (0.0, 0x0000),
            (-0.0, 0x8000),
            (1.0, 0x3C00),
            (-1.0, 0xBC00),
            (0.5, 0x3800),
            (0.1, 0x2E66),
            (65504.0, 0x7BFF),
            // Halfway: to the even one, up or down.
            (1.0 + e(-11.0), 0x3C00),
            (1.0 + 3.0 * e(-11.0), 0x3C02),
            // A little more than halfway, so little that f32 would lose it.
            (1.0 + e(-11.0) + e(-40.0), 0x3C01),
            (1.0 + 3.0 * e(-11.0) - e(-40.0), 0x3C01),
            // The carry goes to the exponent.
            (2.0 - e(-12.0), 0x4000),
            // Around the smallest normal number.
            (e(-14.0), 0x0400),
            (e(-14.0) - e(-24.0), 0x03FF),
            (e(-14.0) - e(-26.0), 0x0400),
            // Around the smallest of all.
            (e(-24.0), 0x0001),
            (-3.0 * e(-25.0), 0x8002),
            (e(-25.0), 0x0000),
            (e(-25.0) + e(-60.0), 0x0001),
            (e(-26.0), 0x0000),
            (1e-300, 0x0000),
            (f64::from_bits(1), 0x0000),
        ] {
            assert_eq!(u16::from_le_bytes(f16(value)), bits, "{value:e}");
        }
    }

    /// Values that numpy computed.
    #[test]
    fn waves_are_those_that_the_model_was_trained_with() {
        let wave = |patch| -> Vec<u16> {
            wave(patch).chunks(2).map(|b| u16::from_le_bytes(b.try_into().expect("two bytes"))).collect()
        };
        for (patch, values) in [
            (0, [0x39A8, 0xBC00, 0xBC00, 0x39A8, 0x2248]),
            (63, [0xB9A8, 0xB8E0, 0xA248, 0x39A8, 0x3C00]),
            (127, [0xB9A8, 0x3C00, 0x3C00, 0x39A8, 0x2248]),
        ] {
            assert_eq!([0, 1, 23, 24, 47].map(|i| wave(patch)[i]), values, "{patch}");
        }
    }

    #[test]
    fn a_smaller_tensor_fills_the_corner() {
        let mut full = [0; 2 * 3 * 2];
        assert!(fill_corner(&mut full, &[2, 3], &[1, 2, 3, 4], &[1, 2]));
        assert_eq!(full, [1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0]);
        let mut full = [0; 2 * 2 * 2];
        assert!(fill_corner(&mut full, &[2, 2, 1], &[1, 2, 3, 4], &[2, 1, 1]));
        assert_eq!(full, [1, 2, 0, 0, 3, 4, 0, 0]);
        assert!(!fill_corner(&mut full, &[2, 2], &[0; 12], &[2, 3]), "too wide");
        assert!(!fill_corner(&mut full, &[2, 2], &[0; 12], &[3, 2]), "too high");
        assert!(!fill_corner(&mut full, &[4], &[0; 8], &[2, 2]), "too many dimensions");
    }

    /// A safetensors file with 8 bytes of data.
    fn compact(header: &str) -> &'static [u8] {
        let length = (header.len() as u64).to_le_bytes();
        [&length[..], header.as_bytes(), &[1, 2, 3, 4, 5, 6, 7, 8]].concat().leak()
    }

    #[test]
    fn a_compact_file_is_taken_apart() {
        let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]},"b":{"dtype":"F16","shape":[1,2],"data_offsets":[0,4]}}  "#;
        let found = read_compact("x", compact(header)).expect("reads");
        assert_eq!(found.len(), 2);
        assert_eq!(found["a"], Learned { shape: vec![1], data: &[5, 6, 7, 8] });
        assert_eq!(found["b"], Learned { shape: vec![1, 2], data: &[1, 2, 3, 4] });

        for header in [
            "",
            "{",
            "{}",
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#,
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}"#,
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}}"#,
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,8]}}"#,
            r#"{"a":{"dtype":"F32","shape":[],"data_offsets":[4,8]}}"#,
            r#"{"a":{"dtype":"F32","shape":[0],"data_offsets":[4,4]}}"#,
            r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[4,8]}}"#,
            r#"{"a":{"dtype":"F16","shape":[1],"data_offsets":[4,8]}}"#,
            r#"{"a":{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[4,8]}}"#,
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4]}}"#,
        ] {
            let text = read_compact("x", compact(header)).expect_err(header).to_string();
            assert!(text.contains("x cannot be made (the header is not understood"), "{text}");
        }
        for bytes in
            [&[0; 7][..], &[9, 0, 0, 0, 0, 0, 0, 0, b'{'], &[255; 16], &[1, 0, 0, 0, 0, 0, 0, 0, 255]]
        {
            assert!(read_compact("x", bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn wrong_input_leaves_no_file() {
        fn vector() -> Vec<Tensor> {
            vec![Tensor::new("a".into(), &[1], Fill::Zeros)]
        }
        fn table() -> Vec<Tensor> {
            static WRONG: Signs = Signs { seed: 1, ..POSITIONS };
            vec![Tensor::new("a".into(), &[WRONG.rows, Signs::WIDTH], Fill::Signs(&WRONG))]
        }
        let unknown = compact(r#"{"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#);
        let large = compact(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#);
        let cache = cache();
        for (compact, tensors, expected) in [
            (unknown, vector as fn() -> _, "b has no place in the model"),
            (large, vector, "a does not fit"),
            (&[], table, "the SHA-256"),
        ] {
            let model = Model { file: "x", compact, tensors };
            let text = ensure(&cache.path().join("x"), &model).expect_err(expected).to_string();
            assert!(text.contains(expected), "{text}");
            assert_eq!(names(cache.path()), [""; 0], "{expected}");
        }
    }
}
