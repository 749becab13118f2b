//! Users beside each other: whether each has the turns and the places that it may have, and no more.

use std::collections::BTreeMap;

use crate::causes::Reason;
use crate::router::{Bound, ClientId, Full, Refused, Turn, User};

/// Who may connect, the more of them the more company a world has. One is there several times: it likes to connect.
const USERS: [User; 8] = [
    User::Owner(1000),
    User::Uid(1),
    User::Uid(2),
    User::Uid(1),
    User::Owner(0),
    User::Ipv4(1),
    User::Uid(1),
    User::Ipv6(1),
];

/// The most that a world can have.
pub(super) const MOST: usize = USERS.len();

/// One of the first `n`, by a number below it.
pub(super) const fn user(at: usize) -> User {
    USERS[at]
}

/// What guests may have of so many places, as the documentation says it: one of them, all of them.
fn shares(places: usize) -> (usize, usize) {
    match places {
        1 => (1, 1),
        _ => (places / 2, places - places.div_ceil(16)),
    }
}

/// Turns that others had since somebody began to wait, or had its own.
struct Turns<Who>(BTreeMap<Who, BTreeMap<Who, u32>>);

impl<Who: Ord + Copy + std::fmt::Debug> Turns<Who> {
    const fn new() -> Self {
        Self(BTreeMap::new())
    }

    fn wait(&mut self, who: Who) {
        self.0.entry(who).or_default();
    }

    fn leave(&mut self, who: Who) {
        self.0.remove(&who);
    }

    fn take(&mut self, who: Who) {
        for (other, turns) in &mut self.0 {
            if *other == who {
                turns.clear();
            } else {
                let had = turns.entry(who).or_default();
                *had += 1;
                assert!(*had == 1, "{who:?} had {had} turns while {other:?} waited for one");
            }
        }
    }

    /// What was begun was in vain: that turn does not count.
    fn take_back(&mut self, who: Who) {
        for had in self.0.values_mut().filter_map(|turns| turns.get_mut(&who)) {
            *had = had.saturating_sub(1);
        }
    }
}

/// What is known of everybody.
pub(super) struct Company {
    connections: usize,
    queue: usize,
    /// By place in the table of connections: the user who had it last.
    users: Vec<User>,
    /// Between users.
    turns: Turns<User>,
    /// Between the clients of one user.
    of_clients: BTreeMap<User, Turns<usize>>,
}

impl Company {
    pub(super) fn new(connections: usize, queue: usize) -> Self {
        let users = vec![User::Owner(0); connections];
        Self { connections, queue, users, turns: Turns::new(), of_clients: BTreeMap::new() }
    }

    /// A connection has to go for a newcomer. `all`: who has one.
    pub(super) fn displaced(&self, id: ClientId, newcomer: User, all: &[ClientId]) {
        let victim = self.users[id.0];
        assert!(
            self.count(victim, all) > self.count(newcomer, all),
            "who has no more than the newcomer makes room"
        );
        let is_full = all.len() == self.connections;
        let are_guests = newcomer.is_guest() && victim.is_guest();
        let guests_are_full = are_guests && self.guests(all) == shares(self.connections).1;
        assert!(is_full || guests_are_full, "somebody makes room while there is some");
    }

    /// A newcomer has a place. `all`: who had one before.
    pub(super) fn accepted(&mut self, id: ClientId, newcomer: User, all: &[ClientId]) {
        let (each, guests) = shares(self.connections);
        if newcomer.is_guest() {
            assert!(self.count(newcomer, all) < each, "a guest has more than its share");
            assert!(self.guests(all) < guests, "guests have what is kept for the owner");
        }
        self.users[id.0] = newcomer;
    }

    /// A newcomer has no place.
    pub(super) fn refused(&self, Full { bound, user }: Full, all: &[ClientId]) {
        let (each, guests) = shares(self.connections);
        match bound {
            Bound::Each(n) => {
                assert_eq!(n, each);
                assert!(user.is_guest() && self.count(user, all) >= each, "refused before it has its share");
            }
            Bound::Guests(n) => {
                assert_eq!(n, guests);
                assert!(
                    user.is_guest() && self.guests(all) >= guests,
                    "refused while there is room for guests"
                );
            }
            Bound::All(n) => {
                assert_eq!(n, self.connections);
                assert_eq!(all.len(), n, "a connection is refused while there is room");
                let owners = all.len() - self.guests(all);
                assert!(user.is_guest() || owners >= n - guests, "the owner has not got what is kept");
            }
        }
    }

    fn count(&self, user: User, all: &[ClientId]) -> usize {
        all.iter().filter(|id| self.users[id.0] == user).count()
    }

    fn guests(&self, all: &[ClientId]) -> usize {
        all.iter().filter(|id| self.users[id.0].is_guest()).count()
    }

    /// Looks at why requests were refused.
    pub(super) fn judge_refusals(&self, refusals: &[Refused]) {
        for Refused { client, reason, owners_waiting, .. } in refusals {
            let user = self.users[client.0];
            let kept = self.queue - shares(self.queue).1;
            match reason {
                Reason::QueueShare => assert!(user.is_guest(), "the owner's share is full"),
                Reason::QueueFull if !user.is_guest() => {
                    assert!(
                        *owners_waiting >= kept,
                        "the owner's requests have not got the places that are kept"
                    );
                }
                _ => {}
            }
        }
    }

    /// Looks at whose turn it was.
    pub(super) fn judge_turns(&mut self, turns: Vec<Turn>) {
        for turn in turns {
            let (Turn::Waits(id) | Turn::Leaves(id) | Turn::Taken(id) | Turn::Again(id)) = turn;
            let user = self.users[id.0];
            let clients = self.of_clients.entry(user).or_insert_with(Turns::new);
            match turn {
                Turn::Waits(_) => {
                    clients.wait(id.0);
                    self.turns.wait(user);
                }
                Turn::Leaves(_) => {
                    clients.leave(id.0);
                    if clients.0.is_empty() {
                        self.turns.leave(user);
                    }
                }
                Turn::Taken(_) => {
                    clients.take(id.0);
                    self.turns.take(user);
                }
                Turn::Again(_) => {
                    clients.take_back(id.0);
                    self.turns.take_back(user);
                }
            }
        }
    }
}
