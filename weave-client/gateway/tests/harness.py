"""weaved, weave gateway and a cloud that misbehaves, each on a port or socket of its own."""
import atexit
import base64
import http.client
import http.server
import json
import os
import pathlib
import queue
import re
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
import time
import zlib

PATIENCE = 30
WEAVE = os.environ["WEAVE"]
WEAVED = os.environ["WEAVED"]
KEY = "sk-test-0123456789abcdef0123456789abcdef"
# Nothing of whoever runs the tests.
CLEAN = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}

logs = []  # Of every process, for the last look.


def eventually(what, holds):
    until = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > until:
            raise AssertionError("never came true: " + what)
        time.sleep(0.02)


class Program:
    """A process with its output in a file. Used with `with`, it is gone afterwards."""

    def __init__(self, folder, name, command, env):
        self.log = pathlib.Path(folder) / ("%s-%d.log" % (name, len(logs)))
        logs.append(self.log)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env={**CLEAN, **env}, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        # Also if it doesn't get as far as `with`.
        atexit.register(self.process.kill)

    def said(self):
        return self.log.read_text()

    def wait_for(self, pattern):
        def found():
            if self.process.poll() is not None and not re.search(pattern, self.said()):
                raise AssertionError("it has ended: " + self.said())
            return re.search(pattern, self.said())
        eventually("%r in %s" % (pattern, self.log), found)
        return found()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(PATIENCE)


class Weaved(Program):
    def __init__(self, folder, *flags):
        self.socket = pathlib.Path(tempfile.mkdtemp(dir=folder)) / "weave.sock"
        command = [WEAVED, "--no-config", "--engine=pattern", "--pattern=gradient", "--socket=%s" % self.socket, *flags]
        super().__init__(folder, "weaved", command, {})
        eventually("weaved is ready", self.is_ready)

    def is_ready(self):
        try:
            return self.stats()["weave_ready"] == 1
        except (FileNotFoundError, ConnectionRefusedError):
            return False  # It doesn't listen yet.

    def stats(self):
        with socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(PATIENCE)
            admin.connect(str(self.socket.with_name("weave-admin.sock")))
            admin.sendall(b"GET /stats HTTP/1.1\r\nHost: weaved\r\n\r\n")
            answer = b"".join(iter(lambda: admin.recv(65536), b""))
        return json.loads(answer.split(b"\r\n\r\n", 1)[1])

    def dispatched(self):
        return self.stats()["weave_requests_dispatched_total"]


class Listening:
    """A Unix socket in a folder of its own, with a thread for each connection."""

    def __init__(self, folder, name):
        self.path = pathlib.Path(tempfile.mkdtemp(dir=folder)) / name
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen(100)
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                sock = self.listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self.serve_one, args=[sock], daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


class FakeDaemon(Listening):
    """Answers the first frame on each connection with what `answer` makes of it, and closes; None: keeps it waiting."""

    def __init__(self, folder, answer):
        self.answer = answer
        self.over = threading.Event()
        super().__init__(folder, "weave.sock")

    def serve_one(self, sock):
        with sock:
            answer = self.answer(sock.recv(65536))
            if answer is None:
                self.over.wait()
            else:
                try:
                    sock.sendall(answer)
                except (BrokenPipeError, ConnectionResetError):
                    pass

    def __enter__(self):
        return self.path

    def __exit__(self, *_):
        self.over.set()
        super().__exit__()


class FakeAdmin(Listening):
    """An administrative socket that says what a test puts into its mouth: a page's JSON by its path."""

    def __init__(self, folder, **pages):
        self.pages = pages
        super().__init__(folder, "admin.sock")

    def serve_one(self, sock):
        with sock:
            page = self.pages.get(sock.recv(65536).split(b" ")[1].decode().strip("/"))
            head = b"HTTP/1.1 404 Not Found" if page is None else b"HTTP/1.1 200 OK"
            sock.sendall(head + b"\r\n\r\n" + json.dumps(page).encode())


def model(name="demo model", toy=True, draws="coloured shapes", width=128, height=64, steps=8, cfg_scale=1.5):
    return {"name": name, "toy": toy, "draws": draws,
            "defaults": {"width": width, "height": height, "steps": steps, "cfg_scale": cfg_scale}}


