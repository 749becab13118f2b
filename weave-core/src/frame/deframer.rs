//! The same for a stream that arrives in pieces.

use super::{Arrived, Frame, FrameError, Header, Skipped};
use crate::bytes::to_usize;
use crate::limits::{HEADER_LEN, REQUEST_FIXED_LEN};

/// Cuts a stream into frames as it arrives, in `N` bytes of memory.
///
/// Read into [`spare`](Self::spare), say how much came with [`filled`](Self::filled), then take
/// frames with [`next_frame`](Self::next_frame) until it has none. Each header is parsed once and
/// each byte moved at most once, however the stream was cut.
///
/// A payload that doesn't fit but is within `max_payload` is dropped as it arrives, but for its
/// first [`REQUEST_FIXED_LEN`] bytes: [`Skipped`] comes when its end has passed.
///
/// ```
/// use weave_core::frame::Deframer;
/// use weave_core::limits::{MAX_REQUEST_FRAME, MAX_SKIPPED_PAYLOAD};
///
/// let mut stream = Deframer::<MAX_REQUEST_FRAME>::new(MAX_SKIPPED_PAYLOAD);
/// for byte in *b"WEVE\x00\x01\x00\x09\x00\x00\x00\x00\x00\x00\x00\x00" {
///     assert!(stream.next_frame().unwrap().is_none());
///     stream.spare()[0] = byte;
///     stream.filled(1);
/// }
/// assert_eq!(stream.next_frame().unwrap().unwrap().header().payload_len(), 0);
/// assert!(stream.is_between_frames());
/// ```
#[derive(Debug)]
pub struct Deframer<const N: usize> {
    buf: [u8; N],
    /// Received and not yet handed out: `buf[start..end]`. `start <= end <= N` always.
    start: usize,
    end: usize,
    /// Length of the frame that was handed out last: it leaves with the next call.
    handed: usize,
    /// The header at `start`, once it is complete.
    header: Option<Header>,
    /// Payload bytes of that frame that were dropped.
    dropped: usize,
    max_payload: u32,
}

impl<const N: usize> Deframer<N> {
    /// An empty stream. `max_payload` is the longest payload that is followed, stored or not.
    ///
    /// `N` has to hold a header, [`REQUEST_FIXED_LEN`] bytes and at least one more; anything
    /// smaller doesn't compile.
    #[must_use]
    pub const fn new(max_payload: u32) -> Self {
        const { assert!(N > HEADER_LEN + REQUEST_FIXED_LEN) }
        Self { buf: [0; N], start: 0, end: 0, handed: 0, header: None, dropped: 0, max_payload }
    }

    /// Forgets everything, for the next connection.
    pub fn reset(&mut self) {
        (self.start, self.end, self.handed, self.dropped) = (0, 0, 0, 0);
        self.header = None;
    }

    /// Where to put the bytes that come next. Never empty after [`next_frame`](Self::next_frame)
    /// has said that it has no frame.
    pub fn spare(&mut self) -> &mut [u8] {
        self.release();
        if self.start > 0 {
            self.close_gap(0, self.start);
        }
        self.buf.get_mut(self.end..).unwrap_or_default()
    }

    /// Says that the first `n` bytes of [`spare`](Self::spare) are now the stream's next ones.
    pub fn filled(&mut self, n: usize) {
        self.end = self.end.saturating_add(n).min(N);
    }

    /// The next frame, or `None` if more bytes are needed for it.
    ///
    /// # Errors
    /// [`FrameError`], from then on at every call, since the header that is wrong stays where it is.
    pub fn next_frame(&mut self) -> Result<Option<Arrived<'_>>, FrameError> {
        self.release();
        let header = match self.header {
            Some(header) => header,
            None => {
                let Some(bytes) = self.pending().first_chunk::<HEADER_LEN>() else {
                    return Ok(None);
                };
                let header = Header::parse(bytes, self.max_payload)?;
                self.header = Some(header);
                header
            }
        };
        let len = to_usize(header.payload_len);
        if len > N.saturating_sub(HEADER_LEN) {
            return Ok(self.skip(header, len).map(Arrived::Skipped));
        }
        let payload = self.take(HEADER_LEN.saturating_add(len));
        Ok(payload.map(|payload| Arrived::Whole(Frame { header, payload })))
    }

    /// Drops what has come of a payload of `len` bytes, but for its beginning.
    #[cold]
    fn skip(&mut self, header: Header, len: usize) -> Option<Skipped<'_>> {
        const KEPT: usize = HEADER_LEN + REQUEST_FIXED_LEN;
        let missing = len.saturating_sub(REQUEST_FIXED_LEN).saturating_sub(self.dropped);
        let excess = self.pending().len().saturating_sub(KEPT).min(missing);
        let from = self.start.saturating_add(KEPT);
        self.close_gap(from, from.saturating_add(excess));
        if excess < missing {
            self.dropped = self.dropped.saturating_add(excess);
            return None;
        }
        self.dropped = 0;
        self.take(KEPT).map(|front| Skipped { header, front })
    }

    /// Hands out a frame of `frame_len` bytes, or what was kept of it, if it is there: all but its header.
    fn take(&mut self, frame_len: usize) -> Option<&[u8]> {
        if self.pending().len() < frame_len {
            return None;
        }
        self.handed = frame_len;
        self.header = None;
        self.pending().get(HEADER_LEN..frame_len)
    }

    /// Whether the stream could end here without cutting a frame.
    #[must_use]
    pub const fn is_between_frames(&self) -> bool {
        self.end.saturating_sub(self.start) == self.handed && self.header.is_none()
    }

    fn pending(&self) -> &[u8] {
        self.buf.get(self.start..self.end).unwrap_or_default()
    }

    /// Lets go of the frame that was handed out last.
    fn release(&mut self) {
        self.start = self.start.saturating_add(self.handed).min(self.end);
        self.handed = 0;
    }

    /// Moves `buf[to..end]` down to `from`, over what lies between them.
    fn close_gap(&mut self, from: usize, to: usize) {
        if from <= to && to <= self.end && self.end <= N {
            self.buf.copy_within(to..self.end, from);
            let gap = to.saturating_sub(from);
            self.end = self.end.saturating_sub(gap);
            self.start = self.start.min(from);
        }
    }
}
