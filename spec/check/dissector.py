#!/usr/bin/env python3
"""Checks ../weave.lua with tshark: on the test vectors, on streams with requests and answers, on broken captures, and
on real traffic between weave and weaved.

Needs tshark, and weave and weaved, whose paths are in WEAVE and WEAVED. Prints what failed, and at the end
`N passed, N failed`. The captures stay in target/dissector, to be looked at.
"""
import collections
import contextlib
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree

SPEC = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(SPEC), str(SPEC / "examples")]

import client  # noqa: E402
import forward  # noqa: E402
import test_client  # noqa: E402

DISSECTOR = SPEC / "weave.lua"
TEXT = (SPEC / "weave-v1.md").read_text("utf-8")
CAPTURES = SPEC.parent / "target" / "dissector"
SEED = 20251231
BY_PORT = ("-o", "weave.port:%d" % forward.SERVER_PORT)
# How tshark shows that a script failed, or read beyond the end of a packet.
LUA_TROUBLE = (b"Lua Error", b"weave.lua:", b"Malformed Packet: WEAVE", b"Dissector bug")

# One segment. `snap`: how many bytes of its packet the capture has.
Send = collections.namedtuple("Send", "from_client data snap", defaults=(None,))
# One Weave frame of a capture; `fields` by name, without the "weave.".
Frame = collections.namedtuple("Frame", "packet stream title fields experts")
# `raw`: its bytes; `value` and `label`: as tshark shows them, the value alone and the line.
Field = collections.namedtuple("Field", "raw value label")
# `field`: where it is shown; None: at the frame as a whole.
Expert = collections.namedtuple("Expert", "field name severity text")
passed, failed = 0, 0


def check(name, holds, detail=""):
    global passed, failed
    passed, failed = passed + bool(holds), failed + (not holds)
    if not holds:
        print("FAILED: %s: %s" % (name, str(detail)[:2000]), flush=True)


def tshark(*arguments):
    command = ["tshark", "-X", "lua_script:%s" % DISSECTOR, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300)
    said = done.stderr + done.stdout
    signs = [sign for sign in LUA_TROUBLE if sign in said]
    at = said.find(signs[0]) if signs else 0
    detail = said[max(at - 100, 0):at + 300].decode("utf-8", "replace")
    check(" ".join(command), not signs and done.returncode == 0, detail)
    return done.stdout


def frames(capture, *options):
    """All Weave frames of a capture."""
    pdml = tshark("-r", capture, "-T", "pdml", "-J", "tcp weave", "-Y", "weave", *options)
    for noncharacter in "\ufffe\uffff":  # XML can't have these two; tshark writes them as they are
        pdml = pdml.replace(noncharacter.encode(), "\ufffd".encode())
    found = []
    for packet in xml.etree.ElementTree.fromstring(pdml).iter("packet"):
        number = int(packet.find(".//field[@name='num']").get("show"))
        stream = int(packet.find(".//field[@name='tcp.stream']").get("show"))
        for layer in packet.findall("proto[@name='weave']"):
            fields, experts = {}, list(experts_at(layer, None))
            for field in layer.findall("field"):
                name = field.get("name").removeprefix("weave.")
                if name != "_ws.expert":
                    label = field.get("showname") or field.get("show")
                    fields[name] = Field(bytes.fromhex(field.get("value", "")), field.get("show"), label)
                    experts += experts_at(field, name)
            found.append(Frame(number, stream, layer.get("showname"), fields, experts))
    return found


def experts_at(item, field):
    """The script's own expert infos; Wireshark has some about any text."""
    for info in item.findall("field[@name='_ws.expert']"):
        name = info.find("field").get("name")
        if name.startswith("weave."):
            severity = info.find("field[@name='_ws.expert.severity']").get("showname").rpartition(" ")[2]
            yield Expert(field, name[6:], severity, info.find("field[@name='_ws.expert.message']").get("show"))


def by_stream(seen):
    streams = collections.defaultdict(list)
    for frame in seen:
        streams[frame.stream].append(frame)
    return streams


def write_capture(name, connections):
    """A capture of made-up connections, each a list of Send, with a packet each millisecond. Gives its path, and for
    each connection the number of the packet that its first Send became."""
    path, first = CAPTURES / name, []
    with open(path, "wb") as file:
        capture = forward.Capture(file, clock=lambda: 1_767_225_600 + capture.packets / 1000)
        for sends in connections:
            connection = capture.connection()
            first.append(capture.packets + 1)
            for send in sends:
                connection.send(*send)
            connection.end(True)
            connection.end(False)
    return path, first


