//! Which system calls a worker may make: the lists, each call with the reason why it is needed, and the filters that
//! the kernel is given. `SYSTEM-CALLS.md` shows the lists; a test compares the two, and another one tries every number.
//!
//! The lists are what the engine was seen to do, with OpenMP and without, and what the C library does where a
//! processor or a kernel is another one.

use std::collections::BTreeMap;
use std::env;
use std::process;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter, apply_filter_all_threads,
};

use super::rules::{Build, Phase, Rules};
use Needed::{Always, ForDrivers, ToLoad};

/// When a call is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needed {
    /// All the time.
    Always,
    /// Until the engine has read its model.
    ToLoad,
    /// In builds for GPUs.
    ForDrivers,
}

/// What an argument has to be: of its bits in `mask`, those in `value`.
#[derive(Clone, Copy, Debug)]
pub struct Is {
    /// Which argument, from 0.
    pub argument: u8,
    /// The bits that count.
    pub mask: u64,
    /// What they are.
    pub value: Value,
}

/// What an argument is compared with.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    /// This.
    Of(u64),
    /// The number of this very process.
    OwnProcess,
}

/// When the kernel makes a call that is on the list.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// With any arguments.
    Any,
    /// If all of these hold.
    All(&'static [Is]),
    /// Of a terminal's requests none, else all.
    NoTerminal,
    /// Never; this error comes back instead of a refusal, so that who calls does without.
    Never(libc::c_int),
}

/// A system call on the list.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// As the kernel names it.
    pub name: &'static str,
    /// Its number.
    pub number: c_long,
    /// When it is needed.
    pub needed: Needed,
    /// With which arguments it is made.
    pub when: When,
    /// What it is needed for.
    pub why: &'static str,
}

const INT: u64 = u32::MAX as u64;
const POINTER: u64 = u64::MAX;

const fn is(argument: u8, mask: u64, value: u64) -> Is {
    Is { argument, mask, value: Value::Of(value) }
}

const fn bits(flags: libc::c_int) -> u64 {
    flags.cast_unsigned() as u64
}

/// What the kernel calls `O_LARGEFILE`; in the C library it is 0.
const LARGE_FILE: libc::c_int = if cfg!(target_arch = "aarch64") { 0o400_000 } else { 0o100_000 };
/// Flags of `open` that change nothing about what is done to the file.
const HARMLESS_FLAGS: u64 =
    bits(libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NOFOLLOW | libc::O_NONBLOCK | LARGE_FILE);
/// musl says it, and the kernel doesn't look.
const CLONE_DETACHED: libc::c_int = 0x0040_0000;
/// What makes a thread a thread.
const THREAD: u64 = bits(
    libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM
        | libc::CLONE_SETTLS
        | libc::CLONE_PARENT_SETTID
        | libc::CLONE_CHILD_CLEARTID,
);

const TO_READ: &[Is] = &[is(2, INT & !HARMLESS_FLAGS, bits(libc::O_RDONLY))];
const NO_CODE: &[Is] = &[is(2, bits(libc::PROT_EXEC), 0)];
const TO_NOBODY_ELSE: &[Is] = &[is(4, POINTER, 0)];
const A_THREAD: &[Is] = &[is(0, INT & !bits(CLONE_DETACHED), THREAD)];
const OWN: &[Is] = &[Is { argument: 0, mask: INT, value: Value::OwnProcess }];
const OWN_LIMITS: &[Is] = &[is(0, INT, 0), is(2, POINTER, 0)];
const A_FILTER: &[Is] =
    &[is(0, INT, libc::SECCOMP_SET_MODE_FILTER as u64), is(1, POINTER, libc::SECCOMP_FILTER_FLAG_TSYNC)];
