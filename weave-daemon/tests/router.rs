//! The router without sockets: what can't be brought about from outside at will.

use std::time::{Duration, Instant};

use weave_core::error::{self, ErrorCode};
use weave_core::frame::{Split, split};
use weave_core::limits::{MAX_ERROR_FRAME, MAX_REQUEST_FRAME, MAX_RESPONSE_PAYLOAD, RESPONSE_HEAD_LEN};
use weave_core::request::{Params, Prompts, Request};
use weave_core::response::{ImageSize, ResponseHead};
use weave_daemon::causes::Death;
use weave_daemon::router::{
    Abandoned, Action, Bound, ClientId, ClientOutput, Full, Limits, Order, Router, Unread, User, Who,
    WorkerId, WorkerInput,
};

const WORKER: WorkerId = WorkerId(0);
const OWNER: User = User::Owner(1000);
const LIMITS: Limits = Limits {
    connections: 4,
    in_flight: 8,
    queue: 4,
    workers: 1,
    frame: Duration::from_secs(20),
    idle: Duration::from_secs(100_000),
    queue_wait: Duration::from_secs(10_000),
    generation: Duration::from_secs(100),
    stall: Duration::from_secs(10),
    busy_stall: Duration::from_secs(2),
    drain: Duration::from_secs(1000),
    worker_idle: None,
    warm_up: false,
    abandoned: Abandoned::Finish,
    cancel: Duration::from_secs(5),
};

/// A router, a clock, and one worker that does as it is told.
struct World {
    router: Router,
    now: Instant,
}

impl World {
    fn new() -> Self {
        Self::with(LIMITS)
    }

    fn with(limits: Limits) -> Self {
        let now = Instant::now();
        let mut world = Self { router: Router::new(limits, now), now };
        world.router.tick(now);
        assert_eq!(world.router.next_action(), Some(Action::Order(WORKER, Order::Start)));
        world.router.worker_up(WORKER, now);
        world
    }

    /// The worker dies by itself and is back at once.
    fn worker_dies(&mut self, death: Death) {
        self.router.worker_down(WORKER, death, Unread::Nothing, self.now);
        self.pass(Duration::from_secs(10));
        assert!(self.actions().contains(&Action::Order(WORKER, Order::Start)));
        self.router.worker_up(WORKER, self.now);
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.router.next_action()).collect()
    }

    /// Who waits, in the order in which the router says that they have their turn.
    fn in_turn(&self) -> Vec<u64> {
        self.router.waiting_requests(self.now).map(|waiting| waiting.request_id).collect()
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.router.tick(self.now);
    }

    fn client(&mut self, ids: &[u64]) -> ClientId {
        self.client_of(OWNER, ids)
    }

    fn client_of(&mut self, user: User, ids: &[u64]) -> ClientId {
        let client = self.router.accept(user, self.now).unwrap();
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
        assert_eq!(self.worker_reads_any(), request(id));
    }

    fn worker_reads_any(&mut self) -> Vec<u8> {
        let bytes = self.router.worker_output(WORKER).to_vec();
        self.router.worker_wrote(WORKER, bytes.len());
        bytes
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
                ClientOutput::Nothing => break false,
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
    assert_eq!(world.router.counters().requests(), 2);
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
        assert!(world.actions().contains(&Action::Order(WORKER, Order::Kill)), "{what}");
        assert_eq!(world.client_reads(client, 0).0, [(1, ErrorCode::GpuError)], "{what}");
        world.router.worker_down(WORKER, Death::Killed(9), Unread::Nothing, world.now);
        world.pass(Duration::ZERO);
        assert!(world.actions().contains(&Action::Order(WORKER, Order::Start)), "{what}");
        world.router.worker_up(WORKER, world.now);
        world.worker_reads(2);
    }
}

#[test]
fn a_worker_that_speaks_unasked_is_ended() {
    let mut world = World::new();
    world.actions();
    world.router.worker_spoke(WORKER, world.now);
    assert_eq!(world.actions(), [Action::Order(WORKER, Order::Kill)]);
}