def segments(from_client, data, size):
    return [Send(from_client, data[at:at + size]) for at in range(0, len(data), size)]


# The test vectors -----------------------------------------------------------------------------------------------------

REQUEST, RESPONSE, ERROR = b"\0\1", b"\0\2", b"\0\xff"
HEADER = ("magic", "version", "msg_type", "payload_len", "reserved")
# The sizes of fields other than 4; 0: any.
SIZES = {"version": 2, "msg_type": 2, "error_msg_len": 2, "request_id": 8, "seed": 8, "prompt_data": 0,
         "image_data": 0, "error_msg": 0, "payload": 0, "trailing": 0, "junk": 0}
MEANINGS = dict(re.findall(r"^\| \d+ \| ([A-Z_]+) \| (?:400|500) \| ([^|]+) \|", TEXT, re.MULTILINE))


def read_vectors():
    files = sorted(path for path in (SPEC / "vectors").glob("*.json") if path.name != "schema.json")
    return [vector for path in files for vector in json.loads(path.read_text("utf-8"))["vectors"]]


def unhex(piece):
    return bytes.fromhex(piece["hex"]) * piece.get("times", 1)


def stream_of(vector):
    return b"".join(map(unhex, vector["bytes"]))


def groups_of(vector):
    """The bytes of each field of each frame."""
    groups = []
    for piece in vector["bytes"]:
        if piece["field"] in ("magic", "junk"):
            groups.append(collections.defaultdict(bytes))
        groups[-1][piece["field"]] += unhex(piece)
    return groups


def goes_astray(vector):
    """Whether there is a message for the other side in it. That looks right: who is who is not on the wire."""
    for_other_side = (RESPONSE, ERROR) if vector["receiver"] == "server" else (REQUEST,)
    return any(group["msg_type"] in for_other_side for group in groups_of(vector))


def as_shown(group, too_long):
    """The fields that must be shown of a frame: none that is cut, and `payload` for all that can't be told apart."""
    known = [*HEADER, "request_id"]
    if too_long:
        known = HEADER
    elif group["msg_type"] in (RESPONSE, ERROR) or (group["msg_type"], group["version"]) == (REQUEST, b"\0\1"):
        other_model = group["msg_type"] == REQUEST and group["model_id"] not in (b"", bytes(4))
        known = [*known, "model_id"] if other_model else group
    rest = b"".join(raw for name, raw in group.items() if name not in known)
    fields = [(name, raw) for name, raw in group.items() if name in known and raw and len(raw) >= SIZES.get(name, 4)]
    return fields + ([("payload", rest)] if rest else [])


def vector_problems(vector, seen):
    outcomes, groups = vector["expect"]["frames"], groups_of(vector)
    if len(seen) < len(outcomes) or (vector["expect"]["end"] != "closed" and len(seen) > len(outcomes)):
        yield "%d frames instead of %d" % (len(seen), len(outcomes))
    noted = 0
    for outcome, group, frame in zip(outcomes, groups, seen):
        [(kind, expected)] = outcome.items()
        refused = kind in ("answer", "close")
        if refused and expected["field"] == "magic":
            if [expert.name for expert in frame.experts] != ["bad_magic"]:
                yield "the magic is wrong: %s" % (frame.experts,)
            return
        too_long = expected.get("step") == 2 or expected.get("because") == "W1-FRM-007"
        want = as_shown(group, too_long)
        got = [(name, field.raw) for name, field in frame.fields.items() if name in dict(want)]
        if got != want and not too_long or got[:len(HEADER)] != want[:len(HEADER)]:
            yield "fields are\n  %s instead of\n  %s" % (got, want)
        if kind == "request":
            for name in ("clip_l", "clip_g", "t5"):
                if frame.fields[name].raw != expected[name]["text"].encode() * expected[name].get("times", 1):
                    yield frame.fields[name].label
        if kind == "error":
            name = expected.get("name")
            label = "error_code: %s (%d)" % (name or "Unknown", expected["error_code"])
            label += ": " + MEANINGS[name] if name else ""
            if frame.fields["error_code"].label != label:
                yield "%s instead of %s" % (frame.fields["error_code"].label, label)
        experts = [expert for expert in frame.experts if expert.name not in ("refused", "bad_answer")]
        noted += len(experts)
        if refused and not any(
                expert.field == expected["field"] and expected.get("because", "") in expert.text and
                expert.severity in ("Warning", "Error") for expert in experts):
            yield "nothing about %s: %s" % (expected, experts)
    # What a sender would not write gets a note, apart from values that mean the same to everybody.
    refused = any("answer" in outcome or "close" in outcome for outcome in outcomes)
    same = vector.get("sender") in (None, "A sender writes 0.0 for -0.0.") or any(
        "name" not in outcome.get("error", {"name"}) for outcome in outcomes)
    if not refused and (noted == 0) != same:
        yield "%d notes" % noted


