//! What code that has taken over a worker can ask of the kernel: every system call by its number, and the tricks that
//! are known. Each is tried in a process of its own that has entered the sandbox as a worker does.

#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "an attack makes the calls that std has not")]
#![allow(clippy::multiple_unsafe_ops_per_block, reason = "an attack is a sequence of them")]
#![allow(clippy::cast_possible_wrap, clippy::cast_sign_loss, reason = "a register is a register")]

use std::ffi::{CStr, CString};
use std::fs::{self, Permissions};
use std::os::fd::IntoRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use weave_daemon::sandbox::calls::{CALLS, Call, Is, Needed, Value, When, on_the_list};
use weave_daemon::sandbox::{self, Build, Phase, Rules};

/// What came of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    /// By the list of system calls.
    Refused,
    /// As if the kernel had no such call.
    Missing,
    /// By the rules for files.
    Closed,
    /// It failed of itself, or never came back: nobody kept it from being tried.
    Tried,
}

const OUTCOMES: [Outcome; 5] =
    [Outcome::Done, Outcome::Refused, Outcome::Missing, Outcome::Closed, Outcome::Tried];

/// What the list of system calls says here, so that a refusal is told from a failure. No kernel has this one.
const REFUSAL: i32 = 3999;
/// For a call that never comes back. None of those that are tried does that, but one that came onto the list might.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a worker's engine computes on, and how far it is.
const PLACES: [(Build, Phase); 3] =
    [(Build::Cpu, Phase::Load), (Build::Cpu, Phase::Draw), (Build::Gpu, Phase::Load)];

/// Why these tests can't be made here, if so.
fn is_possible() -> bool {
    let whole = attempt((Build::Cpu, Phase::Load), || (), |()| 0) == Some(Outcome::Done);
    if !whole {
        eprintln!("NOT CHECKED: this kernel has not all that the sandbox takes");
    }
    whole
}

