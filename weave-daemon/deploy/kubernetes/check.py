"""Checks weaved.yaml: its fields, what it promises to itself, and what it starts, with the real weaved and HAProxy.

There is no cluster here, so what Kubernetes itself does with it is not tried.
"""
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import kubernetes_validate
import yaml

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2] / "spec/examples"))
import client

TEXT = (HERE / "weaved.yaml").read_text(encoding="utf-8")
OBJECTS = {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(TEXT)}
# The first one that has all the fields, and the newest.
VERSIONS = ["1.30", "1.37"]
DEPLOYMENT = OBJECTS["Deployment", "weaved"]["spec"]
POD = DEPLOYMENT["template"]["spec"]
[HAPROXY], [WEAVED] = POD["initContainers"], POD["containers"]
PROGRAMS = {"weaved": os.environ["WEAVED"], "weave": os.environ["WEAVE"], "haproxy": "haproxy"}
PATIENCE = 20


class Text(unittest.TestCase):
    def test_kubernetes_knows_every_field(self):
        for version in VERSIONS:
            for each in OBJECTS.values():
                kubernetes_validate.validate(each, version, strict=True)
        spoilt = dict(OBJECTS["Service", "weave"], spec={"selectors": {}})
        with self.assertRaises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(spoilt, VERSIONS[0], strict=True)

    def test_everything_is_about_the_same_pods(self):
        labels = DEPLOYMENT["template"]["metadata"]["labels"]
        self.assertEqual(DEPLOYMENT["selector"]["matchLabels"], labels)
        self.assertEqual(OBJECTS["Service", "weave"]["spec"]["selector"], labels)
        self.assertEqual(OBJECTS["NetworkPolicy", "weaved"]["spec"]["podSelector"]["matchLabels"], labels)
        self.assertEqual(OBJECTS["PodDisruptionBudget", "weaved"]["spec"]["selector"]["matchLabels"], labels)

    def test_names_lead_somewhere(self):
        volumes = {each["name"] for each in POD["volumes"]}
        for container in (HAPROXY, WEAVED):
            self.assertLessEqual({each["name"] for each in container["volumeMounts"]}, volumes)
        ports = {each["name"]: each["containerPort"] for each in HAPROXY["ports"]}
        [port] = OBJECTS["Service", "weave"]["spec"]["ports"]
        self.assertEqual(ports[port["targetPort"]], port["port"])
        self.assertIn("bind :%d\n" % port["port"], OBJECTS["ConfigMap", "weaved"]["data"]["haproxy.cfg"])

    def test_there_is_time_to_finish(self):
        [drain] = [arg for arg in WEAVED["args"] if arg.startswith("--drain-timeout=")]
        takes = WEAVED["lifecycle"]["preStop"]["sleep"]["seconds"] + float(drain.split("=")[1])
        self.assertGreaterEqual(POD["terminationGracePeriodSeconds"], takes + 5)


class Running(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        for volume in ("run", "cache"):
            (self.folder / volume).mkdir()
            # As an emptyDir with an fsGroup is.
            (self.folder / volume).chmod(0o2777)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        config = OBJECTS["ConfigMap", "weaved"]["data"]["haproxy.cfg"].replace(":7433", "127.0.0.1:%d" % self.port)
        (self.folder / "haproxy.cfg").write_text(self.here(config))

    def here(self, text):
        for inside, outside in (("/run/weave", "run"), ("/cache", "cache"), ("/etc/weave", ".")):
            text = text.replace(inside, str(self.folder / outside))
        return text

    def start(self, command, *more):
        environment = dict({each["name"]: self.here(each["value"]) for each in WEAVED["env"]}, PATH=os.environ["PATH"])
        command = [PROGRAMS[command[0]], *map(self.here, command[1:]), *more]
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def probe(self, name):
        return self.start(WEAVED[name]["exec"]["command"]).wait(PATIENCE)

    def connects(self):
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def until(self, holds):
        until = time.monotonic() + PATIENCE
        while not holds():
            self.assertLess(time.monotonic(), until)
            time.sleep(0.05)

    def test_a_pod_starts_serves_and_ends_as_it_should(self):
        # Kubernetes starts HAProxy before weaved, and ends it after it.
        haproxy = self.start(HAPROXY["args"])
        self.assertNotEqual(self.probe("startupProbe"), 0)
        weaved = self.start(WEAVED["command"] + WEAVED["args"], "--engine=pattern", "--faults=slow=0.5")
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            self.until(lambda: self.probe(name) == 0)
        self.assertEqual(HAPROXY["readinessProbe"], {"tcpSocket": {"port": HAPROXY["ports"][0]["name"]}})
        self.until(self.connects)
        answers = []

        def ask():
            with client.connect("127.0.0.1:%d" % self.port) as sock:
                frames = {n: client.build_request(n, "a pod", 64, 64, 1, 1.0, 1) for n in (1, 2)}
                answers.extend(client.ask(sock, frames))
        asks = threading.Thread(target=ask)
        asks.start()
        time.sleep(0.25)  # of the 0.5 s that the image takes
        weaved.send_signal(signal.SIGTERM)
        asks.join(PATIENCE)
        # The one under way is finished, the other one refused: SHUTTING_DOWN.
        self.assertEqual({1: True, 2: 24}, {each.request_id: getattr(each, "error_code", True) for each in answers})
        self.assertEqual(weaved.wait(POD["terminationGracePeriodSeconds"]), 0)
        self.assertNotEqual(self.probe("readinessProbe"), 0)
        # The images of HAProxy ask for this signal: connections may end.
        haproxy.send_signal(signal.SIGUSR1)
        self.assertEqual(haproxy.wait(PATIENCE), 0)


if __name__ == "__main__":
    unittest.main()
