//! The programs that the build needs, and one sentence for all that are missing.

use std::env;
use std::ffi::OsStr;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The environment variables that choose them.
pub(crate) fn variables() -> Vec<String> {
    let target = env::var("TARGET").unwrap_or_default().replace('-', "_");
    let of_cc = ["CC", "CXX", "CFLAGS", "CXXFLAGS", "CXXSTDLIB"];
    let others = ["CMAKE", "LIBCLANG_PATH", "BINDGEN_EXTRA_CLANG_ARGS", "CUDACXX", "CUDA_PATH"];
    let mut names: Vec<_> = of_cc.iter().chain(&others).map(|name| (*name).to_owned()).collect();
    names.extend(of_cc.map(|name| format!("{name}_{target}")));
    names
}

/// The compilers, and what distinguishes them from others.
pub(crate) struct Compilers {
    /// Version and arguments of both, as text.
    pub(crate) identity: String,
    /// What `-march=native` means here, as text.
    pub(crate) native: String,
}

/// Collects what is missing.
#[derive(Default)]
pub(crate) struct Missing {
    what: Vec<&'static str>,
    packages: Vec<&'static str>,
    variables: Vec<&'static str>,
}

impl Missing {
    fn add(&mut self, what: &'static str, package: &'static str, variable: &'static str) {
        self.what.push(what);
        self.packages.push(package);
        self.variables.push(variable);
    }

    /// One sentence, if anything is missing.
    pub(crate) fn sentence(&self) -> Result<(), String> {
        if self.what.is_empty() {
            return Ok(());
        }
        Err(format!(
            "Building stable-diffusion.cpp needs {}: run `apt-get install {}` (Debian, Ubuntu), or install what your \
             system has and set {} where it is not found.",
            listed(&self.what),
            self.packages.join(" "),
            listed(&self.variables),
        ))
    }
}

fn listed(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [word] => (*word).to_owned(),
        [all @ .., last] => format!("{} and {last}", all.join(", ")),
    }
}

/// Asks the C and the C++ compiler who they are.
pub(crate) fn compilers(missing: &mut Missing) -> Option<Compilers> {
    let mut identity = String::new();
    let mut native = String::new();
    for (language, cpp) in [("c", false), ("c++", true)] {
        // As the cmake crate asks for it: without what distinguishes cargo's profiles, which share the
        // engine.
        let compiler = cc::Build::new()
            .cpp(cpp)
            .opt_level(0)
            .debug(false)
            .warnings(false)
            .cargo_metadata(false)
            .cargo_warnings(false)
            .try_get_compiler()
            .ok();
        let command = compiler.map(|compiler| compiler.to_command());
        let version = command.as_ref().and_then(|command| output(copy(command).arg("--version")));
        let (Some(command), Some(version)) = (command, version) else {
            missing.add("a C++ compiler", "g++", "CXX");
            return None;
        };
        let arguments: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy()).collect();
        identity +=
            &format!("{language}: {} {}\n", version.lines().next().unwrap_or_default(), arguments.join(" "));
        // The macros that a flag predefines are exactly the instructions that it allows.
        let flag = if target_is_x86() { "-march=native" } else { "-mcpu=native" };
        native += &output(copy(&command).args([flag, "-dM", "-E", "-x", language, "/dev/null"]))
            .unwrap_or_default();
    }
    Some(Compilers { identity, native })
}

/// Whether the target is an x86 processor.
pub(crate) fn target_is_x86() -> bool {
    env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64" || arch == "x86")
}

/// Checks for libclang, which bindgen loads when it runs.
pub(crate) fn libclang(missing: &mut Missing) {
    // bindgen panics when it finds none, and says so on stderr unless told not to.
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let found = panic::catch_unwind(bindgen::clang_version).is_ok();
    panic::set_hook(hook);
    if !found {
        missing.add("libclang", "libclang-dev", "LIBCLANG_PATH");
    }
}

/// Checks for what turns the source into libraries.
pub(crate) fn builders(missing: &mut Missing) {
    if !runs(env::var_os("CMAKE").unwrap_or_else(|| "cmake".into())) {
        missing.add("cmake", "cmake", "CMAKE");
    }
    if !has_ninja() && !runs("make") {
        missing.add("ninja", "ninja-build", "PATH");
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_some() && cuda_toolkit().is_none() && !runs("nvcc") {
        missing.add("the CUDA compiler", "nvidia-cuda-toolkit", "CUDACXX");
    }
    if env::var_os("CARGO_FEATURE_VULKAN").is_some() && !runs("glslc") {
        missing.add("the shader compiler glslc", "glslc libvulkan-dev spirv-headers", "PATH");
    }
}

/// The folder of the CUDA toolkit, if it is not simply that of the `nvcc` in `PATH`.
pub(crate) fn cuda_toolkit() -> Option<PathBuf> {
    let of_compiler =
        env::var_os("CUDACXX").and_then(|nvcc| Some(Path::new(&nvcc).parent()?.parent()?.to_owned()));
    let of_variable = env::var_os("CUDA_PATH").map(PathBuf::from);
    let candidates = [of_compiler, of_variable, Some(PathBuf::from("/usr/local/cuda"))];
    candidates.into_iter().flatten().find(|toolkit| toolkit.join("bin/nvcc").exists())
}

/// What the CUDA compiler says of its version.
pub(crate) fn cuda_version() -> Option<String> {
    let nvcc = cuda_toolkit().map_or_else(|| PathBuf::from("nvcc"), |toolkit| toolkit.join("bin/nvcc"));
    Some(output(Command::new(nvcc).arg("--version"))?.lines().last()?.to_owned())
}

/// The compute capability of each NVIDIA GPU of this machine, a line for each; `None` without any.
pub(crate) fn gpus() -> Option<String> {
    output(Command::new("nvidia-smi").args(["--query-gpu=compute_cap", "--format=csv,noheader"]))
}

/// Whether Ninja can be used.
pub(crate) fn has_ninja() -> bool {
    runs("ninja")
}

fn runs(program: impl AsRef<OsStr>) -> bool {
    output(Command::new(program).arg("--version")).is_some()
}

fn copy(command: &Command) -> Command {
    let mut copy = Command::new(command.get_program());
    copy.args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => copy.env(key, value),
            None => copy.env_remove(key),
        };
    }
    copy
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
