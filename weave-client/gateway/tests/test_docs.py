"""What docs/gateway.md shows, as it stands there with another port: see ./run."""
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

from harness import CLEAN, WEAVE, Gateway, Weaved, read_png

TEXT = (pathlib.Path(__file__).resolve().parents[3] / "docs/gateway.md").read_text()


def blocks(language):
    return re.findall("^```%s\n(.*?)^```" % language, TEXT, re.M | re.S)


class Docs(unittest.TestCase):
    def test_the_first_picture(self):
        start, curl = (block for block in blocks("sh") if "make\n" in block or "curl" in block)
        flags = re.search("weave gateway(.*)", start)[1].split()
        with tempfile.TemporaryDirectory(prefix="weave-gateway-") as folder, Weaved(folder) as weaved, \
                Gateway(folder, weaved.socket, *flags) as gateway:
            os.symlink(os.environ["NODE_MODULES"], folder + "/node_modules")
            python, javascript = blocks("python")[0], blocks("js")[0]
            pictures = []
            for command in [[sys.executable, "-c", python], ["node", "--input-type=module", "-e", javascript], ["sh", "-c", curl]]:
                self.assertIn("127.0.0.1:8080", command[-1])
                command[-1] = command[-1].replace("127.0.0.1:8080", "127.0.0.1:%d" % gateway.port)
                subprocess.run(command, cwd=folder, env=CLEAN, check=True, timeout=60, capture_output=True)
                file = pathlib.Path(folder, "circle.png")
                pictures.append(read_png(file.read_bytes())[:3])
                file.unlink()
            self.assertEqual(pictures[0][:2], (512, 512))
            self.assertEqual(pictures, [pictures[0]] * 3)

    def test_every_flag_and_variable_is_there(self):
        helps = [subprocess.run([WEAVE, name, "--help"], capture_output=True, text=True, check=True).stdout
                 for name in ("gateway", "generate")]
        text = re.sub("```sh\nmake.*?```|cargo build[^`]*", "", TEXT, flags=re.S)
        flags = set(re.findall(r"(--[a-z][a-z-]+)", text))
        self.assertGreater(len(flags), 15)
        for flag in flags:
            self.assertTrue(any(re.search(re.escape(flag) + r"\b", text) for text in helps), flag)
        for variable in set(re.findall(r"WEAVE_[A-Z_]+[A-Z]|[A-Z_]*OPENAI_API_KEY", text)):
            self.assertTrue(any(variable in text for text in helps), variable)
        # What is said of the daemon's stand-ins holds for the command as well.
        for flag in re.findall(r"(--(?:openai|azure|providers|busy|local|cloud)[a-z-]*)", helps[0]):
            self.assertIn(flag, helps[1])
