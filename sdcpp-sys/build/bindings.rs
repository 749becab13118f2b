//! The Rust declarations, generated from the header that is built against.

use std::path::Path;

/// What of upstream's API is declared. The functions that can throw are not: for those the C++
/// layer has its own.
const FUNCTIONS: &str = "sdcpp_.*|sd_get_system_info|sd_get_num_physical_cores|sd_commit|sd_version|sd_(type|rng_type|sample_method|scheduler)_name|\
                         sd_get_default_(sample_method|scheduler)";

const TYPES: &str = "sdcpp_.*|sd_ctx_t|sd_ctx_params_t|sd_img_gen_params_t|sd_image_t|sd_log_cb_t";

/// Writes `bindings.rs` into `out_dir`.
pub(crate) fn generate(
    shim: &Path,
    include_dir: &Path,
    out_dir: &Path,
    tokenize: bool,
) -> Result<(), String> {
    let bindings = bindgen::Builder::default()
        .header(shim.to_string_lossy())
        .clang_arg(format!("-I{}", include_dir.display()))
        .clang_arg(format!("-DSDCPP_TOKENIZE={}", i32::from(tokenize)))
        .allowlist_function(FUNCTIONS)
        .allowlist_type(TYPES)
        // A value that the header does not list stays a value; a Rust enum would make it undefined
        // behaviour, and upstream's enums grow.
        .default_enum_style(bindgen::EnumVariation::NewType { is_bitfield: false, is_global: false })
        .layout_tests(true)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .formatter(bindgen::Formatter::None)
        .generate()
        .map_err(|e| {
            format!(
                "bindgen cannot read {}: {} (`apt-get install libclang-dev` brings the headers that it may miss).",
                shim.display(),
                e.to_string().trim_end().replace('\n', "; ")
            )
        })?;
    let path = out_dir.join("bindings.rs");
    bindings.write_to_file(&path).map_err(|e| format!("{}: {e}.", path.display()))
}
