"""GET /status, which the page asks."""
import json
import pathlib
import tempfile
import threading
import unittest

from harness import KEY, FakeDaemon, Gateway, Weaved, eventually


class Status(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="weave-status-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def status(self, gateway, query=""):
        status, _, text = gateway.ask("GET", "/status" + query)
        self.assertEqual(status, 200)
        return json.loads(text)

    def test_a_daemon_that_tells_all(self):
        with Weaved(self.folder, "--faults=slow=0.05") as weaved, Gateway(self.folder, weaved.socket, "--steps=9") as gateway:
            said = self.status(gateway)
            self.assertTrue(said["available"])
            self.assertEqual((said["model"]["name"], said["model"]["toy"]), ("test pattern", True))
            self.assertEqual(said["defaults"], {"size": "512x512", "steps": 9, "cfg_scale": 7.0})
            self.assertIsNone(said["request"])
            body = {"prompt": "a cat", "size": "64x64", "steps": 60}
            drawing = threading.Thread(
                target=gateway.ask, args=["POST", "/v1/images/generations", body, {"X-Weave-Request": "mine"}])
            drawing.start()
            eventually("the request is told", lambda: (self.status(gateway, "?request=mine")["request"] or {}).get("step"))
            mine = self.status(gateway, "?request=mine")["request"]
            self.assertEqual((mine["steps"], mine["before"], mine["images"]), (60, None, 1))
            self.assertIsNone(self.status(gateway, "?request=yours")["request"])
            drawing.join()
            self.assertIsNone(self.status(gateway, "?request=mine")["request"])

    def test_a_daemon_that_says_nothing_of_itself(self):
        with Weaved(self.folder) as weaved, \
                Gateway(self.folder, weaved.socket, "--admin-socket=%s" % (self.folder / "none.sock")) as gateway:
            said = self.status(gateway)
            self.assertEqual((said["available"], said["model"], said["daemon"]), (True, None, None))

    def test_nobody_who_draws(self):
        with Gateway(self.folder, self.folder / "none.sock") as gateway:
            self.assertFalse(self.status(gateway)["available"])
        with FakeDaemon(self.folder, lambda _: b"HTTP/1.1 200 OK\r\n\r\n") as socket, Gateway(self.folder, socket) as gateway:
            self.assertFalse(self.status(gateway)["available"])

    def test_a_cloud_draws(self):
        with Gateway(self.folder, self.folder / "none.sock", "--providers=local,openai", env={"OPENAI_API_KEY": KEY}) as gateway:
            self.assertTrue(self.status(gateway)["available"])


if __name__ == "__main__":
    unittest.main()
