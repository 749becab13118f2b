//! Where TCP clients wait until they have proved that they know the token: `weave-auth 1` (`TCP.md`).
//!
//! Nobody sends the token. Each side sends a nonce of its own and, from the token and both nonces, what only those can
//! compute who know it. The daemon's comes first: who merely listens at its address learns nothing.

use std::cmp::Reverse;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit, Mac};
use mio::net::TcpStream;
use mio::{Interest, Registry};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use weave_core::error::{ErrorCode, emit_frame};
use weave_core::limits::MAX_ERROR_FRAME;

use crate::repeats::About;
use crate::tcp::{DIGITS, Token, from_hex};
use crate::user::User;

/// How long a client may take.
const PATIENCE: Duration = Duration::from_secs(10);
const LATE: &str = "no proof of the token within 10s";
/// Connections that may be at that at once.
pub(crate) const PLACES: usize = 64;

/// What the first line of either side begins with: not how a frame begins.
const HELLO: &[u8] = b"weave-auth 1 ";
/// The client's first line: its nonce.
const HELLO_LEN: usize = HELLO.len() + DIGITS + 1;
/// The daemon's line: its nonce, a space, its proof.
const ANSWER_LEN: usize = HELLO.len() + DIGITS + 1 + DIGITS + 1;
/// The client's second line: its proof.
const PROOF_LEN: usize = DIGITS + 1;

type Nonce = [u8; 32];

/// Whose proof it is: the one can't be passed off as the other.
#[derive(Clone, Copy)]
enum Side {
    Server,
    Client,
}

fn proof(token: &Token, side: Side, client: &Nonce, server: &Nonce) -> [u8; 32] {
    // A key that is shorter than the hash's block is filled up with zeros.
    let mut key = [0; 64];
    key[..32].copy_from_slice(&token.0);
    let mut mac = Hmac::<Sha256>::new(&key.into());
    mac.update(match side {
        Side::Server => b"weave-auth 1 server",
        Side::Client => b"weave-auth 1 client",
    });
    mac.update(client);
    mac.update(server);
    mac.finalize().into_bytes().into()
}

/// In lower-case digits.
struct Hex<'a>(&'a [u8; 32]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What the daemon answers to a client's nonce, and the line that it then expects.
fn answer(token: &Token, client: &Nonce, server: &Nonce) -> ([u8; ANSWER_LEN], [u8; PROOF_LEN]) {
    let (mut line, mut expected) = ([0; ANSWER_LEN], [0; PROOF_LEN]);
    let own = proof(token, Side::Server, client, server);
    let its = proof(token, Side::Client, client, server);
    // They have the lengths of these lines: writing doesn't fail.
    let _ = writeln!(&mut line[..], "weave-auth 1 {} {}", Hex(server), Hex(&own));
    let _ = writeln!(&mut expected[..], "{}", Hex(&its));
    (line, expected)
}

/// The nonce in a client's first line.
fn nonce(line: &[u8; HELLO_LEN]) -> Option<Nonce> {
    let digits = line.strip_prefix(HELLO)?.strip_suffix(b"\n")?;
    // One way to write it is enough.
    if digits.iter().any(u8::is_ascii_uppercase) { None } else { from_hex(digits) }
}

/// Why a client is not let in.
struct Refusal {
    /// For the log.
    words: &'static str,
    /// What the system says about it.
    cause: Option<io::Error>,
    /// For the client, if it can be expected to understand.
    answer: Option<(ErrorCode, &'static str)>,
}

impl Refusal {
    const fn silent(words: &'static str) -> Self {
        Self { words, cause: None, answer: None }
    }
}

/// A client that may not come in. Its words are for the log.
#[derive(Debug)]
pub struct Refused {
    peer: SocketAddr,
    words: &'static str,
    cause: Option<io::Error>,
}

impl Refused {
    /// What the line is about, where such lines are counted, and who has caused it.
    #[must_use]
    pub fn about(&self) -> (About, Option<User>) {
        (About::Refused(self.words), Some(User::at(self.peer.ip())))
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.peer, self.words)?;
        self.cause.iter().try_for_each(|cause| write!(f, ": {cause}"))
    }
}

/// How clients begin that speak Weave, but not this: what is logged, and what they are told.
const STRANGERS: [(&[u8], &str, ErrorCode, &str); 3] = [
    (
        b"weave-token ",
        "it sent a token in clear, as clients from before weave-auth 1 do; make a new one if others may have read it",
        ErrorCode::InvalidMagic,
        "this weaved wants weave-auth 1 and no token: update the client. The token that it sent travelled in clear: \
         make a new one if others may have read it (weave-daemon/TCP.md)",
    ),
    (
        b"weave-auth ",
        "it wants another version of weave-auth",
        ErrorCode::UnsupportedVersion,
        "this weaved speaks weave-auth 1, and no other version of it (weave-daemon/TCP.md)",
    ),
    (
        b"WEVE",
        "it began with a frame and didn't say that it knows the token",
        ErrorCode::InvalidMagic,
        "this weaved wants weave-auth 1 before the first frame: give the client the daemon's token file \
         (--token-file, WEAVE_TOKEN_FILE; weave-daemon/TCP.md)",
    ),
];

