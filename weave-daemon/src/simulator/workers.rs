//! Workers that serve, and workers that break what can be broken.

use std::collections::VecDeque;

use weave_core::error::{self, ErrorCode};
use weave_core::frame::Deframer;
use weave_core::limits::{MAX_ERROR_FRAME, MAX_REQUEST_FRAME, MAX_SKIPPED_PAYLOAD};
use weave_core::request::{self, Params};
use weave_core::response::{ImageSize, ResponseHead};

use super::choices::{Choices, Luck};
use super::judge::Judge;
use super::piece::{NO_ROOM, Piece};
use super::report::{News, Report};

/// What a worker does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Answer,
    /// Takes its time.
    Draw,
    Refuse,
    /// Does as it is told, half-way through.
    Cancel,
    /// Dies before, in the middle of, or after its answer.
    DieBefore,
    DieWithin,
    DieAfter,
    Hang,
    /// Stops in the middle of the pixels.
    HangWithin,
    WrongId,
    WrongSize,
    /// Announces more than it sends, then goes on with the next frame.
    TooShort,
    /// Sends more than it announces.
    TooLong,
    Garbage,
    /// Bytes from outside.
    Given,
}

const BAD_DEEDS: [Deed; 11] = [
    Deed::DieBefore,
    Deed::DieWithin,
    Deed::DieAfter,
    Deed::Hang,
    Deed::HangWithin,
    Deed::WrongId,
    Deed::WrongSize,
    Deed::TooShort,
    Deed::TooLong,
    Deed::Garbage,
    Deed::Refuse,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// There is no such process.
    None,
    Up,
    /// It has ended by itself; what it said can still be read.
    Over,
    /// It was told to die, and its death is not known yet.
    Killed,
}

/// How workers are at this time.
pub(super) struct Mood<'a> {
    /// Everybody behaves.
    pub(super) is_calm: bool,
    /// Requests that a worker answers well, on average, before it does something else.
    pub(super) patience: usize,
    /// What every worker sends in place of an answer.
    pub(super) given: Option<&'a [u8]>,
}

/// A worker, and both directions of its socket.
pub(super) struct Worker {
    pub(super) life: Life,
    /// Written by the router, and not yet read.
    pub(super) inbox: VecDeque<u8>,
    input: Box<Deframer<MAX_REQUEST_FRAME>>,
    /// Requests that it has read.
    read: u64,
    /// Requests that were written to it, in part at least.
    pub(super) given: u64,
    /// The last one that it was told to cancel.
    pub(super) cancelled: u64,
    /// What it is busy with.
    pub(super) draws: Option<(u64, Params)>,
    /// Said, and not yet read by the router.
    pub(super) outbox: VecDeque<Piece>,
    /// The request whose bytes the router writes, or wrote last.
    pub(super) tag: u64,
    /// It has done something that whoever has business with it may suffer from.
    pub(super) is_bad: bool,
    /// It does nothing more.
    pub(super) hangs: bool,
    /// Ends once `outbox` is read.
    pub(super) dies: bool,
    /// Read from the worker for a client, and not yet written: the driver's buffer.
    pub(super) relayed: Option<Piece>,
}

impl Worker {
    pub(super) fn new() -> Self {
        Self {
            life: Life::None,
            inbox: VecDeque::new(),
            input: Box::new(Deframer::new(MAX_SKIPPED_PAYLOAD)),
            read: 0,
            given: 0,
            cancelled: 0,
            draws: None,
            outbox: VecDeque::new(),
            tag: 0,
            is_bad: false,
            hangs: false,
            dies: false,
            relayed: None,
        }
    }

    /// A new process takes the place of the last one.
    pub(super) fn start(&mut self) {
        self.life = Life::Up;
        self.inbox.clear();
        self.input.reset();
        self.outbox.clear();
        (self.is_bad, self.hangs, self.dies, self.relayed) = (false, false, false, None);
        (self.read, self.given, self.cancelled, self.draws) = (0, 0, 0, None);
        self.tag = 0;
    }

    /// Whether it has something to do, and does it.
    pub(super) fn works(&self) -> bool {
        self.life == Life::Up && !self.hangs && !self.inbox.is_empty()
    }

