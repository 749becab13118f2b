//! The pixels go to the socket from the engine's own buffer: no copy, no second buffer of their
//! size, and the buffer is given back after the last byte is out and not before.

#[path = "harness/allocator.rs"]
mod allocator;

use std::io::{self, IoSlice, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use allocator::Watched;
use weave_core::limits::{MAX_REQUEST_FRAME, RESPONSE_HEAD_LEN};
use weave_core::request::{Params, Prompts, Request};
use weave_core::response::ImageSize;
use weave_daemon::engine::{Engine, EngineError, Generation, Image};
use weave_daemon::scoreboard::Control;
use weave_daemon::worker;

const SIDE: u32 = 512;
const IMAGE_LEN: usize = 512 * 512 * 3;

static LARGE: AtomicUsize = AtomicUsize::new(0);

/// Counts allocations that could hold a good part of the image.
#[global_allocator]
static ALLOCATOR: Watched = Watched {
    taken: |layout| {
        if layout.size() >= IMAGE_LEN / 8 {
            LARGE.fetch_add(1, Ordering::Relaxed);
        }
    },
    given_back: |_| {},
};

/// The engine's buffer; tells when it was given back.
struct Buffer {
    pixels: Vec<u8>,
    freed: Arc<AtomicBool>,
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.pixels
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.freed.store(true, Ordering::SeqCst);
    }
}

/// Hands out a buffer that was made before the counting began.
struct Prepared(Option<Buffer>);

impl Engine for Prepared {
    fn generate(&mut self, job: &Generation<'_>, _: &Control) -> Result<Image, EngineError> {
        let size = ImageSize::new(job.params.width, job.params.height, 3).unwrap();
        Image::new(size, self.0.take().unwrap())
    }
}

/// A socket that takes little at a time and notes where each byte came from.
struct Witness {
    request: Vec<u8>,
    /// Addresses of the engine's buffer.
    buffer: std::ops::Range<usize>,
    freed: Arc<AtomicBool>,
    from_buffer: usize,
    from_elsewhere: usize,
    in_order: bool,
}

impl Read for Witness {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.request.len().min(buf.len());
        buf[..n].copy_from_slice(&self.request[..n]);
        self.request.drain(..n);
        Ok(n)
    }
}

impl Write for Witness {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buf)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        assert!(!self.freed.load(Ordering::SeqCst), "the buffer is gone before its last byte is out");
        let mut room = 100_000;
        for part in parts {
            let n = part.len().min(room);
            room -= n;
            let at = part.as_ptr() as usize;
            if self.buffer.contains(&at) {
                self.in_order &= at == self.buffer.start + self.from_buffer;
                self.from_buffer += n;
            } else {
                self.from_elsewhere += n;
            }
        }
        Ok(100_000 - room)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn pixels_are_written_from_the_engines_buffer() {
    let params = Params { width: SIDE, height: SIDE, steps: 1, cfg_scale: 1.0, seed: 1 };
    let mut out = [0; MAX_REQUEST_FRAME];
    let request = Request { request_id: 1, params, prompts: Prompts::same("x") };
    let request = request.emit(&mut out).unwrap().to_vec();

    let freed = Arc::new(AtomicBool::new(false));
    let buffer = Buffer { pixels: vec![7; IMAGE_LEN], freed: Arc::clone(&freed) };
    let start = buffer.pixels.as_ptr() as usize;
    let mut socket = Witness {
        request,
        buffer: start..start + IMAGE_LEN,
        freed: Arc::clone(&freed),
        from_buffer: 0,
        from_elsewhere: 0,
        in_order: true,
    };
    let mut engine = Prepared(Some(buffer));

    let before = LARGE.load(Ordering::Relaxed);
    worker::serve(&mut socket, &mut engine, &mut Control::none(), &worker::stay_open).unwrap();
    assert_eq!(LARGE.load(Ordering::Relaxed), before, "something of the image's size was allocated");
    assert_eq!(socket.from_buffer, IMAGE_LEN, "every pixel comes from the engine's buffer");
    assert_eq!(socket.from_elsewhere, RESPONSE_HEAD_LEN);
    assert!(socket.in_order);
    assert!(freed.load(Ordering::SeqCst), "the buffer is given back");
}
