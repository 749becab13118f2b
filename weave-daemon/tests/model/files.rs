//! Model files that have all of a header and nothing behind it: their weights are holes.

#![allow(dead_code, unreachable_pub, reason = "each test program uses its part of it")]

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A tensor's name and its shape, slowest dimension first.
pub type Tensor = (String, Vec<u64>);

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Of this type, with its size.
    Safetensors(&'static str, u64),
    /// Matrices of this type, with the numbers in a block of it and the block's size; the rest is f16.
    Gguf(u32, u64, u64),
}

pub const F16: Format = Format::Safetensors("F16", 2);
pub const F8: Format = Format::Safetensors("F8_E4M3", 1);
pub const BF16: Format = Format::Safetensors("BF16", 2);
pub const Q4_0: Format = Format::Gguf(2, 32, 18);
pub const Q8_0: Format = Format::Gguf(8, 32, 34);
pub const Q5_K: Format = Format::Gguf(13, 256, 176);

/// The front of a file, and how long the whole of it is.
pub struct Front {
    pub bytes: Vec<u8>,
    pub len: u64,
}

pub fn safetensors(tensors: &[Tensor], kind: &str, size: u64) -> Front {
    let mut json = String::from("{\"__metadata__\":{\"format\":\"pt\"}");
    let mut at = 0;
    for (name, shape) in tensors {
        let end = at + size * shape.iter().product::<u64>();
        json +=
            &format!(",{name:?}:{{\"dtype\":\"{kind}\",\"shape\":{shape:?},\"data_offsets\":[{at},{end}]}}");
        at = end;
    }
    json += "}";
    while json.len() % 8 > 0 {
        json.push(' ');
    }
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.bytes());
    Front { len: bytes.len() as u64 + at, bytes }
}

pub fn gguf(tensors: &[Tensor], (kind, block, size): (u32, u64, u64)) -> Front {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    let string = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.bytes());
    };
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend(4u64.to_le_bytes());
    string(&mut bytes, "general.architecture");
    bytes.extend(8u32.to_le_bytes());
    string(&mut bytes, "sd3");
    string(&mut bytes, "tokenizer.ggml.tokens");
    bytes.extend(9u32.to_le_bytes());
    bytes.extend(8u32.to_le_bytes());
    bytes.extend(3u64.to_le_bytes());
    for word in ["a", "", "word"] {
        string(&mut bytes, word);
    }
    string(&mut bytes, "tokenizer.ggml.scores");
    bytes.extend(9u32.to_le_bytes());
    bytes.extend(6u32.to_le_bytes());
    bytes.extend(3u64.to_le_bytes());
    bytes.extend([0; 12]);
    string(&mut bytes, "general.alignment");
    bytes.extend(4u32.to_le_bytes());
    bytes.extend(64u32.to_le_bytes());
    let mut at = 0u64;
    for (name, shape) in tensors {
        let numbers: u64 = shape.iter().product();
        let in_blocks = shape.len() == 2 && shape[1] % block == 0 && name.ends_with("weight");
        string(&mut bytes, name);
        bytes.extend(u32::try_from(shape.len()).unwrap().to_le_bytes());
        for n in shape.iter().rev() {
            bytes.extend(n.to_le_bytes());
        }
        bytes.extend(if in_blocks { kind } else { 1 }.to_le_bytes());
        bytes.extend(at.to_le_bytes());
        let taken = if in_blocks { numbers / block * size } else { 2 * numbers };
        at += taken.next_multiple_of(64);
    }
    Front { len: (bytes.len() as u64).next_multiple_of(64) + at, bytes }
}

impl Format {
    pub fn front(self, tensors: &[Tensor]) -> Front {
        match self {
            Self::Safetensors(kind, size) => safetensors(tensors, kind, size),
            Self::Gguf(kind, block, size) => gguf(tensors, (kind, block, size)),
        }
    }

    pub fn write(self, folder: &Path, name: &str, tensors: &[Tensor]) -> PathBuf {
        let path = folder.join(name);
        let front = self.front(tensors);
        let mut file = File::create(&path).unwrap();
        file.write_all(&front.bytes).unwrap();
        file.set_len(front.len).unwrap();
        path
    }
}

pub fn prefixed(prefix: &str, tensors: Vec<Tensor>) -> Vec<Tensor> {
    tensors.into_iter().map(|(name, shape)| (format!("{prefix}{name}"), shape)).collect()
}

#[derive(Default)]
struct List(Vec<Tensor>);

impl List {
    fn add(&mut self, name: impl Into<String>, shape: &[u64]) {
        self.0.push((name.into(), shape.to_vec()));
    }

    /// Weights of this shape, and as many biases as it has outputs.
    fn pair(&mut self, name: &str, shape: &[u64]) {
        self.add(format!("{name}.weight"), shape);
        self.add(format!("{name}.bias"), &shape[..1]);
    }
}

