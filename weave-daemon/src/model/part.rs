//! The parts of SD 3.5: which tensors the engine asks each of them for, and by which names it takes
//! them.
//!
//! This follows the engine's loader: what passes here, it loads, and what it would refuse with a line
//! in its log is named here first. The tests hold both against each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::header::{Shape, Tensor};

/// A part of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The diffusion model.
    Mmdit,
    /// Text encoder.
    ClipL,
    /// Text encoder.
    ClipG,
    /// Text encoder.
    T5,
    /// Makes pixels of latents.
    Vae,
    /// The same, smaller and coarser.
    Taesd,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mmdit => "the diffusion model",
            Self::ClipL => "CLIP-L",
            Self::ClipG => "CLIP-G",
            Self::T5 => "T5-XXL",
            Self::Vae => "the VAE",
            Self::Taesd => "TAESD",
        })
    }
}

/// A part's tensors by the names that the engine gives them, each with the name in its file.
pub type Tensors<'a> = BTreeMap<String, (&'a str, &'a Tensor)>;

impl Part {
    /// Text encoders. One of them has to be there.
    pub const ENCODERS: [Self; 3] = [Self::ClipL, Self::ClipG, Self::T5];

    /// Which part a tensor belongs to and what it is called there, given the setting that names its
    /// file. `None`: the engine makes no use of it.
    #[must_use]
    pub fn of(setting: &str, name: &str) -> Option<(Self, String)> {
        // The engine puts this before the names in a file of a part.
        let added = match setting {
            "diffusion_model" => "model.diffusion_model.",
            "clip_l" => "text_encoders.clip_l.transformer.",
            "clip_g" => "text_encoders.clip_g.transformer.",
            "t5xxl" => "text_encoders.t5xxl.transformer.",
            "vae" => "vae.",
            "taesd" => "tae.",
            _ => "",
        };
        let full = if name.starts_with(added) { name.to_owned() } else { format!("{added}{name}") };
        let places: [(&str, Self); 10] = [
            ("model.diffusion_model.", Self::Mmdit),
            ("diffusion_model.", Self::Mmdit),
            ("unet.", Self::Mmdit),
            ("transformer.", Self::Mmdit),
            ("text_encoders.clip_l", Self::ClipL),
            ("text_encoders.clip_g", Self::ClipG),
            ("text_encoders.t5xxl", Self::T5),
            ("first_stage_model.", Self::Vae),
            ("vae.", Self::Vae),
            ("tae.", Self::Taesd),
        ];
        let (rest, part) =
            places.into_iter().find_map(|(prefix, part)| Some((full.strip_prefix(prefix)?, part)))?;
        let rest = rest.strip_prefix(".transformer.").unwrap_or(rest);
        let name = match part {
            Self::ClipL | Self::ClipG if rest == "text_projection.weight" => {
                "text_model.text_projection".into()
            }
            Self::T5 => t5_name(rest),
            Self::Vae => vae_name(rest),
            _ => rest.to_owned(),
        };
        Some((part, name))
    }

    /// What the engine asks for, given what is there. The shapes have their slowest dimension first.
    fn needs(self, tensors: &Tensors<'_>) -> Vec<Need> {
        let mut needs = Needs(Vec::new());
        match self {
            Self::Mmdit => mmdit(&mut needs, &Mmdit::of(tensors)),
            Self::ClipL => clip(&mut needs, tensors, &Clip { width: 768, layers: 12, projection: None }),
            Self::ClipG => {
                clip(&mut needs, tensors, &Clip { width: 1280, layers: 32, projection: Some(1280) })
            }
            Self::T5 => t5(&mut needs),
            Self::Vae => vae(&mut needs, tensors),
            Self::Taesd => taesd(&mut needs),
        }
        needs.0
    }

