#!/usr/bin/env python3
"""Tests of the client against a real weaved: WEAVED=path/to/weaved python3 -W error test_client.py

With NumPy and Pillow, their images as well; without them it says so. The package is the installed one, if there is one
and this file is run with python3 -I.
"""
from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import zlib
from typing import Any, Optional, Union
from unittest import mock

from weave_client import (AsyncClient, Broken, Client, ErrorCode, Image, NoImage, OutOfRange, Unreachable, __version__, address,
                          codec, default_address)

PATIENCE_S = 20.0
TOKEN = "0123456789abcdefABCDEF" + "0" * 42


def gradient(width: int, height: int, prompt: str, seed: int) -> bytes:
    """The picture that `weaved --engine pattern --pattern gradient` draws."""
    number = 0xCBF29CE484222325
    for byte in struct.pack("<Q", seed) + prompt.encode():
        number = (number ^ byte) * 0x100000001B3 % 2**64
    red, green, blue = struct.pack("<Q", number)[:3]
    return b"".join(bytes(((x * 256 // width + red) % 256, (y * 256 // height + green) % 256, blue))
                    for y in range(height) for x in range(width))


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG file: kind, data."""
    found, at = [], 8
    while at < len(png):
        size, kind = struct.unpack_from(">I4s", png, at)
        found.append((kind, png[at + 8:at + 8 + size]))
        at += size + 12
    return found


def texts(png: bytes) -> list[tuple[str, str, str]]:
    """The texts of a PNG file: kind, keyword, text."""
    found = []
    for kind, data in chunks(png):
        keyword, _, text = data.partition(b"\0")
        if kind == b"tEXt":
            found.append(("tEXt", keyword.decode(), text.decode("latin-1")))
        elif kind == b"iTXt":
            found.append(("iTXt", keyword.decode(), text[4:].decode()))
    return found


def without_model(found: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Without the model's name, which the protocol doesn't tell."""
    return [(kind, keyword, re.sub('Model: [^,]*, |,"model":"[^"]*"', "", text)) for kind, keyword, text in found]


def rows(png: bytes) -> tuple[int, int, int, bytes]:
    """Width, height, channels and pixels of a PNG file as Image writes it."""
    parts = dict(chunks(png))
    width, height, _, kind = struct.unpack_from(">IIBB", parts[b"IHDR"])
    stride = width * (3 if kind == 2 else 4)
    data = zlib.decompress(parts[b"IDAT"])
    return width, height, stride // width, b"".join(data[y * (stride + 1) + 1:][:stride] for y in range(height))


class Weaved(unittest.TestCase):
    """One weaved for all tests. It fails at "boom" and is stuck at "stuck", until its time is up."""

    folder: pathlib.Path
    address: str
    tcp: str

    @classmethod
    def setUpClass(cls) -> None:
        weaved = os.environ.get("WEAVED")
        if not weaved:
            raise AssertionError("set WEAVED to the path of weaved: target/example/debug/weaved after `make example`")
        folder = tempfile.TemporaryDirectory()  # of mode 0700, which weaved wants
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        cls.address = folder.name + "/weave.sock"
        token = cls.folder / "token"
        token.touch(0o600)
        token.write_text(TOKEN)
        daemon = subprocess.Popen(
            [weaved, "--no-config", "--engine", "pattern", "--pattern", "gradient", "--faults", "fail@boom,hang@stuck",
             "--generation-timeout", "60", "--cancel-timeout", "0.1", "--abandoned", "cancel",
             "--socket", cls.address, "--tcp", "127.0.0.1:0", "--token-file", str(token)],
            stderr=subprocess.PIPE, text=True)
        assert daemon.stderr
        cls.addClassCleanup(daemon.stderr.close)
        cls.addClassCleanup(daemon.wait)
        cls.addClassCleanup(daemon.terminate)
        cls.tcp = ""
        for line in daemon.stderr:  # its log, which ends if it doesn't start
            if "listening on tcp://" in line:
                cls.tcp = line.partition("listening on ")[2].split()[0]
            elif "listening on" in line:
                break
        else:
            raise AssertionError("weaved did not start")
        threading.Thread(target=daemon.stderr.read, daemon=True).start()  # so that it can go on writing

    def test_an_image(self) -> None:
        with Client(self.address) as client:
            image = client.generate("a cat", width=128, height=64, steps=3, cfg_scale=1.0, seed=2**64 - 2)
            self.assertEqual(image.pixels, gradient(128, 64, "a cat", 2**64 - 2))
            self.assertEqual((image.width, image.height, image.channels), (128, 64, 3))
            self.assertEqual(client.generate("ein Käse", width=64, height=64, seed=1).pixels,
                             gradient(64, 64, "ein Käse", 1))

    def test_one_connection_for_all_that_is_answered(self) -> None:
        with mock.patch("weave_client.client.connect", wraps=sys.modules["weave_client.connection"].connect) as connect:
            with Client(self.address, timeout=PATIENCE_S) as client:
                for prompt in ("a", "boom", "b"):
                    with contextlib.suppress(NoImage):
                        client.generate(prompt, width=64, height=64)
        self.assertEqual(connect.call_count, 1)

    def test_errors(self) -> None:
        with Client(self.address) as client:
            with self.assertRaises(NoImage) as caught:
                client.generate("boom")
            self.assertEqual((caught.exception.code, caught.exception.status), (ErrorCode.GPU_ERROR, 500))
            self.assertEqual(caught.exception.code.name, "GPU_ERROR")
            self.assertIn("GPU_ERROR: ", str(caught.exception))
            self.assertIsInstance(client.generate("after an error", width=64, height=64), Image)

    def test_what_is_never_sent(self) -> None:
        client = Client("/nobody/listens/here")
        for field, arguments in (("width", {"width": 65}), ("steps", {"steps": 0}), ("seed", {"seed": -1})):
            with self.assertRaises(OutOfRange) as caught:
                client.generate("x", **arguments)
            self.assertEqual(caught.exception.field, field)
        for prompt, text in (("", "prompt is empty, must be 1 to 2048 bytes"), ("é" * 1025, "prompt is 2050 bytes long"),
                             ("\0", "prompt is text with a byte 0"), ("\udc80", "prompt is not UTF-8")):
            with self.assertRaisesRegex(OutOfRange, text):
                client.generate(prompt)
        for name, hint in (("cfg", "; it is called cfg_scale"), ("guidance_scale", "; it is called cfg_scale"),
                           ("num_inference_steps", "; it is called steps"), ("negative_prompt", "")):
            wrong: dict[str, Any] = {name: 1.0}
            with self.assertRaises(TypeError) as unknown:
                client.generate("x", **wrong)
            self.assertEqual(str(unknown.exception), f"generate() has no argument '{name}'{hint}")

    def test_nobody_answers(self) -> None:
        deaf = str(self.folder / "deaf")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(deaf)  # it doesn't listen
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        for where, text in (("/nobody/listens/here", r"at /nobody/listens/here \(No such file or directory\); start weaved, or"),
                            (deaf, rf"at {deaf} \(Connection refused\); start weaved, or name"),
                            (f"127.0.0.1:{port}", rf"at tcp://127.0.0.1:{port} \(.*refused.*\); start weaved, or name")):
            with self.assertRaisesRegex(Unreachable, text) as caught:
                Client(where).generate("x")
            self.assertIsInstance(caught.exception.__cause__, OSError)
            with self.assertRaisesRegex(Unreachable, where.split(":")[0]):
                asyncio.run(AsyncClient(where).generate("x"))
        with mock.patch("socket.socket.connect", side_effect=PermissionError(13, "Permission denied")):
            with self.assertRaisesRegex(Unreachable, r"\(Permission denied\); only some users may connect there"):
                Client(self.address).generate("x")

    def test_the_same_again(self) -> None:
        with Client(self.address) as client:
            drawn = client.generate("a cat", width=128, height=64, steps=3, cfg_scale=1.1)
            self.assertTrue(1 <= drawn.seed < 2**32)
            self.assertNotEqual(client.generate("a cat", width=64, height=64).seed, drawn.seed)
            again = client.generate(drawn.prompt, width=drawn.width, height=drawn.height, steps=drawn.steps,
                                    cfg_scale=drawn.cfg_scale, seed=drawn.seed)
            self.assertEqual(again.pixels, drawn.pixels)

    def test_weave_verifies_what_was_saved(self) -> None:
        weave = os.environ.get("WEAVE")
        if not weave:
            self.skipTest("set WEAVE to the path of weave")
        files = {name: str(self.folder / f"{name}.png") for name in ("here", "there")}
        with Client(self.address) as client:
            for prompt in ("a \"cat\" in a Käse", "猫 \\ \t☂"):
                made = client.generate(prompt, width=128, height=64, steps=3, cfg_scale=1.1, seed=2**64 - 2)
                made.save(files["here"])
                self.run_weave(weave, "generate", prompt, "--width=128", "--height=64", "--steps=3", "--cfg=1.1",
                               f"--seed={2**64 - 2}", "--force", "-o", files["there"])
                here, there = (texts(pathlib.Path(file).read_bytes()) for file in files.values())
                self.assertEqual(len(here), 2)
                self.assertEqual(without_model(here), without_model(there))
                self.assertIn("same", self.run_weave(weave, "verify", files["here"]))
        self.assertTrue(there[0][2].endswith(f"Version: Weave {__version__}"), there)

    def run_weave(self, *command: str) -> str:
        done = subprocess.run([*command, "--socket", self.address], capture_output=True, text=True, timeout=PATIENCE_S,
                              check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_asyncio(self) -> None:
        async def several() -> list[Image]:
            client = AsyncClient(self.address, timeout=PATIENCE_S, at_once=3)
            return await asyncio.gather(*(client.generate("a", width=64, height=64, seed=seed) for seed in range(1, 7)))

        self.assertEqual([image.pixels for image in asyncio.run(several())],
                         [gradient(64, 64, "a", seed) for seed in range(1, 7)])
        over_tcp = asyncio.run(AsyncClient(self.tcp, token=TOKEN).generate("a", width=64, height=64, seed=9))
        self.assertEqual(over_tcp.pixels, gradient(64, 64, "a", 9))
        for client, kind, text in ((AsyncClient(self.tcp, token="f" * 64), ConnectionError, "doesn't know the token"),
                                   (AsyncClient(self.tcp, timeout=PATIENCE_S), NoImage, "token file")):
            with self.assertRaisesRegex(kind, text):
                asyncio.run(client.generate("a", width=64, height=64))
        with self.assertRaisesRegex(NoImage, "GPU_ERROR"):
            asyncio.run(AsyncClient(self.address).generate("boom"))
        with self.assertRaises(TimeoutError):
            asyncio.run(AsyncClient(self.address, timeout=0.2).generate("stuck", width=64, height=64))

    def test_a_cancelled_call_stops_the_engine(self) -> None:
        async def cancelled() -> None:
            client = AsyncClient(self.address)
            call = asyncio.ensure_future(client.generate("stuck", width=64, height=64))
            await asyncio.sleep(0.2)
            call.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await call
            # It was stuck for 60 s, unless its engine was ended.
            image = await asyncio.wait_for(client.generate("x", width=64, height=64), PATIENCE_S)
            self.assertIsInstance(image, Image)

        asyncio.run(cancelled())

    def test_the_time_is_up(self) -> None:
        begun = time.monotonic()
        with Client(self.address, timeout=0.2) as client:
            with self.assertRaises(TimeoutError):
                client.generate("stuck", width=64, height=64)
        self.assertLess(time.monotonic() - begun, 5)
        # The engine was ended for nobody waited any more: within 60 s this is drawn by another.
        with Client(self.address, timeout=PATIENCE_S) as client:
            self.assertIsInstance(client.generate("x", width=64, height=64), Image)

    def test_tcp(self) -> None:
        with Client(self.tcp, token=TOKEN) as client:
            for seed in (1, 2):
                self.assertEqual(client.generate("a", width=64, height=64, seed=seed).pixels, gradient(64, 64, "a", seed))
        with Client(self.tcp, token="f" * 64, timeout=PATIENCE_S) as client:
            with self.assertRaisesRegex(ConnectionError, "doesn't know the token"):
                client.generate("a", width=64, height=64)
        with Client(self.tcp, timeout=PATIENCE_S) as client:
            with self.assertRaisesRegex(NoImage, "token file"):
                client.generate("a", width=64, height=64)

    def test_the_command(self) -> None:
        file = self.folder / "image.png"
        done = subprocess.run([sys.executable, "-B", "-W", "error", "-m", "weave_client", self.address, "a", "--seed", "5",
                               "-o", str(file)], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        self.assertEqual((done.returncode, done.stderr.split(",")[0]), (0, "1: 64x64"))
        self.assertIn((64, 64, 3, gradient(64, 64, "a", 5)), [rows(file.read_bytes())])


class Servers(unittest.TestCase):
    """Servers that do what they must not."""

    def against(self, answer: bytes, then: Optional[bytes] = None) -> Union[Image, BaseException]:
        """What generate() makes of `answer`, after which the server closes; with `then`, of that on another connection."""
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(folder + "/sock")
            listener.listen()
            listener.settimeout(5)  # for a client that connects no second time

            def play() -> None:
                for each in (answer, ) if then is None else (answer, then):
                    peer, _ = listener.accept()
                    peer.settimeout(PATIENCE_S)
                    with peer:
                        peer.recv(2**16)
                        peer.sendall(each)
            server = threading.Thread(target=play)
            server.start()
            with Client(folder + "/sock", timeout=PATIENCE_S) as client:
                try:
                    for _ in range(1 if then is None else 2):
                        try:
                            outcome: Union[Image, BaseException] = client.generate("x", width=64, height=64)
                        except (NoImage, Broken, OSError) as fault:
                            outcome = fault
                finally:
                    server.join()
            return outcome

    def test_they_are_told_apart(self) -> None:
        wide = codec.build_response_head(1, 5, 128, 64) + bytes(128 * 64 * 3)
        for answer, kind, text in (
            (b"", ConnectionError, "1 answers early"), (wide[:-1], ConnectionError, "inside a frame"),
            (wide, Broken, "128x64"), (b"HTTP/1.1 400 Bad", Broken, "W1-FRM-006"),
            (codec.build_error(2, 9, "whose?"), Broken, "request_id 2"),
            (codec.build_error(0, 23, "full"), NoImage, "BUSY: full"),
            (struct.pack(">4sHHIIQIIH", b"WEVE", 9, 0xFF, 20, 0, 1, 500, 4242, 2) + b"\x1b!", NoImage, r"error 4242: \x1b!"),
        ):
            outcome = self.against(answer)
            self.assertIsInstance(outcome, kind)
            self.assertIn(text, str(outcome))

    def test_codes_that_are_not_known(self) -> None:
        outcome = self.against(codec.build_error(1, 23, "").replace(struct.pack(">I", 23), struct.pack(">I", 4242)))
        assert isinstance(outcome, NoImage)
        self.assertIsInstance(outcome.code, ErrorCode)
        self.assertEqual((outcome.code, outcome.code.name, outcome.code.value, outcome.code.status),
                         (4242, "UNKNOWN_4242", 4242, 500))
        self.assertNotIn(4242, list(ErrorCode))

    def test_the_next_call_connects_anew(self) -> None:
        image = codec.build_response_head(2, 5, 64, 64) + bytes(64 * 64 * 3)
        for broken in (b"", b"HTTP/1.1 400 Bad", codec.build_error(0, 23, "full")):
            made = self.against(broken, image)
            assert isinstance(made, Image)
            self.assertEqual((made.pixels, made.generation_time_ms, made.prompt), (bytes(64 * 64 * 3), 5, "x"))

    def test_idle_connections(self) -> None:
        """A connection that the server has closed is replaced, and a request is sent again at most once."""
        def image(request_id: int) -> bytes:
            return codec.build_response_head(request_id, 5, 64, 64) + bytes(64 * 64 * 3)

        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(folder + "/sock")
            listener.listen()
            listener.settimeout(PATIENCE_S)
            heard: list[list[bytes]] = []
            answered, gone = threading.Semaphore(0), threading.Semaphore(0)

            def play() -> None:
                # What it answers on each connection; None: it reads a request and closes.
                for answers in ((image(1), ), (image(2), None), (image(3), None), (None, ), (image(5), image(6)[:9], )):
                    peer, _ = listener.accept()
                    peer.settimeout(PATIENCE_S)
                    heard.append([])
                    with peer:
                        for answer in answers:
                            heard[-1].append(peer.recv(2**16))
                            peer.sendall(answer or b"")
                        if len(heard) == 1:
                            answered.acquire()
                            peer.sendall(codec.build_error(0, 24, "ending"))  # which is no answer to what comes next
                    gone.release()
            server = threading.Thread(target=play)
            server.start()
            with Client(folder + "/sock", timeout=PATIENCE_S) as client:
                def ask() -> Image:
                    return client.generate("x", width=64, height=64)

                ask()
                answered.release()
                gone.acquire()  # closed while idle
                ask()
                ask()  # closed as the request comes: the same once more
                self.assertEqual(heard[1][1], heard[2][0])
                with self.assertRaisesRegex(ConnectionError, "1 answers early"):
                    ask()  # closed as it comes, and again
                self.assertEqual(heard[2][1], heard[3][0])
                ask()
                with self.assertRaisesRegex(ConnectionError, "inside a frame"):
                    ask()  # something of an answer had come
            server.join()
            self.assertEqual([len(requests) for requests in heard], [1, 2, 2, 1, 2])


class Impostors(unittest.TestCase):
    """Whoever listens where the server should be."""

    def heard(self, answer: bytes) -> tuple[bytes, BaseException]:
        """What a client with a token says to one who answers this, and what it makes of that."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            heard = bytearray()

            def play() -> None:
                peer, _ = listener.accept()
                peer.settimeout(PATIENCE_S)
                with peer:
                    while len(heard) < 78:
                        heard.extend(peer.recv(78 - len(heard)))
                    peer.sendall(answer.replace(b"NONCE", bytes(heard[13:77])))
                    peer.shutdown(socket.SHUT_WR)
                    with contextlib.suppress(ConnectionResetError):
                        while data := peer.recv(2**16):
                            heard.extend(data)
            server = threading.Thread(target=play)
            server.start()
            try:
                with Client("%s:%d" % listener.getsockname(), token=TOKEN, timeout=PATIENCE_S) as client:
                    client.generate("x", width=64, height=64)
            except (Broken, OSError) as fault:
                return bytes(heard), fault
            finally:
                server.join()
            raise AssertionError("an impostor was believed")

    def test_they_learn_nothing(self) -> None:
        line = b"weave-auth 1 %s %s\n" % (b"0" * 64, b"0" * 64)
        for answer, text in (
            (b"", "hung up on weave-auth 1"), (line, "doesn't know the token"), (b"weave-auth 1 NONCE NONCE\n", "doesn't know"),
            (b"weave-auth 1 NONCE\n", "doesn't answer"), (line[:-1], "doesn't answer"), (line[:-1] + b"\r\n", "doesn't answer"),
            (line + b"x", "doesn't answer"), (line.replace(b"0", b"A"), "doesn't answer"), (b"HTTP/1.1 400 Bad", "doesn't answer"),
            (b"W", "doesn't answer"), (b"x", "doesn't answer"), (b"w" * 2**16, "doesn't answer"),
            (codec.build_error(0, 1, "magic\x1b"), r"doesn't answer weave-auth 1 as weaved does: magic\\x1b"),
            (codec.build_response_head(0, 5, 64, 64) + bytes(64 * 64 * 3), "an image"),
        ):
            heard, fault = self.heard(answer)
            self.assertRegex(str(fault), text)
            self.assertRegex(heard, rb"\Aweave-auth 1 [0-9a-f]{64}\n\Z")

    def test_the_documented_example(self) -> None:
        from weave_client.connection import proof
        token, nonces = bytes(range(32)), bytes(range(32, 96))
        self.assertEqual(proof(token, b"server", nonces).hex(), "4b14416e49e028fc3e056c0177e4acac47f5029a6189bed0538393ccb2d97336")
        self.assertEqual(proof(token, b"client", nonces).hex(), "3e8f96ed3aa2f9c627f301c9e129bb14479fc2a6dd2b1fe06dbefc34e41131e2")


class Images(unittest.TestCase):
    PIXELS = {3: bytes(i % 251 for i in range(128 * 64 * 3)), 4: bytes(i % 251 for i in range(128 * 64 * 4))}

    def test_png(self) -> None:
        for channels, pixels in self.PIXELS.items():
            png = Image(128, 64, channels, pixels, 0).png()
            self.assertEqual(png[:8], b"\x89PNG\r\n\x1a\n")
            chunks, at = {}, 8
            while at < len(png):
                size, kind = struct.unpack_from(">I4s", png, at)
                chunks[kind] = png[at + 8:at + 8 + size]
                self.assertEqual(struct.unpack_from(">I", png, at + 8 + size)[0], zlib.crc32(png[at + 4:at + 8 + size]))
                at += size + 12
            self.assertEqual(list(chunks), [b"IHDR", b"IDAT", b"IEND"], "it isn't known how it was made")
            self.assertEqual(struct.unpack(">IIBBBBB", chunks[b"IHDR"]), (128, 64, 8, {3: 2, 4: 6}[channels], 0, 0, 0))
            rows, stride = zlib.decompress(chunks[b"IDAT"]), 128 * channels + 1
            self.assertEqual(b"".join(rows[y * stride + 1:][:stride - 1] for y in range(64)), pixels)

    def test_what_a_file_says(self) -> None:
        image = Image(128, 64, 3, self.PIXELS[3], 0, "a cat", 28, 7.0, 42)
        settings = "Steps: 28, Sampler: unknown, CFG scale: 7, Seed: 42, Size: 128x64, Version: Weave "
        recipe = ('{"protocol":1,"model_id":0,"prompt":"a cat","width":128,"height":64,"steps":28,"cfg_scale":7.0,"seed":42,'
                  '"provider":"local"}')
        self.assertEqual(texts(image.png()), [("tEXt", "parameters", f"a cat\n{settings}{__version__}"), ("tEXt", "Weave", recipe)])

    def test_save(self) -> None:
        image = Image(64, 64, 3, bytes(64 * 64 * 3), 0)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder)
            (path / "old.png").write_text("old")
            (path / "old.png").chmod(0o600)
            (path / "link.png").symlink_to("old.png")
            image.save(path / "link.png")
            image.save(folder + "/new.png")
            self.assertEqual([(path / name).read_bytes() for name in ("old.png", "new.png")], [image.png()] * 2)
            self.assertTrue((path / "link.png").is_symlink())
            self.assertEqual((path / "old.png").stat().st_mode & 0o777, 0o600)
            (path / "folder.png").mkdir()
            for name, text in (("folder.png", "no regular file"), ("none/cat.png", f"No such file.*{folder}/none/cat.png")):
                with self.assertRaisesRegex(OSError, text):
                    image.save(path / name)
            with mock.patch("os.replace", side_effect=OSError(28, "No space left")), self.assertRaises(OSError):
                image.save(path / "new.png")
            self.assertEqual(sorted(os.listdir(path)), ["folder.png", "link.png", "new.png", "old.png"])
        with self.assertRaises(OSError):
            image.save("/dev/null")

    def test_numpy(self) -> None:
        try:
            import numpy
        except ImportError:
            self.skipTest("NumPy is not installed")
        for channels, pixels in self.PIXELS.items():
            array = Image(128, 64, channels, pixels, 0).numpy()
            self.assertEqual((array.shape, array.dtype), ((64, 128, channels), numpy.uint8))
            self.assertEqual(array[1, 2].tolist(), list(pixels[(128 + 2) * channels:][:channels]))

    def test_pil(self) -> None:
        try:
            import PIL.Image
        except ImportError:
            self.skipTest("Pillow is not installed")
        for channels, pixels in self.PIXELS.items():
            image = Image(128, 64, channels, pixels, 0)
            made = image.pil()
            self.assertEqual((made.size, made.mode, made.tobytes()), ((128, 64), "RGBA"[:channels], pixels))
            with tempfile.TemporaryDirectory() as folder:
                image.save(folder + "/image.png")
                with PIL.Image.open(folder + "/image.png") as read:
                    self.assertEqual((read.size, read.mode, read.tobytes()), ((128, 64), "RGBA"[:channels], pixels))


class Settings(unittest.TestCase):
    def test_where_it_looks(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            there = folder + "/system.sock"
            pathlib.Path(there).touch()
            pathlib.Path(folder, "weave").mkdir()
            pathlib.Path(folder, "weave/weave.sock").touch()
            none = "/nowhere"
            for environment, system, expected in (
                ({"WEAVE_SOCKET": "/a"}, there, "/a"), ({"XDG_RUNTIME_DIR": "/r"}, none, "/r/weave/weave.sock"),
                ({"WEAVE_SOCKET": "tcp://a:1", "XDG_RUNTIME_DIR": "/r"}, none, ("a", 1)),
                ({"HOME": "/h"}, none, "/h/.weave/weave.sock"),
                ({"WEAVE_SOCKET": " ", "XDG_RUNTIME_DIR": "relative", "HOME": "/h"}, none, "/h/.weave/weave.sock"),
                ({"WEAVE_SOCKET": " /a\n"}, none, "/a"), ({"HOME": "/"}, there, there), ({}, there, there),
                # If nothing is there, the one for all users.
                ({"HOME": "/h"}, there, there), ({"XDG_RUNTIME_DIR": "/r"}, there, there),
                ({"XDG_RUNTIME_DIR": folder}, there, folder + "/weave/weave.sock"),
            ):
                with mock.patch.dict(os.environ, environment, clear=True), mock.patch.object(address, "SYSTEM_SOCKET", system):
                    self.assertEqual(Client().address, expected)
        for useless in ({"HOME": "relative"}, {"HOME": "/"}, {}):
            with mock.patch.dict(os.environ, useless, clear=True), mock.patch.object(address, "SYSTEM_SOCKET", none):
                with self.assertRaisesRegex(ValueError, "WEAVE_SOCKET, XDG_RUNTIME_DIR and HOME say nothing"):
                    default_address()

    def test_bad_ones(self) -> None:
        for bad in ({"token": "short"}, {"token": "g" * 64}, {"token": TOKEN + "\n"}, {"timeout": 0}, {"timeout": float("nan")}):
            with self.assertRaises(ValueError):
                Client("/a", **bad)


if __name__ == "__main__":
    unittest.main()
