//! What a worker process gives up before its engine sees a byte.
//!
//! The engine is a large body of C++ that reads model files and prompts from elsewhere. It needs to
//! read the model, shared libraries and what the kernel tells of the hardware, and to talk to the
//! graphics device; its driver keeps a cache. It needs no network, no other file and no other process:
//! Landlock takes the files, seccomp the network and the rest. Whatever this kernel doesn't know stays
//! as it was, and [`enter`] says so.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus,
    Scope, path_beneath_rules,
};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

/// Where programs, libraries and drivers are, and what the kernel tells. Of `/etc` only what those
/// read: there are secrets in it.
const READABLE: &[&str] = &[
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
    "/opt",
    "/proc",
    "/run/nvidia",
    "/run/opengl-driver",
    "/sbin",
    "/sys",
    "/usr",
];

/// Variables with paths at which drivers are looked for.
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

/// System calls that no engine and no driver needs. `io_uring_setup` leads to a network as `socket` does;
/// the others lead into other processes, deeper into the kernel, or around the rules for files.
const REFUSED_CALLS: &[libc::c_long] = &[
    libc::SYS_io_uring_setup,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
];

/// Gives up what a worker doesn't need; `files` are those that the engine reads. Holds for this thread
/// and for all threads and processes that come of it: to be called while there are no others.
///
/// What can't be given up is no failure. It comes back in words, all of it, for one line in the log.
pub fn enter(files: &[&Path]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut keep = |what: &str, why: &dyn std::fmt::Display| kept.push(format!("{what} ({why})"));
    if let Err(error) = set_no_new_privs(true) {
        keep("gaining privileges", &error);
    }
    if let Err(error) = drop_capabilities() {
        keep("capabilities", &error);
    }
    match restrict_files(files) {
        Ok(RulesetStatus::FullyEnforced) => {}
        Ok(RulesetStatus::PartiallyEnforced) => {
            log::debug!("this kernel has only some of the sandbox's rules for files")
        }
        Ok(RulesetStatus::NotEnforced) => keep("files", &"this kernel has no Landlock"),
        Err(error) => keep("files", &error),
    }
    if let Err(why) = refuse_calls() {
        keep("network", &why);
    }
    kept
}

/// A root without capabilities: one that may still read the model, whoever owns it.
fn drop_capabilities() -> rustix::io::Result<()> {
    let kept = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
    let CapabilitySets { effective, permitted, .. } = capabilities(None)?;
    if kept.contains(permitted) {
        return Ok(());
    }
    let inheritable = CapabilitySet::empty();
    set_capabilities(
        None,
        CapabilitySets { effective: effective & kept, permitted: permitted & kept, inheritable },
    )
}

fn restrict_files(files: &[&Path]) -> Result<RulesetStatus, landlock::RulesetError> {
    // The newest rules there are for files; an older kernel takes those that it knows.
    let abi = ABI::V6;
    let read = AccessFs::from_read(abi);
    let use_file = AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::WriteFile;
    let keep_cache = use_file
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer;
    let devices = graphics_devices();
    let rules = |paths: &[PathBuf], access: BitFlags<AccessFs>| path_beneath_rules(paths.to_vec(), access);
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?
        .add_rules(path_beneath_rules(READABLE, read))?
        .add_rules(rules(&readable_of_this_user(), read))?
        .add_rules(path_beneath_rules(files, AccessFs::ReadFile))?
        .add_rules(path_beneath_rules(HARMLESS_DEVICES, use_file))?
        .add_rules(rules(&driver_caches(&devices), keep_cache))?
        .add_rules(rules(&devices, use_file | AccessFs::IoctlDev))?
        .restrict_self()?;
    Ok(status.ruleset)
}

fn refuse_calls() -> Result<(), String> {
    refuse_sockets_and_more().and_then(|()| refuse_connections()).map_err(|error| error.to_string())
}

/// No network, and no datagrams to services of this machine. A stream socket may be made: drivers do
/// that to see whether a service of theirs is there.
fn refuse_sockets_and_more() -> Result<(), seccompiler::Error> {
    let argument = |index, is, value: libc::c_int| {
        SeccompRule::new(vec![SeccompCondition::new(
            index,
            SeccompCmpArgLen::Dword,
            is,
            value.unsigned_abs().into(),
        )?])
    };
    let other_than_unix = argument(0, SeccompCmpOp::Ne, libc::AF_UNIX)?;
    let datagrams = argument(1, SeccompCmpOp::MaskedEq(0xF), libc::SOCK_DGRAM)?;
    let mut rules: BTreeMap<_, _> = REFUSED_CALLS.iter().map(|call| (*call, Vec::new())).collect();
    rules.insert(libc::SYS_socket, vec![other_than_unix, datagrams]);
    filter(rules, libc::EACCES)
}

/// To whoever looks for a service it is as if there were none.
fn refuse_connections() -> Result<(), seccompiler::Error> {
    filter(BTreeMap::from([(libc::SYS_connect, Vec::new())]), libc::ENOENT)
}

fn filter(
    rules: BTreeMap<libc::c_long, Vec<SeccompRule>>,
    error: libc::c_int,
) -> Result<(), seccompiler::Error> {
    let arch = TargetArch::try_from(env::consts::ARCH)?;
    let refuse = SeccompAction::Errno(error.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)?;
    apply_filter(&BpfProgram::try_from(filter)?)
}

fn graphics_devices() -> Vec<PathBuf> {
    let is_one = |name: &OsStr| {
        let name = name.to_string_lossy();
        GRAPHICS_DEVICES.iter().any(|start| name.starts_with(start))
    };
    let Ok(devices) = fs::read_dir("/dev") else { return Vec::new() };
    devices.flatten().filter(|device| is_one(&device.file_name())).map(|device| device.path()).collect()
}

fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

fn readable_of_this_user() -> Vec<PathBuf> {
    let named = READABLE_BY_VARIABLE.iter().filter_map(env::var_os);
    let mut paths: Vec<_> = named.flat_map(|list| env::split_paths(&list).collect::<Vec<_>>()).collect();
    paths.retain(|path| path.is_absolute());
    // Libraries may lie beside the program.
    let program = env::current_exe().ok();
    paths.extend(program.as_deref().and_then(Path::parent).map(Path::to_owned));
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
        folders.extend(variable("CUDA_CACHE_PATH").or_else(|| home.map(|home| home.join(".nv"))));
        folders.extend(caches.as_ref().map(|caches| caches.join("nvidia")));
    }
    if has("dri") {
        let mesa = caches.iter().flat_map(|c| [c.join("mesa_shader_cache"), c.join("mesa_shader_cache_db")]);
        folders.extend(variable("MESA_SHADER_CACHE_DIR").into_iter().chain(mesa));
    }
    for folder in &folders {
        // A home that can't be written to has no cache; drivers do without.
        let _ = DirBuilder::new().mode(0o700).recursive(true).create(folder);
    }
    folders
}
