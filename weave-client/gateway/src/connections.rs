//! Who is connected, and who has to go when there are too many.
//!
//! | who | places | becomes it | loses its connection |
//! | --- | --- | --- | --- |
//! | a stranger | [`PLACES`] | by connecting | after [`STRANGER_TIME`], or to a newcomer |
//! | a client | as many | by a request that may be answered: with the token, if there is one | to a newcomer |
//!
//! A newcomer always gets in. If its places are full, the address with the most connections loses the one that has
//! waited the longest for a request. So nobody loses a connection to an address that has more of them, and what is
//! being answered is never cut off for somebody else.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

/// Connections at once that have sent no request that may be answered, and as many that have; fewer where the system
/// allows fewer open files.
pub(crate) const PLACES: usize = 256;
/// Longest time for the first head of a connection.
pub(crate) const STRANGER_TIME: Duration = Duration::from_secs(5);

/// Where somebody connects from: an IPv4 address, or as much of an IPv6 address as one customer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Origin(IpAddr);

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V6(address) if address != Ipv6Addr::UNSPECIFIED => write!(f, "{address}/64"),
            // ::1, whose first half is nothing.
            IpAddr::V6(_) => f.write_str("::1"),
            IpAddr::V4(address) => address.fmt(f),
        }
    }
}

impl From<IpAddr> for Origin {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
            }
            address @ IpAddr::V4(_) => address,
        })
    }
}

/// All connections.
pub(crate) struct Connections {
    /// Of strangers, and of clients.
    places: usize,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// Counts what has happened: a time without a clock.
    now: u64,
    entries: HashMap<u64, Entry>,
}

struct Entry {
    origin: Origin,
    standing: Standing,
    /// How many of its requests are being answered.
    answering: usize,
    waits_since: u64,
    close: Arc<Notify>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Stranger,
    Client,
}

/// All clients' places are taken, and all of them are being answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Connections {
    pub(crate) fn new(places: usize) -> Arc<Self> {
        Arc::new(Self { places, table: Mutex::default() })
    }

    /// Gives somebody new a place.
    pub(crate) fn enter(self: &Arc<Self>, origin: Origin) -> Arc<Connection> {
        let mut table = self.table();
        if table.count(Standing::Stranger) >= self.places {
            // There is one: no stranger is being answered.
            table.close_one(Standing::Stranger);
        }
        let (id, close) = (table.tick(), Arc::new(Notify::new()));
        let entry = Entry {
            origin,
            standing: Standing::Stranger,
            answering: 0,
            waits_since: id,
            close: Arc::clone(&close),
        };
        table.entries.insert(id, entry);
        Arc::new(Connection { id, origin, close, all: Arc::clone(self) })
    }

    /// Closes a connection that waits, if there is one: the system has no room for another.
    pub(crate) fn make_room(&self) {
        let mut table = self.table();
        let _ = table.close_one(Standing::Stranger) || table.close_one(Standing::Client);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    fn count(&self, standing: Standing) -> usize {
        self.entries.values().filter(|entry| entry.standing == standing).count()
    }

    /// Closes the one that has waited the longest of the address that has the most. False: none waits.
    fn close_one(&mut self, standing: Standing) -> bool {
        let mut counts: HashMap<Origin, usize> = HashMap::new();
        for entry in self.entries.values().filter(|entry| entry.standing == standing) {
            *counts.entry(entry.origin).or_default() += 1;
        }
        let waiting =
            self.entries.iter().filter(|(_, entry)| entry.standing == standing && entry.answering == 0);
        let victim = waiting
            .max_by_key(|(_, entry)| (counts.get(&entry.origin), std::cmp::Reverse(entry.waits_since)))
            .map(|(id, _)| *id);
        let Some(entry) = victim.and_then(|id| self.entries.remove(&id)) else { return false };
        entry.close.notify_one();
        true
    }
}

/// One connection's place. It is free when this is dropped.
pub(crate) struct Connection {
    id: u64,
    origin: Origin,
    close: Arc<Notify>,
    all: Arc<Connections>,
}

impl Connection {
    pub(crate) const fn origin(&self) -> Origin {
        self.origin
    }

    /// It has sent a request that may be answered.
    pub(crate) fn admit(&self) -> Result<(), Full> {
        let mut table = self.all.table();
        match table.entries.get(&self.id).map(|entry| entry.standing) {
            Some(Standing::Client) => return Ok(()),
            Some(Standing::Stranger) => {}
            None => return Err(Full),
        }
        if table.count(Standing::Client) >= self.all.places && !table.close_one(Standing::Client) {
            return Err(Full);
        }
        let now = table.tick();
        if let Some(entry) = table.entries.get_mut(&self.id) {
            entry.standing = Standing::Client;
            entry.waits_since = now;
        }
        Ok(())
    }