/// Whether what has come of a client's first line may still become one.
fn look(line: &[u8]) -> Result<(), Refusal> {
    let may_be = |word: &[u8]| line.starts_with(&word[..word.len().min(line.len())]);
    if may_be(HELLO) {
        return Ok(());
    }
    match STRANGERS.iter().find(|(word, ..)| may_be(word)) {
        Some((word, ..)) if line.len() < word.len() => Ok(()),
        Some((_, words, code, text)) => Err(Refusal { words, cause: None, answer: Some((*code, text)) }),
        None => Err(Refusal::silent("it did not begin with weave-auth 1")),
    }
}

/// A client that has not proved anything yet.
struct Waiting {
    stream: TcpStream,
    peer: SocketAddr,
    /// The line that is due, as far as it has come.
    line: [u8; HELLO_LEN],
    len: usize,
    /// The second line, once the first was there.
    expected: Option<[u8; PROOF_LEN]>,
    until: Instant,
    /// Which of all that came it was.
    nth: u64,
}

impl Waiting {
    /// Reads what there is. `None`: there is more to come. `Ok`: it may come in.
    fn read(&mut self, token: &Token) -> Option<Result<(), Refusal>> {
        loop {
            // Nothing behind the second line is read: that is the stream.
            let end = if self.expected.is_none() { HELLO_LEN } else { PROOF_LEN };
            match self.stream.read(&mut self.line[self.len..end]) {
                Ok(0) => {
                    let words = "it closed before it had proved that it knows the token";
                    return Some(Err(Refusal::silent(words)));
                }
                Ok(n) => self.len += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Some(Err(Refusal { cause: Some(error), ..Refusal::silent("it is gone") }));
                }
            }
            match &self.expected {
                None => {
                    let looked = look(&self.line[..self.len]);
                    let answered =
                        looked.and_then(|()| if self.len == end { self.answer(token) } else { Ok(()) });
                    if answered.is_err() {
                        return Some(answered);
                    }
                }
                Some(expected) if self.len == end => {
                    let right = self.line[..end].ct_eq(expected);
                    return Some(if bool::from(right) {
                        Ok(())
                    } else {
                        Err(Refusal::silent("its proof is wrong, for it has another token"))
                    });
                }
                Some(_) => {}
            }
        }
    }

    /// Answers the first line, which is complete.
    fn answer(&mut self, token: &Token) -> Result<(), Refusal> {
        let client = nonce(&self.line).ok_or(Refusal::silent("its line of weave-auth 1 is malformed"))?;
        let mut server = [0; 32];
        getrandom::fill(&mut server).map_err(|error| Refusal {
            cause: Some(error.into()),
            ..Refusal::silent("there are no random numbers for it")
        })?;
        let (line, expected) = answer(token, &client, &server);
        // Nobody waits for a peer that doesn't read: a fresh connection has room for this.
        match self.stream.write(&line) {
            Ok(ANSWER_LEN) => {}
            _ => return Err(Refusal::silent("it did not take the answer to its line of weave-auth 1")),
        }
        (self.expected, self.len) = (Some(expected), 0);
        Ok(())
    }

    /// Says why, if it can be said, and hangs up.
    fn refuse(mut self, refusal: Refusal) -> Refused {
        if let Some((code, text)) = refusal.answer {
            let mut frame = [0; MAX_ERROR_FRAME];
            // There is room for it, or closing has to say enough.
            let _ = self.stream.write(emit_frame(0, code, text, &mut frame));
            let _ = self.stream.shutdown(Shutdown::Write);
            // With bytes unread the kernel would reset the connection, which costs some peers the answer. No more of
            // them than a small request has: whoever sends on and on is not waited for.
            let mut rest = [0; 1024];
            let _ = (0..8).try_for_each(|_| match self.stream.read(&mut rest) {
                Ok(1..) => Ok(()),
                _ => Err(()),
            });
        }
        Refused { peer: self.peer, words: refusal.words, cause: refusal.cause }
    }
}

/// What has become of a client that had something to say.
#[derive(Debug)]
pub enum Shown {
    /// That it knows the token: it may come in. Nothing behind its lines was read.
    Token(TcpStream, User),
    /// Something else, or nothing.
    Refused(Refused),
}

/// Where clients wait. They cost one of few places here, and none of those for clients.
pub struct Gate {
    token: Token,
    places: Box<[Option<Waiting>]>,
    first: usize,
    arrived: u64,
}

impl Gate {
    /// A gate whose clients have the tokens of `mio` from `first` on, one for each place.
    #[must_use]
    pub fn new(token: Token, first: usize) -> Self {
        let places = std::iter::repeat_with(|| None).take(PLACES).collect();
        Self { token, places, first, arrived: 0 }
    }

    /// From now on clients have to know this token. Whether it is another one than before.
    pub fn change(&mut self, token: Token) -> bool {
        let is_new = self.token.0 != token.0;
        self.token = token;
        is_new
    }