#[test]
fn a_worker_that_dies_in_the_middle_of_an_image_closes_that_client_only() {
    let mut world = World::new();
    let (one, two) = (world.client(&[1]), world.client(&[2]));
    world.worker_reads(1);
    world.worker_writes(&head(1, 64));
    assert_eq!(world.client_reads(one, 100), (vec![], 100, false));
    world.router.worker_down(WORKER, Death::Killed(11), Unread::Nothing, world.now);
    assert!(world.client_reads(one, usize::MAX).2, "half a frame can only be closed");
    world.router.client_gone(one, world.now);
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
        world.router.worker_down(WORKER, Death::Exited(1), Unread::Request, world.now);
        world.pass(Duration::from_secs(10));
        assert!(world.actions().contains(&Action::Order(WORKER, Order::Start)));
        world.router.worker_up(WORKER, world.now);
    }
    assert_eq!(world.client_reads(client, 0).0, [(1, ErrorCode::GpuError)]);
    assert_eq!(world.router.worker_output(WORKER), b"");
}

#[test]
fn a_request_is_not_tried_for_ever_though_another_worker_lives() {
    let mut world = World::with(Limits { workers: 2, ..LIMITS });
    world.actions();
    world.router.worker_up(WorkerId(1), world.now);
    let client = world.client(&[1, 2]);
    let n = world.router.worker_output(WorkerId(1)).len();
    world.router.worker_wrote(WorkerId(1), n);
    for attempt in 1..=3 {
        world.worker_reads(1);
        assert_eq!(world.client_reads(client, 0).0, [], "attempt {attempt}");
        world.router.worker_down(WORKER, Death::Exited(1), Unread::Request, world.now);
        world.pass(Duration::from_secs(10));
        world.actions();
        world.router.worker_up(WORKER, world.now);
    }
    assert_eq!(world.client_reads(client, 0).0, [(1, ErrorCode::GpuError)]);
    assert_eq!(world.router.running(), 1, "the other one has its own");
}

#[test]
fn restarts_back_off_until_an_image_succeeds() {
    let mut world = World::new();
    let mut waits = Vec::new();
    for _ in 0..10 {
        world.router.worker_down(WORKER, Death::Exited(1), Unread::Request, world.now);
        let at = world.router.wake_at().unwrap();
        waits.push(at - world.now);
        world.pass(at - world.now);
        assert!(world.actions().contains(&Action::Order(WORKER, Order::Start)));
        world.router.worker_up(WORKER, world.now);
    }
    assert_eq!(waits[0], Duration::ZERO);
    assert!(waits.is_sorted(), "{waits:?}");
    assert_eq!(waits[9], Duration::from_secs(10));
    let client = world.client(&[1]);
    world.worker_reads(1);
    world.worker_writes(&head(1, 64));
    world.client_reads(client, usize::MAX);
    world.router.worker_down(WORKER, Death::Exited(1), Unread::Request, world.now);
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
    world.router.client_gone(client, world.now);
    assert_eq!(world.router.worker_input(WORKER), WorkerInput::Silence);
    assert_eq!(world.router.worker_output(WORKER), b"", "its second request is dropped");

    // A worker that stops in the middle of its pixels: first the client is given up, then it is.
    let client = world.client(&[3]);
    world.worker_reads(3);
    world.worker_writes(&head(3, 64));
    world.client_reads(client, 100);
    world.pass(LIMITS.stall);
    assert!(world.client_reads(client, 0).2);
    world.actions();
    world.pass(LIMITS.stall);
    assert!(world.actions().contains(&Action::Order(WORKER, Order::Kill)));
}

#[test]
fn the_tables_are_bounded() {
    let mut world = World::new();
    let client = world.client(&[1, 2, 3, 4, 5, 6, 7]);
    // One runs, four wait, two are refused at once.
    assert_eq!(world.client_reads(client, 0).0, [(6, ErrorCode::Busy), (7, ErrorCode::Busy)]);
    world.router.client_gone(client, world.now);
    // Nor does the place of a worker that is gone count for the queue.
    world.router.worker_down(WORKER, Death::Exited(1), Unread::Nothing, world.now);
    let client = world.client(&[1, 2, 3, 4, 5]);
    assert_eq!(world.client_reads(client, 0).0, [(5, ErrorCode::Busy)]);
    for _ in 1..LIMITS.connections {
        assert!(world.router.accept(OWNER, world.now).is_ok());
    }
    let full = Full { bound: Bound::All(LIMITS.connections), user: OWNER };
    assert_eq!(world.router.accept(OWNER, world.now), Err(full));
    world.router.client_gone(client, world.now);
    assert_eq!(world.router.accept(OWNER, world.now), Ok(client));
}

