//! Declarations of stable-diffusion.cpp and of the thin C++ layer over it, and nothing else.
//!
//! `build.rs` finds or builds the engine. It looks for, in this order,
//! 1. `SDCPP_LIB_DIR` and `SDCPP_INCLUDE_DIR`: a library that is already built
//!    (`libstable-diffusion.so`, or `libstable-diffusion.a` with ggml's archives beside it) and the
//!    folder of its header `stable-diffusion.h`;
//! 2. `SDCPP_SOURCE_DIR`: a checkout of stable-diffusion.cpp with its submodules;
//! 3. the pinned source package, which `cargo fetch` downloads.
//!
//! What it builds stays in a cache for all profiles, target folders and clones: in
//! `$WEAVE_CACHE_DIR`, else `$XDG_CACHE_HOME/weave`, else `~/.cache/weave`. It may be deleted at any
//! time. Code is made for the processor at hand; with `WEAVE_NATIVE=0` it runs on any x86-64
//! processor with AVX2. CUDA's part is made for the GPUs at hand, else for compute capability 8.0 and up;
//! `WEAVE_CUDA_ARCHITECTURES` chooses (`86`, or `75-real,86-real,90`).
//!
//! A build script of what depends on this crate finds in `DEP_SDCPP_RPATH` the folder of shared libraries that the
//! loader would not look into.
//!
//! With the feature `cuda` the program needs CUDA's runtime and cuBLAS to start, but no driver and no GPU: without
//! them the engine computes on the CPU, and [`sdcpp_default_device`] says so.
//!
//! Functions of upstream that can throw are not declared. In their place stand those that begin with
//! `sdcpp_`, which return a [`sdcpp_status`].
//!
//! # Seeds
//! `sd_img_gen_params_t::seed` is an `i64`; the engine that is built here takes its 64 bits as they
//! are, so `seed.cast_signed()` passes any `u64` unchanged. Upstream replaces negative values by one
//! from the clock. An engine that was built elsewhere does so too, and [`sdcpp_generate`] then refuses
//! them: see [`Engine::every_seed`].

/// Which engine this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Engine {
    /// Where it came from: `package`, `checkout` or `prebuilt`.
    pub source: &'static str,
    /// The version of the package, what git says about the checkout, or `unknown`.
    pub version: &'static str,
    /// What it can compute on: `cpu`, `cuda`, `vulkan`, `metal`. Empty for a shared library that was
    /// built elsewhere, which doesn't show it.
    pub back_ends: &'static [&'static str],
    /// It was made for the very processor that it was built on. `false` also where that isn't known.
    pub native: bool,
    /// The names of the corrections in it (`build/corrections.rs`).
    pub corrections: &'static [&'static str],
    /// It takes every seed. If not, seeds from 2⁶³ on are refused.
    pub every_seed: bool,
    /// It has a call that cancels a generation.
    pub can_cancel: bool,
}

/// The pinned package, and the commit of stable-diffusion.cpp in it: its repository's submodule at the revision that the
/// package names.
const PACKAGED: (&str, &str) = ("diffusion-rs-sys 0.1.20", "9838264c490e2f413ed36b76aba9091b78ba4414");

impl Engine {
    /// The commit of stable-diffusion.cpp, where it is the pinned package's. A checkout's version says it itself.
    #[must_use]
    pub fn commit(&self) -> Option<&'static str> {
        (self.source == "package" && self.version == PACKAGED.0).then_some(PACKAGED.1)
    }
}

/// The engine that this crate was built with.
pub const ENGINE: Engine = include!(concat!(env!("OUT_DIR"), "/engine.rs"));

/// The folder of the library that is linked.
pub const LIB_DIR: &str = env!("SDCPP_LINKED_LIB");

/// The folder of its headers. Both are for tests that compile against the same engine.
pub const INCLUDE_DIR: &str = env!("SDCPP_LINKED_INCLUDE");

mod bindings {
    #![allow(
        unsafe_code,
        missing_docs,
        non_camel_case_types,
        non_snake_case,
        non_upper_case_globals,
        clippy::all,
        reason = "bindgen's output: it declares foreign functions and keeps the names of C"
    )]
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

pub use bindings::*;
