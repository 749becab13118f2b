#!/usr/bin/env python3
"""Mutation test of the suite: puts one defect at a time into the Python implementation and runs weave-conform on it.

Each mutant is a text that occurs once, its replacement (a mistake that an implementer could make), and the requirement
whose case must fail: for that reason, not for another. At least 95 % must be caught. Before that, the implementation
without a defect must pass 20 times in a row (--sound N).

    conformance/mutants.py [--sound N] [--only TEXT] [CONFORM]
"""
import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
PYTHON = HERE / "implementations" / "python"
CONFORM = HERE.parent / "target" / "conform" / "release" / "weave-conform"

# mode, file, what stands there, what stands there instead, the requirement or case that has to fail
MUTANTS = [
    # Layouts
    ("codec", "codec.py", '">4sHHII")       #', '"<4sHHII")       #', "W1-FRM-002"),
    ("codec", "codec.py", 'REQUEST = Struct(">QIIIIfQ6I")', 'REQUEST = Struct("<QIIIIfQ6I")', "W1-REQ"),
    ("codec", "codec.py", 'Struct(">QIIIIfQ6I")', 'Struct(">QIIIIfq6I")', "W1-REQ-010"),
    ("codec", "codec.py", 'Struct(">QIIIIfQ6I")', 'Struct(">QIIIIIQ6I")', "W1-TRN-005b"),
    ("codec", "codec.py", 'RESPONSE = Struct(">QIIIIII")', 'RESPONSE = Struct(">qIIIIII")', "W1-RSP-005e"),
    ("codec", "codec.py", 'ERROR = Struct(">QIIH")', 'ERROR = Struct(">QIIh")', "W1-ERR-010a"),
    ("codec", "codec.py", 'ERROR = Struct(">QIIH")', 'ERROR = Struct(">QIiH")', "W1-ERR-006a"),
    ("codec", "codec.py", 'REQUEST_ID = Struct(">Q")', 'REQUEST_ID = Struct("<Q")', "W1-ERR-001"),
    ("codec", "codec.py", "width, height, steps, cfg_scale, seed, *ranges = REQUEST",
     "height, width, steps, cfg_scale, seed, *ranges = REQUEST", "W1-REQ-001a"),
    ("codec", "codec.py", "ranges[0::2], ranges[1::2]", "ranges[1::2], ranges[0::2]", "W1-TRN-006a"),
    # Limits
    ("codec", "codec.py", "SIDES = range(64, 2048 + 1, 64)", "SIDES = range(64, 2048, 64)", "W1-REQ-001a"),
    ("codec", "codec.py", "SIDES = range(64, 2048 + 1, 64)", "SIDES = range(0, 2048 + 1, 64)", "W1-REQ-001a"),
    ("codec", "codec.py", "SIDES = range(64, 2048 + 1, 64)", "SIDES = range(64, 2048 + 1, 32)", "W1-REQ-001a"),
    ("codec", "codec.py", "SIDES = range(64, 2048 + 1, 64)", "SIDES = range(64, 2048 + 1)", "W1-REQ-001a"),
    ("codec", "codec.py", "STEPS = range(1, 100 + 1)", "STEPS = range(0, 100 + 1)", "W1-REQ-001c"),
    ("codec", "codec.py", "STEPS = range(1, 100 + 1)", "STEPS = range(1, 100)", "W1-REQ-001c"),
    ("codec", "codec.py", "PROMPT_LENGTHS = range(1, 2048 + 1)", "PROMPT_LENGTHS = range(0, 2048 + 1)", "W1-REQ-001d"),
    ("codec", "codec.py", "PROMPT_LENGTHS = range(1, 2048 + 1)", "PROMPT_LENGTHS = range(1, 256 + 1)", "W1-REQ-001d"),
    ("codec", "codec.py", "MAX_SKIPPED_PAYLOAD = 10_485_760", "MAX_SKIPPED_PAYLOAD = 10_485_759", "W1-FRM-003a"),
    ("codec", "codec.py", "MAX_SKIPPED_PAYLOAD = 10_485_760", "MAX_SKIPPED_PAYLOAD = 16_777_248", "W1-FRM-002a"),
    ("codec", "codec.py", "MAX_SKIPPED_PAYLOAD = 10_485_760", "MAX_SKIPPED_PAYLOAD = 6_204", "W1-FRM-003a"),
    ("codec", "codec.py", "MAX_REQUEST_PAYLOAD = 6_204", "MAX_REQUEST_PAYLOAD = 6_203", "W1-REQ-001d"),
    ("codec", "codec.py", "MAX_RESPONSE_PAYLOAD = 16_777_248", "MAX_RESPONSE_PAYLOAD = 10_485_760", "W1-RSP-005e"),
    ("codec", "codec.py", "MAX_RESPONSE_PAYLOAD = 16_777_248", "MAX_RESPONSE_PAYLOAD = 16_777_249", "W1-FRM-007a"),
    ("codec", "codec.py", "MAX_ERROR_MSG = 255", "MAX_ERROR_MSG = 256", "W1-ERR-003b"),
    ("codec", "codec.py", "CHANNELS = (3, 4)", "CHANNELS = (3,)", "W1-RSP-005e"),
    ("codec", "codec.py", "CHANNELS = (3, 4)", "CHANNELS = (1, 3, 4)", "W1-RSP-005c"),
    ("codec", "codec.py", "INVALID_STEPS = 6, 400", "INVALID_STEPS = 7, 400", "W1-REQ-001c"),
    ("codec", "codec.py", "TOO_LARGE = 21, 400", "TOO_LARGE = 21, 500", "W1-FRM-002a"),
    ("codec", "codec.py", "BUSY = 23, 500", "BUSY = 23, 400", "W1-ERR-002b"),
    # Checks that are missing, or are made in another order or another way
    ("codec", "codec.py", '    check(version == VERSION, ErrorCode.UNSUPPORTED_VERSION, "version", version, "1")\n',
     "", "W1-VER-003a"),
    ("codec", "codec.py", 'check(version == VERSION,', 'check(version >= VERSION,', "W1-VER-003a"),
    ("codec", "codec.py", 'check(msg_type == TYPE_REQUEST,', 'check(msg_type != TYPE_RESPONSE,', "W1-VAL-001a"),
    ("codec", "codec.py", 'check(magic == MAGIC,', 'check(magic[:3] == MAGIC[:3],', "W1-FRM-004a"),
    ("codec", "codec.py", 'check(magic == MAGIC,', 'check(magic.upper() == MAGIC,', "W1-FRM-004a"),
    ("codec", "codec.py", 'check(model_id == MODEL_ID,', 'check(model_id & 0xFFFFFF == MODEL_ID,', "W1-REQ-001e"),
    ("codec", "codec.py", '    check(height in SIDES, ErrorCode', '    check(True, ErrorCode', "W1-REQ-001b"),
    ("codec", "codec.py", 'check(0.0 <= cfg_scale <= MAX_CFG_SCALE, ErrorCode',
     'check(not (cfg_scale < 0.0 or cfg_scale > MAX_CFG_SCALE), ErrorCode', "W1-REQ-007a"),
    ("codec", "codec.py", 'check(0.0 <= cfg_scale <= MAX_CFG_SCALE, ErrorCode',
     'check(0.0 <= cfg_scale < MAX_CFG_SCALE, ErrorCode', "W1-TRN-005b"),
    ("codec", "codec.py", "cfg_scale = cfg_scale + 0.0  #", "cfg_scale = cfg_scale  #", "W1-REQ-007a"),
    ("codec", "codec.py", "check(offset + length <= len(data),", "check(offset <= len(data),", "W1-REQ-002a"),
    ("codec", "codec.py", "check(offset + length <= len(data),", "check((offset + length) % 2**32 <= len(data),",
     "W1-VAL-002a"),
    ("codec", "codec.py", "check(offset + length <= len(data),", "check(offset + length < len(data),", "W1-REQ"),
    ("codec", "codec.py", 'text.decode("utf-8")\n', 'text.decode("utf-8", "surrogatepass")\n', "W1-REQ-003a"),
    ("codec", "codec.py", 'text.decode("utf-8")\n', 'text.decode("latin-1")\n', "W1-REQ-003a"),
    ("codec", "codec.py", "check(0 not in data[offset:offset + length],", "check(True,", "W1-REQ-003c"),
    ("codec", "codec.py", "check(0 not in data[offset:offset + length],", "check(0 not in data,", "W1-REQ-006a"),
    ("codec", "codec.py", """    for name, offset, length in prompts:
        check(0 not in data[offset:offset + length], ErrorCode.INVALID_PROMPT, name, "text with a byte 0", "without")
""", """    prompts = [(name, offset, (data[offset:offset + length] + b"\\0").index(0)) for name, offset, length in prompts]
""", "W1-REQ-003c"),
    ("codec", "codec.py", "check(is_utf8(data[offset:offset + length]),", "check(is_utf8(data),", "W1-REQ-006a"),
    ("codec", "codec.py", "payload_len >= REQUEST_HEAD.size,", "payload_len >= 8,", "W1-VAL-001b"),
    ("codec", "codec.py", "check(payload_len >= REQUEST.size,", "check(payload_len > REQUEST.size,", "W1-VAL-001b"),
    ("codec", "codec.py", '    check(payload_len <= MAX_REQUEST_PAYLOAD, ErrorCode', '    check(True, ErrorCode', "W1-FRM-003a"),
    ("codec", "codec.py", '''    check(width in SIDES, ErrorCode.INVALID_DIMENSIONS, "width", width, "64 to 2048, a multiple of 64")
    check(height in SIDES, ErrorCode.INVALID_DIMENSIONS, "height", height, "64 to 2048, a multiple of 64")
    check(steps in STEPS, ErrorCode.INVALID_STEPS, "steps", steps, "1 to 100")
''', '''    check(steps in STEPS, ErrorCode.INVALID_STEPS, "steps", steps, "1 to 100")
    check(width in SIDES, ErrorCode.INVALID_DIMENSIONS, "width", width, "64 to 2048, a multiple of 64")
    check(height in SIDES, ErrorCode.INVALID_DIMENSIONS, "height", height, "64 to 2048, a multiple of 64")
''', "W1-VAL-001d"),
    ("codec", "codec.py", '''    check(version == VERSION, ErrorCode.UNSUPPORTED_VERSION, "version", version, "1")
    check(msg_type == TYPE_REQUEST, ErrorCode.UNSUPPORTED_TYPE, "msg_type", f"0x{msg_type:04X}", "0x0001")
''', '''    check(msg_type == TYPE_REQUEST, ErrorCode.UNSUPPORTED_TYPE, "msg_type", f"0x{msg_type:04X}", "0x0001")
    check(version == VERSION, ErrorCode.UNSUPPORTED_VERSION, "version", version, "1")
''', "W1-VAL-001c"),
    # Framing
    ("codec", "codec.py", "[0] if payload_len >= 8 else 0  #",
     "[0] if payload_len >= 12 else 0  #", "W1-ERR-001b"),
    ("codec", "codec.py", "            yield from self._skip(payload_len - len(payload))  # W1-FRM-003\n", "", "W1-FRM-003"),
    ("codec", "codec.py", "yield Refusal(0, fault.error_code, str(fault))\n                return",
     "yield Refusal(0, fault.error_code, str(fault))\n                continue", "W1-FRM-004"),
    ("codec", "codec.py", "        yield from self._skip(trailing)  # W1-RSP-007\n", "", "W1-RSP-007a"),
    ("codec", "codec.py", "        yield from self._skip(trailing)  # W1-ERR-009\n", "", "W1-ERR-009a"),
    ("codec", "codec.py", 'expect(status == STATUS_OK,', 'expect(status & 0xFF == STATUS_OK,', "W1-RSP-005a"),
    ("codec", "codec.py", "expect(image_data_len == width * height * channels,", "expect(True,", "W1-RSP-005d"),
    ("codec", "codec.py", "expect(payload_len >= RESPONSE.size + image_data_len,", "expect(True,", "W1-RSP-006a"),
    ("codec", "codec.py", "expect(status in (400, 500),", "expect(400 <= status <= 599,", "W1-ERR-007a"),
    ("codec", "codec.py", "expect(payload_len >= ERROR.size + error_msg_len,", "expect(True,", "W1-ERR-008a"),
    ("codec", "codec.py", 'expect(version == VERSION, "W1-FRM-010"', 'expect(True, "W1-FRM-010"', "W1-FRM-010a"),
    ("codec", "codec.py", "if msg_type == TYPE_ERROR:  #", "if msg_type == TYPE_ERROR and version == VERSION:  #", "W1-VER-006a"),
    ("codec", "codec.py", "char if char.isprintable() else ascii(char)[1:-1] for", "char for", "W1-ERR-010a"),
    # Writing
    ("codec", "codec.py", "return HEADER.pack(MAGIC, VERSION, msg_type, payload_len, 0)",
     "return HEADER.pack(MAGIC, VERSION, msg_type, payload_len + 16, 0)", "W1-HDR-003d"),
    ("codec", "codec.py", "return HEADER.pack(MAGIC, VERSION, msg_type, payload_len, 0)",
     "return HEADER.pack(MAGIC, VERSION, msg_type, payload_len, 1)", "W1-HDR-004c"),
    ("codec", "codec.py", "ranges += [len(prompt_data), len(prompt)]", "ranges += [len(prompt), len(prompt_data)]", "W1-TRN-005d"),
    ("codec", "codec.py", 'encode("error_msg", error_msg)[:MAX_ERROR_MSG].decode("utf-8", "ignore").encode("utf-8")',
     'encode("error_msg", error_msg)[:MAX_ERROR_MSG]', "W1-ERR-003b"),
    # A server's own
    ("server", "server.py", "codec.build_error(outcome.request_id, outcome.error_code", "codec.build_error(0, outcome.error_code",
     "W1-ERR-001"),
    ("server", "server.py", "    while not reader.closed:\n        yield READ", "    while True:\n        yield READ", "W1-FRM"),
    ("server", "server.py", "head = codec.build_response_head(outcome.request_id, time_ms, outcome.width, outcome.height)",
     "head = codec.build_response_head(outcome.request_id, time_ms, outcome.height, outcome.width)", "W1-RSP-002a"),
    ("server", "server.py", "head = codec.build_response_head(outcome.request_id, time_ms,",
     "head = codec.build_response_head(outcome.request_id & 0xFFFFFFFF, time_ms,", "W1-RSP-001a"),
    ("server", "server.py", "return [memoryview(head), *stripes]", "return [memoryview(head), *stripes, *stripes[:1]]", "W1-HDR"),
    ("server", "server.py", "return [memoryview(head), *stripes]", "return [memoryview(head), *stripes] * 2", "W1-CON-002"),
    ("server", "server.py", "            if not may_connect(sock):  # W1-TRN-003\n                sock.close()  # W1-TRN-004\n            elif",
     "            if", "W1-TRN-003a"),
    ("server", "server.py", "    mask = os.umask(0o177)", "    mask = os.umask(0o000)", "W1-TRN-002a"),
    ("server", "server.py", "        if not data:  # the client", "        if len(data) < 16:  # the client", "W1-TRN-001a"),
    ("server", "server.py", "        for outcome in reader.feed(data):\n            yield from send(sock, server.answer(outcome))",
     "        for outcome in list(reader.feed(data))[:1]:\n            yield from send(sock, server.answer(outcome))", "W1-CON-001a"),
    ("server", "server.py", "            yield from send(sock, server.answer(outcome))  #",
     """            yield from send(sock, server.answer(outcome))
            if isinstance(outcome, codec.Refusal):
                return
            #""", "W1-CON-005a"),
    ("server", "server.py", """        for outcome in reader.feed(data):
            yield from send(sock, server.answer(outcome))  #""", """        import itertools
        answers = [server.answer(outcome) for outcome in reader.feed(data)]
        in_turns = [piece for pieces in itertools.zip_longest(*answers) for piece in pieces if piece]
        yield from send(sock, in_turns)
        #""", "W1-CON-006a"),
    ("server", "server.py", "            connection.sock.shutdown(socket.SHUT_RD)  #", "            connection.sock.close()  #",
     "W1-CON-009a"),
    ("server", "codec.py", 'f"{field} is {value}, must be {allowed}")\n        self.error_code', '"bad request")\n        self.error_code',
     "W1-ERR-004a"),
    ("server", "codec.py", 'name, "not UTF-8", "UTF-8")\n    for', 'name, data[offset:offset + length], "UTF-8")\n    for', "W1-ERR-005a"),
    # A client's own
    ("client", "__main__.py", "                if isinstance(answer, codec.Error):\n                    status = 1",
     "                if isinstance(answer, codec.Error):\n                    status = 0", "W1-ERR-006"),
    ("client", "__main__.py", "codec.printable(answer.error_msg)}", "answer.error_msg.decode('utf-8', 'replace')}", "W1-ERR-010b"),
    ("client", "connection.py", "            elif answer.request_id in waiting:\n                waiting.remove(answer.request_id)",
     "            elif waiting:\n                waiting.pop()", "W1-RSP-001b"),
    ("client", "__main__.py", "for request_id in range(1, args.count + 1)", "for request_id in [1] * args.count", "W1-CON"),
    ("client", "codec.py", "clip_l if clip_g is None else clip_g)", "'x' if clip_g is None else clip_g)", "W1-REQ-004a"),
    ("client", "codec.py", "return HEADER.pack(MAGIC, VERSION, msg_type, payload_len, 0)",
     "return HEADER.pack(MAGIC, VERSION, msg_type, payload_len, 7)", "W1-HDR-004b"),
    ("client", "codec.py", "return HEADER.pack(MAGIC, VERSION, msg_type, payload_len, 0)",
     "return HEADER.pack(MAGIC, 2, msg_type, payload_len, 0)", "W1-HDR-002b"),
    ("client", "codec.py", 'expect(magic == MAGIC, "W1-FRM-006"', 'expect(True, "W1-FRM-006"', "W1-FRM-006b"),
    ("client", "codec.py", 'expect(status == STATUS_OK, "W1-RSP-005"', 'expect(True, "W1-RSP-005"', "W1-RSP-005a"),
]