def cut(stream, rng):
    """`stream` in pieces of random sizes."""
    at = 0
    while at < len(stream):
        size = rng.choice([1, 2, 3, rng.randint(4, 60)]) if len(stream) < 20_000 else 1448
        yield stream[at:at + size]
        at += size


def check_vectors():
    rng = random.Random(SEED)
    vectors = [vector for vector in read_vectors() if not goes_astray(vector)]
    check("there are vectors", len(vectors) > 400, len(vectors))
    small = [vector for vector in vectors if len(stream_of(vector)) < 1_000_000]
    rounds = [("whole", small, False, ["-2"]), ("cut", small, True, [])]
    rounds += [("large", [vector], False, []) for vector in vectors if vector not in small]  # one is 80 MB of PDML
    for title, group, is_cut, options in rounds:
        streams = [(vector["receiver"] == "server", stream_of(vector)) for vector in group]
        path, _ = write_capture("vectors-%s.pcap" % title, [
            [Send(from_client, piece) for piece in (cut(stream, rng) if is_cut else [stream])]
            for from_client, stream in streams])
        seen = by_stream(frames(path, *BY_PORT, *options))
        for number, vector in enumerate(group):
            problems = list(vector_problems(vector, seen[number]))
            check("vector %s, %s" % (vector["name"], title), not problems, "\n".join(problems))
    ids = set(re.findall(r"W\d-[A-Z]{3}-\d{3}", DISSECTOR.read_text("utf-8")))
    unknown = ids - set(re.findall(r"\*\*(W\d-[A-Z]{3}-\d{3})\*\*", TEXT))
    check("ids of weave.lua", not unknown, unknown)


# Streams --------------------------------------------------------------------------------------------------------------

def request(request_id, width=64, version=1, msg_type=1):
    frame = client.build_request(request_id, "a cat", width, 64, 28, 7.0, 0)
    return frame[:5] + bytes([version, 0, msg_type]) + frame[8:]


image, error, PIXELS = test_client.image, test_client.error, test_client.PIXELS

REQUEST_LINES = """magic: WEVE
version: 1
msg_type: request (0x0001)
payload_len: 75 bytes
reserved: 0x00000000
request_id: 1
model_id: Stable Diffusion 3.5 (0)
width: 64 pixels
height: 64 pixels
steps: 28
cfg_scale: 7
seed: 0 (the server draws one)
clip_l_offset: 0 bytes
clip_l_length: 5 bytes
clip_g_offset: 5 bytes
clip_g_length: 5 bytes
t5_offset: 10 bytes
t5_length: 5 bytes
prompt_data: 612063617461206361746120636174
clip_l: a cat (bytes 0 to 4 of prompt_data)
clip_g: a cat (bytes 5 to 9 of prompt_data)
t5: a cat (bytes 10 to 14 of prompt_data)"""
RESPONSE_LINES = """magic: WEVE
version: 1
msg_type: response (0x0002)
payload_len: 12320 bytes
reserved: 0x00000000
request_id: 1
status: an image (200)
generation_time_ms: 5 ms
image_width: 64 pixels
image_height: 64 pixels
channels: RGB (3)
image_data_len: 12288 bytes
image_data: 12288 bytes"""
ERROR_LINES = """magic: WEVE
version: 1
msg_type: error (0x00ff)
payload_len: 23 bytes
reserved: 0x00000000
request_id: 1
status: the request is wrong (400)
error_code: INVALID_STEPS (6): steps
error_msg_len: 5 bytes
error_msg: steps"""


