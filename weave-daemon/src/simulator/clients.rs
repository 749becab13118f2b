//! Clients of every temperament.

use std::collections::{BTreeMap, VecDeque};

use weave_core::error::ErrorCode;
use weave_core::limits::MAX_REQUEST_FRAME;
use weave_core::request::{Params, Prompts, Request};

use super::choices::{Choices, Luck};
use super::report::{News, Report};

/// How a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manners {
    /// Sends whole requests and reads at once.
    Good,
    /// Good, but sends a lot before it reads.
    Pipelining,
    /// Sends a few bytes at a time.
    Dripping,
    /// Reads a little at a time.
    SlowReader,
    /// Reads nothing.
    Deaf,
    /// Sends what is no request.
    Garbling,
    /// Says nothing, or half of something.
    Silent,
    /// Says its last after a request.
    HalfClosing,
    /// Hangs up at any moment.
    Fleeting,
}

const MANNERS: [Manners; 12] = [
    Manners::Good,
    Manners::Good,
    Manners::Good,
    Manners::Pipelining,
    Manners::Pipelining,
    Manners::Dripping,
    Manners::SlowReader,
    Manners::Deaf,
    Manners::Garbling,
    Manners::Silent,
    Manners::HalfClosing,
    Manners::Fleeting,
];

/// A request that was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    /// Tells this request from all others: its seed, and the colour of its pixels.
    pub(super) tag: u64,
    pub(super) width: u32,
    pub(super) height: u32,
    /// The error that it has to get, if it is a wrong one.
    pub(super) fault: Option<ErrorCode>,
}

/// What a client is about to receive.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reading {
    /// The next frame, of which so many bytes are there.
    Frame,
    /// Pixels of this image, from the one to the other.
    Pixels { tag: u64, at: u64, end: u64 },
}

/// What a client has done.
pub(super) enum Acted {
    Stayed(News),
    HungUp(News),
}

/// A client, and both directions of its socket.
pub(super) struct Client {
    pub(super) manners: Manners,
    /// Not sent yet.
    pub(super) script: VecDeque<u8>,
    /// Sent, and not yet read by the router.
    pub(super) sent: VecDeque<u8>,
    pub(super) has_said_its_last: bool,
    pub(super) last_is_heard: bool,
    /// Bytes that its side of the socket takes.
    pub(super) room: usize,
    /// Those that it took and that the client has not read.
    pub(super) held: usize,
    /// Those that the client has read since the router asked last.
    pub(super) has_read: usize,
    pub(super) asked: BTreeMap<u64, Vec<Asked>>,
    /// What has arrived of a frame.
    pub(super) head: Vec<u8>,
    pub(super) reading: Reading,
    /// It has sent what makes the router reject its stream.
    pub(super) is_lost: bool,
    next_id: u64,
}

impl Client {
    pub(super) fn new(luck: &mut Luck<impl Choices>) -> Self {
        let manners = MANNERS[luck.below(MANNERS.len())];
        let room = match manners {
            Manners::Deaf => luck.below(3) * 20_000,
            Manners::SlowReader | Manners::Dripping => 3000,
            _ => 1 << 16,
        };
        Self {
            manners,
            script: VecDeque::new(),
            sent: VecDeque::new(),
            has_said_its_last: false,
            last_is_heard: false,
            room,
            held: 0,
            has_read: 0,
            asked: BTreeMap::new(),
            head: Vec::new(),
            reading: Reading::Frame,
            is_lost: false,
            next_id: 1,
        }
    }

    /// Requests that are not answered yet.
    pub(super) fn owes(&self) -> usize {
        self.asked.values().map(Vec::len).sum()
    }