    /// Holds a part against what the engine asks for.
    ///
    /// # Errors
    /// [`Fault`]: the first thing that is wrong with it.
    pub fn check(self, tensors: &Tensors<'_>) -> Result<Content, Fault> {
        let scaled = |name: &str| {
            [".scale_weight", ".weight_scale", "scaled_fp8"].iter().any(|end| name.ends_with(end))
        };
        if let Some((name, _)) = tensors.values().find(|(name, _)| scaled(name)) {
            return Err(Fault::Scaled((*name).to_owned()));
        }
        if self == Self::Mmdit {
            Mmdit::of(tensors).check()?;
        }
        let needs = self.needs(tensors);
        let absent: Vec<_> = needs.iter().filter(|need| !tensors.contains_key(&need.name)).collect();
        let mut content = Content { part: self, numbers: 0, bytes: 0, kind: "", mmdit: None };
        let mut kinds = BTreeMap::<&str, u64>::new();
        for need in &needs {
            let Some((name, tensor)) = tensors.get(&need.name) else { continue };
            if !same(tensor.shape(), &need.shape) {
                return Err(Fault::Shape {
                    name: (*name).to_owned(),
                    found: Shape(tensor.shape()).to_string(),
                    needed: Shape(&need.shape).to_string(),
                });
            }
            if !tensor.kind.is_weight {
                return Err(Fault::Type { name: (*name).to_owned(), found: tensor.kind.name });
            }
            content.numbers += tensor.numbers();
            content.bytes += loaded(&need.name, tensor);
            *kinds.entry(tensor.kind.name).or_default() += tensor.numbers();
        }
        if let Some(first) = absent.first() {
            return Err(Fault::Missing { name: first.name.clone(), missing: absent.len(), of: needs.len() });
        }
        content.kind = kinds.into_iter().max_by_key(|(_, numbers)| *numbers).map_or("", |(kind, _)| kind);
        content.mmdit = (self == Self::Mmdit).then(|| Mmdit::of(tensors));
        Ok(content)
    }
}

/// What a tensor takes once the engine has it in memory.
fn loaded(name: &str, tensor: &Tensor) -> u64 {
    // Rows of a table are looked up in few types; positions are always f32.
    const LOOKED_UP: [&str; 6] = ["f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"];
    let is_table = name == "shared.weight" || name.ends_with("token_embedding.weight");
    match tensor.kind.name {
        kind if name == "pos_embed"
            || (is_table && !LOOKED_UP.contains(&kind) && !kind.starts_with("f8")) =>
        {
            4 * tensor.numbers()
        }
        // fp8 becomes f16.
        "f8_e4m3" | "f8_e5m2" => 2 * tensor.numbers(),
        "f64" => 4 * tensor.numbers(),
        _ => tensor.bytes,
    }
}

/// What is wrong with a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Tensors are missing, of which this is the first.
    Missing {
        /// What the engine calls it.
        name: String,
        /// How many are missing.
        missing: usize,
        /// Of how many.
        of: usize,
    },
    /// A tensor is of another shape.
    Shape {
        /// Its name in the file.
        name: String,
        /// Its shape.
        found: String,
        /// The shape that it needs.
        needed: String,
    },
    /// A tensor's numbers can't be used.
    Type {
        /// Its name in the file.
        name: String,
        /// Its type.
        found: &'static str,
    },
    /// Numbers that count only together with others, which the engine doesn't know of.
    Scaled(String),
    /// The diffusion model has this many blocks.
    Blocks(u64),
    /// Its heads don't divide its width.
    Heads {
        /// The width.
        hidden: u64,
        /// The number of heads, and of blocks.
        blocks: u64,
    },
    /// It has no places for large images.
    Positions(u64),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { name, missing, of } if missing == of => {
                write!(f, "none of its {of} tensors is there, such as {name}")
            }
            Self::Missing { name, missing: 1, .. } => write!(f, "the tensor {name} is missing"),
            Self::Missing { name, missing, of } => {
                write!(f, "{missing} of its {of} tensors are missing, the first is {name}")
            }
            Self::Shape { name, found, needed } => {
                write!(f, "the tensor {name} has the shape {found}, and {needed} is needed")
            }
            Self::Type { name, found } => {
                write!(f, "the tensor {name} is of the type {found}, of which the engine makes no weights")
            }
            Self::Scaled(name) => write!(
                f,
                "it is \"scaled\" fp8 (it has a tensor {name}), whose scales the engine doesn't apply: get fp16, plain \
                 fp8 or GGUF"
            ),
            Self::Blocks(blocks) => {
                write!(f, "it has {blocks} blocks; SD 3.5 Medium has 24 and Large has 38")
            }
            Self::Heads { hidden, blocks } => {
                write!(f, "its hidden size is {hidden}, which its {blocks} heads can't share")
            }
            Self::Positions(positions) => {
                write!(f, "its pos_embed has {positions} positions: a square, of at least 128×128, is needed")
            }
        }
    }
}

