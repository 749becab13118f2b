"""Tests of client.py: WEAVED=path/to/weaved python3 test_client.py

Against a real weaved with its test pictures, and against servers that do what they must not.
"""
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

import client

HERE = pathlib.Path(__file__).resolve().parent
SPEC = (HERE.parent / "weave-v1.md").read_text(encoding="utf-8")
FRAME = client.build_request(1, "a cat", 64, 64, 1, 0.0, 1)
PIXELS = bytes(i % 251 for i in range(64 * 64 * 3))


def frame(msg_type, payload, version=1, magic=b"WEVE", payload_len=None, reserved=0):
    length = len(payload) if payload_len is None else payload_len
    return struct.pack(">4sHHII", magic, version, msg_type, length, reserved) + payload


def image(request_id=1, status=200, width=64, height=64, channels=3, length=len(PIXELS), data=PIXELS, **header):
    fields = struct.pack(">Q6I", request_id, status, 5, width, height, channels, length)
    return frame(2, fields + data, **header)


def error(request_id=1, status=400, code=6, message=b"steps", length=None, **header):
    fields = struct.pack(">QIIH", request_id, status, code, len(message) if length is None else length)
    return frame(0xFF, fields + message, **header)


def spec_example(name):
    block = re.search("```hex %s\n(.*?)```" % name, SPEC, re.DOTALL).group(1)
    return bytes.fromhex("".join(line.split("#")[0] for line in block.splitlines()))


def answers(stream, requests=None, keep_open=False, step=None):
    """What client.ask makes of a server that sends `stream`, `step` bytes at a time, and closes unless told to stay."""
    ours, theirs = socket.socketpair()

    def send():
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client may give up before the end
            for at in range(0, len(stream), step or len(stream) or 1):
                theirs.sendall(stream[at:at + (step or len(stream))])
            if not keep_open:
                theirs.shutdown(socket.SHUT_WR)
    server = threading.Thread(target=send)
    with theirs:
        with ours:
            ours.settimeout(20)
            server.start()
            try:
                return list(client.ask(ours, requests or {1: FRAME}))
            finally:
                ours.shutdown(socket.SHUT_RDWR)
                server.join()


