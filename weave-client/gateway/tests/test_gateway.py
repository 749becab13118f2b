"""Tests of `weave gateway` and of what stands in for the daemon: see ./run.

OpenAI's own client for Python, plain HTTP where that would be too polite, a real weaved, and for a cloud a second
gateway or a server that misbehaves.
"""
import base64
import fcntl
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
import unittest

import openai

import harness
from harness import CLEAN, KEY, PATIENCE, WEAVE, Cloud, FakeDaemon, Gateway, Weaved, eventually, gradient, read_png

FOLDER = tempfile.TemporaryDirectory(prefix="weave-gateway-")
NOWHERE = FOLDER.name + "/nobody/weave.sock"


def tearDownModule():
    try:
        for log in (log for log in harness.logs if log.is_relative_to(FOLDER.name)):
            text = log.read_text()
            assert KEY not in text and "panicked" not in text, text
    finally:
        FOLDER.cleanup()


def enter(at_the_end, context):
    at_the_end(context.__exit__, None, None, None)
    return context.__enter__()


def secret(name, text=KEY, mode=0o600):
    path = pathlib.Path(FOLDER.name) / name
    path.write_text(text + "\n")
    path.chmod(mode)
    return path


def client(gateway, key="unused", **more):
    return openai.OpenAI(base_url=gateway.url + "/v1", api_key=key, max_retries=0, timeout=PATIENCE, **more)


class Served(unittest.TestCase):
    """With one weaved and one gateway for all tests of the class."""
    weaved_flags, gateway_flags = [], []

    @classmethod
    def setUpClass(cls):
        cls.weaved = enter(cls.addClassCleanup, Weaved(FOLDER.name, *cls.weaved_flags))
        cls.gateway = enter(cls.addClassCleanup, Gateway(FOLDER.name, cls.weaved.socket, *cls.gateway_flags))


