#!/usr/bin/env python3
"""Whether rules and dashboard name metrics and labels that weaved has, and the unit writes them: WEAVED=… test_prometheus.py"""
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent
RULES = (HERE / "rules.yml").read_text(encoding="utf-8")
DASHBOARD = json.loads((HERE / "dashboard.json").read_text(encoding="utf-8"))
UNIT = (HERE / "weave-metrics.service").read_text(encoding="utf-8")
# What Prometheus adds.
TARGET_LABELS = {"instance"}


def expressions():
    """What rules and dashboard ask for."""
    yield from re.findall(r"^\s+expr: (.*)$", RULES, re.M)
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


class Prometheus(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        path = pathlib.Path(cls.folder.name)
        cls.weaved = subprocess.Popen([os.environ["WEAVED"], "--no-config", "--engine", "pattern", "--socket", path / "weave.sock"],
                                      stderr=subprocess.PIPE, text=True)
        cls.admin = path / "weave-admin.sock"
        for line in cls.weaved.stderr:
            if "listening on" in line:
                break
        cls.metrics = cls.written(cls.admin, path / "weave.prom").read_text()

    @classmethod
    def tearDownClass(cls):
        cls.weaved.terminate()
        cls.weaved.wait()
        cls.weaved.stderr.close()
        cls.folder.cleanup()

    @staticmethod
    def written(admin, file):
        """What the unit's command makes of a socket."""
        command = re.search(r"^ExecStart=/bin/sh -c '(.*)'$", UNIT, re.M)[1]
        subprocess.run(["/bin/sh", "-c", command], env={**os.environ, "WEAVE_ADMIN_SOCKET": str(admin), "METRICS_FILE": str(file)},
                       stderr=subprocess.DEVNULL)
        return file

    def test_every_metric_is_there(self):
        there = set(re.findall(r"^(\w+)", self.metrics, re.M))
        named = {name for each in expressions() for name in re.findall(r"\bweave_\w+", each)}
        self.assertGreater(len(named), 10)
        self.assertEqual(named - there, set())

    def test_every_label_is_there(self):
        there = set(re.findall(r"(\w+)=\"", self.metrics)) | TARGET_LABELS
        legends = " ".join(target["legendFormat"] for panel in DASHBOARD["panels"] for target in panel["targets"])
        named = set(re.findall(r"\{\{(\w+)\}\}", legends)) | set(re.findall(r"\$labels\.(\w+)", RULES))
        for each in expressions():
            named.update(label for labels in re.findall(r"by \(([\w, ]+)\)", each) for label in labels.split(", "))
        self.assertEqual(named - there, set())

    def test_old_metrics_go(self):
        file = pathlib.Path(self.folder.name) / "old.prom"
        file.write_text("weave_ready 1\n")
        self.written(self.admin.with_name("nobody.sock"), file)
        self.assertFalse(file.exists())
        self.assertEqual([each.name for each in file.parent.glob("*.new")], [])

    @unittest.skipUnless(shutil.which("promtool"), "promtool isn't here")
    def test_prometheus_takes_the_rules(self):
        subprocess.run(["promtool", "check", "rules", HERE / "rules.yml"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["promtool", "check", "metrics"], input=self.metrics, text=True, check=True)


if __name__ == "__main__":
    unittest.main()
