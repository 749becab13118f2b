"""Weave, version 1: the codec of both sides, without sockets.

A server feeds what it receives to a ServerReader and gets a Request or a Refusal for each frame; a client feeds a
ClientReader and gets a Response or an Error. The build_ functions make what either side sends. Ids such as W1-HDR-001
are those of the requirements in spec/weave-v1.md.
"""
from __future__ import annotations

import enum
from collections.abc import Generator, Iterator
from struct import Struct
from typing import Generic, NamedTuple, TypeVar, Union

MAGIC = b"WEVE"
VERSION = 1
TYPE_REQUEST = 0x0001
TYPE_RESPONSE = 0x0002
TYPE_ERROR = 0x00FF

# ">" is big-endian without padding (W1-TRN-005, W1-TRN-006); H, I and Q are u16, u32 and u64, f is a binary32.
HEADER = Struct(">4sHHII")       # magic, version, msg_type, payload_len, reserved
REQUEST_ID = Struct(">Q")        # request_id, the first field of every payload
REQUEST_HEAD = Struct(">QI")     # request_id, model_id: the same for every model
REQUEST = Struct(">QIIIIfQ6I")   # request_id, model_id, width, height, steps, cfg_scale, seed, three (offset, length)
RESPONSE = Struct(">QIIIIII")    # request_id, status, generation_time_ms, sides, channels, image_data_len
ERROR = Struct(">QIIH")          # request_id, status, error_code, error_msg_len

MAX_REQUEST_PAYLOAD = 6_204
MAX_SKIPPED_PAYLOAD = 10_485_760
MAX_RESPONSE_PAYLOAD = 16_777_248
MAX_ERROR_MSG = 255

MODEL_ID = 0
SIDES = range(64, 2048 + 1, 64)
STEPS = range(1, 100 + 1)
MAX_CFG_SCALE = 20.0
PROMPT_LENGTHS = range(1, 2048 + 1)
CHANNELS = (3, 4)
STATUS_OK = 200

U32 = range(2**32)
U64 = range(2**64)


class ErrorCode(enum.IntEnum):
    """Why there is no image. `status` is 400 if the request is to blame, 500 if it is the server (W1-ERR-002)."""

    status: int

    def __new__(cls, code: int, status: int) -> ErrorCode:
        member = int.__new__(cls, code)
        member._value_ = code
        member.status = status
        return member

    INVALID_MAGIC = 1, 400
    UNSUPPORTED_VERSION = 2, 400
    INVALID_MODEL_ID = 3, 400
    INVALID_PROMPT = 4, 400
    INVALID_DIMENSIONS = 5, 400
    INVALID_STEPS = 6, 400
    INVALID_CFG = 7, 400
    OUT_OF_MEMORY = 8, 500
    GPU_ERROR = 9, 500
    TIMEOUT = 10, 500
    MALFORMED = 20, 400
    TOO_LARGE = 21, 400
    UNSUPPORTED_TYPE = 22, 400
    BUSY = 23, 500
    SHUTTING_DOWN = 24, 500
    INTERNAL = 99, 500


ERROR_CODES = {int(code): code for code in ErrorCode}


def error_code(code: int, status: int) -> ErrorCode:
    """One that this version doesn't know is legal as well (W1-ERR-006): it is called UNKNOWN_ and its number."""
    if code in ERROR_CODES:
        return ERROR_CODES[code]
    unknown = int.__new__(ErrorCode, code)
    unknown._name_, unknown._value_, unknown.status = f"UNKNOWN_{code}", code, status
    return unknown


class Prompt(NamedTuple):
    """A range of prompt_data, in bytes, and the text in it."""

    offset: int
    length: int
    text: str


class Request(NamedTuple):
    """A request that has passed all checks."""

    request_id: int
    model_id: int
    width: int
    height: int
    steps: int
    cfg_scale: float
    seed: int
    clip_l: Prompt
    clip_g: Prompt
    t5: Prompt


class Refusal(NamedTuple):
    """What a server has to answer to a frame that it can't serve: give the three to build_error."""

    request_id: int
    error_code: ErrorCode
    error_msg: str


