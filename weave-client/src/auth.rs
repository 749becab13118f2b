//! How both sides of a TCP connection prove that they know the token, before the first frame: `weave-auth 1`
//! (`weave-daemon/TCP.md`). The token itself is never sent, and the daemon has to prove it first: an impostor learns
//! nothing but a nonce.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use weave_core::error::ErrorCode;
use weave_core::limits::{HEADER_LEN, MAGIC};

use crate::address::{Address, Token, from_hex};
use crate::answer::{Head, read_head_behind};
use crate::error::{Error, NoProof};
use crate::link::Link;

/// What both sides begin with.
const HELLO: &[u8] = b"weave-auth 1 ";
/// A nonce or a proof in hexadecimal digits.
const DIGITS: usize = 64;
/// The daemon's line: its nonce, a space, its proof, a line feed.
const ANSWER_LEN: usize = HELLO.len() + DIGITS + 1 + DIGITS + 1;

type Nonce = [u8; 32];

/// Has the daemon prove that it knows the token, and proves it in turn.
pub(crate) fn prove(link: &mut Link, address: &Address, token: &Token) -> Result<(), Error> {
    let no_proof = |why| Error::NoProof { address: address.clone(), why };
    converse(link, token, &no_proof).map_err(|error| match error {
        // As a weaved from before this does, without a word.
        Error::HungUp { .. } => no_proof(NoProof::HungUp),
        other => other,
    })
}

fn converse(link: &mut Link, token: &Token, no_proof: &dyn Fn(NoProof) -> Error) -> Result<(), Error> {
    let mut client = [0; 32];
    getrandom::fill(&mut client).map_err(|error| Error::Io(error.into()))?;
    link.send(format!("weave-auth 1 {}\n", Hex(&client)).as_bytes())?;

    let mut line = [0; ANSWER_LEN];
    let mut len = 0;
    while len < ANSWER_LEN {
        let end = if len < HEADER_LEN { HEADER_LEN } else { ANSWER_LEN };
        len += link.receive(&mut line[len..end])?;
        let begins_with = |word: &[u8]| word.starts_with(&line[..len.min(word.len())]);
        match line.first_chunk() {
            Some(header) if begins_with(&MAGIC) => {
                if len == HEADER_LEN {
                    return Err(explained(read_head_behind(link, header)?, no_proof));
                }
            }
            _ if begins_with(HELLO) => {}
            // Who says something else is not waited for.
            _ => return Err(no_proof(NoProof::Nonsense)),
        }
    }
    let (server, its_proof) = parse(&line).ok_or_else(|| no_proof(NoProof::Nonsense))?;
    // In constant time.
    let right = mac(token, "weave-auth 1 server", &client, &server).verify_slice(&its_proof);
    right.map_err(|_| no_proof(NoProof::Wrong))?;

    let own = mac(token, "weave-auth 1 client", &client, &server).finalize().into_bytes().into();
    link.send(format!("{}\n", Hex(&own)).as_bytes())
}

/// What a frame in the place of the daemon's line says.
fn explained(head: Head, no_proof: &dyn Fn(NoProof) -> Error) -> Error {
    match head {
        // To a daemon without a token the line is a frame with the wrong magic.
        Head::Error { request_id: 0, reply } if reply.code == ErrorCode::InvalidMagic => {
            no_proof(NoProof::NotAsked)
        }
        Head::Error { reply, .. } => Error::Refused(reply),
        Head::Image { .. } => no_proof(NoProof::Nonsense),
    }
}

/// The daemon's nonce and its proof.
fn parse(line: &[u8; ANSWER_LEN]) -> Option<(Nonce, [u8; 32])> {
    let rest = line.strip_prefix(HELLO)?.strip_suffix(b"\n")?;
    // One way to write it is enough.
    if rest.iter().any(u8::is_ascii_uppercase) {
        return None;
    }
    let (nonce, proof) = rest.split_at_checked(DIGITS)?;
    Some((from_hex(nonce)?, from_hex(proof.strip_prefix(b" ")?)?))
}

/// `side` says whose proof it is, so that the one can't be passed off as the other.
fn mac(token: &Token, side: &str, client: &Nonce, server: &Nonce) -> Hmac<Sha256> {
    // A key that is shorter than the hash's block is filled up with zeros.
    let mut key = [0; 64];
    key[..32].copy_from_slice(token.bytes());
    let mut mac = Hmac::<Sha256>::new(&key.into());
    mac.update(side.as_bytes());
    mac.update(client);
    mac.update(server);
    mac
}

/// In lower-case digits.
struct Hex<'a>(&'a [u8; 32]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
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
        let page = include_str!("../../weave-daemon/TCP.md");
        let (token, client, server) = (Token::new(counted(0)), counted(0x20), counted(0x40));
        let proof = |side| mac(&token, side, &client, &server).finalize().into_bytes().into();
        let (its, own) = (proof("weave-auth 1 server"), proof("weave-auth 1 client"));
        let answer = format!("weave-auth 1 {} {}\n", Hex(&server), Hex(&its));
        for line in [&format!("weave-auth 1 {}\n", Hex(&client)), &answer, &format!("{}\n", Hex(&own))] {
            assert!(page.contains(&format!("    {line}")), "{line}");
        }
        assert_eq!(parse(answer.as_bytes().try_into().unwrap()), Some((server, its)));
    }

    #[test]
    fn an_answer_is_written_in_one_way() {
        let good = format!("weave-auth 1 {} {}\n", "5a".repeat(32), "a5".repeat(32)).into_bytes();
        let bytes = |answer: &[u8]| parse(answer.try_into().unwrap());
        assert_eq!(bytes(&good), Some(([0x5a; 32], [0xa5; 32])));
        for (at, byte) in [
            (0, b'W'),
            (11, b'2'),
            (12, b'\t'),
            (20, b'g'),
            (20, b'A'),
            (77, b'\n'),
            (100, b'A'),
            (142, b'\r'),
            (142, b'0'),
        ] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert_eq!(bytes(&bad), None, "{at}");
        }
    }
}