class Gateway(Program):
    def __init__(self, folder, socket_path, *flags, env={}, listen="127.0.0.1:0"):
        command = [WEAVE, "gateway", "--listen=" + listen, "--socket=%s" % socket_path, *flags]
        super().__init__(folder, "gateway", command, env)
        self.port = int(self.wait_for(r"listening at http://\S+:(\d+) ")[1])
        self.url = "http://127.0.0.1:%d" % self.port

    def ask(self, method, path, body=None, headers={}, host=None):
        """Status, headers, body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", host if host is not None else "127.0.0.1:%d" % self.port)
        data = None
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            headers = {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(data)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        return answer.status, answer.headers, text

    def draw(self, **body):
        """The status, headers and JSON that a request for an image of 64×64 gets."""
        body = {"prompt": "a cat", "size": "64x64", "steps": 2, **body}
        body = {name: value for name, value in body.items() if value is not None}
        status, headers, text = self.ask("POST", "/v1/images/generations", body)
        return status, headers, json.loads(text)


def gradient(prompt, seed, width, height):
    """What the pattern engine must draw, from its description."""
    value = 0xCBF29CE484222325
    for byte in seed.to_bytes(8, "little") + prompt.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    red, green, blue = value.to_bytes(8, "little")[:3]
    pixels = bytearray(3 * width * height)
    pixels[0::3] = bytes((red + x * 256 // width) % 256 for x in range(width)) * height
    pixels[1::3] = b"".join(bytes([(green + y * 256 // height) % 256]) * width for y in range(height))
    pixels[2::3] = bytes([blue]) * (width * height)
    return bytes(pixels)


def read_png(data):
    """Width, height, pixels and texts of a PNG with eight bits a channel."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n", data[:8]
    at, packed, texts = 8, b"", {}
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8:at + 8 + length]
        assert zlib.crc32(kind + body) == struct.unpack_from(">I", data, at + 8 + length)[0]
        if kind == b"IHDR":
            width, height, depth, color = struct.unpack_from(">IIBB", body)
            assert depth == 8
            channels = {2: 3, 6: 4}[color]
        elif kind == b"IDAT":
            packed += body
        elif kind == b"tEXt":
            name, text = body.split(b"\0", 1)
            texts[name.decode()] = text.decode("latin1")
        at += 12 + length
    raw, stride = zlib.decompress(packed), width * channels
    pixels, above = bytearray(), bytearray(stride)
    for row in range(height):
        start = row * (stride + 1)
        how, line = raw[start], bytearray(raw[start + 1:start + 1 + stride])
        for i in range(stride):
            left = line[i - channels] if i >= channels else 0
            corner = above[i - channels] if i >= channels else 0
            if how == 1:
                add = left
            elif how == 2:
                add = above[i]
            elif how == 3:
                add = (left + above[i]) // 2
            elif how == 4:
                guess = left + above[i] - corner
                add = min((left, above[i], corner), key=lambda near: abs(guess - near))
            else:
                add = 0
            line[i] = (line[i] + add) % 256
        pixels += line
        above = line
    return width, height, bytes(pixels), texts


def write_png(width, height, color=b"\x10\x20\x30"):
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress((b"\0" + color * width) * height))
            + chunk(b"IEND", b""))


class Cloud:
    """A server whose answers are the bytes that a test puts into its mouth."""

    def __init__(self, certificate=None):
        self.asked = queue.Queue()
        self.script = None
        cloud = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                cloud.asked.put((self.path, self.headers, body))
                try:
                    cloud.script(self)
                except (BrokenPipeError, ConnectionResetError):
                    pass

            # Nobody should follow a redirect to here.
            do_GET = do_HEAD = lambda self: cloud.asked.put((self.path, self.headers, None))

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        self.url = "%s://%s:%d" % ("https" if certificate else "http", "localhost" if certificate else "127.0.0.1", self.port)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def answers(self, status, body, headers={}):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()

        def script(handler):
            handler.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(data)
        self.script = script

    def draws(self, width, height, **more):
        image = {"b64_json": base64.b64encode(write_png(width, height)).decode(), **more}
        self.answers(200, {"created": 1, "data": [image]})

    def last(self):
        return self.asked.get(timeout=PATIENCE)
