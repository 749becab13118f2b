//! Finds or builds stable-diffusion.cpp, compiles the C++ layer over it and generates the bindings.
//!
//! What is missing on a machine is reported in one sentence.

#[path = "build/api.rs"]
mod api;
#[path = "build/bindings.rs"]
mod bindings;
#[path = "build/cache.rs"]
mod cache;
#[path = "build/corrections.rs"]
mod corrections;
#[path = "build/cuda.rs"]
mod cuda;
#[path = "build/engine.rs"]
mod engine;
#[path = "build/link.rs"]
mod link;
#[path = "build/source.rs"]
mod source;
#[path = "build/tools.rs"]
mod tools;
#[path = "build/vocabulary.rs"]
mod vocabulary;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use api::Api;
use engine::Plan;
use source::Source;
use tools::Missing;

fn main() {
    let mut arguments = env::args_os().skip(1);
    if arguments.next().is_some_and(|argument| argument == engine::CMAKE_STAGE) {
        engine::cmake_stage(arguments);
        return;
    }
    match run() {
        Ok(lines) => {
            for line in lines {
                println!("cargo::{line}");
            }
        }
        // Cargo shows these lines alone. After another exit status it would add pages about the script.
        Err(sentence) => {
            for line in sentence.lines() {
                println!("cargo::error={line}");
            }
        }
    }
}

/// The engine that is linked.
struct Engine {
    include_dir: PathBuf,
    lib_dir: PathBuf,
    is_shared: bool,
    /// Lines for cargo.
    link: Vec<String>,
    kind: &'static str,
    version: String,
    back_ends: Vec<String>,
    corrections: Vec<&'static str>,
    native: bool,
}

fn run() -> Result<Vec<String>, String> {
    let source = source::find()?;
    let header = source.header();
    let text = fs::read_to_string(&header).map_err(|e| format!("{}: {e}.", header.display()))?;
    let api = api::read(&text).map_err(|what| format!("{} {what}.", header.display()))?;
    let engine = match &source {
        Source::Prebuilt { lib_dir, include_dir } => prebuilt(lib_dir, include_dir)?,
        Source::Tree(tree) => built(&Plan::new(tree)?, tree)?,
    };

    let out_dir = engine::out_dir();
    let manifest_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let seed_as_bits = engine.corrections.contains(&corrections::SEED_AS_BITS);
    let tokenize = engine::feature("TOKENIZE");
    let tokenizers = match &source {
        Source::Tree(tree) if tokenize => Some(tree.root.as_path()),
        Source::Prebuilt { .. } if tokenize => {
            return Err(
                "The feature `tokenize` needs the engine's source, and SDCPP_LIB_DIR is a built library."
                    .to_owned(),
            );
        }
        _ => None,
    };
    let shim = compile_shim(manifest_dir, &engine, &api, seed_as_bits, tokenizers)?;
    bindings::generate(&manifest_dir.join("src/shim.h"), &engine.include_dir, &out_dir, tokenize)?;
    let described = out_dir.join("engine.rs");
    fs::write(&described, describe(&engine, &api, seed_as_bits))
        .map_err(|e| format!("{}: {e}.", described.display()))?;

    let mut lines = shim;
    lines.extend(engine.link);
    lines.push(format!("rustc-link-lib=dylib={}", link::cpp_library()));
    lines.push(format!("metadata=include={}", engine.include_dir.display()));
    lines.push(format!("metadata=lib={}", engine.lib_dir.display()));
    let shared = engine.is_shared.then_some(engine.lib_dir.as_path());
    if let Some(folder) = link::rpath(shared, &engine.back_ends) {
        lines.push(format!("metadata=rpath={}", folder.display()));
    }
    // For tests that look at the engine from nearer by. A library that is built already has no source.
    let source_header = if matches!(source, Source::Tree(_)) { header.as_path() } else { Path::new("") };
    lines.push(format!("rustc-env=SDCPP_BUILT_HEADER={}", source_header.display()));
    lines.push(format!("rustc-env=SDCPP_BUILT_LIB={}", engine.lib_dir.display()));
    lines.push(format!("rustc-env=SDCPP_LINKED_INCLUDE={}", engine.include_dir.display()));
    lines.push(format!("rustc-env=SDCPP_LINKED_LIB={}", engine.lib_dir.display()));
    lines.extend(
        [
            "build.rs",
            "build",
            "src/guarded.h",
            "src/shim.h",
            "src/shim.cpp",
            "src/tokenize.cpp",
            "Cargo.toml",
        ]
        .map(|path| format!("rerun-if-changed={path}")),
    );
    // In the cache too: when somebody empties it, the engine is built again.
    lines.extend([&header, &engine.lib_dir].map(|path| format!("rerun-if-changed={}", path.display())));
    if let Source::Tree(tree) = &source
        && tree.watched
    {
        lines.push(format!("rerun-if-changed={}", tree.root.display()));
    }
    let watched = [source::VARIABLES, cache::VARIABLES, cuda::VARIABLES, engine::VARIABLES]
        .concat()
        .into_iter()
        .map(str::to_owned);
    lines.extend(watched.chain(tools::variables()).map(|name| format!("rerun-if-env-changed={name}")));
    Ok(lines)
}

