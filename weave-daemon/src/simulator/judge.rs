//! Whether what arrives at a client is what it may get.

use std::collections::{BTreeMap, BTreeSet};

use weave_core::error::{self, ErrorCode, ErrorMessage};
use weave_core::frame::{Header, Kind, Split, split};
use weave_core::limits::{HEADER_LEN, MAX_RESPONSE_PAYLOAD, RESPONSE_FIXED_LEN, RESPONSE_HEAD_LEN};
use weave_core::response::ResponseHead;

use super::clients::{Asked, Client, Manners, Reading};
use super::piece::{NO_ROOM, Piece};
use super::report::Report;
use crate::causes::Reason;
use crate::router::{ClientId, Refused};

/// What excuses an error, an image that is cut short, a closed connection.
#[derive(Default)]
pub(super) struct Judge {
    /// Requests that a bad worker had.
    pub(super) harmed: BTreeSet<u64>,
    /// Requests that a worker took its time for.
    pub(super) slow: BTreeSet<u64>,
    pub(super) is_draining: bool,
    /// Why the router refused requests whose errors have not arrived yet, by client and request_id.
    reasons: BTreeMap<(usize, u64), Vec<Reason>>,
}

impl Judge {
    /// Takes down why the router itself refused requests.
    pub(super) fn hear(&mut self, refusals: Vec<Refused>) {
        for Refused { client, request_id, reason, .. } in refusals {
            self.reasons.entry((client.0, request_id)).or_default().push(reason);
        }
    }

    /// Somebody else takes this client's place.
    pub(super) fn forget(&mut self, id: ClientId) {
        self.reasons.retain(|(client, _), _| *client != id.0);
    }

    /// The router closes a client's connection. Had it a right to?
    pub(super) fn closed(&self, client: &mut Client) {
        if client.manners != Manners::Good {
            return;
        }
        let in_transfer = match client.reading {
            Reading::Pixels { tag, .. } => Some(tag),
            Reading::Frame => None,
        };
        // What it sent while it was being closed as idle was read by nobody.
        let unread = client.sent.make_contiguous().windows(4).filter(|word| word == b"WEVE").count();
        let excused = client.owes() == unread && in_transfer.is_none()
            || in_transfer.is_some_and(|tag| self.harmed.contains(&tag))
            || self.is_draining;
        assert!(excused, "a client that behaves was cut off, with {} requests open", client.owes());
    }

    /// The router closes a client's connection, for another user. It may have begun to read a request, but no more.
    pub(super) fn displaced(client: &mut Client) {
        if client.manners == Manners::Good {
            let unread = client.sent.make_contiguous().windows(4).filter(|word| word == b"WEVE").count();
            let is_between = matches!(client.reading, Reading::Frame) && client.head.is_empty();
            assert!(is_between, "a client that behaves was cut off in the middle of an answer");
            assert!(client.owes() <= unread + 1, "a client that behaves was cut off with requests open");
        }
    }

    /// Bytes arrive at a client: they have to make sense.
    pub(super) fn receive(
        &mut self,
        id: ClientId,
        client: &mut Client,
        mut piece: Piece,
        report: &mut Report,
    ) {
        if client.manners == Manners::Good {
            let _ = client.make_room(1 << 16);
        }
        while piece.len() > 0 {
            match (client.reading, piece) {
                (Reading::Pixels { tag, at, end }, mut got) => {
                    let n = usize::try_from(end - at).unwrap_or(usize::MAX).min(got.len());
                    self.judge_pixels(tag, at, &got.take(n));
                    let at = at + n as u64;
                    client.reading = if at == end {
                        report.images += 1;
                        Reading::Frame
                    } else {
                        Reading::Pixels { tag, at, end }
                    };
                    piece = got;
                }
                (Reading::Frame, Piece::Pixels { .. }) => panic!("pixels where a frame should begin"),
                (Reading::Frame, Piece::Bytes(mut bytes)) => {
                    let Some(byte) = bytes.pop_front() else { return };
                    client.head.push(byte);
                    piece = Piece::Bytes(bytes);
                    match self.judge_frame(id, client) {
                        Answer::Incomplete => {}
                        Answer::Image => client.head.clear(),
                        Answer::Error => {
                            client.head.clear();
                            report.errors += 1;
                        }
                    }
                }
            }
        }
    }

    fn judge_pixels(&self, tag: u64, at: u64, part: &Piece) {
        // What a bad worker puts in the place of pixels is pixels, as far as anybody can tell.
        if self.harmed.contains(&tag) {
            return;
        }
        match part {
            Piece::Pixels { tag: from, at: start, .. } => {
                assert_eq!((*from, *start), (tag, at), "pixels of another image, or of another place");
            }
            Piece::Bytes(_) => panic!("bytes between pixels"),
        }
    }