def streams():
    """Name, what is sent, and for each frame that must be seen: some values, and pieces of its expert infos' texts.
    A value "@2" is the number of the packet that the second Send became; None: there is no such field."""
    return [
        ("a request and its image", [Send(True, request(1)), Send(False, image())],
         [({"answer_in": "@2"},), ({"request_in": "@1", "time": "0.001000000"},)]),
        ("a request and its error", [Send(True, request(1)), Send(False, error())],
         [({"answer_in": "@2"},), ({"request_in": "@1"}, "INVALID_STEPS: steps")]),
        ("two frames in each segment, answered in another order", [
            Send(True, request(5) + request(6)), Send(False, error(6) + error(5))],
         [({"request_id": "5", "answer_in": "@2"},), ({"request_id": "6", "answer_in": "@2"},),
          ({"request_in": "@1"}, "INVALID_STEPS"), ({"request_in": "@1"}, "INVALID_STEPS")]),
        ("the same request_id twice", [
            Send(True, request(1)), Send(True, request(1)), Send(False, error(1)), Send(False, image(1))],
         [({"answer_in": "@3"},), ({"answer_in": "@4"},),
          ({"request_in": "@1", "time": "0.002000000"}, "INVALID_STEPS"),
          ({"request_in": "@2", "time": "0.002000000"},)]),
        ("what is refused unread is answered too", [
            Send(True, request(1, version=2)), Send(True, request(2, msg_type=9)), Send(False, error(2, code=22)),
            Send(False, error(1, code=2))],
         [({"answer_in": "@4"}, "version 2 is not known here (W1-VER-003)"),
          ({"answer_in": "@3"}, "msg_type 0x0009 is not known here"), ({"request_in": "@2"}, "UNSUPPORTED_TYPE"),
          ({"request_in": "@1"}, "UNSUPPORTED_VERSION")]),
        ("an answer to nobody", [Send(True, request(1)), Send(False, error(2))],
         [({"answer_in": None},), ({"request_in": None, "time": None}, "no request 2 waits", "INVALID_STEPS")]),
        ("a second answer", [Send(True, request(1)), Send(False, image()), Send(False, image())],
         [({"answer_in": "@2"},), ({},), ({"request_in": None}, "no request 1 waits")]),
        ("an answer from another connection", [Send(False, error(1))], [({}, "no request 1 waits", "INVALID_STEPS")]),
        ("an error for the whole connection", [Send(False, error(0, 500, 23))], [({"request_in": None}, "BUSY")]),
        ("an image of another size", [Send(True, request(1, width=128)), Send(False, image())],
         [({"width": "128"},), ({"image_width": "64"}, "the request was for 128×64 pixels (W1-RSP-002)")]),
        ("error code 0", [Send(False, error(0, code=0))], [({}, "NONE) is never sent")]),
        ("error code 77", [Send(False, error(0, code=77))], [({}, "error_code 77 is not known here")]),

        ("a wrong magic within a segment", [Send(True, request(1) + b"WEVF" + request(2)[4:] + request(3))],
         [({"request_id": "1"},), ({"junk": (b"WEVF" + request(2)[4:]).hex(":")}, "no frame begins here"),
          ({"request_id": "3"},)]),
        ("a wrong magic in the next segment", [Send(True, request(1)), Send(True, b"GET / HTTP/1.1\r\n")],
         [({},), ({"junk": b"GET / HTTP/1.1\r\n".hex(":")}, "no frame begins here")]),
        ("a wrong byte at the end of a segment", [Send(True, request(1) + b"WEX")],
         [({},), ({"junk": b"WEX".hex(":")}, "no frame begins here")]),
        ("another protocol", [Send(True, b"GET / HTTP/1.1\r\n\r\n"), Send(True, request(1))], []),

        # The IP and TCP headers take 40 bytes of what is captured.
        ("a packet of which a part of the payload was captured", [Send(True, request(1), 100)],
         [({"seed": "0", "clip_l_offset": "0", "clip_g_offset": None}, "does not have all")]),
        ("a packet of which a part of the header was captured", [Send(True, request(1), 50)],
         [({"version": None}, "does not have all")]),
        ("a packet of which a part of the pixels was captured", [Send(False, image(), 200)],
         [({"image_width": "64", "image_data": PIXELS[:112].hex(":")}, "does not have all", "no request 1 waits")]),
    ]