    /// Has a client wait for its lines to arrive. If all places are taken, one has to go of those from the address that
    /// has most of them, the new one counted: the one that has been there the longest, for honest clients don't stay.
    ///
    /// # Errors
    /// A client that was refused, this one or the one that had to go.
    pub fn wait(
        &mut self,
        mut stream: TcpStream,
        peer: SocketAddr,
        registry: &Registry,
        now: Instant,
    ) -> Result<(), Refused> {
        let free = self.places.iter().position(Option::is_none);
        let place = free.unwrap_or_else(|| self.oldest_of_the_most(peer));
        if let Err(error) = registry.register(&mut stream, mio::Token(self.first + place), Interest::READABLE)
        {
            return Err(Refused { peer, words: "can't watch it", cause: Some(error) });
        }
        self.arrived += 1;
        let waiting = Waiting {
            stream,
            peer,
            line: [0; HELLO_LEN],
            len: 0,
            expected: None,
            until: now + PATIENCE,
            nth: self.arrived,
        };
        match self.places[place].replace(waiting) {
            Some(gone) => {
                let words = "no proof of the token yet, and others wait";
                Err(Refused { peer: gone.peer, words, cause: None })
            }
            None => Ok(()),
        }
    }

    fn oldest_of_the_most(&self, newcomer: SocketAddr) -> usize {
        let waiting = || self.places.iter().flatten();
        let user = |peer: SocketAddr| User::at(peer.ip());
        let places_of = |of: User| {
            waiting().filter(|waiting| user(waiting.peer) == of).count() + usize::from(user(newcomer) == of)
        };
        let taken = self.places.iter().enumerate().filter_map(|(at, place)| Some((at, place.as_ref()?)));
        let goes = taken.max_by_key(|(_, waiting)| (places_of(user(waiting.peer)), Reverse(waiting.nth)));
        goes.map_or(0, |(place, _)| place)
    }

    /// Reads what the client at this token of `mio` has sent. `None`: there is more to come.
    pub fn read(&mut self, token: mio::Token) -> Option<Shown> {
        let place = self.places.get_mut(token.0.checked_sub(self.first)?)?;
        let shown = place.as_mut()?.read(&self.token)?;
        let waiting = place.take()?;
        Some(match shown {
            Ok(()) => Shown::Token(waiting.stream, User::at(waiting.peer.ip())),
            Err(refusal) => Shown::Refused(waiting.refuse(refusal)),
        })
    }

    /// Refuses one client whose time is over.
    pub fn expire(&mut self, now: Instant) -> Option<Refused> {
        let late = self.places.iter_mut().find(|place| place.as_ref().is_some_and(|w| w.until <= now))?;
        late.take().map(|waiting| Refused { peer: waiting.peer, words: LATE, cause: None })
    }

    /// When the time of the next one is over.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.places.iter().flatten().map(|waiting| waiting.until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(from: u8) -> [u8; 32] {
        std::array::from_fn(|at| from + u8::try_from(at).unwrap())
    }

    #[test]
    fn the_lines_are_those_of_the_documentation() {
        let page = include_str!("../TCP.md");
        let (token, client, server) = (Token(counted(0)), counted(0x20), counted(0x40));
        let (answer, expected) = answer(&token, &client, &server);
        let hello = format!("weave-auth 1 {}\n", Hex(&client));
        for line in [hello.as_bytes(), &answer, &expected] {
            let line = std::str::from_utf8(line).unwrap();
            assert!(line.ends_with('\n') && page.contains(&format!("    {line}")), "{line}");
        }
        assert_eq!(nonce(hello.as_bytes().try_into().unwrap()), Some(client));
        assert!(page.contains(&format!("the token `{}`", Hex(&token.0))));
    }

    #[test]
    fn each_proof_depends_on_all_that_goes_into_it() {
        let (a, b) = (counted(1), counted(2));
        let proofs = [
            proof(&Token(a), Side::Server, &a, &a),
            proof(&Token(a), Side::Client, &a, &a),
            proof(&Token(b), Side::Server, &a, &a),
            proof(&Token(a), Side::Server, &b, &a),
            proof(&Token(a), Side::Server, &a, &b),
        ];
        for (at, proof) in proofs.iter().enumerate() {
            assert!(!proofs[..at].contains(proof), "{at}");
        }
    }

    #[test]
    fn what_may_still_become_a_line_is_waited_for() {
        let line = [HELLO, &[b'0'; 64], b"\n"].concat();
        for end in 0..=line.len() {
            assert!(look(&line[..end]).is_ok(), "{end}");
        }
        for (word, _, code, text) in STRANGERS {
            for end in 0..word.len() {
                assert!(look(&word[..end]).is_ok(), "{end} of {word:?}");
            }
            let Err(refusal) = look(&[word, b"2"].concat()) else { panic!("{word:?}") };
            assert_eq!(refusal.answer, Some((code, text)));
            assert!(text.len() <= 255, "W1-ERR-003: {text}");
        }
        for other in ["x", "weave_", "WEVA", "weave-authx"] {
            assert!(look(other.as_bytes()).is_err_and(|refusal| refusal.answer.is_none()), "{other}");
        }
    }
}
