"""Tests of the adapter: that it understands any form of JSON, and what weave-conform does not ask."""
import json, os, pathlib, struct, subprocess, unittest, zlib

ADAPTER = os.environ.get("ADAPTER", str(pathlib.Path(__file__).parent / "build" / "adapter"))
HEADER = struct.Struct(">4sHHII")
BUSY = HEADER.pack(b"WEVE", 1, 0xFF, 23, 0) + struct.pack(">QIIH", 7, 500, 23, 5) + b"later"
REQUEST = {"write": "request", "request_id": "1", "width": 512, "height": 512, "steps": 28, "cfg_scale": "40E00000",
           "seed": "0", "clip_l": "6120636174", "clip_g": "6120636174", "t5": "6120636174"}
HEAD = {"write": "response-head", "request_id": "1", "generation_time_ms": 1500, "image_width": 64, "image_height": 64,
        "channels": 3}
ERROR = {"write": "error", "request_id": "1", "error_code": 5, "error_msg": "7769647468206973203635"}


def run(*lines):
    return subprocess.run([ADAPTER], input="".join(lines).encode(), capture_output=True, timeout=60)


class Adapter(unittest.TestCase):
    def ask(self, *questions):
        """The answers to questions, which are objects or lines."""
        lines = [q if isinstance(q, str) else json.dumps(q) + "\n" for q in questions]
        done = run(*lines)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        answers = [json.loads(line) for line in done.stdout.decode().splitlines()]
        self.assertEqual(len(answers), len(questions))
        return answers

    def test_each_answer_comes_before_the_next_question(self):
        with subprocess.Popen([ADAPTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            for _ in range(3):
                process.stdin.write(json.dumps(ERROR) + "\n")
                process.stdin.flush()
                self.assertIn("hex", json.loads(process.stdout.readline()))
            process.stdin.close()
            self.assertEqual((process.stdout.read(), process.wait(60)), ("", 0))

    def test_any_form_of_json(self):
        hex_ = BUSY.hex()
        wanted = {"frames": [{"error": {"request_id": "7", "status": 500, "error_code": 23, "hex": b"later".hex(),
                                        "shown": b"later".hex(), "trailing": 0}}], "end": "between-frames"}
        for line in (
            '{"read":"client","cut":7,"bytes":[{"hex":"%s"}]}\n' % hex_.upper(),
            ' {\t"bytes" : [ { "hex" : "%s" } ] ,"cut" : 7 , "read" : "client" } \r\n' % hex_,
            '{"cut":7e0,"\\u0062ytes":[{"times":1,"hex":"\\u00357%s"}],"read":"\\u0063lient"}' % hex_[2:],
            '{"new":{"a":[1,{"read":"server"},"]}\\"",null],"b":{}},"read":"client","x":[],"y":true,"cut":7.0,'
            '"bytes":[{"new":-1.5e-3,"hex":"%s","z":"\\\\"},{"hex":""},{"hex":"%s"}]}\n' % (hex_[:8], hex_[8:]),
        ):
            with self.subTest(line=line):
                [answer] = self.ask(line)
                self.assertEqual([{k: v.lower() if isinstance(v, str) else v for k, v in f["error"].items()}
                                  for f in answer["frames"]], [f["error"] for f in wanted["frames"]])
                self.assertEqual(answer["end"], wanted["end"])

    def test_no_bytes(self):
        for bytes_ in ([], [{"hex": ""}], [{"hex": "57", "times": 0}]):
            [answer] = self.ask({"read": "server", "cut": 1, "bytes": bytes_})
            self.assertEqual(answer, {"frames": [], "end": "between-frames"})

    def test_repeated_pieces(self):
        pixels = bytes(range(48)) * 256
        head = HEADER.pack(b"WEVE", 1, 2, 32 + len(pixels), 0)
        head += struct.pack(">Q6I", 3, 200, 9, 64, 64, 3, len(pixels))
        pieces = [{"hex": head.hex()}, {"hex": pixels[:48].hex(), "times": 256}]
        for cut in (1, 7, 4093, 2**24):
            [answer] = self.ask({"read": "client", "cut": cut, "bytes": pieces + pieces})  # two images
            crcs = [frame["response"]["crc32"] for frame in answer["frames"]]
            self.assertEqual(crcs, 2 * [f"{zlib.crc32(pixels):08X}"])

    def test_two_requests(self):
        [written] = self.ask(REQUEST)
        [answer] = self.ask({"read": "server", "cut": 7, "bytes": 2 * [written]})
        self.assertEqual([frame["request"]["t5"]["hex"] for frame in answer["frames"]], 2 * ["6120636174"])

    def test_the_longest_message(self):
        """No byte is lost, and shown is six times as long."""
        frame = HEADER.pack(b"WEVE", 1, 0xFF, 18 + 65535, 0) + struct.pack(">QIIH", 7, 500, 23, 65535)
        [answer] = self.ask({"read": "client", "cut": 65536,
                             "bytes": [{"hex": frame.hex()}, {"hex": "1b", "times": 65535}]})
        error = answer["frames"][0]["error"]
        self.assertEqual(bytes.fromhex(error["hex"]), b"\x1b" * 65535)
        self.assertEqual(bytes.fromhex(error["shown"]), b"\\u{1B}" * 65535)

    def test_a_line_of_64_kib(self):
        question = {"read": "server", "cut": 9, "bytes": [{"hex": "00" * 16}]}
        spaces = 65536 - len(json.dumps(question))
        line = json.dumps(question)[:-1] + " " * spaces + "}"
        self.assertEqual(len(line), 65536)
        for end in ("\n", "\r\n", ""):
            [answer] = self.ask(line + end)
            self.assertEqual(answer["end"], "closed")

    def test_what_is_written(self):
        request, head, error = self.ask(REQUEST, HEAD, ERROR)
        self.assertEqual(bytes.fromhex(request["hex"]), HEADER.pack(b"WEVE", 1, 1, 75, 0) + struct.pack(
            ">Q4IfQ6I", 1, 0, 512, 512, 28, 7.0, 0, 0, 5, 5, 5, 10, 5) + 3 * b"a cat")
        self.assertEqual(bytes.fromhex(head["hex"]), HEADER.pack(b"WEVE", 1, 2, 32 + 12288, 0) + struct.pack(
            ">Q6I", 1, 200, 1500, 64, 64, 3, 12288))
        self.assertEqual(bytes.fromhex(error["hex"]), HEADER.pack(b"WEVE", 1, 0xFF, 29, 0) + struct.pack(
            ">QIIH", 1, 400, 5, 11) + b"width is 65")

    def test_what_is_refused(self):
        for base, field, value, named in (
            (REQUEST, "width", 65, "width"),
            (REQUEST, "height", 2**32 + 64, "height"),
            (REQUEST, "steps", -1, "steps"),
            (REQUEST, "steps", 1.5, "steps"),
            (REQUEST, "cfg_scale", "7fc00000", "cfg_scale"),
            (REQUEST, "seed", str(2**64), "seed"),
            (REQUEST, "request_id", str(2**64 * 10), "request_id"),
            (REQUEST, "clip_l", "", "clip_l_length"),
            (REQUEST, "clip_g", "61" * 2049, "clip_g_length"),
            (REQUEST, "t5", "61" * 30000, "t5_length"),
            (REQUEST, "t5", "ff", "t5"),
            (REQUEST, "t5", "6100", "t5"),
            (HEAD, "image_width", 0, "image_width"),
            (HEAD, "image_height", 2**32, "image_height"),
            (HEAD, "channels", 5, "channels"),
            (ERROR, "error_code", 0, "error_code"),
            (ERROR, "error_msg", "ff", "error_msg"),
        ):
            with self.subTest(field=field, value=value):
                self.assertEqual(self.ask({**base, field: value}), [{"refused": named}])

    def test_the_largest_values(self):
        most = str(2**64 - 1)
        [answer] = self.ask({**REQUEST, "request_id": most, "seed": most, "clip_l": "61" * 2048})
        frame = bytes.fromhex(answer["hex"])
        self.assertEqual((frame[16:24], frame[44:52], len(frame)), (b"\xff" * 8, b"\xff" * 8, 16 + 60 + 2048 + 5 + 5))

    def test_what_it_can_not_do(self):
        for question in ({"read": "proxy", "cut": 1, "bytes": []}, {"write": "ping"}, {"sing": "aloud"}, {}):
            self.assertEqual([*self.ask(question)[0]], ["unsupported"])

    def test_what_is_no_question(self):
        good = '{"read":"server","cut":1,"bytes":[]}'
        for line in ("\n", "[]\n", '{"read"\n', '{"read":"server\n', good[:-3] + "\n", good.replace("1", "0") + "\n",
                     good.replace("1", '"1"') + "\n", good.replace("[]", '[{"hex":"0"}]') + "\n",
                     good.replace("[]", '[{"hex":"zz"}]') + "\n", good.replace("[]", "[{}]") + "\n",
                     good.replace("server", "\\q") + "\n", good.replace("server", "\\u12") + "\n",
                     good.replace("[]", '[{"hex":"00","times":17825793}]') + "\n",
                     good[:-1] + " " * 70000 + "}\n", '{"read":"server","cut":1}\n', '{"a":,"read":1}\n'):
            with self.subTest(line=line[:60]):
                done = run(line)
                self.assertEqual((done.returncode, done.stdout), (1, b""))
                self.assertTrue(done.stderr.startswith(b"adapter: "))


unittest.main()
