#!/usr/bin/env python3
"""The adapter between weave_client.codec and `weave-conform codec`. conformance/ADAPTER.md describes what it speaks."""
from __future__ import annotations

import json
import struct
import sys
import zlib
from typing import Any

from weave_client import codec

Json = dict[str, Any]


def main() -> None:
    for line in sys.stdin.buffer:
        print(json.dumps(answer(json.loads(line))), flush=True)


def answer(question: Json) -> Json:
    if "read" in question:
        return read(question)
    if "write" in question:
        try:
            return {"hex": write(question).hex()}
        except codec.OutOfRange as fault:
            return {"refused": fault.field}
    return {"unsupported": "this adapter can read and write"}


def read(question: Json) -> Json:
    pieces = (bytes.fromhex(piece["hex"]) * piece.get("times", 1) for piece in question["bytes"])
    stream, cut = memoryview(b"".join(pieces)), question["cut"]
    reader: codec.ServerReader | codec.ClientReader
    reader = codec.ServerReader() if question["read"] == "server" else codec.ClientReader()
    frames: list[Json] = []
    try:
        for at in range(0, len(stream), cut):
            frames += map(outcome, reader.feed(stream[at:at + cut]))
            if reader.closed:
                break
    except codec.Broken as fault:
        frames.append({"close": {"because": fault.because}})
    end = "closed" if reader.closed else "inside-a-frame" if reader.inside_a_frame else "between-frames"
    return {"frames": frames, "end": end}


def outcome(frame: codec.Request | codec.Refusal | codec.Response | codec.Error) -> Json:
    if isinstance(frame, codec.Refusal):
        # Its text begins with the field at fault.
        return {"answer": {"hex": codec.build_error(*frame).hex(), "field": frame.error_msg.split(" ")[0]}}
    fields = frame._asdict()
    fields["request_id"] = str(frame.request_id)
    if isinstance(frame, codec.Request):
        fields["cfg_scale"] = struct.pack(">f", frame.cfg_scale).hex()
        fields["seed"] = str(frame.seed)
        for name in ("clip_l", "clip_g", "t5"):
            prompt = fields[name]
            fields[name] = {"offset": prompt.offset, "length": prompt.length, "hex": prompt.text.encode().hex()}
        return {"request": fields}
    if isinstance(frame, codec.Response):
        fields["image_data_len"] = len(frame.image_data)
        fields["crc32"] = f"{zlib.crc32(fields.pop('image_data')):08x}"
        return {"response": fields}
    fields["hex"] = fields.pop("error_msg").hex()
    fields["shown"] = codec.printable(frame.error_msg).encode().hex()
    return {"error": fields}


def write(question: Json) -> bytes:
    request_id = int(question["request_id"])
    if question["write"] == "request":
        return codec.build_request(
            request_id, text(question["clip_l"]), text(question["clip_g"]), text(question["t5"]),
            width=question["width"], height=question["height"], steps=question["steps"],
            cfg_scale=struct.unpack(">f", bytes.fromhex(question["cfg_scale"]))[0], seed=int(question["seed"]),
        )
    if question["write"] == "response-head":
        return codec.build_response_head(
            request_id, question["generation_time_ms"], question["image_width"], question["image_height"],
            question["channels"],
        )
    return codec.build_error(request_id, question["error_code"], text(question["error_msg"]))


def text(digits: str) -> str:
    """What isn't UTF-8 becomes a str that has no UTF-8 form, for the sender to refuse."""
    return bytes.fromhex(digits).decode("utf-8", "surrogateescape")


if __name__ == "__main__":
    main()