    /// Looks at what a client has of a frame.
    fn judge_frame(&mut self, id: ClientId, client: &mut Client) -> Answer {
        let Some((header, fields)) = client.head.split_first_chunk::<HEADER_LEN>() else {
            return Answer::Incomplete;
        };
        let header = match Header::parse(header, MAX_RESPONSE_PAYLOAD) {
            Ok(header) => header,
            Err(error) => panic!("a client got what is no frame: {error}"),
        };
        match header.kind() {
            Kind::Response => {
                if client.head.len() < RESPONSE_HEAD_LEN {
                    return Answer::Incomplete;
                }
                let Some(fields) = fields.first_chunk::<RESPONSE_FIXED_LEN>() else {
                    return Answer::Incomplete;
                };
                match ResponseHead::parse(header, fields) {
                    Ok((head, trailing)) => judge_image(client, head, trailing),
                    Err(error) => panic!("a client got a response that is wrong: {error}"),
                }
                Answer::Image
            }
            Kind::Error => {
                let head = std::mem::take(&mut client.head);
                let answer = match split(&head, MAX_RESPONSE_PAYLOAD) {
                    Ok(Split::Frame(frame, _)) => match error::parse(&frame) {
                        Ok(error) => {
                            self.judge_error(id, client, &error);
                            Answer::Error
                        }
                        Err(error) => panic!("a client got an error that is wrong: {error}"),
                    },
                    _ => Answer::Incomplete,
                };
                client.head = head;
                answer
            }
            kind => panic!("a client got a frame of type {kind:?}"),
        }
    }

    fn judge_error(&mut self, id: ClientId, client: &mut Client, error: &ErrorMessage<'_>) {
        let (request_id, code) = (error.request_id, error.code);
        if request_id == 0 && !client.asked.contains_key(&0) {
            let is_rejected = matches!(code, ErrorCode::InvalidMagic | ErrorCode::Timeout);
            assert!(is_rejected, "an error for nobody: {code:?}");
            assert!(client.manners != Manners::Good, "the stream of a client that behaves is rejected");
            client.asked.clear();
            return;
        }
        let Some(asked) = client.asked.get(&request_id) else {
            panic!("an error for request {request_id}, which is not open")
        };
        let text = error.text().to_string();
        // Several requests may have the same id.
        let reasons = self.reasons.get(&(id.0, request_id)).map(Vec::as_slice).unwrap_or_default();
        let own = |asked: &Asked| {
            let fits = |reason: &Reason| code_of(*reason) == code && self.is_excused(*reason, asked.tag);
            reasons.iter().position(fits)
        };
        let is_workers = |asked: &Asked| match code {
            ErrorCode::OutOfMemory => text == NO_ROOM,
            ErrorCode::Busy | ErrorCode::Timeout | ErrorCode::GpuError => self.harmed.contains(&asked.tag),
            _ => false,
        };
        let excuse = |(at, asked): (usize, &Asked)| match asked.fault {
            Some(fault) => (code == fault).then_some((at, None)),
            None => match own(asked) {
                Some(reason) => Some((at, Some(reason))),
                None => is_workers(asked).then_some((at, None)),
            },
        };
        let Some((at, reason)) = asked.iter().enumerate().find_map(excuse) else {
            panic!("request {request_id}: {code:?} for no reason: {text}; the router's own are {reasons:?}")
        };
        if let Some(asked) = client.asked.get_mut(&request_id) {
            asked.remove(at);
        }
        client.asked.retain(|_, asked| !asked.is_empty());
        if let (Some(at), Some(reasons)) = (reason, self.reasons.get_mut(&(id.0, request_id))) {
            reasons.remove(at);
        }
    }

    /// Whether the router may refuse the request with this tag for this reason.
    fn is_excused(&self, reason: Reason, tag: u64) -> bool {
        let is_harmed = self.harmed.contains(&tag);
        match reason {
            // Limits that were said.
            Reason::QueueFull | Reason::QueueShare | Reason::QueueWait => true,
            // Workers that others had.
            Reason::NoWorker | Reason::Quarantined => true,
            Reason::ShuttingDown => self.is_draining,
            Reason::TooSlow => is_harmed || self.slow.contains(&tag),
            Reason::WorkerDied | Reason::WorkerViolation => is_harmed,
        }
    }
}

/// What is there of an answer.
enum Answer {
    /// Not all of an error, or of an image's head.
    Incomplete,
    /// The head of an image, whose pixels follow.
    Image,
    Error,
}

/// The code with which the router refuses a request for this reason.
const fn code_of(reason: Reason) -> ErrorCode {
    match reason {
        Reason::QueueFull | Reason::QueueShare => ErrorCode::Busy,
        Reason::ShuttingDown => ErrorCode::ShuttingDown,
        Reason::TooSlow | Reason::QueueWait => ErrorCode::Timeout,
        Reason::NoWorker | Reason::Quarantined | Reason::WorkerDied | Reason::WorkerViolation => {
            ErrorCode::GpuError
        }
    }
}

fn judge_image(client: &mut Client, head: ResponseHead, trailing: u32) {
    let Some(asked) = client.asked.get_mut(&head.request_id) else {
        panic!("an image for request {}, which is not open", head.request_id)
    };
    let fits = |asked: &Asked| {
        asked.fault.is_none() && (asked.width, asked.height) == (head.image.width(), head.image.height())
    };
    let Some(at) = asked.iter().position(fits) else { panic!("an image of another size") };
    let asked_for = asked.remove(at);
    client.asked.retain(|_, asked| !asked.is_empty());
    // With one id for two requests only the pixels tell which one it was.
    let end = u64::from(head.image.data_len()) + u64::from(trailing);
    client.reading = Reading::Pixels { tag: asked_for.tag, at: 0, end };
}