class Response(NamedTuple):
    """An image. `trailing` is how many bytes followed that this version doesn't know."""

    request_id: int
    status: int
    generation_time_ms: int
    image_width: int
    image_height: int
    channels: int
    image_data: bytes
    trailing: int


class Error(NamedTuple):
    """Why there is no image. error_code may be none of ErrorCode; show error_msg through printable() only."""

    request_id: int
    status: int
    error_code: int
    error_msg: bytes
    trailing: int


class Refused(Exception):
    """A check of section 7 failed. The text names the field, its value and what is allowed (W1-ERR-004)."""

    def __init__(self, error_code: ErrorCode, field: str, value: object, allowed: str) -> None:
        super().__init__(f"{field} is {value}, must be {allowed}")
        self.error_code = error_code


class Broken(Exception):
    """The server broke the requirement `because`: the client must close the connection."""

    def __init__(self, because: str, reason: str) -> None:
        super().__init__(f"{reason} ({because})")
        self.because = because


class OutOfRange(ValueError):
    """A sender was asked to send a `field` that would be refused."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f"{field} is {value}, must be {allowed}")
        self.field = field


Outcome = TypeVar("Outcome")


class _Reader(Generic[Outcome]):
    """Reads a stream that is cut anywhere (W1-TRN-001), looking at each byte once."""

    closed: bool          # the stream is given up: no further byte is looked at
    inside_a_frame: bool  # a frame was begun and waits for its rest; if the peer is gone, drop it (W1-FRM-009)

    def __init__(self) -> None:
        self.closed = False
        self.inside_a_frame = False
        self._fresh = memoryview(b"")  # what the latest feed() brought and nobody has taken yet
        self._outcomes = self._read()

    def feed(self, data: bytes | memoryview) -> Iterator[Outcome]:
        """Yields what comes of each frame that ends within `data`.

        It is lazy: a frame isn't looked at before its outcome is asked for, so a server that writes an answer between
        two outcomes never has more than one in memory. Take all outcomes before the next call.
        """
        self._fresh = memoryview(data)
        for outcome in self._outcomes:
            if outcome is None:
                return
            yield outcome

    def _read(self) -> Iterator[Outcome | None]:
        """Yields outcomes, and None when more bytes are needed. Ends when the stream is given up."""
        raise NotImplementedError

    def _some(self, most: int) -> Generator[None, None, memoryview]:
        """At least one and at most `most` of the bytes that have come."""
        while not self._fresh:
            yield None
        piece, self._fresh = self._fresh[:most], self._fresh[most:]
        self.inside_a_frame = True
        return piece

    def _take(self, size: int) -> Generator[None, None, bytes]:
        """The next `size` bytes. Memory grows as they come; nothing is reserved for them (W1-FRM-008)."""
        taken = bytearray()
        while len(taken) < size:
            taken += yield from self._some(size - len(taken))
        return bytes(taken)

    def _skip(self, size: int) -> Generator[None, None, None]:
        """Drops the next `size` bytes."""
        while size > 0:
            size -= len((yield from self._some(size)))


# The server's side


class ServerReader(_Reader[Union[Request, Refusal]]):
    """What a server receives on one connection. Keeps at most 6,204 bytes, however long a payload is."""

    def _read(self) -> Iterator[Request | Refusal | None]:
        while True:
            self.inside_a_frame = False
            header = yield from self._take(HEADER.size)
            magic, version, msg_type, payload_len, _reserved = HEADER.unpack(header)  # W1-HDR-005
            try:
                check_stream(magic, payload_len)
            except Refused as fault:
                self.closed = True  # nobody knows where the next frame begins: W1-FRM-002, W1-FRM-004
                yield Refusal(0, fault.error_code, str(fault))
                return
            payload = yield from self._take(min(payload_len, MAX_REQUEST_PAYLOAD))
            yield from self._skip(payload_len - len(payload))  # W1-FRM-003
            request_id = REQUEST_ID.unpack_from(payload)[0] if payload_len >= 8 else 0  # W1-ERR-001
            outcome: Request | Refusal
            try:
                outcome = parse_request(version, msg_type, payload_len, payload)
            except Refused as fault:
                outcome = Refusal(request_id, fault.error_code, str(fault))  # the connection lives on: W1-CON-005
            yield outcome


def check_stream(magic: bytes, payload_len: int) -> None:
    """Steps 1 and 2 of section 7, before anything else of a frame is looked at (W1-FRM-005)."""
    check(magic == MAGIC, ErrorCode.INVALID_MAGIC, "magic", magic.hex(" "), MAGIC.hex(" "))
    check(payload_len <= MAX_SKIPPED_PAYLOAD, ErrorCode.TOO_LARGE, "payload_len", payload_len, "at most 10485760")


def parse_request(version: int, msg_type: int, payload_len: int, payload: bytes) -> Request:
    """Steps 3 to 15 of section 7, in that order (W1-VAL-001).

    `payload` is all of it, or its first 6,204 bytes if it is longer. No text of a Refused has anything of a prompt
    in it (W1-ERR-005).
    """
    check(version == VERSION, ErrorCode.UNSUPPORTED_VERSION, "version", version, "1")
    check(msg_type == TYPE_REQUEST, ErrorCode.UNSUPPORTED_TYPE, "msg_type", f"0x{msg_type:04X}", "0x0001")
    check(payload_len >= REQUEST_HEAD.size, ErrorCode.MALFORMED, "payload_len", payload_len, "at least 12")
    _, model_id = REQUEST_HEAD.unpack_from(payload)
    check(model_id == MODEL_ID, ErrorCode.INVALID_MODEL_ID, "model_id", model_id, "0")
    check(payload_len >= REQUEST.size, ErrorCode.MALFORMED, "payload_len", payload_len, "at least 60")
    request_id, _, width, height, steps, cfg_scale, seed, *ranges = REQUEST.unpack_from(payload)
    check(width in SIDES, ErrorCode.INVALID_DIMENSIONS, "width", width, "64 to 2048, a multiple of 64")
    check(height in SIDES, ErrorCode.INVALID_DIMENSIONS, "height", height, "64 to 2048, a multiple of 64")
    check(steps in STEPS, ErrorCode.INVALID_STEPS, "steps", steps, "1 to 100")
    # NaN compares as false, so it is refused here with the infinities (W1-REQ-007).
    check(0.0 <= cfg_scale <= MAX_CFG_SCALE, ErrorCode.INVALID_CFG, "cfg_scale", cfg_scale, "0.0 to 20.0")

    prompts = list(zip(("clip_l", "clip_g", "t5"), ranges[0::2], ranges[1::2]))  # name, offset, length
    for name, _, length in prompts:
        check(length in PROMPT_LENGTHS, ErrorCode.INVALID_PROMPT, f"{name}_length", length, "1 to 2048")
    check(payload_len <= MAX_REQUEST_PAYLOAD, ErrorCode.INVALID_PROMPT, "payload_len", payload_len, "at most 6204")
    data = payload[REQUEST.size:]  # ranges may overlap, and leave bytes uncovered: W1-REQ-005, W1-REQ-006
    for name, offset, length in prompts:
        inside = f"such that the {length} bytes of {name}_length lie within the {len(data)} of prompt_data"
        # int has no upper bound: the end of a range can't overflow (W1-VAL-002).
        check(offset + length <= len(data), ErrorCode.INVALID_PROMPT, f"{name}_offset", offset, inside)
    for name, offset, length in prompts:
        check(is_utf8(data[offset:offset + length]), ErrorCode.INVALID_PROMPT, name, "not UTF-8", "UTF-8")
    for name, offset, length in prompts:
        check(0 not in data[offset:offset + length], ErrorCode.INVALID_PROMPT, name, "text with a byte 0", "without")

    cfg_scale = cfg_scale + 0.0  # -0.0 + 0.0 is 0.0 (W1-REQ-007)
    texts = [Prompt(offset, length, data[offset:offset + length].decode()) for _, offset, length in prompts]
    return Request(request_id, model_id, width, height, steps, cfg_scale, seed, *texts)


def check(holds: bool, error_code: ErrorCode, field: str, value: object, allowed: str) -> None:
    """A row of the table in section 7."""
    if not holds:
        raise Refused(error_code, field, value, allowed)


def is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def build_response_head(
    request_id: int, generation_time_ms: int, image_width: int, image_height: int, channels: int = 3
) -> bytes:
    """The 48 bytes that come before the pixels. A time that a u32 can't hold becomes the largest u32 (W1-RSP-003)."""
    require(request_id in U64, "request_id", request_id, "a u64")
    require(generation_time_ms >= 0, "generation_time_ms", generation_time_ms, "at least 0")
    require(image_width in SIDES, "image_width", image_width, "64 to 2048, a multiple of 64")
    require(image_height in SIDES, "image_height", image_height, "64 to 2048, a multiple of 64")
    require(channels in CHANNELS, "channels", channels, "3 or 4")
    time_ms = min(generation_time_ms, U32[-1])
    image_data_len = image_width * image_height * channels  # W1-RSP-004
    head = RESPONSE.pack(request_id, STATUS_OK, time_ms, image_width, image_height, channels, image_data_len)
    return build_header(TYPE_RESPONSE, len(head) + image_data_len) + head


