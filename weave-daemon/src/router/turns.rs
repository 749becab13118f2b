//! Whose turn it is: users take turns, and a user's clients take turns within it.
//!
//! Who waits stands in a ring, whose links lie in a table: every step takes the same time however many there are.

use super::interface::ClientId;
use super::users::Account;

/// The neighbours of one that stands in a ring, by their places in the table. Who is alone is its own.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    before: usize,
    behind: usize,
}

/// The one whose turn it is, if there is one. Before it stands the last one.
#[derive(Clone, Copy, Debug, Default)]
struct Ring(Option<usize>);

impl Ring {
    fn push_back(&mut self, links: &mut [Link], at: usize) {
        let Some(first) = self.0 else {
            links[at] = Link { before: at, behind: at };
            self.0 = Some(at);
            return;
        };
        let last = links[first].before;
        links[at] = Link { before: last, behind: first };
        links[last].behind = at;
        links[first].before = at;
    }

    fn push_front(&mut self, links: &mut [Link], at: usize) {
        self.push_back(links, at);
        self.0 = Some(at);
    }

    /// To be one that stands in it.
    fn remove(&mut self, links: &mut [Link], at: usize) {
        let Link { before, behind } = links[at];
        links[before].behind = behind;
        links[behind].before = before;
        if self.0 == Some(at) {
            self.0 = (behind != at).then_some(behind);
        }
    }

    /// Those that stand in it, the first one first.
    fn all(self, links: &[Link]) -> impl Iterator<Item = usize> {
        let next = move |at: &usize| Some(links[*at].behind).filter(|behind| Some(*behind) != self.0);
        std::iter::successors(self.0, next)
    }

    /// The first one goes behind all others.
    fn rotate(&mut self, links: &[Link]) {
        self.0 = self.0.map(|first| links[first].behind);
    }
}

/// The clients that wait for a worker, each once; the next one is in front.
pub(super) struct Turns {
    clients: Box<[Link]>,
    users: Box<[Link]>,
    /// Each user's clients.
    rings: Box<[Ring]>,
    /// Users with at least one such client.
    ring: Ring,
}

impl Turns {
    pub(super) fn new(clients: usize) -> Self {
        let links = || vec![Link::default(); clients].into();
        Self {
            clients: links(),
            users: links(),
            rings: vec![Ring::default(); clients].into(),
            ring: Ring::default(),
        }
    }

    /// The client whose turn it is.
    pub(super) fn next(&self) -> Option<ClientId> {
        self.rings[self.ring.0?].0.map(ClientId)
    }

    /// The users that wait, the next one first, and each one's clients.
    pub(super) fn standing(&self) -> impl Iterator<Item = impl Iterator<Item = ClientId>> {
        self.ring.all(&self.users).map(|user| self.rings[user].all(&self.clients).map(ClientId))
    }

    /// The client whose turn it is has had it: it goes behind the others of its user, and the user behind
    /// the other users.
    pub(super) fn pass(&mut self) {
        if let Some(user) = self.ring.0 {
            self.rings[user].rotate(&self.clients);
            self.ring.rotate(&self.users);
        }
    }

    /// A client that stood in no ring goes behind the others.
    pub(super) fn join(&mut self, client: ClientId, of: Account) {
        let ring = &mut self.rings[of.place()];
        if ring.0.is_none() {
            self.ring.push_back(&mut self.users, of.place());
        }
        ring.push_back(&mut self.clients, client.0);
    }

    /// A client that stood in no ring is the next one.
    pub(super) fn join_first(&mut self, client: ClientId, of: Account) {
        let ring = &mut self.rings[of.place()];
        if ring.0.is_some() {
            self.ring.remove(&mut self.users, of.place());
        }
        ring.push_front(&mut self.clients, client.0);
        self.ring.push_front(&mut self.users, of.place());
    }

    /// A client that stood in a ring wants no more turns.
    pub(super) fn leave(&mut self, client: ClientId, of: Account) {
        let ring = &mut self.rings[of.place()];
        ring.remove(&mut self.clients, client.0);
        if ring.0.is_none() {
            self.ring.remove(&mut self.users, of.place());
        }
    }
}

/// For the simulator: what must be true at any time.
#[cfg(feature = "simulator")]
impl Turns {
    /// # Panics
    /// If the rings disagree with who has to stand in them: clients that wait, and their users' places.
    pub(super) fn assert_consistent(&self, waiting: &[(ClientId, Account)]) {
        let walk = |ring: Ring, links: &[Link]| {
            let all: Vec<_> = ring.all(links).take(links.len() + 1).collect();
            let is_linked = |at: &usize| links[links[*at].behind].before == *at;
            assert!(all.iter().all(is_linked), "a ring that is another one backwards");
            all
        };
        let mut standing = 0;
        for user in walk(self.ring, &self.users) {
            let clients = walk(self.rings[user], &self.clients);
            assert!(!clients.is_empty(), "a user without a client that waits");
            standing += clients.len();
            for client in clients {
                let is_right = |(id, of): &(ClientId, Account)| id.0 == client && of.place() == user;
                assert!(waiting.iter().any(is_right), "client {client} in a ring of user {user}");
            }
        }
        assert_eq!(standing, waiting.len(), "turns of those who wait");
    }
}
