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
from harness import (
    CLEAN, KEY, PATIENCE, WEAVE, Cloud, FakeAdmin, FakeDaemon, Gateway, Weaved, eventually, gradient, model, read_png)

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
        self.assertEqual(weave.pop("model", "test pattern"), "test pattern")
        self.assertEqual(weave, {"provider": "local", "width": 128, "height": 64, "seed": 7, "steps": 3, "cfg_scale": 1.5})
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
        how = lambda weave: [weave[name] for name in ("width", "height", "steps", "cfg_scale")]
        self.assertEqual(how(weave), [512, 512, 28, 7.0])
        with FakeAdmin(FOLDER.name, model=model()) as admin:
            for flags, is_ in [
                ([], [128, 64, 8, 1.5]), (["--steps=9"], [128, 64, 9, 1.5]), (["--width=64", "--height=128"], [64, 128, 8, 1.5]),
                (["--size=64x128", "--steps=9", "--cfg=2.5"], [64, 128, 9, 2.5]), (["--cfg-scale=0"], [128, 64, 8, 0]),
            ]:
                with Gateway(FOLDER.name, self.weaved.socket, "--admin-socket=%s" % admin.path, *flags) as gateway:
                    weave = client(gateway).images.generate(prompt="x").data[0].model_extra["weave"]
                    self.assertEqual((how(weave), weave["model"]), (is_, "demo model"))
        # Who says nothing, or nonsense, is as if nobody were there.
        for pages in [{}, {"model": {"name": 1}}, {"model": model(width=65)}]:
            with FakeAdmin(FOLDER.name, **pages) as admin, \
                    Gateway(FOLDER.name, self.weaved.socket, "--admin-socket=%s" % admin.path) as gateway:
                weave = client(gateway).images.generate(prompt="x").data[0].model_extra["weave"]
                self.assertEqual((how(weave), "model" in weave), ([512, 512, 28, 7.0], False))

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
            ({"prompt": ""}, "prompt", "invalid_value", "prompt is empty; say what to draw"),
            ({"prompt": "x" * 2049}, "prompt", "invalid_value", "prompt has 2049 bytes of UTF-8, may have 2048"),
            ({"prompt": "a\0b"}, "prompt", "invalid_value", "prompt has a NUL character, \\u0000, after 1 bytes"),
            ({"prompt": 5}, "prompt", "invalid_value", "prompt is 5, must be a string"),
            ({"n": 0}, "n", "invalid_value", "n is 0, must be an integer from 1 to 10"),
            ({"n": 11}, "n", "invalid_value", "n is 11"),
            ({"n": 1.5}, "n", "invalid_value", "n is 1.5"),
            ({"n": 5, "size": "2048x2048"}, "n", "invalid_value", "at most 4 for images of 2048x2048"),
            ({"size": "100x64"}, "size", "invalid_value", "the nearest is 128x64"),
            ({"size": "64x4096"}, "size", "invalid_value", "the nearest is 64x2048"),
            ({"size": "64"}, "size", "invalid_value", "WIDTHxHEIGHT"),
            ({"size": "+64x64"}, "size", "invalid_value", "WIDTHxHEIGHT"),
            ({"size": "64x99999999999"}, "size", "invalid_value", "the nearest is 64x2048"),
            ({"size": [64, 64]}, "size", "invalid_value", "must be a string"),
            ({"steps": 0}, "steps", "invalid_value", "1 to 100"),
            ({"steps": "8"}, "steps", "invalid_value", "\"8\""),
            ({"cfg": 20.5}, "cfg_scale", "invalid_value", "20.5"),
            ({"cfg": 7, "cfg_scale": 7.5}, "cfg_scale", "invalid_value", "leave one of them out"),
            ({"cfg": True}, "cfg", "invalid_value", "must be a number"),
            ({"seed": -2}, "seed", "invalid_value", "seed is -2, must be a whole number from 0 to"),
            ({"seed": 1.5}, "seed", "invalid_value", "drawn at random"),
            ({"seed": 1e19}, "seed", "invalid_value", "without point or exponent"),
            ({"seed": "x"}, "seed", "invalid_value", "seed is \"x\""),
            ({"seed": 2**64}, "seed", "invalid_value", "18446744073709551615"),
            ({"response_format": "hex"}, "response_format", "invalid_value", "must be \"b64_json\" or \"url\""),
            ({"output_format": "gif"}, "output_format", "invalid_value", "webp"),
            ({"output_compression": 50}, "output_compression", "unsupported_parameter", "say \"output_format\": \"jpeg\""),
            ({"output_format": "webp", "output_compression": 50}, "output_compression", "unsupported_parameter", "webp is made without loss"),
            ({"output_format": "jpeg", "output_compression": 101}, "output_compression", "invalid_value", "101"),
            ({"quality": "ultra"}, "quality", "invalid_value", "quality is \"ultra\": must be \"auto\""),
            ({"style": "anime"}, "style", "invalid_value", "say it in the prompt"),
            ({"background": "transparent"}, "background", "unsupported_parameter", "no transparent background here; leave it out"),
            ({"background": "blue"}, "background", "invalid_value", "\"opaque\" or \"auto\""),
            ({"moderation": "high"}, "moderation", "invalid_value", "nothing is moderated"),
            ({"stream": True}, "stream", "unsupported_parameter", "when all images are done; leave it out"),
            ({"stream": 0}, "stream", "invalid_value", "must be false"),
            ({"partial_images": 2}, "partial_images", "unsupported_parameter", "or say 0"),
            ({"partial_images": "no"}, "partial_images", "invalid_value", "must be 0"),
            ({"input_fidelity": 1}, "input_fidelity", "invalid_value", "\"low\" or \"high\""),
            ({"width": 512}, "width", "unknown_parameter", "width is 512: it is size here"),
            ({"prompt": "a <sd_cpp_extra_args>{\"seed\": 5}</sd_cpp_extra_args>"}, "prompt", "unsupported_syntax",
             "set the fields seed, steps, cfg_scale and size"),
            ({"prompt": "a <lora:x:1> cat"}, "prompt", "unsupported_syntax", "LoRA"),
            ({"negative_prompt": "dogs" * 99}, "negative_prompt", "unknown_parameter", "dogs"),
            ({"negative_prompt": "dogs"}, "negative_prompt", "unknown_parameter", "there is none here; say in prompt"),
            ({"guidance_scale": 7}, "guidance_scale", "unknown_parameter", "it is cfg_scale here"),
            ({"num_inference_steps": 7}, "num_inference_steps", "unknown_parameter", "it is steps here"),
            ({"sampler_name": "x"}, "sampler_name", "unknown_parameter", "can't choose it"),
            ({"image": "x"}, "image", "unknown_parameter", "from a prompt alone"),
            ({"responseFormat": "url"}, "responseFormat", "unknown_parameter", "its name here is response_format"),
            ({"colour": "x"}, "colour", "unknown_parameter", "it is unknown here; leave it out"),
            ({"x" * 300: 1}, "x" * 300, "unknown_parameter", "x" * 60),
            ({"user": 1}, "user", "invalid_value", "user is 1: must be a string"),
            ({"metadata": "x"}, "metadata", "invalid_value", "must be an object"),
        ]:
            with self.subTest(body):
                status, _, answer = self.gateway.draw(**body)
                error = answer["error"]
                self.assertEqual((status, error["param"], error["code"]), (400, param, code), error)
                self.assertEqual((set(error), error["type"]), ({"message", "type", "param", "code"}, "invalid_request_error"))
                self.assertIn(words, error["message"])
                self.assertLess(len(error["message"]), 300)
        for body, words in [
            (b"", "the body is empty"), (b"{", "line 1 column 1"), (b"[]", "the body is [], must be a JSON object"),
            (b"\"a\"", "must be a JSON object"), (b"{}x", "trailing characters"), (b"[" * 60000, "recursion"),
            (b'{"prompt": "\xe9"}', "isn't UTF-8, from byte 12 (0xe9) on; is it Latin-1?"), (b"\xef\xbb\xbf{}", "byte order mark"),
            ('{"prompt": "a"}'.encode("utf-16"), "UTF-16"), (b'{"prompt": "\\ud83d"}', "emoji"), (b'{"seed": 1e999}', "number"),
        ]:
            status, _, text = self.gateway.ask("POST", "/v1/images/generations", body)
            error = json.loads(text)["error"]
            self.assertEqual((status, error["code"]), (400, "invalid_json"), body[:20])
            self.assertIn(words, error["message"])
        for body, name in [(b'{"prompt": "a", "prompt": "a"}', "prompt"), (b'{"prompt": "a", "metadata": {"a": [{"b": 1, "b": 2}]}}', "b")]:
            status, _, text = self.gateway.ask("POST", "/v1/images/generations", body)
            error = json.loads(text)["error"]
            self.assertEqual((status, error["code"], error["param"]), (400, "duplicate_parameter", name))
            self.assertIn("\"%s\" is there twice" % name, error["message"])
        for headers, words in [
            ({"Content-Encoding": "gzip"}, "Content-Encoding is \"gzip\""), ({"Content-Encoding": "br, gzip"}, "br, gzip"),
            ({"Content-Type": "application/json; charset=ISO-8859-1"}, "\"ISO-8859-1\""),
        ]:
            status, _, text = self.gateway.ask("POST", "/v1/images/generations", b'{"prompt": "a"}', headers)
            error = json.loads(text)["error"]
            self.assertEqual((status, error["code"]), (415, "unsupported_media_type"))
            self.assertIn(words, error["message"])
        self.assertEqual(self.weaved.dispatched(), before, "none of these went to the daemon")
        with self.assertRaises(openai.BadRequestError) as caught:
            client(self.gateway).images.generate(prompt="x", size="1000x1000")
        self.assertEqual((caught.exception.param, caught.exception.code), ("size", "invalid_value"))

    def test_what_asks_for_what_happens_anyway_is_taken(self):
        for more in [
            {"output_compression": 100}, {"output_compression": 100, "output_format": "png"},
            {"output_compression": 100.0, "output_format": "webp"}, {"output_compression": 100, "output_format": "jpeg"},
            {"moderation": "auto"}, {"moderation": "low"}, {"style": "auto"}, {"quality": "auto"}, {"background": "auto"},
            {"background": "opaque"}, {"partial_images": 0}, {"partial_images": 0.0}, {"stream": False}, {"stream": None}, {"n": 1.0},
            {"steps": 2.0}, {"seed": 42.0}, {"seed": "42"}, {"seed": 0}, {"seed": -1}, {"seed": -1.0}, {"cfg": 7}, {"cfg_scale": 7, "cfg": 7.0},
            {"user": "me"}, {"safety_identifier": "me"}, {"metadata": {"a": "b"}}, {"response_format": "b64_json"}, {"model": "sd3.5"},
        ]:
            with self.subTest(more):
                status, headers, answer = self.gateway.draw(**more)
                self.assertEqual((status, headers["X-Weave-Ignored"]), (200, None), answer)
                weave = answer["data"][0]["weave"]
                self.assertNotIn("ignored", weave)
                if more.get("seed") in (42.0, "42"):
                    self.assertEqual(weave["seed"], 42)
                elif "seed" in more:
                    self.assertTrue(0 < weave["seed"] < 2**32)
        for headers in [{"Content-Encoding": "identity"}, {"Content-Type": "application/json; charset=\"UTF-8\""}]:
            body = b'{"prompt": "a", "size": "64x64", "steps": 1}'
            self.assertEqual(self.gateway.ask("POST", "/v1/images/generations", body, headers)[0], 200, headers)

    def test_a_seed_that_is_exact(self):
        for seed, text in [(2**53, None), (2**53 + 1, str(2**53 + 1)), (str(2**64 - 1), str(2**64 - 1))]:
            weave = self.gateway.draw(seed=seed)[2]["data"][0]["weave"]
            self.assertEqual((weave["seed"], weave.get("seed_text")), (int(seed), text))

    def test_hints_are_named_or_refused(self):
        hints = [("quality", value) for value in ("low", "medium", "high", "standard", "hd")] + [
            ("style", "vivid"), ("style", "natural"), ("input_fidelity", "high")]
        with Gateway(FOLDER.name, self.weaved.socket, "--strict") as strict:
            for name, value in hints:
                status, headers, answer = self.gateway.draw(**{name: value})
                self.assertEqual((status, headers["X-Weave-Ignored"], answer["data"][0]["weave"]["ignored"]), (200, name, [name]))
                status, _, answer = strict.draw(**{name: value})
                error = answer["error"]
                self.assertEqual((status, error["param"], error["code"]), (400, name, "unsupported_parameter"))
                self.assertIn("%s is \"%s\": has no effect here; leave it out" % (name, value), error["message"])
            self.assertEqual(strict.draw(quality="auto", background="opaque")[0], 200)
        status, headers, answer = self.gateway.draw(style="vivid", quality="hd", n=2)
        self.assertEqual((headers["X-Weave-Ignored"], answer["data"][1]["weave"]["ignored"]), ("quality, style", ["quality", "style"]))

    def test_models(self):
        with FakeAdmin(FOLDER.name, model=model()) as admin, \
                Gateway(FOLDER.name, self.weaved.socket, "--admin-socket=%s" % admin.path) as gateway:
            ai = client(gateway)
            models = list(ai.models.list())
            self.assertEqual([model.id for model in models], ["demo-model", "sd3.5"])
            for one in models + [ai.models.retrieve("sd3.5"), ai.models.retrieve("demo-model")]:
                self.assertLess(abs(one.created - time.time()), 2 * PATIENCE)
                self.assertEqual((one.owned_by, one.model_extra["weave"]), (
                    "weave", {"name": "demo model", "toy": True, "draws": "coloured shapes"}))
            for name in ("sd3.5", "demo-model"):
                self.assertEqual(len(ai.images.generate(model=name, prompt="x", size="64x64").data), 1)
            for ask in (lambda: ai.models.retrieve("dall-e-3"), lambda: ai.models.retrieve("sd3.5-large"),
                        lambda: ai.images.generate(model="gpt-image-1", prompt="x")):
                with self.assertRaises(openai.NotFoundError) as caught:
                    ask()
                self.assertEqual((caught.exception.code, caught.exception.param), ("model_not_found", "model"))
                for words in ("\"demo-model\"", "no real model", "--model-names"):
                    self.assertIn(words, str(caught.exception.message))
            gateway.wait_for("images are drawn by the demo model, which is no real model .*it draws coloured shapes")
        # Without a daemon that says which, any of its names may be the one.
        with Gateway(FOLDER.name, NOWHERE) as gateway:
            ai = client(gateway)
            self.assertEqual([model.id for model in ai.models.list()], ["sd3.5"])
            for name, error in [("sd3.5-medium", openai.InternalServerError), ("dall-e-3", openai.NotFoundError)]:
                with self.assertRaises(error):
                    ai.images.generate(model=name, prompt="x")
        self.assertEqual(self.gateway.ask("GET", "/v1/models/%ff")[0], 404)

    def test_what_is_not_there(self):
        for method, path, status, code in [
            ("POST", "/v1/images/edits", 404, "not_found"), ("POST", "/v1/chat/completions", 404, "not_found"),
            ("GET", "/v1/images/generations", 405, "method_not_allowed"), ("GET", "/..%2f", 404, "not_found"),
            ("POST", "/v1/images/files/x.png", 405, "method_not_allowed"),
        ]:
            found, _, text = self.gateway.ask(method, path)
            self.assertEqual((found, json.loads(text)["error"]["code"]), (status, code))
        for method, path, words in [
            ("POST", "/images/generations", "there is no POST /images/generations here; the base URL ends in /v1"),
            ("GET", "/models", "the base URL ends in /v1"), ("POST", "/v1/images/generations/", "it is /v1/images/generations"),
            ("POST", "//v1//images/generations", "it is /v1/images/generations"),
            ("POST", "/v1/v1/images/generations", "/v1 once"), ("POST", "/v1/images/edits", "from a prompt alone"),
            ("POST", "/openai/deployments/x/images/generations", "it is POST /v1/images/generations"),
            ("POST", "/sdapi/v1/txt2img", "images are at POST /v1/images/generations"),
        ]:
            found, _, text = self.gateway.ask(method, path)
            self.assertEqual(found, 404)
            self.assertIn(words, json.loads(text)["error"]["message"])
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
        text = self.raw(b"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                        b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
        self.assertEqual((text[:12], b"Transfer-Encoding is" in text), (b"HTTP/1.1 415", True))
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
            self.assertEqual(client(gateway, token).models.list().data[0].id, "test-pattern")
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
            (["--size=100x100"], "the nearest is 128x128"), (["--steps=0"], "must be a whole number from 1 to 100"), (["--steps=x"], "from 1 to 100"), (["--requests=0"], "from 1 to 400"), (["--size=100"], "WIDTHxHEIGHT"),
            (["--width=64"], "--height"), (["--width=64", "--height=64", "--size=64x64"], "--size"), (["--cfg-scale=21"], "must be a number from 0 to 20"),
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
        self.assertIn("can't listen at %s: another program listens there" % taken, run.stderr)


class OtherPrograms(Served):
    """What programs send that have a model's name, quality and style built in, and read links."""
    gateway_flags = ["--model-names=dall-e-2, dall-e-3,gpt-image-1", "--size=64x64", "--steps=1"]

    def ask(self, **body):
        status, headers, text = self.gateway.ask("POST", "/v1/images/generations", body)
        self.assertEqual(status, 200, text)
        return headers, json.loads(text)["data"]

    def fetched(self, url, kind="image/png", headers={}):
        self.assertTrue(url.startswith(self.gateway.url + "/v1/images/files/"), url)
        status, answered, data = self.gateway.ask("GET", url[len(self.gateway.url):], headers=headers)
        self.assertEqual((status, answered["Content-Type"]), (200, kind))
        return answered, data

    def test_langchain(self):
        # DallEAPIWrapper: neither is response_format sent nor anything but url read.
        answer = client(self.gateway).images.generate(prompt="a cat", n=2, size="1024x1024", model="dall-e-2", quality="standard")
        for image in answer.data:
            self.assertIsNone(image.b64_json)
            self.assertEqual(read_png(self.fetched(image.url)[1])[:2], (1024, 1024))
        self.assertEqual(answer.data[0].model_extra["weave"]["ignored"], ["quality"])

    def test_llamaindex(self):
        # OpenAIImageGenerationToolSpec.
        answer = client(self.gateway).images.generate(
            prompt="a cat", n=1, model="dall-e-3", quality="standard", size="1024x1024", response_format="b64_json", style="vivid")
        self.assertEqual(read_png(base64.b64decode(answer.data[0].b64_json))[:2], (1024, 1024))

    def test_librechat(self):
        headers, (image,) = self.ask(model="dall-e-3", prompt="a cat", quality="hd", style="vivid", size="1024x1024", n=1)
        self.assertEqual(headers["X-Weave-Ignored"], "quality, style")
        self.fetched(image["url"])
        headers, (image,) = self.ask(model="gpt-image-1", prompt="a cat", background="auto", n=1, output_compression=100,
                                     output_format="png", quality="auto", size="auto", moderation="auto")
        self.assertEqual(read_png(base64.b64decode(image["b64_json"]))[:2], (64, 64))
        self.assertNotIn("X-Weave-Ignored", headers)

    def test_open_webui(self):
        _, (image,) = self.ask(model="dall-e-2", prompt="a cat", n=1, size="512x512", response_format="b64_json")
        self.assertEqual(read_png(base64.b64decode(image["b64_json"]))[:2], (512, 512))

    def test_names(self):
        ids = [model.id for model in client(self.gateway).models.list()]
        self.assertEqual(ids[-4:], ["sd3.5", "dall-e-2", "dall-e-3", "gpt-image-1"])
        self.assertEqual(client(self.gateway).models.retrieve("dall-e-3").id, "dall-e-3")
        self.assertEqual(self.gateway.draw(model="gpt-image-2")[0], 404)
        with Gateway(FOLDER.name, self.weaved.socket, "--model-names=*") as gateway:
            self.assertEqual((gateway.draw(model="anything")[0], gateway.draw(model=5)[0]), (200, 400))
            self.assertNotIn("*", [model.id for model in client(gateway).models.list()])

    def test_links(self):
        headers, images = self.ask(prompt="a cat", response_format="url", n=2, seed=7)
        self.assertEqual((len({image["url"] for image in images}), "b64_json" in images[0]), (2, False))
        self.assertRegex(images[0]["url"], r"/[0-9a-f]{32}\.png$")
        answered, data = self.fetched(images[0]["url"])
        self.assertEqual(read_png(data)[2], gradient("a cat", 7, 64, 64))
        self.assertEqual(answered["Content-Disposition"], 'inline; filename="weave-7.png"')
        self.assertRegex(answered["Cache-Control"], r"^private, max-age=(600|5\d\d)$")
        for name, value in [("X-Content-Type-Options", "nosniff"), ("Cross-Origin-Resource-Policy", "cross-origin"),
                            ("Referrer-Policy", "no-referrer"), ("Content-Security-Policy", "default-src 'none'; sandbox")]:
            self.assertEqual(answered[name], value)
        for kind in ("jpeg", "webp"):
            _, (image,) = self.ask(prompt="a cat", response_format="url", output_format=kind)
            self.fetched(image["url"], "image/" + kind)
        path = images[0]["url"][len(self.gateway.url):]
        for wrong in [path.replace(".png", ".webp"), path[:-5] + ("0" if path[-5] != "0" else "1") + ".png", path + "x", "/v1/images/files/x"]:
            status, _, text = self.gateway.ask("GET", wrong)
            self.assertEqual((status, json.loads(text)["error"]["code"]), (404, "not_found"))
            self.assertIn("links live for 10 minutes", json.loads(text)["error"]["message"])
        self.assertEqual(self.gateway.ask("GET", path, host="evil.example")[0], 403)
        self.assertNotIn(path.rsplit("/", 1)[1].split(".")[0], self.gateway.said())

    def test_where_links_lead(self):
        here = "127.0.0.1:%d" % self.gateway.port
        body = {"prompt": "a cat", "response_format": "url"}
        for host in [here, "localhost:1", "[::1]:80"]:
            text = self.gateway.ask("POST", "/v1/images/generations", body, host=host)[2]
            self.assertTrue(json.loads(text)["data"][0]["url"].startswith("http://%s/v1/images/files/" % host))
        flags = ["--public-url=https://images.example/weave/", "--token-file=%s" % secret("links-token"), *self.gateway_flags]
        with Gateway(FOLDER.name, self.weaved.socket, *flags) as gateway:
            text = gateway.ask("POST", "/v1/images/generations", body, {"Authorization": "Bearer " + KEY}, host="images.example")[2]
            url = json.loads(text)["data"][0]["url"]
            self.assertTrue(url.startswith("https://images.example/weave/v1/images/files/"), url)
            # Who fetches a link has no token.
            path = url[len("https://images.example/weave"):]
            status, answered, data = gateway.ask("GET", path)
            self.assertEqual((status, data[:4]), (200, b"\x89PNG"))
            status, answered, _ = gateway.ask("GET", path.replace(".png", ".jpeg"))
            self.assertEqual((status, answered["Connection"]), (404, "close"))
            self.assertEqual(gateway.ask("GET", "/v1/models")[0], 401)


class Log(Served):
    """A line for each request that is refused: what was wrong, and nothing that is a secret."""

    def test_each_refusal_has_its_line(self):
        token = secret("log-token")
        big = {"X-Long": "x" * 20000}
        bearer = {"Authorization": "Bearer " + KEY}
        with Gateway(FOLDER.name, self.weaved.socket, "--token-file=%s" % token, "--strict") as gateway:
            for method, path, body, headers, host, line in [
                ("POST", "/v1/images/generations", {"prompt": "secret cat", "quality": "hd"}, bearer, None,
                 "400 unsupported_parameter, field quality: POST /v1/images/generations"),
                ("POST", "/v1/images/generations", {"secret cat": "secret cat"}, bearer, None, "400 missing_required_parameter, field prompt"),
                ("POST", "/v1/images/generations", {"prompt": "a", "secret cat": 1}, bearer, None, "400 unknown_parameter, field ?: POST"),
                ("POST", "/v1/images/generations", b"{", bearer, None, "400 invalid_json: POST"),
                ("POST", "/v1/images/generations", {"prompt": "a", "model": "dall-e-2"}, bearer, None, "404 model_not_found, field model"),
                ("POST", "/v1/images/generations", b" " * 65537, bearer, None, "413 request_too_large"),
                ("POST", "/v1/images/generations", b"{}", {**bearer, "Content-Encoding": "gzip"}, None, '415 unsupported_media_type, "gzip"'),
                ("POST", "/v1/images/generations", b"{}", {**bearer, "Content-Type": "text/plain"}, None, '415 unsupported_media_type, "text/plain"'),
                ("POST", "/v1/images/generations", {"prompt": "a"}, {**bearer, "X-Weave-Request": "a b"}, None, "400 invalid_header"),
                ("GET", "/v1/models", None, {}, None, "401 invalid_api_key: GET /v1/models"),
                ("GET", "/v1/models", None, {"Authorization": "Bearer wrong-secret-token"}, None, "401 invalid_api_key"),
                ("GET", "/v1/models", None, bearer, "host.docker.internal:8080", '403 invalid_host, "host.docker.internal:8080"'),
                ("GET", "/v1/models", None, {**bearer, "Origin": "http://a.example"}, None, '403 invalid_origin, "http://a.example"'),
                ("POST", "/images/generations", None, bearer, None, "404 not_found: POST /images/generations"),
                ("GET", "/v1/images/files/0123456789abcdef.png", None, {}, None, "404 not_found: GET /v1/images/files/…"),
                ("DELETE", "/v1/models", None, bearer, None, "405 method_not_allowed: DELETE /v1/models"),
                ("GET", "/healthz", None, big, None, "431: the head has more than 16384 bytes"),
            ]:
                with self.subTest(line):
                    before = gateway.said().count("refused: ")
                    status = gateway.ask(method, path, body, headers, host)[0]
                    self.assertTrue(line.startswith(str(status)), status)
                    found = gateway.wait_for("weave: refused: " + re.escape(line) + ".*, from 127.0.0.1\n")
                    self.assertEqual(gateway.said().count("refused: "), before + 1, found)
            with socket.create_connection(("127.0.0.1", gateway.port), PATIENCE) as sock:
                sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
                gateway.wait_for("refused: 400: this is no HTTP/1.1")
            with socket.create_connection(("127.0.0.1", gateway.port), PATIENCE) as sock:
                sock.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                             b"Authorization: Bearer %s\r\nContent-Length: 10\r\n\r\n{" % KEY.encode())
                gateway.wait_for("refused: 408 timeout: POST")
            said = gateway.said()
            for word in ("secret", KEY, "0123456789abcdef"):
                self.assertNotIn(word, said)

    def test_what_failed_later_has_one_line(self):
        with Gateway(FOLDER.name, NOWHERE) as gateway:
            self.assertEqual(gateway.draw()[0], 503)
            gateway.wait_for("1 of 64×64, 2 steps, png: 503 no daemon answers")
            self.assertNotIn("refused", gateway.said())

    def test_a_flood_does_not_fill_the_disk(self):
        with Gateway(FOLDER.name, self.weaved.socket) as gateway:
            for _ in range(60):
                self.assertEqual(gateway.ask("GET", "/nothing")[0], 404)
            self.assertEqual(gateway.said().count("refused: 404"), 30)

    def test_the_start_says_what_to_call(self):
        with Gateway(FOLDER.name, self.weaved.socket) as gateway:
            gateway.wait_for("the page is at %s/, the base URL for OpenAI's clients is %s/v1" % (gateway.url, gateway.url))
        with Gateway(FOLDER.name, NOWHERE) as gateway:
            gateway.wait_for("no daemon answers at %s .*; until then requests are answered with 503" % NOWHERE)