def check_streams():
    named = streams()
    path, first = write_capture("streams.pcap", [sends for _, sends, _ in named])
    for options in ([], ["-2"]):  # only a second pass knows where an answer will be
        seen = by_stream(frames(path, *options))
        for number, (name, _, expected) in enumerate(named):
            check(name, len(seen[number]) == len(expected), "%d frames" % len(seen[number]))
            for frame, (values, *texts) in zip(seen[number], expected):
                for field, value in values.items():
                    if value is not None and value[0] == "@":
                        value = str(first[number] - 1 + int(value[1:]))
                    got = frame.fields[field].value if field in frame.fields else None
                    if field != "answer_in" or options:
                        check(name, got == value, "%s is %r, not %r" % (field, got, value))
                check(name, len(frame.experts) == len(texts) and all(
                    text in expert.text for text, expert in zip(texts, frame.experts)), frame.experts)
    for frame, lines, title in [
            (seen[0][0], REQUEST_LINES, "Weave, Request 1: 64×64"),
            (seen[0][1], RESPONSE_LINES, "Weave, Response 1: 64×64 RGB, 5 ms"),
            (seen[1][1], ERROR_LINES, "Weave, Error 1: INVALID_STEPS: steps")]:
        labels = [frame.fields[name].label for name in frame.fields if name not in ("answer_in", "request_in", "time")]
        check("lines", labels == lines.splitlines(), "\n".join(labels))
        check("title", frame.title == title, frame.title)
    info = tshark("-r", path, "-Y", "tcp.stream == 2", "-T", "fields", "-e", "_ws.col.Info").decode()
    check("Info column", "Request 5: 64×64; Request 6: 64×64\n" in info, info)
    count = tshark("-r", path, "-Y", "weave.bad_magic && tcp.stream in {12, 13}").count(b"\n")
    check("filter by expert info", count == 2, count)


def check_recognition():
    """Streams that begin with less than the magic: only a preference or Decode As can tell them from others."""
    sends = segments(True, request(1), 2)
    path, _ = write_capture("ports.pcap", [sends])
    check("no magic, no port", frames(path) == [])
    for options in (BY_PORT, ["-d", "tcp.port==%d,weave" % forward.SERVER_PORT]):
        check(options, [frame.fields["width"].value for frame in frames(path, *options)] == ["64"])
    check("another port", frames(path, "-o", "weave.port:7002") == [])
    path, _ = write_capture("cut.pcap", [segments(False, image(), 1448)])
    texts = [expert.text for frame in frames(path, "-o", "tcp.desegment_tcp_streams:FALSE") for expert in frame.experts]
    check("reassembly off", any("does not have all" in text for text in texts), texts)


def check_auth():
    """The lines before the first frame are shown as what they are, and the frames behind them are found."""
    digits = b"5a" * 32
    hello = b"weave-auth 1 %s\n" % digits
    path, _ = write_capture("auth.pcap", [
        [Send(True, hello), Send(False, hello[:-1] + b" %s\n" % digits), Send(True, digits + b"\n" + request(1)),
         Send(False, error())],
        [Send(True, digits + b"\n")],
    ])
    seen = frames(path)
    titles = [frame.title.partition(", ")[2] for frame in seen]
    check("lines before the first frame", titles == [
        "weave-auth 1: the client's nonce", "weave-auth 1: the server's nonce and proof",
        "weave-auth 1: the client's proof", "Request 1: 64×64", "Error 1: INVALID_STEPS: steps"], titles)
    check("nothing is wrong with them", not any(frame.experts for frame in seen[:4]), seen)


def broken(vectors, rng):
    """Relatives of the vectors: other bytes, other cuts, less captured than was sent."""
    for vector in vectors:
        data = bytearray(stream_of(vector) + request(rng.randrange(9)) + image() + error())
        for _ in range(rng.choice([0, 1, 2, 6])):
            data[rng.randrange(4, min(len(data), 110))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)):]
        if rng.random() < 0.1:
            data = bytearray(b"WEVE" + rng.randbytes(rng.randint(0, 200)))
        yield [Send(rng.random() < 0.5, bytes(data[at:at + size]), rng.choice([None, None, None, rng.randint(40, 180)]))
               for size in [rng.choice([len(data), rng.randint(4, 60), 1448])]
               for at in range(0, len(data), max(size, 1))][:50]


def check_broken():
    """No input makes the script fail, and none makes it silent."""
    rng = random.Random(SEED)
    vectors = [vector for vector in read_vectors() if len(stream_of(vector)) < 20_000]
    path, first = write_capture("broken.pcap", [sends for _ in range(3) for sends in broken(vectors, rng)])
    for options in (["-2", "-O", "weave"], ["-O", "weave", "-o", "tcp.desegment_tcp_streams:FALSE"],
                    ["-O", "weave", *BY_PORT], []):
        output = tshark("-r", path, *options)
        check("%d broken streams %s" % (len(first), options), output.count(b"Weave") > len(first))