/// `ARCH_REQ_XCOMP_PERM` of `XFEATURE_XTILEDATA`.
#[cfg(target_arch = "x86_64")]
const TILES: &[Is] = &[is(0, INT, 0x1023), is(1, POINTER, 18)];
const NO_NEW_PRIVILEGES: &[Is] = &[is(0, INT, bits(libc::PR_SET_NO_NEW_PRIVS))];
const OF_THIS_MACHINE: &[Is] = &[is(0, INT, bits(libc::AF_UNIX)), is(1, 0xF, bits(libc::SOCK_STREAM))];

/// `call!(name, needed, when, why)`: the number is `libc::SYS_name`.
macro_rules! calls {
    ($($(#[$cfg:meta])? $number:ident, $needed:expr, $when:expr, $why:literal;)*) => {
        &[$($(#[$cfg])? Call {
            name: name(stringify!($number)), number: libc::$number, needed: $needed, when: $when, why: $why,
        },)*]
    };
}

/// `SYS_read` without what the C library puts before it.
const fn name(number: &'static str) -> &'static str {
    number.split_at(4).1
}

/// All calls that any worker may make.
pub const CALLS: &[Call] = calls! {
    SYS_read, Always, When::Any, "the model; standard input, where a worker was started by hand";
    SYS_write, Always, When::Any, "the log";
    SYS_writev, Always, When::Any, "an answer: its head and its pixels at once";
    SYS_pread64, Always, When::Any, "the page that it shares with the daemon; how much memory there is";
    SYS_pwrite64, Always, When::Any, "how far it is, in that page";
    SYS_recvfrom, Always, When::Any, "requests";
    SYS_sendto, Always, When::All(TO_NOBODY_ELSE), "error answers, on the stream that it has: no address";
    #[cfg(target_arch = "x86_64")]
    SYS_poll, Always, When::Any, "whether the daemon has gone";
    SYS_ppoll, Always, When::Any, "whether the log takes a line";
    SYS_close, Always, When::Any, "files that were read";
    SYS_brk, Always, When::Any, "memory";
    SYS_mmap, Always, When::All(NO_CODE), "memory; model files, with `mmap`: nothing that can be run";
    SYS_mprotect, Always, When::All(NO_CODE), "stacks of threads, memory: nothing that can be run";
    SYS_mremap, Always, When::Any, "memory";
    SYS_munmap, Always, When::Any, "memory";
    SYS_madvise, Always, When::Any, "memory that is given back";
    SYS_futex, Always, When::Any, "threads that wait for each other";
    SYS_clone, Always, When::All(A_THREAD), "threads, and nothing but threads";
    SYS_clone3, Always, When::Never(libc::ENOSYS), "a filter can't see its flags: the C library takes `clone`";
    SYS_set_robust_list, Always, When::Any, "the beginning of a thread";
    SYS_rseq, Always, When::Any, "the beginning of a thread";
    SYS_sigaltstack, Always, When::Any, "the beginning and end of a thread";
    SYS_rt_sigprocmask, Always, When::Any, "the beginning and end of a thread";
    SYS_rt_sigaction, Always, When::Any, "the first thread; a process that gives up";
    SYS_rt_sigreturn, Always, When::Any, "the return from a signal's handler";
    SYS_restart_syscall, Always, When::Any, "a wait that a signal has interrupted";
    SYS_sched_yield, Always, When::Any, "threads that wait for each other";
    SYS_sched_getaffinity, Always, When::Any, "the number of processors; reads, and changes nothing";
    SYS_gettid, Always, When::Any, "who it is";
    SYS_getpid, Always, When::Any, "who it is";
    SYS_tgkill, Always, When::All(OWN), "a process that gives up, itself and nobody else";
    SYS_kill, Always, When::All(OWN), "the end of a worker whose daemon has gone, itself and nobody else";
    SYS_exit, Always, When::Any, "the end of a thread";
    SYS_exit_group, Always, When::Any, "the end";
    SYS_nanosleep, Always, When::Any, "the pattern engine's `slow`";
    SYS_clock_nanosleep, Always, When::Any, "an engine that waits for its threads";
    SYS_clock_gettime, Always, When::Any, "the time, where the kernel has to be asked";
    SYS_gettimeofday, Always, When::Any, "the time, where the kernel has to be asked";
    SYS_getrandom, Always, When::Any, "seeds";
    SYS_sysinfo, Always, When::Any, "how much memory there is";
    SYS_openat, ToLoad, When::All(TO_READ), "model files, to read: none is made, emptied, or only pointed to";
    SYS_lseek, ToLoad, When::Any, "model files";
    SYS_newfstatat, ToLoad, When::Any, "whether a model file is there, and its length";
    SYS_fstat, ToLoad, When::Any, "a model file's length";
    SYS_statx, ToLoad, When::Any, "the length of what tells of memory";
    SYS_prlimit64, ToLoad, When::All(OWN_LIMITS), "the size of a stack: its own, and to read";
    #[cfg(target_arch = "x86_64")]
    SYS_arch_prctl, ToLoad, When::All(TILES), "the processor's AMX, for which a program has to ask";
    SYS_prctl, ToLoad, When::All(NO_NEW_PRIVILEGES), "what comes before the second filter";
    SYS_seccomp, ToLoad, When::All(A_FILTER), "the second filter";

    SYS_ioctl, ForDrivers, When::NoTerminal, "devices";
    SYS_mmap, ForDrivers, When::Any, "libraries, memory of devices, code that drivers compile";
    SYS_mprotect, ForDrivers, When::Any, "libraries, code that drivers compile";
    SYS_openat, ForDrivers, When::Any, "libraries, devices, caches: the rules for files say which";
    SYS_socket, ForDrivers, When::All(OF_THIS_MACHINE), "whether a service of the driver's is there";
    SYS_connect, ForDrivers, When::Never(libc::ENOENT), "as if it were not";
    SYS_socketpair, ForDrivers, When::All(OF_THIS_MACHINE), "threads of a driver";
    SYS_sendmsg, ForDrivers, When::Any, "threads of a driver";
    SYS_recvmsg, ForDrivers, When::Any, "threads of a driver";
    SYS_shutdown, ForDrivers, When::Any, "threads of a driver";
    SYS_pipe2, ForDrivers, When::Any, "threads of a driver";
    SYS_eventfd2, ForDrivers, When::Any, "threads of a driver";
    SYS_epoll_create1, ForDrivers, When::Any, "threads of a driver";
    SYS_epoll_ctl, ForDrivers, When::Any, "threads of a driver";
    SYS_epoll_pwait, ForDrivers, When::Any, "threads of a driver";
    SYS_timerfd_create, ForDrivers, When::Any, "threads of a driver";
    SYS_timerfd_settime, ForDrivers, When::Any, "threads of a driver";
    SYS_membarrier, ForDrivers, When::Any, "threads of a driver";
    SYS_getcpu, ForDrivers, When::Any, "threads of a driver";
    SYS_sched_getparam, ForDrivers, When::Any, "threads of a driver";
    SYS_sched_getscheduler, ForDrivers, When::Any, "threads of a driver";
    SYS_dup, ForDrivers, When::Any, "descriptors of devices";
    SYS_dup3, ForDrivers, When::Any, "descriptors of devices";
    SYS_fcntl, ForDrivers, When::Any, "descriptors of devices; locks of caches";
    SYS_flock, ForDrivers, When::Any, "locks of caches";
    SYS_getdents64, ForDrivers, When::Any, "folders of devices, of drivers' descriptions, of caches";
    SYS_readlinkat, ForDrivers, When::Any, "devices, as /sys names them";
    SYS_faccessat, ForDrivers, When::Any, "whether a device is there";
    SYS_faccessat2, ForDrivers, When::Any, "whether a device is there";
    SYS_statfs, ForDrivers, When::Any, "the kind of a file system";
    SYS_fstatfs, ForDrivers, When::Any, "the kind of a file system";
    SYS_getcwd, ForDrivers, When::Any, "paths";
    SYS_readv, ForDrivers, When::Any, "caches";
    SYS_preadv, ForDrivers, When::Any, "caches";
    SYS_pwritev, ForDrivers, When::Any, "caches";
    SYS_fadvise64, ForDrivers, When::Any, "caches";
    SYS_fsync, ForDrivers, When::Any, "caches";
    SYS_fdatasync, ForDrivers, When::Any, "caches";
    SYS_ftruncate, ForDrivers, When::Any, "caches; memory that is shared with a device";
    SYS_fallocate, ForDrivers, When::Any, "caches; memory that is shared with a device";
    SYS_mkdirat, ForDrivers, When::Any, "caches: the rules for files say where";
    SYS_unlinkat, ForDrivers, When::Any, "caches: the rules for files say where";
    SYS_renameat2, ForDrivers, When::Any, "caches: the rules for files say where";
    SYS_memfd_create, ForDrivers, When::Any, "memory that is shared with a device";
    SYS_mlock, ForDrivers, When::Any, "memory that a device reads";
    SYS_mlock2, ForDrivers, When::Any, "memory that a device reads";
    SYS_munlock, ForDrivers, When::Any, "memory that a device reads";
    SYS_mincore, ForDrivers, When::Any, "memory that a device reads";
    SYS_msync, ForDrivers, When::Any, "memory that a device reads";
    SYS_get_mempolicy, ForDrivers, When::Any, "memory close to a device";
    SYS_set_mempolicy, ForDrivers, When::Any, "memory close to a device";
    SYS_mbind, ForDrivers, When::Any, "memory close to a device";
    SYS_getuid, ForDrivers, When::Any, "who it is";
    SYS_geteuid, ForDrivers, When::Any, "who it is";
    SYS_getgid, ForDrivers, When::Any, "who it is";
    SYS_getegid, ForDrivers, When::Any, "who it is";
    SYS_getppid, ForDrivers, When::Any, "who it is";
    SYS_uname, ForDrivers, When::Any, "the kernel's version";
    SYS_getrusage, ForDrivers, When::Any, "its own time";
    SYS_clock_getres, ForDrivers, When::Any, "the time, where the kernel has to be asked";
    #[cfg(target_arch = "x86_64")]
    SYS_open, ForDrivers, When::Any, "as `openat`, by old libraries";
    #[cfg(target_arch = "x86_64")]
    SYS_stat, ForDrivers, When::Any, "as `newfstatat`, by old libraries";
    #[cfg(target_arch = "x86_64")]
    SYS_lstat, ForDrivers, When::Any, "as `newfstatat`, by old libraries";
    #[cfg(target_arch = "x86_64")]
    SYS_access, ForDrivers, When::Any, "as `faccessat`, by old libraries";
    #[cfg(target_arch = "x86_64")]
    SYS_readlink, ForDrivers, When::Any, "as `readlinkat`, by old libraries";
    #[cfg(target_arch = "x86_64")]
    SYS_mkdir, ForDrivers, When::Any, "as `mkdirat`, by old libraries";
    #[cfg(target_arch = "x86_64")]
    SYS_unlink, ForDrivers, When::Any, "as `unlinkat`, by old libraries";
    #[cfg(target_arch = "x86_64")]
    SYS_rename, ForDrivers, When::Any, "as `renameat2`, by old libraries";
    #[cfg(target_arch = "x86_64")]
    SYS_pipe, ForDrivers, When::Any, "as `pipe2`, by old libraries";
    #[cfg(target_arch = "x86_64")]
    SYS_dup2, ForDrivers, When::Any, "as `dup3`, by old libraries";
    #[cfg(target_arch = "x86_64")]
    SYS_epoll_wait, ForDrivers, When::Any, "as `epoll_pwait`, by old libraries";
    #[cfg(target_arch = "x86_64")]
    SYS_getrlimit, ForDrivers, When::Any, "as `prlimit64`, by old libraries";
    #[cfg(target_arch = "x86_64")]
    SYS_time, ForDrivers, When::Any, "as `clock_gettime`, by old libraries";
    #[cfg(target_arch = "x86_64")]
    SYS_arch_prctl, ForDrivers, When::Any, "the beginning of a thread, by old libraries";
};

/// The calls that a worker may make. Where one stands on the list twice, each of the two suffices.
pub fn on_the_list(phase: Phase, build: Build) -> impl Iterator<Item = &'static Call> {
    CALLS.iter().filter(move |call| match (call.needed, build, phase) {
        (Always, ..) | (ToLoad, _, Phase::Load) | (ForDrivers, Build::Gpu, _) => true,
        (ToLoad, _, Phase::Draw) | (ForDrivers, Build::Cpu, _) => false,
    })
}

/// Has the kernel refuse all other calls from now on: those of this thread at first, those of all threads later.
/// Numbers that it has learnt since this was written are others too, and so are those of other architectures.
pub(super) fn allow(phase: Phase, rules: &Rules<'_>) -> Result<(), seccompiler::Error> {
    let apply = |filter: &BpfProgram| match phase {
        Phase::Load => apply_filter(filter),
        Phase::Draw => apply_filter_all_threads(filter),
    };
    let mut allowed: BTreeMap<c_long, Vec<SeccompRule>> =
        rules.also.iter().map(|call| (*call, vec![])).collect();
    let mut missing: BTreeMap<u32, BTreeMap<c_long, Vec<SeccompRule>>> = BTreeMap::new();
    for call in on_the_list(phase, rules.build) {
        let mut conditions = conditions(call.when)?;
        if let When::Never(error) = call.when {
            missing.entry(error.unsigned_abs()).or_default().insert(call.number, vec![]);
        }
        match allowed.get_mut(&call.number) {
            // Without a condition it is allowed, whatever others say.
            Some(others) if others.is_empty() || conditions.is_empty() => others.clear(),
            Some(others) => others.append(&mut conditions),
            None => drop(allowed.insert(call.number, conditions)),
        }
    }
    let refusal = SeccompAction::Errno(rules.refusal.unsigned_abs());
    // A call is made if all filters let it: what stands on the list and in one of these fails of the error of this one.
    if phase == Phase::Load {
        for (error, calls) in missing {
            apply(&program(calls, SeccompAction::Allow, SeccompAction::Errno(error))?)?;
        }
    }
    apply(&program(allowed, refusal, SeccompAction::Allow)?)
}

fn program(
    calls: BTreeMap<c_long, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    then: SeccompAction,
) -> Result<BpfProgram, seccompiler::Error> {
    let architecture = TargetArch::try_from(env::consts::ARCH)?;
    Ok(SeccompFilter::new(calls, otherwise, then, architecture)?.try_into()?)
}

fn conditions(when: When) -> Result<Vec<SeccompRule>, seccompiler::Error> {
    let condition = |Is { argument, mask, value }: &Is| {
        let value = match value {
            Value::Of(value) => *value,
            Value::OwnProcess => process::id().into(),
        };
        SeccompCondition::new(*argument, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(*mask), value)
    };
    Ok(match when {
        When::Any | When::Never(_) => Vec::new(),
        When::All(all) => vec![SeccompRule::new(all.iter().map(condition).collect::<Result<_, _>>()?)?],
        When::NoTerminal => {
            // Requests of terminals have a T in their second byte: any bit of it that is another one will do.
            let another = |bit| is(1, bit, !(u64::from(b'T') << 8) & bit);
            let rules = (8..16).map(|bit| SeccompRule::new(vec![condition(&another(1u64 << bit))?]));
            rules.collect::<Result<_, _>>()?
        }
    })
}
