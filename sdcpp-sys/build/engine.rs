//! Building the engine from source, with cmake, into the cache.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::corrections::{self, Correction};
use crate::cuda;
use crate::source::{self, Tree};
use crate::tools::{self, Compilers};
use crate::vocabulary;

/// The environment variables that change what is built.
pub(crate) const VARIABLES: &[&str] = &["WEAVE_NATIVE", "SDCPP_SKIP_CORRECTIONS", "CMAKE_TOOLCHAIN_FILE"];

/// The first argument of the build script when it calls itself to run cmake.
pub(crate) const CMAKE_STAGE: &str = "cmake-stage";

const LINES_SHOWN: usize = 30;

/// Everything that distinguishes one build of a source from another.
pub(crate) struct Plan<'a> {
    tree: &'a Tree,
    options: Vec<(String, String)>,
    /// The corrections that the source gets.
    pub(crate) corrections: Vec<&'static Correction>,
    /// The unit that takes the place of `vocab.cpp`, unless all vocabularies are wanted.
    vocabulary: Option<String>,
    /// The processor's own instructions are used.
    pub(crate) native: bool,
}

impl<'a> Plan<'a> {
    /// Reads features, environment and what it must of the source.
    pub(crate) fn new(tree: &'a Tree) -> Result<Self, String> {
        let native = native()?;
        let skipped = env::var("SDCPP_SKIP_CORRECTIONS").unwrap_or_default();
        let mut corrections = corrections::except(&skipped)?;
        corrections.retain(|correction| feature("VULKAN") || correction.files != corrections::VULKAN);
        let vocabulary = if feature("ALL_VOCABULARIES") { None } else { Some(vocabulary(&tree.root)?) };
        Ok(Self { tree, options: options(native)?, corrections, vocabulary, native })
    }

    /// The text of all inputs, which names the entry in the cache.
    pub(crate) fn inputs(&self, compilers: &Compilers) -> String {
        let mut text = format!(
            "source: {}\ntarget: {}\n{}",
            self.tree.identity,
            env::var("TARGET").unwrap_or_default(),
            compilers.identity
        );
        if self.native {
            text += &format!("native: {}\n", crate::cache::key(&compilers.native));
        }
        for (name, value) in &self.options {
            text += &format!("{name}={value}\n");
        }
        if feature("CUDA") {
            // A toolkit can be renewed in its place, and its libraries' names change with it.
            text += &format!("nvcc: {}\n", tools::cuda_version().unwrap_or_default());
        }
        if let Ok(file) = env::var("CMAKE_TOOLCHAIN_FILE") {
            text += &format!("toolchain: {file}\n");
        }
        for correction in &self.corrections {
            text +=
                &format!("correction: {}\n{}\n{}\n", correction.name, correction.find, correction.replace);
        }
        if let Some(unit) = &self.vocabulary {
            text += &format!("vocab.cpp:\n{unit}");
        }
        text
    }

    /// Copies, corrects and compiles the source in `work` and puts into `kept` what is to stay.
    pub(crate) fn build(&self, work: &Path, kept: &Path) -> Result<(), String> {
        let source = work.join("source");
        self.copy(&source)?;
        corrections::apply(&source, &self.corrections)?;
        if let Some(unit) = &self.vocabulary {
            write(&source.join(vocabulary::FOLDER).join("vocab.cpp"), unit)?;
        }
        self.compile(&source, &work.join("out"))?;

        let mut archives = Vec::new();
        collect_archives(&work.join("out"), &mut archives);
        for archive in archives {
            copy_into(&archive, &kept.join("lib"))?;
        }
        for folder in ["include", "ggml/include"] {
            let folder = source.join(folder);
            for header in fs::read_dir(&folder).map_err(|e| format!("{}: {e}.", folder.display()))?.flatten()
            {
                copy_into(&header.path(), &kept.join("include"))?;
            }
        }
        copy_into(&source.join("LICENSE"), kept)
    }

    fn copy(&self, to: &Path) -> Result<(), String> {
        for file in source::files(&self.tree.root, self.vocabulary.is_none())? {
            let target = to.join(&file);
            let parent = target.parent().unwrap_or(to);
            fs::create_dir_all(parent).map_err(|e| format!("{}: {e}.", parent.display()))?;
            // Not `fs::copy`: what a package manager unpacked may be read-only, and corrections write.
            let content =
                fs::read(self.tree.root.join(&file)).map_err(|e| format!("{}: {e}.", file.display()))?;
            fs::write(&target, content).map_err(|e| format!("{}: {e}.", target.display()))?;
        }
        Ok(())
    }

    /// Runs cmake in a child process, because the cmake crate writes pages to stdout and panics
    /// when a build fails. All of it goes into a file, and its end is shown if need be.
    fn compile(&self, source: &Path, out: &Path) -> Result<(), String> {
        let log_path = out_dir().join("engine-build.log");
        let log = File::create(&log_path).map_err(|e| format!("{}: {e}.", log_path.display()))?;
        let log_too = log.try_clone().map_err(|e| format!("{}: {e}.", log_path.display()))?;
        let this = env::current_exe().map_err(|e| format!("The build script does not find itself: {e}."))?;
        let status = Command::new(this)
            .arg(CMAKE_STAGE)
            .args([source, out])
            .args(self.options.iter().map(|(name, value)| format!("{name}={value}")))
            // Upstream's cmake asks git for its version, and must not find a repository around the cache.
            .env("GIT_CEILING_DIRECTORIES", source.parent().unwrap_or(source))
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log_too)
            .status()
            .map_err(|e| format!("The build script does not start: {e}."))?;
        if status.success() {
            return Ok(());
        }
        let text = fs::read_to_string(&log_path).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let shown = lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n");
        Err(format!(
            "stable-diffusion.cpp did not build (all of the output: {}):\n{shown}",
            log_path.display()
        ))
    }
}

