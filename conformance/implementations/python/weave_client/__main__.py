"""Asks a Weave server for images: python3 -m weave_client ADDRESS PROMPT

ADDRESS is the path of a Unix socket or host:port. Exit codes: 0 all answers are images, 1 the server answered with an
error, 2 wrong usage, 3 the connection failed or the server broke the protocol.
"""
from __future__ import annotations

import argparse
import sys
import time
from typing import Union

from weave_client import codec
from weave_client.address import parse_address
from weave_client.client import Job
from weave_client.connection import ask, connect


def describe(answer: Union[codec.Response, codec.Error], seed: int) -> str:
    if isinstance(answer, codec.Response):
        size = f"{answer.image_width}x{answer.image_height}, {answer.channels} channels"
        return f"{answer.request_id}: {size}, {answer.generation_time_ms} ms, seed {seed}"
    code = codec.ERROR_CODES.get(answer.error_code)
    name = code.name if code else "unknown to this client"  # W1-ERR-006
    return f"{answer.request_id}: error {answer.error_code} ({name}): {codec.printable(answer.error_msg)}"


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
    parser.add_argument("--cfg-scale", "--cfg", type=float, default=7.0, help="0.0 to 20.0 (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="a u64; 0 draws one for each image (%(default)s)")
    parser.add_argument("--timeout", type=seconds, default=30.0, metavar="SECONDS", help="for all of it (%(default)s)")
    parser.add_argument("--count", type=count, default=1, metavar="N", help="how many requests at once (%(default)s)")
    parser.add_argument("-o", "--output", metavar="FILE", help="where to write the first image, as PNG")
    return parser.parse_args()


def main() -> int:
    parser = argparse.ArgumentParser("python3 -m weave_client", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    args = arguments(parser)
    deadline = time.monotonic() + args.timeout
    try:
        address = parse_address(args.address)
        jobs = {
            request_id: Job.of(request_id, args.prompt, args.width, args.height, args.steps, args.cfg_scale, args.seed)
            for request_id in range(1, args.count + 1)  # different ones: W1-CON-004
        }
        requests = {request_id: job.frame for request_id, job in jobs.items()}
        seeds = {request_id: job.seed for request_id, job in jobs.items()}
    except ValueError as fault:
        parser.error(str(fault))
    status = 0
    first = None
    try:
        with connect(address, args.timeout) as sock:
            for answer in ask(sock, requests, deadline):
                print(describe(answer, seeds.get(answer.request_id, 0)), file=sys.stderr)
                if isinstance(answer, codec.Error):
                    status = 1
                elif (answer.image_width, answer.image_height) != (args.width, args.height):
                    raise codec.Broken("W1-RSP-002", "the image is not of the size that was asked for")
                elif answer.request_id == 1:
                    first = jobs[1].image(answer)
    except (codec.Broken, OSError) as fault:
        parser.exit(3, f"{args.address}: {fault}\n")
    if args.output and first:
        try:
            first.save(args.output)
        except OSError as fault:
            parser.error(f"can't write {args.output}: {fault.strerror or fault}")
    return status


if __name__ == "__main__":
    sys.exit(main())
