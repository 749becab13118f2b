"""Requests and answers on a socket, under a deadline."""
from __future__ import annotations

import hmac
import math
import os
import re
import selectors
import socket
import struct
import time
from collections.abc import Iterator
from typing import Union

from weave_client import codec
from weave_client.address import Address, show_address

RECEIVE_SIZE = 262_144  # bytes
AUTH = b"weave-auth 1 "  # what both sides begin with
ANSWER_SIZE = len(AUTH) + 64 + 1 + 64 + 1  # the server's line: its nonce, a space, its proof, a line feed


class Unreachable(ConnectionError):
    """Nobody answers at the address, or not this user; nothing was sent. `__cause__` is what the system says."""

    def __init__(self, address: Address, why: OSError) -> None:
        what = f"no server answers at {show_address(address)} ({why.strerror or why})"
        if isinstance(why, PermissionError):
            todo = "only some users may connect there: weaved lets further ones in with --allow-uids or --allow-gids"
        else:
            todo = "start weaved, or name the address of one that runs"
        super().__init__(f"{what}; {todo}")
        self.address = address


class HungUp(ConnectionError):
    """The server closed between two answers, where more were due."""


def connect(address: Address, timeout: float) -> socket.socket:
    """`timeout` is in seconds; math.inf is none. Raises Unreachable or TimeoutError."""
    try:
        return _connect(address, max(timeout, 0.001))
    except (BlockingIOError, socket.timeout):  # the former where a Unix socket's backlog is full
        raise TimeoutError("the time is up: no connection") from None
    except OSError as fault:
        raise Unreachable(address, fault) from fault


def _connect(address: Address, timeout: float) -> socket.socket:
    if isinstance(address, tuple):
        return socket.create_connection(address, None if timeout == math.inf else timeout)
    sock = socket.socket(socket.AF_UNIX)
    try:
        if timeout != math.inf:
            # A connect with settimeout() would fail at once where the server's backlog is full; this one waits.
            whole, part = divmod(timeout, 1)
            limit = struct.pack("@ll", int(whole), int(part * 1_000_000))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def exchange(sock: socket.socket, unsent: memoryview, deadline: float) -> Iterator[bytes]:
    """Sends `unsent` and yields what comes, at the same time, until the server closes.

    A server may read no further before its answers are taken: who only writes at first could wait for ever.
    """
    sock.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while True:
            left = max(0.0, deadline - time.monotonic())
            ready = selector.select(None if left == math.inf else left)
            if not ready or time.monotonic() >= deadline:
                raise TimeoutError("the time is up")
            events = ready[0][1]
            if events & selectors.EVENT_WRITE:
                try:
                    unsent = unsent[sock.send(unsent):]
                except BlockingIOError:
                    pass
                except (BrokenPipeError, ConnectionResetError):
                    unsent = unsent[:0]  # the server may have said why before it closed (W1-CON-008)
                if not unsent:
                    selector.modify(sock, selectors.EVENT_READ)
            if events & selectors.EVENT_READ:
                try:
                    data = sock.recv(RECEIVE_SIZE)
                except BlockingIOError:
                    continue
                except ConnectionResetError:  # the server closed with some of ours unread
                    return
                if not data:
                    return
                yield data


class Prover:
    """Has the server prove that it knows the token, which is never sent, and makes what proves that we do.

    That goes before the first frame (weave-daemon/TCP.md, weave-auth 1). What it raises means: close the socket.
    """

    def __init__(self, token: bytes) -> None:
        self._token = token
        self._nonce = os.urandom(32)
        self._line, self._read, self._reader = b"", 0, codec.ClientReader()
        self.first = AUTH + self._nonce.hex().encode() + b"\n"  # what is sent first

    def feed(self, data: bytes) -> bool:
        """Takes what the server says; whether that is all of it. Raises Broken or ConnectionError."""
        self._line += data
        line = self._line
        if line.startswith(codec.MAGIC):
            for answer in self._reader.feed(line[self._read:]):
                text = codec.printable(answer.error_msg) if isinstance(answer, codec.Error) else "an image"
                raise ConnectionError(f"the server doesn't answer {AUTH.decode()}as weaved does: {text}")
            self._read = len(line)
            return False
        return len(line) >= ANSWER_SIZE or not (AUTH.startswith(line[:len(AUTH)]) or codec.MAGIC.startswith(line))

    def proof(self) -> bytes:
        """What is sent before the first frame, if the server has proved that it knows the token. Raises ConnectionError."""
        found = re.fullmatch(AUTH + b"([0-9a-f]{64}) ([0-9a-f]{64})\n", self._line)
        if not found:
            what = f"doesn't answer {AUTH.decode()}as weaved does" if self._line else f"hung up on {AUTH.decode().strip()}"
            raise ConnectionError(f"the server {what}")
        nonces = self._nonce + bytes.fromhex(found[1].decode())
        if not hmac.compare_digest(bytes.fromhex(found[2].decode()), proof(self._token, b"server", nonces)):
            raise ConnectionError("the server doesn't know the token")
        return proof(self._token, b"client", nonces).hex().encode() + b"\n"


def prove(sock: socket.socket, token: bytes, deadline: float) -> bytes:
    """Has the server prove that it knows the token, and returns what proves that we do. Raises Broken or OSError."""
    prover = Prover(token)
    for data in exchange(sock, memoryview(prover.first), deadline):
        if prover.feed(data):
            break
    return prover.proof()


def proof(token: bytes, side: bytes, nonces: bytes) -> bytes:
    """`side` says whose it is, so that the one can't be passed off as the other."""
    return hmac.digest(token, AUTH + side + nonces, "sha256")


def ask(
    sock: socket.socket, requests: dict[int, bytes], deadline: float = math.inf, first: bytes = b""
) -> Iterator[Union[codec.Response, codec.Error]]:
    """Sends the requests, frames by request_id (never 0), at once (W1-CON-001), and yields the answers as they come.

    Raises Broken or OSError; the caller must close the socket then. `deadline` is a time.monotonic(), `first` what is
    to be sent before the frames.
    """
    waiting = set(requests)
    reader = codec.ClientReader()
    for data in exchange(sock, memoryview(first + b"".join(requests.values())), deadline):
        for answer in reader.feed(data):
            if isinstance(answer, codec.Error) and answer.request_id == 0:
                waiting.clear()  # it is for the connection as a whole (W1-ERR-001, W1-CON-008)
            elif answer.request_id in waiting:
                waiting.remove(answer.request_id)  # in any order (W1-CON-003)
            else:
                raise codec.Broken("W1-CON-002", f"no answer to request_id {answer.request_id} is due")
            yield answer
            if not waiting:
                return
    raise closed_early(reader, len(waiting))


def closed_early(reader: codec.ClientReader, waiting: int) -> ConnectionError:
    if reader.inside_a_frame:
        return ConnectionError("the server closed the connection inside a frame")
    return HungUp(f"the server closed the connection {waiting} answers early")