COMMANDS = {
    "codec": ["--exec", "python3 -B {folder}/adapter.py"],
    "server": ["--strict", "--exec", "python3 -B {folder}/server.py {{address}}"],
    "client": ["--strict", "--exec", "env PYTHONPATH={folder} python3 -B -m weave_client --timeout 5 {{address}}",
               "--exec-several", "env PYTHONPATH={folder} python3 -B -m weave_client --timeout 5 {{address}} --count {{count}}"],
}


def run(conform, mode, folder, *options):
    """All cases that failed."""
    report = folder / "report.json"
    command = [str(conform), mode, "--json", str(report), "--timeout", "6", *options,
               *(part.format(folder=folder) for part in COMMANDS[mode])]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if not report.exists():
        sys.exit("mutants: %s\n%s" % (" ".join(command), done.stdout.decode()))
    return [case for case in json.loads(report.read_text())["cases"] if case["counts_against"]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sound", type=int, default=20, metavar="N")
    parser.add_argument("--only", default="", metavar="TEXT")
    parser.add_argument("conform", nargs="?", default=CONFORM, metavar="CONFORM")
    args = parser.parse_args()
    wanted = [mutant for mutant in MUTANTS if args.only in " ".join(mutant)]
    if not wanted:
        parser.error("no mutant has %r in it" % args.only)
    caught, missed = 0, []
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / "python"
        for number in range(args.sound):
            for mode in ("codec", "server") if number else COMMANDS:
                shutil.copytree(PYTHON, folder, dirs_exist_ok=True)
                failed = run(args.conform, mode, folder)
                if failed:
                    print("mutants: without any defect %s fails in run %d: %s" % (
                        mode, number + 1, "; ".join("%s %s" % (case["id"], case["failures"]) for case in failed)))
                    return 1
        print("mutants: sound: nothing fails without a defect, %d times" % args.sound)
        for mode, name, old, new, requirement in wanted:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(PYTHON, folder)
            (path, ) = folder.rglob(name)
            text = path.read_text()
            if text.count(old) != 1:
                sys.exit("mutants: %s has %d times, not once: %s" % (name, text.count(old), old))
            path.write_text(text.replace(old, new))
            # A library is soon asked everything. Of the others only the cases that have to fail are tried.
            failed = run(args.conform, mode, folder, *([] if mode == "codec" else ["--filter", requirement]))
            if any(case["id"].startswith(requirement) for case in failed):
                caught += 1
            else:
                missed.append((mode, new.strip().splitlines()[0] if new.strip() else "without " + old.strip(), requirement,
                               [case["id"] for case in failed]))
    for mode, what, requirement, failed in missed:
        print("MISSED %s: %s: %s does not fail, but %s" % (mode, what, requirement, failed or "nothing"))
    share = 100 * caught / (caught + len(missed))
    print("mutants: %d caught, %d missed (%.0f %%)" % (caught, len(missed), share))
    return 0 if share >= 95 else 1


if __name__ == "__main__":
    sys.exit(main())
