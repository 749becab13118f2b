//! Section 10 of the specification, security considerations: what is tried on a server.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use crate::case::{Case, recommended, required, robustness};
use crate::connection::Came;
use crate::draft::{Cut, Draft, Segment};
use crate::secret::{PROMPT, part_of_prompt_in};
use crate::spec::VECTORS;
use crate::talk::{Expected, Talk};
use crate::verdict::{Remark, fail, not_applicable, skip};
use crate::wire::{Expectation, Receiver, read};

use super::probe::{NOT_OURS, cost_beside_idle};

/// In the order of the text.
pub(super) const CASES: &[Case] = &[
    robustness("W1-SEC-001a", "random bytes don't crash the server").server(|server| {
        let mut random = Random::new(server.seed);
        let began = Instant::now();
        for n in 0..200 {
            if n >= ENOUGH && began.elapsed() > server.timeout {
                break;
            }
            let len = random.below(4096);
            let mut bytes: Vec<u8> = (0..len).map(|_| random.next().to_le_bytes()[3]).collect();
            if random.below(2) == 0 {
                bytes.splice(0..0, *b"WEVE");
            }
            let mut connection = server.connect()?;
            connection.write(&bytes);
            connection.end_writing();
            loop {
                match connection.receive() {
                    Ok(Came::Answer(_)) => {}
                    Ok(Came::Close) => break,
                    Err(mut failure) => {
                        failure.sent = bytes;
                        return Err(failure);
                    }
                }
            }
        }
        server.still_serves().map(|()| Remark::Pass)
    }),
    // Valid requests with one to four bytes changed: what the suite's own reader makes of them has to come.
    robustness("W1-SEC-001b", "mutated requests don't crash the server").server(|server| {
        let mut random = Random::new(server.seed ^ 0x00C0_FFEE);
        let began = Instant::now();
        for n in 0..500 {
            if n >= ENOUGH && began.elapsed() > server.timeout {
                break;
            }
            let request = if n % 2 == 0 {
                Draft::request(n, "a cat in space")
            } else {
                Draft::request(n, "宇宙の猫")
            };
            let mut bytes = request.bytes();
            for _ in 0..=random.below(4) {
                // The header's length stays as it is: how a stream goes on is for other cases.
                let at =
                    [random.below(8), 12 + random.below(bytes.len() - 12)][usize::from(random.below(8) > 0)];
                let value = random.next().to_le_bytes()[5];
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = [value, *byte ^ (1 << (value % 8)), 0, 0xFF][random.below(4)];
                }
            }
            let (expectations, end) = read(Receiver::Server, &bytes);
            if let [Expectation::Request { fields, .. }] = expectations.as_slice()
                && fields.get("width") * fields.get("height") > 512 * 512
            {
                continue;
            }
            let talk = Talk {
                name: format!("number {n} of seed {}", server.seed),
                sends: vec![Segment { field: "frame".to_owned(), bytes }],
                expected: expectations.iter().map(Expected::of).collect(),
                end,
            };
            server.hold(&talk, Cut::Whole).map_err(|mut failure| {
                failure.variant = talk.name.clone();
                failure
            })?;
        }
        Ok(Remark::Pass)
    }),
    robustness("W1-SEC-001c", "three images of 2048×2048 on one connection").talks(|| {
        let request = |id| Draft::request(id, PROMPT).set("width", 2048).set("height", 2048);
        let expected = |id| Expected::Image { id, width: 2048, height: 2048 };
        vec![Talk::new(
            "three images of 2048×2048",
            &[1, 2, 3].map(request),
            [1, 2, 3].map(expected).to_vec(),
        )]
    }),
    recommended("W1-SEC-002a", "half-sent requests take little memory").server(|server| {
        const EACH: u64 = 64 * 1024;
        // A page here and there, of whatever else the server does.
        const OTHER: u64 = 512 * 1024;
        const ROUNDS: usize = 3;
        let longest = VECTORS.iter().find(|vector| vector.name == "request-longest");
        let bytes: Vec<u8> =
            longest.map(|vector| vector.segments()).into_iter().flatten().flat_map(|s| s.bytes).collect();
        let mut problem = String::new();
        for _ in 0..ROUNDS {
            let Some((connections, cost)) = cost_beside_idle(server, &bytes[..bytes.len() / 2])? else {
                return not_applicable(NOT_OURS);
            };
            if cost <= EACH * connections + OTHER {
                return Ok(Remark::Pass);
            }
            problem = format!(
                "half of the longest request on each of {connections} connections costs {cost} bytes of memory"
            );
        }
        fail("W1-SEC-002", problem, format!("at most {EACH} bytes each"))
    }),
    recommended("W1-SEC-003a", "prompts are not logged").server(|server| {
        // A log has many numbers, of which six digits may be those of three letters by chance.
        const LEAST: usize = 6;
        if server.process().is_none() {
            return not_applicable(NOT_OURS);
        }
        server.ask(&[Draft::request(1, PROMPT)])?;
        server.ask(&[Draft::request(2, PROMPT).set("width", 1)])?;
        server.ask(&[Draft::request(3, &format!("{PROMPT}\0"))])?;
        server.ask(&[Draft::request(4, PROMPT).set("t5_offset", 5_000)])?;
        server.still_serves()?;
        let said = server.process().map(|process| process.said()).unwrap_or_default();
        for line in said.lines() {
            if let Some(part) = part_of_prompt_in(line.as_bytes(), LEAST) {
                let problem =
                    format!("the server's output has {part} of the prompt {PROMPT:?} in it: {line}");
                return fail("W1-SEC-003", problem, "no prompt");
            }
        }
        Ok(Remark::Pass)
    }),
    required("W1-SEC-004a", "the server can't be reached from another machine").server(|server| {
        let Some(process) = server.process() else { return not_applicable(NOT_OURS) };
        let pids = process.family();
        let mut sockets = BTreeSet::new();
        for pid in &pids {
            for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
                if let Ok(target) = std::fs::read_link(entry.path())
                    && let Some(inode) =
                        target.to_string_lossy().strip_prefix("socket:[").and_then(|s| s.strip_suffix(']'))
                {
                    sockets.insert(inode.to_owned());
                }
            }
        }
        if sockets.is_empty() {
            return skip("the server's sockets can't be listed");
        }
        // TCP sockets that listen, and UDP sockets that are not connected to anybody.
        for (table, open) in [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")] {
            let lines = std::fs::read_to_string(format!("/proc/{}/net/{table}", pids[0])).unwrap_or_default();
            for line in lines.lines().skip(1) {
                let columns: Vec<&str> = line.split_whitespace().collect();
                let (Some(local), Some(state), Some(inode)) =
                    (columns.get(1), columns.get(3), columns.get(9))
                else {
                    continue;
                };
                if *state == open
                    && sockets.contains(*inode)
                    && !local_address(local).is_some_and(is_loopback)
                {
                    let address =
                        local_address(local).map_or((*local).to_owned(), |address| address.to_string());
                    return fail(
                        "W1-SEC-004",
                        format!("the server has a socket at {address} (/proc/net/{table}: {local})"),
                        "no such socket",
                    );
                }
            }
        }
        Ok(Remark::Pass)
    }),
];

