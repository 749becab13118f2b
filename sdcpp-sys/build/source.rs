//! Where the engine comes from: a library that is already built, a checkout, or the pinned package.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::UNIX_EPOCH;

use crate::vocabulary;

/// The environment variables that decide.
pub(crate) const VARIABLES: &[&str] = &["SDCPP_LIB_DIR", "SDCPP_INCLUDE_DIR", "SDCPP_SOURCE_DIR"];

const PACKAGE: &str = "diffusion-rs-sys";

/// What is to be linked.
pub(crate) enum Source {
    /// A library that is already built, and its header.
    Prebuilt { lib_dir: PathBuf, include_dir: PathBuf },
    /// A source to build.
    Tree(Tree),
}

impl Source {
    /// The header to read the API from.
    pub(crate) fn header(&self) -> PathBuf {
        match self {
            Source::Prebuilt { include_dir, .. } => include_dir.join("stable-diffusion.h"),
            Source::Tree(tree) => tree.root.join("include/stable-diffusion.h"),
        }
    }
}

/// An upstream source.
pub(crate) struct Tree {
    /// Its folder.
    pub(crate) root: PathBuf,
    /// `checkout` or `package`.
    pub(crate) kind: &'static str,
    /// What it calls itself.
    pub(crate) version: String,
    /// Text that changes when the source does.
    pub(crate) identity: String,
    /// It may change without changing its version.
    pub(crate) watched: bool,
}

/// Finds the engine.
pub(crate) fn find() -> Result<Source, String> {
    match (folder("SDCPP_LIB_DIR")?, folder("SDCPP_INCLUDE_DIR")?) {
        (Some(lib_dir), Some(include_dir)) => return Ok(Source::Prebuilt { lib_dir, include_dir }),
        (None, None) => {}
        _ => {
            return Err(
                "SDCPP_LIB_DIR and SDCPP_INCLUDE_DIR belong together: set both or neither.".to_owned()
            );
        }
    }
    let tree = match folder("SDCPP_SOURCE_DIR")? {
        Some(root) => checkout(root)?,
        None => package()?,
    };
    for needed in ["CMakeLists.txt", "include/stable-diffusion.h", "ggml/CMakeLists.txt"] {
        if !tree.root.join(needed).exists() {
            return Err(format!(
                "{} has no {needed}: it is not a stable-diffusion.cpp source, or its submodules are missing \
                 (`git submodule update --init --recursive`).",
                tree.root.display()
            ));
        }
    }
    Ok(Source::Tree(tree))
}

fn folder(variable: &str) -> Result<Option<PathBuf>, String> {
    let Some(value) = env::var_os(variable).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let path = PathBuf::from(value);
    if path.is_absolute() && path.is_dir() {
        Ok(Some(path))
    } else {
        Err(format!("{variable} is {}, which is not the absolute path of a folder.", path.display()))
    }
}

fn checkout(root: PathBuf) -> Result<Tree, String> {
    let described =
        Command::new("git").arg("-C").arg(&root).args(["describe", "--tags", "--always", "--dirty"]).output();
    let version = match described {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => "unknown".to_owned(),
    };
    let identity = format!("checkout {}\n{}", root.display(), fingerprint(&root)?);
    Ok(Tree { root, kind: "checkout", version, identity, watched: true })
}

fn package() -> Result<Tree, String> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let output = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version=1", "--locked", "--offline", "--manifest-path"])
        .arg(&manifest)
        .output()
        .map_err(|e| format!("`cargo metadata` does not run: {e}."))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        if said.contains("lock file") {
            return Err(format!("Cargo.lock does not fit {}: run `cargo fetch`.", manifest.display()));
        }
        let absent = said.split_once("failed to download ").and_then(|(_, rest)| rest.lines().next());
        return Err(format!(
            "The source of stable-diffusion.cpp comes with the package {PACKAGE}, and cargo has not downloaded all \
             packages ({} is missing): run `cargo fetch`, or set SDCPP_SOURCE_DIR to a checkout.",
            absent.unwrap_or(PACKAGE)
        ));
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)
        .map_err(|e| format!("`cargo metadata` wrote no JSON: {e}."))?;
    let package = metadata["packages"]
        .as_array()
        .and_then(|packages| packages.iter().find(|package| package["name"] == PACKAGE))
        .ok_or_else(|| format!("`cargo metadata` does not know the package {PACKAGE}."))?;
    let text = |value: &serde_json::Value, key: &str| {
        value[key].as_str().map(str::to_owned).ok_or_else(|| format!("`cargo metadata` gives no {key}."))
    };
    let version = text(package, "version")?;
    let root = Path::new(&text(package, "manifest_path")?).with_file_name("stable-diffusion.cpp");
    let lock = Path::new(&text(&metadata, "workspace_root")?).join("Cargo.lock");
    // A package that is patched to a folder of the user's own has no checksum.
    let (content, watched) = match checksum(&fs::read_to_string(lock).unwrap_or_default()) {
        Some(checksum) => (checksum, false),
        None => (fingerprint(&root)?, true),
    };
    Ok(Tree {
        root,
        kind: "package",
        version: format!("{PACKAGE} {version}"),
        identity: format!("package {PACKAGE} {version}\n{content}"),
        watched,
    })
}

/// The package's checksum in the text of a Cargo.lock.
fn checksum(lock: &str) -> Option<String> {
    let (_, package) = lock.split_once(&format!("name = \"{PACKAGE}\"\n"))?;
    let package = package.split("\n\n").next()?;
    package.lines().find_map(|line| Some(line.strip_prefix("checksum = \"")?.strip_suffix('"')?.to_owned()))
}

/// Name, size and time of every file that goes into a build, as text.
fn fingerprint(root: &Path) -> Result<String, String> {
    let mut text = String::new();
    for file in files(root, true)? {
        let about = root.join(&file).metadata().map_err(|e| format!("{}: {e}.", file.display()))?;
        let time =
            about.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        text += &format!("{} {} {}\n", file.display(), about.len(), time.as_nanos());
    }
    Ok(text)
}

/// The files that go into a build, relative to `root` and sorted.
pub(crate) fn files(root: &Path, all_vocabularies: bool) -> Result<Vec<PathBuf>, String> {
    let mut files = Vec::new();
    for part in ["CMakeLists.txt", "LICENSE", "cmake", "include", "src", "ggml", "thirdparty"] {
        collect(root, Path::new(part), &mut files)
            .map_err(|e| format!("{} cannot be read: {e}.", root.join(part).display()))?;
    }
    if !all_vocabularies {
        let kept = |file: &Path| {
            file.extension() != Some("hpp".as_ref()) || vocabulary::HEADERS.iter().any(|h| file.ends_with(h))
        };
        files.retain(|file| !file.starts_with(vocabulary::FOLDER) || kept(file));
    }
    files.sort();
    Ok(files)
}

fn collect(root: &Path, relative: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let path = root.join(relative);
    if path.is_file() {
        files.push(relative.to_owned());
    } else if path.is_dir() {
        for entry in fs::read_dir(path)? {
            let name = entry?.file_name();
            // `.git` and the like. A submodule's `.git` would make cmake ask git for its version.
            if !name.as_encoded_bytes().starts_with(b".") {
                collect(root, &relative.join(name), files)?;
            }
        }
    }
    Ok(())
}
