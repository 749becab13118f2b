"""Usage: python read.py FOLDER

Reads every .bin in FOLDER with the parser there, and prints a line of JSON for each: its name, and its frames
or the error.
"""

import hashlib
import json
import pathlib
import sys

folder = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(folder))
sys.dont_write_bytecode = True
from weave import Weave  # noqa: E402


def digest(data):
    return f"{len(data)} bytes, {hashlib.sha256(data).hexdigest()}"


def prompt(p):
    return {"offset": p.offset, "length": p.length, "raw": digest(p.raw), "text": p.text}


def request(p):
    return {
        "request_id": str(p.request_id),
        "model_id": p.model_id,
        "width": p.width,
        "height": p.height,
        "steps": p.steps,
        "cfg_scale": p.cfg_scale + 0.0,  # -0.0 means 0.0
        "seed": str(p.seed),
        "clip_l": prompt(p.clip_l),
        "clip_g": prompt(p.clip_g),
        "t5": prompt(p.t5),
    }


def response(p):
    return {
        "request_id": str(p.request_id),
        "status": p.status,
        "generation_time_ms": p.generation_time_ms,
        "image_width": p.image_width,
        "image_height": p.image_height,
        "channels": p.channels,
        "image_data_len": p.image_data_len,
        "image_data": digest(p.image_data),
        "trailing": len(p.trailing),
    }


def error(p):
    known = isinstance(p.error_code, Weave.ErrorCode)
    return {
        "request_id": str(p.request_id),
        "status": p.status,
        "error_code": p.error_code,
        "name": p.error_code.name.upper() if known else None,
        "error_msg_len": p.error_msg_len,
        "error_msg": digest(p.error_msg),
        "trailing": len(p.trailing),
    }


def frame(f):
    kind = f.header.msg_type.name
    return {"kind": kind, **{"request": request, "response": response, "error": error}[kind](f.payload)}


def read(data):
    try:
        return {"frames": [frame(f) for f in Weave.from_bytes(data).frames]}
    except Exception as problem:  # whatever the generated parser throws
        return {"error": repr(problem)}


for file in sorted(folder.glob("*.bin")):
    print(json.dumps([file.stem, read(file.read_bytes())]))
