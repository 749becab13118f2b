//! A request's whole way through the router, with a client and a worker made of bytes.

use std::time::{Duration, Instant};

use weave_benches::{example, response_head};
use weave_core::limits::RESPONSE_HEAD_LEN;
use weave_daemon::router::{
    Abandoned, Action, ClientId, ClientOutput, Limits, Order, Router, User, WorkerId, WorkerInput,
};

const WORKER: WorkerId = WorkerId(0);

/// A router with one worker, so many clients that want nothing, and one client more.
pub(crate) struct World {
    router: Router,
    client: ClientId,
    now: Instant,
    request: Vec<u8>,
    head: [u8; RESPONSE_HEAD_LEN],
    pixels: usize,
}

impl World {
    pub(crate) fn new(idle: usize) -> Self {
        let (now, long) = (Instant::now(), Duration::from_secs(3600));
        let limits = Limits {
            connections: idle + 1,
            in_flight: 4096,
            queue: 4096,
            workers: 1,
            frame: long,
            idle: long,
            queue_wait: long,
            generation: long,
            stall: long,
            busy_stall: long,
            drain: long,
            worker_idle: None,
            warm_up: false,
            abandoned: Abandoned::Finish,
            cancel: long,
        };
        let mut router = Router::new(limits, now);
        router.tick(now);
        router.worker_up(WORKER, now);
        let owner = User::Owner(1000);
        let client = (0..=idle).map(|_| router.accept(owner, now).expect("room for a client")).last();
        let client = client.expect("at least one");
        let head = response_head(512);
        let pixels = usize::try_from(head.image.data_len()).expect("a length");
        let mut this = Self { router, client, now, request: example(), head: head.emit(), pixels };
        this.take_actions();
        this
    }

    fn take_actions(&mut self) {
        while let Some(action) = self.router.next_action() {
            assert!(!matches!(action, Action::Order(_, Order::Kill)), "the worker is as it should be");
        }
    }

    /// The client asks.
    pub(crate) fn ask(&mut self) {
        let spare = self.router.client_spare(self.client);
        spare[..self.request.len()].copy_from_slice(&self.request);
        self.router.client_received(self.client, self.request.len(), self.now);
        self.take_actions();
    }

    /// The worker takes the next request and answers, the client takes all of it.
    pub(crate) fn answer(&mut self) {
        let n = self.router.worker_output(WORKER).len();
        self.router.worker_wrote(WORKER, n);
        let mut sent = 0;
        while let WorkerInput::Buffer(buffer) = self.router.worker_input(WORKER) {
            let n = buffer.len();
            buffer.copy_from_slice(&self.head[sent..sent + n]);
            sent += n;
            self.router.worker_received(WORKER, n, self.now);
        }
        self.take_actions();
        loop {
            match self.router.client_output(self.client, self.now) {
                ClientOutput::Bytes(bytes) => {
                    let n = bytes.len();
                    self.router.client_wrote(self.client, n, self.now);
                }
                ClientOutput::Relay { worker, len } => {
                    assert_eq!(len, self.pixels);
                    self.router.relayed(worker, len, self.now);
                    break;
                }
                other => panic!("an image was to come, not {other:?}"),
            }
        }
        self.take_actions();
    }
}