/// A part that is all there.
#[derive(Clone, Debug)]
pub struct Content {
    /// Which.
    pub part: Part,
    /// How many weights it has.
    pub numbers: u64,
    /// What they take in memory, about.
    pub bytes: u64,
    /// How most of them are stored.
    pub kind: &'static str,
    mmdit: Option<Mmdit>,
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.mmdit {
            None => self.part.fmt(f)?,
            Some(mmdit) => mmdit.fmt(f)?,
        }
        write!(f, ", {}", self.kind)
    }
}

/// The diffusion model's measures, as the engine takes them from the tensors.
#[derive(Clone, Copy, Debug)]
struct Mmdit {
    blocks: u64,
    /// How many blocks, from the first on, have a second attention in their image half.
    dual: u64,
    hidden: u64,
    positions: u64,
    norm: Option<Norm>,
}

/// What is done to the queries and keys of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Norm {
    Rms,
    Layer,
}

/// The fewest blocks that the engine takes.
const FEWEST_BLOCKS: u64 = 24;
/// Those of SD 3.5 Large.
const MOST_BLOCKS: u64 = 38;
/// Places along a side that an image of 2048 pixels takes, the largest that can be asked for.
const FEWEST_PLACES: u64 = 128;

impl Mmdit {
    fn of(tensors: &Tensors<'_>) -> Self {
        let shape = |name: &str| tensors.get(name).map_or(&[][..], |(_, tensor)| tensor.shape());
        let mut this = Self { blocks: FEWEST_BLOCKS, dual: 0, hidden: 0, positions: 0, norm: None };
        for name in tensors.keys() {
            let Some((index, rest)) = name.strip_prefix("joint_blocks.").and_then(|n| n.split_once('.'))
            else {
                continue;
            };
            let after = index.parse::<u32>().map_or(u64::MAX, |index| u64::from(index) + 1);
            this.blocks = this.blocks.max(after);
            if rest.contains("attn2") {
                this.dual = this.dual.max(after);
            }
            if rest.contains("attn.ln") {
                this.norm = Some(if rest.contains(".bias") { Norm::Layer } else { Norm::Rms });
            }
        }
        this.hidden = shape("x_embedder.proj.weight").first().copied().unwrap_or(0);
        this.positions = match shape("pos_embed") {
            [_, positions, _] => *positions,
            // Where GGUF has left the first dimension away, the engine doesn't look at the others.
            _ if this.dual > 0 => 384 * 384,
            _ => 192 * 192,
        };
        this
    }

    fn check(&self) -> Result<(), Fault> {
        let Self { blocks, hidden, positions, .. } = *self;
        if blocks > MOST_BLOCKS {
            return Err(Fault::Blocks(blocks));
        }
        if !hidden.is_multiple_of(blocks) {
            return Err(Fault::Heads { hidden, blocks });
        }
        let side = positions.isqrt();
        if side * side != positions || side < FEWEST_PLACES {
            return Err(Fault::Positions(positions));
        }
        Ok(())
    }
}

