"""Writes capture files in which byte streams look like TCP connections.

That is how bytes of a Unix socket get into Wireshark: its TCP layer then does what a reader of a stream does.
"""
import struct
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
        self.next_port = 40001
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, LINKTYPE_RAW))

    def packet(self, data, snap=None):
        captured = data[:snap]
        with self.lock:
            seconds, microseconds = divmod(round(self.clock() * 1_000_000), 1_000_000)
            self.file.write(struct.pack("<IIII", seconds, microseconds, len(captured), len(data)) + captured)
            self.file.flush()

    def connection(self, server_port=SERVER_PORT):
        with self.lock:
            client_port = self.next_port
            self.next_port += 1
        return Connection(self, client_port, server_port)


class Connection:
    """One made-up TCP connection. Ends are named by whether they are the client's."""

    def __init__(self, capture, client_port, server_port):
        self.capture, self.ports = capture, {True: client_port, False: server_port}
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
        self.sequence[from_client] = (self.sequence[from_client] + taken) % 2**32
        self.capture.packet(ip + tcp + data, snap)

    def send(self, from_client, data, snap=None):
        """One segment, or several if it is too large for one; `snap` is how much of the packet gets captured."""
        for at in range(0, len(data), MAX_SEGMENT):
            self.segment(from_client, PUSH | ACK, data[at:at + MAX_SEGMENT], snap)

    def end(self, from_client):
        self.segment(from_client, FIN | ACK)
