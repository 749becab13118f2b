"""A Weave client with one oddity or one defect, for client.rs: client.py ADDRESS ODDITY [COUNT]"""
import json
import socket
import struct
import sys
import time

odd = sys.argv[2]
count = int(sys.argv[3]) if len(sys.argv) > 3 else 1
unchecked = odd.removeprefix("unchecked-")


def fail(why):
    print(why)
    sys.exit(0 if odd == "always-0" else 3)


def connect():
    if ":" in sys.argv[1]:
        host, port = sys.argv[1].rsplit(":", 1)
        return socket.create_connection((host, int(port)))
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(sys.argv[1])
    return connection


def request(number):
    prompt = b"a cat"
    scale = struct.pack("<f" if odd == "little-endian" else ">f", 7.0)
    first = struct.pack(">QIIIII", number, 0, 64, 64, 1, struct.unpack(">I", scale)[0])
    ranges = [value for n in range(3) for value in (n * len(prompt), len(prompt))]
    payload = first + struct.pack(">Q6I", 3, *ranges) + 3 * prompt
    reserved = 7 if odd == "reserved" and number == 3 else 0
    return struct.pack(">4sHHII", b"WEVE", 1, 1, len(payload), reserved) + payload


def read(size):
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            fail("the server has closed")
        data += piece
    return data


def text_of(message):
    if odd == "mojibake":
        return message.decode("latin-1")
    if odd == "obeys":
        return message.decode("utf-8", "replace")
    if odd == "cut-at-0":
        message = message.split(b"\0")[0]
    if odd == "only-utf-8" and message.decode("utf-8", "ignore").encode() != message:
        return ""
    text = message.decode("ascii" if odd == "question-marks" else "utf-8", "replace")
    keep = "\t" if odd == "tab" else ""
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text).replace("\ufffd", "?")


def answer(first):
    """The id of an answer, and its message if it is an error."""
    magic, version, kind, size, _ = struct.unpack(">4sHHII", read(16))
    if magic != b"WEVE" and not (unchecked == "magic" and not first):
        fail("magic")
    if size > 16_777_248:
        fail("payload_len")
    if kind not in (2, 0xFF) or kind == 2 and version != 1 and unchecked != "version":
        fail("type or version")
    payload = read(size)
    if size < (18 if kind == 0xFF else 32):
        fail("short")
    number, status = struct.unpack_from(">QI", payload)
    if kind == 0xFF:
        size = struct.unpack_from(">H", payload, 16)[0]
        if status not in (400, 500) or size > len(payload) - 18:
            fail("status or length")
        return number, status, payload[18:18 + size]
    _, width, height, channels, size = struct.unpack_from(">5I", payload, 12)
    if status != 200 or channels not in (3, 4) or size != width * height * channels or size > len(payload) - 32:
        fail("a field")
    if (width, height) != (64, 64) and unchecked != "size":
        fail("size")
    return number, status, None


if odd == "late":
    time.sleep(1)
if odd == "probe":
    connect().close()
connection = connect()
waiting = set(range(1, count + 1))
for number in list(waiting):
    data = request(number if odd != "same-id" else 1)
    if odd == "byte-by-byte":
        for byte in data:
            connection.sendall(bytes([byte]))
    elif odd == "never-whole":
        connection.sendall(data[:-1])
    else:
        connection.sendall(data * (2 if odd == "twice" else 1))
if odd == "bytes-after":
    connection.sendall(b"\r\n")
if odd in ("half-closes", "half-closes-and-waits"):
    connection.shutdown(socket.SHUT_WR)
status, tries, first = 0, 3, True
while waiting:
    number, code, message = answer(first)
    first = False
    if number not in waiting and not (number == 0 and message is not None):
        if odd == "ignores":
            continue
        if unchecked != "id":
            fail("id")
        number = min(waiting)
    if message is None:
        waiting.discard(number)
        continue
    text = text_of(message)
    if odd == "coloured":
        text = f"\x1b[31m{text}\x1b[0m"
    print(json.dumps({"error": text}) if odd == "json" else f"error: {text}", flush=True)
    status = 0 if odd == "always-0" else 1
    if odd in ("retries", "retries-for-ever") and code == 500 and tries:
        tries -= odd == "retries"
        connection.close()
        connection = connect()
        connection.sendall(b"".join(map(request, waiting)))
        continue
    waiting = waiting - {number} if number else set()
if odd == "half-closes-and-waits" and connection.recv(1):
    fail("more than was asked for")
if odd == "asks-again":
    connection.sendall(request(count + 1))
    answer(False)
if odd == "stays":
    time.sleep(1000)
sys.exit(status)
