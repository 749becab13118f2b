//! Who is told apart from whom: in turns and shares, at the gate for TCP, and in lines of the log that repeat themselves.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

/// Somebody who may have several connections. They take turns together and share what one user may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum User {
    /// The owner or root, by uid: the one whose daemon this is, and the one who can do anything anyway.
    Owner(u32),
    /// Another user of this machine, by uid.
    Uid(u32),
    /// An IPv4 address.
    Ipv4(u32),
    /// A network of IPv6, by the first 64 bits of its addresses: one customer has all of it.
    Ipv6(u64),
}

impl User {
    /// Whether it is any other than the owner and root.
    #[must_use]
    pub const fn is_guest(self) -> bool {
        !matches!(self, Self::Owner(_))
    }

    /// Who comes from there: over TCP an address is all that tells users apart.
    #[must_use]
    pub fn at(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::Ipv4(address.to_bits()),
            // The same machine, by its other name.
            IpAddr::V6(address) if address.is_loopback() => Self::Ipv4(Ipv4Addr::LOCALHOST.to_bits()),
            IpAddr::V6(address) => Self::Ipv6(u64::try_from(address.to_bits() >> 64).unwrap_or(0)),
        }
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owner(uid) | Self::Uid(uid) => write!(f, "uid {uid}"),
            Self::Ipv4(address) => {
                let [a, b, c, d] = address.to_be_bytes();
                write!(f, "{a}.{b}.{c}.{d}")
            }
            Self::Ipv6(network) => {
                let group = |nth: u32| (network >> (48 - 16 * nth)) & 0xffff;
                write!(f, "{:x}:{:x}:{:x}:{:x}::/64", group(0), group(1), group(2), group(3))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_user_by_all_its_names() {
        let of = |address: &str| User::at(address.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        assert_eq!(of("::1"), of("127.0.0.1"));
        let shown = ["10.0.0.1", "2001:db8:0:1::5", "::1"].map(|address| of(address).to_string());
        assert_eq!(shown, ["10.0.0.1", "2001:db8:0:1::/64", "127.0.0.1"]);
    }
}