/// Blocks, width, blocks with a second attention, side of the square of positions, with norms.
pub type Shape = (u64, u64, u64, u64, bool);
pub const LARGE: Shape = (38, 2432, 0, 192, true);
pub const MEDIUM: Shape = (24, 1536, 13, 384, true);
pub const SD3_MEDIUM: Shape = (24, 1536, 0, 192, false);

pub fn mmdit((blocks, width, dual, side, norms): Shape) -> Vec<Tensor> {
    let mut list = List::default();
    list.add("pos_embed", &[1, side * side, width]);
    list.pair("x_embedder.proj", &[width, 16, 2, 2]);
    for (name, inputs) in [("t_embedder", 256), ("y_embedder", 2048)] {
        list.pair(&format!("{name}.mlp.0"), &[width, inputs]);
        list.pair(&format!("{name}.mlp.2"), &[width, width]);
    }
    list.pair("context_embedder", &[width, 4096]);
    for i in 0..blocks {
        let mut half = |half: &str, attentions: &[&str], modulations: u64, whole: bool| {
            let at = format!("joint_blocks.{i}.{half}");
            list.pair(&format!("{at}.adaLN_modulation.1"), &[modulations * width, width]);
            for name in attentions {
                list.pair(&format!("{at}.{name}.qkv"), &[3 * width, width]);
                if whole {
                    list.pair(&format!("{at}.{name}.proj"), &[width, width]);
                }
                if norms {
                    list.add(format!("{at}.{name}.ln_k.weight"), &[width / blocks]);
                    list.add(format!("{at}.{name}.ln_q.weight"), &[width / blocks]);
                }
            }
            if whole {
                list.pair(&format!("{at}.mlp.fc1"), &[4 * width, width]);
                list.pair(&format!("{at}.mlp.fc2"), &[width, 4 * width]);
            }
        };
        let is_last = i == blocks - 1;
        half("context_block", &["attn"], if is_last { 2 } else { 6 }, !is_last);
        let both: &[&str] = if i < dual { &["attn", "attn2"] } else { &["attn"] };
        half("x_block", both, if i < dual { 9 } else { 6 }, true);
    }
    list.pair("final_layer.adaLN_modulation.1", &[2 * width, width]);
    list.pair("final_layer.linear", &[64, width]);
    list.0
}

pub fn clip(width: u64, layers: u64) -> Vec<Tensor> {
    let mut list = List::default();
    list.add("text_model.embeddings.position_embedding.weight", &[77, width]);
    list.add("text_model.embeddings.token_embedding.weight", &[49_408, width]);
    for i in 0..layers {
        let at = format!("text_model.encoder.layers.{i}");
        for norm in ["layer_norm1", "layer_norm2"] {
            list.pair(&format!("{at}.{norm}"), &[width]);
        }
        for name in ["k_proj", "out_proj", "q_proj", "v_proj"] {
            list.pair(&format!("{at}.self_attn.{name}"), &[width, width]);
        }
        list.pair(&format!("{at}.mlp.fc1"), &[4 * width, width]);
        list.pair(&format!("{at}.mlp.fc2"), &[width, 4 * width]);
    }
    list.pair("text_model.final_layer_norm", &[width]);
    list.add("text_projection.weight", &[width, width]);
    list.0
}

pub fn clip_l() -> Vec<Tensor> {
    clip(768, 12)
}

pub fn clip_g() -> Vec<Tensor> {
    clip(1280, 32)
}

/// T5 under the names of its first library, or of llama.cpp.
pub fn t5(width: u64, inner: u64, heads: u64, llama: bool) -> Vec<Tensor> {
    let mut list = List::default();
    list.add(if llama { "token_embd.weight" } else { "shared.weight" }, &[32_128, width]);
    for i in 0..24 {
        let mut add = |theirs: &str, first: &str, shape: &[u64]| {
            let name = if llama {
                format!("enc.blk.{i}.{theirs}.weight")
            } else {
                format!("encoder.block.{i}.layer.{first}.weight")
            };
            list.add(name, shape);
        };
        add("attn_q", "0.SelfAttention.q", &[width, width]);
        add("attn_k", "0.SelfAttention.k", &[width, width]);
        add("attn_v", "0.SelfAttention.v", &[width, width]);
        add("attn_o", "0.SelfAttention.o", &[width, width]);
        if i == 0 {
            add("attn_rel_b", "0.SelfAttention.relative_attention_bias", &[32, heads]);
        }
        add("attn_norm", "0.layer_norm", &[width]);
        add("ffn_gate", "1.DenseReluDense.wi_0", &[inner, width]);
        add("ffn_up", "1.DenseReluDense.wi_1", &[inner, width]);
        add("ffn_down", "1.DenseReluDense.wo", &[width, inner]);
        add("ffn_norm", "1.layer_norm", &[width]);
    }
    list.add(if llama { "enc.output_norm.weight" } else { "encoder.final_layer_norm.weight" }, &[width]);
    list.0
}

pub fn t5xxl() -> Vec<Tensor> {
    t5(4096, 10_240, 64, false)
}

