//! A daemon for tests: a Unix socket, and bytes that are put together here by hand, so that an error
//! in the codec can't hide by being on both ends.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tempfile::TempDir;

/// A daemon that follows a script on a thread of its own.
pub(crate) struct Fake<T = ()> {
    folder: TempDir,
    thread: JoinHandle<T>,
}

impl<T: Send + 'static> Fake<T> {
    /// A daemon that does what `script` says with its listening socket.
    pub(crate) fn listening(script: impl FnOnce(UnixListener) -> T + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("weave.sock")).unwrap();
        Self { folder, thread: thread::spawn(move || script(listener)) }
    }

    /// The same, of another user: its script runs as that one. Only root can do that.
    pub(crate) fn of(uid: u32, script: impl FnOnce(UnixListener) -> T + Send + 'static) -> Self {
        let (ready, wait) = channel();
        let fake = Self::listening(move |listener| {
            let uid = rustix::process::Uid::from_raw(uid);
            // This thread's alone. The kernel notes who listens, and once more who listens again.
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            rustix::net::listen(&listener, 8).unwrap();
            ready.send(()).unwrap();
            script(listener)
        });
        wait.recv().unwrap();
        fake
    }

    /// A daemon that serves one connection and has read its first request when `script` starts.
    pub(crate) fn serving(script: impl FnOnce(&mut UnixStream, Request) -> T + Send + 'static) -> Self {
        Self::listening(|listener| {
            let (mut stream, _) = listener.accept().unwrap();
            let request = Request::read(&mut stream);
            script(&mut stream, request)
        })
    }

    /// The socket.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("weave.sock")
    }

    /// What the script returned.
    pub(crate) fn end(self) -> T {
        self.thread.join().unwrap()
    }
}

/// What `call` returns, if it does: a test of something that doesn't end would otherwise not end either.
pub(crate) fn in_time<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, wait) = channel();
    thread::spawn(move || done.send(call()));
    wait.recv_timeout(Duration::from_secs(30)).expect("it goes on and on")
}

/// Waits until the client has closed its end.
pub(crate) fn until_closed(stream: &mut UnixStream) {
    // A reset is an end as well.
    let _ = stream.read_to_end(&mut Vec::new());
}

/// Sends as much as the client takes.
pub(crate) fn send(stream: &mut UnixStream, bytes: &[u8]) {
    let _ = stream.write_all(bytes);
}

/// The client sends nothing now. One that would may not have got to it: this can miss a fault, and never sees one
/// that isn't there.
pub(crate) fn says_nothing(stream: &mut UnixStream) {
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let read = stream.read(&mut [0]);
    assert_eq!(read.map_err(|error| error.kind()), Err(ErrorKind::WouldBlock));
    stream.set_read_timeout(None).unwrap();
}

/// A request frame, as it came.
pub(crate) struct Request(pub(crate) Vec<u8>);

impl Request {
    pub(crate) fn read(stream: &mut impl Read) -> Self {
        let mut frame = vec![0; 16];
        stream.read_exact(&mut frame).unwrap();
        assert_eq!(frame[..8], *b"WEVE\x00\x01\x00\x01");
        let payload_len = u32::from_be_bytes(frame[8..12].try_into().unwrap());
        frame.resize(16 + payload_len as usize, 0);
        stream.read_exact(&mut frame[16..]).unwrap();
        Self(frame)
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.0[at..at + 4].try_into().unwrap())
    }

    pub(crate) fn u64(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.0[at..at + 8].try_into().unwrap())
    }

    pub(crate) fn id(&self) -> u64 {
        self.u64(16)
    }
}

/// The frame of a response, whose fields a test can spoil.
#[derive(Clone)]
pub(crate) struct Response {
    pub(crate) id: u64,
    pub(crate) status: u32,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) channels: u32,
    pub(crate) pixels: Vec<u8>,
    /// Comes after the pixels, within the payload.
    pub(crate) trailing: Vec<u8>,
}

impl Response {
    /// 64×64 RGB, in 1234 ms.
    pub(crate) fn good(id: u64) -> Self {
        let pixels = (0..64 * 64 * 3u32).map(|i| (i * 7 % 251) as u8).collect();
        Self { id, status: 200, width: 64, height: 64, channels: 3, pixels, trailing: Vec::new() }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let data_len = self.pixels.len() as u32;
        let mut bytes = header(2, 32 + data_len + self.trailing.len() as u32);
        bytes.extend(self.id.to_be_bytes());
        for field in [self.status, 1234, self.width, self.height, self.channels, data_len] {
            bytes.extend(field.to_be_bytes());
        }
        bytes.extend(&self.pixels);
        bytes.extend(&self.trailing);
        bytes
    }
}

/// The frame of an error.
pub(crate) fn error(id: u64, status: u32, code: u32, message: &str) -> Vec<u8> {
    let mut bytes = header(0xFF, 18 + message.len() as u32);
    bytes.extend(id.to_be_bytes());
    bytes.extend(status.to_be_bytes());
    bytes.extend(code.to_be_bytes());
    bytes.extend((message.len() as u16).to_be_bytes());
    bytes.extend(message.as_bytes());
    bytes
}

pub(crate) fn header(msg_type: u16, payload_len: u32) -> Vec<u8> {
    let mut bytes = b"WEVE\x00\x01".to_vec();
    bytes.extend(msg_type.to_be_bytes());
    bytes.extend(payload_len.to_be_bytes());
    bytes.extend([0; 4]);
    bytes
}