def build_error(request_id: int, error_code: int, error_msg: str) -> bytes:
    """The frame of an error. error_msg is cut to at most 255 bytes, at a character (W1-ERR-003)."""
    require(request_id in U64, "request_id", request_id, "a u64")
    code = ERROR_CODES.get(error_code)
    if code is None:
        raise OutOfRange("error_code", error_code, "one of this version")
    text = encode("error_msg", error_msg)[:MAX_ERROR_MSG].decode("utf-8", "ignore").encode("utf-8")
    head = ERROR.pack(request_id, code.status, code, len(text))
    return build_header(TYPE_ERROR, len(head) + len(text)) + head + text


# The client's side


class ClientReader(_Reader[Union[Response, Error]]):
    """What a client receives on one connection. feed() raises Broken if the server breaks the protocol."""

    def _read(self) -> Iterator[Response | Error | None]:
        while True:
            self.inside_a_frame = False
            try:
                answer = yield from self._answer()
            except Broken:
                self.closed = True
                raise
            yield answer

    def _answer(self) -> Generator[None, None, Response | Error]:
        header = yield from self._take(HEADER.size)
        magic, version, msg_type, payload_len, _reserved = HEADER.unpack(header)  # W1-HDR-005
        expect(magic == MAGIC, "W1-FRM-006", f"a frame begins with {magic.hex(' ')}")
        expect(payload_len <= MAX_RESPONSE_PAYLOAD, "W1-FRM-007", f"payload_len is {payload_len}")
        if msg_type == TYPE_ERROR:  # whatever its version is: W1-VER-006
            return (yield from self._error(payload_len))
        expect(msg_type == TYPE_RESPONSE, "W1-FRM-010", f"a frame of msg_type 0x{msg_type:04X}")
        expect(version == VERSION, "W1-FRM-010", f"a response of version {version}")
        return (yield from self._response(payload_len))

    def _response(self, payload_len: int) -> Generator[None, None, Response]:
        """Checks the fixed fields before it waits for a pixel (W1-RSP-005, W1-FRM-008)."""
        expect(payload_len >= RESPONSE.size, "W1-RSP-006", f"a response with payload_len {payload_len}")
        head = yield from self._take(RESPONSE.size)
        request_id, status, time_ms, width, height, channels, image_data_len = RESPONSE.unpack(head)
        expect(status == STATUS_OK, "W1-RSP-005", f"a response with status {status}")
        expect(width in SIDES, "W1-RSP-005", f"image_width is {width}")
        expect(height in SIDES, "W1-RSP-005", f"image_height is {height}")
        expect(channels in CHANNELS, "W1-RSP-005", f"channels is {channels}")
        expect(image_data_len == width * height * channels, "W1-RSP-005", f"image_data_len is {image_data_len}")
        expect(payload_len >= RESPONSE.size + image_data_len, "W1-RSP-006", f"image_data in payload_len {payload_len}")
        image_data = yield from self._take(image_data_len)
        trailing = payload_len - RESPONSE.size - image_data_len
        yield from self._skip(trailing)  # W1-RSP-007
        return Response(request_id, status, time_ms, width, height, channels, image_data, trailing)

    def _error(self, payload_len: int) -> Generator[None, None, Error]:
        expect(payload_len >= ERROR.size, "W1-ERR-008", f"an error with payload_len {payload_len}")
        head = yield from self._take(ERROR.size)
        request_id, status, error_code, error_msg_len = ERROR.unpack(head)  # any error_code: W1-ERR-006
        expect(status in (400, 500), "W1-ERR-007", f"an error with status {status}")
        expect(payload_len >= ERROR.size + error_msg_len, "W1-ERR-008", f"error_msg_len is {error_msg_len}")
        error_msg = yield from self._take(error_msg_len)
        trailing = payload_len - ERROR.size - error_msg_len
        yield from self._skip(trailing)  # W1-ERR-009
        return Error(request_id, status, error_code, error_msg, trailing)


