#!/usr/bin/env python3
"""A Weave server that answers every request with a checkerboard of the size asked for.

ADDRESS is the path of a Unix socket (in a folder that is there) or host:port. SIGTERM or SIGINT ends it: what was begun
is finished, what was received is answered with SHUTTING_DOWN. A second one doesn't wait. Exit codes: 0 ended by a
signal, 1 can't listen, 2 wrong usage.
"""
from __future__ import annotations

import argparse
import contextlib
import functools
import math
import os
import resource
import selectors
import signal
import socket
import stat
import struct
import sys
import time
from collections.abc import Iterator

from weave_client import codec
from weave_client.address import Address, parse_address

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE

MAX_CONNECTIONS = 4096  # W1-SEC-002
OTHER_FILES = 64        # descriptors that aren't connections
BACKLOG = 1024
RECEIVE_SIZE = 16_384   # bytes; all that one connection can have unanswered in here

STUCK_S = 60.0          # a client that takes nothing for so long is closed (W1-CON-011)
LINGER_S = 1.0          # how long to wait for the peer's end after ours
GRACE_S = 10.0          # how long answers may take that were begun before the end
TICK_S = 1.0            # how often deadlines are looked at

# What a connection waits for, and for how many seconds at most.
Wait = tuple[int, float]


def serve(sock: socket.socket, server: Server) -> Iterator[Wait]:
    """One connection from its first byte to its last.

    It gives way to the others before every call that moves bytes, so none of them can be starved (W1-CON-012). While
    an answer can't be written, nothing is read.
    """
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # answers are written whole, nothing is to wait for
    reader = codec.ServerReader()
    while not reader.closed:
        yield READ, math.inf
        try:
            data = sock.recv(RECEIVE_SIZE)
        except BlockingIOError:
            continue
        if not data:  # the client has all its answers (W1-CON-010); what it left unfinished is dropped (W1-FRM-009)
            return
        for outcome in reader.feed(data):
            yield from send(sock, server.answer(outcome))  # whole, before the next one begins (W1-CON-006)

    # Closing with bytes unread would reset the connection and could take our answer from the client.
    sock.shutdown(socket.SHUT_WR)
    end = time.monotonic() + LINGER_S
    while time.monotonic() < end:
        yield READ, LINGER_S
        with contextlib.suppress(BlockingIOError):
            if not sock.recv(RECEIVE_SIZE):
                return


def send(sock: socket.socket, pieces: list[memoryview]) -> Iterator[Wait]:
    while pieces:
        yield WRITE, STUCK_S
        try:
            sent = sock.sendmsg(pieces)
        except BlockingIOError:
            continue
        while pieces and sent >= len(pieces[0]):
            sent -= len(pieces.pop(0))
        if pieces:
            pieces[0] = pieces[0][sent:]


class Connection:
    def __init__(self, sock: socket.socket, server: Server) -> None:
        self.sock = sock
        self.turns = serve(sock, server)
        self.events = 0           # what the selector waits for
        self.deadline = math.inf  # when to give up waiting


class Server:
    """All connections on one thread: each has its turn when what it waits for has come."""

    def __init__(self, address: Address, max_connections: int) -> None:
        self.address = address
        self.max_connections = max_connections
        self.listener = listen(address)
        self.name = name_of(self.listener)
        self.inode = os.stat(address).st_ino if isinstance(address, str) else 0
        self.selector = selectors.DefaultSelector()
        self.connections: set[Connection] = set()
        self.accepting = True
        self.next_tick = 0.0
        self.ending = False
        self.deadline = math.inf
        self.selector.register(self.listener, READ, self.accept)

    def run(self) -> None:
        """Serves until SIGTERM or SIGINT."""
        woken, wake = socket.socketpair()
        with woken, wake, self.selector:
            wake.setblocking(False)
            signal.set_wakeup_fd(wake.fileno())
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: None)
            self.selector.register(woken, READ, functools.partial(self.end, woken))
            print(f"listening on {self.name}", file=sys.stderr, flush=True)
            while not self.ending or (self.connections and time.monotonic() < self.deadline):
                for key, _ in self.selector.select(TICK_S):
                    key.data()
                self.tick()
            for connection in list(self.connections):
                self.close(connection)
            signal.set_wakeup_fd(-1)

    def answer(self, outcome: codec.Request | codec.Refusal) -> list[memoryview]:
        """The frame for one outcome: a response, or the right error. Every request has one (W1-CON-002, W1-VAL-003)."""
        if isinstance(outcome, codec.Refusal):
            return [memoryview(codec.build_error(outcome.request_id, outcome.error_code, outcome.error_msg))]
        if self.ending:  # W1-CON-009
            error = codec.build_error(outcome.request_id, codec.ErrorCode.SHUTTING_DOWN, "the server is ending")
            return [memoryview(error)]
        # The picture depends on neither prompt nor seed. An engine would draw a seed for 0 here (W1-REQ-009), and
        # use the prompt for CLIP-L if it takes only one (W1-REQ-008).
        begun = time.monotonic()
        stripes = checkerboard(outcome.width, outcome.height)
        time_ms = int((time.monotonic() - begun) * 1000)
        head = codec.build_response_head(outcome.request_id, time_ms, outcome.width, outcome.height)
        return [memoryview(head), *stripes]

    def accept(self) -> None:
        if self.ending:  # the end came first among the events of this turn
            return
        for _ in range(BACKLOG):
            try:
                sock, _ = self.listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as fault:  # the system has no descriptor or no memory left: try again at the next tick
                print(f"can't accept: {fault}", file=sys.stderr)
                self.selector.unregister(self.listener)
                self.accepting = False
                return
            sock.setblocking(False)
            if not may_connect(sock):  # W1-TRN-003
                sock.close()  # W1-TRN-004
            elif len(self.connections) >= self.max_connections:
                refuse(sock)
            else:
                connection = Connection(sock, self)
                self.connections.add(connection)
                self.advance(connection)

    def advance(self, connection: Connection) -> None:
        """Gives a connection its turn, and closes it when it is done or broken."""
        try:
            events, patience = next(connection.turns)
        except (StopIteration, OSError):
            self.close(connection)
            return
        connection.deadline = time.monotonic() + patience
        if events != connection.events:
            turn = functools.partial(self.advance, connection)
            change = self.selector.modify if connection.events else self.selector.register
            change(connection.sock, events, turn)
            connection.events = events

    def close(self, connection: Connection) -> None:
        if connection.events:
            self.selector.unregister(connection.sock)
        connection.sock.close()
        self.connections.remove(connection)

    def tick(self) -> None:
        now = time.monotonic()
        if now < self.next_tick:
            return
        self.next_tick = now + TICK_S
        for connection in [each for each in self.connections if each.deadline < now]:
            self.close(connection)
        if not self.accepting and not self.ending:
            self.selector.register(self.listener, READ, self.accept)
            self.accepting = True

    def end(self, woken: socket.socket) -> None:
        """Accepts nobody any more, and has the connections end after what they have received (W1-CON-009)."""
        woken.recv(RECEIVE_SIZE)
        now = time.monotonic()
        if self.ending:
            self.deadline = now
            return
        if self.accepting:
            self.accept()  # those who wait already get an answer, too
        if self.accepting:
            self.selector.unregister(self.listener)
        self.listener.close()
        if isinstance(self.address, str):
            with contextlib.suppress(FileNotFoundError):
                if os.stat(self.address).st_ino == self.inode:  # else it is somebody else's by now
                    os.unlink(self.address)
        self.ending = True
        self.deadline = now + GRACE_S
        for connection in self.connections:
            with contextlib.suppress(OSError):  # the peer may be gone
                connection.sock.shutdown(socket.SHUT_RD)  # what has arrived can still be read, then the stream ends