    /// Does something.
    pub(super) fn act(
        &mut self,
        luck: &mut Luck<impl Choices>,
        mood: &Mood<'_>,
        judge: &mut Judge,
        report: &mut Report,
    ) -> News {
        if self.life != Life::Up || self.hangs {
            return News::None;
        }
        if self.dies {
            self.life = Life::Over;
            return News::Some;
        }
        if !mood.is_calm && luck.seldom(100 * mood.patience) {
            match luck.below(3) {
                0 => self.outbox.push_back(Piece::Bytes(b"hello".to_vec().into())),
                _ => self.dies = true,
            }
            self.turn_bad(judge);
            return News::Some;
        }
        if let Some(request) = self.draws {
            // Some do not listen, and some are done just then.
            let deed = match self.cancelled == self.read && !luck.seldom(4) {
                true => Deed::Cancel,
                false if mood.is_calm || luck.seldom(4) => Deed::Answer,
                false => return News::None,
            };
            self.draws = None;
            self.answer(request, deed, luck, mood, judge, report);
            return News::Some;
        }
        let n = 1 + luck.below(7000);
        let Some(request) = self.next_request(n) else { return News::Some };
        let deed = match (mood.is_calm, mood.given) {
            (true, _) => Deed::Answer,
            (_, Some(_)) => Deed::Given,
            _ if luck.seldom(mood.patience) => BAD_DEEDS[luck.below(BAD_DEEDS.len())],
            _ if luck.seldom(4) => Deed::Draw,
            _ => Deed::Answer,
        };
        self.answer(request, deed, luck, mood, judge, report);
        News::Some
    }

    /// Reads up to `n` bytes. Gives the request that is whole by then, if one is.
    fn next_request(&mut self, n: usize) -> Option<(u64, Params)> {
        let spare = self.input.spare();
        let n = n.min(spare.len()).min(self.inbox.len());
        spare.iter_mut().zip(self.inbox.drain(..n)).for_each(|(place, byte)| *place = byte);
        self.input.filled(n);
        match self.input.next_frame() {
            Ok(arrived) => match request::parse_arrived(&arrived?) {
                Ok(request) => {
                    self.read += 1;
                    Some((request.request_id, request.params))
                }
                Err(error) => panic!("the router passed on a request that is wrong: {error}"),
            },
            Err(error) => panic!("the router wrote what is no frame: {error}"),
        }
    }

    /// From now on nothing is to be expected of it.
    fn turn_bad(&mut self, judge: &mut Judge) {
        self.is_bad = true;
        judge.harmed.insert(self.tag);
    }

    fn answer(
        &mut self,
        (request_id, params): (u64, Params),
        deed: Deed,
        luck: &mut Luck<impl Choices>,
        mood: &Mood<'_>,
        judge: &mut Judge,
        report: &mut Report,
    ) {
        let tag = params.seed;
        let head = |request_id: u64, width: u32| {
            let image = ImageSize::new(width, params.height, 3).unwrap_or_else(|_| unreachable!("a size"));
            Piece::Bytes(ResponseHead { request_id, generation_time_ms: 1, image }.emit().to_vec().into())
        };
        let end = u64::from(params.width) * u64::from(params.height) * 3;
        let pixels = |end: u64| Piece::Pixels { tag, at: 0, end };
        let error = |request_id: u64, code: ErrorCode, text: &str| {
            let mut out = [0; MAX_ERROR_FRAME];
            let frame = error::emit(request_id, code, text, &mut out).unwrap_or_default();
            Piece::Bytes(frame.to_vec().into())
        };
        let refusal = |request_id: u64| error(request_id, ErrorCode::OutOfMemory, NO_ROOM);
        let some = luck.below(usize::try_from(end).unwrap_or(1)) as u64;
        match deed {
            Deed::Answer | Deed::Refuse => {}
            Deed::Draw => {
                judge.slow.insert(tag);
            }
            Deed::Cancel => report.cancelled += 1,
            _ => self.turn_bad(judge),
        }
        let say = &mut self.outbox;
        match deed {
            Deed::Answer => say.extend([head(request_id, params.width), pixels(end)]),
            Deed::Draw => self.draws = Some((request_id, params)),
            Deed::Refuse => say.push_back(refusal(request_id)),
            // For nobody: no client may see it.
            Deed::Cancel => say.push_back(error(request_id, ErrorCode::Internal, "cancelled")),
            Deed::DieBefore => self.dies = true,
            Deed::DieWithin => {
                say.extend([head(request_id, params.width), pixels(some)]);
                self.dies = true;
            }
            Deed::DieAfter => {
                say.extend([head(request_id, params.width), pixels(end)]);
                self.dies = true;
            }
            Deed::Hang => self.hangs = true,
            Deed::HangWithin => {
                say.extend([head(request_id, params.width), pixels(some)]);
                self.hangs = true;
            }
            Deed::WrongId => say.extend([head(request_id ^ 1, params.width), pixels(end)]),
            Deed::WrongSize => say.extend([head(request_id, params.width % 128 + 64), pixels(end)]),
            Deed::TooShort => say.extend([head(request_id, params.width), pixels(some), refusal(request_id)]),
            Deed::TooLong => say.extend([head(request_id, params.width), pixels(end), pixels(1 + some)]),
            Deed::Garbage => say.push_back(pixels(1 + some)),
            Deed::Given => {
                say.push_back(Piece::Bytes(mood.given.unwrap_or_default().iter().copied().collect()));
            }
        }
        say.retain(|piece| piece.len() > 0);
    }
}
