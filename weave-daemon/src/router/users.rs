//! Users beside each other: who is known, and how many places one may have.
//!
//! Connections and the queue have the same rule. One user other than the owner and root, a *guest*, has at most half of
//! the places; a sixteenth is kept for the owner and root. Of a single place nothing can be kept.

use super::interface::{Bound, Full, User};

/// What guests may have of so many places.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    /// One of them.
    pub(super) each: usize,
    /// All of them together.
    pub(super) all: usize,
}

impl Share {
    const fn of(places: usize) -> Self {
        let kept = if places < 2 { 0 } else { places.div_ceil(16) };
        let half = places / 2;
        Self { each: if half == 0 { 1 } else { half }, all: places - kept }
    }
}

/// A user that has a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Account {
    place: usize,
    is_guest: bool,
}

impl Account {
    /// Of nobody.
    pub(super) const NONE: Self = Self { place: 0, is_guest: false };

    /// Its place in a table of users.
    pub(super) const fn place(self) -> usize {
        self.place
    }

    pub(super) const fn is_guest(self) -> bool {
        self.is_guest
    }
}

/// How many places of one kind each user has.
pub(super) struct Tally {
    share: Share,
    of: Box<[usize]>,
    guests: usize,
}

impl Tally {
    pub(super) fn new(places: usize, users: usize) -> Self {
        Self { share: Share::of(places), of: vec![0; users].into(), guests: 0 }
    }

    pub(super) const fn share(&self) -> Share {
        self.share
    }

    pub(super) fn of(&self, account: Account) -> usize {
        self.of[account.place]
    }

    pub(super) fn take(&mut self, account: Account) {
        self.of[account.place] += 1;
        self.guests += usize::from(account.is_guest);
    }

    pub(super) fn give_back(&mut self, account: Account) {
        self.of[account.place] -= 1;
        self.guests -= usize::from(account.is_guest);
    }

    /// What keeps a guest that has so many from one more.
    fn bound_of_guest(&self, has: usize) -> Option<Bound> {
        let Share { each, all } = self.share;
        if has >= each { Some(Bound::Each(each)) } else { (self.guests >= all).then_some(Bound::Guests(all)) }
    }

    /// What keeps a user from one more, besides that there may be none left.
    pub(super) fn bound(&self, account: Account) -> Option<Bound> {
        if account.is_guest { self.bound_of_guest(self.of(account)) } else { None }
    }
}

/// The users that have a connection, and how many.
pub(super) struct Users {
    /// As many as there ever were at once, in memory that is reserved for all that may be. Who has no connection
    /// any more leaves its place to the next one.
    table: Vec<User>,
    connections: Tally,
    limit: usize,
    taken: usize,
}

impl Users {
    pub(super) fn new(connections: usize) -> Self {
        Self {
            table: Vec::with_capacity(connections),
            connections: Tally::new(connections, connections),
            limit: connections,
            taken: 0,
        }
    }

    /// Connections that a user has.
    pub(super) fn connections(&self, account: Account) -> usize {
        self.connections.of(account)
    }

    /// Looks through all users, which costs less than accepting a connection does.
    fn find(&self, user: User) -> Option<Account> {
        let has = |place: usize| self.connections.of[place] > 0;
        let place = (0..self.table.len()).find(|place| self.table[*place] == user && has(*place))?;
        Some(Account { place, is_guest: user.is_guest() })
    }

    /// What keeps this user from one more connection, and how many it has.
    pub(super) fn bound(&self, user: User) -> (Option<Bound>, usize) {
        self.bound_of(user, self.find(user))
    }

    fn bound_of(&self, user: User, account: Option<Account>) -> (Option<Bound>, usize) {
        let has = account.map_or(0, |account| self.connections.of(account));
        let own = if user.is_guest() { self.connections.bound_of_guest(has) } else { None };
        (own.or_else(|| (self.taken >= self.limit).then_some(Bound::All(self.limit))), has)
    }

    /// A user has one connection more.
    pub(super) fn enter(&mut self, user: User) -> Result<Account, Full> {
        let known = self.find(user);
        if let (Some(bound), _) = self.bound_of(user, known) {
            return Err(Full { bound, user });
        }
        let account = known.unwrap_or_else(|| {
            let free = (0..self.table.len()).find(|place| self.connections.of[*place] == 0);
            let place = free.unwrap_or_else(|| {
                self.table.push(user);
                self.table.len() - 1
            });
            self.table[place] = user;
            Account { place, is_guest: user.is_guest() }
        });
        self.connections.take(account);
        self.taken += 1;
        Ok(account)
    }

    /// A user has one connection less.
    pub(super) fn leave(&mut self, account: Account) {
        self.connections.give_back(account);
        self.taken -= 1;
    }
}

/// For the simulator: what must be true at any time.
#[cfg(feature = "simulator")]
impl Tally {
    /// # Panics
    /// If these are not the accounts that have a place, once for each.
    pub(super) fn assert_is(&self, accounts: &[Account]) {
        let mut of = vec![0; self.of.len()];
        accounts.iter().for_each(|account| of[account.place] += 1);
        assert_eq!(*self.of, *of, "places of each user");
        let guests = accounts.iter().filter(|account| account.is_guest).count();
        assert_eq!(self.guests, guests, "places of guests");
    }

    /// # Panics
    /// If one guest or all of them have more than they may.
    pub(super) fn assert_bounded(&self, accounts: &[Account]) {
        let guests = || accounts.iter().filter(|account| account.is_guest);
        assert!(guests().count() <= self.share.all, "guests have what is kept for the owner");
        for guest in guests() {
            let has = guests().filter(|other| *other == guest).count();
            assert!(has <= self.share.each, "a guest has {has} places, more than its share");
        }
    }
}

/// For the simulator: what must be true at any time.
#[cfg(feature = "simulator")]
impl Users {
    /// # Panics
    /// If these are not the accounts and users of all connections.
    pub(super) fn assert_consistent(&self, all: &[(Account, User)]) {
        let accounts: Vec<_> = all.iter().map(|(account, _)| *account).collect();
        self.connections.assert_is(&accounts);
        self.connections.assert_bounded(&accounts);
        assert_eq!(self.taken, all.len(), "connections of everybody");
        for (account, user) in all {
            assert_eq!(self.table[account.place], *user, "an account of another user");
            let is_same = |(other, of): &(Account, User)| (other == account) == (of == user);
            assert!(all.iter().all(is_same), "two accounts of one user");
        }
    }
}
