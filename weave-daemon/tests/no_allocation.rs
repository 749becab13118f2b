//! Once it is up, the event loop takes no memory: what it needs was taken at the start.

#[path = "harness/allocator.rs"]
mod allocator;

use std::cell::Cell;
use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use allocator::Watched;
use rustix::process::{Signal, getpid, kill_process};
use weave_core::limits::{MAX_REQUEST_FRAME, RESPONSE_HEAD_LEN};
use weave_core::request::{Params, Prompts, Request};
use weave_daemon::config::{Config, EngineKind, Isolation};
use weave_daemon::logger;
use weave_daemon::model::Profile;
use weave_daemon::server::Server;
use weave_daemon::socket::Socket;
use weave_daemon::worker_log::WorkerLog;

const PIXELS: usize = 64 * 64 * 3;

static COUNT: AtomicUsize = AtomicUsize::new(0);
static IS_UP: AtomicBool = AtomicBool::new(false);

thread_local! {
    static IS_EVENT_LOOP: Cell<bool> = const { Cell::new(false) };
}

/// Counts what one thread allocates.
#[global_allocator]
static ALLOCATOR: Watched = Watched {
    taken: |_| {
        if IS_EVENT_LOOP.get() && IS_UP.load(Ordering::Relaxed) {
            COUNT.fetch_add(1, Ordering::Relaxed);
        }
    },
    given_back: |_| {},
};

/// Says what is no Weave, for which there is a line in the log, or a number.
fn misuse_it(socket: &Path) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(&[b'x'; 64]).unwrap();
    // The answer, then the end, be it that of a connection with bytes unread.
    let _ = stream.read_to_end(&mut Vec::new());
}

/// Sends `n` requests, every tenth of them a wrong one, a few at a time, and reads the answers.
fn use_it(socket: &Path, n: u64) {
    let mut stream = UnixStream::connect(socket).unwrap();
    let mut answer = vec![0; RESPONSE_HEAD_LEN + PIXELS];
    for first in (0..n).step_by(4) {
        for id in first..first + 4 {
            let params = Params { width: 64, height: 64, steps: 1, cfg_scale: 1.0, seed: 1 };
            let mut frame = [0; MAX_REQUEST_FRAME];
            let request = Request { request_id: id, params, prompts: Prompts::same("x") };
            let len = request.emit(&mut frame).unwrap().len();
            if id % 10 == 0 {
                frame[36..40].fill(0);
            }
            stream.write_all(&frame[..len]).unwrap();
        }
        for _ in first..first + 4 {
            let (header, rest) = answer.split_at_mut(16);
            stream.read_exact(header).unwrap();
            let len = u32::from_be_bytes(header[8..12].try_into().unwrap());
            stream.read_exact(&mut rest[..usize::try_from(len).unwrap()]).unwrap();
        }
    }
}

#[test]
#[cfg_attr(feature = "simulator", ignore = "the router takes notes for the simulator's judge")]
fn ten_thousand_requests_allocate_nothing_in_the_event_loop() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run/weave.sock");
    let config = Config { engine: EngineKind::Pattern, isolation: Isolation::Thread, ..Config::default() };
    // Telling systemd how things are is part of it, and so is having an administrative socket.
    let manager = UnixDatagram::bind(folder.path().join("notify")).unwrap();
    for (name, value) in [("NOTIFY_SOCKET", folder.path().join("notify")), ("WATCHDOG_USEC", "2000".into())] {
        // SAFETY: no other thread of this program looks at the environment.
        #[allow(unsafe_code, reason = "that is where it stands")]
        unsafe {
            std::env::set_var(name, value);
        }
    }
    let (access, rules) = (config.access.clone(), config.rules());
    let (socket, listener) = Socket::bind(&path, &access, &rules).unwrap();
    let reread = Box::new(|| Ok(Config::default()));
    let mut server = Server::new(config, Some(socket), listener, reread).unwrap();
    let (socket, listener) = Socket::bind(&path.with_file_name("weave-admin.sock"), &access, &rules).unwrap();
    server.show_on(listener, Some(socket), Profile::PATTERN).unwrap();
    let listens = std::thread::spawn(move || {
        let (mut said, mut pings) = ([0; 256], 0);
        loop {
            let n = manager.recv(&mut said).unwrap();
            pings += usize::from(said.starts_with(b"WATCHDOG=1"));
            if said[..n].starts_with(b"STOPPING=1") {
                return pings;
            }
        }
    });
    logger::start(log::LevelFilter::Info);
    let daemon = std::thread::spawn(move || {
        IS_EVENT_LOOP.set(true);
        server.run().unwrap();
    });
    use_it(&path, 100);
    IS_UP.store(true, Ordering::Relaxed);
    // Coming and going is part of it.
    for _ in 0..100 {
        use_it(&path, 100);
        misuse_it(&path);
    }
    IS_UP.store(false, Ordering::Relaxed);
    assert_eq!(COUNT.load(Ordering::Relaxed), 0);
    kill_process(getpid(), Signal::TERM).unwrap();
    daemon.join().unwrap();
    assert!(listens.join().unwrap() > 10, "the loop has pinged");
}

#[test]
fn a_workers_log_is_passed_on_without_memory() {
    let (mut log, stderr) = WorkerLog::new(0).unwrap();
    let lines = "printf 'WARN  \\033[31mred \\377\\nno level\\n' >&2; yes 'INFO  well' | head -n 300000 >&2";
    let mut child = Command::new("sh").args(["-c", lines]).stderr(stderr).spawn().unwrap();
    logger::start(log::LevelFilter::Info);
    let start = Instant::now();
    let mut passed_on = |now| {
        IS_EVENT_LOOP.set(true);
        IS_UP.store(true, Ordering::Relaxed);
        log.pass_on(now);
        log.tell(now);
        IS_EVENT_LOOP.set(false);
    };
    while child.try_wait().unwrap().is_none() {
        passed_on(start);
    }
    passed_on(start + Duration::from_secs(60));
    assert_eq!(COUNT.load(Ordering::Relaxed), 0);
}
