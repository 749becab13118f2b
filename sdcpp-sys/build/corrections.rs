//! Small corrections to the upstream source, applied to the copy that is built.
//!
//! Each one is data: what it is called, why it is there, and the text to find and to put in its
//! place. The text has to occur exactly once, so an upstream change can neither lose a correction
//! silently nor apply it in the wrong place.

use std::fs;
use std::path::Path;

/// One correction.
#[derive(Debug)]
pub(crate) struct Correction {
    /// Short name, for messages and for `SDCPP_SKIP_CORRECTIONS`.
    pub(crate) name: &'static str,
    /// What goes wrong without it.
    pub(crate) reason: &'static str,
    /// Where upstream discusses it.
    pub(crate) upstream: &'static str,
    /// The files in which to look; those that a version lacks are passed over.
    pub(crate) files: &'static [&'static str],
    /// The text to replace. Together the files hold it exactly once.
    pub(crate) find: &'static str,
    /// What takes its place.
    pub(crate) replace: &'static str,
    /// Text that only a source has which needs no correction.
    pub(crate) already: Option<&'static str>,
}

const CONDITIONER: &[&str] = &["src/conditioning/conditioner.hpp"];

const PROMPTS: &[&str] = &["src/core/util.cpp", "src/util.cpp"];

/// Files that are built with Vulkan only: corrections in them don't matter to other builds.
pub(crate) const VULKAN: &[&str] = &["ggml/src/ggml-vulkan/ggml-vulkan.cpp"];

/// The name of the correction that makes every `u64` usable as a seed.
pub(crate) const SEED_AS_BITS: &str = "seed-as-bits";

/// All corrections, in the order in which they are applied.
pub(crate) const CORRECTIONS: &[Correction] = &[
    Correction {
        name: "pooled-rank-clip-l",
        reason: "without CLIP-L the pooled stand-in has rank 2, a computed one has rank 1, and joining them throws",
        upstream: "leejet/stable-diffusion.cpp#1631, left over by #1638",
        files: CONDITIONER,
        find: "pooled_l = sd::Tensor<float>::zeros({768, 1});",
        replace: "pooled_l = sd::Tensor<float>::zeros({768});",
        already: Some("pooled_l = sd::Tensor<float>::zeros({768});"),
    },
    Correction {
        name: "pooled-rank-clip-g",
        reason: "without CLIP-G the pooled stand-in has rank 2, a computed one has rank 1, and joining them throws",
        upstream: "leejet/stable-diffusion.cpp#1631, left over by #1638",
        files: CONDITIONER,
        find: "pooled_g = sd::Tensor<float>::zeros({1280, 1});",
        replace: "pooled_g = sd::Tensor<float>::zeros({1280});",
        already: Some("pooled_g = sd::Tensor<float>::zeros({1280});"),
    },
    // The lambda is generic because later versions hold the tokenizers by pointer.
    Correction {
        name: "equal-token-counts",
        reason: "each encoder's tokens are padded on their own but read up to the largest count, past the end of \
                 the shorter ones; and with no encoder at all there is no chunk, so the model gets a null condition",
        upstream: "leejet/stable-diffusion.cpp#2111 (too short), #1631 (no encoder)",
        files: CONDITIONER,
        find: "size_t chunk_count = std::max(std::max(clip_l_tokens.size(), clip_g_tokens.size()), t5_tokens.size()) / chunk_len;\n",
        replace: "size_t chunk_count = std::max(std::max(clip_l_tokens.size(), clip_g_tokens.size()), t5_tokens.size()) / chunk_len;
        // Weave: at least one chunk, and every encoder that is there gets empty chunks up to the count.
        chunk_count             = std::max<size_t>(chunk_count, 1);
        const auto add_chunks = [&](auto& tokenizer, std::vector<int>& tokens, std::vector<float>& weights) {
            while (tokens.size() < chunk_count * chunk_len) {
                std::vector<int> chunk;
                std::vector<float> chunk_weights;
                if constexpr (std::is_base_of_v<Tokenizer, std::remove_reference_t<decltype(tokenizer)>>) {
                    tokenizer.pad_tokens(chunk, &chunk_weights, nullptr, chunk_len, chunk_len, true);
                } else {
                    tokenizer->pad_tokens(chunk, &chunk_weights, nullptr, chunk_len, chunk_len, true);
                }
                tokens.insert(tokens.end(), chunk.begin(), chunk.end());
                weights.insert(weights.end(), chunk_weights.begin(), chunk_weights.end());
            }
        };
        if (clip_l) {
            add_chunks(clip_l_tokenizer, clip_l_tokens, clip_l_weights);
        }
        if (clip_g) {
            add_chunks(clip_g_tokenizer, clip_g_tokens, clip_g_weights);
        }
        if (t5) {
            add_chunks(t5_tokenizer, t5_tokens, t5_weights);
        }
",
        already: None,
    },
    Correction {
        name: "break-by-comparison",
        reason: "a search for BREAK goes through white space again from each blank on: 2,048 of them take 0.2 s, and \
                 the text is BREAK and nothing else where it finds it",
        upstream: "no issue",
        files: PROMPTS,
        find: "std::regex_search(text, m2, re_break)",
        replace: "text == \"BREAK\"",
        already: None,
    },
    Correction {
        name: "weight-is-a-number",
        reason: "a weight such as `(a:.)`, or one of a hundred digits, throws: the prompt is legal and gets no image",
        upstream: "no issue",
        files: PROMPTS,
        find: "multiply_range(round_brackets.back(), std::stof(weight));",
        replace: "// Weave: 1 for what is no number, or none that fits.
                char* end          = nullptr;
                const float number = std::strtof(weight.c_str(), &end);
                multiply_range(round_brackets.back(), end != weight.c_str() && std::isfinite(number) ? number : 1.0f);",
        already: None,
    },
    // Whatever follows in that function is dead after this line.
    Correction {
        name: SEED_AS_BITS,
        reason: "a negative seed is replaced by one from the clock, so seeds from 2^63 on would be lost",
        upstream: "documented behaviour, no issue",
        files: &["src/stable-diffusion.cpp", "src/pipeline/request.cpp"],
        find: "srand((int)time(nullptr));",
        replace: "return seed;  // Weave: the generator takes 64 bits, whatever their sign",
        already: None,
    },
    Correction {
        name: "vulkan-layer-settings",
        reason: "settings for a validation layer are part of every build with Vulkan, and the headers of Debian 12 \
                 don't declare them",
        upstream: "none found",
        files: VULKAN,
        find: "    VkBool32 enable_best_practice = layer_settings;
    std::vector<vk::LayerSettingEXT> settings = {
        {
            \"VK_LAYER_KHRONOS_validation\",
            \"validate_best_practices\",
            vk::LayerSettingTypeEXT::eBool32,
            1,
            &enable_best_practice
        },
    };
    vk::LayerSettingsCreateInfoEXT layer_setting_info(settings);
    vk::InstanceCreateInfo instance_create_info(vk::InstanceCreateFlags{}, &app_info, layers, extensions, &layer_setting_info);
",
        replace: "#ifdef VK_EXT_layer_settings
    VkBool32 enable_best_practice = layer_settings;
    std::vector<vk::LayerSettingEXT> settings = {
        {
            \"VK_LAYER_KHRONOS_validation\",
            \"validate_best_practices\",
            vk::LayerSettingTypeEXT::eBool32,
            1,
            &enable_best_practice
        },
    };
    vk::LayerSettingsCreateInfoEXT layer_setting_info(settings);
    vk::InstanceCreateInfo instance_create_info(vk::InstanceCreateFlags{}, &app_info, layers, extensions, &layer_setting_info);
#else
    vk::InstanceCreateInfo instance_create_info(vk::InstanceCreateFlags{}, &app_info, layers, extensions);
#endif
",
        already: None,
    },
];

