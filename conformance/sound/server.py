#!/usr/bin/env python3
"""Weave servers that are odd and keep every rule of spec/weave-v1.md: server.py VARIANT ADDRESS

They prove that weave-conform fails no sound server. ADDRESS is the path of a Unix socket or host:port. VARIANTS says what
each one does, and which sentence of the text lets it. The codec is the Python implementation's; all that moves bytes is
this file's own: a thread reads each connection, another one writes its answers.
"""
from __future__ import annotations

import contextlib
import hashlib
import math
import os
import pathlib
import queue
import random
import re
import resource
import secrets
import selectors
import signal
import socket
import struct
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, NamedTuple

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "implementations" / "python"))

from weave_client import codec  # noqa: E402
from weave_client.address import Address, parse_address  # noqa: E402

RECEIVE_SIZE = 4096
LINGER_S = 1.0   # how long the rest of a client's bytes is read and dropped before a close: W1-CON-015
GRACE_S = 10.0   # how long answers may take that were begun before the end


class Variant(NamedTuple):
    """One server: in what it differs from the first, and why it may."""

    allowed_by: str
    connections: int = 400            # the rest get BUSY for request 0: W1-CON-008, W1-SEC-002
    backlog: int = 128                # of connections that nobody has accepted yet
    tcp: bool = False                 # the variant is about TCP: run it with --tcp
    stack: int = 256 << 10            # bytes of each thread's stack
    processes: bool = False           # a process for each connection
    start_s: float = 0.0              # until it listens
    exit_status: int = 0              # after SIGTERM
    unlinks: bool = True              # its socket, before it listens and when it ends
    workers: int = 0                  # that draw; with none the thread that reads draws
    draw_s: tuple[float, float] = (0.0, 0.0)  # an image takes between so and so many seconds
    under_way: int = 1                # a connection with so many requests is not read: W1-CON-014
    places: float = math.inf          # in the queue; the rest get BUSY: W1-CON-007
    patience_s: float = math.inf      # a request that waited longer gets TIMEOUT
    gpu_errors: float = 0.0           # the share of requests that get GPU_ERROR
    largest: float = math.inf         # pixels of an image; for more there is no memory
    long_s: float = math.inf          # "a long time" (section 1)
    hasty: bool = False               # judges the magic at its first wrong byte
    tiny_writes: bool = False         # the first bytes of an answer one by one, the rest in small pieces
    german: bool = False              # error_msg
    prompts: int = 1                  # that the engine takes: CLIP-L's alone (W1-REQ-008), or all three
    picture: str = "noise"            # of all that a request says, or "checkerboard", the same for all: then not all can be judged
    channels: int = 3


VARIANTS = {
    "plain": Variant("nothing odd: a thread reads each connection, one request after the other"),
    "threads": Variant("stacks of 8 MiB are address space and no memory for a payload: W1-FRM-008", stack=8 << 20),
    "processes": Variant("a process for each connection is not the payload's memory: W1-FRM-008", processes=True),
    "one": Variant("W1-CON-008: no place for a second connection", connections=1),
    "ten": Variant("W1-CON-008, W1-SEC-002: places for ten connections", connections=10),
    "slow-5": Variant("no sentence has a speed; W1-CON-014", workers=1, draw_s=(0.005, 0.005), under_way=4),
    "slow-50": Variant("no sentence has a speed; W1-CON-014", workers=1, draw_s=(0.05, 0.05), under_way=4),
    "back-pressure": Variant("W1-CON-014: it stops to read; its queue has room for all that it reads",
                             workers=2, draw_s=(0.001, 0.001), under_way=8),
    "busy": Variant("W1-CON-007: a queue of two", workers=1, draw_s=(0.005, 0.005), under_way=64, places=2),
    "deadline": Variant("TIMEOUT in section 6: a deadline passed while the request waited",
                        workers=1, draw_s=(0.02, 0.02), under_way=8, patience_s=1.0),
    "out-of-order": Variant("W1-CON-003: answers in any order", workers=4, draw_s=(0.0, 0.01), under_way=32),
    "gpu-error": Variant("W1-VAL-003: one image in a hundred fails with a status of 500", gpu_errors=0.01),
    "small-memory": Variant("OUT_OF_MEMORY in section 6, W1-VAL-004: nothing over 512x512", largest=512 * 512),
    "dual-stack": Variant("W1-SEC-004: ::ffff:127.0.0.1 is this machine alone, as a JVM binds it", tcp=True),
    "tcp": Variant("the same as plain, over TCP", tcp=True),
    "exit-143": Variant("no sentence has an exit status, or says who removes the socket: a JVM does neither",
                        exit_status=143, unlinks=False),
    "tiny-writes": Variant("W1-TRN-001: a stream may be cut anywhere; W1-CON-006 asks for whole frames, not writes",
                           tiny_writes=True),
    "backlog-1": Variant("how many may wait to be accepted is the system's affair", backlog=1),
    "late": Variant("no sentence says when a server listens: three seconds after its start", start_s=3.0),
    "closes-idle": Variant("W1-CON-013, and TIMEOUT first for a begun frame; section 1: five seconds are long",
                           long_s=5.0),
    "hasty": Variant("W1-FRM-012: the magic may be judged at the first wrong byte", hasty=True),
    "german": Variant("W1-ERR-004 asks for field, value and what is allowed, in no language and no base",
                      german=True),
    "three-prompts": Variant("W1-REQ-008 binds engines that take one prompt: this one takes all three", prompts=3),
    "rgba": Variant("section 5: four channels", channels=4),
    "checkerboard": Variant("section 5 leaves the pixels open", picture="checkerboard"),
}


