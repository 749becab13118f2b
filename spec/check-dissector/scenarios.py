"""The connections of weave.pcap, and what the dissector must make of each.

Bytes are put together here from weave-v1.md, with no code of any implementation.
"""
import math
import struct
from collections import namedtuple

# `sends`: what `make` gets to write, in order. `frames`: what must be seen, in the order of the packets.
Scenario = namedtuple("Scenario", "name sends frames")
# One segment. `snap`: how many bytes of its packet the capture has.
Send = namedtuple("Send", "from_client data snap", defaults=(None,))
# One Weave frame: field values as tshark shows them, and a piece of the text of each of its expert infos, in order.
# None: there is no such field; ...: any value; "@2": the number of the packet that the second of `sends` became.
Seen = namedtuple("Seen", "fields experts", defaults=((),))

ERRORS = {1: ("INVALID_MAGIC", 400), 2: ("UNSUPPORTED_VERSION", 400), 3: ("INVALID_MODEL_ID", 400),
          4: ("INVALID_PROMPT", 400), 5: ("INVALID_DIMENSIONS", 400), 6: ("INVALID_STEPS", 400),
          7: ("INVALID_CFG", 400), 8: ("OUT_OF_MEMORY", 500), 9: ("GPU_ERROR", 500), 10: ("TIMEOUT", 500),
          20: ("MALFORMED", 400), 21: ("TOO_LARGE", 400), 22: ("UNSUPPORTED_TYPE", 400), 23: ("BUSY", 500),
          24: ("SHUTTING_DOWN", 500), 99: ("INTERNAL", 500)}


def frame(msg_type, payload, magic=b"WEVE", version=1, reserved=0, payload_len=None):
    length = len(payload) if payload_len is None else payload_len
    return struct.pack(">4sHHII", magic, version, msg_type, length, reserved) + payload


def request(request_id=1, model=0, width=64, height=64, steps=28, cfg=7.0, seed=0, places=None, data=None, **header):
    prompts = "a cat in space".encode() * 3 if data is None else data
    places = places or [(0, 14), (14, 14), (28, 14)]
    numbers = [number for place in places for number in place]
    fixed = struct.pack(">Q4IfQ6I", request_id, model, width, height, steps, cfg, seed, *numbers)
    return frame(1, fixed + prompts, **header)


def image(request_id=1, status=200, ms=10_000, width=64, height=64, channels=3, length=None, data=None, **header):
    length = width * height * channels if length is None else length
    data = bytes(length) if data is None else data
    return frame(2, struct.pack(">Q6I", request_id, status, ms, width, height, channels, length) + data, **header)


def error(request_id=1, status=400, code=6, message=b"steps 0: 1 to 100", length=None, **header):
    length = len(message) if length is None else length
    return frame(0xFF, struct.pack(">QIIH", request_id, status, code, length) + message, **header)


def pieces(from_client, data, *sizes):
    """`data` in segments of these sizes; the last of them again and again, until all are sent."""
    sends, sizes = [], list(sizes)
    while data:
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        sends.append(Send(from_client, data[:size]))
        data = data[size:]
    return sends


def asks(data, *experts, **fields):
    """A scenario's worth: one request in one segment."""
    return [Send(True, data)], [Seen(fields, experts)]


def answers(data, *experts, **fields):
    """A request, and this answer to it."""
    return [Send(True, request()), Send(False, data)], [Seen({"request_id": "1"}), Seen(fields, experts)]


REQUEST_FIELDS = {
    "magic": "WEVE", "version": "1", "msg_type": "0x0001", "payload_len": "102", "reserved": "0x00000000",
    "request_id": "1", "model_id": "0", "width": "64", "height": "64", "steps": "28", "cfg_scale": "7", "seed": "0",
    "clip_l_offset": "0", "clip_l_length": "14", "clip_g_offset": "14", "clip_g_length": "14", "t5_offset": "28",
    "t5_length": "14", "clip_l": "a cat in space", "clip_g": "a cat in space", "t5": "a cat in space",
    "prompt_data": (b"a cat in space" * 3).hex(":"),
}
RESPONSE_FIELDS = {
    "magic": "WEVE", "version": "1", "msg_type": "0x0002", "payload_len": "12320", "reserved": "0x00000000",
    "request_id": "1", "status": "200", "generation_time_ms": "10000", "image_width": "64", "image_height": "64",
    "channels": "3", "image_data_len": "12288", "image_data": bytes(12288).hex(":"),
}
ERROR_FIELDS = {
    "magic": "WEVE", "version": "1", "msg_type": "0x00ff", "reserved": "0x00000000", "request_id": "1",
    "status": "400", "error_code": "3", "error_msg_len": "20", "error_msg": "unsupported model ID",
}
SIDE = "must be 64 to 2048, and a multiple of 64"


