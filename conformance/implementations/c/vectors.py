"""Writes the test vectors of spec/vectors as a header for test.c, since C can't read JSON."""
import json, pathlib, sys, zlib

FOLDER = pathlib.Path(__file__).resolve().parents[3] / "spec" / "vectors"


def blob(value):
    bytes_ = value["text"].encode() if "text" in value else bytes.fromhex(value["hex"])
    return bytes_ * value.get("times", 1)


def digest(bytes_):
    return f"{len(bytes_)} {zlib.crc32(bytes_):08X}"


def image(fields):
    names = "request_id status generation_time_ms image_width image_height channels image_data_len"
    return " ".join(str(fields[name]) for name in names.split())


def outcome(kind, it):
    """The line that test.c makes of an outcome."""
    if kind == "request":
        names = "request_id model_id width height steps"
        prompts = (f"{it[name]['offset']} {digest(blob(it[name]))}" for name in ("clip_l", "clip_g", "t5"))
        values = [*(it[name] for name in names.split()), it["cfg_scale"]["bits"], it["seed"], *prompts]
    elif kind == "answer":
        values = [it[name] for name in "request_id status error_code step field".split()]
    elif kind == "response":
        values = [image(it), digest(blob(it["image_data"])), it["trailing"]]
    elif kind == "error":
        names = "request_id status error_code error_msg_len"
        values = [*(it[name] for name in names.split()), digest(blob(it["error_msg"])), it["trailing"]]
    else:
        values = [it["because"], it["field"]]
    return " ".join(map(str, [kind, *values]))


def expected(expect):
    lines = [outcome(*frame) for frames in expect["frames"] for frame in frames.items()]
    if "head" in expect:
        lines.append("head " + image(expect["head"]))
    return [*lines, expect["end"]]


def is_rewritable(vector):
    """Whether the writers of weave.c have to make the same bytes."""
    frames = [outcome for frame in vector["expect"]["frames"] for outcome in frame.items()]
    if "sender" in vector or len(frames) != 1 or frames[0][0] not in ("request", "response", "error"):
        return False
    kind, fields = frames[0]
    if kind == "error":
        return "name" in fields  # otherwise the code is new, and the text has no status for it (W1-ERR-002)
    if kind == "response":
        return True
    end = 0  # of a request the prompts have to follow each other without a gap
    for name in ("clip_l", "clip_g", "t5"):
        if fields[name]["offset"] != end:
            return False
        end += fields[name]["length"]
    return sum(len(blob(piece)) for piece in vector["bytes"] if piece["field"] == "prompt_data") == end


def main():
    table = []
    for path in sorted(FOLDER.glob("*.json")):
        for vector in json.loads(path.read_text()).get("vectors", []):
            number = len(table)
            pieces = [(bytes.fromhex(piece["hex"]), piece.get("times", 1)) for piece in vector["bytes"]]
            print(f"static const uint8_t BYTES_{number}[] = {{")
            for bytes_, _ in pieces:
                print("".join(f"{byte}," for byte in bytes_))
            print("0};")  # an array can't be empty
            print(f"static const struct piece PIECES_{number}[] = {{")
            at = 0
            for bytes_, times in pieces:
                print(f"{{BYTES_{number} + {at}, {len(bytes_)}, {times}}},")
                at += len(bytes_)
            print("{NULL, 0, 0}};")
            lines = "".join(f'"{line}\\n" ' for line in expected(vector["expect"]))
            flags = f'{int(vector["receiver"] == "server")}, {int(is_rewritable(vector))}'
            table.append(f'{{"{vector["name"]}", {flags}, PIECES_{number},\n {lines}}},')
    if not table:
        sys.exit(f"{FOLDER} has no vectors")
    print("static const struct vector VECTORS[] = {", *table, "};", sep="\n")


main()