/// What the child process does. Panics when the build fails.
pub(crate) fn cmake_stage(mut arguments: impl Iterator<Item = OsString>) {
    let (Some(source), Some(out)) = (arguments.next(), arguments.next()) else {
        return;
    };
    let mut config = cmake::Config::new(&source);
    config.profile("Release").out_dir(out).build_target("stable-diffusion");
    // Messages and assertions name their file: they should name upstream's, not a temporary one. A
    // blank would end the flag.
    let source = source.to_string_lossy();
    if !source.contains(char::is_whitespace) {
        let map = format!("-ffile-prefix-map={source}=stable-diffusion.cpp");
        config.cflag(&map).cxxflag(&map);
    }
    if tools::has_ninja() {
        config.generator("Ninja");
    }
    for option in arguments {
        if let Some((name, value)) = option.to_string_lossy().split_once('=') {
            config.define(name, value);
        }
    }
    config.build();
}

fn options(native: bool) -> Result<Vec<(String, String)>, String> {
    let on = |is: bool| if is { "ON" } else { "OFF" };
    let mut options = vec![
        ("BUILD_SHARED_LIBS", "OFF"),
        ("SD_BUILD_SHARED_LIBS", "OFF"),
        ("SD_BUILD_EXAMPLES", "OFF"),
        ("SD_WEBP", "OFF"),
        ("SD_WEBM", "OFF"),
        ("SD_CUDA", on(feature("CUDA"))),
        ("SD_VULKAN", on(feature("VULKAN"))),
        ("SD_METAL", on(feature("METAL"))),
        // On by default on Apple's machines.
        ("GGML_METAL", on(feature("METAL"))),
        ("GGML_BLAS", "OFF"),
        ("GGML_CCACHE", "OFF"),
        ("GGML_OPENMP", on(feature("OPENMP"))),
        // Blocked matrix products: half the time for an image on the CPU.
        ("GGML_LLAMAFILE", "ON"),
        ("GGML_CUDA_NCCL", "OFF"),
        // Virtual memory management is all that ggml calls the driver's own library for, and a program
        // that is linked to it does not even start where there is no driver. Measured without: the same
        // images in the same time, with up to 5 % more memory at the peak.
        ("GGML_CUDA_NO_VMM", on(feature("CUDA"))),
        ("GGML_NATIVE", on(native)),
    ];
    if !native && tools::target_is_x86() {
        // What nearly every x86-64 processor since 2015 has. ggml's own default depends on the
        // environment.
        options.extend([
            ("GGML_SSE42", "ON"),
            ("GGML_AVX", "ON"),
            ("GGML_AVX2", "ON"),
            ("GGML_BMI2", "ON"),
            ("GGML_FMA", "ON"),
            ("GGML_F16C", "ON"),
        ]);
    }
    let mut options: Vec<_> = options.into_iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    if feature("CUDA") {
        let gpus = if native { tools::gpus() } else { None };
        let architectures = cuda::architectures(|name| env::var(name).ok(), gpus.as_deref())?;
        options.push(("CMAKE_CUDA_ARCHITECTURES".to_owned(), architectures));
        if let Some(toolkit) = tools::cuda_toolkit() {
            let compiler = toolkit.join("bin/nvcc");
            options.push(("CMAKE_CUDA_COMPILER".to_owned(), compiler.display().to_string()));
            options.push(("CUDAToolkit_ROOT".to_owned(), toolkit.display().to_string()));
        }
    }
    Ok(options)
}

/// The unit that takes the place of `vocab.cpp`.
fn vocabulary(root: &Path) -> Result<String, String> {
    let header = root.join(vocabulary::FOLDER).join("vocab.h");
    match fs::read_to_string(&header) {
        Ok(text) => vocabulary::unit(&text),
        Err(e) => Err(format!(
            "{}: {e}: the vocabularies of this version of stable-diffusion.cpp cannot be left out, build with the \
             feature `all-vocabularies`.",
            header.display()
        )),
    }
}

fn native() -> Result<bool, String> {
    match env::var("WEAVE_NATIVE").as_deref() {
        Ok("0") => Ok(false),
        Ok("1" | "") | Err(env::VarError::NotPresent) => Ok(env::var("HOST") == env::var("TARGET")),
        _ => Err("WEAVE_NATIVE is neither 0 nor 1.".to_owned()),
    }
}

/// Whether a feature of this crate is on.
pub(crate) fn feature(name: &str) -> bool {
    env::var_os(format!("CARGO_FEATURE_{name}")).is_some()
}

/// Where this build script puts its results.
pub(crate) fn out_dir() -> PathBuf {
    PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default())
}

fn collect_archives(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect_archives(&path, found);
        } else if path.extension() == Some("a".as_ref()) {
            found.push(path);
        }
    }
}

fn copy_into(file: &Path, folder: &Path) -> Result<(), String> {
    fs::create_dir_all(folder).map_err(|e| format!("{}: {e}.", folder.display()))?;
    let target = folder.join(file.file_name().unwrap_or_default());
    fs::copy(file, &target).map(drop).map_err(|e| format!("{}: {e}.", file.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|e| format!("{}: {e}.", path.display()))
}