class Origins(Served):
    gateway_flags = ["--allow-origin= http://localhost:3000/ ,https://chat.example", "--token-file=TOKEN"]

    @classmethod
    def setUpClass(cls):
        cls.gateway_flags = [flag.replace("TOKEN", str(secret("origins-token"))) for flag in cls.gateway_flags]
        super().setUpClass()

    def test_pages_that_may(self):
        for origin, allowed in [
            ("http://localhost:3000", True), ("https://chat.example", True), ("http://localhost:3001", False),
            ("https://localhost:3000", False), ("http://localhost", False), ("http://chat.example", False), ("null", False),
            ("https://chat.example.evil.example", False), ("http://localhost:3000/", False),
        ]:
            with self.subTest(origin):
                body = {"prompt": "a", "size": "64x64", "steps": 1, "quality": "hd"}
                headers = {"Origin": origin, "Authorization": "Bearer " + KEY}
                status, answered, _ = self.gateway.ask("POST", "/v1/images/generations", body, headers)
                self.assertEqual((status, answered["Access-Control-Allow-Origin"]), (200, origin) if allowed else (403, None))
                self.assertNotIn("Access-Control-Allow-Credentials", answered)
                self.assertEqual(answered["Vary"], "origin")
                status, answered, _ = self.gateway.ask("OPTIONS", "/v1/images/generations", headers={
                    "Origin": origin, "Access-Control-Request-Method": "POST",
                    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
                    "Access-Control-Request-Private-Network": "true"})
                if not allowed:
                    self.assertEqual((status, answered["Access-Control-Allow-Origin"]), (403, None))
                    continue
                self.assertEqual((status, answered["Access-Control-Allow-Origin"]), (204, origin))
                self.assertEqual(answered["Access-Control-Allow-Headers"], "authorization,content-type,x-stainless-os")
                self.assertEqual(answered["Access-Control-Allow-Methods"], "GET, POST")
                self.assertEqual(answered["Access-Control-Allow-Private-Network"], "true")
                # What is refused can be read, too.
                status, answered, _ = self.gateway.ask("GET", "/v1/models", headers={"Origin": origin})
                self.assertEqual((status, answered["Access-Control-Allow-Origin"]), (401, origin))
                self.assertIn("x-weave-ignored", answered["Access-Control-Expose-Headers"])
        headers = {"Origin": "http://localhost:3000", "Authorization": "Bearer " + KEY}
        self.assertEqual(self.gateway.ask("GET", "/v1/models", headers=headers, host="evil.example")[0], 403)
        self.assertEqual(self.gateway.ask("OPTIONS", "/v1/models", headers=headers)[0], 405, "no preflight")


