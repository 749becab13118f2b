"""What somebody who means harm can send to `weave gateway`, as its client or as its cloud: see ./run."""
import base64
import contextlib
import http.client
import json
import os
import pathlib
import re
import select
import selectors
import socket
import struct
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.parse
import zlib

from harness import CLEAN, KEY, PATIENCE, WEAVE, Cloud, FakeDaemon, Gateway, eventually

FOLDER = tempfile.TemporaryDirectory(prefix="weave-gateway-")
NOWHERE = FOLDER.name + "/nobody/weave.sock"
TOKEN = "0123456789abcdef" * 4
BEARER = {"Authorization": "Bearer " + TOKEN}
# Who asks must not wait for longer than this, whatever others do.
SOON = 5


def setUpModule():
    global TOKEN_FILE
    path = pathlib.Path(FOLDER.name) / "token"
    path.touch(0o600)
    path.write_text(TOKEN)
    TOKEN_FILE = "--token-file=%s" % path


def tearDownModule():
    FOLDER.cleanup()


def drawn(ask, pixels=None, width=64, height=64):
    """A daemon's frame with the image that `ask` wants."""
    pixels = bytes(3 * width * height) if pixels is None else pixels
    head = struct.pack(">6I", 200, 1, width, height, 3, len(pixels))
    return b"WEVE\0\1\0\2" + struct.pack(">II", 32 + len(pixels), 0) + ask[16:24] + head + pixels


def ask(port, method="GET", path="/v1/models", body=None, headers={}, source=None, timeout=SOON):
    connection = http.client.HTTPConnection(
        "127.0.0.1", port, timeout=timeout, source_address=source and (source, 0))
    with contextlib.closing(connection):
        data = None if body is None else json.dumps(body)
        kind = {} if body is None else {"Content-Type": "application/json"}
        connection.request(method, path, data, {**kind, **headers})
        answer = connection.getresponse()
        return answer.status, answer.read()


def draw(port, source=None, timeout=PATIENCE, **body):
    body = {"prompt": "a cat", "size": "64x64", **body}
    return ask(port, "POST", "/v1/images/generations", body, BEARER, source, timeout)


