//! Requests and their answers.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem;
use std::time::{Duration, Instant};

use weave_core::error::ErrorCode;
use weave_core::limits::MAX_REQUEST_FRAME;
use weave_core::request::{EmitError, Params, Prompts, Request, probe};
use weave_core::response::ImageSize;

use crate::address::{Address, Token};
use crate::answer::{Head, read_head, read_pixels};
use crate::auth;
use crate::error::{Error, Nonsense};
use crate::link::{Deadline, Link, Server, Unasked};
use crate::stopper::Stopper;

/// How long [`Client`]s wait for a connection unless they are told otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to a daemon.
///
/// [`generate`](Self::generate) asks and waits. To have several requests under way on the connection,
/// [`send`](Self::send) them and [`receive`](Self::receive) their answers, which come in any order.
///
/// # Connections
/// The first call connects. A call that fails in another way than by the daemon's refusal closes the
/// connection, since it may be out of step, and with it goes what else was under way; the next call
/// connects anew. So a client can be used again after every error.
///
/// A daemon may close a connection that is idle, and it may have been restarted. If it has closed
/// before the next request is sent, the request goes out on a new connection.
///
/// If it closes while requests wait, it won't answer them any more: it answers each, or closes (W1-CON-002 of the
/// specification). They are sent again, on a new connection, if the old one ended between two answers and is no sign
/// that they are what has ended it: either it was idle before them, or it has answered others. Of these only one at a
/// time is sent from then on, so that a server that closes after each answer draws nothing in vain. That is safe, since a
/// request always has a seed: the same seed makes the same image, and making it changes nothing else. What was sent on a
/// connection of its own, which ended without any answer, or in the middle of an answer, ends with [`Error::HungUp`].
///
/// # Seeds
/// Where [`Params::seed`] is 0 the client draws one, of 32 bits, and not the daemon: so the [`Image`] knows it, and can be
/// made again.
#[derive(Debug)]
pub struct Client {
    address: Address,
    token: Option<Token>,
    server_uid: Option<u32>,
    timeout: Option<Duration>,
    connect_timeout: Option<Duration>,
    stopper: Stopper,
    /// `None` before the first call and after a call that left it out of step. While requests wait it is
    /// there.
    link: Option<Link>,
    /// The link is older than the requests that wait, and none of them was answered yet: if it ends,
    /// that may be because it was idle.
    was_idle: bool,
    /// Something was answered on the link.
    has_answered: bool,
    /// Something was asked on the link.
    was_used: bool,
    /// How many connections were made.
    links: u64,
    last_id: u64,
    /// Requests under way, the oldest first.
    waiting: VecDeque<Sent>,
    /// The daemon has closed a connection after an answer while others were due: it gets one request at a time.
    singly: bool,
    /// Requests to be sent when none waits any more, the oldest first.
    held: VecDeque<Sent>,
    /// What became of requests, for whoever asks for it. `None` is the answer to a ping.
    done: VecDeque<Outcome>,
}

/// A request's id, and what became of it.
type Outcome = (u64, Result<Option<Image>, Error>);

/// A request that waits for its answer.
struct Sent {
    request_id: u64,
    frame: Vec<u8>,
    asks: Asks,
}

/// Without the frame, which has the prompt in it.
impl fmt::Debug for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sent").field("request_id", &self.request_id).finish_non_exhaustive()
    }
}

enum Asks {
    Image { params: Params, prompt: String },
    Pong,
}

impl Client {
    /// A client for the daemon that listens at `address`: the path of a Unix socket, or
    /// `tcp://HOST:PORT`. The first call connects.
    #[must_use]
    pub fn new(address: impl Into<Address>) -> Self {
        Self {
            address: address.into(),
            token: None,
            server_uid: None,
            timeout: None,
            connect_timeout: Some(CONNECT_TIMEOUT),
            stopper: Stopper::default(),
            link: None,
            was_idle: false,
            has_answered: false,
            was_used: false,
            links: 0,
            last_id: 0,
            waiting: VecDeque::new(),
            singly: false,
            held: VecDeque::new(),
            done: VecDeque::new(),
        }
    }

