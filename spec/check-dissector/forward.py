#!/usr/bin/env python3
"""Forwards connections between Unix sockets and TCP, any to any, and writes down what passes.

    forward.py [--pcap FILE] LISTEN TARGET

LISTEN and TARGET are the path of a Unix socket or host:port. FILE gets the bytes as a capture in which client and
server talk over TCP; `forward.py --pcap /dev/stdout LISTEN TARGET | wireshark -k -i -` shows them while they pass.
With port 0 in LISTEN the system chooses one. The first line on standard error says where it listens.
"""
import argparse
import contextlib
import os
import signal
import socket
import sys
import threading

import pcap


def parse(address):
    """(family, what connect and bind want)."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in address:
        return socket.AF_INET, (host, int(port))
    return socket.AF_UNIX, address


def pump(source, sink, from_client, record):
    """Hands on what comes from `source`, and at its end, the end."""
    with contextlib.suppress(OSError):  # a peer that is gone ends this direction as well
        while data := source.recv(65536):
            if record:
                record.send(from_client, data)
            sink.sendall(data)
    if record:
        record.end(from_client)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
    with contextlib.suppress(OSError):
        source.shutdown(socket.SHUT_RD)  # the other peer's sender learns that nobody listens any more


def serve(client, target, capture):
    family, name = target
    with client, socket.socket(family, socket.SOCK_STREAM) as server:
        try:
            server.connect(name)
        except OSError as fault:
            print("forward.py: %s: %s" % (name, fault), file=sys.stderr)
            return
        record = capture.connection() if capture else None
        answers = threading.Thread(target=pump, args=(server, client, False, record))
        answers.start()
        pump(client, server, True, record)
        answers.join()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pcap", metavar="FILE")
    parser.add_argument("listen", metavar="LISTEN")
    parser.add_argument("target", metavar="TARGET")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    family, name = parse(args.listen)
    with contextlib.ExitStack() as cleanup:
        capture = None
        if args.pcap:
            capture = pcap.Capture(cleanup.enter_context(open(args.pcap, "wb")))
        listener = cleanup.enter_context(socket.socket(family, socket.SOCK_STREAM))
        try:
            with umask(0o077):  # prompts and images are their owner's affair
                listener.bind(name)
        except OSError as fault:
            parser.error("%s: %s" % (args.listen, fault))
        if family == socket.AF_UNIX:
            cleanup.callback(os.unlink, name)
        listener.listen()
        at = name if family == socket.AF_UNIX else "%s:%d" % listener.getsockname()
        print("listening on %s" % at, file=sys.stderr, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=serve, args=(client, parse(args.target), capture), daemon=True).start()


@contextlib.contextmanager
def umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


if __name__ == "__main__":
    main()