    /// Does something. `tags`: the last one that was given to a request.
    pub(super) fn act(
        &mut self,
        luck: &mut Luck<impl Choices>,
        tags: &mut u64,
        report: &mut Report,
    ) -> Acted {
        let owes = self.owes();
        let mut ask = |client: &mut Self, luck: &mut _, fault| client.ask(luck, tags, report, fault);
        let mut news = match self.manners {
            Manners::Good => {
                if owes < 2 {
                    ask(self, luck, None);
                }
                self.send(usize::MAX)
            }
            Manners::Pipelining => {
                if owes < 4 {
                    for _ in 0..luck.below(16) {
                        ask(self, luck, None);
                    }
                }
                self.send(usize::MAX)
            }
            Manners::Dripping => {
                if self.script.is_empty() {
                    ask(self, luck, None);
                }
                let n = 1 + luck.below(30);
                self.send(n)
            }
            Manners::SlowReader | Manners::Deaf => {
                if owes < 6 {
                    ask(self, luck, None);
                }
                self.send(usize::MAX)
            }
            Manners::Garbling => {
                match luck.below(8) {
                    0 if owes == 0 => {
                        self.script.extend(b"GET / HTTP/1.1\r\n\r\n");
                        self.is_lost = true;
                    }
                    1 | 2 => ask(self, luck, Some(ErrorCode::UnsupportedType)),
                    3 | 4 => ask(self, luck, Some(ErrorCode::InvalidSteps)),
                    _ => ask(self, luck, None),
                }
                self.send(usize::MAX)
            }
            Manners::Silent => {
                if luck.seldom(20) {
                    ask(self, luck, None);
                    let n = 1 + luck.below(60);
                    self.send(n)
                } else {
                    News::None
                }
            }
            Manners::HalfClosing => {
                if owes < 3 {
                    ask(self, luck, None);
                }
                let sent = self.send(usize::MAX);
                if luck.seldom(6) {
                    self.has_said_its_last = true;
                    News::Some
                } else {
                    sent
                }
            }
            Manners::Fleeting => {
                ask(self, luck, None);
                let n = luck.below(300);
                let sent = self.send(n);
                if luck.seldom(6) {
                    return Acted::HungUp(sent);
                }
                sent
            }
        };
        let gets = match self.manners {
            Manners::SlowReader => luck.below(3000),
            Manners::Dripping if luck.seldom(10) => 1 << 16,
            Manners::Dripping | Manners::Deaf => 0,
            _ => 1 << 20,
        };
        if self.make_room(gets) == News::Some {
            news = News::Some;
        }
        Acted::Stayed(news)
    }

    /// Adds a request to what it will send; one that has to get this error, if any.
    fn ask(
        &mut self,
        luck: &mut Luck<impl Choices>,
        tags: &mut u64,
        report: &mut Report,
        fault: Option<ErrorCode>,
    ) {
        let side = 64 * (1 + u32::try_from(luck.below(3)).unwrap_or(0));
        let same_id = luck.seldom(10);
        let again = luck.seldom(50);
        if self.has_said_its_last || self.is_lost || self.owes() > 64 {
            return;
        }
        // The very same request once more, also under the same id, or a new one.
        let twin = self.asked.get(&self.next_id).and_then(|asked| asked.last().copied());
        let asked = match twin {
            Some(twin) if same_id || again => twin,
            _ => {
                *tags += 1;
                Asked { tag: *tags, width: side, height: 64, fault }
            }
        };
        if twin.is_none() || !same_id {
            self.next_id += 1;
        }
        let fault = asked.fault;
        let params = Params { width: asked.width, height: 64, steps: 1, cfg_scale: 1.0, seed: asked.tag };
        let request = Request { request_id: self.next_id, params, prompts: Prompts::same("a prompt") };
        let mut out = [0; MAX_REQUEST_FRAME];
        let mut frame = request.emit(&mut out).unwrap_or_default().to_vec();
        match fault {
            Some(ErrorCode::InvalidSteps) => frame[36..40].fill(0),
            Some(ErrorCode::UnsupportedType) => frame[6..8].fill(0x77),
            _ => {}
        }
        self.script.extend(frame);
        self.asked.entry(self.next_id).or_default().push(asked);
        report.requests += 1;
    }

    /// Sends up to `n` bytes.
    pub(super) fn send(&mut self, n: usize) -> News {
        let n = n.min(self.script.len()).min(50_000_usize.saturating_sub(self.sent.len()));
        if n == 0 {
            return News::None;
        }
        self.sent.extend(self.script.drain(..n));
        News::Some
    }

    /// Its side of the socket takes so many bytes.
    pub(super) const fn take_in(&mut self, n: usize) {
        self.room -= n;
        self.held += n;
    }

    /// Reads up to `n` bytes. As with a real socket that makes room for more only once little is left.
    pub(super) fn make_room(&mut self, n: usize) -> News {
        let reads = n.min(self.held);
        self.held -= reads;
        self.has_read += reads;
        if n == 0 || self.room >= n || self.held > 0 {
            return News::None;
        }
        self.room = n;
        News::Some
    }
}
