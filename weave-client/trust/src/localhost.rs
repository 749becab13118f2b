//! The two addresses that `localhost` may stand for.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::io::Errno;
use rustix::net::sockopt::ipv6_v6only;
use rustix::net::{AddressFamily, SocketType, socket};

/// The address of `localhost` that a listener at this one leaves to others, and where whoever listens could pass for it.
/// `None`: it leaves none, or isn't found by that name.
#[must_use]
pub fn other_localhost(address: SocketAddr) -> Option<SocketAddr> {
    // As this system has it for new sockets.
    let ipv6_alone = || {
        socket(AddressFamily::INET6, SocketType::STREAM, None)
            .is_ok_and(|new| ipv6_v6only(new).unwrap_or(false))
    };
    Some(SocketAddr::new(left_by(address.ip(), ipv6_alone)?, address.port()))
}

fn left_by(address: IpAddr, ipv6_alone: impl FnOnce() -> bool) -> Option<IpAddr> {
    match address.to_canonical() {
        IpAddr::V4(Ipv4Addr::LOCALHOST | Ipv4Addr::UNSPECIFIED) => Some(Ipv6Addr::LOCALHOST.into()),
        IpAddr::V6(Ipv6Addr::LOCALHOST) => Some(Ipv4Addr::LOCALHOST.into()),
        // It has those of IPv4 as well, unless it is told otherwise.
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) if ipv6_alone() => Some(Ipv4Addr::LOCALHOST.into()),
        _ => None,
    }
}

/// Whether binding has failed because this system has no such address: then nobody can listen there.
#[must_use]
pub fn has_no_such_address(error: &io::Error) -> bool {
    [Errno::ADDRNOTAVAIL, Errno::AFNOSUPPORT, Errno::PROTONOSUPPORT]
        .map(|errno| Some(errno.raw_os_error()))
        .contains(&error.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_localhost_may_stand_for_is_not_left_to_others() {
        let left = |address: &str, ipv6_alone: bool| {
            left_by(address.parse().unwrap(), || ipv6_alone).map(|ip| ip.to_string())
        };
        for ipv6_alone in [false, true] {
            for (address, other) in [("127.0.0.1", "::1"), ("0.0.0.0", "::1"), ("::1", "127.0.0.1")] {
                assert_eq!(left(address, ipv6_alone).as_deref(), Some(other), "{address}");
            }
            for address in ["127.0.0.2", "10.0.0.1", "2001:db8::1", "::ffff:10.0.0.1"] {
                assert_eq!(left(address, ipv6_alone), None, "{address}");
            }
        }
        assert_eq!(left("::", false), None);
        assert_eq!(left("::", true).as_deref(), Some("127.0.0.1"));
    }
}