impl fmt::Display for Mmdit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { blocks, hidden, .. } = self;
        match (self.blocks, self.hidden, self.dual, self.norm) {
            (24, 1536, 13, Some(_)) => f.write_str("SD 3.5 Medium")?,
            (38, 2432, 0, Some(_)) => f.write_str("SD 3.5 Large or Large Turbo")?,
            (24, 1536, 0, None) => f.write_str("SD 3 Medium")?,
            _ => write!(f, "a model of SD 3.5's kind with hidden size {hidden}")?,
        }
        write!(f, ", {blocks} blocks")
    }
}

/// A tensor that the engine asks for.
struct Need {
    name: String,
    shape: Vec<u64>,
}

struct Needs(Vec<Need>);

impl Needs {
    fn tensor(&mut self, name: String, shape: &[u64]) {
        self.0.push(Need { name, shape: shape.to_vec() });
    }

    fn bias(&mut self, name: &str, outputs: u64) {
        self.tensor(format!("{name}.bias"), &[outputs]);
    }

    fn linear(&mut self, name: &str, inputs: u64, outputs: u64) {
        self.tensor(format!("{name}.weight"), &[outputs, inputs]);
        self.bias(name, outputs);
    }

    fn convolution(&mut self, name: &str, inputs: u64, outputs: u64, side: u64) {
        self.tensor(format!("{name}.weight"), &[outputs, inputs, side, side]);
        self.bias(name, outputs);
    }

    fn norm(&mut self, name: &str, width: u64) {
        self.tensor(format!("{name}.weight"), &[width]);
        self.bias(name, width);
    }
}

/// Whether shapes are the same to the engine, which fills up with dimensions of 1.
fn same(a: &[u64], b: &[u64]) -> bool {
    let (longer, shorter) = if a.len() > b.len() { (a, b) } else { (b, a) };
    let (more, rest) = longer.split_at(longer.len() - shorter.len());
    rest == shorter && more.iter().all(|n| *n == 1)
}

fn mmdit(needs: &mut Needs, mmdit: &Mmdit) {
    let Mmdit { blocks, dual, hidden, positions, norm } = *mmdit;
    needs.convolution("x_embedder.proj", 16, hidden, 2);
    needs.tensor("pos_embed".into(), &[1, positions, hidden]);
    needs.linear("t_embedder.mlp.0", 256, hidden);
    needs.linear("t_embedder.mlp.2", hidden, hidden);
    // CLIP-L's and CLIP-G's pooled vectors, one behind the other.
    needs.linear("y_embedder.mlp.0", 768 + 1280, hidden);
    needs.linear("y_embedder.mlp.2", hidden, hidden);
    needs.linear("context_embedder", 4096, hidden);
    for index in 0..blocks {
        for half in ["context_block", "x_block"] {
            let is_text = half == "context_block";
            // Nothing reads the text after the last block.
            let is_last = is_text && index + 1 == blocks;
            let is_dual = !is_text && index < dual;
            let block = format!("joint_blocks.{index}.{half}");
            let modulations = match (is_last, is_dual) {
                (true, _) => 2,
                (_, true) => 9,
                _ => 6,
            };
            needs.linear(&format!("{block}.adaLN_modulation.1"), hidden, modulations * hidden);
            for name in if is_dual { &["attn", "attn2"][..] } else { &["attn"] } {
                let attention = format!("{block}.{name}");
                needs.linear(&format!("{attention}.qkv"), hidden, 3 * hidden);
                if !is_last {
                    needs.linear(&format!("{attention}.proj"), hidden, hidden);
                }
                for ln in ["ln_q", "ln_k"] {
                    let (name, head) = (format!("{attention}.{ln}"), hidden / blocks);
                    match norm {
                        Some(Norm::Rms) => needs.tensor(format!("{name}.weight"), &[head]),
                        Some(Norm::Layer) => needs.norm(&name, head),
                        None => {}
                    }
                }
            }
            if !is_last {
                needs.linear(&format!("{block}.mlp.fc1"), hidden, 4 * hidden);
                needs.linear(&format!("{block}.mlp.fc2"), 4 * hidden, hidden);
            }
        }
    }
    needs.linear("final_layer.linear", hidden, 2 * 2 * 16);
    needs.linear("final_layer.adaLN_modulation.1", hidden, 2 * hidden);
}