/// All corrections but those that `skipped` names, separated by commas.
pub(crate) fn except(skipped: &str) -> Result<Vec<&'static Correction>, String> {
    let skipped: Vec<_> = skipped.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    match skipped.iter().find(|name| CORRECTIONS.iter().all(|correction| correction.name != **name)) {
        Some(unknown) => {
            Err(format!("SDCPP_SKIP_CORRECTIONS names `{unknown}`, and there is no such correction."))
        }
        None => Ok(CORRECTIONS.iter().filter(|correction| !skipped.contains(&correction.name)).collect()),
    }
}

/// Applies corrections to the source below `root`. Afterwards it has all of them, be it through this
/// call or on its own.
pub(crate) fn apply(root: &Path, corrections: &[&Correction]) -> Result<(), String> {
    corrections.iter().try_for_each(|correction| correct(root, correction))
}

fn correct(root: &Path, correction: &Correction) -> Result<(), String> {
    let mut occurrences = 0;
    let mut already = false;
    let mut corrected = None;
    for file in correction.files {
        let path = root.join(file);
        if !path.exists() {
            continue;
        }
        let text =
            fs::read_to_string(&path).map_err(|e| format!("{} cannot be read: {e}.", path.display()))?;
        already |= correction.already.is_some_and(|mark| text.contains(mark));
        let here = text.matches(correction.find).count();
        if here > 0 {
            occurrences += here;
            corrected = Some((path, text.replacen(correction.find, correction.replace, 1)));
        }
    }
    match corrected {
        Some((path, text)) if occurrences == 1 => {
            fs::write(&path, text).map_err(|e| format!("{} cannot be written: {e}.", path.display()))
        }
        None if already => Ok(()),
        _ => Err(format!(
            "The correction `{}` ({}; {}) fits {occurrences} places in {} instead of one: this version of \
             stable-diffusion.cpp needs a look, or SDCPP_SKIP_CORRECTIONS={} if it is right without it.",
            correction.name,
            correction.reason,
            correction.upstream,
            correction.files.join(" and "),
            correction.name,
        )),
    }
}
