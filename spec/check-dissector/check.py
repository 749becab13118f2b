#!/usr/bin/env python3
"""Checks weave.lua with tshark: on weave.pcap, on broken captures, and on real traffic between weave and weaved.

Needs tshark, and weave and weaved: WEAVE and WEAVED say where they are, otherwise it is target/debug. Prints what
failed, and at the end `N passed, N failed`.
"""
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections import namedtuple

sys.dont_write_bytecode = True
HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent / "examples"))

import client  # noqa: E402
import make_capture  # noqa: E402
import scenarios  # noqa: E402
import test_client  # noqa: E402

DISSECTOR = HERE.parent / "weave.lua"
CAPTURE = ROOT / "target" / "dissector.pcap"
# How tshark shows that a script failed, or read beyond the end of a packet.
LUA_TROUBLE = re.compile(r"Lua Error|\blua:|\.lua:\d|\[Malformed Packet: weave|Dissector bug", re.IGNORECASE)

# One Weave frame in a packet: `fields` and `shown` have the values and the texts of each field, by name; `experts`
# the texts of the expert infos.
Frame = namedtuple("Frame", "packet stream title fields shown experts")
passed, failed = 0, 0


def check(name, holds, detail=""):
    global passed, failed
    passed, failed = passed + bool(holds), failed + (not holds)
    if not holds:
        print("FAILED: %s%s" % (name, detail and ": %s" % detail))


def tshark(*arguments):
    command = ["tshark", "-X", "lua_script:%s" % DISSECTOR, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300)
    output, errors = done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
    trouble = [line for line in (output + errors).splitlines() if LUA_TROUBLE.search(line)]
    if trouble or done.returncode:
        name = " ".join(map(str, arguments))
        check("tshark %s" % name, False, "\n".join([*trouble[:5], errors if done.returncode else ""]))
    return output


def frames(capture, *options):
    """All Weave frames of a capture."""
    found = []
    for packet in xml.etree.ElementTree.fromstring(tshark("-r", capture, "-T", "pdml", *options)).iter("packet"):
        number = int(packet.find(".//field[@name='num']").get("show"))
        stream = packet.find(".//field[@name='tcp.stream']")
        for layer in packet.findall("proto[@name='weave']"):
            fields, shown, experts = {}, {}, []
            for field in layer.iter("field"):
                name = field.get("name")
                if name == "_ws.expert":  # our own ones only; Wireshark has some about any text
                    if field.find("field").get("name").startswith("weave."):
                        experts.append(field.find("field[@name='_ws.expert.message']").get("show"))
                elif name.startswith("weave."):
                    fields.setdefault(name[6:], field.get("show"))
                    shown.setdefault(name[6:], field.get("showname") or field.get("show"))
            found.append(Frame(number, int(stream.get("show")), layer.get("showname"), fields, shown, experts))
    return found


def check_scenario(scenario, first_packet, seen, links=True):
    """`first_packet` is where the first of `sends` is. Without `links`, what takes two passes is left out."""
    name = scenario.name
    check(name, len(seen) == len(scenario.frames), "%d frames instead of %d" % (len(seen), len(scenario.frames)))
    for frame, expected in zip(seen, scenario.frames):
        for field, value in expected.fields.items():
            if isinstance(value, str) and value.startswith("@"):
                value = str(first_packet - 1 + int(value[1:]))
            if field == "answer_in" and not links:
                continue
            got = frame.fields.get(field)
            check(name, got is not None if value is ... else got == value, "%s is %r, not %r" % (field, got, value))
        same = len(frame.experts) == len(expected.experts) and all(
            piece in text for piece, text in zip(expected.experts, frame.experts))
        check(name, same, "expert infos are %s instead of %s" % (frame.experts, list(expected.experts)))