class OpenAi(Served):
    """What OpenAI's client sends and expects."""

    def test_an_image(self):
        answer = client(self.gateway).images.generate(
            model="sd3.5", prompt="a cat", size="128x64", response_format="b64_json", user="me",
            extra_body={"seed": 7, "steps": 3, "cfg": 1.5})
        width, height, pixels, texts = read_png(base64.b64decode(answer.data[0].b64_json))
        self.assertEqual((width, height), (128, 64))
        self.assertEqual(pixels, gradient("a cat", 7, 128, 64))
        self.assertEqual((answer.size, answer.output_format), ("128x64", "png"))
        self.assertLess(abs(answer.created - time.time()), 60)
        weave = answer.data[0].model_extra["weave"]
        took = weave.pop("generation_time_ms")
        self.assertLess(took, 1000 * PATIENCE)
        self.assertEqual(weave, {"provider": "local", "width": 128, "height": 64, "seed": 7, "steps": 3, "cfg": 1.5})
        recipe = json.loads(texts["Weave"])
        self.assertEqual((recipe["provider"], recipe["seed"], recipe["cfg_scale"]), ("local", 7, 1.5))
        self.assertRegex(texts["parameters"], r"^a cat\nSteps: 3, Sampler: unknown, CFG scale: 1\.5, Seed: 7, Size: 128x64, .*Version: Weave")

    def test_several_images_have_one_seed_after_the_other(self):
        answer = client(self.gateway).images.generate(
            prompt="cats", size="64x64", n=3, extra_body={"seed": 2**64 - 2, "steps": 1})
        for image, seed in zip(answer.data, [2**64 - 2, 2**64 - 1, 1], strict=True):
            self.assertEqual(image.model_extra["weave"]["seed"], seed)
            self.assertEqual(read_png(base64.b64decode(image.b64_json))[2], gradient("cats", seed, 64, 64))

    def test_what_is_left_open(self):
        draw = lambda **more: client(self.gateway).images.generate(prompt="a cat", **more).data[0].model_extra["weave"]
        seeds = {draw(size="64x64", extra_body={"steps": 1})["seed"] for _ in range(4)}
        self.assertEqual((len(seeds), 0 in seeds), (4, False))
        weave = draw(size="auto", quality="auto", background="auto", stream=False, n=None)
        self.assertEqual([weave[name] for name in ("width", "height", "steps", "cfg")], [512, 512, 28, 7.0])
        flags = ["--size=64x128", "--steps=9", "--cfg=2.5"]
        with Gateway(FOLDER.name, self.weaved.socket, *flags) as gateway:
            weave = client(gateway).images.generate(prompt="x").data[0].model_extra["weave"]
        self.assertEqual([weave[name] for name in ("width", "height", "steps", "cfg")], [64, 128, 9, 2.5])

    def test_files_of_other_kinds(self):
        draw = lambda **more: base64.b64decode(client(self.gateway).images.generate(
            prompt="a cat", size="64x64", extra_body={"steps": 1, "seed": 1}, **more).data[0].b64_json)
        fine, coarse = (draw(output_format="jpeg", output_compression=n) for n in (95, 5))
        self.assertEqual((fine[:3], coarse[:3]), (b"\xff\xd8\xff", b"\xff\xd8\xff"))
        self.assertLess(len(coarse), len(fine))
        webp = draw(output_format="webp", output_compression=100)
        self.assertEqual((webp[:4], webp[8:12]), (b"RIFF", b"WEBP"))

    def test_what_is_refused_is_refused_by_name(self):
        before = self.weaved.dispatched()
        for body, param, code, words in [
            ({"prompt": None}, "prompt", "missing_required_parameter", "say what to draw"),
            ({"prompt": ""}, "prompt", "invalid_value", "prompt has 0 bytes"),
            ({"prompt": "x" * 2049}, "prompt", "invalid_value", "prompt has 2049 bytes, must have 1 to 2048"),
            ({"prompt": "a\0b"}, "prompt", "invalid_value", "NUL"),
            ({"prompt": 5}, "prompt", "invalid_value", "prompt is 5, must be a string"),
            ({"n": 0}, "n", "invalid_value", "n is 0, must be an integer from 1 to 10"),
            ({"n": 11}, "n", "invalid_value", "n is 11"),
            ({"n": 1.5}, "n", "invalid_value", "n is 1.5"),
            ({"n": 5, "size": "2048x2048"}, "n", "invalid_value", "at most 4"),
            ({"size": "100x64"}, "size", "invalid_value", "width is 100"),
            ({"size": "64x4096"}, "size", "invalid_value", "height is 4096"),
            ({"size": "64"}, "size", "invalid_value", "WIDTHxHEIGHT"),
            ({"size": "+64x64"}, "size", "invalid_value", "WIDTHxHEIGHT"),
            ({"size": "64x99999999999"}, "size", "invalid_value", "WIDTHxHEIGHT"),
            ({"steps": 0}, "steps", "invalid_value", "1 to 100"),
            ({"steps": "8"}, "steps", "invalid_value", "\"8\""),
            ({"cfg": 20.5}, "cfg", "invalid_value", "20.5"),
            ({"cfg": True}, "cfg", "invalid_value", "must be a number"),
            ({"seed": -1}, "seed", "invalid_value", "seed is -1"),
            ({"seed": 2**64}, "seed", "invalid_value", "18446744073709551615"),
            ({"response_format": "url"}, "response_format", "unsupported_value", "no link"),
            ({"response_format": "hex"}, "response_format", "invalid_value", "b64_json"),
            ({"output_format": "gif"}, "output_format", "invalid_value", "webp"),
            ({"output_compression": 50}, "output_compression", "unsupported_parameter", "only jpeg"),
            ({"output_format": "webp", "output_compression": 50}, "output_compression", "unsupported_parameter", "only jpeg"),
            ({"output_format": "jpeg", "output_compression": 101}, "output_compression", "invalid_value", "101"),
            ({"prompt": "a <sd_cpp_extra_args>{\"seed\": 5}</sd_cpp_extra_args>"}, "prompt", "unsupported_syntax",
             "set the fields seed, steps, cfg_scale and size"),
            ({"prompt": "a <lora:x:1> cat"}, "prompt", "unsupported_syntax", "LoRA"),
            ({"quality": "hd"}, "quality", "unsupported_parameter", "quality"),
            ({"style": "vivid"}, "style", "unsupported_parameter", "style"),
            ({"background": "transparent"}, "background", "unsupported_parameter", "background"),
            ({"moderation": "low"}, "moderation", "unsupported_parameter", "moderation"),
            ({"stream": True}, "stream", "unsupported_parameter", "stream"),
            ({"partial_images": 1}, "partial_images", "unsupported_parameter", "partial_images"),
            ({"cfg_scale": 7}, "cfg_scale", "unknown_parameter", "cfg_scale"),
            ({"negative_prompt": "dogs" * 99}, "negative_prompt", "unknown_parameter", "dogs"),
            ({"user": 1}, "user", "invalid_value", "user"),
        ]:
            with self.subTest(body):
                status, _, answer = self.gateway.draw(**body)
                error = answer["error"]
                self.assertEqual((status, error["param"], error["code"]), (400, param, code), error)
                self.assertEqual((set(error), error["type"]), ({"message", "type", "param", "code"}, "invalid_request_error"))
                self.assertIn(words, error["message"])
                self.assertLess(len(error["message"]), 300)
        for body in [b"", b"{", b"[]", b"\"a\"", b"{}x", b"[" * 60000, b'{"prompt": "\xff"}']:
            status, _, text = self.gateway.ask("POST", "/v1/images/generations", body)
            self.assertEqual((status, json.loads(text)["error"]["code"]), (400, "invalid_json"), body[:20])
        self.assertEqual(self.weaved.dispatched(), before, "none of these went to the daemon")
        with self.assertRaises(openai.BadRequestError) as caught:
            client(self.gateway).images.generate(prompt="x", size="1000x1000")
        self.assertEqual((caught.exception.param, caught.exception.code), ("size", "invalid_value"))

    def test_models(self):
        ai = client(self.gateway)
        self.assertEqual([model.id for model in ai.models.list()], ["sd3.5"])
        self.assertEqual(ai.models.retrieve("sd3.5").owned_by, "weave")
        for ask in (lambda: ai.models.retrieve("dall-e-3"), lambda: ai.images.generate(model="gpt-image-1", prompt="x")):
            with self.assertRaises(openai.NotFoundError) as caught:
                ask()
            self.assertEqual(caught.exception.code, "model_not_found")
            self.assertIn("sd3.5", str(caught.exception))

    def test_what_is_not_there(self):
        for method, path, status, code in [
            ("POST", "/v1/images/edits", 404, "not_found"), ("POST", "/v1/chat/completions", 404, "not_found"),
            ("GET", "/v1/images/generations", 405, "method_not_allowed"), ("GET", "/..%2f", 404, "not_found"),
        ]:
            found, _, text = self.gateway.ask(method, path)
            self.assertEqual((found, json.loads(text)["error"]["code"]), (status, code))
        self.assertEqual(self.gateway.ask("GET", "/healthz")[::2], (200, b"ok\n"))


