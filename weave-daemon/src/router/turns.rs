//! Whose turn it is: users take turns, and a user's clients take turns within it.
//!
//! Lines are links inside tables, so that every step takes the same time however many stand in them.

use super::interface::ClientId;
use super::users::Account;

/// One that stands in a line, by its place in the table.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    before: Option<usize>,
    behind: Option<usize>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Line {
    first: Option<usize>,
    last: Option<usize>,
}

impl Line {
    fn push_back(&mut self, links: &mut [Link], at: usize) {
        links[at] = Link { before: self.last, behind: None };
        match self.last.replace(at) {
            Some(last) => links[last].behind = Some(at),
            None => self.first = Some(at),
        }
    }

    fn push_front(&mut self, links: &mut [Link], at: usize) {
        links[at] = Link { before: None, behind: self.first };
        match self.first.replace(at) {
            Some(first) => links[first].before = Some(at),
            None => self.last = Some(at),
        }
    }

    /// To be one that stands in it.
    fn remove(&mut self, links: &mut [Link], at: usize) {
        let Link { before, behind } = links[at];
        match before {
            Some(before) => links[before].behind = behind,
            None => self.first = behind,
        }
        match behind {
            Some(behind) => links[behind].before = before,
            None => self.last = before,
        }
    }

    /// Puts the first one behind all others.
    fn rotate(&mut self, links: &mut [Link]) {
        if self.first != self.last
            && let Some(first) = self.first
        {
            self.remove(links, first);
            self.push_back(links, first);
        }
    }
}

/// The clients that wait for a worker, each once; the next one is in front.
pub(super) struct Turns {
    clients: Box<[Link]>,
    users: Box<[Link]>,
    /// Each user's clients.
    lines: Box<[Line]>,
    /// Users with at least one such client.
    line: Line,
}

impl Turns {
    pub(super) fn new(clients: usize) -> Self {
        let links = || vec![Link::default(); clients].into();
        Self {
            clients: links(),
            users: links(),
            lines: vec![Line::default(); clients].into(),
            line: Line::default(),
        }
    }

    /// The client whose turn it is.
    pub(super) fn next(&self) -> Option<ClientId> {
        self.lines[self.line.first?].first.map(ClientId)
    }

    /// The client whose turn it is has had it: it goes behind the others of its user, and the user behind
    /// the other users.
    pub(super) fn pass(&mut self) {
        if let Some(user) = self.line.first {
            self.lines[user].rotate(&mut self.clients);
            self.line.rotate(&mut self.users);
        }
    }

    /// A client that stood in no line goes behind the others.
    pub(super) fn join(&mut self, client: ClientId, of: Account) {
        let line = &mut self.lines[of.place()];
        if line.first.is_none() {
            self.line.push_back(&mut self.users, of.place());
        }
        line.push_back(&mut self.clients, client.0);
    }

    /// A client that stood in no line is the next one.
    pub(super) fn join_first(&mut self, client: ClientId, of: Account) {
        let line = &mut self.lines[of.place()];
        if line.first.is_some() {
            self.line.remove(&mut self.users, of.place());
        }
        line.push_front(&mut self.clients, client.0);
        self.line.push_front(&mut self.users, of.place());
    }

    /// A client that stood in a line wants no more turns.
    pub(super) fn leave(&mut self, client: ClientId, of: Account) {
        let line = &mut self.lines[of.place()];
        line.remove(&mut self.clients, client.0);
        if line.first.is_none() {
            self.line.remove(&mut self.users, of.place());
        }
    }
}

/// For the simulator: what must be true at any time.
#[cfg(feature = "simulator")]
impl Turns {
    /// # Panics
    /// If the lines disagree with who has to stand in them: clients that wait, and their users' places.
    pub(super) fn assert_consistent(&self, waiting: &[(ClientId, Account)]) {
        let walk = |line: Line, links: &[Link]| {
            let next = |at: &usize| links[*at].behind;
            let all: Vec<_> = std::iter::successors(line.first, next).take(links.len() + 1).collect();
            assert_eq!(all.last().copied(), line.last, "a line without its end");
            let back = |at: &usize| links[*at].before;
            let mut backwards: Vec<_> =
                std::iter::successors(line.last, back).take(links.len() + 1).collect();
            backwards.reverse();
            assert_eq!(all, backwards, "a line that is another one backwards");
            all
        };
        let mut standing = 0;
        for user in walk(self.line, &self.users) {
            let clients = walk(self.lines[user], &self.clients);
            assert!(!clients.is_empty(), "a user without a client that waits");
            standing += clients.len();
            for client in clients {
                let is_right = |(id, of): &(ClientId, Account)| id.0 == client && of.place() == user;
                assert!(waiting.iter().any(is_right), "client {client} in a line of user {user}");
            }
        }
        assert_eq!(standing, waiting.len(), "turns of those who wait");
    }
}
