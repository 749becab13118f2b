"""Tests of haproxy.cfg: WEAVED=path/to/weaved python3 test_haproxy.py

The real HAProxy in front of three real weaved, under load, while one is killed, one is stopped, one is drained and
one hangs.
"""
import collections
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "spec/examples"))
import client

CONFIG = HERE / "haproxy.cfg"
NAMES = ["gpu0", "gpu1", "gpu2"]
SHUTTING_DOWN = 24
PATIENCE = 20
SIDE = 64

# What became of a request: "image", an error's code, or "closed".
Fate = collections.namedtuple("Fate", "request_id port fate began ended")


def gradient(prompt, seed):
    """What the pattern engine must draw, from its description."""
    value = 0xCBF29CE484222325
    for byte in seed.to_bytes(8, "little") + prompt.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    red, green, blue = value.to_bytes(8, "little")[:3]
    pixels = bytearray(3 * SIDE * SIDE)
    pixels[0::3] = bytes((red + 4 * x) % 256 for x in range(SIDE)) * SIDE
    pixels[1::3] = b"".join(bytes([(green + 4 * y) % 256]) * SIDE for y in range(SIDE))
    pixels[2::3] = bytes([blue]) * (SIDE * SIDE)
    return bytes(pixels)


def eventually(what, holds):
    until = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > until:
            raise AssertionError("never came true: " + what)
        time.sleep(0.01)


class Weaved:
    def __init__(self, folder, name):
        self.socket = folder / name / "weave.sock"
        self.log = folder / (name + ".log")
        self.process = None

    def start(self):
        command = [os.environ["WEAVED"], "--no-config", "--engine=pattern", "--pattern=gradient", "--faults=slow=0.01"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command + ["--socket=%s" % self.socket], stdin=subprocess.DEVNULL, stderr=log)

    def signal(self, number):
        self.process.send_signal(number)

    def begun(self):
        """The requests that its worker was given."""
        return {int(n) for n in re.findall(r"request (\d+): %d" % SIDE, self.log.read_text())}


class Load:
    """Clients that ask one after the other, each time on a new connection, for one to three images at once."""

    def __init__(self, port, clients=9):
        self.port, self.fates, self.over = port, [], threading.Event()
        self.threads = [threading.Thread(target=self.work, args=[n]) for n in range(clients)]
        self.wrong = []
        for thread in self.threads:
            thread.start()

    def work(self, number):
        turn = 0
        while not self.over.is_set():
            turn += 1
            first = (number + 1) * 1_000_000 + turn * 10
            self.ask(range(first, first + 1 + turn % 3))

    def ask(self, ids):
        frames = {n: client.build_request(n, "image %d" % n, SIDE, SIDE, 1, 1.0, n) for n in ids}
        began = time.monotonic()
        port = None
        try:
            with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as sock:
                port = sock.getsockname()[1]
                for answer in client.ask(sock, frames):
                    is_image = isinstance(answer, client.Image)
                    n = answer.request_id
                    if is_image and answer.image_data != gradient("image %d" % n, n):
                        self.wrong.append("the wrong picture for %d" % n)
                    del frames[n]
                    fate = "image" if is_image else answer.error_code
                    self.fates.append(Fate(n, port, fate, began, time.monotonic()))
        except (client.Broken, ConnectionError):
            pass
        except TimeoutError:
            self.wrong.append("no answer for %s" % list(frames))
        except Exception as fault:  # Otherwise the thread would end without a word.
            self.wrong.append(repr(fault))
        for n in frames:
            self.fates.append(Fate(n, port, "closed", began, time.monotonic()))

    def run_for(self, images):
        """Until so many more images have arrived."""
        count = lambda: sum(fate.fate == "image" for fate in list(self.fates))
        goal = count() + images
        eventually("%d more images" % images, lambda: count() >= goal or self.wrong)

    def end(self):
        self.over.set()
        for thread in self.threads:
            thread.join(PATIENCE)
        if self.wrong:
            raise AssertionError(self.wrong)
        return self.fates