def run_client(*arguments):
    command = [sys.executable, HERE / "client.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


class Requests(unittest.TestCase):
    def test_the_example_of_the_spec(self):
        built = client.build_request(1, "a cat in space", 512, 512, 28, 7.0, 0)
        self.assertEqual(built, spec_example("request"))

    def test_bounds(self):
        good = dict(request_id=1, prompt="x", width=64, height=64, steps=1, cfg_scale=0.0, seed=0)
        for field, fine, wrong in [
            ("width", (64, 2048), (0, 63, 65, 100, 2112, -64)),
            ("height", (64, 2048), (0, 63, 65, 100, 2112, -64)),
            ("steps", (1, 100), (0, 101, -1)),
            ("cfg_scale", (0.0, 20.0), (-0.1, 20.1, float("nan"), float("inf"))),
            ("seed", (0, 2**64 - 1), (-1, 2**64)),
            ("prompt", ("x", "x" * 2048, "\u20ac" * 682), ("", "x" * 2049, "\u20ac" * 683, "a\0b", "\ud800")),
        ]:
            for value in fine:
                client.build_request(**{**good, field: value})
            for value in wrong:
                with self.subTest(field=field, value=value), self.assertRaises(ValueError):
                    client.build_request(**{**good, field: value})

    def test_names_are_those_of_the_spec(self):
        rows = re.findall(r"^\| (\d+) \| ([A-Z_]+) \| (?:400|500) \|", SPEC, re.MULTILINE)
        self.assertEqual(client.ERROR_NAMES, {int(code): name for code, name in rows})


class Answers(unittest.TestCase):
    def test_image(self):
        self.assertEqual(answers(image()), [client.Image(1, 5, 64, 64, 3, PIXELS)])

    def test_error_example_of_the_spec(self):
        self.assertEqual(answers(spec_example("error")), [client.Error(1, 400, 3, "unsupported model ID")])

    def test_what_must_be_accepted(self):
        for name, stream in [
            ("bytes after the image", image(data=PIXELS + b"later version")),
            ("reserved", image(reserved=0xFFFFFFFF)),
            ("RGBA", image(channels=4, length=64 * 64 * 4, data=bytes(64 * 64 * 4))),
            ("bytes after the message", error()[:8] + struct.pack(">I", 30) + error()[12:] + b"fields!"),
            ("unknown code", error(code=77)),
            ("unknown code 500", error(status=500, code=4294967295)),
            ("empty message", error(message=b"")),
            ("longest message", error(message=b"x" * 65535)),
            ("another version", error(code=2, version=2)),
            ("for the whole connection", error(request_id=0, code=23, status=500)),
        ]:
            with self.subTest(name):
                self.assertEqual(len(answers(stream)), 1)

    def test_bytes_after_the_fields_are_no_part_of_them(self):
        self.assertEqual(answers(image(data=PIXELS + b"more"))[0].image_data, PIXELS)
        self.assertEqual(answers(error(message=b"steps and more", length=5))[0].error_msg, "steps")

    def test_what_must_end_the_connection(self):
        for name, stream, fault in [
            ("nothing", b"", "closed"),
            ("magic", image(magic=b"WEVF"), "begins with 57 45 56 46"),
            ("magic of an error", error(magic=b"\0\0\0\0"), "begins with 00 00 00 00"),
            ("magic of a second frame", error(request_id=2) + error(magic=b"EVEW"), "begins with 45 56 45 57"),
            ("request", frame(1, bytes(63)), "neither"),
            ("unknown type", frame(3, bytes(63)), "neither"),
            ("response in another version", image(version=2), "neither"),
            ("empty response", frame(2, b""), "response of 0 bytes"),
            ("short response", frame(2, bytes(31)), "response of 31 bytes"),
            ("status 404", image(status=404), "status 404"),
            ("status 0", image(status=0), "status 0"),
            ("another size than asked for", image(width=128, height=64, length=24576, data=bytes(24576)), "128 x 64, not 64 x 64"),
            ("width 0", image(width=0, length=0, data=b""), "0 x 64 x 3"),
            ("width 65", image(width=65, length=12480, data=bytes(12480)), "65 x 64 x 3"),
            ("height 2112", image(height=2112, length=405504, data=bytes(405504)), "64 x 2112 x 3"),
            ("two channels", image(channels=2, length=8192, data=bytes(8192)), "64 x 64 x 2"),
            ("five channels", image(channels=5, length=20480, data=bytes(20480)), "64 x 64 x 5"),
            ("sides that overflow", image(width=2**31, height=2, channels=4, length=0), "2147483648 x 2 x 4"),
            ("image_data_len too small", image(length=len(PIXELS) - 1), "image_data_len is 12287"),
            ("image_data_len too large", image(length=len(PIXELS) + 1, data=PIXELS + b"x"), "image_data_len is 12289"),
            ("payload without its last pixel", image(data=PIXELS[:-1]), "12319, the image ends at 12320"),
            ("empty error", frame(0xFF, b""), "error of 0 bytes"),
            ("short error", frame(0xFF, bytes(17)), "error of 17 bytes"),
            ("error of status 404", error(status=404), "status 404"),
            ("error of status 200", error(status=200), "status 200"),
            ("message longer than the payload", error(length=6), "23, error_msg ends at 24"),
            ("an answer to nobody", image(request_id=3), "nobody"),
            ("an error for nobody", error(request_id=3), "nobody"),
            ("an image with request_id 0", image(request_id=0), "nobody"),
            ("the same answer twice", error() + error(), "nobody"),
        ]:
            with self.subTest(name), self.assertRaisesRegex(client.Broken, fault):
                answers(stream, {1: FRAME, 2: FRAME})

    def test_gives_up_at_once_where_no_payload_could_help(self):
        for stream in image(payload_len=16_777_249, data=b""), image(magic=b"HTTP", data=b""):
            with self.assertRaises(client.Broken):
                answers(stream, keep_open=True)

    def test_every_cut_of_an_error(self):
        whole = error()
        for cut in range(len(whole)):
            with self.subTest(cut), self.assertRaises(client.Broken):
                answers(whole[:cut])

    def test_cuts_of_a_response(self):
        whole = image()
        for cut in (1, 15, 16, 47, 48, 49, len(whole) - 1):
            with self.subTest(cut), self.assertRaises(client.Broken):
                answers(whole[:cut])

    def test_byte_by_byte(self):
        got = answers(error(request_id=2) + image(), {1: FRAME, 2: FRAME}, step=1)
        self.assertEqual([answer.request_id for answer in got], [2, 1])

    def test_the_largest_image(self):
        data = bytes(2048 * 2048 * 4)
        asked = {1: client.build_request(1, "a cat", 2048, 2048, 1, 0.0, 1)}
        got = answers(image(width=2048, height=2048, channels=4, length=len(data), data=data), asked)
        self.assertEqual(len(got[0].image_data), 16_777_216)

    def test_answers_in_any_order(self):
        got = answers(error(request_id=3) + image(request_id=1) + error(request_id=2), dict.fromkeys((1, 2, 3), FRAME))
        self.assertEqual([answer.request_id for answer in got], [3, 1, 2])

    def test_error_with_id_0_ends_the_wait_for_all(self):
        got = answers(error(request_id=0, code=23, status=500), {1: FRAME, 2: FRAME}, keep_open=True)
        self.assertEqual([answer.error_code for answer in got], [23])

    def test_a_server_that_answers_and_closes_before_it_reads(self):
        ours, theirs = socket.socketpair()
        with ours:
            theirs.sendall(error(request_id=0, code=23, status=500))
            theirs.close()
            self.assertEqual(next(client.ask(ours, {1: FRAME})).error_code, 23)

    def test_messages_are_fit_for_a_terminal(self):
        for message, shown in [
            (b"width \xff\xfe", "width \ufffd\ufffd"),
            (b"\x1b[2Jgone\r\n\0\x7f", "\\x1b[2Jgone\\r\\n\\x00\\x7f"),
            ("\u202eright to left \x9b".encode(), "\\u202eright to left \\x9b"),
            ("64\u00d764 \u20ac \U0001f408".encode(), "64\u00d764 \u20ac \U0001f408"),
            (b"cut \xe2\x82", "cut \ufffd"),
        ]:
            with self.subTest(message):
                self.assertEqual(answers(error(message=message))[0].error_msg, shown)


class FakeServer(threading.Thread):
    """Takes one connection, reads the request, sends `stream` and stays until the client closes."""

    def __init__(self, listener, stream):
        super().__init__(daemon=True)
        self.listener, self.stream, self.client_closed = listener, stream, False

    def run(self):
        self.listener.settimeout(20)
        peer, _ = self.listener.accept()
        with peer:
            peer.settimeout(20)
            peer.recv(len(FRAME), socket.MSG_WAITALL)
            peer.sendall(self.stream)
            try:
                self.client_closed = peer.recv(1) == b""
            except ConnectionResetError:  # closed too, with bytes of ours unread
                self.client_closed = True


class CommandLine(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.png = pathlib.Path(self.folder.name, "out.png")

    def run_against(self, stream, tcp=False):
        with socket.socket(socket.AF_INET if tcp else socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(("127.0.0.1", 0) if tcp else self.folder.name + "/sock")
            listener.listen()
            address = "%s:%d" % listener.getsockname() if tcp else listener.getsockname()
            server = FakeServer(listener, stream)
            server.start()
            done = run_client(address, "a cat", "--width=64", "--height=64", "--output", self.png)
            server.join()
        self.assertTrue(server.client_closed)
        self.assertNotIn("Traceback", done.stderr)
        return done

    def test_image_over_tcp_becomes_a_png(self):
        for channels, colour in ((3, 2), (4, 6)):
            data = bytes(i % 253 for i in range(64 * 64 * channels))
            done = self.run_against(image(channels=channels, length=len(data), data=data), tcp=True)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            self.assertEqual(read_png(self.png.read_bytes()), (64, 64, colour, data))

    def test_error(self):
        done = self.run_against(error(code=5, message=b"width 65\x1b"))
        self.assertEqual((done.returncode, done.stderr), (1, "error 5 INVALID_DIMENSIONS: width 65\\x1b\n"))
        self.assertFalse(self.png.exists())

    def test_unknown_error(self):
        done = self.run_against(error(status=500, code=55, message=b"new"))
        self.assertEqual((done.returncode, done.stderr), (1, "error 55 unknown: new\n"))

    def test_broken_server(self):
        for stream in (image(magic=b"WEAV"), image(payload_len=2**32 - 1), error(status=404)):
            pathlib.Path(self.folder.name, "sock").unlink(missing_ok=True)
            done = self.run_against(stream)
            self.assertEqual(done.returncode, 3, done.stderr)
            self.assertFalse(self.png.exists())

    def test_nobody_there(self):
        done = run_client(self.folder.name + "/nothing", "a cat")
        self.assertEqual(done.returncode, 3)
        self.assertNotIn("Traceback", done.stderr)

    def test_wrong_usage(self):
        for arguments in (["--width=65"], ["--seed=-1"], ["--steps=many"], ["--cfg_scale=nan"]):
            done = run_client(self.folder.name + "/nothing", "a cat", *arguments)
            self.assertEqual(done.returncode, 2)
            self.assertNotIn("Traceback", done.stderr)


def read_png(data):
    """Width, height, colour type and pixels of a PNG with 8 bits a channel and no filters."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8:at + 8 + size]
        assert struct.unpack_from(">I", data, at + 8 + size)[0] == zlib.crc32(kind + body)
        chunks[kind], at = body, at + 12 + size
    width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert depth == 8 and rest == [0, 0, 0] and chunks[b"IEND"] == b""
    rows, stride = zlib.decompress(chunks[b"IDAT"]), 1 + width * {2: 3, 6: 4}[colour]
    assert len(rows) == height * stride and not any(rows[::stride])
    return width, height, colour, b"".join(rows[y * stride + 1:(y + 1) * stride] for y in range(height))


def gradient(width, height, prompt, seed):
    """The picture that `weaved --engine pattern --pattern gradient` draws."""
    number = 0xCBF29CE484222325
    for byte in struct.pack("<Q", seed) + prompt.encode():
        number = (number ^ byte) * 0x100000001B3 % 2**64
    red, green, blue = struct.pack("<Q", number)[:3]
    return b"".join(bytes(((x * 256 // width + red) % 256, (y * 256 // height + green) % 256, blue))
                    for y in range(height) for x in range(width))


class RealServer(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        weaved = os.environ.get("WEAVED")
        if not weaved:
            raise AssertionError("set WEAVED to the path of weaved; run the rest alone by naming its classes")
        folder = tempfile.TemporaryDirectory()  # of mode 0700, which weaved wants
        cls.addClassCleanup(folder.cleanup)
        cls.address = folder.name + "/weave.sock"
        command = [weaved, "--no-config", "--engine", "pattern", "--pattern", "gradient", "--log", "error",
                   "--faults", "fail@boom,slow=0.01", "--socket", cls.address]
        daemon = subprocess.Popen(command)
        cls.addClassCleanup(daemon.wait)
        cls.addClassCleanup(daemon.terminate)
        until = time.monotonic() + 30
        while not os.path.exists(cls.address):
            if daemon.poll() is not None or time.monotonic() > until:
                raise AssertionError("weaved did not start")
            time.sleep(0.02)

    def ask(self, requests):
        with client.connect(self.address) as sock:
            sock.settimeout(30)
            return {answer.request_id: answer for answer in client.ask(sock, requests)}

    def test_pixels(self):
        answer = self.ask({5: client.build_request(5, "a cat", 128, 64, 3, 7.0, 42)})[5]
        self.assertEqual((answer.width, answer.height, answer.channels), (128, 64, 3))
        self.assertEqual(answer.image_data, gradient(128, 64, "a cat", 42))
        self.assertGreaterEqual(answer.generation_time_ms, 30)

    def test_all_64_bits_of_id_and_seed(self):
        seed = 2**64 - 2
        answer = self.ask({2**64 - 1: client.build_request(2**64 - 1, "\u20ac", 64, 64, 1, 0.0, seed)})[2**64 - 1]
        self.assertEqual(answer.image_data, gradient(64, 64, "\u20ac", seed))

    def test_errors(self):
        def with_bytes(at, new):
            return FRAME[:at] + new + FRAME[at + len(new):]
        for code, status, request in [
            (2, 400, with_bytes(4, b"\0\7")),
            (22, 400, with_bytes(6, b"\0\7")),
            (3, 400, with_bytes(24, b"\0\0\0\1")),
            (5, 400, with_bytes(28, b"\0\0\0\x41")),
            (6, 400, with_bytes(36, b"\0\0\0\x65")),
            (7, 400, with_bytes(40, b"\x7f\xc0\0\0")),
            (4, 400, with_bytes(76, b"a\xffcat")),
            (9, 500, client.build_request(1, "boom", 64, 64, 1, 0.0, 1)),
        ]:
            with self.subTest(client.ERROR_NAMES[code]):
                answer = self.ask({1: request})[1]
                self.assertEqual((answer.error_code, answer.status), (code, status))
                self.assertTrue(answer.error_msg)

    def test_errors_that_end_the_connection(self):
        for code, request in ((1, b"WEVF" + FRAME[4:]), (21, FRAME[:8] + b"\xff\xff\xff\xff" + FRAME[12:])):
            answer = self.ask({1: request})[0]
            self.assertEqual((answer.error_code, answer.request_id), (code, 0))

    def test_pipelining(self):
        bad = client.build_request(8, "bad", 64, 64, 1, 0.0, 2)
        got = self.ask({
            7: client.build_request(7, "first", 64, 128, 9, 7.0, 1),
            8: bad[:36] + b"\0\0\0\0" + bad[40:],
            9: client.build_request(9, "second", 192, 64, 1, 7.0, 3),
        })
        self.assertEqual(got[7].image_data, gradient(64, 128, "first", 1))
        self.assertEqual(got[8].error_code, 6)
        self.assertEqual(got[9].image_data, gradient(192, 64, "second", 3))

    def test_command_line(self):
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder, "out.png")
            done = run_client(self.address, "a dog", "--output", out, "--width=64", "--height=64", "--seed=9",
                              "--steps=1")
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            self.assertEqual(read_png(out.read_bytes()), (64, 64, 2, gradient(64, 64, "a dog", 9)))
        done = run_client(self.address, "boom", "--steps=1")
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"^error 9 GPU_ERROR: .*\n$")


if __name__ == "__main__":
    unittest.main()
