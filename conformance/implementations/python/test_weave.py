#!/usr/bin/env python3
"""Tests of the codec, the adapter, the client and the server: python3 -W error test_weave.py

The codec goes through all vectors of spec/vectors; the rest is what they don't reach.
"""
from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import random
import re
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
import unittest
import zlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import adapter
import server
from weave_client import codec
from weave_client.address import parse_address
from weave_client.image import Image

HERE = pathlib.Path(__file__).resolve().parent
SPEC = HERE.parents[2] / "spec"
VECTORS = [
    vector
    for path in sorted((SPEC / "vectors").glob("*.json")) if path.name != "schema.json"
    for vector in json.loads(path.read_text(encoding="utf-8"))["vectors"]
]
RECEIVERS = {"server": codec.ServerReader, "client": codec.ClientReader}
PATIENCE_S = 20
WHOLE = 2**25

REQUEST = codec.build_request(1, "a cat", width=64, height=64, steps=1)
BAD_STEPS = REQUEST[:36] + struct.pack(">I", 101) + REQUEST[40:]
IMAGE = codec.build_response_head(1, 5, 64, 64) + bytes(64 * 64 * 3)


def frame(msg_type: int, payload: bytes, version: int = 1, payload_len: int | None = None) -> bytes:
    length = len(payload) if payload_len is None else payload_len
    return struct.pack(">4sHHII", b"WEVE", version, msg_type, length, 0) + payload


def bytes_of(piece: dict[str, Any]) -> bytes:
    """A piece of a vector, with `hex` or `text`, perhaps repeated."""
    once: bytes = bytes.fromhex(piece["hex"]) if "hex" in piece else piece["text"].encode()
    times: int = piece.get("times", 1)
    return once * times


def stream_of(vector: dict[str, Any]) -> bytes:
    return b"".join(map(bytes_of, vector["bytes"]))


def read(reader: Any, stream: bytes, cuts: Iterator[int]) -> tuple[list[Any], str]:
    """What `reader` makes of `stream`, and how it stands at its end. `cuts` says how much comes at a time."""
    outcomes: list[Any] = []
    at = 0
    try:
        while at < len(stream) and not reader.closed:
            size = next(cuts)
            outcomes += reader.feed(stream[at:at + size])
            at += size
    except codec.Broken as fault:
        outcomes.append(fault)
    return outcomes, "closed" if reader.closed else "inside-a-frame" if reader.inside_a_frame else "between-frames"


def only(reader: Any, stream: bytes) -> Any:
    """The one outcome of `stream`."""
    (outcome, ) = reader.feed(stream)
    return outcome


def in_cuts_of(size: int) -> Iterator[int]:
    while True:
        yield size


def byte_by_byte(total: int) -> Iterator[int]:
    """Single bytes; the middle of a stream of megabytes, where no field is, in one piece."""
    edge = 20_000
    for _ in range(edge):
        yield 1
    if total > 2 * edge:
        yield total - 2 * edge
    yield from in_cuts_of(1)


def vector(name: str) -> dict[str, Any]:
    return next(each for each in VECTORS if each["name"] == name)