def check_prepared():
    """weave.pcap, field by field."""
    connections = scenarios.scenarios()
    CAPTURE.write_bytes(make_capture.build(connections))
    for passes in (["-2"], []):
        seen = frames(CAPTURE, *passes)
        packet = 1
        for number, scenario in enumerate(connections):
            mine = [frame for frame in seen if frame.stream == number]
            check_scenario(scenario, packet + 3, mine, links=bool(passes))
            packet += 3 + len(scenario.sends) + 2

    def shown(stream, at, field, text):
        name = connections[stream].name
        frame = [frame for frame in seen if frame.stream == stream][at]
        check(name, frame.shown.get(field) == text, "%s is shown as %r, not %r" % (field, frame.shown.get(field), text))

    for field, text in [("msg_type", "msg_type: request (0x0001)"), ("payload_len", "payload_len: 102 bytes"),
                        ("model_id", "model_id: Stable Diffusion 3.5 (0)"), ("width", "width: 64 pixels"),
                        ("seed", "seed: 0 (the server draws one)"),
                        ("clip_g", "clip_g: a cat in space (bytes 14 to 27 of prompt_data)")]:
        shown(0, 0, field, text)
    for field, text in [("msg_type", "msg_type: response (0x0002)"), ("status", "status: an image (200)"),
                        ("generation_time_ms", "generation_time_ms: 10000 ms"), ("channels", "channels: RGB (3)"),
                        ("image_data", "image_data: 12288 bytes")]:
        shown(0, 1, field, text)
    shown(1, 1, "status", "status: the request is wrong (400)")
    every = [scenario.name for scenario in connections].index("every error code")
    for at, (code, (name, _)) in enumerate(scenarios.ERRORS.items()):
        answer = [frame for frame in seen if frame.stream == every][len(scenarios.ERRORS) + at]
        check(name, answer.shown["error_code"].startswith("error_code: %s (%d): " % (name, code)))
        check(name, answer.title == "Weave, Error %d: %s: told by name" % (code, name), answer.title)

    def expected(field, value):
        return sum(seen.fields.get(field) == value for scenario in connections for seen in scenario.frames)
    for display_filter, count in [
        ("weave.error_code == 8", expected("error_code", "8")),
        ("weave.width == 65", 1),
        ('weave.t5 == "ame"', 1),
        ("weave.bad_magic", 4),
        ("weave.out_of_range && weave.steps == 101", 1),
        ("weave.request_id == 18446744073709551615", 1),
        ("weave.time > 0.0155", 1),
    ]:
        lines = tshark("-r", CAPTURE, "-Y", display_filter, "-T", "fields", "-e", "frame.number").splitlines()
        check(display_filter, len(lines) == count, "%d packets instead of %d" % (len(lines), count))
    info = tshark("-r", CAPTURE, "-Y", "frame.number == 4 || tcp.stream == 5", "-T", "fields", "-e", "_ws.col.Info")
    for text in ("Request 1: 64×64", "Request 5: 64×64; Request 6: 64×64", "Error 5: GPU_ERROR: steps 0: 1 to 100"):
        check("Info column", text in info, text)
    layers = json.loads(tshark("-r", CAPTURE, "-Y", "weave.error_code == 3", "-T", "json"))[0]["_source"]["layers"]
    check("JSON", layers["weave"]["weave.error_msg"] == "unsupported model ID", layers["weave"])


def check_ports(folder):
    """Streams that only a preference or Decode As can tell from others."""
    request = scenarios.request()
    halves = [scenarios.Send(True, request[:2]), scenarios.Send(True, request[2:])]
    capture = folder / "ports.pcap"
    connections = [scenarios.Scenario("a first segment of two bytes", halves, [])]
    capture.write_bytes(make_capture.build(connections, server_port=7411))
    check("no magic, no port", frames(capture) == [])
    for options in (["-o", "weave.port:7411"], ["-d", "tcp.port==7411,weave"]):
        check(" ".join(options), [frame.fields.get("width") for frame in frames(capture, *options)] == ["64"])
    check("another port", frames(capture, "-o", "weave.port:7412") == [])
    options = ["-o", "tcp.desegment_tcp_streams:FALSE"]
    cut = sum("the capture does not have all of this frame" in frame.experts for frame in frames(CAPTURE, *options))
    check("reassembly off", cut > 5, "%d frames are marked as cut" % cut)