class Server:
    """Accepts connections on the main thread, and holds those that it turns away until they are gone."""

    def __init__(self, name: str, address: Address) -> None:
        self.variant = VARIANTS[name]
        self.address = address
        if self.variant.unlinks and isinstance(address, str):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(address)
        self.listener = listen(address, self.variant.backlog, name == "dual-stack")
        self.selector = selectors.DefaultSelector()
        self.turned_away: dict[socket.socket, float] = {}  # and until when
        self.connections: set[Connection] = set()
        self.ending = threading.Event()
        self.engine = ThreadPoolExecutor(self.variant.workers or 1)
        self.places = self.variant.places  # that are free
        self.counting = threading.Lock()

    def run(self) -> None:
        """Serves until SIGTERM or SIGINT, and finishes what it has begun (W1-CON-009)."""
        woken, wake = socket.socketpair()
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        self.selector.register(woken, selectors.EVENT_READ)
        self.selector.register(self.listener, selectors.EVENT_READ)
        while not self.ending.is_set():
            for key, _ in self.selector.select(LINGER_S if self.turned_away else None):
                if key.fileobj is woken:
                    self.ending.set()
                elif key.fileobj is self.listener:
                    self.accept()
                elif not drop_some(key.fileobj):
                    self.let_go(key.fileobj)
            for sock in [sock for sock, until in self.turned_away.items() if until < time.monotonic()]:
                self.let_go(sock)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.accept()  # those who wait already get an answer, too
        self.listener.close()
        if self.variant.unlinks and isinstance(self.address, str):
            os.unlink(self.address)
        until = time.monotonic() + GRACE_S
        for connection in list(self.connections):
            connection.end_reading()
        for connection in list(self.connections):
            connection.thread.join(max(0.0, until - time.monotonic()))
        os._exit(self.variant.exit_status)  # without the threads of clients that take nothing

    def accept(self) -> None:
        sock, _ = self.listener.accept()
        if not may_connect(sock):  # W1-TRN-003
            close(sock)  # W1-TRN-004
        elif len(self.connections) < self.variant.connections:
            connection = Connection(self, sock)
            self.connections.add(connection)
            connection.thread.start()
        else:
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                sock.send(codec.build_error(0, codec.ErrorCode.BUSY, "no place for this connection"))
                sock.shutdown(socket.SHUT_WR)
            self.turned_away[sock] = time.monotonic() + LINGER_S
            self.selector.register(sock, selectors.EVENT_READ)

    def let_go(self, sock: socket.socket) -> None:
        self.selector.unregister(sock)
        del self.turned_away[sock]
        close(sock)

    def take_place(self) -> bool:
        with self.counting:
            self.places -= 1
            if self.places >= 0:
                return True
            self.places += 1
            return False

    def free_place(self) -> None:
        with self.counting:
            self.places += 1

    def draw(self, request: codec.Request, came: float) -> bytes:
        """The answer to a request that has passed all checks."""
        variant = self.variant
        if self.ending.is_set():
            return codec.build_error(request.request_id, codec.ErrorCode.SHUTTING_DOWN, "the server is ending")
        begun = time.monotonic()
        if begun - came > variant.patience_s:
            return codec.build_error(request.request_id, codec.ErrorCode.TIMEOUT, "it has waited for too long")
        if request.width * request.height > variant.largest:
            return codec.build_error(request.request_id, codec.ErrorCode.OUT_OF_MEMORY, "width * height is too large")
        if random.random() < variant.gpu_errors:
            return codec.build_error(request.request_id, codec.ErrorCode.GPU_ERROR, "the engine has failed")
        if variant.draw_s[1]:
            time.sleep(random.uniform(*variant.draw_s))  # this is the engine
        pixels = noise(request, variant) if variant.picture == "noise" else checkerboard(request, variant)
        time_ms = int((time.monotonic() - begun) * 1000)
        head = codec.build_response_head(request.request_id, time_ms, request.width, request.height, variant.channels)
        return head + pixels


