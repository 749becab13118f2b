//! How many requests are under way and how much memory they may take, in all and for each address.
//!
//! Memory is taken before the work begins, for the largest answer that it may have; when the answer is there, its place is
//! free again and it holds what it has, until the client has taken it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::connections::Origin;

/// Bytes of images under way and of answers that clients have yet to take.
pub(crate) const MEMORY: u64 = 1 << 30;

/// Whether addresses tell clients apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Addresses {
    /// An address gets no more than it leaves: half if it is alone, less if others have some. So something is
    /// always left for the next one.
    Share,
    /// All come from this machine, and have whichever address of it they like.
    DontMatter,
}

/// What there is.
pub(crate) struct Shares {
    addresses: Addresses,
    state: Mutex<State>,
}

struct State {
    free: Held,
    by: HashMap<Origin, Held>,
}

#[derive(Clone, Copy, Default)]
struct Held {
    places: u64,
    bytes: u64,
}

impl Held {
    const fn plus(self, other: Self) -> Self {
        Self { places: self.places + other.places, bytes: self.bytes + other.bytes }
    }

    const fn minus(self, other: Self) -> Option<Self> {
        match (self.places.checked_sub(other.places), self.bytes.checked_sub(other.bytes)) {
            (Some(places), Some(bytes)) => Some(Self { places, bytes }),
            _ => None,
        }
    }
}

/// Why there is no room for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// All places are taken.
    Places,
    /// The images would take too much memory beside those under way.
    Memory,
    /// This address has its share.
    Address,
}

impl Shares {
    pub(crate) fn new(places: u32, addresses: Addresses) -> Arc<Self> {
        let free = Held { places: places.into(), bytes: MEMORY };
        Arc::new(Self { addresses, state: Mutex::new(State { free, by: HashMap::new() }) })
    }

    /// A place for a request, and memory for it.
    pub(crate) fn take(self: &Arc<Self>, origin: Origin, bytes: u64) -> Result<Share, NoRoom> {
        let held = Held { places: 1, bytes };
        self.add(origin, held)?;
        Ok(Share { shares: Arc::clone(self), origin, held })
    }

    /// Memory for what is kept and is no request.
    pub(crate) fn take_memory(self: &Arc<Self>, origin: Origin, bytes: u64) -> Result<Share, NoRoom> {
        let held = Held { places: 0, bytes };
        self.add(origin, held)?;
        Ok(Share { shares: Arc::clone(self), origin, held })
    }

    fn add(&self, origin: Origin, more: Held) -> Result<(), NoRoom> {
        let mut state = self.state();
        let Some(free) = state.free.minus(more) else {
            return Err(if state.free.places < more.places { NoRoom::Places } else { NoRoom::Memory });
        };
        let before = state.by.get(&origin).copied().unwrap_or_default();
        let after = before.plus(more);
        // What an address has none of yet, it may have: a single place can't be shared.
        let fits = |before: u64, after: u64, free: u64| before == 0 || before == after || after <= free;
        let is_fair =
            fits(before.places, after.places, free.places) && fits(before.bytes, after.bytes, free.bytes);
        if self.addresses == Addresses::Share && !is_fair {
            return Err(NoRoom::Address);
        }
        state.free = free;
        state.by.insert(origin, after);
        Ok(())
    }

    fn give_back(&self, origin: Origin, less: Held) {
        let mut state = self.state();
        state.free = state.free.plus(less);
        let left = state.by.get(&origin).and_then(|held| held.minus(less)).unwrap_or_default();
        if left.places == 0 && left.bytes == 0 {
            state.by.remove(&origin);
        } else {
            state.by.insert(origin, left);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one request has. It is free again when this is dropped.
pub(crate) struct Share {
    shares: Arc<Shares>,
    origin: Origin,
    held: Held,
}

impl Share {
    /// The images are larger than thought: takes as much more as it needs.
    pub(crate) fn grow(&mut self, bytes: u64) -> Result<(), NoRoom> {
        let more = Held { places: 0, bytes: bytes.saturating_sub(self.held.bytes) };
        self.shares.add(self.origin, more)?;
        self.held = self.held.plus(more);
        Ok(())
    }

    /// The answer is there: only that is still held.
    pub(crate) fn shrink(&mut self, bytes: u64) {
        let left = Held { places: 0, bytes: bytes.min(self.held.bytes) };
        if let Some(less) = self.held.minus(left) {
            self.shares.give_back(self.origin, less);
            self.held = left;
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shares.give_back(self.origin, self.held);
    }
}

#[cfg(test)]
mod tests {
    use std::iter::from_fn;
    use std::net::IpAddr;

    use super::*;

    fn from(last: u8) -> Origin {
        Origin::from(IpAddr::from([192, 0, 2, last]))
    }

    /// As many requests as fit, of so many bytes each.
    fn all(shares: &Arc<Shares>, last: u8, bytes: u64) -> Vec<Share> {
        from_fn(|| shares.take(from(last), bytes).ok()).collect()
    }

    #[test]
    fn an_address_leaves_something_to_the_next() {
        let shares = Shares::new(32, Addresses::Share);
        let mut held = Vec::new();
        for (last, count) in [(1, 16), (2, 8), (3, 4), (4, 2), (5, 1), (6, 1)] {
            held.push(all(&shares, last, 1));
            assert_eq!(held.last().unwrap().len(), count);
        }
        assert_eq!(shares.take(from(7), 1).err(), Some(NoRoom::Places));
        held.clear();
        assert_eq!(shares.take(from(1), MEMORY + 1).err(), Some(NoRoom::Memory));
        let half = all(&shares, 1, MEMORY / 8);
        assert_eq!(half.len(), 4);
        assert_eq!(shares.take(from(1), 1).err(), Some(NoRoom::Address));
        assert_eq!(all(&shares, 2, MEMORY / 8).len(), 2);
        drop(half);
        let state = shares.state();
        assert_eq!((state.free.places, state.free.bytes, state.by.len()), (32, MEMORY, 0));
    }

    #[test]
    fn one_place_is_somebodys_and_on_one_machine_all_are() {
        let shares = Shares::new(1, Addresses::Share);
        assert_eq!(all(&shares, 1, MEMORY).len(), 1);
        let shares = Shares::new(32, Addresses::DontMatter);
        assert_eq!(all(&shares, 1, 1).len(), 32);
        assert_eq!(all(&shares, 1, MEMORY / 8).len(), 8);
    }

    #[test]
    fn what_was_made_holds_memory_and_no_place() {
        let shares = Shares::new(2, Addresses::Share);
        let mut made = Vec::new();
        while let Ok(mut share) = shares.take(from(1), MEMORY / 8) {
            share.shrink(MEMORY / 16);
            made.push(share);
        }
        // It has 7/16, and 2/16 more would leave less.
        assert_eq!(made.len(), 7);
        assert!(shares.take(from(2), MEMORY / 8).is_ok());
        let share = &mut made[0];
        assert_eq!(share.grow(MEMORY).err(), Some(NoRoom::Memory));
        assert_eq!(share.grow(MEMORY / 4).err(), Some(NoRoom::Address));
        share.grow(MEMORY / 8).unwrap();
        // More than it has isn't there.
        share.shrink(MEMORY);
        assert_eq!(share.held.bytes, MEMORY / 8);
        made.clear();
        assert_eq!(shares.state().free.bytes, MEMORY);
    }
}