class WhoMayAsk(Served):
    def test_a_browser_that_another_site_has_sent(self):
        here = "127.0.0.1:%d" % self.gateway.port
        for host, origin, status in [
            (here, None, 200), (here, "http://" + here, 200), ("localhost:1", "http://localhost:1", 200),
            ("[::1]:80", "https://[::1]:80", 200), ("evil.example", None, 403), ("evil.example", "http://evil.example", 403),
            (here, "http://evil.example", 403), (here, "null", 403), (here, "http://" + here + ".evil.example", 403),
            (here, "http://127.0.0.1:1", 403), ("", None, 403),
        ]:
            for method, path, body in [("GET", "/v1/models", None), ("GET", "/", None), ("GET", "/status", None),
                                       ("POST", "/v1/images/generations", {"prompt": "x", "size": "64x64"})]:
                headers = {"Origin": origin} if origin is not None else {}
                found, answered, text = self.gateway.ask(method, path, body, headers, host)
                self.assertEqual(found, status, (host, origin, path, text))
                self.assertNotIn("Access-Control-Allow-Origin", answered)
        status, _, text = self.gateway.ask("OPTIONS", "/v1/images/generations", headers={
            "Origin": "http://evil.example", "Access-Control-Request-Method": "POST"})
        self.assertEqual(status, 403)
        # What browsers send to anybody without asking first.
        for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]:
            status, _, text = self.gateway.ask("POST", "/v1/images/generations", b'{"prompt": "x"}', {"Content-Type": kind})
            self.assertEqual((status, json.loads(text)["error"]["code"]), (415, "unsupported_media_type"), kind)
        self.assertEqual(self.raw(b"GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: 127.0.0.1\r\n\r\n")[:12], b"HTTP/1.1 400")
        self.assertEqual(self.raw(b"GET /v1/models HTTP/1.1\r\n\r\n")[:12], b"HTTP/1.1 400")
        self.assertEqual(
            self.raw(b"GET http://evil.example/v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")[:12], b"HTTP/1.1 403")

    def raw(self, data):
        with socket.create_connection(("127.0.0.1", self.gateway.port), PATIENCE) as sock:
            sock.sendall(data)
            return sock.recv(65536)

    def test_a_name_of_its_own(self):
        with Gateway(FOLDER.name, self.weaved.socket, "--allow-host=weave.example,other.example") as gateway:
            for host, status in [("weave.example", 200), ("Other.Example:80", 200), ("third.example", 403)]:
                self.assertEqual(gateway.ask("GET", "/v1/models", host=host)[0], status)

    def test_a_token(self):
        token = "0123456789abcdef" * 4
        path = secret("token", token)
        with Gateway(FOLDER.name, self.weaved.socket, "--token-file=%s" % path, listen="0.0.0.0:0") as gateway:
            self.assertEqual(client(gateway, token).models.list().data[0].id, "sd3.5")
            for wrong in ["x", token[:-1], token + "0", token.upper()]:
                with self.assertRaises(openai.AuthenticationError) as caught:
                    client(gateway, wrong).images.generate(prompt="x")
                self.assertEqual(caught.exception.code, "invalid_api_key")
            for headers, status in [
                ({}, 401), ({"Authorization": token}, 401), ({"Authorization": "Basic " + token}, 401),
                ({"Authorization": "bearer " + token}, 200), ({"api-key": token}, 401),
            ]:
                found, answered, _ = gateway.ask("GET", "/status", headers=headers)
                self.assertEqual((found, answered["WWW-Authenticate"]), (status, "Bearer" if status == 401 else None))
            for path in ["/", "/page.js", "/page.css", "/healthz"]:
                self.assertEqual(gateway.ask("GET", path)[0], 200, path)
            self.assertNotIn(token, gateway.said())

    def test_it_does_not_start_where_it_should_not(self):
        for flags, words in [
            (["--listen=0.0.0.0:0"], "other machines may reach"),
            (["--listen=[::]:0"], "other machines may reach"),
            (["--token-file=%s" % secret("open", mode=0o644)], "has mode 0644"),
            (["--token-file=%s" % secret("short", "abc")], "16 or more"),
            (["--token-file=/nonexistent"], "can't be read"),
            (["--size=100x100"], "width is 100"), (["--steps=0"], "steps is 0"), (["--size=100"], "WIDTHxHEIGHT"),
            (["--listen=127.0.0.1"], "--listen"),
            (["--providers=openai"], "OPENAI_API_KEY"), (["--providers=azure"], "--azure-url"),
            (["--providers=local,local"], "twice"), (["--providers=dalle"], "dalle"),
        ]:
            run = subprocess.run([WEAVE, "gateway", "--socket=x", *flags], env=CLEAN, capture_output=True, text=True, timeout=PATIENCE)
            self.assertEqual((run.returncode, run.stdout), (2, ""), flags)
            self.assertIn(words, run.stderr)
        taken = "127.0.0.1:%d" % self.gateway.port
        run = subprocess.run([WEAVE, "gateway", "--socket=x", "--listen=" + taken], env=CLEAN, capture_output=True, text=True)
        self.assertEqual(run.returncode, 1)
        self.assertIn("can't listen at " + taken, run.stderr)