@functools.cache
def stripe(width: int) -> memoryview:
    """Sixteen rows of the checkerboard in RGB: squares of 8x8 pixels, black and white in turn, black first."""
    black, white = bytes(8 * 3), b"\xFF" * (8 * 3)
    rows = (black + white) * (width // 16) * 8 + (white + black) * (width // 16) * 8
    return memoryview(rows)


def checkerboard(width: int, height: int) -> list[memoryview]:
    """The picture, without a copy: the same stripe again and again. Sides are multiples of 64."""
    return [stripe(width)] * (height // 16)


def may_connect(sock: socket.socket) -> bool:
    """On a Unix socket, only processes of the same user may connect; the kernel says whose the peer is."""
    if sock.family != socket.AF_UNIX:
        return True
    credentials = struct.Struct("iII")  # pid, uid, gid
    uid: int = credentials.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size))[1]
    return uid == os.geteuid()


def refuse(sock: socket.socket) -> None:
    """There is no place for this connection: BUSY, and close (W1-CON-008)."""
    with sock, contextlib.suppress(OSError):
        sock.send(codec.build_error(0, codec.ErrorCode.BUSY, "the table of connections is full"))
        sock.shutdown(socket.SHUT_WR)
        sock.recv(RECEIVE_SIZE)  # as in serve(): what has come must not be left unread


def listen(address: Address) -> socket.socket:
    if isinstance(address, tuple):
        family, *_, resolved = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(resolved[:2], family=family, backlog=BACKLOG)
    else:
        if not hasattr(socket, "SO_PEERCRED"):
            raise OSError("peer credentials can't be read on this system: use host:port")
        clear_away(address)
        listener = socket.socket(socket.AF_UNIX)
        mask = os.umask(0o177)  # mode 0600 from the first moment (W1-TRN-002)
        try:
            listener.bind(address)
        finally:
            os.umask(mask)
        listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def clear_away(path: str) -> None:
    """Removes a socket on which nobody listens any more."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError("there is a file that is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # the backlog of a live server may be full
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass
    raise OSError("somebody listens there already")


def name_of(listener: socket.socket) -> str:
    """The address in full: for port 0, the port that the system chose."""
    if listener.family == socket.AF_UNIX:
        return str(listener.getsockname())
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def places(wanted: int) -> int:
    """How many connections the limit on open files leaves room for, after raising it as far as allowed."""
    needed = wanted + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft in range(needed):  # the value for "no limit" isn't
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(1, soft - OTHER_FILES)
    return wanted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", metavar="ADDRESS")
    parser.add_argument("--connections", type=int, default=MAX_CONNECTIONS, metavar="N",
                        help="how many at once, 1 to 100000 (%(default)s); the rest get BUSY")
    args = parser.parse_args()
    if args.connections not in range(1, 100_001):
        parser.error(f"--connections is {args.connections}, must be 1 to 100000")
    try:
        address = parse_address(args.address)
    except ValueError as fault:
        parser.error(str(fault))
    try:
        server = Server(address, places(args.connections))
    except OSError as fault:
        parser.exit(1, f"can't listen on {args.address}: {fault.strerror or fault}\n")
    server.run()


if __name__ == "__main__":
    main()
