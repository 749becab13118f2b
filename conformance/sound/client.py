#!/usr/bin/env python3
"""Weave clients that are odd and keep every rule of spec/weave-v1.md: client.py VARIANT ADDRESS [--count N]

They prove that weave-conform fails no sound client. Each asks for an image of 64x64 pixels (for N, all at once). Exit
status: 0 all answers are images, 1 the server answered with an error, 3 the connection failed or the server broke the
protocol. The codec is the Python implementation's.
"""
from __future__ import annotations

import argparse
import pathlib
import socket
import sys
import time
from typing import NamedTuple

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "implementations" / "python"))

from weave_client import codec  # noqa: E402
from weave_client.address import parse_address  # noqa: E402

RETRIES = 2


class Variant(NamedTuple):
    """One client: in what it differs from the first, and why it may."""

    allowed_by: str
    tcp: bool = False             # the variant is about TCP: run it with --tcp
    start_s: float = 0.0          # until it connects
    first_id: int = 1             # the next request has the next one
    prompt: str = "a cat in space"
    seed: int = 3
    write_size: int = 65_536
    read_size: int = 65_536
    read_pause_s: float = 0.0     # before each of the first fifty reads
    half_closes: bool = False     # after its last request
    retries: bool = False         # sends a request again that had an error of status 500
    keeps_quiet: bool = False     # ignores an answer to a request that isn't under way, instead of closing
    drains: bool = False          # before it closes: ends its direction, and reads what comes for a second
    stdout: bool = False          # where it prints


VARIANTS = {
    "plain": Variant("nothing odd"),
    "half-closes": Variant("W1-CON-010: it ends its direction after its last request", half_closes=True),
    "byte-by-byte": Variant("W1-TRN-001: a stream may be cut anywhere", write_size=1, prompt="宇宙の猫"),
    "late": Variant("no sentence says when a client connects: two seconds after its start", start_s=2.0),
    "retries": Variant("section 6: after GPU_ERROR it tries again, a few times at most", retries=True),
    "id-0": Variant("section 4: any request_id", first_id=0),
    "id-largest": Variant("section 4: any request_id; seed 0 leaves the choice to the server",
                          first_id=2**64 - 1, seed=0),
    "stdout": Variant("where a client prints is its own affair", stdout=True),
    "slow-reader": Variant("no sentence has a speed", read_size=7, read_pause_s=0.001),
    "quiet": Variant("W1-RSP-011: it ignores answers to what it did not ask", keeps_quiet=True),
    "drains": Variant("W1-CON-015: it ends its direction and reads the rest before it closes", tcp=True, drains=True),
}


class Client:
    def __init__(self, variant: Variant, address: str, count: int) -> None:
        self.variant = variant
        self.address = parse_address(address)
        self.requests = {
            request_id: codec.build_request(request_id, variant.prompt, width=64, height=64, steps=1, seed=variant.seed)
            for request_id in ((variant.first_id + n) % 2**64 for n in range(count))
        }
        self.retried = 0

    def run(self) -> int:
        time.sleep(self.variant.start_s)
        try:
            sock = self.connect()
            with sock:
                try:
                    return self.ask(sock)
                finally:
                    if self.variant.drains:
                        self.drain(sock)
        except (codec.Broken, OSError) as fault:
            self.say(str(fault))
            return 3

    def connect(self) -> socket.socket:
        if isinstance(self.address, tuple):
            return socket.create_connection(self.address)
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self.address)
        return sock

    def ask(self, sock: socket.socket) -> int:
        self.send(sock, b"".join(self.requests.values()))
        if self.variant.half_closes:
            sock.shutdown(socket.SHUT_WR)
        reader, missing, status = codec.ClientReader(), set(self.requests), 0
        pauses = 50
        while True:
            if pauses:
                time.sleep(self.variant.read_pause_s)
                pauses -= 1
            data = sock.recv(self.variant.read_size)
            if not data:
                raise ConnectionError("the server closed before all answers were there")
            for answer in reader.feed(data):
                status = max(status, self.take(sock, answer, missing))
                if not missing:
                    return status
    def take(self, sock: socket.socket, answer: codec.Response | codec.Error, missing: set[int]) -> int:
        """Ticks an answer off, and says with which exit status."""
        if answer.request_id not in missing:
            if isinstance(answer, codec.Error) and answer.request_id == 0:
                self.say(codec.printable(answer.error_msg))
                missing.clear()  # it is about the connection
                return 1
            if self.variant.keeps_quiet:
                return 0
            raise codec.Broken("W1-RSP-011", f"an answer to request {answer.request_id}")
        if isinstance(answer, codec.Response):
            if (answer.image_width, answer.image_height) != (64, 64):
                raise codec.Broken("W1-RSP-010", f"an image of {answer.image_width}x{answer.image_height}")
            missing.remove(answer.request_id)
            self.say(f"request {answer.request_id}: an image")
            return 0
        self.say(codec.printable(answer.error_msg))
        if self.variant.retries and answer.status == 500 and self.retried < RETRIES:
            self.retried += 1
            self.send(sock, self.requests[answer.request_id])
            return 0
        missing.remove(answer.request_id)
        return 1

    def send(self, sock: socket.socket, data: bytes) -> None:
        for at in range(0, len(data), self.variant.write_size):
            sock.sendall(data[at:at + self.variant.write_size])

    def drain(self, sock: socket.socket) -> None:
        try:
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(1.0)
            until = time.monotonic() + 1.0
            while sock.recv(65_536) and time.monotonic() < until:
                pass
        except OSError:
            pass  # the server is gone, or still there after a second

    def say(self, text: str) -> None:
        print(text, file=sys.stdout if self.variant.stdout else sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("address")
    parser.add_argument("--count", type=int, default=1)
    args = parser.parse_args()
    return Client(VARIANTS[args.variant], args.address, args.count).run()


if __name__ == "__main__":
    sys.exit(main())