/// The id of the request that a worker was given.
fn id_of(frame: &[u8]) -> u64 {
    let Ok(Split::Frame(frame, _)) = split(frame, MAX_RESPONSE_PAYLOAD) else { panic!("a frame") };
    frame.request_id()
}

#[test]
fn clients_are_served_in_turns() {
    let mut world = World::with(Limits { queue: 20, ..LIMITS });
    let hog = world.client(&[1, 2, 3, 4, 5, 6]);
    let (one, two) = (world.client(&[11, 12]), world.client(&[21]));
    let mut served = Vec::new();
    let told = world.in_turn();
    for _ in 0..9 {
        served.push(id_of(&world.worker_reads_any()));
        world.worker_writes(&failure(*served.last().unwrap()));
        for client in [hog, one, two] {
            world.client_reads(client, 0);
        }
    }
    // The hog was there first; from then on nobody waits longer than one request of each other client.
    assert_eq!(served, [1, 2, 11, 21, 3, 12, 4, 5, 6]);
    assert_eq!(told, served[1..], "what the router says of turns is what it does");
}

#[test]
fn users_are_served_in_turns_however_many_connections_they_have() {
    let mut world = World::with(Limits { connections: 16, queue: 64, ..LIMITS });
    let (hog, other, third) = (User::Uid(1), User::Uid(2), User::Ipv4(1));
    let mut clients: Vec<_> =
        [1, 4, 7, 10].map(|id| world.client_of(hog, &[id, id + 1, id + 2])).into_iter().collect();
    clients.push(world.client_of(other, &[21, 22, 23]));
    clients.push(world.client_of(third, &[31]));
    clients.push(world.client_of(third, &[32]));
    clients.push(world.client(&[41, 42]));
    let told = world.in_turn();
    let served: Vec<_> = std::iter::from_fn(|| {
        let request = world.worker_reads_any();
        let id = (!request.is_empty()).then(|| id_of(&request))?;
        world.worker_writes(&failure(id));
        clients.iter().for_each(|client| _ = world.client_reads(*client, 0));
        Some(id)
    })
    .collect();
    // The first one was given away before the others came.
    assert_eq!(served, [1, 2, 21, 31, 41, 4, 22, 32, 42, 7, 23, 10, 3, 5, 8, 11, 6, 9, 12]);
    assert_eq!(told, served[1..], "what the router says of turns is what it does");
}

#[test]
fn a_request_that_nobody_has_begun_is_the_next_one_of_its_user() {
    let mut world = World::with(Limits { connections: 16, queue: 64, ..LIMITS });
    let (hog, other) = (User::Uid(1), User::Uid(2));
    let clients = [world.client_of(hog, &[1]), world.client_of(hog, &[2]), world.client_of(other, &[3])];
    world.router.worker_down(WORKER, Death::Exited(1), Unread::Request, world.now);
    world.pass(Duration::from_secs(10));
    world.actions();
    world.router.worker_up(WORKER, world.now);
    assert_eq!(world.in_turn(), [3, 2]);
    for id in [1, 3, 2] {
        world.worker_reads(id);
        world.worker_writes(&failure(id));
        clients.iter().for_each(|client| _ = world.client_reads(*client, 0));
    }
}

