//! Which files a worker may read.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope, path_beneath_rules,
};

use super::rules::{Build, Rules};

/// What an engine on the CPU asks for beside its model: how many processors there are and how much memory, and what
/// this process may have of both.
const TOLD_OF_THE_MACHINE: &[&str] =
    &["/proc/cpuinfo", "/proc/meminfo", "/proc/self/cgroup", "/sys/devices/system/cpu", "/sys/fs/cgroup"];

/// Where programs, libraries and drivers are, and what the kernel tells them. Of `/etc` only what those read: there
/// are secrets in it. Of `/proc` this process's own part and what is about no process.
const READ_BY_DRIVERS: &[&str] = &[
    "/bin",
    "/etc/OpenCL",
    "/etc/alternatives",
    "/etc/drirc",
    "/etc/glvnd",
    "/etc/group",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/ld.so.preload",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/nvidia",
    "/etc/passwd",
    "/etc/vulkan",
    "/gnu/store",
    "/lib",
    "/lib32",
    "/lib64",
    "/nix/store",
    "/opt/amdgpu",
    "/opt/cuda",
    "/opt/nvidia",
    "/opt/rocm",
    "/proc/cpuinfo",
    "/proc/devices",
    "/proc/driver",
    "/proc/filesystems",
    "/proc/meminfo",
    "/proc/modules",
    "/proc/self",
    "/proc/stat",
    "/proc/sys",
    "/proc/version",
    "/run/nvidia",
    "/run/opengl-driver",
    "/sbin",
    "/sys",
    "/usr",
];

/// Variables with places at which drivers are looked for: files, or folders of files.
const READABLE_BY_VARIABLE: &[&str] =
    &["LD_LIBRARY_PATH", "VK_ADD_DRIVER_FILES", "VK_DRIVER_FILES", "VK_ICD_FILENAMES"];

/// Devices that do no harm.
const HARMLESS_DEVICES: &[&str] = &["/dev/full", "/dev/null", "/dev/random", "/dev/urandom", "/dev/zero"];

/// How the names of graphics devices in `/dev` begin: NVIDIA's, also on boards with Tegra, those of
/// the kernel's own drivers, AMD's, ARM's, and those of a virtual machine.
const GRAPHICS_DEVICES: &[&str] = &[
    "accel", "dma_heap", "dri", "dxg", "host1x", "kfd", "mali", "nvgpu", "nvhost", "nvidia", "nvmap",
    "nvsciipc", "tegra",
];

/// The newest rules there are for files; an older kernel takes those that it knows.
const NEWEST: ABI = ABI::V6;

pub(super) fn restrict(rules: &Rules<'_>) -> Result<RulesetStatus, RulesetError> {
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .add_rules(path_beneath_rules(rules.files, AccessFs::ReadFile))?;
    let ruleset = match rules.build {
        Build::Cpu => ruleset
            .add_rules(path_beneath_rules(TOLD_OF_THE_MACHINE, AccessFs::ReadFile))?
            .add_rules(path_beneath_rules(HARMLESS_DEVICES, AccessFs::ReadFile))?,
        Build::Gpu => open_to_drivers(ruleset)?,
    };
    Ok(ruleset.restrict_self()?.ruleset)
}

fn open_to_drivers(ruleset: RulesetCreated) -> Result<RulesetCreated, RulesetError> {
    let read = AccessFs::from_read(NEWEST);
    let use_file = AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::WriteFile;
    let keep_cache = use_file
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer;
    let devices = graphics_devices();
    let rules = |paths: Vec<PathBuf>, access: BitFlags<AccessFs>| path_beneath_rules(paths, access);
    ruleset
        .add_rules(path_beneath_rules(READ_BY_DRIVERS, read))?
        .add_rules(rules(readable_of_this_user(), read))?
        .add_rules(path_beneath_rules(HARMLESS_DEVICES, use_file))?
        .add_rules(rules(driver_caches(&devices), keep_cache))?
        .add_rules(rules(devices, use_file | AccessFs::IoctlDev))
}

fn graphics_devices() -> Vec<PathBuf> {
    let is_one = |name: &OsStr| {
        let name = name.to_string_lossy();
        GRAPHICS_DEVICES.iter().any(|start| name.starts_with(start))
    };
    files_in(Path::new("/dev"), |path| path.file_name().is_some_and(is_one))
}

fn files_in(folder: &Path, is_meant: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| is_meant(path)).collect()
}

/// `libcudart.so.13`, and `nvidia_icd.json`, which says where a driver is.
fn is_for_drivers(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with(".so") || name.contains(".so.") || name.ends_with(".json")
}

fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// Never a whole folder that somebody names: it may be a home.
fn readable_of_this_user() -> Vec<PathBuf> {
    let named = READABLE_BY_VARIABLE.iter().filter_map(env::var_os);
    let mut places: Vec<_> = named.flat_map(|list| env::split_paths(&list).collect::<Vec<_>>()).collect();
    places.retain(|path| path.is_absolute());
    // Libraries may lie beside the program.
    places.extend(env::current_exe().ok().as_deref().and_then(Path::parent).map(Path::to_owned));
    let mut paths = Vec::new();
    for place in places {
        if place.is_dir() {
            paths.extend(files_in(&place, |path| is_for_drivers(path) && path.is_file()));
        } else {
            paths.push(place);
        }
    }
    if let Some(home) = variable("HOME") {
        paths.extend([".config/vulkan", ".local/share/vulkan", ".drirc"].map(|name| home.join(name)));
    }
    paths
}

/// Folders in which drivers keep what they compiled, made where they are missing: without them the
/// first image of each worker takes longer.
fn driver_caches(devices: &[PathBuf]) -> Vec<PathBuf> {
    let home = variable("HOME");
    let caches = variable("XDG_CACHE_HOME").or_else(|| home.as_ref().map(|home| home.join(".cache")));
    let has = |name| devices.iter().any(|device| device.to_string_lossy().contains(name));
    let mut folders = Vec::new();
    if has("nv") {
        folders.extend(variable("CUDA_CACHE_PATH").or_else(|| home.as_ref().map(|home| home.join(".nv"))));
        folders.extend(caches.as_ref().map(|caches| caches.join("nvidia")));
    }
    if has("dri") {
        let mesa = caches.iter().flat_map(|c| [c.join("mesa_shader_cache"), c.join("mesa_shader_cache_db")]);
        folders.extend(variable("MESA_SHADER_CACHE_DIR").into_iter().chain(mesa));
    }
    // No home and nothing that holds one, whatever a variable says.
    folders.retain(|folder| {
        folder.parent().is_some() && !home.as_ref().is_some_and(|home| home.starts_with(folder))
    });
    for folder in &folders {
        // A home that can't be written to has no cache; drivers do without.
        let _ = DirBuilder::new().mode(0o700).recursive(true).create(folder);
    }
    folders
}
