//! How fast a client has to take its answer.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// Bytes in a second that each client has to take at least.
const SLOWEST: u64 = 32 << 10;

/// A connection that fails if its peer takes nothing for `patience`, or in the long run less than [`SLOWEST`].
///
/// The kernel's own limit, `TCP_USER_TIMEOUT`, is for peers that have vanished: one that reads nothing and answers the
/// kernel's questions is left alone by it.
pub(crate) struct Paced<S> {
    inner: S,
    patience: Duration,
    /// What is to be done with a connection that fails.
    give_up: fn(&S),
    /// Of the answer that is being written: when the peer must have taken more. What it takes moves it.
    deadline: Option<Instant>,
    timer: Pin<Box<Sleep>>,
}

impl<S> Paced<S> {
    pub(crate) fn new(inner: S, patience: Duration, give_up: fn(&S)) -> Self {
        Self { inner, patience, give_up, deadline: None, timer: Box::pin(sleep_until(Instant::now())) }
    }

    fn watch(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match polled {
            Poll::Ready(Ok(taken)) => {
                if let Some(deadline) = &mut self.deadline {
                    let earned = Duration::from_millis(taken as u64 * 1000 / SLOWEST);
                    *deadline = (*deadline + earned).min(Instant::now() + self.patience);
                }
                polled
            }
            Poll::Ready(Err(_)) => polled,
            Poll::Pending => {
                let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + self.patience);
                if self.timer.deadline() != deadline {
                    self.timer.as_mut().reset(deadline);
                }
                match self.timer.as_mut().poll(cx) {
                    Poll::Ready(()) => {
                        (self.give_up)(&self.inner);
                        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
                    }
                    Poll::Pending => Poll::Pending,
                }
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.watch(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.watch(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    /// Hyper does this when all is written.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.deadline = None;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::sleep;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// How long an answer of this length may take for who takes it like that; an error: it was cut off.
    async fn answer<F: Future<Output = ()>>(
        len: usize,
        take: impl FnOnce(DuplexStream) -> F,
    ) -> (Duration, io::Result<()>) {
        let (here, there) = duplex(1024);
        let mut paced = Paced::new(here, PATIENCE, |_| ());
        let began = Instant::now();
        let written = async {
            paced.write_all(&vec![0; len]).await?;
            paced.flush().await
        };
        let (written, ()) = tokio::join!(written, async {
            tokio::select! { () = take(there) => {}, () = sleep(100 * PATIENCE) => {} }
        });
        (began.elapsed(), written)
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_cut_off_and_who_takes_a_byte_now_and_then_as_well() {
        let cut_off = |written: io::Result<()>| written.unwrap_err().kind() == io::ErrorKind::TimedOut;
        let gone = Instant::now();
        let (here, _there) = duplex(1024);
        let mut paced = Paced::new(here, PATIENCE, |_| ());
        assert!(cut_off(paced.write_all(&[0; 4096]).await));
        assert_eq!(gone.elapsed().as_secs(), PATIENCE.as_secs());

        let (here, mut there) = duplex(1024);
        let mut paced = Paced::new(here, PATIENCE, |_| ());
        let began = Instant::now();
        tokio::select! {
            written = paced.write_all(&[0; 1 << 20]) => assert!(cut_off(written)),
            () = async { loop { sleep(Duration::from_secs(1)).await; there.read_u8().await.unwrap(); } } => {}
        }
        assert_eq!(began.elapsed().as_secs(), PATIENCE.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_slow_or_pauses_gets_it_all() {
        let (time, written) = answer(4 << 20, async |mut there| {
            let mut part = [0; 1024];
            // Twice as fast as it must be, and a pause.
            while there.read_exact(&mut part).await.is_ok() {
                sleep(Duration::from_millis(1000 * 1024 / (2 * SLOWEST))).await;
            }
        })
        .await;
        written.unwrap();
        assert!(time > PATIENCE, "{time:?}");
        let (here, mut there) = duplex(1024);
        let mut paced = Paced::new(here, PATIENCE, |_| ());
        for _ in 0..3 {
            // Between answers there may be any time.
            let mut part = [0; 4096];
            let (written, read) =
                tokio::join!(async { paced.write_all(&[0; 4096]).await.and(paced.flush().await) }, async {
                    sleep(PATIENCE - Duration::from_secs(1)).await;
                    there.read_exact(&mut part).await
                });
            written.unwrap();
            read.unwrap();
            sleep(10 * PATIENCE).await;
        }
    }
}