struct Clip {
    width: u64,
    layers: u64,
    projection: Option<u64>,
}

fn clip(needs: &mut Needs, tensors: &Tensors<'_>, clip: &Clip) {
    let Clip { width, layers, projection } = *clip;
    // Query, key and value in one matrix, if any layer has them so.
    let joined = tensors.keys().any(|name| name.contains("self_attn.in_proj"));
    needs.tensor("text_model.embeddings.token_embedding.weight".into(), &[49_408, width]);
    needs.tensor("text_model.embeddings.position_embedding.weight".into(), &[77, width]);
    for index in 0..layers {
        let layer = format!("text_model.encoder.layers.{index}");
        if joined {
            needs.linear(&format!("{layer}.self_attn.in_proj"), width, 3 * width);
        } else {
            for name in ["q_proj", "k_proj", "v_proj"] {
                needs.linear(&format!("{layer}.self_attn.{name}"), width, width);
            }
        }
        needs.linear(&format!("{layer}.self_attn.out_proj"), width, width);
        needs.linear(&format!("{layer}.mlp.fc1"), width, 4 * width);
        needs.linear(&format!("{layer}.mlp.fc2"), 4 * width, width);
        needs.norm(&format!("{layer}.layer_norm1"), width);
        needs.norm(&format!("{layer}.layer_norm2"), width);
    }
    needs.norm("text_model.final_layer_norm", width);
    if let Some(projection) = projection {
        needs.tensor("text_model.text_projection".into(), &[width, projection]);
    }
}

fn t5(needs: &mut Needs) {
    const WIDTH: u64 = 4096;
    const INNER: u64 = 10_240;
    needs.tensor("shared.weight".into(), &[32_128, WIDTH]);
    for index in 0..24 {
        let block = format!("encoder.block.{index}");
        for name in ["q", "k", "v", "o"] {
            needs.tensor(format!("{block}.layer.0.SelfAttention.{name}.weight"), &[WIDTH, WIDTH]);
        }
        if index == 0 {
            needs.tensor(format!("{block}.layer.0.SelfAttention.relative_attention_bias.weight"), &[32, 64]);
        }
        needs.tensor(format!("{block}.layer.0.layer_norm.weight"), &[WIDTH]);
        for name in ["wi_0", "wi_1"] {
            needs.tensor(format!("{block}.layer.1.DenseReluDense.{name}.weight"), &[INNER, WIDTH]);
        }
        needs.tensor(format!("{block}.layer.1.DenseReluDense.wo.weight"), &[WIDTH, INNER]);
        needs.tensor(format!("{block}.layer.1.layer_norm.weight"), &[WIDTH]);
    }
    needs.tensor("encoder.final_layer_norm.weight".into(), &[WIDTH]);
}

/// T5's names, where the file has those of llama.cpp.
fn t5_name(name: &str) -> String {
    const PIECES: [(&str, &str); 12] = [
        ("attn_q", "layer.0.SelfAttention.q"),
        ("attn_k", "layer.0.SelfAttention.k"),
        ("attn_v", "layer.0.SelfAttention.v"),
        ("attn_o", "layer.0.SelfAttention.o"),
        ("attn_rel_b", "layer.0.SelfAttention.relative_attention_bias"),
        ("attn_norm", "layer.0.layer_norm"),
        ("ffn_gate", "layer.1.DenseReluDense.wi_0"),
        ("ffn_up", "layer.1.DenseReluDense.wi_1"),
        ("ffn_down", "layer.1.DenseReluDense.wo"),
        ("ffn_norm", "layer.1.layer_norm"),
        ("output_norm", "final_layer_norm"),
        ("token_embd", "shared"),
    ];
    let parts: Vec<_> = name.split('.').collect();
    let known = |piece: &str| PIECES.iter().find(|(theirs, _)| *theirs == piece).map(|(_, ours)| *ours);
    let ours = match parts[..] {
        ["enc", "blk", index, piece, last] => {
            known(piece).map(|piece| format!("encoder.block.{index}.{piece}.{last}"))
        }
        ["enc", piece, last] => known(piece).map(|piece| format!("encoder.{piece}.{last}")),
        [piece, last] => known(piece).map(|piece| format!("{piece}.{last}")),
        _ => None,
    };
    ours.unwrap_or_else(|| name.to_owned())
}