def mutate(connections, rng):
    """Broken relatives of these connections: other bytes, other cuts, less captured than sent."""
    broken = []
    for scenario in connections:
        sends = []
        for send in scenario.sends:
            data = bytearray(send.data)
            if rng.random() < 0.7:
                # Lengths, counts and ids are in the first hundred bytes. The magic stays, or nothing else is looked at.
                for _ in range(rng.randint(1, 6)):
                    at = rng.randrange(min(4, len(data) - 1), min(len(data), 110))
                    data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
            if rng.random() < 0.2:
                del data[rng.randrange(len(data)):]
            if rng.random() < 0.1:
                data += rng.randbytes(rng.randint(1, 40))
            if rng.random() < 0.05:
                data = bytearray(b"WEVE" + rng.randbytes(rng.randint(0, 200)))
            snap = rng.choice([None, None, None, rng.randint(40, 180)])
            cut = rng.choice([len(data), len(data), rng.randint(4, 60)]) or 1
            sends += [scenarios.Send(send.from_client, bytes(data[at:at + cut]), snap)
                      for at in range(0, len(data), cut)][:50]
        broken.append(scenarios.Scenario(scenario.name, sends, []))
    return broken


def check_broken(folder):
    """No input makes the script fail, and none makes it silent."""
    rng = random.Random(20251231)
    small = [scenario for scenario in scenarios.scenarios() if sum(len(send.data) for send in scenario.sends) < 8000]
    broken = [scenario for _ in range(8) for scenario in mutate(small, rng)]
    capture = folder / "broken.pcap"
    capture.write_bytes(make_capture.build(broken))
    for options in (["-2", "-V"], ["-V", "-o", "tcp.desegment_tcp_streams:FALSE"], ["-V", "-o", "weave.port:7001"], []):
        before = failed
        output = tshark("-r", capture, *options)
        check("%d broken captures %s" % (len(broken), " ".join(options)),
              failed == before and output.count("Weave") > len(broken))


class Peers:
    """A weaved with test pictures, behind a TCP port, which again is behind a Unix socket where all is recorded."""

    def __init__(self, folder, weaved):
        self.folder, self.started = folder, []
        weaved_socket, self.spy, self.record = folder / "weaved.sock", folder / "spy.sock", folder / "recorded.pcap"
        self.start([weaved, "--no-config", "--engine", "pattern", "--pattern", "gradient", "--faults", "fail@boom",
                    "--log", "info", "--socket", weaved_socket], "listening")
        forward = [sys.executable, "-B", HERE / "forward.py"]
        line = self.start([*forward, "127.0.0.1:0", weaved_socket], "listening")
        self.port = int(line.rpartition(":")[2])
        self.start([*forward, "--pcap", self.record, self.spy, "127.0.0.1:%d" % self.port], "listening")

    def start(self, command, ready):
        """Starts a program and gives the first line with `ready` in it, or None if the program ends before it."""
        log = self.folder / ("log%d" % len(self.started))
        with open(log, "wb") as output:
            process = subprocess.Popen(list(map(str, command)), stdout=output, stderr=output)
        self.started.append(process)
        until = time.monotonic() + 30
        while time.monotonic() < until:
            ended = process.poll() is not None
            text = log.read_text("utf-8", "replace")
            for line in text.splitlines():
                if ready in line:
                    return line
            if ended:
                break
            time.sleep(0.02)
        raise RuntimeError("%s: %s" % (command[0], text.strip()))

    def stop(self):
        for process in reversed(self.started):
            process.terminate()
            process.wait()


def ask_over_tcp(port, requests):
    with client.connect("127.0.0.1:%d" % port) as sock:
        sock.settimeout(60)
        return {answer.request_id: answer for answer in client.ask(sock, requests)}


def make_traffic(peers, weave):
    """Four connections over TCP on the loopback interface; the last comes from `weave` and through the recorder."""
    done = subprocess.run([sys.executable, "-B", HERE.parent / "examples" / "client.py", "127.0.0.1:%d" % peers.port,
                           "ein Käse", "--width=512", "--height=384", "--steps=3", "--seed=7",
                           "--output", peers.folder / "client.png"])
    check("client.py over TCP", done.returncode == 0)
    wrong = client.build_request(8, "wrong", 64, 64, 1, 1.0, 2)
    ask_over_tcp(peers.port, {
        7: client.build_request(7, "first", 128, 64, 4, 1.0, 1),
        8: wrong[:36] + b"\0\0\0\0" + wrong[40:],
        9: client.build_request(9, "boom", 64, 64, 1, 1.0, 3),
    })
    ask_over_tcp(peers.port, {1: b"WEVF" + wrong[4:]})
    done = subprocess.run([weave, "generate", "a dog", "--socket", peers.spy, "--width=320", "--height=256",
                           "--steps=2", "--cfg=1", "--seed=11", "--quiet", "--output", peers.folder / "weave.png"])
    check("weave through the forwarder", done.returncode == 0)