    /// Connects to the daemon that listens at `address`, within ten seconds.
    ///
    /// # Errors
    /// [`Error::Unreachable`]: nobody listens there, or not for this user, or nobody accepts.
    pub fn connect(address: impl Into<Address>) -> Result<Self, Error> {
        let mut client = Self::new(address);
        client.link_up(Deadline::after(None))?;
        Ok(client)
    }

    /// On each TCP connection that is made from now on both sides prove that they know this token, the daemon
    /// first. The token itself is not sent. A daemon that doesn't know it is [`Error::NoProof`].
    pub fn set_token(&mut self, token: Option<Token>) {
        self.token = token;
    }

    /// Lets the server on a Unix socket be this user, too.
    ///
    /// A prompt goes to nobody else than the daemon. So the kernel is asked on each connection whose socket it is, before
    /// anything is sent: it has to be this user's own or root's, or that of a system service, whose folder root has made for
    /// it in `/run`. Otherwise the call ends with [`Error::Stranger`]. A proxy of another user in front of the daemon has to
    /// be named here. Over TCP nobody can be asked, and on systems without Unix sockets of this kind nobody is.
    pub fn set_server_uid(&mut self, uid: Option<u32>) {
        self.server_uid = uid;
    }

    /// Limits the time that each call from now on takes as a whole, connecting included. `None`, as
    /// in the beginning, lets it take as long as it does. A call that runs out of time ends with
    /// [`Error::Timeout`].
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    /// Limits the time that each call from now on waits for a connection, if it needs one: ten seconds
    /// in the beginning. `None` leaves it to the system, which takes minutes over some TCP addresses.
    /// A call for which this time runs out ends with [`Error::Unreachable`]. Proving that both sides know the
    /// token is part of it.
    ///
    /// Looking up the name of a host is not limited.
    pub fn set_connect_timeout(&mut self, timeout: Option<Duration>) {
        self.connect_timeout = timeout;
    }

    /// From now on `stopper` can end what is under way.
    pub fn set_stopper(&mut self, stopper: Stopper) {
        self.stopper = stopper;
    }

    /// The next request gets this number, and those after it the numbers after it; the first one is 1 otherwise. With a
    /// number drawn at random a request can be found among those of other clients: see the page `/requests` of the daemon's
    /// administrative socket. 0 becomes 1.
    pub fn set_next_request_id(&mut self, next: u64) {
        self.last_id = next.max(1) - 1;
    }

    /// Where the daemon listens.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Asks for an image and waits for it. Answers to other requests that come meanwhile are kept for
    /// [`receive`](Self::receive).
    ///
    /// `prompt` is 1 to 2048 bytes without a NUL. A seed of 0 is replaced by a random one, which [`Image::params`] has.
    ///
    /// # Errors
    /// [`Error`]. Of all of them only [`Error::Invalid`] is certain to come before anything was sent.
    pub fn generate(&mut self, params: &Params, prompt: &str) -> Result<Image, Error> {
        self.generate_with(params, prompt, |_| ())
    }