def check_long():
    """The time that the largest response takes has nothing to do with the number of its segments."""
    frame = image(width=2048, height=2048, channels=4, length=2**24, data=bytes(2**24))
    paths = [write_capture("long-%d.pcap" % size, [segments(False, frame, size)])[0] for size in (60_000, 4096)]

    def seconds(path):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        check(path, tshark("-r", path, "-Y", "weave", "-T", "fields", "-e", "weave.image_data_len") == b"16777216\n")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # 15 times as many segments take 14 times as long where every segment makes a new attempt, 1.5 times otherwise.
    ratios = []
    while len(ratios) < 3 and not any(ratio < 5 for ratio in ratios):  # a busy machine can spoil one measurement
        few, many = map(seconds, paths)
        ratios.append(many / few)
    check("16 MiB in 4,096 segments and in 280", min(ratios) < 5, ratios)


# Real traffic ---------------------------------------------------------------------------------------------------------

def wait_until(probe, what, process):
    """The first true answer of `probe`; RuntimeError if `process` ends before it, or half a minute."""
    until = time.monotonic() + 30
    while True:
        ended = process.poll() is not None
        if answer := probe():
            return answer
        if ended or time.monotonic() > until:
            raise RuntimeError("%s: no %s" % (process.args[0], what))
        time.sleep(0.02)


class Peers:
    """A weaved with test pictures, behind a TCP port, which again is behind a Unix socket where all is recorded:

    weave -- Unix socket `spy` -- forward.py -- TCP `port` -- forward.py -- Unix socket -- weaved
    """

    def __init__(self, folder, cleanup, weaved):
        self.folder, self.cleanup, self.logs = folder, cleanup, 0
        weaved_socket, self.spy, self.record = folder / "weaved.sock", folder / "spy.sock", CAPTURES / "recorded.pcap"
        self.start([weaved, "--no-config", "--engine", "pattern", "--pattern", "gradient", "--faults", "fail@boom",
                    "--socket", weaved_socket], "listening")
        forward_py = [sys.executable, "-B", SPEC / "forward.py"]
        _, line = self.start([*forward_py, "127.0.0.1:0", weaved_socket], "listening")
        self.port = int(line.rpartition(":")[2])
        self.start([*forward_py, "--pcap", self.record, self.spy, "127.0.0.1:%d" % self.port], "listening")

    def start(self, command, ready):
        """Starts a program and waits for a line with `ready` in what it says. Gives both."""
        self.logs += 1
        log = self.folder / ("log%d" % self.logs)
        with open(log, "wb") as output:
            process = subprocess.Popen(list(map(str, command)), stdout=output, stderr=output)
        self.cleanup.callback(process.wait)
        self.cleanup.callback(process.terminate)

        def line():
            return next((line for line in log.read_text("utf-8", "replace").splitlines(True)
                         if ready in line and line.endswith("\n")), None)
        try:
            return process, wait_until(line, "line with %r" % ready, process)
        except RuntimeError as fault:
            raise RuntimeError("%s in what it said:\n%s" % (fault, log.read_text("utf-8", "replace"))) from None


def refusal():
    """Why the system lets nobody capture here; None if it does."""
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
    except OSError as fault:
        return str(fault)


def make_traffic(peers, weave):
    """Four connections over TCP on the loopback interface; the last comes from `weave` and through the recorder."""
    def ask(requests):
        with client.connect("127.0.0.1:%d" % peers.port) as sock:
            sock.settimeout(60)
            return list(client.ask(sock, requests))
    ask({5: client.build_request(5, "ein Käse", 512, 384, 3, 7.0, 7)})
    wrong = client.build_request(8, "wrong", 64, 64, 1, 1.0, 2)
    ask({7: client.build_request(7, "first", 128, 64, 4, 1.0, 1), 8: wrong[:36] + bytes(4) + wrong[40:],
         9: client.build_request(9, "boom", 64, 64, 1, 1.0, 3)})
    ask({1: b"WEVF" + wrong[4:]})
    subprocess.run([weave, "generate", "a dog", "--socket", peers.spy, "--width=320", "--height=256", "--steps=2",
                    "--cfg=1", "--seed=11", "--quiet", "--output", peers.folder / "weave.png"], check=True, timeout=60)