def expect(holds: bool, because: str, reason: str) -> None:
    """A rule that a client closes the connection over (W1-RSP-008)."""
    if not holds:
        raise Broken(because, reason)


def printable(error_msg: bytes) -> str:
    """error_msg as a terminal may have it: what isn't UTF-8 replaced, what isn't printable escaped (W1-ERR-010)."""
    text = error_msg.decode("utf-8", "replace")
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def build_request(
    request_id: int,
    clip_l: str,
    clip_g: str | None = None,
    t5: str | None = None,
    *,
    width: int = 512,
    height: int = 512,
    steps: int = 28,
    cfg_scale: float = 7.0,
    seed: int = 0,
) -> bytes:
    """The frame of a request. The prompts follow one another; the first stands for those left out (W1-REQ-004)."""
    require(request_id in U64, "request_id", request_id, "a u64")
    require(width in SIDES, "width", width, "64 to 2048, a multiple of 64")
    require(height in SIDES, "height", height, "64 to 2048, a multiple of 64")
    require(steps in STEPS, "steps", steps, "1 to 100")
    require(0.0 <= cfg_scale <= MAX_CFG_SCALE, "cfg_scale", cfg_scale, "0.0 to 20.0")
    require(seed in U64, "seed", seed, "a u64")
    prompt_data, ranges = b"", []
    for name, text in (("clip_l", clip_l), ("clip_g", clip_l if clip_g is None else clip_g),
                       ("t5", clip_l if t5 is None else t5)):
        prompt = encode(name, text)
        require(len(prompt) in PROMPT_LENGTHS, f"{name}_length", len(prompt), "1 to 2048")
        require(0 not in prompt, name, "text with a byte 0", "without")
        ranges += [len(prompt_data), len(prompt)]
        prompt_data += prompt
    # A receiver takes -0.0 as 0.0; adding 0.0 makes it so. Three prompts can't exceed W1-FRM-001.
    fields = REQUEST.pack(request_id, MODEL_ID, width, height, steps, cfg_scale + 0.0, seed, *ranges)
    return build_header(TYPE_REQUEST, len(fields) + len(prompt_data)) + fields + prompt_data


# What all senders share


def build_header(msg_type: int, payload_len: int) -> bytes:
    """W1-HDR-001 to W1-HDR-004."""
    return HEADER.pack(MAGIC, VERSION, msg_type, payload_len, 0)


def require(holds: bool, field: str, value: object, allowed: str) -> None:
    """A range that a sender keeps to (W1-REQ-001)."""
    if not holds:
        raise OutOfRange(field, value, allowed)


def encode(field: str, text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate, such as an argument that wasn't UTF-8
        raise OutOfRange(field, "not UTF-8", "UTF-8") from None