class Limits(Served):
    weaved_flags = ["--faults=slow=0.05,hang@stuck", "--queue=1", "--abandoned=cancel"]

    def test_a_client_that_dawdles_is_closed(self):
        socks = []
        for data in [b"", b"GET / HTTP/1.1\r\nHost: 127", b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
                     b"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                     b"Content-Length: 100\r\n\r\n{"]:
            sock = socket.create_connection(("127.0.0.1", self.gateway.port), PATIENCE)
            sock.sendall(data)
            socks.append(sock)
        ends = [b"".join(iter(lambda: sock.recv(65536), b""))[:12] for sock in socks]
        self.assertEqual(ends[2:], [b"HTTP/1.1 200", b"HTTP/1.1 408"])
        for sock in socks:
            sock.close()

    def test_a_client_that_reads_slowly_gets_it_all(self):
        """More than the kernel holds, for longer than a request's head may take."""
        width, height = 2048, 1024
        noise = os.urandom(3 * width * height)
        head = struct.pack(">6I", 200, 1, width, height, 3, len(noise))

        def answer(ask):
            return b"WEVE\0\1\0\2" + struct.pack(">II", 32 + len(noise), 0) + ask[16:24] + head + noise

        with FakeDaemon(FOLDER.name, answer) as path, Gateway(FOLDER.name, path) as gateway, socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            sock.settimeout(PATIENCE)
            sock.connect(("127.0.0.1", gateway.port))
            body = json.dumps({"prompt": "x", "size": "%dx%d" % (width, height)}).encode()
            sock.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                         b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
            text = sock.recv(4096)
            began = time.monotonic()
            while b"\r\n\r\n" not in text:
                text += sock.recv(4096)
            head, text = text.split(b"\r\n\r\n", 1)
            length = int(re.search(rb"content-length: (\d+)", head)[1])
            self.assertGreater(length, 8 << 20)
            while len(text) < length:
                more = sock.recv(65536)
                self.assertNotEqual(more, b"", "cut off after %d of %d bytes" % (len(text), length))
                text += more
                # So that half of it is left after 12 s, and then as fast as it goes.
                due = began + 12 * 2 * len(text) / length
                if len(text) < length / 2:
                    time.sleep(max(0, due - time.monotonic()))
            self.assertGreater(time.monotonic() - began, 11)
            self.assertEqual(len(json.loads(text)["data"]), 1)

    def test_what_is_too_large(self):
        status, _, text = self.gateway.ask("POST", "/v1/images/generations", b" " * 65537)
        self.assertEqual((status, json.loads(text)["error"]["code"]), (413, "request_too_large"))
        status, _, text = self.gateway.ask("GET", "/healthz", headers={"X-Long": "x" * 20000})
        self.assertEqual(status, 431)

    def test_a_daemon_that_is_busy(self):
        threads = [threading.Thread(target=self.gateway.draw, kwargs={"steps": 60}) for _ in range(2)]
        for thread in threads:
            thread.start()
        eventually("one runs and one waits", lambda: self.weaved.stats()["weave_queue_length"] == 1)
        with self.assertRaises(openai.RateLimitError) as caught:
            client(self.gateway).images.generate(prompt="x", size="64x64")
        self.assertEqual(caught.exception.code, "busy")
        self.assertIn("queue is full", str(caught.exception))
        self.assertTrue(1 <= int(caught.exception.response.headers["retry-after"]) <= 60)
        # OpenAI's client tries again by itself, as long as it is told to.
        ai = openai.OpenAI(base_url=self.gateway.url + "/v1", api_key="x", max_retries=10)
        self.assertEqual(len(ai.images.generate(prompt="x", size="64x64", extra_body={"steps": 1}).data), 1)
        for thread in threads:
            thread.join()

    def test_more_requests_than_there_may_be(self):
        with Gateway(FOLDER.name, self.weaved.socket, "--requests=1") as gateway:
            thread = threading.Thread(target=gateway.draw, kwargs={"steps": 40})
            thread.start()
            eventually("one runs", lambda: self.weaved.stats()["weave_requests_running"] == 1)
            status, headers, answer = gateway.draw()
            self.assertEqual((status, answer["error"]["code"]), (429, "busy"))
            self.assertGreaterEqual(int(headers["Retry-After"]), 1)
            thread.join()
            self.assertEqual(gateway.draw()[0], 200)

    def test_a_client_that_goes_is_heard_of_by_the_daemon(self):
        abandoned = lambda: self.weaved.stats()["weave_requests_total"]["abandoned"]
        cancelled = lambda: sum(self.weaved.stats()["weave_worker_cancellations_total"].values())
        before = abandoned(), cancelled()
        body = json.dumps({"prompt": "x", "size": "64x64", "steps": 100, "n": 3}).encode()
        with socket.create_connection(("127.0.0.1", self.gateway.port), PATIENCE) as sock:
            sock.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                         b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
            eventually("it runs", lambda: self.weaved.stats()["weave_requests_running"] == 1)
        eventually("it is abandoned", lambda: abandoned() == before[0] + 1)
        eventually("the worker is free", lambda: self.weaved.stats()["weave_requests_running"] == 0)
        self.assertEqual(cancelled(), before[1] + 1, "the worker was told, and has not finished it")
        self.gateway.wait_for("given up, the client has gone")
        dispatched = self.weaved.dispatched()
        self.assertEqual(self.gateway.draw()[0], 200)
        self.assertEqual(self.weaved.dispatched(), dispatched + 1, "its second and third image were not begun")

    def test_it_takes_too_long(self):
        with Gateway(FOLDER.name, self.weaved.socket, "--timeout=0.3") as gateway:
            status, headers, answer = gateway.draw(steps=100)
            self.assertEqual((status, answer["error"]["code"], headers["x-should-retry"]), (504, "timeout", "false"))


class Ends(unittest.TestCase):
    def test_answers_under_way_are_finished(self):
        with Weaved(FOLDER.name, "--faults=slow=0.05") as weaved, Gateway(FOLDER.name, weaved.socket) as gateway:
            idle = socket.create_connection(("127.0.0.1", gateway.port), PATIENCE)
            answers = []
            thread = threading.Thread(target=lambda: answers.append(gateway.draw(steps=20)[0]))
            thread.start()
            eventually("it runs", lambda: weaved.stats()["weave_requests_running"] == 1)
            gateway.process.send_signal(signal.SIGTERM)
            gateway.wait_for("ending")
            with self.assertRaises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", gateway.port), PATIENCE)
            thread.join()
            self.assertEqual(answers, [200])
            self.assertEqual(gateway.process.wait(PATIENCE), 0)
            idle.close()

    def test_a_second_signal_does_not_wait(self):
        with Weaved(FOLDER.name, "--faults=hang@x") as weaved, Gateway(FOLDER.name, weaved.socket) as gateway:
            thread = threading.Thread(target=lambda: self.assertRaises(Exception, gateway.draw, prompt="x"))
            thread.start()
            eventually("it runs", lambda: weaved.stats()["weave_requests_running"] == 1)
            gateway.process.send_signal(signal.SIGTERM)
            gateway.wait_for("ending")
            gateway.process.send_signal(signal.SIGTERM)
            self.assertEqual(gateway.process.wait(PATIENCE), 0)
            thread.join()

    def test_no_daemon(self):
        with Gateway(FOLDER.name, NOWHERE) as gateway:
            with self.assertRaises(openai.InternalServerError) as caught:
                client(gateway).images.generate(prompt="x")
            self.assertEqual((caught.exception.status_code, caught.exception.code), (503, "unavailable"))
            self.assertGreaterEqual(int(caught.exception.response.headers["retry-after"]), 1)
            self.assertEqual(gateway.ask("GET", "/healthz")[0], 200)
            self.assertIsNone(json.loads(gateway.ask("GET", "/status")[2])["daemon"])

    def test_nobody_reads_its_log(self):
        command = [WEAVE, "gateway", "--listen=127.0.0.1:0", "--socket=" + NOWHERE]
        process = subprocess.Popen(command, env=CLEAN, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        fcntl.fcntl(process.stderr, 1031, 4096)  # F_SETPIPE_SZ
        port = int(re.search(rb":(\d+) ", process.stdout.readline())[1])
        for _ in range(60):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            connection.request("POST", "/v1/images/generations", '{"prompt": "x"}', {"Content-Type": "application/json"})
            self.assertEqual(connection.getresponse().status, 503)
            connection.close()
        process.terminate()
        self.assertEqual(process.wait(PATIENCE), 0)

    def test_an_engine_that_fails(self):
        with Weaved(FOLDER.name, "--faults=fail@boom,crash@bang") as weaved, Gateway(FOLDER.name, weaved.socket) as gateway:
            for prompt in ["boom", "bang"]:
                status, _, answer = gateway.draw(prompt=prompt)
                self.assertEqual((status, answer["error"]["code"]), (500, "generation_failed"))
            self.assertNotIn("boom", gateway.said(), "prompts are not logged")


class Fallback(unittest.TestCase):
    """A daemon, and a second gateway as the cloud that may stand in for it."""

    @classmethod
    def setUpClass(cls):
        cls.far = enter(cls.addClassCleanup, Weaved(FOLDER.name))
        flags = ["--token-file=%s" % secret("cloud-token"), "--size=128x128"]
        cls.cloud = enter(cls.addClassCleanup, Gateway(FOLDER.name, cls.far.socket, *flags))

    def flags(self, *more):
        return ["--providers=local,openai", "--openai-url=%s/v1" % self.cloud.url, "--openai-model=sd3.5",
                "--busy-wait=0.2", *more]

    def gateway(self, socket_path, *more):
        return Gateway(FOLDER.name, socket_path, *self.flags(*more), env={"OPENAI_API_KEY": KEY})

    def test_the_daemon_comes_first(self):
        before = self.far.dispatched()
        with Weaved(FOLDER.name) as weaved, self.gateway(weaved.socket) as gateway:
            status, headers, answer = gateway.draw(n=2)
            self.assertEqual((status, headers["X-Weave-Provider"]), (200, "local"))
            self.assertEqual({image["weave"]["provider"] for image in answer["data"]}, {"local"})
        self.assertEqual(self.far.dispatched(), before)

    def test_nobody_at_home(self):
        with self.gateway(NOWHERE) as gateway:
            status, headers, answer = gateway.draw(size="64x128", steps=3, cfg=2)
            self.assertEqual((status, headers["X-Weave-Provider"], answer["size"]), (200, "openai", "64x128"))
            self.assertEqual(answer["data"][0]["weave"], {
                "provider": "openai", "model": "sd3.5", "width": 64, "height": 128, "dropped": ["steps", "cfg"]})
            width, height, _, texts = read_png(base64.b64decode(answer["data"][0]["b64_json"]))
            self.assertEqual((width, height), (64, 128))
            self.assertEqual(json.loads(texts["Weave"]), {
                "prompt": "a cat", "width": 64, "height": 128, "provider": "openai", "model": "sd3.5"})
            self.assertIn("Model: sd3.5", texts["parameters"])
            gateway.wait_for("local: no daemon answers.*asking the next provider")
            # What nobody has named is left to the cloud.
            status, _, answer = gateway.draw(size=None, steps=None)
            self.assertEqual((status, answer["size"], answer["data"][0]["weave"]["dropped"]), (200, "128x128", []))

    def test_a_seed_is_not_for_clouds(self):
        before = self.far.dispatched()
        with self.gateway(NOWHERE) as gateway:
            status, _, answer = gateway.draw(seed=7)
            self.assertEqual(status, 503)
            self.assertIn("openai: was not asked, because it takes no seed", answer["error"]["message"])
        with Gateway(FOLDER.name, NOWHERE, *self.flags("--providers=openai")[1:], env={"OPENAI_API_KEY": KEY}) as gateway:
            status, _, answer = gateway.draw(seed=7)
            self.assertEqual((status, answer["error"]["code"]), (400, "unsupported_parameter"))
        self.assertEqual(self.far.dispatched(), before)

    def test_a_request_that_is_refused_goes_no_further(self):
        before = self.far.dispatched()
        with Weaved(FOLDER.name) as weaved, self.gateway(weaved.socket) as gateway:
            self.assertEqual(gateway.draw(size="65x64")[0], 400)
        refused = b"\0" * 8 + (400).to_bytes(4, "big") + (4).to_bytes(4, "big") + (2).to_bytes(2, "big") + b"no"
        with FakeDaemon(FOLDER.name, lambda ask: b"WEVE\0\1\0\xff" + len(refused).to_bytes(4, "big") + bytes(4) + ask[16:24] + refused[8:]) as path:
            with self.gateway(path) as gateway:
                status, _, answer = gateway.draw()
                self.assertEqual((status, answer["error"]["code"]), (400, "request_refused"))
            run = generate(path, *self.flags())
            self.assertEqual((run.returncode, "INVALID_PROMPT" in run.stderr), (3, True), run.stderr)
        self.assertEqual(self.far.dispatched(), before)

    def test_a_daemon_that_fails(self):
        for answer in [lambda _: b"", lambda _: b"HTTP/1.1 400 no\r\n\r\n"]:
            with FakeDaemon(FOLDER.name, answer) as path, self.gateway(path) as gateway:
                self.assertEqual(gateway.draw()[1]["X-Weave-Provider"], "openai")
        with Weaved(FOLDER.name, "--faults=fail@a,hang@stuck") as weaved:
            with self.gateway(weaved.socket, "--local-timeout=0.3") as gateway:
                for prompt in ["a cat", "stuck"]:
                    self.assertEqual(gateway.draw(prompt=prompt)[1]["X-Weave-Provider"], "openai", prompt)

    def test_a_daemon_that_is_busy_for_too_long(self):
        with Weaved(FOLDER.name, "--faults=slow=0.05", "--queue=1") as weaved, self.gateway(weaved.socket) as gateway:
            threads = [threading.Thread(target=gateway.draw, kwargs={"steps": 60}) for _ in range(2)]
            for thread in threads:
                thread.start()
            eventually("one runs and one waits", lambda: weaved.stats()["weave_queue_length"] == 1)
            began = time.monotonic()
            self.assertEqual(gateway.draw()[1]["X-Weave-Provider"], "openai")
            self.assertGreaterEqual(time.monotonic() - began, 0.2, "--busy-wait")
            gateway.wait_for("BUSY.*asking the next provider")
            for thread in threads:
                thread.join()

    def test_the_command(self):
        run = generate(NOWHERE, *self.flags("--width=64", "--height=64", "--cfg=3"))
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertRegex(run.stdout, r"^\S+\.png: 64×64, made by openai \(sd3\.5\) in \d+\.\d s, without cfg, which it doesn't take\n$")
        self.assertIn("asking the next provider", run.stderr)
        texts = read_png(run.file.read_bytes())[3]
        self.assertEqual(json.loads(texts["Weave"])["provider"], "openai")
        verify = subprocess.run([WEAVE, "verify", run.file], env=CLEAN, capture_output=True, text=True, timeout=PATIENCE)
        self.assertEqual(verify.returncode, 66)
        self.assertIn("was made by \"openai\", which can't make the same image again", verify.stderr)
        run = generate(NOWHERE, *self.flags("--width=64", "--height=64", "--steps=3", "--json", "-n2"))
        reports = [json.loads(line) for line in run.stdout.splitlines()]
        self.assertEqual([(report["provider"], report["model"], report["dropped"], report["width"]) for report in reports],
                         [("openai", "sd3.5", ["steps"], 64)] * 2)
        self.assertEqual(generate(NOWHERE, *self.flags("--seed=7")).returncode, 69)
        run = generate(NOWHERE, *self.flags(), env={})
        self.assertEqual((run.returncode, "OPENAI_API_KEY" in run.stderr), (2, True))
        run = generate(NOWHERE, env={"WEAVE_PROVIDERS": "openai", "WEAVE_OPENAI_URL": self.cloud.url + "/v1",
                                     "WEAVE_OPENAI_MODEL": "sd3.5", "WEAVE_OPENAI_KEY_FILE": str(secret("key"))})
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertEqual(read_png(run.file.read_bytes())[:2], (128, 128), "its own size, as none was named")
        for mode in [0o644, 0o660, 0o604]:
            run = generate(NOWHERE, *self.flags("--openai-key-file=%s" % secret("open-key", mode=mode)))
            self.assertEqual((run.returncode, "has mode 0%o" % mode in run.stderr), (2, True), run.stderr)
        # Off, unless somebody says otherwise.
        self.assertEqual(generate(NOWHERE, "--openai-url=%s/v1" % self.cloud.url).returncode, 69)


def generate(socket_path, *flags, env={"OPENAI_API_KEY": KEY}):
    """`weave generate`, the file that it made, and never the key."""
    file = pathlib.Path(tempfile.mkdtemp(dir=FOLDER.name)) / "x.png"
    command = [WEAVE, "generate", "a cat", "-o", str(file), "--socket=%s" % socket_path, *flags]
    run = subprocess.run(command, env={**CLEAN, **env}, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL)
    assert KEY not in run.stdout + run.stderr and "panicked" not in run.stderr, run
    run.file = file
    return run


class AnyCloud(unittest.TestCase):
    """A server that says what it is told to."""

    def setUp(self):
        self.cloud = enter(self.addCleanup, Cloud())

    def openai(self, *flags, **more):
        return generate(NOWHERE, "--providers=openai", "--openai-url=%s/v1/" % self.cloud.url, *flags, **more)

    def test_what_openai_is_asked(self):
        self.cloud.draws(1024, 1024, revised_prompt="a better cat")
        run = self.openai("--steps=5")
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertIn("1024×1024, made by openai (gpt-image-1)", run.stdout)
        path, headers, body = self.cloud.last()
        self.assertEqual((path, headers["Authorization"]), ("/v1/images/generations", "Bearer " + KEY))
        self.assertTrue(headers["User-Agent"].startswith("weave/"))
        self.assertEqual(body, {"model": "gpt-image-1", "prompt": "a cat", "n": 1})
        # The older ones would answer with a link; the newer ones refuse the field.
        self.assertEqual(self.openai("--openai-model=dall-e-3", "--width=1024", "--height=1024").returncode, 0)
        self.assertEqual(self.cloud.last()[2], {
            "model": "dall-e-3", "prompt": "a cat", "n": 1, "size": "1024x1024", "response_format": "b64_json"})

    def test_both_dialects_of_azure(self):
        self.cloud.draws(64, 64)
        azure = ["--providers=azure", "--azure-url=" + self.cloud.url, "--azure-deployment=my-images"]
        env = {"AZURE_OPENAI_API_KEY": KEY}
        run = generate(NOWHERE, *azure, env=env)
        self.assertIn("made by azure (my-images)", run.stdout)
        path, headers, body = self.cloud.last()
        self.assertEqual((path, headers["api-key"], headers["Authorization"]), ("/openai/v1/images/generations", KEY, None))
        self.assertEqual(body, {"model": "my-images", "prompt": "a cat", "n": 1})
        more = ["--azure-api-version=2024-10-21", "--azure-model=dall-e-3"]
        run = generate(NOWHERE, *azure, *more, env=env)
        self.assertIn("made by azure (dall-e-3)", run.stdout)
        path, headers, body = self.cloud.last()
        self.assertEqual((path, headers["api-key"]),
                         ("/openai/deployments/my-images/images/generations?api-version=2024-10-21", KEY))
        self.assertEqual(body, {"prompt": "a cat", "n": 1, "response_format": "b64_json"})
        run = generate(NOWHERE, *azure, "--azure-api-version=1&key=2", env=env)
        self.assertEqual(run.returncode, 2)

    def test_answers_that_are_none(self):
        error = lambda words, code=None: {"error": {"message": words, "type": "x", "param": None, "code": code}}
        image = lambda data: {"data": [{"b64_json": base64.b64encode(data).decode()}]}
        for status, body, exit_code, words in [
            (400, error("bad prompt", "moderation_blocked"), 3, "refused the request (400, moderation_blocked)\n"),
            (422, error("bad"), 3, "refused the request (422)\n"),
            (401, error("Incorrect API key provided: %s." % KEY, "invalid_api_key"), 7, "answered (401, invalid_api_key)\n"),
            (404, error("no such model", "model_not_found"), 7, "answered (404, model_not_found)\n"),
            (429, error("slow down", "\x1b[31mred\n"), 4, "answered (429)\n"),
            (500, b"<html>", 7, "answered (500)\n"),
            (503, error("\x1b[31mred\n"), 69, "answered (503)\n"),
            (504, b"", 5, "answered (504)\n"),
            (400, error("x" * 50000, "busy"), 3, "refused the request (400, busy)\n"),
            (400, error("x" * 100_000, "busy"), 3, "refused the request (400)\n"),
            (400, b"x" * 100_000, 3, "refused the request (400)\n"),
            (200, b"{", 7, "is no JSON"),
            (200, b"[" * 100_000, 7, "has no image"),
            (200, b'{"data":' + b"[" * 100_000, 7, "has no image"),
            (200, {}, 7, "has no image"),
            (200, {"data": [{"url": "http://127.0.0.1/x.png"}]}, 7, "has a link"),
            (200, {"data": [{"b64_json": "%%"}]}, 7, "broken base64"),
            (200, image(b"no image"), 7, "can be read"),
            (200, image(harness.write_png(64, 64)[:-20]), 7, "can be read"),
            (200, image(harness.write_png(4097, 64)), 7, "can be read"),
            (200, image(harness.write_png(64, 128)), 7, "64×128, not 64×64"),
            (200, b" " * (65 << 20), 7, "longer than"),
        ]:
            with self.subTest(status=status, words=words):
                self.cloud.answers(status, body)
                run = self.openai("--width=64", "--height=64")
                self.assertEqual(run.returncode, exit_code, run.stderr)
                self.assertIn(words, run.stderr)
                self.assertLess(len(run.stderr), 800)
                self.assertFalse(run.file.exists())

    def test_the_key_goes_nowhere_else(self):
        with Cloud() as other:
            other.draws(64, 64)
            for status in [301, 302, 303, 307, 308]:
                self.cloud.answers(status, b"", {"Location": other.url + "/v1/images/generations"})
                run = self.openai()
                self.assertEqual((run.returncode, "redirect (%d)" % status in run.stderr), (7, True), run.stderr)
            self.assertTrue(other.asked.empty())
            self.cloud.draws(64, 64)
            proxies = dict.fromkeys(["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY"], other.url)
            self.assertEqual(self.openai(env={"OPENAI_API_KEY": KEY, **proxies}).returncode, 0)
            self.assertTrue(other.asked.empty(), "nor in the clear to a proxy")
        for url in ["http://cloud.example/v1", "http://192.0.2.1", "ftp://127.0.0.1", "https://me:%s@cloud.example" % KEY]:
            run = generate(NOWHERE, "--providers=openai", "--openai-url=" + url)
            self.assertEqual(run.returncode, 2, run.stderr)

    def test_a_cloud_that_takes_its_time(self):
        waits = threading.Event()
        self.addCleanup(waits.set)

        def trickle(handler):
            handler.send_response(200)
            handler.end_headers()
            while not waits.wait(0.05):
                handler.wfile.write(b" ")

        for script in [lambda handler: waits.wait(PATIENCE), trickle]:
            self.cloud.script = script
            began = time.monotonic()
            run = self.openai("--cloud-timeout=0.5")
            self.assertEqual((run.returncode, "in time" in run.stderr), (5, True), run.stderr)
            self.assertLess(time.monotonic() - began, 10)

    def test_nobody_there(self):
        self.cloud.server.server_close()
        run = self.openai()
        self.assertEqual((run.returncode, "can't be reached" in run.stderr), (69, True), run.stderr)

    def test_the_next_one_is_asked_only_if_that_can_help(self):
        with Cloud() as second:
            second.draws(64, 64)
            azure = ["--azure-url=" + second.url, "--azure-deployment=d"]
            for status, by in [(429, "azure"), (500, "azure"), (401, "azure"), (400, None)]:
                self.cloud.answers(status, {"error": {"message": "x"}})
                run = generate(NOWHERE, "--providers=local,openai,azure", "--openai-url=" + self.cloud.url, *azure,
                               env={"OPENAI_API_KEY": KEY, "AZURE_OPENAI_API_KEY": KEY})
                self.assertEqual("made by azure" in run.stdout, by is not None, run.stderr)
            self.assertEqual(second.asked.qsize(), 3)
            self.assertIn("local: no daemon", run.stderr)

    def test_tls(self):
        folder = tempfile.mkdtemp(dir=FOLDER.name)
        files = ["-keyout", folder + "/key.pem", "-out", folder + "/cert.pem"]
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                        "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
                        "-addext", "basicConstraints=critical,CA:FALSE", *files], check=True, capture_output=True)
        both = pathlib.Path(folder, "both.pem")
        both.write_bytes(pathlib.Path(folder, "key.pem").read_bytes() + pathlib.Path(folder, "cert.pem").read_bytes())
        with Cloud(str(both)) as cloud:
            cloud.draws(64, 64)
            run = generate(NOWHERE, "--providers=openai", "--openai-url=" + cloud.url,
                           env={"OPENAI_API_KEY": KEY, "SSL_CERT_FILE": folder + "/cert.pem"})
            self.assertEqual(run.returncode, 0, run.stderr)
            self.assertEqual(cloud.last()[1]["Authorization"], "Bearer " + KEY)
            run = generate(NOWHERE, "--providers=openai", "--openai-url=" + cloud.url)
            self.assertNotEqual(run.returncode, 0)
            self.assertTrue(cloud.asked.empty(), "not to somebody that nobody vouches for")


if __name__ == "__main__":
    unittest.main()