#[test]
fn who_is_not_the_owner_has_half_of_the_places_and_leaves_some_for_the_owner() {
    // Connections and queue of each size; what one guest may have of it, and what all of them may.
    for (places, each, guests) in
        [(1, 1, 1), (2, 1, 1), (3, 1, 2), (4, 2, 3), (16, 8, 15), (17, 8, 15), (64, 32, 60), (256, 128, 240)]
    {
        let mut world = World::with(Limits { connections: places, queue: places, in_flight: 1000, ..LIMITS });
        let mut taken = 0;
        for user in (1..=4).map(User::Uid) {
            let had = taken;
            let full = loop {
                match world.router.accept(user, world.now) {
                    Ok(_) => taken += 1,
                    Err(full) => break full,
                }
            };
            let bound = if taken - had == each { Bound::Each(each) } else { Bound::Guests(guests) };
            assert_eq!(full, Full { bound, user }, "{places}: {taken}");
        }
        assert_eq!(taken, guests, "{places}");
        for _ in guests..places {
            world.router.accept(OWNER, world.now).unwrap();
        }
        let full = Full { bound: Bound::All(places), user: User::Owner(0) };
        assert_eq!(world.router.accept(User::Owner(0), world.now), Err(full));
    }
    let mut world = World::with(Limits { connections: 64, queue: 16, in_flight: 1000, ..LIMITS });
    let first = world.client(&[1000]);
    let queued = |world: &mut World, user, ids: std::ops::Range<u64>| {
        let client = world.client_of(user, &ids.collect::<Vec<_>>());
        world.client_reads(client, 0);
        world.router.waiting()
    };
    assert_eq!(queued(&mut world, User::Uid(1), 1..5), 4);
    // Wherever it asks from.
    assert_eq!(queued(&mut world, User::Uid(1), 1..7), 8);
    assert_eq!(queued(&mut world, User::Uid(2), 1..5), 12);
    assert_eq!(queued(&mut world, User::Uid(3), 1..7), 15);
    assert_eq!(queued(&mut world, OWNER, 1..4), 16);
    assert_eq!(world.client_reads(first, 0), (vec![], 0, false));
}

#[test]
fn errors_that_nobody_takes_do_not_use_up_what_is_kept_for_the_owner() {
    let mut world = World::with(Limits { connections: 64, queue: 16, in_flight: 1000, ..LIMITS });
    let deaf = [User::Uid(1), User::Uid(2), User::Uid(3)].map(|user| {
        let ids: Vec<_> = (1..=6).collect();
        world.client_of(user, &ids)
    });
    assert_eq!(world.router.waiting(), 15);
    for id in 0..16 {
        let request = world.worker_reads_any();
        assert!(!request.is_empty(), "{id}");
        let id = id_of(&request);
        world.worker_writes(&failure(id));
    }
    // All of them have failed, and their errors wait: there is no room for more of theirs.
    world.send(deaf[0], &request(7));
    assert_eq!((world.router.waiting(), world.router.running()), (0, 0));
    let owner = world.client(&[1, 2]);
    assert_eq!((world.router.waiting(), world.router.running()), (1, 1));
    assert_eq!(world.client_reads(owner, 0).0, []);
    assert_eq!(world.client_reads(deaf[0], 0).0[0], (7, ErrorCode::Busy));
}

#[test]
fn a_newcomer_gets_the_place_that_was_idle_longest_of_whoever_has_most() {
    let mut world = World::with(Limits { connections: 16, ..LIMITS });
    let (one, two, three) = (User::Uid(1), User::Uid(2), User::Ipv6(3));
    let most: Vec<_> = (0..8).map(|_| world.client_of(one, &[])).collect();
    let fewer: Vec<_> = (0..7).map(|_| world.client_of(two, &[])).collect();
    // The first has a request under way, the second has just asked.
    world.send(most[0], &request(1));
    world.pass(Duration::from_millis(600));
    let mut bad = request(9);
    bad[39] = 0;
    world.send(most[1], &bad);
    assert_eq!(world.client_reads(most[1], 0).0, [(9, ErrorCode::InvalidSteps)]);
    let guests = Full { bound: Bound::Guests(15), user: three };
    assert_eq!(world.router.displaced_by(three, world.now), None, "nobody was idle for long");
    assert_eq!(world.router.accept(three, world.now), Err(guests));
    world.pass(Duration::from_millis(400));
    // Who has as many as may be is told so, and nobody makes room for the one who has most.
    assert_eq!(world.router.displaced_by(one, world.now), None);
    let gone = world.router.displaced_by(three, world.now).unwrap();
    assert!(most[2..].contains(&gone), "{gone:?}");
    world.router.client_gone(gone, world.now);
    world.router.accept(three, world.now).unwrap();
    assert_eq!(world.router.counters().cuts.iter().sum::<u64>(), 1);
    // Both have seven now: none has more than the other.
    assert_eq!(world.router.displaced_by(two, world.now), None);
    // The owner has what is kept, and beyond that a newcomer's rights.
    assert_eq!(world.router.displaced_by(OWNER, world.now), None);
    world.router.accept(OWNER, world.now).unwrap();
    let gone = world.router.displaced_by(OWNER, world.now).unwrap();
    assert!(most.contains(&gone) || fewer.contains(&gone), "{gone:?}");
}

