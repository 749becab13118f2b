//! A part's tensors, and what the engine makes of one.

use std::collections::BTreeMap;

use crate::model::header::Tensor;

/// A part's tensors by the names that the engine gives them, each with the name in its file.
pub type Tensors<'a> = BTreeMap<String, (&'a str, &'a Tensor)>;

/// Whether shapes are the same to the engine, which fills up with dimensions of 1.
pub(super) fn same(a: &[u64], b: &[u64]) -> bool {
    let (longer, shorter) = if a.len() > b.len() { (a, b) } else { (b, a) };
    let (more, rest) = longer.split_at(longer.len() - shorter.len());
    rest == shorter && more.iter().all(|n| *n == 1)
}

/// What a tensor takes once the engine has it in memory.
pub(super) fn loaded(name: &str, tensor: &Tensor) -> u64 {
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
