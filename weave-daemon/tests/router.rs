//! The router without sockets: what can't be brought about from outside at will.

use std::time::{Duration, Instant};

use weave_core::error::{self, ErrorCode};
use weave_core::frame::{Split, split};
use weave_core::limits::{MAX_ERROR_FRAME, MAX_REQUEST_FRAME, MAX_RESPONSE_PAYLOAD, RESPONSE_HEAD_LEN};
use weave_core::request::{Params, Prompts, Request};
use weave_core::response::{ImageSize, ResponseHead};
use weave_daemon::router::{Action, ClientId, ClientOutput, Death, Limits, Router, WorkerId, WorkerInput};

const WORKER: WorkerId = WorkerId(0);
const LIMITS: Limits = Limits {
    connections: 4,
    queue: 4,
    workers: 1,
    generation: Duration::from_secs(100),
    stall: Duration::from_secs(10),
    drain: Duration::from_secs(1000),
};

/// A router, a clock, and one worker that does as it is told.
struct World {
    router: Router,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let mut world = Self { router: Router::new(LIMITS, now), now };
        world.router.tick(now);
        assert_eq!(world.router.next_action(), Some(Action::Start(WORKER)));
        world.router.worker_up(WORKER, now);
        world
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.router.next_action()).collect()
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.router.tick(self.now);
    }

    fn client(&mut self, ids: &[u64]) -> ClientId {
        let client = self.router.accept().unwrap();
        for id in ids {
            self.send(client, &request(*id));
        }
        client
    }

    fn send(&mut self, client: ClientId, bytes: &[u8]) {
        let spare = self.router.client_spare(client);
        spare[..bytes.len()].copy_from_slice(bytes);
        self.router.client_received(client, bytes.len(), self.now);
    }

    /// The worker reads its request, which must have this id.
    fn worker_reads(&mut self, id: u64) {
        let bytes = self.router.worker_output(WORKER).to_vec();
        assert_eq!(bytes, request(id));
        self.router.worker_wrote(WORKER, bytes.len());
    }

    /// The worker writes; as much of it is read as the router wants to look at.
    fn worker_writes(&mut self, mut bytes: &[u8]) {
        while let WorkerInput::Buffer(buf) = self.router.worker_input(WORKER) {
            let n = buf.len().min(bytes.len());
            buf[..n].copy_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            if n == 0 {
                return;
            }
            self.router.worker_received(WORKER, n, self.now);
        }
    }

    /// What the client can read as whole frames now; pixels are relayed up to `pixels` bytes.
    fn client_reads(&mut self, client: ClientId, mut pixels: usize) -> (Vec<(u64, ErrorCode)>, usize, bool) {
        let (mut bytes, mut relayed) = (Vec::new(), 0);
        let closed = loop {
            match self.router.client_output(client, self.now) {
                ClientOutput::Idle => break false,
                ClientOutput::Close => break true,
                ClientOutput::Bytes(out) => {
                    // One at a time, so that every cut is seen.
                    bytes.push(out[0]);
                    self.router.client_wrote(client, 1, self.now);
                }
                ClientOutput::Relay { worker, len } => {
                    let n = len.min(pixels);
                    if n == 0 {
                        break false;
                    }
                    pixels -= n;
                    relayed += n;
                    self.router.relayed(worker, n, self.now);
                }
            }
        };
        let mut errors = Vec::new();
        let mut rest = bytes.as_slice();
        while let Ok(Split::Frame(frame, after)) = split(rest, MAX_RESPONSE_PAYLOAD) {
            let error = error::parse(&frame).unwrap();
            errors.push((error.request_id, error.code));
            rest = after;
        }
        (errors, relayed, closed)
    }
}

fn request(id: u64) -> Vec<u8> {
    let params = Params { width: 64, height: 64, steps: 1, cfg_scale: 1.0, seed: 1 };
    let mut out = [0; MAX_REQUEST_FRAME];
    Request { request_id: id, params, prompts: Prompts::same("x") }.emit(&mut out).unwrap().to_vec()
}

const PIXELS: usize = 64 * 64 * 3;

fn head(id: u64, width: u32) -> [u8; RESPONSE_HEAD_LEN] {
    let image = ImageSize::new(width, 64, 3).unwrap();
    ResponseHead { request_id: id, generation_time_ms: 1, image }.emit()
}