#[test]
fn who_talks_and_asks_for_nothing_makes_room() {
    let bad = |world: &mut World, client| {
        let mut bad = request(9);
        bad[39] = 0;
        world.send(client, &bad);
    };
    type Habit = fn(&mut World, ClientId, &dyn Fn(&mut World, ClientId));
    let habits: [(&str, Habit); 3] = [
        ("bad requests", |world, client, bad| {
            bad(world, client);
            world.client_reads(client, 0);
        }),
        ("frames that it does not end", |world, client, bad| {
            bad(world, client);
            world.client_reads(client, 0);
            world.send(client, &request(1)[..20]);
        }),
        ("errors that it does not take", |world, client, bad| {
            bad(world, client);
            // The socket is full.
            let _ = world.router.client_output(client, world.now);
            world.pass(Duration::from_secs(1));
        }),
    ];
    for (what, habit) in habits {
        let mut world = World::with(Limits { connections: 16, ..LIMITS });
        let all: Vec<_> = (0..15).map(|at| world.client_of(User::Uid(1 + at / 8), &[])).collect();
        world.pass(Duration::from_secs(1));
        for client in &all[..8] {
            habit(&mut world, *client, &bad);
        }
        let gone = world.router.displaced_by(User::Uid(3), world.now);
        assert!(gone.is_some_and(|gone| all[..8].contains(&gone)), "{what}");
    }
}

#[test]
fn one_client_has_no_more_requests_under_way_than_it_may() {
    let mut world = World::with(Limits { in_flight: 2, ..LIMITS });
    let client = world.client(&[1, 2, 3]);
    assert_eq!(world.client_reads(client, 0).0, [(3, ErrorCode::Busy)]);
    let other = world.client(&[4]);
    assert_eq!(world.client_reads(other, 0).0, []);
    world.worker_reads(1);
    world.worker_writes(&failure(1));
    world.client_reads(client, 0);
    world.send(client, &request(5));
    assert_eq!(world.client_reads(client, 0).0, [], "an answer makes room for a request");
}

#[test]
fn a_frame_has_to_be_complete_in_time() {
    let mut world = World::new();
    let client = world.client(&[]);
    let whole = request(1);
    for (at, byte) in whole.iter().enumerate() {
        assert_eq!(world.client_reads(client, 0), (vec![], 0, false), "byte {at}");
        world.send(client, &[*byte]);
        world.pass(LIMITS.frame / 100);
    }
    world.send(client, &whole[..20]);
    // The time counts from the frame's first byte, not from the last one.
    world.pass(LIMITS.frame / 2);
    world.send(client, &whole[20..30]);
    world.pass(LIMITS.frame / 2);
    assert_eq!(world.client_reads(client, 0), (vec![(0, ErrorCode::Timeout)], 0, true));
}

#[test]
fn who_wants_nothing_may_stay_for_a_while() {
    let mut world = World::with(Limits { idle: Duration::from_secs(60), ..LIMITS });
    let (idle, busy) = (world.client(&[]), world.client(&[1]));
    world.worker_reads(1);
    world.pass(Duration::from_secs(59));
    assert_eq!(world.client_reads(idle, 0), (vec![], 0, false));
    world.pass(Duration::from_secs(1));
    assert_eq!(world.client_reads(idle, 0), (vec![], 0, true), "closed without a word");
    assert_eq!(world.client_reads(busy, 0), (vec![], 0, false), "who waits is not idle");
    world.worker_writes(&failure(1));
    world.client_reads(busy, 0);
    world.pass(Duration::from_secs(59));
    assert_eq!(world.client_reads(busy, 0), (vec![], 0, false), "its time counts from its answer");
    world.pass(Duration::from_secs(1));
    assert_eq!(world.client_reads(busy, 0), (vec![], 0, true));
}

