#!/usr/bin/env python3
"""A small Weave client, written from weave-v1.md alone. ADDRESS is the path of a Unix socket or host:port; the image
becomes a PNG file. Exit codes: 0 an image, 1 an error from the server, 2 wrong usage, 3 a connection that failed."""
import argparse, collections, contextlib, pathlib, socket, struct, sys, zlib

HEADER = struct.Struct(">4sHHII")    # magic, version, msg_type, payload_len, reserved; big-endian (W1-TRN-005)
REQUEST = struct.Struct(">Q4IfQ6I")  # request_id to t5_length
RESPONSE = struct.Struct(">Q6I")     # request_id to image_data_len
ERROR = struct.Struct(">QIIH")       # request_id to error_msg_len
MAGIC, VERSION, TYPE_REQUEST, TYPE_RESPONSE, TYPE_ERROR = b"WEVE", 1, 0x0001, 0x0002, 0x00FF
SIDES, MAX_RESPONSE_PAYLOAD = range(64, 2049, 64), 16_777_248
ERROR_NAMES = {1: "INVALID_MAGIC", 2: "UNSUPPORTED_VERSION", 3: "INVALID_MODEL_ID", 4: "INVALID_PROMPT",
               5: "INVALID_DIMENSIONS", 6: "INVALID_STEPS", 7: "INVALID_CFG", 8: "OUT_OF_MEMORY", 9: "GPU_ERROR",
               10: "TIMEOUT", 20: "MALFORMED", 21: "TOO_LARGE", 22: "UNSUPPORTED_TYPE", 23: "BUSY",
               24: "SHUTTING_DOWN", 99: "INTERNAL"}
Image = collections.namedtuple("Image", "request_id generation_time_ms width height channels image_data")
Error = collections.namedtuple("Error", "request_id status error_code error_msg")

class Broken(Exception):
    """The stream can't be trusted any further: whoever catches this must close the connection."""

def check(holds, fault, kind=Broken):
    if not holds:
        raise kind(fault)

def build_request(request_id, prompt, width, height, steps, cfg_scale, seed):
    """The frame of a request. ValueError if a value is out of its range (W1-REQ-001)."""
    text = prompt.encode("utf-8")  # W1-REQ-003; what has no UTF-8 form is a ValueError too
    check(width in SIDES and height in SIDES, "a side must be 64 to 2048, and a multiple of 64", ValueError)
    check(1 <= steps <= 100 and 0 <= seed < 2**64, "steps must be 1 to 100, seed 0 to 2**64 - 1", ValueError)
    check(0 <= cfg_scale <= 20, "cfg_scale must be 0 to 20", ValueError)
    check(1 <= len(text) <= 2048 and b"\0" not in text, "prompt must have 1 to 2048 bytes, none 0", ValueError)
    n = len(text)  # W1-REQ-004: three copies, one after the other
    payload = REQUEST.pack(request_id, 0, width, height, steps, cfg_scale, seed, 0, n, n, n, 2 * n, n) + 3 * text
    return HEADER.pack(MAGIC, VERSION, TYPE_REQUEST, len(payload), 0) + payload

def read_exactly(stream, size):
    data = stream.read(size)  # until all are there or the stream ends, however it is cut (W1-TRN-001)
    check(len(data) == size, "the server closed the connection" + (" in the middle of a frame" if data else ""))
    return data

def read_answer(stream):
    magic, version, msg_type, payload_len, _ = HEADER.unpack(read_exactly(stream, HEADER.size))  # W1-HDR-005
    check(magic == MAGIC, "a frame begins with %s" % magic.hex(" "))  # W1-FRM-006
    check(payload_len <= MAX_RESPONSE_PAYLOAD, "payload_len is %d" % payload_len)  # W1-FRM-007, W1-FRM-008
    # An error may be of another version and is read all the same (W1-VER-006, W1-FRM-010).
    check(msg_type == TYPE_ERROR or (msg_type, version) == (TYPE_RESPONSE, VERSION), "neither response nor error")
    payload = read_exactly(stream, payload_len)
    return parse_response(payload) if msg_type == TYPE_RESPONSE else parse_error(payload)

