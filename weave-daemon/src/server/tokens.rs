//! What mio's tokens stand for.

use mio::Token;

use crate::admin;
use crate::router::{ClientId, Who, WorkerId};

pub(super) const LISTENER: Token = Token(0);
pub(super) const STOP: Token = Token(1);
pub(super) const CHILD: Token = Token(2);
pub(super) const HANG_UP: Token = Token(3);
/// The administrative listener, followed by its connections.
pub(super) const FIRST_ADMIN: usize = 4;
pub(super) const FIRST_WORKER: usize = FIRST_ADMIN + 1 + admin::CONNECTIONS;

/// Tokens that depend on the tables' sizes: workers, their logs, clients, the TCP listeners, those at their gate.
#[derive(Clone, Copy)]
pub(super) struct Tokens {
    workers: usize,
    clients: usize,
}

/// What such a token stands for.
pub(super) enum Owner {
    Who(Who),
    Log,
    Tcp,
}

impl Tokens {
    pub(super) const fn new(workers: usize, clients: usize) -> Self {
        Self { workers, clients }
    }

    pub(super) const fn worker(self, id: WorkerId) -> Token {
        Token(FIRST_WORKER + id.0)
    }

    pub(super) const fn log(self, id: WorkerId) -> Token {
        Token(FIRST_WORKER + self.workers + id.0)
    }

    pub(super) const fn client(self, id: ClientId) -> Token {
        Token(FIRST_WORKER + 2 * self.workers + id.0)
    }

    /// The first TCP listener's. Those of the others and of the gate come behind it.
    pub(super) const fn tcp(self) -> Token {
        self.client(ClientId(self.clients))
    }

    pub(super) const fn owner(self, Token(token): Token) -> Owner {
        let (log, client) = (self.log(WorkerId(0)).0, self.client(ClientId(0)).0);
        if token >= self.tcp().0 {
            Owner::Tcp
        } else if token >= client {
            Owner::Who(Who::Client(ClientId(token - client)))
        } else if token >= log {
            Owner::Log
        } else {
            Owner::Who(Who::Worker(WorkerId(token - FIRST_WORKER)))
        }
    }
}