class Crowd:
    """Many connections that have sent `data`. Who got an answer sends it again a second later, who was closed comes back."""

    def __init__(self, port, count, data, source="127.0.0.1"):
        self.port, self.data, self.source = port, data, source
        self.selector = selectors.DefaultSelector()
        self.over = threading.Event()
        self.sent = 0
        self.due = [(0, None)] * count
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        eventually("all have sent", lambda: self.sent >= count)

    def run(self):
        while not self.over.is_set():
            now = time.monotonic()
            later = [(at, sock) for at, sock in self.due if at > now]
            due = [sock for at, sock in self.due if at <= now]
            self.due = later
            for sock in due:
                if sock is None:
                    sock = socket.socket()
                    sock.setblocking(False)
                    sock.bind((self.source, 0))
                    sock.connect_ex(("127.0.0.1", self.port))
                    self.selector.register(sock, selectors.EVENT_WRITE)
                else:
                    self.selector.modify(sock, selectors.EVENT_WRITE)
            for key, events in self.selector.select(0.05):
                self.step(key.fileobj, events)
        for key in list(self.selector.get_map().values()):
            key.fileobj.close()
        self.selector.close()

    def step(self, sock, events):
        again = time.monotonic() + 1
        try:
            if events & selectors.EVENT_WRITE:
                sock.send(self.data)
                self.sent += 1
                self.selector.modify(sock, selectors.EVENT_READ)
            elif sock.recv(65536):
                self.due.append((again, sock))
            else:
                raise ConnectionResetError
        except BlockingIOError:
            pass
        except OSError:
            self.selector.unregister(sock)
            sock.close()
            self.due = [(at, other) for at, other in self.due if other is not sock] + [(again, None)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


HEALTH = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
HALF = b"GET /healthz HTTP/1.1\r\nHost: 127"
HALF_BODY = (b"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
             b"Content-Length: 100\r\n\r\n{")


class Connections(unittest.TestCase):
    """Who has shown no token keeps nobody out who has."""

    def test_many_who_have_no_token(self):
        with Gateway(FOLDER.name, NOWHERE, TOKEN_FILE) as gateway:
            kept = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=SOON)
            kept.request("GET", "/v1/models", headers=BEARER)
            self.assertEqual(kept.getresponse().read()[:1], b"{")
            sock = kept.sock
            for data in [HEALTH, HALF, HALF_BODY]:
                with self.subTest(data), Crowd(gateway.port, 300, data):
                    for _ in range(3):
                        self.assertEqual(ask(gateway.port, headers=BEARER)[0], 200)
                        self.assertEqual(ask(gateway.port, path="/healthz"), (200, b"ok\n"))
                    kept.request("GET", "/v1/models", headers=BEARER)
                    self.assertEqual(kept.getresponse().read()[:1], b"{")
                    self.assertIs(kept.sock, sock, "who has shown the token keeps its connection")
            kept.close()

    def test_many_on_this_machine_where_there_is_no_token(self):
        with Gateway(FOLDER.name, NOWHERE) as gateway:
            for data in [HEALTH, HALF, HALF_BODY]:
                with self.subTest(data), Crowd(gateway.port, 300, data):
                    for _ in range(3):
                        self.assertEqual(ask(gateway.port)[0], 200)

    def test_many_who_have_the_token(self):
        with Gateway(FOLDER.name, NOWHERE, TOKEN_FILE) as gateway, contextlib.ExitStack() as stack:
            connect = lambda: socket.create_connection(("127.0.0.1", gateway.port), PATIENCE)
            socks = [stack.enter_context(connect()) for _ in range(200)]
            # All are strangers by now.
            self.assertEqual(ask(gateway.port, path="/healthz")[0], 200)
            for _ in range(2):
                for sock in socks:
                    sock.sendall(b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %s\r\n\r\n" % TOKEN.encode())
                for sock in socks:
                    self.assertEqual(sock.recv(65536)[:12], b"HTTP/1.1 200")

    def test_what_takes_no_token_keeps_no_connection(self):
        with Gateway(FOLDER.name, NOWHERE, TOKEN_FILE) as gateway:
            for path, headers, closes in [
                ("/healthz", {}, True), ("/", {}, True), ("/page.js", {}, True), ("/v1/models", {}, True),
                ("/v1/models", {"Authorization": "Bearer " + TOKEN[:-1]}, True), ("/v1/models", BEARER, False),
            ]:
                self.assertEqual(gateway.ask("GET", path, headers=headers)[1]["Connection"] == "close", closes, path)
        with Gateway(FOLDER.name, NOWHERE) as gateway:
            self.assertNotEqual(gateway.ask("GET", "/healthz")[1]["Connection"], "close")

    def test_half_a_head_is_not_waited_for_long(self):
        with Gateway(FOLDER.name, NOWHERE) as gateway, socket.create_connection(("127.0.0.1", gateway.port), PATIENCE) as sock:
            began = time.monotonic()
            sock.sendall(HALF)
            self.assertEqual(sock.recv(1), b"")
            self.assertLess(time.monotonic() - began, 8)


class Places(unittest.TestCase):
    """What is asked for and what was made is bounded, for each address and for all."""

    def crowd(self, port, count, **body):
        """How many of so many requests are refused while the others are under way."""
        refused, status = [], lambda: refused.append(draw(port, **body)[0])

        def quiet():
            with contextlib.suppress(OSError, http.client.HTTPException):
                status()

        threads = [threading.Thread(target=quiet, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        return refused

    def test_one_address_leaves_places_to_others(self):
        answer = lambda ask: None if b"stuck" in ask else drawn(ask)
        with FakeDaemon(FOLDER.name, answer) as path, Gateway(FOLDER.name, path, TOKEN_FILE, listen="0.0.0.0:0") as gateway:
            refused = self.crowd(gateway.port, 40, prompt="stuck", source="127.0.0.2")
            eventually("so many are refused", lambda: len(refused) >= 24)
            self.assertEqual(set(refused), {429})
            self.assertEqual(draw(gateway.port, timeout=SOON)[0], 200)
            status, text = draw(gateway.port, source="127.0.0.2", timeout=SOON)
            self.assertEqual((status, json.loads(text)["error"]["code"]), (429, "busy"))
            self.assertIn("your address", json.loads(text)["error"]["message"])

    def test_large_images_take_no_more_memory_than_there_is(self):
        answer = lambda ask: None if b"stuck" in ask else drawn(ask)
        with FakeDaemon(FOLDER.name, answer) as path, Gateway(FOLDER.name, path) as gateway:
            refused = self.crowd(gateway.port, 24, prompt="stuck", size="2048x2048", n=4)
            eventually("so many are refused", lambda: len(refused) >= 14)
            self.assertEqual(set(refused), {429})
            self.assertEqual(draw(gateway.port, timeout=SOON)[0], 200)

    def test_who_never_reads(self):
        width, height = 1024, 1024
        noise = os.urandom(3 * width * height)
        answer = lambda ask: drawn(ask) if b"small" in ask else drawn(ask, noise, width, height)
        large = json.dumps({"prompt": "x", "size": "%dx%d" % (width, height), "n": 4}).encode()
        with FakeDaemon(FOLDER.name, answer) as path, Gateway(FOLDER.name, path, "--client-timeout=2") as gateway, \
                contextlib.ExitStack() as stack:
            poll = select.poll()
            small = json.dumps({"prompt": "small", "size": "64x64"}).encode()
            for request in [large] * 3 + [small] * 40:
                sock = stack.enter_context(socket.socket())
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.connect(("127.0.0.1", gateway.port))
                sock.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                             b"Content-Length: %d\r\n\r\n%s" % (len(request), request))
                if request == large:
                    poll.register(sock, select.POLLHUP)
                else:
                    # It is made, and then it stays where it is.
                    select.select([sock], [], [], PATIENCE)
            self.assertEqual(draw(gateway.port, prompt="small")[0], 200)
            gone = set()
            until = time.monotonic() + PATIENCE
            while len(gone) < 3 and time.monotonic() < until:
                for fd, _ in poll.poll(1000):
                    gone.add(fd)
                    poll.unregister(fd)
            self.assertEqual(len(gone), 3, "they were cut off")
            self.assertEqual(draw(gateway.port, prompt="small")[0], 200)

    def test_json_of_requests(self):
        with Gateway(FOLDER.name, NOWHERE) as gateway:
            before = peak(gateway)
            for body, code in [
                (b"[" * 65536, "invalid_json"),
                (b'{"prompt":' * 6000, "invalid_json"),
                (b'{"a":' + b"[" * 30000 + b"]" * 30000 + b"}", "invalid_json"),
                (b'{"a":[' + b"{}," * 20000 + b"{}]}", "missing_required_parameter"),
                (b"{" + b",".join(b'"%x":0' % n for n in range(6000)) + b"}", "missing_required_parameter"),
                (b'{"prompt":"x",' + b",".join(b'"%x":0' % n for n in range(6000)) + b"}", "unknown_parameter"),
                (b'{"prompt":"x","seed":' + b"9" * 60000 + b"}", "invalid_json"),
                (b'{"prompt":"x","cfg":1e' + b"9" * 60000 + b"}", "invalid_json"),
            ]:
                status, _, text = gateway.ask("POST", "/v1/images/generations", body)
                error = json.loads(text)["error"]
                self.assertEqual((status, error["code"]), (400, code), body[:40])
                self.assertLess(len(text), 600)
            self.assertLess(peak(gateway) - before, 8 << 20)


class Loopback(unittest.TestCase):
    """`localhost` may mean 127.0.0.1 or ::1: both are this gateway's."""

    def setUp(self):
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            self.skipTest("no IPv6 here")

    def test_both_are_served(self):
        for listen in ["127.0.0.1:0", "[::1]:0"]:
            with Gateway(FOLDER.name, NOWHERE, listen=listen) as gateway:
                for host in ["127.0.0.1", "::1", "localhost"]:
                    connection = http.client.HTTPConnection(host, gateway.port, timeout=SOON)
                    connection.request("GET", "/healthz")
                    self.assertEqual(connection.getresponse().read(), b"ok\n", (listen, host))
                    connection.close()
        for listen in ["0.0.0.0:0", "[::]:0"]:
            with Gateway(FOLDER.name, NOWHERE, TOKEN_FILE, listen=listen) as gateway:
                for family, host in [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]:
                    with self.assertRaises(OSError, msg=(listen, host)):
                        socket.create_server((host, gateway.port), family=family)

    def test_it_does_not_start_beside_somebody_else(self):
        for family, other, listen in [(socket.AF_INET6, "::1", "127.0.0.1"), (socket.AF_INET, "127.0.0.1", "[::1]"),
                                      (socket.AF_INET6, "::1", "0.0.0.0")]:
            with socket.create_server((other, 0), family=family) as taken:
                port = taken.getsockname()[1]
                run = subprocess.run([WEAVE, "gateway", "--socket=x", "--listen=%s:%d" % (listen, port), TOKEN_FILE], env=CLEAN,
                                     capture_output=True, text=True, timeout=PATIENCE)
                self.assertEqual((run.returncode, run.stdout), (1, ""), run.stderr)
                where = "[%s]" % other if ":" in other else other
                self.assertIn("can't listen at %s:%d" % (where, port), run.stderr)
                self.assertIn("localhost", run.stderr)
                self.assertIn("--listen", run.stderr)


def peak(program):
    """The most memory that a process has had, in bytes."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path("/proc/%d/status" % program.process.pid).read_text())[1])


def packed_zeros(megabytes):
    packer, block = zlib.compressobj(9), bytes(1 << 20)
    return b"".join([*(packer.compress(block) for _ in range(megabytes)), packer.flush()])


def png(*chunks, width=64, height=64, bits=8, color=2):
    head = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in [(b"IHDR", head), *chunks, (b"IEND", b"")])


class Bombs(unittest.TestCase):
    """What a cloud answers may take no more memory than the image that was asked for."""

    @classmethod
    def setUpClass(cls):
        cls.zeros = packed_zeros(512)

    def drawn(self, answer, *, limit, headers={}, **body):
        """Status and JSON of a request that the cloud answers like that; the gateway's memory grows by less than `limit`."""
        with Cloud() as cloud:
            cloud.answers(200, answer, headers)
            flags = ["--providers=openai", "--openai-url=%s/v1" % cloud.url, "--cloud-timeout=60"]
            with Gateway(FOLDER.name, NOWHERE, *flags, env={"OPENAI_API_KEY": KEY}) as gateway:
                before = peak(gateway)
                status, _, answer = gateway.draw(**{"steps": None, **body})
                self.assertLess((peak(gateway) - before) >> 20, limit >> 20, answer if status != 200 else "")
                return status, answer

    def image(self, data):
        return {"data": [{"b64_json": base64.b64encode(data).decode()}]}

    def test_what_a_png_holds_beside_its_pixels(self):
        pixels = (b"IDAT", zlib.compress(bytes(64 * (1 + 3 * 64))))
        for name, *chunks in [
            ("iCCP", (b"iCCP", b"x\0\0" + self.zeros), pixels),
            ("zTXt", (b"zTXt", b"XML:com.adobe.xmp\0\0" + self.zeros), pixels),
            ("iTXt", (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + self.zeros), pixels),
            ("many", *[(b"tEXt", b"a\0")] * 40000, pixels),
        ]:
            with self.subTest(name):
                status, answer = self.drawn(self.image(png(*chunks)), limit=16 << 20)
                self.assertEqual((status, answer.get("size")), (200, "64x64"))

    def test_more_pixels_than_there_should_be(self):
        status, _ = self.drawn(self.image(png((b"IDAT", self.zeros))), limit=16 << 20)
        self.assertEqual(status, 200, "what lies behind the last row is nobody's")
        for width, height in [(4096, 4096), (50000, 50000), (2**31 - 1, 2**31 - 1)]:
            for bits, color in [(8, 2), (16, 6)]:
                data = png((b"IDAT", self.zeros), width=width, height=height, bits=bits, color=color)
                status, answer = self.drawn(self.image(data), limit=16 << 20)
                self.assertEqual((status, answer["error"]["code"]), (500, "generation_failed"))
        # As large as an image may be, where no size was named, but for what is held of the answer and of the file.
        data = png((b"IDAT", self.zeros), width=4096, height=4096, bits=16, color=6)
        status, answer = self.drawn(self.image(data), limit=160 << 20, size=None)
        self.assertEqual((status, answer.get("size")), (200, "4096x4096"))

    def test_json(self):
        for name, text in [
            ("values", b'{"data":[' + b"{}," * (19 << 20) + b"{}]}"),
            ("elsewhere", b'{"x":[' + b"{}," * (19 << 20) + b"{}]}"),
            ("keys", b'{"data":[{' + b",".join(b'"%x":0' % n for n in range(1 << 20)) + b"}]}"),
            ("deep", b'{"data":' + b"[" * (50 << 20)),
        ]:
            with self.subTest(name):
                status, answer = self.drawn(text, limit=100 << 20, size=None)
                self.assertEqual((status, answer["error"]["code"]), (500, "generation_failed"))
                # Who has asked for a small image takes a small answer.
                status, answer = self.drawn(text, limit=16 << 20)
                self.assertEqual((status, answer["error"]["code"]), (500, "generation_failed"))

    def test_a_body_that_was_packed(self):
        packer = zlib.compressobj(9, wbits=31)
        data = packer.compress(b"[" * (64 << 20)) + packer.flush()
        status, answer = self.drawn(data, limit=16 << 20, headers={"Content-Encoding": "gzip"})
        self.assertEqual((status, answer["error"]["code"]), (500, "generation_failed"))
        self.assertIn("is no JSON", answer["error"]["message"])

    def test_more_images_than_fit_into_an_answer(self):
        data = png((b"IDAT", zlib.compress(bytes(4096 * (1 + 3 * 4096)))), width=4096, height=4096)
        status, answer = self.drawn(self.image(data), limit=1 << 30, size=None, n=2)
        self.assertEqual((status, answer["error"]["code"]), (500, "generation_failed"))
        self.assertIn("name a size", answer["error"]["message"])


def encodings(key):
    """The ways in which a key may stand in a text."""
    data = key.encode()
    yield "plain", key
    yield "percent", "".join("%%%02X" % byte for byte in data)
    yield "percent, half", urllib.parse.quote(key.replace("-", "/"), safe="")
    yield "upper case", key.upper()
    yield "swapped case", key.swapcase()
    yield "backwards", key[::-1]
    yield "hex", data.hex()
    yield "HEX", data.hex().upper()
    yield "hex, spaced", data.hex(" ")
    yield "html", "".join("&#%d;" % byte for byte in data)
    yield "html, hex", "".join("&#x%x;" % byte for byte in data)
    yield "json", "".join("\\u%04x" % byte for byte in data)
    yield "spaced", " ".join(key)
    for before in ["", "a", "ab", "user:", "Bearer "]:
        yield "base64 behind %r" % before, base64.b64encode(before.encode() + data).decode()
        yield "base64url behind %r" % before, base64.urlsafe_b64encode(before.encode() + data).decode().rstrip("=")
    yield "base32", base64.b32encode(data).decode()
    for first, last in [(8, 4), (5, 4), (3, 4), (12, 12)]:
        for mask in ["*" * 20, "...", "…"]:
            yield "masked", key[:first] + mask + key[-last:]


class Secrets(unittest.TestCase):
    """Nothing that a cloud has worded reaches a client or the log: it may be the key in one form or another."""

    def test_a_cloud_that_repeats_the_key(self):
        pixels = zlib.compress(bytes(64 * (1 + 3 * 64)))
        image = base64.b64encode(png((b"IDAT", pixels))).decode()
        with Cloud() as cloud:
            flags = ["--providers=local,openai", "--openai-url=%s/v1" % cloud.url]
            with Gateway(FOLDER.name, NOWHERE, *flags, env={"OPENAI_API_KEY": KEY}) as gateway:
                for name, text in encodings(KEY):
                    words = "Incorrect API key provided: %s. You can find yours." % text
                    answers = [(status, {"error": {"message": words, "code": text, "type": text, "param": text}})
                               for status in [400, 401, 500]]
                    answers += [(400, {"error": words}), (200, {"data": [{"b64_json": image, "revised_prompt": words}]}),
                                (200, {"data": [{"b64_json": text}]}), (200, {"data": [{"url": text}]})]
                    for status, body in answers:
                        with self.subTest(name, status=status):
                            cloud.answers(status, body, {"X-Echo": urllib.parse.quote(text)})
                            _, headers, answer = gateway.ask(
                                "POST", "/v1/images/generations", {"prompt": "a cat", "size": "64x64"})
                            told = str(headers) + re.sub(r'"b64_json":"[^"]*"', "", answer.decode())
                            for part in {text[at:at + 6] for at in range(len(text) - 5)} | {text[-4:]}:
                                self.assertNotIn(part, told)
                                self.assertNotIn(part, json.dumps(told))
                log = gateway.said()
                for name, text in encodings(KEY):
                    for part in (text, text[:8], text[-8:], text[-4:]):
                        self.assertNotIn(part, log)

    def test_what_is_known_of_an_error_is_told(self):
        with Cloud() as cloud:
            flags = ["--providers=openai", "--openai-url=%s/v1" % cloud.url]
            with Gateway(FOLDER.name, NOWHERE, *flags, env={"OPENAI_API_KEY": KEY}) as gateway:
                for status, code, param, words in [
                    (400, "moderation_blocked", None, "refused the request (400, moderation_blocked)"),
                    (400, "invalid_value", "size", "refused the request (400, invalid_value, size)"),
                    (401, "invalid_api_key", None, "answered (401, invalid_api_key)"),
                    (429, "insufficient_quota", None, "answered (429, insufficient_quota)"),
                    (500, None, None, "answered (500)"), (500, 7, {}, "answered (500)"), (400, "other", "x", "(400)"),
                ]:
                    cloud.answers(status, {"error": {"message": "m", "type": "t", "code": code, "param": param}})
                    self.assertIn(words, gateway.draw()[2]["error"]["message"])


if __name__ == "__main__":
    unittest.main()