/// The channels of a latent.
const LATENT: u64 = 16;

fn vae(needs: &mut Needs, tensors: &Tensors<'_>) {
    const WIDTHS: [u64; 4] = [1, 2, 4, 4];
    let shape = |name: &str| tensors.get(name).map_or(&[][..], |(_, tensor)| tensor.shape());
    let resnet = |needs: &mut Needs, name: &str, inputs: u64, outputs: u64| {
        needs.norm(&format!("{name}.norm1"), inputs);
        needs.convolution(&format!("{name}.conv1"), inputs, outputs, 3);
        needs.norm(&format!("{name}.norm2"), outputs);
        needs.convolution(&format!("{name}.conv2"), outputs, outputs, 3);
        if inputs != outputs {
            needs.convolution(&format!("{name}.nin_shortcut"), inputs, outputs, 1);
        }
    };
    let middle = |needs: &mut Needs, coder: &str, width: u64| {
        resnet(needs, &format!("{coder}.mid.block_1"), width, width);
        let attention = format!("{coder}.mid.attn_1");
        needs.norm(&format!("{attention}.norm"), width);
        // Matrices, or convolutions of one pixel.
        let is_matrix = shape(&format!("{attention}.proj_out.weight")).len() == 2;
        for name in ["q", "k", "v", "proj_out"] {
            let name = format!("{attention}.{name}");
            if is_matrix {
                needs.linear(&name, width, width);
            } else {
                needs.convolution(&name, width, width, 1);
            }
        }
        resnet(needs, &format!("{coder}.mid.block_2"), width, width);
    };

    // There are decoders of other widths.
    let base = match shape("decoder.conv_in.weight") {
        [outputs, _, _, _] if *outputs > 0 && outputs.is_multiple_of(4) => outputs / 4,
        _ => 128,
    };
    let mut width = 4 * base;
    needs.convolution("decoder.conv_in", LATENT, width, 3);
    middle(needs, "decoder", width);
    for (level, factor) in WIDTHS.into_iter().enumerate().rev() {
        for block in 0..3 {
            resnet(needs, &format!("decoder.up.{level}.block.{block}"), width, factor * base);
            width = factor * base;
        }
        if level > 0 {
            needs.convolution(&format!("decoder.up.{level}.upsample.conv"), width, width, 3);
        }
    }
    needs.norm("decoder.norm_out", width);
    needs.convolution("decoder.conv_out", width, 3, 3);

    // Nothing is encoded, but the engine loads it all the same.
    let mut width = 128;
    needs.convolution("encoder.conv_in", 3, width, 3);
    for (level, factor) in WIDTHS.into_iter().enumerate() {
        for block in 0..2 {
            resnet(needs, &format!("encoder.down.{level}.block.{block}"), width, factor * 128);
            width = factor * 128;
        }
        if level < 3 {
            needs.convolution(&format!("encoder.down.{level}.downsample.conv"), width, width, 3);
        }
    }
    middle(needs, "encoder", width);
    needs.norm("encoder.norm_out", width);
    needs.convolution("encoder.conv_out", width, 2 * LATENT, 3);
}