/// So many of the random inputs are tried in any case; the others if there is time.
const ENOUGH: u64 = 50;

/// The address of "0100007F:1F90", as the kernel's tables have it: words in the order of this machine.
fn local_address(column: &str) -> Option<IpAddr> {
    let digits = column.split(':').next()?;
    let mut bytes = Vec::new();
    for word in digits.as_bytes().chunks(8) {
        bytes.extend(u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?.to_ne_bytes());
    }
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        _ => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
    }
}

/// All of 127.0.0.0/8, also as an IPv6 socket has it, and ::1.
fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// Numbers that look random and are the same for the same seed (xorshift64*).
struct Random(u64);

impl Random {
    const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn loopback_is_known_in_all_its_forms() {
        for (column, expected) in [
            ("0100007F:1F90", true),
            ("0500007F:1F90", true),
            ("FFFFFF7F:1F90", true),
            ("00000000000000000000000001000000:1F90", true),
            ("0000000000000000FFFF00000100007F:1F90", true),
            ("00000000:1F90", false),
            ("0101A8C0:1F90", false),
            ("00000000000000000000000000000000:1F90", false),
            ("0000000000000000FFFF00000101A8C0:1F90", false),
        ] {
            assert_eq!(local_address(column).map(is_loopback), Some(expected), "{column}");
        }
    }
}