    /// Like [`generate`](Self::generate), and says how far it is.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn generate_with(
        &mut self,
        params: &Params,
        prompt: &str,
        mut progress: impl FnMut(Progress),
    ) -> Result<Image, Error> {
        let deadline = Deadline::after(self.timeout);
        let request = self.request(params, prompt)?;
        let request_id = request.request_id;
        self.submit(request, deadline)?;
        progress(Progress::Sent);
        let image = self.wait(request_id, deadline, &mut progress)?;
        // Only a ping is answered without an image.
        image.ok_or(Error::Nonsense(Nonsense::Image))
    }

    /// Sends a request without waiting for its answer, and returns the request_id that the answer will
    /// have. Any number may be sent; a daemon refuses what is more than it takes from one client
    /// (`weaved`: 32) with [`ErrorCode::Busy`].
    ///
    /// While the daemon doesn't read because it has an answer to get rid of, that answer is read, and kept
    /// for [`receive`](Self::receive).
    ///
    /// ```no_run
    /// # use weave_client::{Client, Params, default_socket_path};
    /// let mut client = Client::connect(default_socket_path()?)?;
    /// for seed in 1..=4 {
    ///     let params = Params { seed, ..Params::default() };
    ///     let request_id = client.send(&params, "a cat in space")?;
    ///     assert_eq!(request_id, seed, "a client counts its requests from 1");
    /// }
    /// while let Some(answer) = client.receive() {
    ///     let image = answer.result?;
    ///     println!("seed {} took {} ms", image.params.seed, image.generation_time_ms);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`]: nothing was sent, and what is under way isn't touched. [`Error::Unreachable`];
    /// [`Error::Timeout`], [`Error::Io`]: the connection is closed. That a daemon has hung up is found
    /// out by [`receive`](Self::receive).
    pub fn send(&mut self, params: &Params, prompt: &str) -> Result<u64, Error> {
        let request = self.request(params, prompt)?;
        let request_id = request.request_id;
        self.submit(request, Deadline::after(self.timeout))?;
        Ok(request_id)
    }

    /// Waits for the next answer, whichever request it is to, and returns it. `None`: no answer is owed.
    ///
    /// Each request that was [sent](Self::send) comes out of here once. If the connection fails, all that
    /// wait get the error that ended it. Up to 16 MiB are held for each image that has come and was not
    /// received yet.
    pub fn receive(&mut self) -> Option<Answer> {
        self.receive_with(|_, _| ())
    }

    /// Like [`receive`](Self::receive), and says with the request_id how much of an image is there.
    pub fn receive_with(&mut self, mut progress: impl FnMut(u64, Progress)) -> Option<Answer> {
        let deadline = Deadline::after(self.timeout);
        loop {
            match self.done.pop_front() {
                Some((request_id, Ok(Some(image)))) => return Some(Answer { request_id, result: Ok(image) }),
                Some((request_id, Err(error))) => return Some(Answer { request_id, result: Err(error) }),
                Some((_, Ok(None))) => {}
                None if self.waiting.is_empty() && self.held.is_empty() => return None,
                None => self.read_one(deadline, &mut progress),
            }
        }
    }

    /// How many answers [`receive`](Self::receive) has still to return.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.waiting.len() + self.held.len() + self.done.len()
    }

    /// Asks whether a daemon is there and speaks Weave, without troubling its engine. Returns the
    /// time that it took to answer, without connecting.
    ///
    /// # Errors
    /// [`Error`]; a daemon that is too busy to talk is [`Error::Refused`].
    pub fn ping(&mut self) -> Result<Duration, Error> {
        let deadline = Deadline::after(self.timeout);
        self.link_up(deadline)?;
        let request_id = self.next_id();
        let start = Instant::now();
        self.submit(Sent { request_id, frame: probe(request_id).to_vec(), asks: Asks::Pong }, deadline)?;
        self.wait(request_id, deadline, &mut |_| ())?;
        Ok(start.elapsed())
    }

    /// Never 0, with which a daemon answers what it could not read.
    fn next_id(&mut self) -> u64 {
        self.last_id = self.last_id.checked_add(1).unwrap_or(1);
        self.last_id
    }

    fn request(&mut self, params: &Params, prompt: &str) -> Result<Sent, Error> {
        let request_id = self.next_id();
        let mut params = *params;
        if params.seed == 0 {
            params.seed = random_seed().map_err(Error::Io)?;
        }
        let request = Request { request_id, params, prompts: Prompts::same(prompt) };
        let mut frame = [0; MAX_REQUEST_FRAME];
        let frame = request.emit(&mut frame).map_err(|error| match error {
            EmitError::Invalid(error) => Error::Invalid(error),
            EmitError::NoRoom(error) => Error::Io(io::Error::other(error)),
        })?;
        let asks = Asks::Image { params, prompt: prompt.to_owned() };
        Ok(Sent { request_id, frame: frame.to_vec(), asks })
    }

    /// Sees to it that there is a connection, and that its calls end in time.
    fn link_up(&mut self, deadline: Deadline) -> Result<(), Error> {
        if self.stopper.is_stopped() {
            return Err(Error::Stopped);
        }
        if let Some(link) = &mut self.link {
            // What comes unasked on a new connection is a refusal, and says why.
            let left = self.waiting.is_empty()
                && match link.unasked() {
                    Unasked::Nothing => false,
                    Unasked::Bytes => self.was_used,
                    Unasked::End => true,
                };
            if !left {
                self.was_idle |= self.waiting.is_empty();
                link.begin_call(deadline);
                return Ok(());
            }
            self.link = None;
        }
        let (address, token, stopper) = (&self.address, self.token.as_ref(), &self.stopper);
        let server = Server { address, uid: self.server_uid };
        let link = Link::connect(server, deadline, self.connect_timeout, |link| {
            if !link.obey(stopper) {
                return Err(Error::Stopped);
            }
            match (address, token) {
                (Address::Tcp(_), Some(token)) => auth::prove(link, address, token),
                _ => Ok(()),
            }
        });
        // A connection that was closed here looks like one that the daemon has closed.
        let link = link.map_err(|error| if stopper.is_stopped() { Error::Stopped } else { error })?;
        self.link = Some(link);
        self.links += 1;
        (self.was_idle, self.has_answered, self.was_used) = (false, false, false);
        Ok(())
    }

    /// Sends a request. That the daemon has hung up is left to be found by whoever reads: it may have said
    /// why.
    fn submit(&mut self, request: Sent, deadline: Deadline) -> Result<(), Error> {
        let (mut written, mut on) = (0, 0);
        loop {
            self.link_up(deadline)?;
            let Some(link) = &mut self.link else { continue };
            self.was_used = true;
            // A new connection has nothing of it yet.
            if on != self.links {
                (written, on) = (0, self.links);
            }
            if written == 0 && self.singly && !self.waiting.is_empty() {
                self.held.push_back(request);
                return Ok(());
            }
            let frame = request.frame.get(written..).unwrap_or_default();
            let sent = match self.waiting.is_empty() {
                true => link.send(frame).map(|()| 0),
                false => link.send_now(frame).map(<[u8]>::len),
            };
            match sent {
                Ok(0) | Err(Error::HungUp { .. }) => {
                    self.waiting.push_back(request);
                    return Ok(());
                }
                Ok(left) => {
                    written = request.frame.len() - left;
                    // It reads on when it has got rid of an answer. There is one to come.
                    self.read_one(deadline, &mut |_, _| ());
                }
                Err(error) => {
                    self.lose(error.again(), deadline);
                    return Err(error);
                }
            }
        }
    }

    /// Reads until a request is done.
    fn wait(
        &mut self,
        request_id: u64,
        deadline: Deadline,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Option<Image>, Error> {
        loop {
            if let Some(at) = self.done.iter().position(|(id, _)| *id == request_id)
                && let Some((_, result)) = self.done.remove(at)
            {
                return result;
            }
            let mut own = |id, step| {
                if id == request_id {
                    progress(step);
                }
            };
            self.read_one(deadline, &mut own);
        }
    }

    /// Reads an answer, or finds out that none will come: afterwards one request more is done, or all
    /// of them, or those that wait were sent again.
    fn read_one(&mut self, deadline: Deadline, progress: &mut dyn FnMut(u64, Progress)) {
        match self.read_answer(deadline, progress) {
            Ok(outcome) => self.done.push_back(outcome),
            Err(error) => self.lose(error, deadline),
        }
        while self.waiting.is_empty()
            && let Some(next) = self.held.pop_front()
        {
            let request_id = next.request_id;
            if let Err(error) = self.submit(next, deadline) {
                self.done.push_back((request_id, Err(error)));
            }
        }
    }

    fn read_answer(
        &mut self,
        deadline: Deadline,
        progress: &mut dyn FnMut(u64, Progress),
    ) -> Result<Outcome, Error> {
        let link = self.link.as_mut().ok_or(Error::HungUp { received: 0 })?;
        link.begin_call(deadline);
        let head = read_head(link)?;
        (self.was_idle, self.has_answered) = (false, true);
        let received = head.request_id();
        let Some(at) = self.waiting.iter().position(|sent| sent.request_id == received) else {
            return Err(match head {
                // It could not read an id, or didn't try, and says no more on this connection.
                Head::Error { request_id: 0, reply } => Error::Refused(reply),
                _ => {
                    let sent = self.waiting.front().map_or(0, |sent| sent.request_id);
                    Nonsense::RequestId { sent, received }.into()
                }
            });
        };
        let answer = match (head, &self.waiting[at].asks) {
            (Head::Image { head, trailing }, Asks::Image { params, prompt }) => {
                let size = (head.image.width(), head.image.height());
                let asked = (params.width, params.height);
                if asked != size {
                    return Err(Nonsense::Size { asked, received: size }.into());
                }
                let pixels = read_pixels(link, &head, trailing, &mut |bytes, of| {
                    progress(received, Progress::Received { bytes, of });
                })?;
                Ok(Some(Image {
                    request_id: received,
                    params: *params,
                    prompt: prompt.clone(),
                    size: head.image,
                    generation_time_ms: head.generation_time_ms,
                    pixels,
                }))
            }
            (Head::Image { .. }, Asks::Pong) => return Err(Nonsense::Image.into()),
            // What the probe is made for.
            (Head::Error { reply, .. }, Asks::Pong) if reply.code == ErrorCode::InvalidModelId => Ok(None),
            (Head::Error { reply, .. }, _) => Err(Error::Refused(reply)),
        };
        self.waiting.remove(at);
        Ok((received, answer))
    }

    /// The connection can't be used any more. What waits fails, unless it can be sent again.
    fn lose(&mut self, mut error: Error, deadline: Deadline) {
        self.link = None;
        // A connection that was closed here looks like one that the daemon has closed.
        if self.stopper.is_stopped() {
            error = Error::Stopped;
        }
        let mut lost = mem::take(&mut self.waiting);
        lost.append(&mut self.held);
        if matches!(error, Error::HungUp { received: 0 }) && (self.was_idle || self.has_answered) {
            self.singly |= !self.was_idle;
            let later = lost.split_off(if self.singly { lost.len().min(1) } else { lost.len() });
            match self.send_again(&lost, deadline) {
                Ok(()) => {
                    (self.waiting, self.held) = (lost, later);
                    return;
                }
                Err(failed) => error = failed,
            }
            self.link = None;
            lost.extend(later);
        }
        self.done.extend(lost.into_iter().map(|sent| (sent.request_id, Err(error.again()))));
    }

    fn send_again(&mut self, requests: &VecDeque<Sent>, deadline: Deadline) -> Result<(), Error> {
        self.link_up(deadline)?;
        let link = self.link.as_mut().ok_or(Error::HungUp { received: 0 })?;
        self.was_used = true;
        requests.iter().try_for_each(|request| link.send(&request.frame))
    }
}

