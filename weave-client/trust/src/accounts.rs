//! Users and groups, as far as this machine's own files know them.

use std::fmt;
use std::fs;

/// What the kernel calls users that a user namespace doesn't map.
const UNMAPPED: u32 = 65534;

/// A user in an error's text: the number, and the name if `/etc/passwd` has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who(pub u32);

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uid {}", self.0)?;
        match user_name(&lines_of("/etc/passwd"), self.0) {
            // Whatever stands there goes to a terminal.
            Some(name) if name.bytes().all(|byte| byte.is_ascii_graphic()) => write!(f, " ({name})"),
            _ => Ok(()),
        }
    }
}

/// Whether a group is as good as this user, who alone is in it.
pub(crate) fn is_private(uid: u32, gid: u32) -> bool {
    is_private_in(&lines_of("/etc/passwd"), &lines_of("/etc/group"), uid, gid)
}

/// Whether this is how a user namespace calls root of the machine, whom it doesn't map.
pub(crate) fn may_be_outer_root(uid: u32) -> bool {
    uid == UNMAPPED && !maps_all(&lines_of("/proc/self/uid_map"))
}

fn maps_all(map: &str) -> bool {
    // Where there is no such file, there are no namespaces.
    map.is_empty() || map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn lines_of(path: &str) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn user_name(passwd: &str, uid: u32) -> Option<&str> {
    users(passwd).find(|(_, this, _)| *this == uid).map(|(name, ..)| name)
}

/// Name, user and own group of each.
fn users(passwd: &str) -> impl Iterator<Item = (&str, u32, u32)> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _) = (fields.next()?, fields.next()?);
        Some((name, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    })
}

/// Name, group and members of each.
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _) = (fields.next()?, fields.next()?);
        Some((name, fields.next()?.parse().ok()?, fields.next()?))
    })
}

fn is_private_in(passwd: &str, group: &str, uid: u32, gid: u32) -> bool {
    let Some(user) = user_name(passwd, uid) else { return false };
    let mut named = groups(group).filter(|(_, this, _)| *this == gid).peekable();
    named.peek().is_some()
        && named.all(|(name, _, members)| {
            name == user && members.split(',').all(|member| member.is_empty() || member == user)
        })
        && users(passwd).all(|(_, this, own)| own != gid || this == uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_private_if_it_is_its_users_and_nobody_elses() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n\
                      bob:x:1001:1001::/home/bob:/bin/sh\ncarol:x:1002:50::/home/carol:/bin/sh\nbroken\n";
        let group = "root:x:0:\nalice:x:1000:\nbob:x:1001:alice\nstaff:x:50:\ndave:x:1003:\n";
        for (uid, gid, private) in [
            (1000, 1000, true),
            (0, 0, true),
            // Alice is in it as well.
            (1001, 1001, false),
            // Not of the user's name, however few members it has.
            (1002, 50, false),
            (1000, 1003, false),
            // Neither file knows it.
            (1000, 4242, false),
            (4242, 1000, false),
        ] {
            assert_eq!(is_private_in(passwd, group, uid, gid), private, "{uid} {gid}");
        }
        let itself = "alice:x:1000:alice\n";
        assert!(is_private_in(passwd, itself, 1000, 1000));
        // Fedora's root shares its group with accounts that are no people.
        let shared = format!("{passwd}operator:x:11:0::/root:/sbin/nologin\n");
        assert!(!is_private_in(&shared, group, 0, 0));
        assert!(!is_private_in(passwd, &format!("{group}other:x:1000:bob\n"), 1000, 1000));
        assert!(!is_private_in("", "", 0, 0));
    }

    #[test]
    fn a_user_has_a_name_if_it_has_one() {
        assert_eq!(Who(0).to_string(), "uid 0 (root)");
        assert_eq!(Who(4_000_000_042).to_string(), "uid 4000000042");
    }

    #[test]
    fn who_is_not_mapped_may_be_root_outside() {
        for (map, all) in [
            ("         0          0 4294967295\n", true),
            ("", true),
            ("         0       1000          1\n", false),
            ("0 1000 1\n1 100000 65536\n", false),
        ] {
            assert_eq!(maps_all(map), all, "{map}");
        }
        assert!(!may_be_outer_root(1000));
    }
}