    /// Until what this gives is dropped, a request is being answered.
    pub(crate) fn answering(self: &Arc<Self>) -> Answering {
        if let Some(entry) = self.all.table().entries.get_mut(&self.id) {
            entry.answering += 1;
        }
        Answering(Arc::clone(self))
    }

    /// Ends when it has to be closed: its place was given to somebody else, or it has shown nothing in time.
    pub(crate) async fn must_close(&self) {
        let is_client =
            || self.all.table().entries.get(&self.id).is_some_and(|entry| entry.standing == Standing::Client);
        tokio::select! {
            () = self.close.notified() => return,
            () = tokio::time::sleep(STRANGER_TIME) => {}
        }
        if is_client() {
            self.close.notified().await;
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.all.table().entries.remove(&self.id);
    }
}

/// See [`Connection::answering`].
pub(crate) struct Answering(Arc<Connection>);

impl Drop for Answering {
    fn drop(&mut self) {
        let mut table = self.0.all.table();
        let now = table.tick();
        if let Some(entry) = table.entries.get_mut(&self.0.id) {
            entry.answering -= 1;
            entry.waits_since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(text: &str) -> Origin {
        Origin::from(text.parse::<IpAddr>().unwrap())
    }

    fn is_open(connection: &Connection) -> bool {
        connection.all.table().entries.contains_key(&connection.id)
    }

    #[test]
    fn an_address_is_a_customers() {
        assert_eq!(from("2001:db8:1:2:3::4"), from("2001:db8:1:2:ffff::"));
        assert_ne!(from("2001:db8:1:2::"), from("2001:db8:1:3::"));
        assert_eq!(from("::ffff:192.0.2.1"), from("192.0.2.1"));
        assert_ne!(from("192.0.2.1"), from("192.0.2.2"));
        let shown =
            ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8:1:2:3::4", "::1"].map(|text| from(text).to_string());
        assert_eq!(shown, ["192.0.2.1", "192.0.2.1", "2001:db8:1:2::/64", "::1"]);
    }

    #[test]
    fn strangers_of_one_address_cost_nobody_else_a_place() {
        let all = Connections::new(PLACES);
        let client = all.enter(from("192.0.2.1"));
        client.admit().unwrap();
        let other = all.enter(from("192.0.2.9"));
        let crowd: Vec<_> = (0..10 * PLACES).map(|_| all.enter(from("192.0.2.1"))).collect();
        assert_eq!(all.table().count(Standing::Stranger), PLACES);
        assert!(is_open(&client) && is_open(&other) && is_open(crowd.last().unwrap()));
        // The youngest stay.
        assert!(crowd.iter().rev().take(PLACES - 1).all(|connection| is_open(connection)));
        assert_eq!(crowd.iter().filter(|connection| is_open(connection)).count(), PLACES - 1);
        let newcomer = all.enter(from("192.0.2.2"));
        newcomer.admit().unwrap();
        drop(crowd);
        assert_eq!(all.table().entries.len(), 3);
    }

    #[test]
    fn a_client_goes_only_while_it_waits() {
        let all = Connections::new(PLACES);
        let clients: Vec<_> = (0..PLACES).map(|_| all.enter(from("::1"))).collect();
        let mut answers = Vec::new();
        for client in &clients {
            client.admit().unwrap();
            answers.push(client.answering());
        }
        let newcomer = all.enter(from("::1"));
        assert_eq!(newcomer.admit(), Err(Full), "all are being answered");
        // Who has waited the longest is not who came first.
        drop(answers.remove(7));
        drop(answers.remove(0));
        newcomer.admit().unwrap();
        assert!(!is_open(&clients[7]) && is_open(&clients[0]));
        assert_eq!(clients[7].admit(), Err(Full));
        // Its answers end after it: nothing else is touched.
        drop((answers, clients));
        assert_eq!(all.table().entries.len(), 1);
    }

    #[test]
    fn where_the_system_has_no_room_strangers_go_first() {
        let all = Connections::new(PLACES);
        let (client, stranger) = (all.enter(from("192.0.2.1")), all.enter(from("192.0.2.2")));
        client.admit().unwrap();
        all.make_room();
        assert!(is_open(&client) && !is_open(&stranger));
        let answer = client.answering();
        all.make_room();
        assert!(is_open(&client));
        drop(answer);
        all.make_room();
        assert!(!is_open(&client));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stranger_has_little_time() {
        let all = Connections::new(PLACES);
        let (client, stranger) = (all.enter(from("192.0.2.1")), all.enter(from("192.0.2.1")));
        client.admit().unwrap();
        let began = tokio::time::Instant::now();
        stranger.must_close().await;
        assert!(began.elapsed() >= STRANGER_TIME);
        assert!(tokio::time::timeout(10 * STRANGER_TIME, client.must_close()).await.is_err());
        all.make_room();
        drop(stranger);
        all.make_room();
        client.must_close().await;
    }
}