class Vectors(unittest.TestCase):
    def run_all(self, cuts: Any) -> None:
        for vector in VECTORS:
            with self.subTest(vector["name"]):
                stream = stream_of(vector)
                outcomes, end = read(RECEIVERS[vector["receiver"]](), stream, cuts(len(stream)))
                self.assertEqual(end, vector["expect"]["end"])
                self.assertEqual(len(outcomes), len(vector["expect"]["frames"]))
                for outcome, expected in zip(outcomes, vector["expect"]["frames"]):
                    ((kind, fields),) = expected.items()
                    getattr(self, "check_" + kind)(outcome, fields)

    def check_request(self, request: codec.Request, expected: dict[str, Any]) -> None:
        self.assertIsInstance(request, codec.Request)
        for name in ("model_id", "width", "height", "steps"):
            self.assertEqual(getattr(request, name), expected[name], name)
        for name in ("request_id", "seed"):
            self.assertEqual(str(getattr(request, name)), expected[name], name)
        self.assertEqual(struct.pack(">f", request.cfg_scale).hex().upper(), expected["cfg_scale"]["bits"])
        for name in ("clip_l", "clip_g", "t5"):
            prompt = expected[name]
            expected_prompt = (prompt["offset"], prompt["length"], bytes_of(prompt).decode())
            self.assertEqual(getattr(request, name), expected_prompt, name)

    def check_answer(self, refusal: codec.Refusal, expected: dict[str, Any]) -> None:
        self.assertIsInstance(refusal, codec.Refusal)
        self.assertEqual(str(refusal.request_id), expected["request_id"])
        self.assertEqual(refusal.error_code, expected["error_code"])
        self.assertEqual(refusal.error_code.status, expected["status"])
        self.assertRegex(refusal.error_msg, f"^{expected['field']} is .+, must be .+")  # W1-ERR-004

    def check_response(self, response: codec.Response, expected: dict[str, Any]) -> None:
        self.assertIsInstance(response, codec.Response)
        fields = ("status", "generation_time_ms", "image_width", "image_height", "channels", "trailing")
        for name in fields:
            self.assertEqual(getattr(response, name), expected[name], name)
        self.assertEqual(str(response.request_id), expected["request_id"])
        self.assertEqual(len(response.image_data), expected["image_data_len"])
        self.assertTrue(response.image_data == bytes_of(expected["image_data"]), "image_data")

    def check_error(self, error: codec.Error, expected: dict[str, Any]) -> None:
        self.assertIsInstance(error, codec.Error)
        for name in ("status", "error_code", "trailing"):
            self.assertEqual(getattr(error, name), expected[name], name)
        self.assertEqual(str(error.request_id), expected["request_id"])
        self.assertTrue(error.error_msg == bytes_of(expected["error_msg"]), "error_msg")
        self.assertTrue(codec.printable(error.error_msg).isprintable())

    def check_close(self, broken: codec.Broken, expected: dict[str, Any]) -> None:
        self.assertIsInstance(broken, codec.Broken)
        self.assertEqual(broken.because, expected["because"])

    def test_whole(self) -> None:
        self.assertGreaterEqual(len(VECTORS), 450)
        self.run_all(lambda total: in_cuts_of(WHOLE))

    def test_byte_by_byte(self) -> None:
        self.run_all(byte_by_byte)

    def test_cut_after_every_4093(self) -> None:
        self.run_all(lambda total: in_cuts_of(4093))

    def test_written_anew(self) -> None:
        """A writer makes the same bytes from the fields of what was accepted, as far as senders make such bytes."""
        written = {"request": 0, "response": 0, "error": 0}
        for vector in VECTORS:
            if "sender" in vector or vector["expect"]["end"] != "between-frames":
                continue
            outcomes, _ = read(RECEIVERS[vector["receiver"]](), stream_of(vector), in_cuts_of(WHOLE))
            if any(isinstance(outcome, codec.Refusal) for outcome in outcomes):
                continue
            frames = []
            for outcome in outcomes:
                if isinstance(outcome, codec.Request):
                    prompts = (outcome.clip_l, outcome.clip_g, outcome.t5)
                    starts = [0, prompts[0].length, prompts[0].length + prompts[1].length]
                    if [prompt.offset for prompt in prompts] != starts or "before-a-rest" in vector["name"]:
                        break  # a legal layout that our writer doesn't make
                    written["request"] += 1
                    frames.append(codec.build_request(
                        outcome.request_id, *(prompt.text for prompt in prompts), width=outcome.width,
                        height=outcome.height, steps=outcome.steps, cfg_scale=outcome.cfg_scale, seed=outcome.seed))
                elif isinstance(outcome, codec.Response):
                    written["response"] += 1
                    head = (outcome.request_id, outcome.generation_time_ms, outcome.image_width, outcome.image_height)
                    frames.append(codec.build_response_head(*head, outcome.channels) + outcome.image_data)
                elif outcome.error_code in set(codec.ErrorCode):
                    written["error"] += 1
                    text = outcome.error_msg.decode()
                    frames.append(codec.build_error(outcome.request_id, outcome.error_code, text))
                else:
                    break
            else:
                with self.subTest(vector["name"]):
                    self.assertTrue(b"".join(frames) == stream_of(vector))
        self.assertTrue(all(written[kind] >= 10 for kind in written), written)