class Connection:
    """Two threads: one reads and, if the variant has no workers, draws; the other writes."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self.server = server
        self.sock = sock
        self.thread = threading.Thread(target=self.fork if server.variant.processes else self.serve, daemon=True)
        self.room = threading.Semaphore(server.variant.under_way)  # for requests whose answers aren't written
        self.answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        # Reading comes back once a second to look at the clock.
        if server.variant.long_s < math.inf:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 1, 0))

    def fork(self) -> None:
        """Has a process of its own serve the connection. end_reading() reaches that one through the socket, too."""
        pid = os.fork()
        if pid == 0:
            self.server.listener.close()
            self.serve()
            os._exit(0)
        os.waitpid(pid, 0)
        self.server.connections.discard(self)
        self.sock.close()

    def serve(self) -> None:
        writer = threading.Thread(target=self.write, daemon=True)
        writer.start()
        gives_up = self.read()
        for _ in range(self.server.variant.under_way):  # until all is written: W1-CON-010
            self.room.acquire()
        self.answers.put(None)
        writer.join()
        if gives_up:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)
                self.sock.settimeout(LINGER_S)
                until = time.monotonic() + LINGER_S
                while time.monotonic() < until and drop_some(self.sock):
                    pass
        self.server.connections.discard(self)  # before the client can know that there is a place
        close(self.sock)

    def read(self) -> bool:
        """Reads until the client ends its direction (false), or the stream has to be given up (true)."""
        reader = HastyReader() if self.server.variant.hasty else codec.ServerReader()
        since, was_inside = time.monotonic(), False
        while not reader.closed:
            try:
                data = self.sock.recv(RECEIVE_SIZE)
            except BlockingIOError:
                data = None
            except OSError:
                return False
            if data == b"":
                return False
            for outcome in reader.feed(data or b""):
                self.take(outcome)
                was_inside = False
            now = time.monotonic()
            if reader.inside_a_frame != was_inside or not self.is_idle():
                since, was_inside = now, reader.inside_a_frame
            if now - since > self.server.variant.long_s:
                if reader.inside_a_frame:
                    self.room.acquire()
                    self.answers.put(codec.build_error(0, codec.ErrorCode.TIMEOUT, "a frame has been begun for too long"))
                return True
        return True

    def is_idle(self) -> bool:
        """Whether nothing is under way, where only one request can be."""
        idle = self.room.acquire(blocking=False)
        if idle:
            self.room.release()
        return idle

    def take(self, outcome: codec.Request | codec.Refusal) -> None:
        self.room.acquire()
        if isinstance(outcome, codec.Refusal):
            text = in_german(outcome.error_msg) if self.server.variant.german else outcome.error_msg
            self.answers.put(codec.build_error(outcome.request_id, outcome.error_code, text))
        elif not self.server.variant.workers:
            self.answers.put(self.server.draw(outcome, time.monotonic()))
        elif self.server.take_place():
            self.server.engine.submit(self.server.draw, outcome, time.monotonic()).add_done_callback(self.drawn)
        else:
            self.answers.put(codec.build_error(outcome.request_id, codec.ErrorCode.BUSY, "the queue is full"))

    def drawn(self, answer: Future[bytes]) -> None:
        self.server.free_place()
        self.answers.put(answer.result())

    def write(self) -> None:
        """Writes answers, each whole before the next one (W1-CON-006)."""
        for answer in iter(self.answers.get, None):
            try:
                for piece in tiny_pieces(answer) if self.server.variant.tiny_writes else [answer]:
                    self.sock.sendall(piece)
            except OSError:  # the client is gone: what is left goes nowhere
                self.end_reading()
            self.room.release()

    def end_reading(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RD)  # what has arrived can still be read, then the stream ends


class HastyReader(codec.ServerReader):
    """Reads the magic byte by byte, and no further than to the first wrong one."""

    def _take(self, size: int):
        if self.inside_a_frame:
            return (yield from super()._take(size))
        header = b""
        while codec.MAGIC.startswith(header) and len(header) < len(codec.MAGIC):
            header += yield from super()._take(1)
        if header != codec.MAGIC:
            return header.ljust(size, b"\0")
        return header + (yield from super()._take(size - len(header)))


def noise(request: codec.Request, variant: Variant) -> bytes:
    """Pixels that all of the request decides but its id (W1-REQ-011)."""
    seed = request.seed or secrets.randbelow(2**64 - 1) + 1  # W1-REQ-009
    texts = [prompt.text for prompt in (request.clip_l, request.clip_g, request.t5)[:variant.prompts]]
    key = repr((request.width, request.height, request.steps, request.cfg_scale, seed, texts))
    return hashlib.shake_128(key.encode()).digest(request.width * request.height * variant.channels)


def checkerboard(request: codec.Request, variant: Variant) -> bytes:
    """Blocks of 8x8, black and white in turn, black first. Sides are multiples of 64."""
    black, white = bytes(8 * variant.channels), b"\xFF" * 8 * variant.channels
    across = request.width // 16
    return ((black + white) * across * 8 + (white + black) * across * 8) * (request.height // 16)


def in_german(text: str) -> str:
    """The codec's "FIELD is VALUE, must be ...": other words, decimal numbers, a decimal comma."""
    parts = re.fullmatch("(.*?) is (.*), must be (.*)", text)
    if parts is None:
        return text
    field, value, allowed = parts.groups()
    if value.startswith("0x"):
        value, allowed = str(int(value, 16)), str(int(allowed, 16))
    if field == "cfg_scale":
        value, allowed = value.replace(".", ","), allowed.replace(".", ",")
    for english, german in [(" to ", " bis "), ("a multiple of", "ein Vielfaches von"), ("at most", "höchstens"),
                            ("at least", "mindestens")]:
        allowed = allowed.replace(english, german)
    return f"{field} ist {value}; zulässig: {allowed}"


