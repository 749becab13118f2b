//! Which tensors the engine asks each part for, and their names in other programs' files.

use super::mmdit::{Mmdit, Norm};
use super::tensors::Tensors;

/// A tensor that the engine asks for.
pub(super) struct Need {
    pub(super) name: String,
    pub(super) shape: Vec<u64>,
}

/// What the engine asks for. The shapes have their slowest dimension first.
#[derive(Default)]
pub(super) struct Needs(pub(super) Vec<Need>);

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

pub(super) fn mmdit(needs: &mut Needs, mmdit: &Mmdit) {
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

pub(super) struct Clip {
    pub(super) width: u64,
    pub(super) layers: u64,
    pub(super) projection: Option<u64>,
}

pub(super) fn clip(needs: &mut Needs, tensors: &Tensors<'_>, clip: &Clip) {
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

pub(super) fn t5(needs: &mut Needs) {
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
pub(super) fn t5_name(name: &str) -> String {
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
pub(super) const LATENT: u64 = 16;

pub(super) fn vae(needs: &mut Needs, tensors: &Tensors<'_>) {
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
pub(super) fn vae_name(name: &str) -> String {
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

pub(super) fn taesd(needs: &mut Needs) {
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
