#!/usr/bin/env python3
"""Forwards connections between Unix sockets and TCP, any to any, and writes down what passes.

    forward.py [--pcap FILE] LISTEN TARGET

LISTEN and TARGET are the path of a Unix socket or host:port. FILE gets the bytes as a capture in which client and
server talk over TCP with made-up addresses: that is how bytes of a Unix socket get into Wireshark.
`forward.py --pcap /dev/stdout LISTEN TARGET | tshark -X lua_script:weave.lua -i -` shows them while they pass. With
port 0 in LISTEN the system chooses one. The first line on standard error says where it listens.
"""
import argparse
import contextlib
import os
import signal
import socket
import struct
import sys
import threading
import time

LINKTYPE_RAW = 101  # packets begin with their IP header
CLIENT, SERVER = bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2])  # reserved for documentation: RFC 5737
SERVER_PORT = 7001
FIN, SYN, PUSH, ACK = 0x01, 0x02, 0x08, 0x10
MAX_SEGMENT = 60_000


class Capture:
    """A capture file. `clock` gives the time of the next packet in seconds."""

    def __init__(self, file, clock=time.time):
        self.file, self.clock = file, clock
        self.lock = threading.Lock()
        self.packets, self.next_port = 0, 10_001
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, LINKTYPE_RAW))

    def packet(self, data, snap=None):
        captured = data[:snap]
        with self.lock:
            self.packets += 1
            seconds, microseconds = divmod(round(self.clock() * 1_000_000), 1_000_000)
            try:
                self.file.write(struct.pack("<IIII", seconds, microseconds, len(captured), len(data)) + captured)
            except OSError as fault:
                raise RuntimeError("can't write the capture: %s" % fault) from fault

    def connection(self):
        with self.lock:
            client_port, self.next_port = self.next_port, self.next_port % 65_535 + 1
        return Connection(self, client_port)


class Connection:
    """One made-up TCP connection. Ends are named by whether they are the client's."""

    def __init__(self, capture, client_port):
        self.capture, self.ports = capture, {True: client_port, False: SERVER_PORT}
        self.sequence = {True: 1000, False: 5000}
        self.segment(True, SYN)
        self.segment(False, SYN | ACK)
        self.segment(True, ACK)

    def segment(self, from_client, flags, data=b"", snap=None):
        source, target = self.ports[from_client], self.ports[not from_client]
        acknowledged = self.sequence[not from_client] if flags & ACK else 0
        sequence = self.sequence[from_client]
        tcp = struct.pack(">HHIIBBHHH", source, target, sequence, acknowledged, 0x50, flags, 65535, 0, 0)
        ends = (CLIENT, SERVER) if from_client else (SERVER, CLIENT)
        # Checksums are 0: Wireshark looks at them only when asked to.
        ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 40 + len(data), 0, 0x4000, 64, 6, 0, *ends)
        taken = len(data) + bool(flags & (SYN | FIN))
        self.sequence[from_client] = (sequence + taken) % 2**32
        self.capture.packet(ip + tcp + data, snap)

    def send(self, from_client, data, snap=None):
        """One segment, or several if it is too large for one; `snap` is how much of the packet gets captured."""
        for at in range(0, len(data), MAX_SEGMENT):
            self.segment(from_client, PUSH | ACK, data[at:at + MAX_SEGMENT], snap)

    def end(self, from_client):
        self.segment(from_client, FIN | ACK)


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
    family, name = parse(target)
    with client, socket.socket(family, socket.SOCK_STREAM) as server:
        try:
            server.connect(name)
        except (OSError, OverflowError) as fault:
            print("forward.py: %s: %s" % (target, fault), file=sys.stderr)
            return
        record = capture.connection() if capture else None
        answers = threading.Thread(target=pump, args=(server, client, False, record), daemon=True)
        answers.start()
        pump(client, server, True, record)
        answers.join()


def give_up(failure):
    """What ends a thread ends the program: a capture with a hole in it would mislead."""
    print("forward.py: %s" % failure.exc_value, file=sys.stderr)
    os.kill(os.getpid(), signal.SIGUSR1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pcap", metavar="FILE")
    parser.add_argument("listen", metavar="LISTEN")
    parser.add_argument("target", metavar="TARGET")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(1))
    threading.excepthook = give_up
    os.umask(0o077)  # prompts and images are their owner's affair
    family, name = parse(args.listen)
    with contextlib.ExitStack() as cleanup:
        listener = cleanup.enter_context(socket.socket(family, socket.SOCK_STREAM))
        capture, at_fault = None, args.pcap
        try:
            if args.pcap:
                capture = Capture(cleanup.enter_context(open(args.pcap, "wb", buffering=0)))
            at_fault = args.listen
            listener.bind(name)
        except (OSError, OverflowError) as fault:
            parser.error("%s: %s" % (at_fault, fault))
        if family == socket.AF_UNIX:
            cleanup.callback(os.unlink, name)
        listener.listen()
        at = name if family == socket.AF_UNIX else "%s:%d" % listener.getsockname()
        print("listening on %s" % at, file=sys.stderr, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=serve, args=(client, args.target, capture), daemon=True).start()


if __name__ == "__main__":
    main()