class Behind(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.weaved = {name: Weaved(self.folder, name) for name in NAMES}
        self.addCleanup(self.stop)
        for weaved in self.weaved.values():
            weaved.start()
        eventually("all listen", lambda: all(weaved.socket.exists() for weaved in self.weaved.values()))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.balancer = self.folder / "balancer.sock"
        self.log = self.folder / "haproxy.log"
        environment = dict(os.environ, WEAVE_LISTEN="127.0.0.1:%d" % self.port, WEAVE_RUN=str(self.folder),
                           WEAVE_BALANCER=str(self.balancer))
        with self.log.open("wb") as log:
            self.haproxy = subprocess.Popen(["haproxy", "-db", "-f", CONFIG], env=environment, stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log)
        eventually("HAProxy listens", self.balancer.exists)

    def stop(self):
        for process in [getattr(self, "haproxy", None)] + [weaved.process for weaved in self.weaved.values()]:
            if process is not None:
                process.kill()
                process.wait()

    def command(self, text):
        """What HAProxy's own socket answers."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self.balancer))
            sock.sendall(text.encode() + b"\n")
            with sock.makefile("r") as answer:
                return answer.read()

    def servers(self):
        """The columns of HAProxy's statistics for each weaved."""
        head, *lines = self.command("show stat weaved 4 -1").lstrip("# ").strip().splitlines()
        rows = [dict(zip(head.split(","), line.split(","))) for line in lines]
        return {row["svname"]: row for row in rows}

    def await_status(self, name, status):
        eventually("%s is %s" % (name, status), lambda: self.servers()[name]["status"].startswith(status))

    def await_connections(self, name, wanted):
        eventually("%s has the right connections" % name, lambda: wanted(int(self.servers()[name]["scur"])))

    def served_by(self, load):
        """Which weaved each of the client's ports led to in the end."""
        def known():
            found = re.findall(r"^127\.0\.0\.1:(\d+) (\S+) ", self.log.read_text(), re.MULTILINE)
            return {int(port): name for port, name in found}
        eventually("HAProxy has logged all", lambda: {fate.port for fate in load.fates} <= known().keys())
        return known()

    def check(self, load, allowed):
        """All have an image, but for those whose weaved and fate are in `allowed`. Counts these."""
        by, count = self.served_by(load), collections.Counter()
        for fate in load.fates:
            if fate.fate != "image":
                self.assertIn((by[fate.port], fate.fate), allowed, fate)
                count[by[fate.port], fate.fate] += 1
        # What a worker began was answered, or belongs to one that was killed.
        gone = {fate.request_id for fate in load.fates if fate.fate != "image"}
        for name, weaved in self.weaved.items():
            if (name, "closed") not in allowed:
                self.assertEqual(weaved.begun() & gone, set(), name)
        images = sum(fate.fate == "image" for fate in load.fates)
        print("%s: %d images, otherwise %s" % (self._testMethodName, images, dict(count) or "nothing"))
        return count

    def test_all_get_their_share(self):
        load = Load(self.port)
        load.run_for(300)
        load.end()
        self.check(load, set())
        shares = collections.Counter(self.served_by(load).values())
        self.assertGreater(min(shares[name] for name in NAMES), sum(shares.values()) / 6, shares)

    def test_one_that_is_killed_costs_what_it_had_and_is_back_when_it_is_started_again(self):
        load = Load(self.port)
        load.run_for(50)
        self.await_connections("gpu0", lambda n: n > 0)
        self.weaved["gpu0"].signal(signal.SIGKILL)
        self.weaved["gpu0"].process.wait()
        killed = time.monotonic()
        load.run_for(200)
        self.await_status("gpu0", "DOWN")
        self.weaved["gpu0"].start()
        self.await_status("gpu0", "UP")
        before = int(self.servers()["gpu0"]["stot"])
        eventually("it gets connections again", lambda: int(self.servers()["gpu0"]["stot"]) > before + 10)
        load.end()
        self.check(load, {("gpu0", "closed")})
        closed = [fate for fate in load.fates if fate.fate == "closed"]
        self.assertTrue(closed, "it was killed while it worked")
        for fate in closed:
            self.assertLess(fate.began, killed, "nobody who came later is lost")
            self.assertLess(fate.ended - killed, 0.5, "it was told at once")
        print("the last of them heard of it after %.3f s" % max(fate.ended - killed for fate in closed))

    def test_one_that_is_stopped_answers_all_it_has(self):
        load = Load(self.port)
        load.run_for(50)
        for name in NAMES:
            self.await_connections(name, lambda n: n > 0)
            self.weaved[name].signal(signal.SIGTERM)
            self.assertEqual(self.weaved[name].process.wait(PATIENCE), 0)
            load.run_for(50)
            self.weaved[name].start()
            self.await_status(name, "UP")
            load.run_for(50)
        load.end()
        # What waited there was refused, and its client may ask again.
        self.check(load, {(name, SHUTTING_DOWN) for name in NAMES})

    def test_one_that_is_drained_first_can_be_exchanged_without_anyone_noticing(self):
        load = Load(self.port)
        load.run_for(50)
        for name in NAMES:
            self.command("set server weaved/%s state drain" % name)
            self.await_connections(name, lambda n: n == 0)
            self.weaved[name].signal(signal.SIGTERM)
            self.assertEqual(self.weaved[name].process.wait(PATIENCE), 0)
            self.weaved[name].start()
            eventually("it listens", self.weaved[name].socket.exists)
            self.command("set server weaved/%s state ready" % name)
            before = int(self.servers()[name]["stot"])
            eventually("it gets connections again", lambda: int(self.servers()[name]["stot"]) > before + 10)
            load.run_for(50)
        load.end()
        self.check(load, set())

    def test_one_that_hangs_gets_no_more_connections(self):
        load = Load(self.port)
        load.run_for(50)
        self.weaved["gpu2"].signal(signal.SIGSTOP)
        # The clients on it wait; the others go on elsewhere.
        self.await_status("gpu2", "DOWN")
        before = int(self.servers()["gpu2"]["stot"])
        other = Load(self.port, clients=3)
        other.run_for(50)
        other.end()
        self.assertEqual(int(self.servers()["gpu2"]["stot"]), before)
        self.weaved["gpu2"].signal(signal.SIGCONT)
        self.await_status("gpu2", "UP")
        load.run_for(50)
        load.end()
        for each in (load, other):
            self.check(each, set())

    def test_without_any_the_connection_is_closed_at_once(self):
        for weaved in self.weaved.values():
            weaved.signal(signal.SIGTERM)
            weaved.process.wait(PATIENCE)
        for down in (False, True):
            if down:
                for name in NAMES:
                    self.await_status(name, "DOWN")
            load = Load(self.port, clients=0)
            load.ask(range(1, 2))
            self.assertEqual([fate.fate for fate in load.end()], ["closed"])
            self.assertLess(load.fates[0].ended - load.fates[0].began, 5)

    def test_the_configuration_has_no_warning_and_its_defaults_hold(self):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WEAVE_")}
        output = subprocess.run(["haproxy", "-c", "-f", CONFIG], env=environment, capture_output=True, text=True)
        self.assertEqual((output.returncode, output.stderr), (0, ""), output.stdout)


if __name__ == "__main__":
    unittest.main()