def parse_response(payload):
    check(len(payload) >= RESPONSE.size, "a response of %d bytes" % len(payload))  # W1-RSP-006
    request_id, status, time, width, height, channels, image_data_len = RESPONSE.unpack_from(payload)
    check(status == 200, "a response with status %d" % status)  # this and the next two: W1-RSP-005, W1-RSP-008
    check(width in SIDES and height in SIDES and channels in (3, 4), "%d x %d x %d" % (width, height, channels))
    check(image_data_len == width * height * channels, "image_data_len is %d" % image_data_len)
    end = RESPONSE.size + image_data_len  # after it the payload may go on with what we don't know (W1-RSP-007)
    check(len(payload) >= end, "payload_len is %d, the image ends at %d" % (len(payload), end))  # W1-RSP-006
    return Image(request_id, time, width, height, channels, payload[RESPONSE.size:end])

def parse_error(payload):
    check(len(payload) >= ERROR.size, "an error of %d bytes" % len(payload))  # W1-ERR-008
    request_id, status, error_code, error_msg_len = ERROR.unpack_from(payload)
    check(status in (400, 500), "an error with status %d" % status)  # W1-ERR-007; error_code is free (W1-ERR-006)
    end = ERROR.size + error_msg_len  # after it the payload may go on with what we don't know (W1-ERR-009)
    check(len(payload) >= end, "payload_len is %d, error_msg ends at %d" % (len(payload), end))  # W1-ERR-008
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(payload[ERROR.size:end], "utf-8", "replace"))
    return Error(request_id, status, error_code, shown)  # W1-ERR-010

def connect(address):
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and int(port) < 65536 and "/" not in address:
        return socket.create_connection((host.strip("[]"), int(port)))
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(address)
    return sock

def ask(sock, requests):
    """Sends all requests (a dict from request_id to frame, without id 0) and yields their answers as they come."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a full server may answer and close (W1-CON-008)
        sock.sendall(b"".join(requests.values()))  # no request waits for the answers to those before (W1-CON-001)
    waiting = set(requests)
    with sock.makefile("rb") as stream:
        while waiting:
            answer = read_answer(stream)
            for_all = isinstance(answer, Error) and answer.request_id == 0  # W1-ERR-001, W1-CON-008
            check(for_all or answer.request_id in waiting, "nobody asked for request_id %d" % answer.request_id)
            if isinstance(answer, Image):  # W1-RSP-010
                asked = REQUEST.unpack_from(requests[answer.request_id], HEADER.size)[2:4]
                check(answer[2:4] == asked, "an image of %d x %d, not %d x %d" % (*answer[2:4], *asked))
            waiting = set() if for_all else waiting - {answer.request_id}  # in any order (W1-CON-003)
            yield answer

def png(image):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    row = image.width * image.channels
    rows = b"".join(b"\0" + image.image_data[at:at + row] for at in range(0, len(image.image_data), row))
    head = struct.pack(">IIBBBBB", image.width, image.height, 8, {3: 2, 4: 6}[image.channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", metavar="ADDRESS")
    parser.add_argument("prompt", metavar="PROMPT")
    for name, default in dict(output="image.png", width=512, height=512, steps=28, cfg_scale=7.0, seed=0).items():
        parser.add_argument("--" + name, type=type(default), default=default)
    args = parser.parse_args()
    try:
        frame = build_request(1, args.prompt, args.width, args.height, args.steps, args.cfg_scale, args.seed)
        with connect(args.address) as sock:
            answer = next(ask(sock, {1: frame}))
        if isinstance(answer, Error):
            name = ERROR_NAMES.get(answer.error_code, "unknown")
            parser.exit(1, "error %d %s: %s\n" % (answer.error_code, name, answer.error_msg))
        pathlib.Path(args.output).write_bytes(png(answer))
    except ValueError as fault:
        parser.error(str(fault))
    except (Broken, OSError) as fault:
        parser.exit(3, "%s: %s\n" % (args.address, fault))

if __name__ == "__main__":
    main()