class Settings(Served):
    """Each setting that is a list or an address: what is taken, and the words for what isn't."""

    def start(self, flags, env):
        is_said = "WEAVE_GATEWAY_LISTEN" in env or any(flag.startswith("--listen") for flag in flags)
        listen = [] if is_said else ["--listen=127.0.0.1:0"]
        command = [WEAVE, "gateway", "--socket=x", *listen, *flags]
        return subprocess.run(command, env={**CLEAN, **env}, capture_output=True, text=True, timeout=PATIENCE)

    def test_what_is_refused(self):
        for flag, variable, bad in [
            ("--allow-host", "WEAVE_GATEWAY_ALLOW_HOST", [
                ("*", "write each name"), ("a.example,,b.example", "a part of the list is empty"), ("a.example,", "is empty"),
                ("a.example/v1", "must be a host name, such as a.example"), ("a b", "host name")]),
            ("--allow-origin", "WEAVE_GATEWAY_ALLOW_ORIGIN", [
                ("*", "any page"), ("localhost:3000", "such as http://localhost:3000"), ("http://a.example, ", "is empty"),
                ("http://a.example/app", "the origin of a page")]),
            ("--model-names", "WEAVE_GATEWAY_MODEL_NAMES", [("dall-e-3,,x", "is empty"), ("dall*", "or * for any")]),
            ("--providers", "WEAVE_PROVIDERS", [("local,,openai", "is empty"), ("local,dalle", "possible values: local, openai, azure")]),
            ("--public-url", "WEAVE_GATEWAY_PUBLIC_URL", [
                ("images.example", "such as https://images.example"), ("https://images.example/v1", "without /v1")]),
            ("--listen", "WEAVE_GATEWAY_LISTEN", [
                ("localhost", "localhost:8080 or 8080"), ("*:8080", "0.0.0.0:8080"), ("http://127.0.0.1:8080", "such as")]),
        ]:
            for text, words in bad + [("", None)]:
                run = self.start(["%s=%s" % (flag, text)], {})
                self.assertEqual((run.returncode, run.stdout), (2, ""), (flag, text))
                self.assertIn(flag, run.stderr)
                if words is not None:
                    self.assertIn(words, run.stderr)
                    run = self.start([], {variable: text})
                    self.assertEqual(run.returncode, 2, (variable, text))
                    self.assertIn(words, run.stderr)
        for flag in ("--token-file", "--size", "--openai-model", "--azure-deployment", "--azure-model"):
            run = self.start([flag + "="], {})
            self.assertEqual((run.returncode, flag in run.stderr), (2, True), run.stderr)

    def test_what_is_taken(self):
        names = ["ALLOW_HOST", "ALLOW_ORIGIN", "MODEL_NAMES", "PUBLIC_URL", "TOKEN_FILE"]
        nothing = {"WEAVE_GATEWAY_" + name: "" for name in names} | {"WEAVE_PROVIDERS": "", "WEAVE_OPENAI_MODEL": ""}
        with Gateway(FOLDER.name, self.weaved.socket, env=nothing) as gateway:
            self.assertEqual(gateway.draw()[0], 200)
        for flags, env in [
            (["--allow-host= a.example , https://b.example:8443/ ,C.Example:80"], {}),
            ([], {"WEAVE_GATEWAY_ALLOW_HOST": "a.example, b.example,c.example"}),
        ]:
            with Gateway(FOLDER.name, self.weaved.socket, *flags, env=env) as gateway:
                for host in ("a.example", "b.example", "c.example:80"):
                    self.assertEqual(gateway.ask("GET", "/v1/models", host=host)[0], 200, host)
        with Gateway(FOLDER.name, self.weaved.socket, "--providers= local , openai", env={"OPENAI_API_KEY": KEY}) as gateway:
            self.assertEqual(gateway.draw()[0], 200)
        for listen in ["localhost:0", ":0", "0"]:
            with Gateway(FOLDER.name, self.weaved.socket, listen=listen) as gateway:
                self.assertRegex(gateway.said(), r"listening at http://127.0.0.1:\d+ ")
                self.assertEqual(gateway.ask("GET", "/v1/models")[0], 200)


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
                "provider": "openai", "model": "sd3.5", "width": 64, "height": 128, "dropped": ["steps", "cfg_scale"]})
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
        self.assertRegex(run.stdout, r"^\S+\.png: 64×64, made by openai \(sd3\.5\) in \d+\.\d s, without cfg_scale, which it doesn't take\n$")
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