def check_image(name, seen, width, height, prompt, seed):
    """A request and its image: two frames whose fields we know."""
    kinds = [frame.fields["msg_type"].raw for frame in seen]
    check(name, kinds == [REQUEST, RESPONSE], seen)
    if kinds != [REQUEST, RESPONSE]:
        return
    asked, got = seen
    values = dict(width=width, height=height, seed=seed, clip_l=prompt, clip_g=prompt, t5=prompt, answer_in=got.packet)
    for field, value in values.items():
        check(name, asked.fields[field].value == str(value), asked.fields[field].label)
    values = dict(image_width=width, image_height=height, request_in=asked.packet, status=200,
                  request_id=asked.fields["request_id"].value)
    for field, value in values.items():
        check(name, got.fields[field].value == str(value), got.fields[field].label)
    check(name, got.fields["image_data"].raw == test_client.gradient(width, height, prompt, seed), "other pixels")
    check(name, not asked.experts + got.experts, asked.experts + got.experts)


def check_live(capture):
    seen = by_stream(frames(capture, "-2"))
    check("live: four connections", len(seen) == 4, list(seen))
    if len(seen) != 4:
        return
    plain, pipelined, wrong_magic, weave = seen.values()
    check_image("live: client.py", plain, 512, 384, "ein Käse", 7)
    check_image("live: weave", weave, 320, 256, "a dog", 11)

    asked = {frame.fields["request_id"].value: frame for frame in pipelined if "answer_in" in frame.fields}
    answered = {frame.fields["request_id"].value: frame for frame in pipelined if "request_in" in frame.fields}
    check("live: pipelining", sorted(asked) == sorted(answered) == ["7", "8", "9"], pipelined)
    for request_id, label, text in [("8", "error_code: INVALID_STEPS (6): steps", "steps 0: must be 1 to 100"),
                                    ("9", "error_code: GPU_ERROR (9): the engine failed or died", "")]:
        check(label, answered[request_id].fields["error_code"].label == label, answered[request_id])
        check(label, text in "".join(expert.text for expert in asked[request_id].experts), asked[request_id].experts)
    titles = [frame.title for frame in wrong_magic]
    check("live: wrong magic", titles[-1].startswith("Weave, Error 0: INVALID_MAGIC: magic is"), titles)


def check_real(weave, weaved):
    """Gives why there was no live capture, or None."""
    with contextlib.ExitStack() as cleanup:
        folder = pathlib.Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
        peers = Peers(folder, cleanup, weaved)
        live, dumpcap = folder / "live.pcapng", None
        # Its buffer, in MiB, has room for all of the traffic: no packet is lost where the processor is busy.
        command = ["dumpcap", "-q", "-B", "16", "-i", "lo", "-f", "port %d" % peers.port, "-w", live]
        try:
            dumpcap, _ = peers.start(command, "File: ")
        except (RuntimeError, OSError) as fault:
            why = refusal()
            if not why:
                check("dumpcap", False, fault)
        make_traffic(peers, weave)
        if dumpcap:
            # Packets are captured in their order, so this one is the last.
            end = b"the end of the capture"
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(end, ("127.0.0.1", peers.port))
            wait_until(lambda: end in live.read_bytes(), "end of the capture", dumpcap)
            dumpcap.send_signal(signal.SIGINT)
            dumpcap.wait(timeout=30)
            check_live(shutil.copy(live, CAPTURES))
    check_image("Unix socket, recorded", frames(peers.record, "-2"), 320, 256, "a dog", 11)
    return None if dumpcap else why


def main():
    programs = {name: os.environ.get(name.upper(), "") for name in ("weave", "weaved")}
    for name, path in programs.items():
        if not os.access(path, os.X_OK):
            sys.exit("dissector: set %s to the path of %s" % (name.upper(), name))
    if not shutil.which("tshark"):
        sys.exit("dissector: tshark is missing; please install it (Debian: tshark)")
    CAPTURES.mkdir(parents=True, exist_ok=True)
    for part in (check_vectors, check_streams, check_recognition, check_auth, check_broken, check_long):
        part()
    no_live = check_real(**programs)
    if no_live:
        print("dissector: a live capture on the loopback interface was NOT CHECKED, it isn't permitted here (%s); the "
              "real traffic was checked as forward.py recorded it" % no_live)
    print("dissector: %d passed, %d failed" % (passed, failed))
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