#[test]
fn a_request_does_not_wait_for_ever() {
    let mut world = World::with(Limits { queue_wait: Duration::from_secs(60), ..LIMITS });
    let client = world.client(&[1, 2]);
    world.worker_reads(1);
    world.pass(Duration::from_secs(30));
    world.send(client, &request(3));
    world.pass(Duration::from_secs(30));
    assert_eq!(world.client_reads(client, 0).0, [(2, ErrorCode::Timeout)]);
    world.worker_writes(&failure(1));
    world.worker_reads(3);
}

#[test]
fn who_takes_an_image_slowly_has_less_time_while_others_wait() {
    for (others_wait, is_cut_off) in [(false, false), (true, true)] {
        let mut world = World::new();
        let slow = world.client(&[1]);
        world.worker_reads(1);
        world.worker_writes(&head(1, 64));
        world.client_reads(slow, 100);
        let other = others_wait.then(|| world.client(&[2]));
        world.pass(LIMITS.busy_stall);
        assert_eq!(world.client_reads(slow, 0).2, is_cut_off);
        if other.is_some() {
            world.router.relayed(WORKER, PIXELS - 100, world.now);
            world.worker_reads(2);
        }
    }
}

#[test]
fn a_request_that_ended_two_workers_is_refused_for_an_hour() {
    let mut world = World::with(Limits { idle: Duration::from_secs(100_000), ..LIMITS });
    let client = world.client(&[]);
    for _ in 0..2 {
        world.send(client, &request(1));
        world.worker_reads(1);
        world.worker_dies(Death::Killed(6));
        assert_eq!(world.client_reads(client, 0).0, [(1, ErrorCode::GpuError)]);
    }
    // Whatever its id and whoever asks.
    let other = world.client(&[77]);
    assert_eq!(world.client_reads(other, 0).0, [(77, ErrorCode::GpuError)]);
    assert_eq!(world.router.worker_output(WORKER), b"");
    let mut another = request(78);
    another[16 + 31] ^= 1;
    world.send(other, &another);
    assert_eq!(id_of(&world.worker_reads_any()), 78, "another seed is another request");
    world.worker_writes(&failure(78));
    world.client_reads(other, 0);
    world.pass(Duration::from_secs(3600));
    world.send(client, &request(1));
    world.worker_reads(1);
}

#[test]
fn a_worker_that_cannot_make_an_image_is_given_no_request() {
    let mut world = World::with(Limits { warm_up: true, ..LIMITS });
    let client = world.client(&[1]);
    for attempt in 1..=3 {
        assert_eq!(id_of(&world.worker_reads_any()), 0, "first an image that nobody asked for");
        assert_eq!(world.client_reads(client, 0).0, [], "attempt {attempt}");
        match attempt {
            1 => world.worker_writes(&failure(0)),
            2 => world.worker_writes(&head(0, 128)),
            _ => {}
        }
        if attempt < 3 {
            assert!(world.actions().contains(&Action::Order(WORKER, Order::Kill)), "attempt {attempt}");
        }
        world.worker_dies(Death::Exited(1));
    }
    assert_eq!(world.client_reads(client, 0).0, [(1, ErrorCode::GpuError)], "nobody will come");
    world.worker_reads_any();
    world.worker_writes(&head(0, 64));
    assert_eq!(world.router.worker_input(WORKER), WorkerInput::Discard(PIXELS));
    world.router.relayed(WORKER, PIXELS, world.now);
    world.send(client, &request(2));
    world.worker_reads(2);
}

#[test]
fn an_unused_worker_is_ended_and_comes_back_for_the_next_request() {
    let mut world = World::with(Limits { worker_idle: Some(Duration::from_secs(60)), ..LIMITS });
    let client = world.client(&[1]);
    world.worker_reads(1);
    world.pass(Duration::from_secs(59));
    world.worker_writes(&failure(1));
    world.client_reads(client, 0);
    world.pass(Duration::from_secs(59));
    assert!(!world.actions().contains(&Action::Order(WORKER, Order::Kill)));
    world.pass(Duration::from_secs(1));
    assert!(world.actions().contains(&Action::Order(WORKER, Order::Kill)));
    world.router.worker_down(WORKER, Death::Killed(9), Unread::Nothing, world.now);
    world.pass(Duration::from_secs(1000));
    assert!(!world.actions().contains(&Action::Order(WORKER, Order::Start)), "nobody needs it");
    world.send(client, &request(2));
    world.pass(Duration::ZERO);
    assert!(world.actions().contains(&Action::Order(WORKER, Order::Start)));
    world.router.worker_up(WORKER, world.now);
    world.worker_reads(2);
}

