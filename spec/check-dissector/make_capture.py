#!/usr/bin/env python3
"""Makes weave.pcap from scenarios.py: the same bytes each time.

    make_capture.py [FILE]
"""
import io
import pathlib
import sys

import pcap
import scenarios


def build(connections, server_port=pcap.SERVER_PORT):
    """A capture of these scenarios, one connection each, with a packet each millisecond."""
    milliseconds = iter(range(10**9))
    file = io.BytesIO()
    capture = pcap.Capture(file, clock=lambda: 1_767_225_600 + next(milliseconds) / 1000)
    for scenario in connections:
        connection = capture.connection(server_port)
        for send in scenario.sends:
            connection.send(*send)
        connection.end(True)
        connection.end(False)
    return file.getvalue()


if __name__ == "__main__":
    here = pathlib.Path(__file__).resolve().parent
    pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else here / "weave.pcap").write_bytes(build(scenarios.scenarios()))