/// A seed of 32 bits, never 0: that is what other programs take, and not too much to type.
///
/// # Errors
/// The system gives no random numbers.
pub fn random_seed() -> io::Result<u64> {
    Ok(u64::from(getrandom::u32()?.max(1)))
}

/// What became of a request that was [sent](Client::send).
#[derive(Debug)]
pub struct Answer {
    /// What [`Client::send`] has returned.
    pub request_id: u64,
    /// The image, or why there is none.
    pub result: Result<Image, Error>,
}

/// An image as the daemon made it. With the feature `png` it can be saved.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct Image {
    /// The request that it answers: of this client's requests the first is 1.
    pub request_id: u64,
    /// What the daemon was asked for, with the seed that was used, which is never 0: the same parameters and prompt make the
    /// same image again.
    pub params: Params,
    /// What was to be drawn.
    pub prompt: String,
    /// Width, height and how a pixel is stored.
    pub size: ImageSize,
    /// What the engine took, without waiting.
    pub generation_time_ms: u32,
    /// Rows from the top, pixels from the left, one byte a channel, no padding.
    pub pixels: Vec<u8>,
}

/// Without the prompt, which is private, and the pixels.
impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("request_id", &self.request_id)
            .field("params", &self.params)
            .field("size", &self.size)
            .field("generation_time_ms", &self.generation_time_ms)
            .finish_non_exhaustive()
    }
}

/// How far a request is. Version 1 of the protocol tells no more than this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// The request is out; the daemon has it or will have it.
    Sent,
    /// Pixels arrive.
    Received {
        /// Bytes of them that are there.
        bytes: usize,
        /// Bytes of the whole image.
        of: usize,
    },
}