#[test]
fn a_running_request_whose_client_is_gone_is_finished_or_given_up() {
    for abandoned in [Abandoned::Finish, Abandoned::Cancel] {
        let mut world = World::with(Limits { abandoned, ..LIMITS });
        let client = world.client(&[1]);
        world.worker_reads(1);
        world.actions();
        world.router.client_gone(client, world.now);
        let is_cancelled = world.actions().contains(&Action::Order(WORKER, Order::Cancel(1)));
        assert_eq!(is_cancelled, abandoned == Abandoned::Cancel);
        let running = (world.router.running(), world.router.running_abandoned());
        assert_eq!(running, (1, 1), "the worker is busy with what nobody waits for");
        if is_cancelled {
            assert_eq!(world.router.counters().requests(), 1, "nobody waits for it");
            world.worker_writes(&failure(1));
            assert_eq!((world.router.running(), world.router.running_abandoned()), (0, 0));
        } else {
            world.worker_writes(&head(1, 64));
            assert_eq!(world.router.worker_input(WORKER), WorkerInput::Discard(PIXELS));
        }
    }
}

#[test]
fn a_worker_that_gives_up_gets_the_next_request_once_it_has_said_so() {
    // It gives up, or it was done just then.
    let answers: [(&[u8], usize); 2] = [(&failure(1), 0), (&head(1, 64), PIXELS)];
    for (answer, pixels) in answers {
        let mut world = World::with(Limits { abandoned: Abandoned::Cancel, ..LIMITS });
        let leaving = world.client(&[1]);
        world.worker_reads(1);
        let staying = world.client(&[2]);
        world.router.client_gone(leaving, world.now);
        assert!(world.actions().contains(&Action::Order(WORKER, Order::Cancel(1))));
        assert!(world.router.worker_output(WORKER).is_empty(), "not before it has answered");
        world.worker_writes(answer);
        if pixels > 0 {
            assert_eq!(world.router.worker_input(WORKER), WorkerInput::Discard(pixels));
            world.router.relayed(WORKER, pixels, world.now);
        }
        world.worker_reads(2);
        world.worker_writes(&head(2, 64));
        assert_eq!(world.client_reads(staying, usize::MAX), (vec![], PIXELS, false));
        // It is the same worker, and the time to give up has no meaning any more.
        world.pass(LIMITS.cancel);
        assert!(
            !world
                .actions()
                .iter()
                .any(|action| matches!(action, Action::Order(_, Order::Kill | Order::Cancel(_))))
        );
    }
}

#[test]
fn a_worker_that_does_not_give_up_is_ended() {
    let mut world = World::with(Limits { abandoned: Abandoned::Cancel, ..LIMITS });
    let leaving = world.client(&[1]);
    world.worker_reads(1);
    world.router.client_gone(leaving, world.now);
    world.actions();
    world.pass(LIMITS.cancel - Duration::from_millis(1));
    assert_eq!(world.actions(), []);
    world.pass(Duration::from_millis(1));
    assert_eq!(world.actions(), [Action::Order(WORKER, Order::Kill)]);
    world.router.worker_down(WORKER, Death::Killed(9), Unread::Nothing, world.now);
    assert!(world.router.wake_at().unwrap() <= world.now, "no back-off: nobody knows whose fault it was");
}

#[test]
fn a_request_that_takes_too_long_is_answered_at_once_and_given_up() {
    let mut world = World::new();
    let client = world.client(&[1, 2]);
    world.worker_reads(1);
    world.actions();
    world.pass(LIMITS.generation);
    assert!(world.actions().contains(&Action::Order(WORKER, Order::Cancel(1))));
    assert_eq!(world.client_reads(client, 0).0, [(1, ErrorCode::Timeout)]);
    world.worker_writes(&failure(1));
    world.worker_reads(2);
    // The second one takes too long, too, and now the worker doesn't listen.
    world.pass(LIMITS.generation);
    assert!(world.actions().contains(&Action::Order(WORKER, Order::Cancel(2))), "it is the worker's second");
    assert_eq!(world.client_reads(client, 0).0, [(2, ErrorCode::Timeout)]);
    world.pass(LIMITS.cancel);
    assert!(world.actions().contains(&Action::Order(WORKER, Order::Kill)));
}