class Readers(unittest.TestCase):
    def test_examples_of_the_text(self) -> None:
        def example(name: str) -> bytes:
            text = (SPEC / "weave-v1.md").read_text(encoding="utf-8")
            block = re.search(f"```hex {name}\n(.*?)```", text, re.DOTALL)
            assert block
            return bytes.fromhex("".join(line.split("#")[0] for line in block[1].splitlines()))
        self.assertEqual(codec.build_request(1, "a cat in space"), example("request"))
        self.assertEqual(codec.build_response_head(1, 10_000, 512, 512), example("response-head"))
        self.assertEqual(codec.build_error(1, 3, "unsupported model ID"), example("error"))

    def test_any_request_survives_any_cut(self) -> None:
        dice = random.Random(1)
        alphabet = "az ß猫\U0001F408\x01"
        for _ in range(200):
            prompts = ["".join(dice.choices(alphabet, k=dice.randint(1, 500))) for _ in range(3)]
            fields: Any = {
                "width": dice.choice(codec.SIDES), "height": dice.choice(codec.SIDES), "steps": dice.randint(1, 100),
                "cfg_scale": struct.unpack(">f", struct.pack(">f", dice.uniform(0, 20)))[0],
                "seed": dice.getrandbits(64),
            }
            request_id = dice.getrandbits(64)
            built = codec.build_request(request_id, *prompts, **fields)
            cuts = iter(lambda: dice.randint(1, 300), None)
            (request, again), end = read(codec.ServerReader(), built * 2, cuts)
            self.assertEqual(request, again)
            self.assertEqual(end, "between-frames")
            self.assertEqual(request.request_id, request_id)
            self.assertEqual([request.clip_l.text, request.clip_g.text, request.t5.text], prompts)
            self.assertEqual({name: getattr(request, name) for name in fields}, fields)

    def test_random_bytes_end_nothing(self) -> None:
        """W1-SEC-001: every outcome is one that the API names."""
        dice = random.Random(2)
        for stream, reader in ((REQUEST, codec.ServerReader), (IMAGE[:100], codec.ClientReader)):
            for _ in range(3000):
                damaged = bytearray(stream * 3)
                for _ in range(dice.randint(1, 8)):
                    damaged[dice.randrange(len(damaged))] = dice.getrandbits(8)
                outcomes, end = read(reader(), bytes(damaged), in_cuts_of(dice.randint(1, 90)))
                for outcome in outcomes:
                    self.assertIsInstance(outcome, (codec.Request, codec.Refusal, codec.Response, codec.Error,
                                                    codec.Broken))
                if outcomes and isinstance(outcomes[-1], codec.Broken):
                    self.assertEqual(end, "closed")

    def test_lazy(self) -> None:
        reader = codec.ServerReader()
        outcomes = reader.feed(REQUEST + b"no magic at all!")
        next(outcomes)
        self.assertFalse(reader.closed)  # the second frame wasn't looked at yet
        self.assertEqual(next(outcomes).request_id, 0)
        self.assertTrue(reader.closed)
        self.assertEqual(list(outcomes), [])
        self.assertEqual(list(reader.feed(REQUEST)), [])  # nor is anything after it

    def test_memory_of_a_server(self) -> None:
        """10 MiB that nobody needs leave no trace, and a length that is announced reserves nothing (W1-FRM-008)."""
        reader: Any = codec.ServerReader()
        chunk = bytes(65_536)
        tracemalloc.start()
        try:
            self.assertEqual(list(reader.feed(frame(1, b"", payload_len=10_485_760))), [])
            outcomes = [outcome for _ in range(160) for outcome in reader.feed(chunk)]
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        self.assertEqual([outcome.error_code for outcome in outcomes], [codec.ErrorCode.INVALID_DIMENSIONS])
        self.assertLess(peak, 40_000)

    def test_memory_of_a_client(self) -> None:
        for head in (codec.build_response_head(1, 0, 2048, 2048, 4), frame(0xFF, b"", payload_len=16_777_248),
                     frame(2, b"", payload_len=0xFFFF_FFFF)):
            tracemalloc.start()
            try:
                with contextlib.suppress(codec.Broken):
                    list(codec.ClientReader().feed(head))
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            self.assertLess(peak, 10_000)

    def test_a_response_is_judged_before_its_pixels(self) -> None:
        head = bytearray(codec.build_response_head(1, 0, 2048, 2048))
        head[32:36] = struct.pack(">I", 65)
        with self.assertRaisesRegex(codec.Broken, "image_width is 65"):
            list(codec.ClientReader().feed(bytes(head)))

    def test_no_prompt_in_an_error(self) -> None:
        """W1-ERR-005, for damage to each byte of a request."""
        secret = b"ZQZQZQZQ"
        request = codec.build_request(0, secret.decode(), width=64, height=64)
        refused = set()
        for at in range(len(request)):
            for damage in (0x00, 0x01, 0xFF):
                stream = request[:at] + bytes([damage]) + request[at + 1:]
                for refusal in codec.ServerReader().feed(stream):
                    if isinstance(refusal, codec.Refusal):
                        refused.add(refusal.error_code)
                        self.assertNotRegex(refusal.error_msg, "Z|5a5a|5A5A")
        self.assertEqual(refused, {code for code in codec.ErrorCode if code.status == 400})

    def test_printable(self) -> None:
        self.assertEqual(codec.printable("größer 猫".encode()), "größer 猫")
        self.assertEqual(codec.printable(b"\x1b[2J\x07\xff\n\x00\x7f\xc2\x9b"), "\\x1b[2J\\x07\uFFFD\\n\\x00\\x7f\\x9b")
        self.assertEqual(codec.printable("\u202Egnp.exe".encode()), "\\u202egnp.exe")