def check_image(name, seen, width, height, prompt, seed):
    """A request and its image: two frames whose fields we know."""
    kinds = [frame.fields.get("msg_type") for frame in seen]
    check(name, kinds == ["0x0001", "0x0002"], kinds)
    if kinds == ["0x0001", "0x0002"]:
        request, response = (frame.fields for frame in seen)
        asked = dict(width=width, height=height, seed=seed, clip_l=prompt, clip_g=prompt, t5=prompt)
        for field, value in asked.items():
            check(name, request[field] == str(value), "%s is %s, not %s" % (field, request[field], value))
        check(name, request["answer_in"] == str(seen[1].packet) and response["request_in"] == str(seen[0].packet))
        check(name, response["request_id"] == request["request_id"] and response["status"] == "200")
        check(name, (response["image_width"], response["image_height"]) == (str(width), str(height)))
        pixels = bytes.fromhex(response["image_data"].replace(":", ""))
        check(name, pixels == test_client.gradient(width, height, prompt, seed), "these are not the picture's pixels")
    experts = [text for frame in seen for text in frame.experts]
    check(name, not experts, experts)


def check_live(capture):
    streams = {}
    for frame in frames(capture, "-2"):
        streams.setdefault(frame.stream, []).append(frame)
    check("live: four connections", len(streams) == 4, "%d" % len(streams))
    if len(streams) != 4:
        return
    image, pipelined, broken, weave = streams.values()
    check_image("live: client.py", image, 512, 384, "ein Käse", 7)
    check_image("live: weave", weave, 320, 256, "a dog", 11)

    asked = {frame.fields["request_id"]: frame for frame in pipelined if frame.fields["msg_type"] == "0x0001"}
    answered = {frame.fields["request_id"]: frame for frame in pipelined if frame.fields["msg_type"] != "0x0001"}
    check("live: pipelining", sorted(asked) == sorted(answered) == ["7", "8", "9"], (list(asked), list(answered)))
    for request_id in asked.keys() & answered.keys():
        check("live: pipelining", asked[request_id].fields["answer_in"] == str(answered[request_id].packet))
    check("live: steps", any("steps 0: must be 1 to 100" in text for text in asked["8"].experts), asked["8"].experts)
    for request_id, name, status in (("8", "INVALID_STEPS (6)", "400"), ("9", "GPU_ERROR (9)", "500")):
        frame = answered[request_id]
        check("live: " + name, name in frame.shown["error_code"] and frame.fields["status"] == status, frame)
    errors = [frame.shown.get("error_code", "") for frame in broken]
    check("live: wrong magic", [name for name in errors if "INVALID_MAGIC (1)" in name], errors)


def check_real(folder, weave, weaved):
    peers = Peers(folder, weaved)
    try:
        live, why = folder / "live.pcapng", None
        try:
            peers.start(["dumpcap", "-q", "-i", "lo", "-f", "tcp port %d" % peers.port, "-w", live], "File: ")
            dumpcap = peers.started.pop()
        except (RuntimeError, OSError) as fault:
            why = str(fault)
        make_traffic(peers, weave)
        if why is None:
            time.sleep(1)  # the kernel hands packets over in batches
            dumpcap.send_signal(signal.SIGINT)
            dumpcap.wait(timeout=30)
            check_live(live)
    finally:
        peers.stop()
    check_image("Unix socket, recorded", frames(peers.record, "-2"), 320, 256, "a dog", 11)
    return why


def main():
    programs = {name: os.environ.get(name.upper(), ROOT / "target" / "debug" / name) for name in ("weave", "weaved")}
    if not (shutil.which("tshark") and shutil.which("dumpcap")):
        sys.exit("check.py needs tshark: apt-get install tshark")
    for path in programs.values():
        if not os.access(path, os.X_OK):
            sys.exit("check.py needs %s: cargo build -p weave-client -p weave-daemon" % path)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        check_prepared()
        check_ports(folder)
        check_broken(folder)
        no_live = check_real(folder, **programs)
    if no_live is not None:
        print("NO LIVE CAPTURE IS POSSIBLE HERE: real traffic was checked only as forward.py recorded it, not as the "
              "network carried it.\n%s" % no_live)
    print("%d passed, %d failed" % (passed, failed))
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