def scenarios():
    def add(name, sends, frames):
        made.append(Scenario(name, sends, frames))

    made = []
    add("a request and its image", [Send(True, request()), Send(False, image())],
        [Seen({**REQUEST_FIELDS, "answer_in": "@2"}),
         Seen({**RESPONSE_FIELDS, "request_in": "@1", "time": "0.001000000"})])
    add("a request and its error", [
        Send(True, request(model=1)), Send(False, error(code=3, message=b"unsupported model ID"))],
        [Seen({"request_id": "1", "model_id": "1", "width": None}, ["model_id 1: must be 0 (W1-REQ-001)"]),
         Seen(ERROR_FIELDS, ["INVALID_MODEL_ID: there is no such model here"])])

    # Reassembly
    add("a request cut in odd places", pieces(True, request(), 5, 10, 1, 3, 40, 58, 1), [Seen(REQUEST_FIELDS)])
    add("a header byte by byte after four", pieces(True, request(), 4, *[1] * 16, 1000), [Seen(REQUEST_FIELDS)])
    add("a response cut in odd places", [Send(True, request()), *pieces(False, image(), 7, 9, 31, 1000, 1461)],
        [Seen({"request_id": "1"}), Seen(RESPONSE_FIELDS)])
    add("two frames in one segment", [
        Send(True, request(5) + request(6)),
        Send(False, error(6, 500, 8) + error(5, 500, 9))],
        [Seen({"request_id": "5"}), Seen({"request_id": "6"}),
         Seen({"request_id": "6", "error_code": "8", "status": "500"}, ["OUT_OF_MEMORY"]),
         Seen({"request_id": "5", "error_code": "9", "status": "500"}, ["GPU_ERROR"])])
    three = request(1) + request(2) + request(3)
    add("three frames in segments that end within them", pieces(True, three, 118 + 20, 90, 8, 200),
        [Seen({"request_id": "1"}), Seen({"request_id": "2"}), Seen({"request_id": "3"})])
    add("a magic cut in two between frames", pieces(True, three, 120, 300),
        [Seen({"request_id": "1"}), Seen({"request_id": "2"}), Seen({"request_id": "3"})])

    # Requests and answers
    add("answers in another order", [
        Send(True, request(1)), Send(True, request(2)), Send(False, error(2, 500, 23)), Send(False, error(1))],
        [Seen({"request_id": "1", "answer_in": "@4"}), Seen({"request_id": "2", "answer_in": "@3"}),
         Seen({"request_in": "@2"}, ["BUSY"]), Seen({"request_in": "@1", "time": "0.003000000"}, ["INVALID_STEPS"])])
    add("the same request_id twice", [
        Send(True, request(1)), Send(True, request(1)), Send(False, error(1)), Send(False, error(1, 500, 9))],
        [Seen({"answer_in": "@3"}), Seen({"answer_in": "@4"}),
         Seen({"request_in": "@1"}, ["INVALID_STEPS"]), Seen({"request_in": "@2"}, ["GPU_ERROR"])])
    add("an answer to nobody", [Send(True, request(1)), Send(False, error(2))],
        [Seen({"answer_in": None}), Seen({"request_in": None, "time": None}, ["INVALID_STEPS", "no request 2 waits"])])
    add("an error for the whole connection", [Send(False, error(0, 500, 23, b"full"))],
        [Seen({"request_id": "0", "request_in": None}, ["BUSY"])])
    add("an image of another size", [Send(True, request(1, width=128)), Send(False, image(1, data=b""))],
        [Seen({"width": "128"}),
         Seen({"image_width": "64"}, ["only 0 bytes", "the request was for 128×64 pixels (W1-RSP-002)"])])

    # Every code
    sends = [Send(True, b"".join(request(code) for code in ERRORS))]
    seen = [Seen({"request_id": str(code)}) for code in ERRORS]
    for code, (name, status) in ERRORS.items():
        sends.append(Send(False, error(code, status, code, b"told by name")))
        seen.append(Seen({"request_id": str(code), "error_code": str(code), "status": str(status),
                          "error_msg": "told by name"}, [name]))
    add("every error code", sends, seen)
    add("error code 0", *answers(error(code=0), "NONE) is never sent", error_code="0"))
    add("error code 77", *answers(error(code=77), "error_code 77 is not known here", error_code="77"))

    # Values out of range
    for width in (0, 63, 65, 2112, 2**32 - 1):
        add("width %d" % width, *asks(
            request(width=width), "width %d: %s (W1-REQ-001)" % (width, SIDE), width=str(width)))
    add("height 100", *asks(request(height=100), "height 100: " + SIDE, height="100"))
    for steps in (0, 101):
        add("steps %d" % steps, *asks(request(steps=steps), "steps %d: must be 1 to 100" % steps, steps=str(steps)))
    for cfg in (-0.5, 20.5, math.inf, math.nan):
        add("cfg_scale %s" % cfg, *asks(request(cfg=cfg), "must be 0.0 to 20.0", cfg_scale=...))
    add("cfg_scale -0.0", *asks(request(cfg=-0.0), steps="28"))
    add("the bounds", *asks(request(2**64 - 1, 0, 2048, 2048, 100, 20.0, 2**64 - 1), request_id=str(2**64 - 1),
                            seed=str(2**64 - 1), cfg_scale="20", width="2048"))
    add("several at once", *asks(request(width=1, steps=0), "width 1", "steps 0"))

    # Prompts
    three = "ein Käse für CLIP-G: €".encode()
    add("three prompts", *asks(request(data=b"for CLIP-L" + three + b"T5", places=[
        (0, 10), (10, len(three)), (10 + len(three), 2)]), clip_l="for CLIP-L", clip_g=three.decode(), t5="T5"))
    add("prompts that coincide, and a byte that nobody uses", *asks(
        request(data=b"same!", places=[(0, 4), (0, 4), (1, 3)]), clip_l="same", clip_g="same", t5="ame"))
    add("no prompt", *asks(request(places=[(0, 0), (14, 14), (28, 14)]),
                           "clip_l_length 0: must be 1 to 2048", clip_l=None))
    add("a prompt too long", *asks(request(data=b"x" * 2049, places=[(0, 1), (0, 2049), (0, 1)]),
                                   "clip_g_length 2049: must be 1 to 2048", clip_g="x" * 2049))
    add("a range that ends too late", *asks(request(places=[(0, 14), (14, 14), (29, 14)]),
                                            "t5 ends at byte 43, prompt_data at byte 42 (W1-REQ-002)", t5=None))
    add("a range that overflows", *asks(request(places=[(2**32 - 1, 14), (14, 14), (28, 14)]),
                                        "clip_l ends at byte 4294967309, prompt_data at byte 42", clip_l=None))
    add("no prompt_data", *asks(request(data=b""), *["ends at byte"] * 3, clip_l=None, prompt_data=None))
    for name, bad, at in [("latin-1", b"K\xe4se", 1), ("surrogate", b"ab\xed\xa0\x80", 2), ("overlong", b"\xc0\xaf", 0),
                          ("cut", b"abc\xe2\x82", 3), ("beyond U+10FFFF", b"\xf4\x90\x80\x80", 0)]:
        add("a prompt not UTF-8: " + name, *asks(request(data=bad, places=[(0, len(bad))] * 3),
            *["is not UTF-8 from its byte %d on (W1-REQ-003)" % at] * 3))
    add("a prompt with a byte 0", *asks(request(data=b"ab\0c", places=[(0, 4), (0, 2), (0, 2)]),
                                        "clip_l has a 0 as its byte 2 (W1-REQ-003)"))
    long = b"y" * 6145
    add("prompt_data too long", *asks(request(data=long, places=[(0, 1)] * 3),
                                      "prompt_data of 6145 bytes: at most 6144", payload_len="6205", clip_l="y"))

    # Lengths
    whole = request()[16:]
    for size, needed in ((0, 12), (7, 12), (8, 12), (11, 12), (12, 60), (59, 60)):
        fields = {"request_id": None if size < 8 else "1", "width": None if size < 16 else "64"}
        add("a request of %d bytes" % size, *asks(frame(1, whole[:size]),
            "payload_len %d: too short for the fields, which take %d bytes" % (size, needed), **fields))
    for size in (0, 8, 31):
        add("a response of %d bytes" % size, *answers(frame(2, image()[16:16 + size]),
            "payload_len %d: too short for the fields, which take 32 bytes (W1-RSP-006)" % size))
    for size in (0, 8, 17):
        add("an error of %d bytes" % size, *answers(frame(0xFF, error()[16:16 + size]),
            *["INVALID_STEPS"] * (size == 17),
            "payload_len %d: too short for the fields, which take 18 bytes (W1-ERR-008)" % size))
    add("a request too long to be followed", [
        Send(True, request(payload_len=10_485_761)), Send(True, b"the rest of it")],
        [Seen({"payload_len": "10485761", "request_id": "1"}, ["at most 10485760", "prompt_data of 10485701 bytes"]),
         Seen({"unframed": b"the rest of it".hex(":")}, ["no frame begins here"])])
    add("a response too long to be followed", *answers(image(data=b"", payload_len=16_777_249),
                                                       "payload_len 16777249: at most 16777248", image_width="64"))
    add("a length of 32 bits", *asks(request(payload_len=2**32 - 1), "payload_len 4294967295",
                                         "prompt_data of 4294967235 bytes", seed="0"))

    # Responses
    add("RGBA", *answers(image(channels=4, data=b""), "only 0 bytes", channels="4", image_data_len="16384"))
    add("status 404", *answers(image(status=404, data=b""), "status 404: must be 200", "only 0 bytes", status="404"))
    add("an image of 65 pixels", *answers(
        image(width=65, length=4, data=b"1234"), "image_width 65: " + SIDE, "for 64×64"))
    add("two channels", *answers(image(channels=2, length=4, data=b"1234"), "channels 2: must be 3 or 4"))
    add("image_data_len that contradicts the sides", *answers(
        image(length=2, data=b"12"), "image_data_len 2: 64 · 64 · 3 is 12288 (W1-RSP-004)", image_data="31:32"))
    add("image_data_len that contradicts payload_len", *answers(
        image(data=b"short"), "image_data_len 12288: only 5 bytes follow in the payload (W1-RSP-006)"))
    add("bytes after the image", *answers(
        image(data=bytes(12288) + b"later"), "after the last field, and so ignored (W1-RSP-007)",
        appended=b"later".hex(":")))

    # Errors
    add("an error of status 404", *answers(error(status=404), "status 404: must be 400 or 500", "INVALID_STEPS"))
    add("a status that contradicts the code", *answers(
        error(status=500), "must be 400 with INVALID_STEPS", "INVALID_STEPS"))
    add("error_msg_len that contradicts payload_len", *answers(
        error(message=b"abc", length=4), "INVALID_STEPS", "error_msg_len 4: only 3 bytes follow", error_msg="abc"))
    add("error_msg too long", *answers(error(message=b"m" * 256), "INVALID_STEPS", "error_msg_len 256: at most 255"))
    add("bytes after error_msg", *answers(
        error(message=b"abc", length=2), "INVALID_STEPS", "ignored (W1-ERR-009)", error_msg="ab", appended="63"))
    add("error_msg not UTF-8", *answers(error(message=b"a\xffb\x1b[2J"), "INVALID_STEPS", "error_msg is not UTF-8"))
    add("error_msg empty", *answers(error(message=b""), "INVALID_STEPS", error_msg=None, error_msg_len="0"))

    # Headers
    add("a reserved field that is used", *asks(request(reserved=7), "reserved is not 0", reserved="0x00000007"))
    add("a request of version 2", *asks(request(version=2), "version 2 is not known here",
                                        payload=whole.hex(":"), width=None))
    add("an error of version 2", *answers(
        error(code=2, version=2), "version 2 is not known here", "UNSUPPORTED_VERSION"))
    add("an unknown msg_type", *asks(
        frame(3, b"what?"), "msg_type 0x0003 is not known here", payload=b"what?".hex(":")))
    add("a frame without payload", *asks(frame(3, b""), "msg_type 0x0003 is not known here", payload=None))
    add("a wrong magic in the middle of the stream", [Send(True, request(1) + request(2, magic=b"WEVF") + request(3))],
        [Seen({"request_id": "1"}), Seen({"unframed": request(2, magic=b"WEVF").hex(":")}, ["no frame begins here"]),
         Seen({"request_id": "3"})])
    add("a wrong magic in the next segment", [Send(True, request(1)), Send(True, b"GET / HTTP/1.1\r\n")],
        [Seen({"request_id": "1"}), Seen({"request_id": None, "unframed": b"GET / HTTP/1.1\r\n".hex(":")},
                                         ["no frame begins here"])])
    add("a wrong byte at the end of a segment", [Send(True, request(1) + b"WEX")],
        [Seen({"request_id": "1"}), Seen({"unframed": b"WEX".hex(":")}, ["no frame begins here"])])

    # Captures that have less than what was sent
    add("a packet of which 100 bytes were captured", [Send(True, request(), 100)],
        [Seen({"request_id": "1", "seed": "0", "clip_l_offset": "0", "clip_g_offset": None}, ["does not have all"])])
    add("a packet of which a part of the header was captured", [Send(True, request(), 50)],
        [Seen({}, ["does not have all"])])
    add("a packet of which a part of the image was captured", [Send(True, request()), Send(False, image(), 200)],
        [Seen({}), Seen({"image_width": "64", "image_data": bytes(112).hex(":")}, ["does not have all"])])

    add("a stream that ends in the middle of a frame", [Send(True, request(1) + request(2)[:50])],
        [Seen({"request_id": "1"})])

    # Not Weave
    add("another protocol", [Send(True, b"GET / HTTP/1.1\r\n\r\n"), Send(True, request())], [])
    return made