class Writers(unittest.TestCase):
    def assert_refused(self, field: str, build: Any, *args: Any, **fields: Any) -> None:
        with self.assertRaises(codec.OutOfRange) as caught:
            build(*args, **fields)
        self.assertEqual(caught.exception.field, field)
        self.assertRegex(str(caught.exception), f"^{field} is .*, must be ")

    def test_bounds_of_a_request(self) -> None:
        bounds: Any = (
            ("width", (64, 2048), (0, 63, 65, 2112, 2**32 + 64, -64)),
            ("height", (64, 2048), (0, 63, 65, 2112, 2**32 + 64, -64)),
            ("steps", (1, 100), (0, 101, -1, 2**32 + 1)),
            ("cfg_scale", (0.0, -0.0, 20.0), (-0.1, 20.1, float("nan"), float("inf"), -float("inf"))),
            ("seed", (0, 2**64 - 1), (-1, 2**64)),
        )
        for field, good, bad in bounds:
            for value in good:
                request = only(codec.ServerReader(), codec.build_request(1, "x", **{field: value}))
                self.assertEqual(getattr(request, field), value)
            for value in bad:
                self.assert_refused(field, codec.build_request, 1, "x", **{field: value})
        self.assert_refused("request_id", codec.build_request, -1, "x")
        self.assert_refused("request_id", codec.build_request, 2**64, "x")

    def test_minus_zero_is_sent_as_zero(self) -> None:
        self.assertEqual(codec.build_request(1, "x", cfg_scale=-0.0)[40:44], bytes(4))

    def test_prompts(self) -> None:
        longest = "ß" * 1024
        built = codec.build_request(1, longest)
        self.assertEqual(len(built), 16 + 6204)
        request = only(codec.ServerReader(), built)
        self.assertEqual({request.clip_l.text, request.clip_g.text, request.t5.text}, {longest})
        for at, name in enumerate(("clip_l", "clip_g", "t5")):
            for bad, field in ((longest + "x", name + "_length"), ("", name + "_length"), ("a\0b", name),
                               ("\udcff", name)):
                prompts = ["x", "x", "x"]
                prompts[at] = bad
                self.assert_refused(field, codec.build_request, 1, *prompts)

    def test_bounds_of_a_response(self) -> None:
        build = codec.build_response_head
        self.assertEqual(build(1, 2**32, 64, 64), build(1, 2**32 - 1, 64, 64))  # W1-RSP-003
        self.assert_refused("request_id", build, 2**64, 0, 64, 64)
        self.assert_refused("generation_time_ms", build, 1, -1, 64, 64)
        self.assert_refused("image_width", build, 1, 0, 65, 64)
        self.assert_refused("image_height", build, 1, 0, 64, 2112)
        self.assert_refused("channels", build, 1, 0, 64, 64, 2)

    def test_errors(self) -> None:
        for code in codec.ErrorCode:
            error = only(codec.ClientReader(), codec.build_error(2**64 - 1, code, "no"))
            self.assertEqual(error, (2**64 - 1, code.status, code, b"no", 0))
        for unknown in (0, 11, 19, 25, 98, 100):
            self.assert_refused("error_code", codec.build_error, 1, unknown, "no")
        self.assert_refused("error_msg", codec.build_error, 1, 5, "\udcff")

    def test_error_msg_is_cut_at_a_character(self) -> None:
        for text, sent in (("x" * 256, "x" * 255), ("ß" * 128, "ß" * 127), ("猫" * 86, "猫" * 85), ("x" * 255, ) * 2):
            error = only(codec.ClientReader(), codec.build_error(1, 5, text))
            self.assertEqual(error.error_msg.decode(), sent)

    def test_table_of_errors(self) -> None:
        rows = re.findall(r"^\| (\d+) \| ([A-Z_]+) \| (\d+) \|", (SPEC / "weave-v1.md").read_text("utf-8"), re.M)
        self.assertEqual([(str(int(code)), code.name, str(code.status)) for code in codec.ErrorCode], rows)


class Adapter(unittest.TestCase):
    def ask(self, *questions: dict[str, Any]) -> list[dict[str, Any]]:
        lines = io.BytesIO("".join(json.dumps(question) + "\n" for question in questions).encode())
        written = io.StringIO()
        with mock.patch("sys.stdin", mock.Mock(buffer=lines)), contextlib.redirect_stdout(written):
            adapter.main()
        return [json.loads(line) for line in written.getvalue().splitlines()]

    def test_read(self) -> None:
        served, refused = vector("request-cfg-scale-minus-zero"), vector("steps-101")
        image, error = vector("response-trailing-1"), vector("error-msg-c1-controls")
        questions = [{"read": each["receiver"], "cut": cut, "bytes": each["bytes"], "unknown": 1}
                     for each in (served, refused, image, error) for cut in (1, 7, WHOLE)]
        answers = self.ask(*questions)
        self.assertEqual({answer["end"] for answer in answers}, {"between-frames"})
        frames = [answer["frames"] for answer in answers]
        for at in range(0, len(frames), 3):
            self.assertEqual(frames[at], frames[at + 1])
            self.assertEqual(frames[at], frames[at + 2])
        prompt = {"length": 3, "hex": "616263"}
        self.assertEqual(frames[0], [{"request": {
            "request_id": "72623859790382856", "model_id": 0, "width": 64, "height": 64, "steps": 1,
            "cfg_scale": "00000000", "seed": "3", "clip_l": {"offset": 0, **prompt}, "clip_g": {"offset": 3, **prompt},
            "t5": {"offset": 6, **prompt}}}])
        message = b"steps is 101, must be 1 to 100"
        head = struct.pack(">4sHHIIQIIH", b"WEVE", 1, 0xFF, 18 + len(message), 0, 72623859790382856, 400, 6,
                           len(message))
        self.assertEqual(frames[3], [{"answer": {"hex": (head + message).hex(), "field": "steps"}}])
        pixels = bytes_of(image["expect"]["frames"][0]["response"]["image_data"])
        self.assertEqual(frames[6], [{"response": {
            "request_id": "72623859790382856", "status": 200, "generation_time_ms": 1234, "image_width": 64,
            "image_height": 64, "channels": 3, "image_data_len": 12288, "crc32": f"{zlib.crc32(pixels):08x}",
            "trailing": 1}}])
        self.assertEqual(frames[9], [{"error": {
            "request_id": "72623859790382856", "status": 400, "error_code": 3, "hex": "c29b324a676f6e65c285",
            "shown": b"\\x9b2Jgone\\x85".hex(), "trailing": 0}}])

    def test_ends(self) -> None:
        cut, closed = vector("cut-after-15"), vector("client-magic-zeros")
        self.assertEqual(
            self.ask(*({"read": each["receiver"], "cut": 3, "bytes": each["bytes"]} for each in (cut, closed))),
            [{"frames": [], "end": "inside-a-frame"},
             {"frames": [{"close": {"because": "W1-FRM-006"}}], "end": "closed"}])

    def test_write(self) -> None:
        request = {"write": "request", "request_id": "1", "width": 512, "height": 512, "steps": 28,
                   "cfg_scale": "40E00000", "seed": "0", "clip_l": "61", "clip_g": "6262", "t5": "63"}
        head = {"write": "response-head", "request_id": "1", "generation_time_ms": 1500, "image_width": 64,
                "image_height": 128, "channels": 4}
        error = {"write": "error", "request_id": "18446744073709551615", "error_code": 5, "error_msg": "C3A4"}
        self.assertEqual(
            self.ask(request, {**request, "steps": 0}, {**request, "cfg_scale": "7FC00000"}, {**request, "t5": "FF"},
                     head, {**head, "channels": 1}, error, {**error, "error_msg": "FF"}, {"sing": "a song"}),
            [{"hex": codec.build_request(1, "a", "bb", "c").hex()}, {"refused": "steps"}, {"refused": "cfg_scale"},
             {"refused": "t5"}, {"hex": codec.build_response_head(1, 1500, 64, 128, 4).hex()},
             {"refused": "channels"}, {"hex": codec.build_error(2**64 - 1, 5, "ä").hex()}, {"refused": "error_msg"},
             {"unsupported": "this adapter can read and write"}])