/// Has a new process enter the sandbox and try something; `before` is done first. `None`: it could not enter.
fn attempt<T>(
    (build, phase): (Build, Phase),
    before: impl FnOnce() -> T,
    trick: impl FnOnce(T) -> i64,
) -> Option<Outcome> {
    // SAFETY: the child goes on alone, and ends without our handlers.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let prepared = before();
        let rules = Rules { build, refusal: REFUSAL, ..Rules::new(&[]) };
        let entered = sandbox::enter(&rules);
        let settled = if phase == Phase::Draw { entered.settle().map(drop) } else { Ok(()) };
        let code = if !entered.missing().is_empty() || settled.is_err() {
            9
        } else {
            let result = trick(prepared);
            // SAFETY: this thread's own.
            10 + match (result, unsafe { *libc::__errno_location() }) {
                (0.., _) => Outcome::Done as i64,
                (_, REFUSAL) => Outcome::Refused as i64,
                (_, libc::ENOSYS) => Outcome::Missing as i64,
                (_, libc::EACCES) => Outcome::Closed as i64,
                _ => Outcome::Tried as i64,
            }
        };
        call(libc::SYS_exit_group, [code, 0, 0, 0, 0, 0]);
    }
    let until = Instant::now() + PATIENCE;
    let mut status = 0;
    // SAFETY: the child is nobody else's.
    while unsafe { libc::waitpid(child, &mut status, libc::WNOHANG) } == 0 {
        if Instant::now() > until {
            // SAFETY: as above.
            unsafe { libc::kill(child, libc::SIGKILL) };
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    match libc::WEXITSTATUS(status) {
        9 if libc::WIFEXITED(status) => None,
        code @ 10..15 if libc::WIFEXITED(status) => Some(OUTCOMES[usize::try_from(code - 10).unwrap()]),
        // The filter's answer to calls of another architecture.
        _ if libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS => Some(Outcome::Refused),
        _ => Some(Outcome::Tried),
    }
}

fn call(number: i64, arguments: [i64; 6]) -> i64 {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the process is there to be lost.
    unsafe { libc::syscall(number, a, b, c, d, e, f) }
}

/// Arguments with which a call on the list is made. Those that do not matter are such that nothing comes of it.
fn arguments(call: &Call) -> [i64; 6] {
    let mut arguments = [-1; 6];
    match call.when {
        When::Any | When::Never(_) => {}
        When::NoTerminal => arguments[1] = 0,
        When::All(all) => {
            for Is { argument, mask, value } in all {
                let value = match value {
                    Value::Of(value) => *value as i64,
                    Value::OwnProcess => i64::from(std::process::id()),
                };
                let at = &mut arguments[usize::from(*argument)];
                *at = (*at & !(*mask as i64)) | value;
            }
        }
    }
    arguments
}

/// What came of system calls by their number, in memory that a child shares.
struct Ledger(&'static [AtomicU8]);

/// Not tried yet, and just being tried.
const UNTRIED: u8 = 0xFF;
const BEGUN: u8 = 0xFE;
const WAS_REFUSED: u8 = 0;
const WAS_MADE: u8 = 1;

impl Ledger {
    fn new(len: usize) -> Self {
        // SAFETY: pages of zeros that are never given back, and atomics need no more.
        let page = unsafe {
            let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
            let page =
                libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            assert_ne!(page, libc::MAP_FAILED);
            std::slice::from_raw_parts(page.cast::<AtomicU8>(), len)
        };
        page.iter().for_each(|at| at.store(UNTRIED, Ordering::Relaxed));
        Self(page)
    }

    /// Tries all of these numbers with no arguments and with many. A child that is lost over one is followed by another.
    fn try_all(&self, place: (Build, Phase), numbers: &[i64]) {
        let next = || self.0.iter().position(|at| at.load(Ordering::Relaxed) == UNTRIED);
        while let Some(first) = next() {
            attempt(
                place,
                || (),
                |()| {
                    for (number, at) in numbers.iter().zip(self.0).skip(first) {
                        at.store(BEGUN, Ordering::Relaxed);
                        let is_refused = |argument: i64| {
                            // SAFETY: this thread's own.
                            call(*number, [argument; 6]) == -1
                                && unsafe { *libc::__errno_location() } == REFUSAL
                        };
                        let refused = is_refused(0) && is_refused(-1);
                        at.store(if refused { WAS_REFUSED } else { WAS_MADE }, Ordering::Relaxed);
                    }
                    0
                },
            );
            assert_ne!(next(), Some(first), "nothing was tried");
        }
    }
}

/// The kernel asks no filter about `uretprobe` and `uprobe`, which a debugger has put into a program; it ends who calls
/// them otherwise.
const UNFILTERED: &[i64] = if cfg!(target_arch = "x86_64") { &[335, 336] } else { &[] };

/// Numbers that the kernel has, and those that it may have one day; and those of x32, which have a bit that others
/// haven't.
fn numbers() -> impl Iterator<Item = i64> {
    let x32 = (0..640).map(|number| 0x4000_0000 + number).filter(|_| cfg!(target_arch = "x86_64"));
    (0..1024).chain(x32).chain([4096, i64::from(i32::MAX)])
}

#[test]
fn no_system_call_is_made_but_those_on_the_list_and_all_of_those_are() {
    if !is_possible() {
        return;
    }
    for place in PLACES {
        let listed: Vec<_> = on_the_list(place.1, place.0).collect();
        let is_listed = |number: &i64| listed.iter().any(|call| call.number == *number);
        let others: Vec<_> = numbers().filter(|number| !is_listed(number)).collect();
        let ledger = Ledger::new(others.len());
        ledger.try_all(place, &others);
        let made = others.iter().zip(ledger.0).filter(|(_, at)| at.load(Ordering::Relaxed) != WAS_REFUSED);
        let made: Vec<_> =
            made.map(|(number, _)| number).filter(|number| !UNFILTERED.contains(number)).collect();
        assert!(made.is_empty(), "{place:?}: these system calls are made and not on the list: {made:?}");

        for call in listed {
            let outcome =
                attempt(place, || arguments(call), |arguments| self::call(call.number, arguments)).unwrap();
            match call.when {
                When::Never(libc::ENOSYS) => {
                    assert_eq!(outcome, Outcome::Missing, "{place:?}: {}", call.name)
                }
                _ => assert_ne!(
                    outcome,
                    Outcome::Refused,
                    "{place:?}: {} is on the list and refused",
                    call.name
                ),
            }
        }
    }
}

/// The page that people read is the list that the kernel is given.
#[test]
fn the_page_shows_the_list() {
    let rows = |is_meant: fn(Needed) -> bool| {
        let rows = CALLS.iter().filter(|call| is_meant(call.needed)).map(|call| {
            let when = match call.when {
                When::Any => "",
                When::All(_) => "some arguments",
                When::NoTerminal => "no terminal's requests",
                When::Never(libc::ENOSYS) => "never: ENOSYS",
                When::Never(_) => "never: ENOENT",
            };
            let phase = if call.needed == Needed::ToLoad { "load" } else { "" };
            format!("| `{}` | {phase} | {when} | {} |\n", call.name, call.why)
        });
        rows.collect::<String>()
    };
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/SYSTEM-CALLS.md")).unwrap();
    for table in [rows(|needed| needed != Needed::ForDrivers), rows(|needed| needed == Needed::ForDrivers)] {
        assert!(page.contains(&table), "SYSTEM-CALLS.md has to have this table:\n{table}");
    }
}

/// The kernel's answers to i386 programs are another list, with numbers of its own.
#[cfg(target_arch = "x86_64")]
#[test]
fn no_call_of_another_architecture_is_made() {
    if !is_possible() {
        return;
    }
    for place in PLACES {
        let outcome = attempt(
            place,
            || (),
            |()| {
                let result: i64;
                // SAFETY: asks for a process number, and changes no other register.
                unsafe { std::arch::asm!("int 0x80", inlateout("rax") 20i64 => result) };
                result
            },
        );
        assert_eq!(outcome, Some(Outcome::Refused), "{place:?}");
    }
}

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn at(text: &CStr) -> i64 {
    text.as_ptr() as i64
}

/// Room for what the kernel writes. Never given back: the process that takes it is short-lived.
fn room() -> i64 {
    Box::leak(Box::new([0u64; 128])).as_mut_ptr() as i64
}

fn words(words: &[u64]) -> i64 {
    Box::leak(words.to_vec().into_boxed_slice()).as_ptr() as i64
}

/// A terminal of its own, as a daemon in the foreground of one has it.
fn terminal() -> i64 {
    // SAFETY: a new session, a terminal that nobody else has, and its name.
    unsafe {
        libc::setsid();
        let master = libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY);
        assert!(master >= 0 && libc::grantpt(master) == 0 && libc::unlockpt(master) == 0);
        let mut name = [0; 64];
        assert_eq!(libc::ptsname_r(master, name.as_mut_ptr(), name.len()), 0);
        let slave = libc::open(name.as_ptr(), libc::O_RDWR | libc::O_NOCTTY);
        assert!(slave >= 0 && libc::ioctl(slave, libc::TIOCSCTTY, 0) == 0);
        slave.into()
    }
}

const HERE: i64 = libc::AT_FDCWD as i64;

/// Numbers that are younger than some C libraries; they are the same on all architectures.
mod young {
    pub(super) const OPEN_TREE: i64 = 428;
    pub(super) const MOVE_MOUNT: i64 = 429;
    pub(super) const FSOPEN: i64 = 430;
    pub(super) const PIDFD_OPEN: i64 = 434;
    pub(super) const CLONE3: i64 = 435;
    pub(super) const OPENAT2: i64 = 437;
    pub(super) const PIDFD_GETFD: i64 = 438;
    pub(super) const PROCESS_MADVISE: i64 = 440;
    pub(super) const MOUNT_SETATTR: i64 = 442;
    pub(super) const FCHMODAT2: i64 = 452;
}

/// Files of somebody else, and the process that started us.
struct Victim {
    folder: CString,
    secret: CString,
    beside_the_program: CString,
    parent: i64,
}

/// A name, a number, arguments.
type Trick = (&'static str, i64, Vec<i64>);

/// To be made in the process that tries them: the arguments point to its memory.
fn tricks(victim: &Victim) -> Vec<Trick> {
    use libc as k;
    let Victim { folder, secret, beside_the_program, parent } = victim;
    let (folder, secret, parent) = (at(folder), at(secret), *parent);
    let int = |flags: i32| i64::from(flags);
    let program = [c"/bin/true".as_ptr() as u64, 0];
    let mut tricks: Vec<Trick> = vec![
        ("TIOCSTI", k::SYS_ioctl, vec![0, k::TIOCSTI as i64, at(c"x")]),
        ("TIOCLINUX", k::SYS_ioctl, vec![0, k::TIOCLINUX as i64, at(c"\x02")]),
        ("TIOCSETD", k::SYS_ioctl, vec![0, 0x5423, words(&[0])]),
        ("fchmodat2", young::FCHMODAT2, vec![HERE, secret, 0o666, 0]),
        ("fchmodat", k::SYS_fchmodat, vec![HERE, secret, 0o666]),
        ("fchownat", k::SYS_fchownat, vec![HERE, secret, -1, -1, 0]),
        ("utimensat", k::SYS_utimensat, vec![HERE, secret, words(&[0; 4]), 0]),
        ("setxattr", k::SYS_setxattr, vec![secret, at(c"user.weave"), at(c"x"), 1, 0]),
        ("removexattr", k::SYS_removexattr, vec![secret, at(c"user.weave")]),
        ("truncate", k::SYS_truncate, vec![secret, 0]),
        ("linkat", k::SYS_linkat, vec![HERE, secret, HERE, at(c"/tmp/weave-test-link"), 0]),
        ("prlimit64 of the parent", k::SYS_prlimit64, vec![parent, int(4), 0, room()]),
        ("prlimit64 of its own, to change", k::SYS_prlimit64, vec![0, int(4), words(&[0; 2]), room()]),
        ("setpriority of the parent", k::SYS_setpriority, vec![0, parent, 0]),
        ("getpriority of the parent", k::SYS_getpriority, vec![0, parent]),
        (
            "sched_setaffinity of the parent",
            k::SYS_sched_setaffinity,
            vec![parent, 128, words(&[u64::MAX; 16])],
        ),
        ("sched_setscheduler of the parent", k::SYS_sched_setscheduler, vec![parent, 0, words(&[0])]),
        ("sched_setattr of the parent", k::SYS_sched_setattr, vec![parent, words(&[48, 0, 0, 0, 0, 0]), 0]),
        ("ioprio_set of the parent", k::SYS_ioprio_set, vec![1, parent, 0]),
        ("getpgid of the parent", k::SYS_getpgid, vec![parent]),
        ("clone3", young::CLONE3, vec![words(&[k::CLONE_NEWUSER as u64, 0, 0, 0, 17, 0, 0, 0]), 64]),
        ("unshare", k::SYS_unshare, vec![int(k::CLONE_NEWUSER)]),
        ("setns", k::SYS_setns, vec![0, 0]),
        ("fsopen", young::FSOPEN, vec![at(c"tmpfs"), 0]),
        ("open_tree", young::OPEN_TREE, vec![HERE, at(c"/"), 1]),
        ("move_mount", young::MOVE_MOUNT, vec![HERE, at(c"/"), HERE, at(c"/"), 0]),
        ("mount_setattr", young::MOUNT_SETATTR, vec![HERE, at(c"/"), 0, words(&[0; 4]), 32]),
        ("mount", k::SYS_mount, vec![at(c"tmpfs"), folder, at(c"tmpfs"), 0, 0]),
        ("chroot", k::SYS_chroot, vec![folder]),
        ("msgget", k::SYS_msgget, vec![0, 0o666]),
        ("semget", k::SYS_semget, vec![0, 1, 0o666]),
        ("shmget", k::SYS_shmget, vec![0, 4096, 0o666]),
        ("mq_open", k::SYS_mq_open, vec![at(c"weave"), 0]),
        ("inotify_init1", k::SYS_inotify_init1, vec![0]),
        ("fanotify_init", k::SYS_fanotify_init, vec![0, 0]),
        ("stat of a private folder", k::SYS_newfstatat, vec![HERE, folder, room(), 0]),
        ("statx of a private folder", k::SYS_statx, vec![HERE, folder, 0, 0x7ff, room()]),
        ("faccessat of a private folder", k::SYS_faccessat, vec![HERE, folder, 0]),
        ("statfs of a private folder", k::SYS_statfs, vec![folder, room()]),
        ("chdir to a private folder", k::SYS_chdir, vec![folder]),
        ("a path to a private folder", k::SYS_openat, vec![HERE, folder, int(k::O_PATH), 0]),
        ("list a folder", k::SYS_openat, vec![HERE, at(c"/proc"), int(k::O_DIRECTORY), 0]),
        ("readlinkat", k::SYS_readlinkat, vec![HERE, at(c"/proc/self/exe"), room(), 512]),
        ("read a private file", k::SYS_openat, vec![HERE, secret, 0, 0]),
        ("read a file beside the program", k::SYS_openat, vec![HERE, at(beside_the_program), 0, 0]),
        ("read a file in /", k::SYS_openat, vec![HERE, at(c"/etc/passwd"), 0, 0]),
        ("read the command line of a process", k::SYS_openat, vec![HERE, at(c"/proc/1/cmdline"), 0, 0]),
        ("read its own memory", k::SYS_openat, vec![HERE, at(c"/proc/self/mem"), int(k::O_RDWR), 0]),
        ("a terminal", k::SYS_openat, vec![HERE, at(c"/dev/tty"), int(k::O_RDWR), 0]),
        ("write to a file", k::SYS_openat, vec![HERE, at(c"/dev/null"), int(k::O_WRONLY), 0]),
        ("empty a file", k::SYS_openat, vec![HERE, at(c"/proc/cpuinfo"), int(k::O_TRUNC), 0]),
        ("openat2", young::OPENAT2, vec![HERE, at(c"/proc/cpuinfo"), words(&[0; 3]), 24]),
        ("name_to_handle_at", k::SYS_name_to_handle_at, vec![HERE, at(c"/"), room(), room(), 0]),
        ("pidfd_open", young::PIDFD_OPEN, vec![parent, 0]),
        ("pidfd_getfd", young::PIDFD_GETFD, vec![0, 0, 0]),
        ("process_madvise", young::PROCESS_MADVISE, vec![0, room(), 0, 4, 0]),
        ("process_vm_readv", k::SYS_process_vm_readv, vec![parent, room(), 0, room(), 0, 0]),
        ("ptrace", k::SYS_ptrace, vec![0, 0, 0, 0]),
        ("kcmp", k::SYS_kcmp, vec![parent, parent, 0, 0, 0]),
        ("kill of the parent", k::SYS_kill, vec![parent, 0]),
        ("kill of all", k::SYS_kill, vec![-1, 0]),
        ("kill of the group", k::SYS_kill, vec![0, 0]),
        ("tgkill of the parent", k::SYS_tgkill, vec![parent, parent, 0]),
        ("tkill of the parent", k::SYS_tkill, vec![parent, 0]),
        ("rt_sigqueueinfo to the parent", k::SYS_rt_sigqueueinfo, vec![parent, 0, room()]),
        ("memfd_create", k::SYS_memfd_create, vec![at(c"weave"), 0]),
        ("execve", k::SYS_execve, vec![at(c"/bin/true"), words(&program), words(&[0])]),
        ("execveat", k::SYS_execveat, vec![HERE, at(c"/bin/true"), words(&program), words(&[0]), 0]),
        ("socket of AF_UNIX", k::SYS_socket, vec![1, 1, 0]),
        ("socket of AF_INET", k::SYS_socket, vec![2, 1, 0]),
        ("socket of AF_NETLINK", k::SYS_socket, vec![16, 3, 0]),
        ("socketpair", k::SYS_socketpair, vec![1, 1, 0, room()]),
        ("sendto with an address", k::SYS_sendto, vec![0, room(), 0, 0, room(), 16]),
        ("io_uring_setup", k::SYS_io_uring_setup, vec![1, room()]),
        ("userfaultfd", k::SYS_userfaultfd, vec![1]),
        ("bpf", k::SYS_bpf, vec![0, words(&[0x4_0000_0002, 0x1_0000_0004, 0, 0]), 32]),
        ("perf_event_open", k::SYS_perf_event_open, vec![room(), 0, -1, -1, 0]),
        ("keyctl", k::SYS_keyctl, vec![0, -3, 0]),
        ("personality", k::SYS_personality, vec![0x0040_0000]),
        ("mmap of code", k::SYS_mmap, vec![0, 4096, 7, 0x22, -1, 0]),
        ("mprotect to code", k::SYS_mprotect, vec![room() & !0xFFF, 4096, 7]),
        ("pkey_mprotect to code", k::SYS_pkey_mprotect, vec![room() & !0xFFF, 4096, 7, -1]),
        ("mlockall", k::SYS_mlockall, vec![1]),
        ("seccomp with a listener", k::SYS_seccomp, vec![1, 8, room()]),
        ("prctl PR_SET_DUMPABLE", k::SYS_prctl, vec![4, 0]),
        ("prctl PR_SET_PDEATHSIG", k::SYS_prctl, vec![1, 0]),
        ("setsid", k::SYS_setsid, vec![]),
        ("umask", k::SYS_umask, vec![0]),
        ("landlock_restrict_self", k::SYS_landlock_restrict_self, vec![-1, 0]),
    ];
    for (name, flags) in [
        ("clone with CLONE_NEWUSER", k::CLONE_NEWUSER),
        ("clone with CLONE_NEWUSER and CLONE_NEWNET", k::CLONE_NEWUSER | k::CLONE_NEWNET),
        ("clone with CLONE_NEWUSER and CLONE_NEWNS", k::CLONE_NEWUSER | k::CLONE_NEWNS),
        ("clone with CLONE_NEWUSER and CLONE_NEWPID", k::CLONE_NEWUSER | k::CLONE_NEWPID),
        ("clone of a process", 0),
        ("clone of a process that shares all memory", k::CLONE_VM | k::CLONE_VFORK),
        ("clone of a sibling", k::CLONE_PARENT),
    ] {
        tricks.push((name, k::SYS_clone, vec![int(flags | k::SIGCHLD)]));
    }
    #[cfg(target_arch = "x86_64")]
    tricks.extend([
        ("fork", k::SYS_fork, vec![]),
        ("vfork", k::SYS_vfork, vec![]),
        ("chmod", k::SYS_chmod, vec![secret, 0o666]),
        ("stat of a private folder, as of old", k::SYS_stat, vec![folder, room()]),
        ("x32", 0x4000_0000 + k::SYS_getpid, vec![]),
    ]);
    tricks
}

#[test]
fn no_known_trick_works() {
    if !is_possible() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    fs::set_permissions(folder, Permissions::from_mode(0o700)).unwrap();
    fs::write(folder.join("secret"), "secret").unwrap();
    fs::set_permissions(folder.join("secret"), Permissions::from_mode(0o600)).unwrap();
    let beside = std::env::current_exe().unwrap().with_file_name("weave-test-beside-the-program");
    fs::write(&beside, "secret").unwrap();
    let victim = Victim {
        folder: c(folder),
        secret: c(&folder.join("secret")),
        beside_the_program: c(&beside),
        parent: std::process::id().into(),
    };
    // Nothing is asked of paths any more once the engine has its model. Before that there is no way to have the
    // kernel look at the path that a call points to, and what a file is like can be seen.
    let seen = ["stat of a private folder", "statx of a private folder"];
    // What the wider list is for.
    let of_drivers = [
        "stat of a private folder, as of old",
        "faccessat of a private folder",
        "statfs of a private folder",
        "a path to a private folder",
        "readlinkat",
        "read a file in /",
        "write to a file",
        "memfd_create",
        "socket of AF_UNIX",
        "socketpair",
        "mmap of code",
        "mprotect to code",
    ];
    let mut works = Vec::new();
    for (build, phase) in PLACES {
        for nth in 0..tricks(&victim).len() {
            let name = tricks(&victim)[nth].0;
            if build == Build::Gpu && (of_drivers.contains(&name) || seen.contains(&name)) {
                continue;
            }
            let prepare = || {
                let terminal = terminal();
                let (_, number, mut arguments) = tricks(&victim).swap_remove(nth);
                if number == libc::SYS_ioctl {
                    arguments[0] = terminal;
                }
                arguments.resize(6, 0);
                (number, <[i64; 6]>::try_from(arguments).unwrap())
            };
            let outcome = attempt((build, phase), prepare, |(number, arguments)| {
                let result = call(number, arguments);
                if result == 0 && (name.starts_with("clone") || name.ends_with("fork")) {
                    // The new process itself.
                    call(libc::SYS_exit_group, [0; 6]);
                }
                result
            });
            let expected: &[Outcome] = match (name, phase) {
                ("clone3", _) => &[Outcome::Missing],
                (name, Phase::Load) if seen.contains(&name) => &[Outcome::Done],
                (_, Phase::Load) => &[Outcome::Refused, Outcome::Closed],
                (_, Phase::Draw) => &[Outcome::Refused],
            };
            if !outcome.is_some_and(|outcome| expected.contains(&outcome)) {
                works.push(format!("{build:?}, {phase:?}: {name}: {outcome:?}"));
            }
        }
    }
    fs::remove_file(beside).unwrap();
    assert!(works.is_empty(), "{works:#?}");
}

/// More than the machine has is refused to whoever asks for it, before the machine is out of it.
#[test]
fn what_a_worker_takes_has_a_limit() {
    if !is_possible() {
        return;
    }
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let kilobytes = |name: &str| -> i64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    let all = 1024 * (kilobytes("MemTotal:") + kilobytes("SwapTotal:"));
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let take = |()| {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        call(libc::SYS_mmap, [0, all, prot.into(), flags.into(), -1, 0])
    };
    for phase in [Phase::Load, Phase::Draw] {
        assert_eq!(attempt((Build::Cpu, phase), || (), take), Some(Outcome::Tried), "{phase:?}");
        // A file of its own, in memory, from before.
        let file = || tempfile::tempfile().unwrap().into_raw_fd();
        let write = |file: i32| call(libc::SYS_pwrite64, [file.into(), at(c"x"), 1, 4096, 0, 0]);
        assert_eq!(attempt((Build::Cpu, phase), file, write), Some(Outcome::Tried), "{phase:?}");
    }
    // Without the sandbox it is had.
    // SAFETY: taken and not touched.
    let taken = unsafe { libc::mmap(std::ptr::null_mut(), usize::try_from(all).unwrap(), 3, flags, -1, 0) };
    assert_ne!(taken, libc::MAP_FAILED);
}