#[test]
fn who_cannot_be_told_is_ended() {
    // It has not read all of the request, or there is no time for it to give up.
    for (cancel, reads) in [(LIMITS.cancel, false), (Duration::ZERO, true)] {
        let mut world = World::with(Limits { abandoned: Abandoned::Cancel, cancel, ..LIMITS });
        let leaving = world.client(&[1]);
        if reads {
            world.worker_reads(1);
        }
        world.actions();
        world.router.client_gone(leaving, world.now);
        assert!(world.actions().contains(&Action::Order(WORKER, Order::Kill)));
    }
}

#[test]
fn what_a_worker_says_while_it_gives_up_has_to_make_sense_as_ever() {
    for lie in [head(7, 64).to_vec(), head(1, 128).to_vec(), failure(2)] {
        let mut world = World::with(Limits { abandoned: Abandoned::Cancel, ..LIMITS });
        let leaving = world.client(&[1]);
        world.worker_reads(1);
        world.router.client_gone(leaving, world.now);
        world.actions();
        world.worker_writes(&lie);
        assert_eq!(world.actions(), [Action::Order(WORKER, Order::Kill)]);
    }
}

#[test]
fn a_worker_whose_order_was_taken_is_still_looked_at() {
    let mut world = World::with(Limits { abandoned: Abandoned::Cancel, ..LIMITS });
    let leaving = world.client(&[1]);
    world.worker_reads(1);
    world.actions();
    world.router.client_gone(leaving, world.now);
    let actions = world.actions();
    let order = actions.iter().position(|action| *action == Action::Order(WORKER, Order::Cancel(1))).unwrap();
    assert!(actions[order..].contains(&Action::Look(Who::Worker(WORKER))), "{actions:?}");
}

#[test]
fn an_idle_router_asks_to_be_left_alone() {
    let mut world = World::new();
    let client = world.client(&[1]);
    world.worker_reads(1);
    world.worker_writes(&head(1, 64));
    world.client_reads(client, usize::MAX);
    world.router.client_gone(client, world.now);
    world.pass(Duration::from_secs(100_000));
    world.actions();
    assert_eq!(world.router.wake_at(), None);
    assert_eq!(world.router.next_action(), None);
}

/// Sockets, files, threads, clocks and chance are the driver's, or a seed would not make the same world twice.
#[test]
fn the_router_asks_the_system_for_nothing() {
    let std_has = ["cmp", "collections", "fmt", "hash", "iter", "mem", "ops", "time"];
    let crates = ["super", "heapless", "weave_core", "log", "u32", "u64", "usize"];
    let of_weave_core = ["error", "fmt", "request"];
    let rooms = [
        "agenda",
        "answer",
        "connection",
        "consistency",
        "interface",
        "jobs",
        "refusal",
        "requests",
        "shared",
        "turns",
        "users",
        "worker",
    ];
    let roots = [&crates[..], &of_weave_core, &rooms].concat();
    let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/router")).unwrap();
    let mut paths = 0;
    for file in files.map(|file| file.unwrap().path()) {
        let text = std::fs::read_to_string(&file).unwrap().replace("::<", "<");
        for line in text.lines().map(|line| line.split("//").next().unwrap()) {
            for path in line.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':') {
                let Some((root, rest)) = path.split_once("::") else { continue };
                paths += 1;
                let is_allowed = match root {
                    "std" => std_has.contains(&rest.split("::").next().unwrap()),
                    "crate" => {
                        ["causes", "counters", "repeats", "user"].iter().any(|room| rest.starts_with(room))
                    }
                    // A method of a type in angle brackets.
                    "" => !rest.contains("::"),
                    _ => root.starts_with(char::is_uppercase) || roots.contains(&root),
                };
                assert!(is_allowed, "{}: {line}", file.display());
            }
            for word in ["Instant::now", "elapsed", "SystemTime", "HashMap", "HashSet", "RandomState"] {
                assert!(!line.contains(word), "{}: {line}", file.display());
            }
        }
    }
    assert!(paths > 200, "only {paths} paths were seen");
}
