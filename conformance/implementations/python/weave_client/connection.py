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
from weave_client.address import Address

RECEIVE_SIZE = 262_144  # bytes
AUTH = b"weave-auth 1 "  # what both sides begin with
ANSWER_SIZE = len(AUTH) + 64 + 1 + 64 + 1  # the server's line: its nonce, a space, its proof, a line feed


def connect(address: Address, timeout: float) -> socket.socket:
    """`timeout` is in seconds; math.inf is none."""
    if isinstance(address, tuple):
        return socket.create_connection(address, None if timeout == math.inf else timeout)
    sock = socket.socket(socket.AF_UNIX)
    try:
        if timeout != math.inf:
            # A connect with settimeout() would fail at once where the server's backlog is full; this one waits.
            whole, part = divmod(max(timeout, 0.001), 1)
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
                if not data:
                    return
                yield data


def prove(sock: socket.socket, token: bytes, deadline: float) -> bytes:
    """Has the server prove that it knows the token, which is never sent, and returns what proves that we do.

    That goes before the first frame (weave-daemon/TCP.md, weave-auth 1). Raises Broken or OSError; the caller must close
    the socket then.
    """
    nonce = os.urandom(32)
    line, read, reader = b"", 0, codec.ClientReader()
    for data in exchange(sock, memoryview(AUTH + nonce.hex().encode() + b"\n"), deadline):
        line += data
        if line.startswith(codec.MAGIC):
            for answer in reader.feed(line[read:]):
                text = codec.printable(answer.error_msg) if isinstance(answer, codec.Error) else "an image"
                raise ConnectionError(f"the server doesn't answer {AUTH.decode()}as weaved does: {text}")
            read = len(line)
        elif len(line) >= ANSWER_SIZE or not (AUTH.startswith(line[:len(AUTH)]) or codec.MAGIC.startswith(line)):
            break
    found = re.fullmatch(AUTH + b"([0-9a-f]{64}) ([0-9a-f]{64})\n", line)
    if not found:
        what = f"doesn't answer {AUTH.decode()}as weaved does" if line else f"hung up on {AUTH.decode().strip()}"
        raise ConnectionError(f"the server {what}")
    nonces = nonce + bytes.fromhex(found[1].decode())
    if not hmac.compare_digest(bytes.fromhex(found[2].decode()), proof(token, b"server", nonces)):
        raise ConnectionError("the server doesn't know the token")
    return proof(token, b"client", nonces).hex().encode() + b"\n"


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
    where = "inside a frame" if reader.inside_a_frame else f"{len(waiting)} answers early"
    raise ConnectionError(f"the server closed the connection {where}")