fn failure(id: u64) -> Vec<u8> {
    let mut out = [0; MAX_ERROR_FRAME];
    error::emit(id, ErrorCode::OutOfMemory, "too big", &mut out).unwrap().to_vec()
}

#[test]
fn an_image_and_an_error_pass_through() {
    let mut world = World::new();
    let client = world.client(&[1, 2]);
    world.worker_reads(1);
    world.worker_writes(&head(1, 64));
    assert_eq!(world.client_reads(client, usize::MAX), (vec![], PIXELS, false));
    world.worker_reads(2);
    world.worker_writes(&failure(2));
    assert_eq!(world.client_reads(client, 0), (vec![(2, ErrorCode::OutOfMemory)], 0, false));
    assert_eq!(world.router.answered(), 2);
    assert_eq!(world.router.worker_input(WORKER), WorkerInput::Silence);
}

#[test]
fn nothing_gets_between_a_head_and_its_pixels() {
    let mut world = World::new();
    let client = world.client(&[1]);
    world.worker_reads(1);
    world.worker_writes(&head(1, 64));
    assert_eq!(world.client_reads(client, 100).1, 100);
    // A bad request arrives in the middle; it is answered behind the image.
    assert!(world.router.client_spare(client).is_empty(), "and until then not even read");
    let (errors, relayed, _) = world.client_reads(client, usize::MAX);
    assert_eq!((errors, relayed), (vec![], PIXELS - 100));
    let mut bad = request(9);
    bad[39] = 0;
    world.send(client, &bad);
    assert_eq!(world.client_reads(client, 0).0, [(9, ErrorCode::InvalidSteps)]);
}

#[test]
fn a_worker_that_lies_is_ended_and_its_request_refused() {
    let lies: [(&str, Vec<u8>); 8] = [
        ("another id", head(7, 64).to_vec()),
        ("another size", head(1, 128).to_vec()),
        ("no magic", [0; 48].to_vec()),
        ("a request", request(1)),
        ("an error of another id", failure(7)),
        ("a status of 400", [&head(1, 64)[..24], &400u32.to_be_bytes(), &head(1, 64)[28..]].concat()),
        ("an error without fields", [&b"WEVE\x00\x01\x00\xff"[..], &[0; 8]].concat()),
        ("an endless error", [&b"WEVE\x00\x01\x00\xff"[..], &[0, 1, 0, 0], &[0; 4]].concat()),
    ];
    for (what, bytes) in lies {
        let mut world = World::new();
        let client = world.client(&[1, 2]);
        world.worker_reads(1);
        world.actions();
        world.worker_writes(&bytes);
        assert!(world.actions().contains(&Action::Kill(WORKER)), "{what}");
        assert_eq!(world.client_reads(client, 0).0, [(1, ErrorCode::GpuError)], "{what}");
        world.router.worker_down(WORKER, Death::Killed(9), false, world.now);
        world.pass(Duration::ZERO);
        assert!(world.actions().contains(&Action::Start(WORKER)), "{what}");
        world.router.worker_up(WORKER, world.now);
        world.worker_reads(2);
    }
}

#[test]
fn a_worker_that_speaks_unasked_is_ended() {
    let mut world = World::new();
    world.actions();
    world.router.worker_spoke(WORKER, world.now);
    assert_eq!(world.actions(), [Action::Kill(WORKER)]);
}

#[test]
fn a_worker_that_dies_in_the_middle_of_an_image_closes_that_client_only() {
    let mut world = World::new();
    let (one, two) = (world.client(&[1]), world.client(&[2]));
    world.worker_reads(1);
    world.worker_writes(&head(1, 64));
    assert_eq!(world.client_reads(one, 100), (vec![], 100, false));
    world.router.worker_down(WORKER, Death::Killed(11), false, world.now);
    assert!(world.client_reads(one, usize::MAX).2, "half a frame can only be closed");
    world.router.client_gone(one);
    world.pass(Duration::from_secs(1));
    world.router.worker_up(WORKER, world.now);
    world.worker_reads(2);
    assert_eq!(world.client_reads(two, 0), (vec![], 0, false));
}

