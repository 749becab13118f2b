//! What to link: the lines that tell cargo.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::tools;

/// The archives in `lib_dir`, in the order in which a linker must see them: each before those that
/// it calls.
pub(crate) fn find_archives(lib_dir: &Path) -> Result<Vec<String>, String> {
    let mut names: Vec<String> = fs::read_dir(lib_dir)
        .map_err(|e| format!("{}: {e}.", lib_dir.display()))?
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let name = name.strip_prefix("lib")?.strip_suffix(".a")?;
            (name == "stable-diffusion" || name.starts_with("ggml")).then(|| name.to_owned())
        })
        .collect();
    for needed in ["stable-diffusion", "ggml", "ggml-base", "ggml-cpu"] {
        if !names.iter().any(|name| name == needed) {
            return Err(format!("{} has no lib{needed}.a.", lib_dir.display()));
        }
    }
    let rank = |name: &str| match name {
        "stable-diffusion" => 0,
        "ggml" => 1,
        "ggml-base" => 3,
        _ => 2,
    };
    names.sort_by(|a, b| (rank(a), a).cmp(&(rank(b), b)));
    Ok(names)
}

/// What these archives can compute on: `cpu`, `cuda` and so on.
pub(crate) fn back_ends(archives: &[String]) -> Vec<String> {
    archives
        .iter()
        .filter_map(|name| name.strip_prefix("ggml-"))
        .filter(|name| *name != "base")
        .map(str::to_owned)
        .collect()
}

/// The lines for archives.
pub(crate) fn archives(lib_dir: &Path, names: &[String]) -> Vec<String> {
    let mut lines = vec![format!("rustc-link-search=native={}", lib_dir.display())];
    lines.extend(names.iter().map(|name| format!("rustc-link-lib=static={name}")));
    let has = |name: &str| names.iter().any(|other| other == name);
    if has("ggml-cuda") {
        lines.extend(cuda());
    }
    if has("ggml-vulkan") {
        lines.push("rustc-link-lib=dylib=vulkan".to_owned());
    }
    // What cmake has found of OpenMP, if anything, depends on the compiler: the archive knows.
    let cpu = fs::read(lib_dir.join("libggml-cpu.a")).unwrap_or_default();
    let calls = |function: &str| cpu.windows(function.len()).any(|bytes| bytes == function.as_bytes());
    for (function, library) in [("GOMP_parallel", "gomp"), ("__kmpc_fork_call", "omp")] {
        if calls(function) {
            lines.push(format!("rustc-link-lib=dylib={library}"));
        }
    }
    if env::var("CARGO_CFG_TARGET_VENDOR").is_ok_and(|vendor| vendor == "apple") {
        lines.push("rustc-link-lib=framework=Accelerate".to_owned());
        if has("ggml-metal") {
            lines.extend(
                ["Foundation", "Metal", "MetalKit"].map(|name| format!("rustc-link-lib=framework={name}")),
            );
        }
    }
    lines
}

/// The lines for a shared library.
pub(crate) fn shared(lib_dir: &Path) -> Vec<String> {
    vec![
        format!("rustc-link-search=native={}", lib_dir.display()),
        "rustc-link-lib=dylib=stable-diffusion".to_owned(),
        // For this crate's own tests. What depends on it finds the folder in DEP_SDCPP_RPATH.
        format!("rustc-link-arg-tests=-Wl,-rpath,{}", lib_dir.display()),
    ]
}

/// The folder that the loader has to be told of: that of a shared engine, or of the CUDA libraries that were
/// linked. `None` where it looks anyway.
pub(crate) fn rpath(shared: Option<&Path>, back_ends: &[String]) -> Option<PathBuf> {
    let folder = match shared {
        Some(lib_dir) => lib_dir.to_owned(),
        None if back_ends.iter().any(|name| name == "cuda") => {
            cuda_folders().into_iter().find(|folder| folder.join("libcudart.so").exists())?
        }
        None => return None,
    };
    let known = ["/lib", "/usr/lib", "/usr/lib64", "/usr/local/lib"].map(Path::new);
    let is_known =
        known.contains(&folder.as_path()) || folder.starts_with("/usr/lib") && folder.ends_with(of_system());
    (!is_known).then_some(folder)
}

/// The C++ standard library.
pub(crate) fn cpp_library() -> String {
    env::var("CXXSTDLIB").unwrap_or_else(|_| {
        let target = env::var("TARGET").unwrap_or_default();
        let is_llvm = ["apple", "freebsd", "openbsd"].iter().any(|system| target.contains(system));
        if is_llvm { "c++".to_owned() } else { "stdc++".to_owned() }
    })
}

fn cuda() -> Vec<String> {
    let folders = cuda_folders();
    let mut lines: Vec<_> =
        folders.iter().map(|folder| format!("rustc-link-search=native={}", folder.display())).collect();
    // For archives that were built elsewhere, with virtual memory management. The linker drops it otherwise.
    let driver = folders.iter().any(|folder| folder.join("libcuda.so").exists()).then_some("cuda");
    lines.extend(
        ["cudart", "cublas", "cublasLt"]
            .into_iter()
            .chain(driver)
            .map(|name| format!("rustc-link-lib=dylib={name}")),
    );
    lines
}

/// The folders in which CUDA's libraries may be, those of the toolkit in use first.
fn cuda_folders() -> Vec<PathBuf> {
    let mut folders: Vec<_> = tools::cuda_toolkit()
        .into_iter()
        .flat_map(|toolkit| ["lib64", "lib"].map(|lib| toolkit.join(lib)))
        .chain([Path::new("/usr/lib").join(of_system())])
        .flat_map(|lib| [lib.join("stubs"), lib])
        .collect();
    folders.retain(|folder| folder.is_dir());
    folders
}

/// The name of Debian's folder for libraries of the target.
fn of_system() -> String {
    format!("{}-linux-gnu", env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default())
}