fn prebuilt(lib_dir: &Path, include_dir: &Path) -> Result<Engine, String> {
    let mut missing = Missing::default();
    tools::compilers(&mut missing);
    tools::libclang(&mut missing);
    missing.sentence()?;
    let is_shared =
        ["so", "dylib"].iter().any(|kind| lib_dir.join(format!("libstable-diffusion.{kind}")).exists());
    // A shared library does not show what it can do.
    let archives = if is_shared { Vec::new() } else { link::find_archives(lib_dir)? };
    Ok(Engine {
        include_dir: include_dir.to_owned(),
        lib_dir: lib_dir.to_owned(),
        is_shared,
        link: if is_shared { link::shared(lib_dir) } else { link::archives(lib_dir, &archives) },
        kind: "prebuilt",
        version: "unknown".to_owned(),
        back_ends: link::back_ends(&archives),
        corrections: Vec::new(),
        native: false,
    })
}

fn built(plan: &Plan, tree: &source::Tree) -> Result<Engine, String> {
    let folder = cache::folder(|name| env::var_os(name))?;
    let mut missing = Missing::default();
    let compilers = tools::compilers(&mut missing);
    tools::libclang(&mut missing);
    let inputs = compilers.map(|compilers| plan.inputs(&compilers)).unwrap_or_default();
    if cache::look_up(&folder, &inputs).is_none() {
        tools::builders(&mut missing);
    }
    missing.sentence()?;
    let entry = cache::get_or_build(&folder, &inputs, |work, kept| plan.build(work, kept))?;
    let lib_dir = entry.join("lib");
    let archives = link::find_archives(&lib_dir)?;
    Ok(Engine {
        include_dir: entry.join("include"),
        link: link::archives(&lib_dir, &archives),
        lib_dir,
        is_shared: false,
        kind: tree.kind,
        version: tree.version.clone(),
        back_ends: link::back_ends(&archives),
        corrections: plan.corrections.iter().map(|correction| correction.name).collect(),
        native: plan.native,
    })
}

/// Compiles the C++ layer and returns the lines that link it. With `tokenizers`, which is the engine's source, it has a
/// function that goes straight to them.
fn compile_shim(
    root: &Path,
    engine: &Engine,
    api: &Api,
    seed_as_bits: bool,
    tokenizers: Option<&Path>,
) -> Result<Vec<String>, String> {
    let include_dir = &engine.include_dir;
    // A shared library need not export ggml's functions.
    let tells_devices = !engine.back_ends.is_empty() && include_dir.join("ggml-backend.h").exists();
    let flag = |is: bool| if is { "1" } else { "0" };
    let shim = root.join("src/shim.cpp");
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .file(&shim)
        .include(include_dir)
        .define("SDCPP_GENERATE_RETURNS_FLAG", flag(api.flag))
        .define("SDCPP_SEED_AS_BITS", flag(seed_as_bits))
        .define("SDCPP_CAN_CANCEL", flag(api.cancel))
        .define("SDCPP_TELLS_DEVICES", flag(tells_devices))
        .cargo_metadata(false)
        .cargo_warnings(false);
    if let Some(source) = tokenizers {
        // Headers that upstream keeps to itself.
        build.file(root.join("src/tokenize.cpp")).define("SDCPP_TOKENIZE", "1");
        build.include(source.join("src")).include(source.join("thirdparty"));
    }
    if build.try_compile("sdcpp_shim").is_err() {
        return Err(format!(
            "The C++ layer does not compile against {}/stable-diffusion.h:\n{}",
            include_dir.display(),
            complaint(&build, &shim)
        ));
    }
    Ok(vec![
        format!("rustc-link-search=native={}", engine::out_dir().display()),
        "rustc-link-lib=static=sdcpp_shim".to_owned(),
    ])
}

/// What the compiler says first about a file that it does not compile.
fn complaint(build: &cc::Build, file: &Path) -> String {
    let Ok(compiler) = build.try_get_compiler() else {
        return String::new();
    };
    let output = compiler.to_command().arg("-fsyntax-only").arg(file).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stderr).into_owned()).unwrap_or_default();
    text.lines().take(10).collect::<Vec<_>>().join("\n")
}

/// The Rust source of the constant that says which engine this is.
fn describe(engine: &Engine, api: &Api, seed_as_bits: bool) -> String {
    format!(
        "Engine {{ source: {:?}, version: {:?}, back_ends: &{:?}, native: {}, corrections: &{:?}, every_seed: {seed_as_bits}, can_cancel: {} }}",
        engine.kind, engine.version, engine.back_ends, engine.native, engine.corrections, api.cancel
    )
}