/// A VAE under its own names, or under those of diffusers with matrices for its attention.
pub fn vae(latent: u64, diffusers: bool) -> Vec<Tensor> {
    let mut list = List::default();
    let widths = [128, 256, 512, 512];
    let resnet = |list: &mut List, at: &str, inputs: u64, outputs: u64| {
        list.pair(&format!("{at}.norm1"), &[inputs]);
        list.pair(&format!("{at}.conv1"), &[outputs, inputs, 3, 3]);
        list.pair(&format!("{at}.norm2"), &[outputs]);
        list.pair(&format!("{at}.conv2"), &[outputs, outputs, 3, 3]);
        if inputs != outputs {
            let shortcut = if diffusers { "conv_shortcut" } else { "nin_shortcut" };
            list.pair(&format!("{at}.{shortcut}"), &[outputs, inputs, 1, 1]);
        }
    };
    for coder in ["encoder", "decoder"] {
        let is_encoder = coder == "encoder";
        let (inputs, outputs) = if is_encoder { (3, 2 * latent) } else { (latent, 3) };
        let order: Vec<usize> = if is_encoder { (0..4).collect() } else { (0..4).rev().collect() };
        let mut width = if is_encoder { 128 } else { 512 };
        list.pair(&format!("{coder}.conv_in"), &[width, inputs, 3, 3]);
        for (place, level) in order.into_iter().enumerate() {
            let (old, new) = if is_encoder { ("down", "down_blocks") } else { ("up", "up_blocks") };
            for block in 0..if is_encoder { 2 } else { 3 } {
                let at = if diffusers {
                    format!("{coder}.{new}.{place}.resnets.{block}")
                } else {
                    format!("{coder}.{old}.{level}.block.{block}")
                };
                resnet(&mut list, &at, width, widths[level]);
                width = widths[level];
            }
            if place < 3 {
                let at = match (diffusers, is_encoder) {
                    (true, true) => format!("{coder}.{new}.{place}.downsamplers.0.conv"),
                    (true, false) => format!("{coder}.{new}.{place}.upsamplers.0.conv"),
                    (false, true) => format!("{coder}.{old}.{level}.downsample.conv"),
                    (false, false) => format!("{coder}.{old}.{level}.upsample.conv"),
                };
                list.pair(&at, &[width, width, 3, 3]);
            }
        }
        let last = if is_encoder { 512 } else { 128 };
        if diffusers {
            resnet(&mut list, &format!("{coder}.mid_block.resnets.0"), 512, 512);
            resnet(&mut list, &format!("{coder}.mid_block.resnets.1"), 512, 512);
            let at = format!("{coder}.mid_block.attentions.0");
            list.pair(&format!("{at}.group_norm"), &[512]);
            for name in ["to_q", "to_k", "to_v", "to_out.0"] {
                list.pair(&format!("{at}.{name}"), &[512, 512]);
            }
            list.pair(&format!("{coder}.conv_norm_out"), &[last]);
        } else {
            resnet(&mut list, &format!("{coder}.mid.block_1"), 512, 512);
            resnet(&mut list, &format!("{coder}.mid.block_2"), 512, 512);
            list.pair(&format!("{coder}.mid.attn_1.norm"), &[512]);
            for name in ["q", "k", "v", "proj_out"] {
                list.pair(&format!("{coder}.mid.attn_1.{name}"), &[512, 512, 1, 1]);
            }
            list.pair(&format!("{coder}.norm_out"), &[last]);
        }
        list.pair(&format!("{coder}.conv_out"), &[outputs, last, 3, 3]);
    }
    list.0
}

pub fn taesd(latent: u64) -> Vec<Tensor> {
    let mut list = List::default();
    // `b`: a block, `r`: a convolution without bias, `-`: a layer without weights.
    for (coder, inputs, layers, outputs) in
        [("encoder", 3, "brbbbrbbbrbbb", latent), ("decoder", latent, "-bbb-rbbb-rbbb-rb", 3)]
    {
        list.pair(&format!("{coder}.layers.0"), &[64, inputs, 3, 3]);
        for (i, layer) in (1..).zip(layers.chars()) {
            match layer {
                'b' => {
                    for step in [0, 2, 4] {
                        list.pair(&format!("{coder}.layers.{i}.conv.{step}"), &[64, 64, 3, 3]);
                    }
                }
                'r' => list.add(format!("{coder}.layers.{i}.weight"), &[64, 64, 3, 3]),
                _ => {}
            }
        }
        list.pair(&format!("{coder}.layers.{}", layers.len() + 1), &[outputs, 64, 3, 3]);
    }
    list.0
}

/// A whole checkpoint of this shape, with the VAE, and with encoders if so wished.
pub fn checkpoint(shape: Shape, encoders: bool) -> Vec<Tensor> {
    let mut all = prefixed("model.diffusion_model.", mmdit(shape));
    all.extend(prefixed("first_stage_model.", vae(16, false)));
    if encoders {
        all.extend(prefixed("text_encoders.clip_l.transformer.", clip_l()));
        all.extend(prefixed("text_encoders.clip_g.transformer.", clip_g()));
        all.extend(prefixed("text_encoders.t5xxl.transformer.", t5xxl()));
    }
    all
}
