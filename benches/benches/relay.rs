//! Ways of an image of 1024×1024 from one socket to another, on a single thread and in its processor time: what they
//! cost, whoever else is busy. `cargo bench -p weave-benches --bench relay`

#![allow(missing_docs)] // What the macros make has none.

use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Seek, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use criterion::{Bencher, Criterion, Throughput, criterion_group, criterion_main};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create, sendfile};
use rustix::time::{ClockId, clock_gettime};
use weave_daemon::relay::{Moved, Relay};

const IMAGE: usize = 1024 * 1024 * 3;
/// What is under way at once; sockets have room for it.
const PIECE: usize = 128 * 1024;

struct Sockets<T> {
    worker: UnixStream,
    from: UnixStream,
    to: T,
    client: T,
    pixels: Vec<u8>,
    taken: Vec<u8>,
}

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let client = TcpStream::connect(listener.local_addr().expect("an address")).expect("a socket");
    let (to, _) = listener.accept().expect("a socket");
    to.set_nodelay(true).expect("a socket");
    (to, client)
}

impl<T: Read + AsFd> Sockets<T> {
    fn new((to, client): (T, T)) -> Self {
        let (worker, from) = UnixStream::pair().expect("sockets");
        Self { worker, from, to, client, pixels: vec![0x80; IMAGE], taken: vec![0; IMAGE] }
    }

    fn direct(&mut self) {
        for (pixels, taken) in self.pixels.chunks(PIECE).zip(self.taken.chunks_mut(PIECE)) {
            self.worker.write_all(pixels).expect("room");
            self.from.read_exact(taken).expect("pixels");
        }
        black_box(&self.taken);
    }

    fn relayed(&mut self, relay: &mut Relay) {
        for (pixels, taken) in self.pixels.chunks(PIECE).zip(self.taken.chunks_mut(PIECE)) {
            self.worker.write_all(pixels).expect("room");
            let mut left = pixels.len();
            while left > 0 {
                if relay.is_empty() {
                    relay.fill(&self.from, left).expect("pixels");
                }
                left -= relay.drain(&self.to, left, &mut Moved::default()).expect("room");
            }
            self.client.read_exact(taken).expect("pixels");
        }
        black_box(&self.taken);
    }

    /// The image in a sealed memory file, whose descriptor would go from process to process.
    fn by_memory_file(&mut self) {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = File::from(memfd_create("image", flags).expect("a file"));
        file.write_all(&self.pixels).expect("memory");
        let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&file, seals).expect("seals");
        file.rewind().expect("a file");
        for taken in self.taken.chunks_mut(PIECE) {
            let mut left = taken.len();
            while left > 0 {
                left -= sendfile(self.to.as_fd(), file.as_fd(), None, left).expect("room");
            }
            self.client.read_exact(taken).expect("pixels");
        }
        black_box(&self.taken);
    }
}

fn processor_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).expect("less than a second"))
}

fn measure(b: &mut Bencher<'_>, mut way: impl FnMut()) {
    b.iter_custom(|n| {
        let before = processor_time();
        (0..n).for_each(|_| way());
        processor_time() - before
    });
}

fn ways(c: &mut Criterion) {
    let mut group = c.benchmark_group("relay");
    group.throughput(Throughput::Bytes(IMAGE as u64)).sample_size(30);
    let mut sockets = Sockets::new(UnixStream::pair().expect("sockets"));
    group.bench_function("direct", |b| measure(b, || sockets.direct()));
    let mut relay = Relay::new();
    group.bench_function("spliced", |b| measure(b, || sockets.relayed(&mut relay)));
    let mut relay = Relay::by_copy();
    group.bench_function("copied", |b| measure(b, || sockets.relayed(&mut relay)));
    group.bench_function("memory_file", |b| measure(b, || sockets.by_memory_file()));
    let mut sockets = Sockets::new(tcp_pair());
    let mut relay = Relay::new();
    group.bench_function("tcp_spliced", |b| measure(b, || sockets.relayed(&mut relay)));
    let mut relay = Relay::by_copy();
    group.bench_function("tcp_copied", |b| measure(b, || sockets.relayed(&mut relay)));
    group.finish();
}

criterion_group!(benches, ways);
criterion_main!(benches);
