"""OpenAI's client for JavaScript, and the page in a real browser: see ./run."""
import os
import pathlib
import subprocess
import tempfile
import unittest

from harness import Gateway, Weaved

HERE = pathlib.Path(__file__).resolve().parent
TOKEN = "0123456789abcdef" * 4
NAME = "--allow-host=images.example"


class JavaScript(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="weave-gateway-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        # Where node looks for packages.
        (self.folder / "node_modules").symlink_to(os.environ["NODE_MODULES"])

    def node(self, script, *arguments):
        copy = self.folder / script
        copy.write_text((HERE / script).read_text())
        (self.folder / "package.json").write_text('{"type": "module"}')
        subprocess.run(["node", str(copy), *arguments], check=True, timeout=300)

    def test_openai(self):
        with Weaved(self.folder, "--faults=slow=0.01", "--abandoned=cancel") as weaved, \
                Gateway(self.folder, weaved.socket) as gateway, Gateway(self.folder, self.folder / "none.sock") as lonely:
            self.node("openai.js", gateway.url, lonely.url)
            gateway.wait_for("given up, the client has gone")

    def test_page(self):
        token = self.folder / "token"
        token.touch(0o600)
        token.write_text(TOKEN)
        with Weaved(self.folder, "--faults=slow=0.05", "--abandoned=cancel") as weaved, \
                Gateway(self.folder, weaved.socket, "--size=128x128", "--steps=8", "--cfg=1", NAME) as gateway, \
                Gateway(self.folder, weaved.socket, "--token-file=%s" % token, "--size=64x64", "--steps=1") as locked, \
                Gateway(self.folder, self.folder / "none.sock", NAME) as lonely:
            self.node("page.js", gateway.url, locked.url, TOKEN, lonely.url)