def command(script: str, *arguments: str) -> list[str]:
    return [sys.executable, "-B", "-W", "error", str(HERE / script), *arguments]


class Processes(unittest.TestCase):
    """Gives each test a folder, and ends what it has started."""

    def setUp(self) -> None:
        self.cleanup = contextlib.ExitStack()
        self.addCleanup(self.cleanup.close)
        self.folder = pathlib.Path(self.cleanup.enter_context(tempfile.TemporaryDirectory()))
        self.path = str(self.folder / "weave.sock")

    def serve(self, address: str | None = None, *arguments: str) -> subprocess.Popen[str]:
        """Starts the server and waits until it listens."""
        process = self.cleanup.enter_context(subprocess.Popen(
            command("server.py", address or self.path, *arguments), stderr=subprocess.PIPE, text=True))
        self.cleanup.callback(process.kill)
        assert process.stderr
        line = process.stderr.readline()
        self.assertRegex(line, "^listening on ")
        self.address = parse_address(line[len("listening on "):].strip())
        return process

    def stop(self, process: subprocess.Popen[str]) -> None:
        process.terminate()
        self.assertEqual(process.wait(PATIENCE_S), 0)
        assert process.stderr
        self.assertEqual(process.stderr.read(), "")

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET)
        self.cleanup.callback(sock.close)
        sock.settimeout(PATIENCE_S)
        sock.connect(self.address)
        return sock

    def answers(self, sock: socket.socket, number: int) -> list[Any]:
        """The next answers; fewer if the server closes before."""
        reader = codec.ClientReader()
        answers: list[Any] = []
        while len(answers) < number:
            data = sock.recv(2**20)
            if not data:
                break
            answers += reader.feed(data)
        self.assertFalse(reader.inside_a_frame)
        return answers

    def assert_closed(self, sock: socket.socket) -> None:
        self.assertEqual(sock.recv(1), b"")

    def run_client(self, *arguments: str) -> tuple[int, str]:
        return self.run_command(sys.executable, "-B", "-W", "error", "-m", "weave_client", *arguments)

    def run_script(self, script: str, *arguments: str) -> tuple[int, str]:
        return self.run_command(*command(script, *arguments))

    def run_command(self, *words: str) -> tuple[int, str]:
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, check=False, cwd=HERE)
        return done.returncode, done.stderr


