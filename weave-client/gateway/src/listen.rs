//! Where the gateway listens.
//!
//! `localhost` is 127.0.0.1 to one client and ::1 to another. A gateway that had only one of them would leave the other
//! one, and with it the tokens of clients, to whichever user of this machine comes first.

use std::future::pending;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::{TcpListener, TcpStream};
use weave_cli_base::exit::{Exit, Failure};
use weave_trust::{has_no_such_address, other_localhost};

/// How many ports are tried where any will do.
const TRIES: usize = 16;

/// One address, or both of loopback.
#[derive(Debug)]
pub(crate) struct Listeners {
    first: TcpListener,
    other: Option<TcpListener>,
}

impl Listeners {
    pub(crate) async fn bind(listen: SocketAddr) -> Result<Self, Failure> {
        let mut tries = TRIES;
        loop {
            tries -= 1;
            let first = TcpListener::bind(listen)
                .await
                .and_then(|first| first.local_addr().map(|address| (first, address)))
                .map_err(|error| {
                    wrong(format_args!("can't listen at {listen}: {}", words(&error)))
                        .next("choose another with --listen ADDRESS:PORT, or --listen PORT for this machine")
                });
            let (first, address) = first?;
            let Some(beside) = other_localhost(address) else { return Ok(Self { first, other: None }) };
            match TcpListener::bind(beside).await {
                Ok(other) => return Ok(Self { first, other: Some(other) }),
                Err(error) if has_no_such_address(&error) => return Ok(Self { first, other: None }),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && listen.port() == 0 && tries > 0 => {
                }
                Err(error) => {
                    return Err(wrong(format_args!(
                        "can't listen at {beside}: {}; clients that call localhost would send their requests, and the token, to whoever listens there",
                        words(&error)
                    ))
                    .next("end what listens there, or choose another port with --listen ADDRESS:PORT"));
                }
            }
        }
    }

    /// All of them, for people.
    pub(crate) fn describe(&self) -> io::Result<String> {
        let first = format!("http://{}", self.first.local_addr()?);
        let Some(other) = &self.other else { return Ok(first) };
        Ok(format!("{first} and http://{}", other.local_addr()?))
    }

    /// Where programs of this machine reach it.
    pub(crate) fn url(&self) -> io::Result<String> {
        let mut address = self.first.local_addr()?;
        if address.ip().is_unspecified() {
            let here: IpAddr =
                if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
            address.set_ip(here);
        }
        Ok(format!("http://{address}"))
    }

    pub(crate) async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let other = async {
            match &self.other {
                Some(other) => other.accept().await,
                None => pending().await,
            }
        };
        tokio::select! {
            next = self.first.accept() => next,
            next = other => next,
        }
    }
}

/// What the system says, in words for whoever has chosen the address.
fn words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another program listens there".to_owned(),
        io::ErrorKind::PermissionDenied => "this user may not; ports below 1024 are often root's".to_owned(),
        _ if has_no_such_address(error) => "this machine has no such address".to_owned(),
        _ => error.to_string(),
    }
}

fn wrong(what: std::fmt::Arguments<'_>) -> Failure {
    Failure::new(Exit::Local, what)
}
