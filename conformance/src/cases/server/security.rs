//! Section 10 of the specification, security considerations: what is tried on a server.

use std::collections::BTreeSet;

use crate::case::{Case, recommended, required, robustness};
use crate::connection::Came;
use crate::draft::{Cut, Draft, Segment};
use crate::spec::VECTORS;
use crate::talk::{Expected, Talk};
use crate::verdict::{Remark, fail, not_applicable, skip};
use crate::wire::{Expectation, Receiver, read};

use super::probe::NOT_OURS;

/// In the order of the text.
pub(super) const CASES: &[Case] = &[
    robustness("W1-SEC-001a", "random bytes don't crash the server").server(|server| {
        let mut random = Random::new(server.seed);
        for _ in 0..200 {
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
        for n in 0..500 {
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
        let request = |id| Draft::request(id, "x").set("width", 2048).set("height", 2048);
        let expected = |id| Expected::Image { id, width: 2048, height: 2048 };
        vec![Talk::new(
            "three images of 2048×2048",
            &[1, 2, 3].map(request),
            [1, 2, 3].map(expected).to_vec(),
        )]
    }),
    recommended("W1-SEC-002a", "100 half-sent requests take little memory").server(|server| {
        const CONNECTIONS: usize = 100;
        const EACH: u64 = 64 * 1024;
        let Some(before) = server.memory() else { return not_applicable(NOT_OURS) };
        let longest = VECTORS.iter().find(|vector| vector.name == "request-longest");
        let bytes: Vec<u8> =
            longest.map(|vector| vector.segments()).into_iter().flatten().flat_map(|s| s.bytes).collect();
        let mut open = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut connection = server.connect()?;
            connection.write(&bytes[..bytes.len() / 2]);
            open.push(connection);
        }
        server.still_serves()?;
        let Some(after) = server.memory() else { return not_applicable(NOT_OURS) };
        drop(open);
        server.still_serves()?;
        let each = after.saturating_sub(before) / CONNECTIONS as u64;
        if each > EACH {
            let problem =
                format!("a connection with half of the longest request costs {each} bytes of memory");
            return fail("W1-SEC-002", problem, format!("at most {EACH} bytes"));
        }
        Ok(Remark::Pass)
    }),
    recommended("W1-SEC-003a", "prompts are not logged").server(|server| {
        const SECRET: &str = "a very secret xylophone";
        if server.process().is_none() {
            return not_applicable(NOT_OURS);
        }
        server.ask(&[Draft::request(1, SECRET)])?;
        server.ask(&[Draft::request(2, SECRET).set("width", 1)])?;
        server.ask(&[Draft::request(3, &format!("{SECRET}\0"))])?;
        server.still_serves()?;
        let said = server.process().map(|process| process.said()).unwrap_or_default();
        match said.lines().find(|line| line.contains("xylophone")) {
            Some(line) => {
                fail("W1-SEC-003", format!("the server's output has the prompt in it: {line}"), "no prompt")
            }
            None => Ok(Remark::Pass),
        }
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
        for (table, loopback) in [("tcp", "0100007F"), ("tcp6", "00000000000000000000000001000000")] {
            let lines = std::fs::read_to_string(format!("/proc/{}/net/{table}", pids[0])).unwrap_or_default();
            for line in lines.lines().skip(1) {
                let columns: Vec<&str> = line.split_whitespace().collect();
                // Local address, state (0A: listening) and inode.
                if let (Some(local), Some(&"0A"), Some(inode)) =
                    (columns.get(1), columns.get(3), columns.get(9))
                    && sockets.contains(*inode)
                    && !local.starts_with(loopback)
                {
                    return fail(
                        "W1-SEC-004",
                        format!("the server listens on TCP at {local} (/proc/net/{table})"),
                        "no such socket",
                    );
                }
            }
        }
        Ok(Remark::Pass)
    }),
];

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
