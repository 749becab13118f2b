#!/usr/bin/env python3
"""Asks a Weave server for images.

ADDRESS is the path of a Unix socket or host:port. Exit codes: 0 all answers are images, 1 the server answered with an
error, 2 wrong usage, 3 the connection failed or the server broke the protocol.
"""
from __future__ import annotations

import argparse
import selectors
import socket
import struct
import sys
import time
from collections.abc import Iterator

import weave
from address import parse_address

RECEIVE_SIZE = 262_144  # bytes


def connect(address: str | tuple[str, int], timeout: float) -> socket.socket:
    if isinstance(address, tuple):
        return socket.create_connection(address, timeout)
    sock = socket.socket(socket.AF_UNIX)
    try:
        # A connect with settimeout() would fail at once where the server's backlog is full; this one waits.
        whole, part = divmod(timeout, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(whole), int(part * 1_000_000)))
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
            ready = selector.select(max(0.0, deadline - time.monotonic()))
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


def ask(
    sock: socket.socket, requests: dict[int, bytes], deadline: float
) -> Iterator[weave.Response | weave.Error]:
    """Sends the requests, frames by request_id (never 0), at once (W1-CON-001), and yields the answers as they come.

    Raises weave.Broken or OSError; the caller must close the socket then. `deadline` is a time.monotonic().
    """
    waiting = set(requests)
    reader = weave.ClientReader()
    for data in exchange(sock, memoryview(b"".join(requests.values())), deadline):
        for answer in reader.feed(data):
            if isinstance(answer, weave.Error) and answer.request_id == 0:
                waiting.clear()  # it is for the connection as a whole (W1-ERR-001, W1-CON-008)
            elif answer.request_id in waiting:
                waiting.remove(answer.request_id)  # in any order (W1-CON-003)
            else:
                raise weave.Broken("W1-CON-002", f"no answer to request_id {answer.request_id} is due")
            yield answer
            if not waiting:
                return
    where = "inside a frame" if reader.inside_a_frame else f"{len(waiting)} answers early"
    raise ConnectionError(f"the server closed the connection {where}")


def write_ppm(path: str, image: weave.Response) -> None:
    pixels = bytearray(image.image_data)
    if image.channels == 4:
        del pixels[3::4]  # the format has no alpha
    with open(path, "wb") as file:
        file.write(b"P6 %d %d 255\n" % (image.image_width, image.image_height) + pixels)


def describe(answer: weave.Response | weave.Error) -> str:
    if isinstance(answer, weave.Response):
        size = f"{answer.image_width}x{answer.image_height}, {answer.channels} channels"
        return f"{answer.request_id}: {size}, {answer.generation_time_ms} ms"
    code = weave.ERROR_CODES.get(answer.error_code)
    name = code.name if code else "unknown to this client"  # W1-ERR-006
    return f"{answer.request_id}: error {answer.error_code} ({name}): {weave.printable(answer.error_msg)}"


def seconds(text: str) -> float:
    value = float(text)
    if not 0.001 <= value <= 86_400:
        raise argparse.ArgumentTypeError(f"{text} is not within 0.001 to 86400")
    return value


def count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 100_000:
        raise argparse.ArgumentTypeError(f"{text} is not within 1 to 100000")
    return value


def arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    parser.add_argument("address", metavar="ADDRESS")
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", default="a cat in space", help="(%(default)s)")
    parser.add_argument("--width", type=int, default=64, help="64 to 2048, a multiple of 64 (%(default)s)")
    parser.add_argument("--height", type=int, default=64, help="64 to 2048, a multiple of 64 (%(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="1 to 100 (%(default)s)")
    parser.add_argument("--cfg", type=float, default=7.0, help="0.0 to 20.0 (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="a u64; 0 leaves the choice to the server (%(default)s)")
    parser.add_argument("--timeout", type=seconds, default=30.0, metavar="SECONDS", help="for all of it (%(default)s)")
    parser.add_argument("--count", type=count, default=1, metavar="N", help="how many requests at once (%(default)s)")
    parser.add_argument("-o", "--output", metavar="FILE", help="where to write the first image, as PPM")
    return parser.parse_args()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args = arguments(parser)
    deadline = time.monotonic() + args.timeout
    try:
        address = parse_address(args.address)
        requests = {
            request_id: weave.build_request(request_id, args.prompt, width=args.width, height=args.height,
                                            steps=args.steps, cfg_scale=args.cfg, seed=args.seed)
            for request_id in range(1, args.count + 1)  # different ones: W1-CON-004
        }
    except ValueError as fault:
        parser.error(str(fault))
    status = 0
    first = None
    try:
        with connect(address, args.timeout) as sock:
            for answer in ask(sock, requests, deadline):
                print(describe(answer), file=sys.stderr)
                if isinstance(answer, weave.Error):
                    status = 1
                elif (answer.image_width, answer.image_height) != (args.width, args.height):
                    raise weave.Broken("W1-RSP-002", "the image is not of the size that was asked for")
                elif answer.request_id == 1:
                    first = answer
    except (weave.Broken, OSError) as fault:
        parser.exit(3, f"{args.address}: {fault}\n")
    if args.output and first:
        try:
            write_ppm(args.output, first)
        except OSError as fault:
            parser.error(f"can't write {args.output}: {fault.strerror}")
    return status


if __name__ == "__main__":
    sys.exit(main())
