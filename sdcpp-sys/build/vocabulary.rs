//! The translation unit that stands in for upstream's `vocab.cpp`.
//!
//! That one unit compiles 237 MB of vocabularies into every program. Stable Diffusion 3.5 uses two
//! of them, CLIP's merges and T5's tokenizer; asking for another one throws, which the C++ layer
//! turns into an error value.

/// The folder of the unit and of its vocabularies, in the upstream source.
pub(crate) const FOLDER: &str = "src/tokenizers/vocab";

/// The headers in [`FOLDER`] that the unit includes.
pub(crate) const HEADERS: &[&str] = &["clip_merges.hpp", "t5.hpp"];

const LOADED: &[(&str, &str)] =
    &[("load_clip_merges", "clip_merges_utf8_c_str"), ("load_t5_tokenizer_json", "t5_tokenizer_json_str")];

/// Writes the unit for a version whose `vocab.h` reads `header`.
pub(crate) fn unit(header: &str) -> Result<String, String> {
    let declared = declared(header);
    if let Some((missing, _)) = LOADED.iter().find(|(name, _)| !declared.contains(name)) {
        return Err(format!(
            "{FOLDER}/vocab.h does not declare `{missing}`, so the vocabularies of this version of \
             stable-diffusion.cpp cannot be left out: build with the feature `all-vocabularies`."
        ));
    }
    let mut unit = String::from("#include <stdexcept>\n\n#include \"vocab.h\"\n");
    for header in HEADERS {
        unit += &format!("#include \"{header}\"\n");
    }
    for name in declared {
        let body = match LOADED.iter().find(|(loaded, _)| *loaded == name) {
            Some((_, array)) => {
                format!("return std::string(reinterpret_cast<const char*>({array}), sizeof({array}));")
            }
            None => format!(
                "throw std::runtime_error(\"{name}: this vocabulary was left out of the build \
                 (feature all-vocabularies)\");"
            ),
        };
        unit += &format!("\nstd::string {name}() {{\n    {body}\n}}\n");
    }
    Ok(unit)
}

/// The functions without parameters that return a string, in order.
fn declared(header: &str) -> Vec<&str> {
    header.lines().filter_map(|line| line.trim().strip_prefix("std::string ")?.strip_suffix("();")).collect()
}