#[test]
fn a_request_that_no_worker_has_begun_goes_to_the_next_one_but_not_for_ever() {
    let mut world = World::new();
    let client = world.client(&[1]);
    for attempt in 1..=3 {
        world.worker_reads(1);
        assert_eq!(world.client_reads(client, 0).0, [], "attempt {attempt}");
        world.router.worker_down(WORKER, Death::Exited(1), true, world.now);
        world.pass(Duration::from_secs(10));
        assert!(world.actions().contains(&Action::Start(WORKER)));
        world.router.worker_up(WORKER, world.now);
    }
    assert_eq!(world.client_reads(client, 0).0, [(1, ErrorCode::GpuError)]);
    assert_eq!(world.router.worker_output(WORKER), []);
}

#[test]
fn restarts_back_off_until_an_image_succeeds() {
    let mut world = World::new();
    let mut waits = Vec::new();
    for _ in 0..10 {
        world.router.worker_down(WORKER, Death::Exited(1), true, world.now);
        let at = world.router.wake_at().unwrap();
        waits.push(at - world.now);
        world.pass(at - world.now);
        assert!(world.actions().contains(&Action::Start(WORKER)));
        world.router.worker_up(WORKER, world.now);
    }
    assert_eq!(waits[0], Duration::ZERO);
    assert!(waits.is_sorted(), "{waits:?}");
    assert_eq!(waits[9], Duration::from_secs(10));
    let client = world.client(&[1]);
    world.worker_reads(1);
    world.worker_writes(&head(1, 64));
    world.client_reads(client, usize::MAX);
    world.router.worker_down(WORKER, Death::Exited(1), true, world.now);
    assert!(world.router.wake_at().unwrap() <= world.now);
}

#[test]
fn who_stands_still_is_given_up_and_the_other_is_not() {
    // A client that takes nothing.
    let mut world = World::new();
    let client = world.client(&[1, 2]);
    world.worker_reads(1);
    world.worker_writes(&head(1, 64));
    world.client_reads(client, 100);
    world.pass(LIMITS.stall);
    assert!(world.client_reads(client, 0).2);
    // Its image is dropped, and the worker is free again.
    assert_eq!(world.router.worker_input(WORKER), WorkerInput::Discard(PIXELS - 100));
    world.router.relayed(WORKER, PIXELS - 100, world.now);
    world.router.client_gone(client);
    assert_eq!(world.router.worker_input(WORKER), WorkerInput::Silence);
    assert_eq!(world.router.worker_output(WORKER), [], "its second request is dropped");

    // A worker that stops in the middle of its pixels: first the client is given up, then it is.
    let client = world.client(&[3]);
    world.worker_reads(3);
    world.worker_writes(&head(3, 64));
    world.client_reads(client, 100);
    world.pass(LIMITS.stall);
    assert!(world.client_reads(client, 0).2);
    world.actions();
    world.pass(LIMITS.stall);
    assert!(world.actions().contains(&Action::Kill(WORKER)));
}

#[test]
fn the_tables_are_bounded() {
    let mut world = World::new();
    let client = world.client(&[1, 2, 3, 4, 5, 6, 7]);
    // One runs, four wait, two are refused at once.
    assert_eq!(world.client_reads(client, 0).0, [(6, ErrorCode::Busy), (7, ErrorCode::Busy)]);
    world.router.client_gone(client);
    // Nor does the place of a worker that is gone count for the queue.
    world.router.worker_down(WORKER, Death::Exited(1), false, world.now);
    let client = world.client(&[1, 2, 3, 4, 5]);
    assert_eq!(world.client_reads(client, 0).0, [(5, ErrorCode::Busy)]);
    for _ in 1..LIMITS.connections {
        assert!(world.router.accept().is_some());
    }
    assert_eq!(world.router.accept(), None);
    world.router.client_gone(client);
    assert_eq!(world.router.accept(), Some(client));
}

#[test]
fn an_idle_router_asks_to_be_left_alone() {
    let mut world = World::new();
    let client = world.client(&[1]);
    world.worker_reads(1);
    world.worker_writes(&head(1, 64));
    world.client_reads(client, usize::MAX);
    world.pass(Duration::from_secs(10_000));
    world.actions();
    assert_eq!(world.router.wake_at(), None);
    assert_eq!(world.router.next_action(), None);
}