def tiny_pieces(answer: bytes) -> list[bytes]:
    """Sixty-four single bytes, then pieces of up to some thousand."""
    pieces = [answer[at:at + 1] for at in range(min(64, len(answer)))]
    at = len(pieces)
    while at < len(answer):
        size = random.choice([1, 2, 3, 15, 16, 17, 1000, 4093])
        pieces.append(answer[at:at + size])
        at += size
    return pieces


def drop_some(sock: socket.socket) -> bool:
    """Reads some bytes and forgets them; false at the stream's end."""
    try:
        return bool(sock.recv(RECEIVE_SIZE))
    except BlockingIOError:
        return True
    except OSError:
        return False


def close(sock: socket.socket) -> None:
    """Closes, also where a forked process has inherited the socket."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


def may_connect(sock: socket.socket) -> bool:
    """On a Unix socket: the server's own user and root, of whom the kernel says that they connect (W1-TRN-007)."""
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return True
    credentials = struct.Struct("iII")  # pid, uid, gid
    uid: int = credentials.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size))[1]
    return uid in (0, os.geteuid())


def listen(address: Address, backlog: int, dual_stack: bool) -> socket.socket:
    if isinstance(address, str):
        listener = socket.socket(socket.AF_UNIX)
        os.umask(0o177)  # mode 0600 from the first moment: W1-TRN-002
        listener.bind(address)
    else:
        listener = socket.socket(socket.AF_INET6 if dual_stack else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if dual_stack:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::ffff:" + address[0] if dual_stack else address[0], address[1]))
    listener.listen(backlog)
    listener.setblocking(False)
    return listener


def main() -> None:
    if len(sys.argv) != 3 or sys.argv[1] not in VARIANTS:
        sys.exit(f"usage: server.py VARIANT ADDRESS, with a VARIANT of {', '.join(VARIANTS)}")
    variant = VARIANTS[sys.argv[1]]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # for those that are turned away, too
    threading.stack_size(variant.stack)
    time.sleep(variant.start_s)
    Server(sys.argv[1], parse_address(sys.argv[2])).run()


if __name__ == "__main__":
    main()