/// The VAE's names, where the file has those of diffusers.
fn vae_name(name: &str) -> String {
    fn leaf(piece: &str) -> &str {
        if piece == "conv_shortcut" { "nin_shortcut" } else { piece }
    }
    fn attention(piece: &str) -> &str {
        match piece {
            "group_norm" => "norm",
            "query" | "to_q" => "q",
            "key" | "to_k" => "k",
            "value" | "to_v" => "v",
            "proj_attn" | "to_out" => "proj_out",
            _ => "",
        }
    }
    /// Theirs count from the small end.
    fn level(index: &str) -> &str {
        match index {
            "0" => "3",
            "1" => "2",
            "2" => "1",
            "3" => "0",
            other => other,
        }
    }
    let parts: Vec<_> = name.split('.').collect();
    match parts[..] {
        [coder, "down_blocks", i, "resnets", j, piece, last] => {
            format!("{coder}.down.{i}.block.{j}.{}.{last}", leaf(piece))
        }
        [coder, "down_blocks", i, "downsamplers", "0", piece, last] => {
            format!("{coder}.down.{i}.downsample.{piece}.{last}")
        }
        [coder, "up_blocks", i, "resnets", j, piece, last] => {
            let i = level(i);
            format!("{coder}.up.{i}.block.{j}.{}.{last}", leaf(piece))
        }
        [coder, "up_blocks", i, "upsamplers", "0", piece, last] => {
            let i = level(i);
            format!("{coder}.up.{i}.upsample.{piece}.{last}")
        }
        [coder, "mid_block", "resnets", i @ ("0" | "1"), piece, last] => {
            let i = if i == "0" { 1 } else { 2 };
            format!("{coder}.mid.block_{i}.{}.{last}", leaf(piece))
        }
        [coder, "mid_block", "attentions", "0", piece, .., last] if !attention(piece).is_empty() => {
            format!("{coder}.mid.attn_1.{}.{last}", attention(piece))
        }
        [coder, "conv_norm_out", last] => format!("{coder}.norm_out.{last}"),
        _ => name.to_owned(),
    }
}

fn taesd(needs: &mut Needs) {
    const WIDTH: u64 = 64;
    /// Layers: the first one, blocks, resizing convolutions, the last one.
    struct Coder {
        name: &'static str,
        inputs: u64,
        outputs: u64,
        blocks: [u64; 10],
        resizes: [u64; 3],
        last: u64,
    }
    for coder in [
        Coder {
            name: "decoder",
            inputs: LATENT,
            outputs: 3,
            blocks: [2, 3, 4, 7, 8, 9, 12, 13, 14, 17],
            resizes: [6, 11, 16],
            last: 18,
        },
        Coder {
            name: "encoder",
            inputs: 3,
            outputs: LATENT,
            blocks: [1, 3, 4, 5, 7, 8, 9, 11, 12, 13],
            resizes: [2, 6, 10],
            last: 14,
        },
    ] {
        let layer = |index: u64| format!("{}.layers.{index}", coder.name);
        needs.convolution(&layer(0), coder.inputs, WIDTH, 3);
        for block in coder.blocks {
            for step in [0, 2, 4] {
                needs.convolution(&format!("{}.conv.{step}", layer(block)), WIDTH, WIDTH, 3);
            }
        }
        for resize in coder.resizes {
            needs.tensor(format!("{}.weight", layer(resize)), &[WIDTH, WIDTH, 3, 3]);
        }
        needs.convolution(&layer(coder.last), WIDTH, coder.outputs, 3);
    }
}

/// What a file is, going by its tensors, for one that isn't what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SD 3 or 3.5, with whatever else is in it; whether the names have the prefix of a whole checkpoint.
    Sd3 {
        /// They have it.
        whole: bool,
    },
    /// A part of it, that can stand in a file of its own.
    Part(Part),
    /// Something else.
    Other(String),
    /// Nothing is in it.
    Empty,
    /// Nobody knows.
    Unknown,
}