class Server(Processes):
    def test_the_picture(self) -> None:
        self.serve()
        sock = self.connect()
        sock.sendall(codec.build_request(7, "a cat", width=128, height=64))
        (image, ) = self.answers(sock, 1)
        self.assertEqual((image.request_id, image.image_width, image.image_height, image.channels), (7, 128, 64, 3))
        expected = bytes(255 * ((x // 8 + y // 8) % 2) for y in range(64) for x in range(128) for _ in range(3))
        self.assertTrue(image.image_data == expected)

    def test_every_size(self) -> None:
        for width in codec.SIDES:
            for height in (64, 1088, 2048):
                picture = b"".join(server.checkerboard(width, height))
                self.assertEqual(len(picture), width * height * 3)
                for row in (0, 7, 8, 15, 16, height - 1):
                    squares = [bytes(24), b"\xFF" * 24] if row // 8 % 2 == 0 else [b"\xFF" * 24, bytes(24)]
                    at = row * width * 3
                    self.assertTrue(picture[at:at + width * 3] == b"".join(squares) * (width // 16))

    def test_what_a_connection_survives(self) -> None:
        """Each frame of the vectors that a server must answer and go on after, all on one connection."""
        self.serve()
        sock = self.connect()
        streams, expected = [], []
        for vector in VECTORS:
            stream, expect = stream_of(vector), vector["expect"]
            if vector["receiver"] == "server" and expect["end"] == "between-frames" and len(stream) < 100_000:
                streams.append(stream)
                expected += expect["frames"]
        sender = threading.Thread(target=sock.sendall, args=(b"".join(streams), ))
        sender.start()
        answers = self.answers(sock, len(expected))
        sender.join()
        self.assertGreater(len(answers), 200)
        for answer, outcome in zip(answers, expected):
            if isinstance(answer, codec.Error):
                answer_fields = (str(answer.request_id), answer.status, answer.error_code)
                fields = outcome["answer"]
                self.assertEqual(answer_fields, (fields["request_id"], fields["status"], fields["error_code"]))
            else:
                fields = outcome["request"]
                self.assertEqual((str(answer.request_id), answer.image_width, answer.image_height),
                                 (fields["request_id"], fields["width"], fields["height"]))

    def test_what_ends_a_connection(self) -> None:
        self.serve()
        for lost, code in ((b"GET / HTTP/1.1\r\n\r\n", 1), (frame(1, b"", payload_len=10_485_761) + bytes(10**6), 21)):
            sock = self.connect()
            sock.sendall(REQUEST + lost)
            image, error = self.answers(sock, 2)
            self.assertEqual((image.request_id, error.request_id, error.error_code), (1, 0, code))
            self.assert_closed(sock)

    def test_a_lost_connection_is_not_kept(self) -> None:
        """A client that keeps its side open after it was given up takes no place for long."""
        self.serve()
        sock = self.connect()
        sock.sendall(b"no magic at all!")
        self.assertEqual(len(self.answers(sock, 9)), 1)
        poll = select.poll()
        poll.register(sock, 0)  # POLLHUP is told all the same: the server has closed both directions
        self.assertEqual(poll.poll(PATIENCE_S * 1000), [(sock.fileno(), select.POLLHUP)])

    def test_half_closed(self) -> None:
        """W1-CON-010, W1-FRM-009."""
        self.serve()
        sock = self.connect()
        sock.sendall(REQUEST * 50 + REQUEST[:-1])
        sock.shutdown(socket.SHUT_WR)
        self.assertEqual(len(self.answers(sock, 99)), 50)

    def test_one_byte_at_a_time(self) -> None:
        self.serve()
        sock = self.connect()
        for at in range(len(REQUEST)):
            sock.sendall(REQUEST[at:at + 1])
        self.assertEqual(self.answers(sock, 1)[0].request_id, 1)

    def test_stuck_peers_stop_nobody(self) -> None:
        """W1-CON-012: some take nothing of 12 MB images, some stop in a frame, some send without end."""
        self.serve()
        large = codec.build_request(1, "x", width=2048, height=2048)
        deaf = [self.connect() for _ in range(20)]
        for sock in deaf:
            sock.sendall(large * 3)
        for at in range(1, 80):
            self.connect().sendall(REQUEST[:at])
        flood, stopping = self.connect(), threading.Event()

        def send() -> None:
            with contextlib.suppress(OSError):
                while not stopping.is_set():
                    flood.sendall(frame(0x1234, b"", payload_len=10_000_000) + bytes(10_000_000))
        sender = threading.Thread(target=send)
        sender.start()
        try:
            sock = self.connect()
            for _ in range(20):
                sock.sendall(REQUEST)
                self.assertEqual(len(self.answers(sock, 1)), 1)
            self.assertEqual([image.image_width for image in self.answers(deaf[7], 3)], [2048] * 3)
        finally:
            stopping.set()
            flood.shutdown(socket.SHUT_RDWR)
            sender.join()

    def test_back_pressure(self) -> None:
        """A client that takes nothing can't make the server store what it sends."""
        self.serve()
        sock = self.connect()
        sock.setblocking(False)
        sent, many = 0, codec.build_request(1, "x", width=2048, height=2048) * 1000
        with self.assertRaises(BlockingIOError):
            while sent < 10**8:
                sent += sock.send(many)
        self.assertLess(sent, 10**7)

    def test_many_connections(self) -> None:
        self.serve()
        socks = [self.connect() for _ in range(500)]
        for sock in socks:
            sock.sendall(REQUEST + BAD_STEPS)
        for sock in reversed(socks):
            image, error = self.answers(sock, 2)
            self.assertIsInstance(image, codec.Response)
            self.assertEqual(error.error_code, 6)

    def test_busy(self) -> None:
        """W1-CON-008; a place that is left can be taken."""
        process = self.serve(None, "--connections", "2")
        first, second = self.connect(), self.connect()
        for sock in (first, second):
            sock.sendall(REQUEST)
            self.assertIsInstance(self.answers(sock, 1)[0], codec.Response)
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)  # it has stopped
        third = self.connect()
        third.sendall(REQUEST)
        process.send_signal(signal.SIGCONT)
        (error, ) = self.answers(third, 9)  # and the end of the stream, for it has taken our request
        self.assertEqual((error.request_id, error.status, error.error_code), (0, 500, 23))
        first.shutdown(socket.SHUT_WR)
        self.assert_closed(first)
        fourth = self.connect()
        fourth.sendall(REQUEST)
        self.assertIsInstance(self.answers(fourth, 1)[0], codec.Response)

    def test_tcp(self) -> None:
        process = self.serve("127.0.0.1:0")
        sock = self.connect()
        sock.sendall(REQUEST + b"garbage that is no frame" * 5000)
        image, error = self.answers(sock, 2)
        self.assertEqual((image.request_id, error.error_code), (1, 1))
        self.assert_closed(sock)
        self.stop(process)

    def test_end(self) -> None:
        """W1-CON-009: what was begun is finished, what has come is answered, the socket is gone."""
        process = self.serve()
        begun, waiting, silent = self.connect(), self.connect(), self.connect()
        begun.sendall(codec.build_request(1, "x", width=2048, height=2048) + codec.build_request(2, "x"))
        begun.recv(1, socket.MSG_PEEK)  # the image is under way
        waiting.sendall(REQUEST)
        self.answers(waiting, 1)
        process.terminate()
        started = time.monotonic()
        image, refused = self.answers(begun, 9)
        self.assertEqual((image.request_id, len(image.image_data)), (1, 12_582_912))
        self.assertEqual((refused.request_id, refused.status, refused.error_code), (2, 500, 24))
        for sock in (begun, waiting, silent):
            self.assert_closed(sock)
        self.assertEqual(process.wait(PATIENCE_S), 0)
        self.assertLess(time.monotonic() - started, server.GRACE_S / 2)  # nobody had to be given up
        self.assertFalse(os.path.exists(self.path))

    def test_end_among_other_events(self) -> None:
        """Who waits to be accepted is, before the listener closes; an event that is left of it does no harm."""
        serving = server.Server(self.path, 9)
        self.address = self.path
        sock = self.connect()
        woken, wake = socket.socketpair()
        with woken, wake:
            wake.send(b"signal")
            serving.end(woken)
            serving.accept()
        (connection, ) = serving.connections
        serving.close(connection)
        serving.selector.close()
        self.assert_closed(sock)

    def test_a_second_signal_does_not_wait(self) -> None:
        process = self.serve()
        deaf, silent = self.connect(), self.connect()
        deaf.sendall(codec.build_request(1, "x", width=2048, height=2048))
        deaf.recv(1, socket.MSG_PEEK)
        process.terminate()
        self.assert_closed(silent)  # it has seen the first one
        process.terminate()
        self.assertEqual(process.wait(server.GRACE_S / 2), 0)

    def test_the_socket(self) -> None:
        """Mode 0600; what nobody listens on any more is replaced, what is in use or no socket is not."""
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(self.path)
        process = self.serve()
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o600)
        file = self.folder / "file"
        file.write_text("keep me")
        for path, reason in ((self.path, "somebody listens there already"), (str(file), "a file that is no socket"),
                             (str(self.folder / "no" / "folder"), "No such file")):
            status, said = self.run_script("server.py", path)
            self.assertEqual(status, 1)
            self.assertIn(reason, said)
        self.assertEqual(file.read_text(), "keep me")
        self.connect()
        os.unlink(self.path)
        file.rename(self.path)  # somebody else's by now
        self.stop(process)
        self.assertEqual(pathlib.Path(self.path).read_text(), "keep me")

    @unittest.skipUnless(os.geteuid() == 0, "only root can become another user")
    def test_another_user(self) -> None:
        """W1-TRN-004: closed without an answer."""
        self.serve()
        os.chmod(self.folder, 0o755)
        os.chmod(self.path, 0o666)
        code = ("import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
                "try: s.sendall(bytes(100)); print(s.recv(100))\n"
                "except (BrokenPipeError, ConnectionResetError): print(b'')")
        told = subprocess.run([sys.executable, "-c", code, self.path], capture_output=True, text=True, check=True)
        self.assertEqual(told.stdout, "b''\n")
        sock = self.connect()
        sock.sendall(REQUEST)
        self.assertIsInstance(self.answers(sock, 1)[0], codec.Response)

    def test_usage(self) -> None:
        for arguments in ((), ("127.0.0.1:65536", ), (":80", ), ("./x", "--connections", "0"), ("/" + "x" * 107, )):
            status, said = self.run_script("server.py", *arguments)
            self.assertEqual(status, 2, said)


class Client(Processes):
    def against(self, *script: bytes | str, arguments: tuple[str, ...] = ()) -> tuple[int, str]:
        """What the client makes of a server that sends these bytes, after a whole request, and does as the word says:
        `stay` until the client is gone, or (at the end of the script) close."""
        with socket.socket(socket.AF_UNIX) as listener:
            path = str(self.folder / "fake.sock")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            listener.bind(path)
            listener.listen()

            def play() -> None:
                peer, _ = listener.accept()
                peer.settimeout(PATIENCE_S)
                with peer, contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    peer.recv(2**16)
                    for part in script:
                        if isinstance(part, bytes):
                            peer.sendall(part)
                        else:
                            peer.recv(1)
            thread = threading.Thread(target=play)
            thread.start()
            try:
                return self.run_client(path, *arguments)
            finally:
                thread.join()

    def test_images(self) -> None:
        self.serve()
        file = self.folder / "image.png"
        status, said = self.run_client(self.path, "a cat", "--width", "128", "--seed", "7", "--output", str(file))
        self.assertEqual((status, said), (0, "1: 128x64, 3 channels, 0 ms, seed 7\n"))
        pixels = b"".join(server.checkerboard(128, 64))
        self.assertEqual(file.read_bytes(), Image(128, 64, 3, pixels, 0, "a cat", 4, 7.0, 7).png())
        drawn = [self.run_client(self.path)[1].rpartition("seed ")[2] for _ in range(2)]
        self.assertTrue(all(1 <= int(seed) < 2**32 for seed in drawn) and drawn[0] != drawn[1], drawn)
        status, said = self.run_client(self.path, "--count", "3000")  # more than the socket's buffers hold
        self.assertEqual((status, len(said.splitlines())), (0, 3000))

    def test_tcp(self) -> None:
        self.serve("127.0.0.1:0")
        self.assertEqual(self.run_client(f"127.0.0.1:{self.address[1]}")[0], 0)

    def test_answers_in_any_order(self) -> None:
        images = [codec.build_response_head(request_id, 5, 64, 64) + IMAGE[48:] for request_id in (1, 2, 3)]
        mixed = images[2] + codec.build_error(1, 9, "the engine died") + images[1]
        status, said = self.against(mixed, "stay", arguments=("--count", "3"))
        self.assertEqual([line[:2] for line in said.splitlines()], ["3:", "1:", "2:"])
        self.assertEqual(status, 1)
        self.assertEqual(self.against(images[2] + images[0] + images[1], "stay", arguments=("--count", "3"))[0], 0)

    def test_alpha(self) -> None:
        file = self.folder / "image.png"
        rgba = codec.build_response_head(1, 5, 64, 64, 4) + b"RGBA" * 4096
        self.assertEqual(self.against(rgba, arguments=("--seed", "7", "--cfg-scale", "1.5", "-o", str(file)))[0], 0)
        self.assertEqual(file.read_bytes(), Image(64, 64, 4, b"RGBA" * 4096, 5, "a cat in space", 4, 1.5, 7).png())

    def test_errors(self) -> None:
        status, said = self.against(codec.build_error(1, 6, "no\x1b[2J"))
        self.assertEqual((status, said), (1, "1: error 6 (INVALID_STEPS): no\\x1b[2J\n"))
        status, said = self.against(codec.build_error(0, 23, "full"), arguments=("--count", "5"))
        self.assertEqual((status, said), (1, "0: error 23 (BUSY): full\n"))
        unknown = frame(0xFF, struct.pack(">QIIH", 1, 500, 4242, 2) + b"no", version=9)  # W1-ERR-006, W1-VER-006
        self.assertEqual(self.against(unknown), (1, "1: error 4242 (unknown to this client): no\n"))

    def test_broken_servers(self) -> None:
        other = codec.build_response_head(2, 5, 64, 64) + IMAGE[48:]
        wide = codec.build_response_head(1, 5, 128, 64) + bytes(128 * 64 * 3)
        for script, reason in (
            ((), "1 answers early"), ((IMAGE[:-1], ), "inside a frame"), ((b"HTTP/1.1 400 Bad", "stay"), "W1-FRM-006"),
            ((frame(2, b"", payload_len=2**32 - 1), "stay"), "W1-FRM-007"), ((REQUEST, "stay"), "W1-FRM-010"),
            ((other, "stay"), "request_id 2"), ((wide, "stay"), "W1-RSP-002"),
        ):
            status, said = self.against(*script)
            self.assertEqual(status, 3, said)
            self.assertIn(reason, said)

    def test_it_never_hangs(self) -> None:
        for script in (("stay", ), (IMAGE[:1000], "stay")):
            status, said = self.against(*script, arguments=("--timeout", "0.3"))
            self.assertEqual(status, 3)
            self.assertIn("the time is up", said)
        with socket.socket(socket.AF_UNIX) as listener:  # one that accepts nobody
            listener.bind(self.path)
            listener.listen(0)
            with socket.socket(socket.AF_UNIX) as first:
                first.connect(self.path)
                self.assertEqual(self.run_client(self.path, "--timeout", "0.3")[0], 3)

    def test_no_server(self) -> None:
        self.assertEqual(self.run_client(self.path)[0], 3)
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        self.assertEqual(self.run_client(f"127.0.0.1:{port}")[0], 3)

    def test_usage(self) -> None:
        for arguments, reason in (
            ((), "ADDRESS"), ((":80", ), "neither host:port nor a path"), (("x", "--width", "65"), "width is 65"),
            (("x", ""), "prompt is empty, must be 1 to 2048 bytes"), (("x", "--timeout", "0"), "0.001"), (("x", "--count", "0"), "100000"),
            (("x", "--cfg", "nan"), "cfg_scale is nan"), (("x", "é" * 1025), "prompt is 2050 bytes long"),
            (("x", "--cfg-scale", "21"), "cfg_scale is 21.0"),
        ):
            status, said = self.run_client(*arguments)
            self.assertEqual(status, 2)
            self.assertIn(reason, said)


class Addresses(unittest.TestCase):
    def test_addresses(self) -> None:
        for text, address in (("weave.sock", "weave.sock"), ("/a/b:80", "/a/b:80"), ("./b:80", "./b:80"),
                              ("localhost:80", ("localhost", 80)), ("[::1]:0", ("::1", 0)),
                              ("tcp://box:80", ("box", 80))):
            self.assertEqual(parse_address(text), address)
        for text in ("", ":80", "host:", "host:http", "host:65536", "host:-1", "host:²", "/" + "x" * 107, "tcp://",
                     "tcp://a/b", "tcp:///a:1"):
            with self.assertRaises(ValueError):
                parse_address(text)


if __name__ == "__main__":
    unittest.main()
