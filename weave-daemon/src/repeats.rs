//! Lines of the log that others can cause as often as they like: the first of a kind and of somebody is logged, what
//! follows is counted, and told once a minute. After a quiet minute the next one is the first again.
//!
//! It has no clock and allocates nothing. When its table is full, all further ones share one entry: the log grows by
//! so many lines a minute at most, whoever comes.

use std::time::{Duration, Instant};

use log::Level;

use crate::user::User;

/// Whom and what is told apart.
const PLACES: usize = 64;
/// How long what repeats itself is only counted.
const MINUTE: Duration = Duration::from_secs(60);

/// What a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// Somebody may not connect, for this reason, if it is one of several.
    Refused(&'static str),
    /// There is no room for one more connection.
    NoRoom,
    /// The system can't watch a connection.
    Unwatched,
    /// Somebody may not connect to the administrative socket.
    AdminRefused,
    /// The administrative socket can't accept a connection.
    AdminUnaccepted,
    /// Bytes after which a stream can't be followed.
    Malformed,
    /// Half a frame, and no more.
    FrameTimeout,
    /// An answer that is not read.
    StallTimeout,
    /// A connection without requests.
    IdleTimeout,
    /// A request that was refused, for this reason.
    Request(&'static str),
    /// A connection that made room for another user.
    Displaced,
    /// A request to the administrative socket that got no page, for this reason.
    AdminRequest(&'static str),
    /// Anything of these, when there are too many to be told apart.
    Anything,
}

impl About {
    const fn level(self) -> Level {
        match self {
            Self::Malformed
            | Self::IdleTimeout
            | Self::Request(_)
            | Self::Displaced
            | Self::AdminRequest(_) => Level::Info,
            _ => Level::Warn,
        }
    }

    /// As the lines themselves begin, or go on behind a name.
    const fn words(self) -> &'static str {
        match self {
            Self::Refused(_) => "refused a connection",
            Self::NoRoom => "refused a connection, all are taken",
            Self::Unwatched => "can't watch a connection",
            Self::AdminRefused => "admin: refused a connection",
            Self::AdminUnaccepted => "admin: can't accept a connection",
            Self::Malformed => "can't be followed any further",
            Self::FrameTimeout => "frame timeout",
            Self::StallTimeout => "stall timeout",
            Self::IdleTimeout => "idle timeout",
            Self::Request(_) => "refused a request",
            Self::Displaced => "made room for another user",
            Self::AdminRequest(_) => "admin: refused a request",
            Self::Anything => "refusals and timeouts of more kinds and users than are told apart",
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    about: About,
    /// Who has caused it, if that is known.
    by: Option<User>,
    until: Instant,
    /// Those that were not logged.
    more: u64,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Repeats {
    /// One for each kind and each who, and one for all for whom there was no place.
    entries: heapless::Vec<Entry, { PLACES + 1 }>,
    /// When the first of them is over.
    wake_at: Option<Instant>,
}

impl Repeats {
    /// Counts one; `by` has caused it, if that is known. Whether it is to be logged.
    #[must_use]
    pub fn is_first(&mut self, about: About, by: Option<User>, now: Instant) -> bool {
        self.tell(now);
        let (about, by) = match self.entries.iter().any(|entry| entry.is(about, by)) {
            false if self.entries.len() >= PLACES => (About::Anything, None),
            _ => (about, by),
        };
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.is(about, by)) {
            entry.more += 1;
            return false;
        }
        let until = now + MINUTE;
        let _ = self.entries.push(Entry { about, by, until, more: 0 });
        self.wake_at = Some(self.wake_at.map_or(until, |at| at.min(until)));
        true
    }

    /// When [`tell`](Self::tell) has something to do.
    #[must_use]
    pub const fn wake_at(&self) -> Option<Instant> {
        self.wake_at
    }

    /// Logs what was counted for a minute.
    pub fn tell(&mut self, now: Instant) {
        if self.wake_at.is_none_or(|at| at > now) {
            return;
        }
        self.entries.retain_mut(|entry| {
            if entry.until > now {
                return true;
            }
            let goes_on = entry.more > 0;
            entry.tell();
            (entry.until, entry.more) = (now + MINUTE, 0);
            goes_on
        });
        self.wake_at = self.entries.iter().map(|entry| entry.until).min();
    }

    /// Logs all that was counted: this is the end.
    pub fn tell_all(&mut self) {
        self.entries.iter().for_each(Entry::tell);
        self.entries.clear();
        self.wake_at = None;
    }
}

impl Entry {
    fn is(&self, about: About, by: Option<User>) -> bool {
        (self.about, self.by) == (about, by)
    }

    fn tell(&self) {
        let Self { about, by, more, .. } = self;
        if *more > 0 {
            let why = match about {
                About::Refused(why) | About::Request(why) | About::AdminRequest(why) => why,
                _ => "",
            };
            let (words, comma) = (about.words(), if why.is_empty() { "" } else { ", " });
            match by {
                Some(by) => {
                    log::log!(about.level(), "{words}{comma}{why}: {more} more of {by} in the last minute")
                }
                None => log::log!(about.level(), "{words}{comma}{why}: {more} more in the last minute"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn the_first_is_told_and_those_of_a_minute_are_counted() {
        let start = Instant::now();
        let mut repeats = Repeats::default();
        assert_eq!(repeats.wake_at(), None);
        let (ann, ben) = (Some(User::Uid(1)), Some(User::Uid(2)));
        assert!(repeats.is_first(About::Malformed, ann, start));
        assert!(!repeats.is_first(About::Malformed, ann, at(start, 59)));
        // Of another kind, of somebody else.
        assert!(repeats.is_first(About::Refused(""), ann, at(start, 1)));
        assert!(repeats.is_first(About::Malformed, ben, at(start, 2)));
        assert_eq!(repeats.wake_at(), Some(at(start, 60)));
        // The one that was counted goes on to be counted; the others are forgotten.
        repeats.tell(at(start, 60));
        assert_eq!(repeats.wake_at(), Some(at(start, 61)));
        assert!(!repeats.is_first(About::Malformed, ann, at(start, 70)));
        assert!(repeats.is_first(About::Refused(""), ann, at(start, 70)));
        // After a quiet minute.
        repeats.tell(at(start, 120));
        repeats.tell(at(start, 180));
        assert!(repeats.is_first(About::Malformed, ann, at(start, 180)));
        repeats.tell(at(start, 1000));
        assert_eq!(repeats.wake_at(), None);
    }

    #[test]
    fn a_minute_that_nobody_looked_at_is_over_all_the_same() {
        let start = Instant::now();
        let mut repeats = Repeats::default();
        assert!(repeats.is_first(About::NoRoom, None, start));
        assert!(repeats.is_first(About::NoRoom, None, at(start, 60)));
        assert!(!repeats.is_first(About::NoRoom, None, at(start, 61)));
        assert!(!repeats.is_first(About::NoRoom, None, at(start, 500)), "it repeats itself");
    }

    #[test]
    fn the_table_is_bounded_and_what_is_beyond_it_shares_one_entry() {
        let start = Instant::now();
        let mut repeats = Repeats::default();
        let firsts = (0..10_000)
            .filter(|uid| repeats.is_first(About::Refused(""), Some(User::Uid(*uid)), start))
            .count();
        assert_eq!(firsts, PLACES + 1);
        let others = repeats.entries.last().unwrap();
        assert_eq!((others.about, others.by, others.more), (About::Anything, None, 10_000 - 65));
        // Those who have a place keep it.
        assert!(!repeats.is_first(About::Refused(""), Some(User::Uid(3)), start));
        // The others are still the others when places are free again.
        repeats.tell(at(start, 60));
        assert_eq!(repeats.entries.len(), 2);
        assert!(repeats.is_first(About::Refused(""), Some(User::Uid(77)), at(start, 60)));
        assert!(size_of::<Repeats>() < 6000, "{}", size_of::<Repeats>());
    }
}