impl Kind {
    /// Goes by names as they are in files, and by the one shape that tells sizes apart.
    #[must_use]
    pub fn of<'a>(tensors: impl Iterator<Item = (&'a str, &'a Tensor)>) -> Self {
        let all: BTreeMap<&str, &Tensor> = tensors.collect();
        if all.is_empty() {
            return Self::Empty;
        }
        let pieces: BTreeSet<&str> = all.keys().flat_map(|name| name.split('.')).collect();
        let begins = |prefix: &str| all.keys().any(|name| name.starts_with(prefix));
        let shape = |suffix: &str| {
            all.iter().find(|(name, _)| name.ends_with(suffix)).map(|(_, tensor)| tensor.shape())
        };
        let other = |text: &str| Self::Other(text.to_owned());
        if pieces.iter().any(|piece| *piece == "lora" || piece.starts_with("lora_")) {
            return other("a LoRA");
        }
        if pieces.iter().any(|piece| piece.starts_with("controlnet_")) {
            return other("a ControlNet");
        }
        if pieces.contains("joint_blocks") {
            let whole = all.keys().any(|name| name.contains("diffusion_model.joint_blocks."));
            return Self::Sd3 { whole };
        }
        if pieces.contains("double_blocks") || pieces.contains("single_transformer_blocks") {
            return other("a Flux model");
        }
        if pieces.contains("transformer_blocks") && pieces.contains("norm1_context") {
            return other("an SD 3 model under the names of diffusers, which the engine doesn't know");
        }
        let unet = begins("model.diffusion_model.input_blocks.")
            || begins("input_blocks.")
            || begins("unet.down_blocks.")
            || begins("down_blocks.");
        if unet {
            let large = pieces.contains("label_emb")
                || pieces.contains("add_embedding")
                || begins("conditioner.embedders.1.");
            return other(if large { "an SDXL model" } else { "an SD 1 or SD 2 model" });
        }
        match shape("embeddings.token_embedding.weight").or_else(|| shape("model.token_embedding.weight")) {
            Some([_, 768]) => return Self::Part(Part::ClipL),
            Some([_, 1280]) => return Self::Part(Part::ClipG),
            Some([_, width]) => {
                return Self::Other(format!("a CLIP text encoder with hidden size {width}"));
            }
            _ => {}
        }
        if begins("encoder.block.") || begins("enc.blk.") || begins("text_encoders.t5xxl.") {
            return match shape("shared.weight").or_else(|| shape("token_embd.weight")) {
                Some([32_128, 4096]) => Self::Part(Part::T5),
                Some([words, width]) => Self::Other(format!(
                    "a T5 text encoder with hidden size {width} and {words} words (T5-XXL has 4096 and 32128)"
                )),
                _ => Self::Part(Part::T5),
            };
        }
        match shape("decoder.conv_in.weight") {
            Some([_, LATENT, ..]) => return Self::Part(Part::Vae),
            Some([_, channels, ..]) => return Self::Other(vae_of("a VAE", *channels)),
            _ => {}
        }
        match shape("decoder.layers.0.weight").or_else(|| shape("decoder.1.weight")) {
            Some([_, LATENT, ..]) => Self::Part(Part::Taesd),
            Some([_, channels, ..]) => Self::Other(vae_of("a TAESD", *channels)),
            _ => Self::Unknown,
        }
    }
}

fn vae_of(what: &str, channels: u64) -> String {
    let whose = if channels == 4 { ", as SD 1, SD 2 and SDXL have it" } else { "" };
    format!("{what} with {channels} latent channels{whose} (SD 3.5 has {LATENT})")
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sd3 { whole: true } => f.write_str("an SD 3 checkpoint"),
            Self::Sd3 { whole: false } => f.write_str("the diffusion model of SD 3 alone"),
            Self::Part(Part::ClipL) => f.write_str("CLIP-L (hidden size 768)"),
            Self::Part(Part::ClipG) => f.write_str("CLIP-G (hidden size 1280)"),
            Self::Part(Part::Vae) => f.write_str("a VAE"),
            Self::Part(part) => part.fmt(f),
            Self::Other(what) => f.write_str(what),
            Self::Empty => f.write_str("without any tensor"),
            Self::Unknown => f.write_str("of no kind that weaved knows"),
        }
    }
}
