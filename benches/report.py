#!/usr/bin/env python3
"""Makes RESULTS.md and plots.html of what `benches/run` has measured.

report.py FOLDER: the folder has daemon.txt and peers.txt (lines `NAME VALUE`), criterion/ and machine.txt.
"""

import json
import math
import sys
from pathlib import Path

here = Path(__file__).parent
folder = Path(sys.argv[1])
figures = {}
for name in ("daemon.txt", "peers.txt"):
    path = folder / name
    for line in path.read_text().splitlines() if path.exists() else []:
        key, value = line.rsplit(" ", 1)
        figures[key] = float(value)
times = {}
for path in sorted((folder / "criterion").glob("**/new/estimates.json")):
    about = json.loads((path.parent / "benchmark.json").read_text())
    times[about["full_id"]] = json.loads(path.read_text())["median"]["point_estimate"]


def number(value):
    """Three digits that count."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{round(value, digits):,.{digits}f}" if abs(value) < 1e4 else f"{value:,.0f}"


def time(nanoseconds):
    for limit, unit in ((1e3, "ns"), (1e6, "µs"), (1e9, "ms")):
        if nanoseconds < limit:
            return f"{number(nanoseconds / limit * 1e3)} {unit}"
    return f"{number(nanoseconds / 1e9)} s"


def size(count):
    for limit, unit in ((1e3, "B"), (1e6, "kB"), (1e9, "MB")):
        if count < limit:
            return f"{number(count / limit * 1e3)} {unit}"
    return f"{number(count / 1e9)} GB"


def keys(prefix, place=1):
    """The different words at this place of the names that begin so, in order of appearance."""
    return list(dict.fromkeys(name.split("/")[place] for name in figures if name.startswith(prefix + "/")))


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def slope(points):
    """The exponent of growth over the last decade or so: 1 is linear."""
    points = [(x, y) for x, y in points if y and y > 0]
    (x1, y1), (x2, y2) = points[len(points) // 2], points[-1]
    return math.log(y2 / y1) / math.log(x2 / x1) if x2 != x1 else 0.0


get = figures.get
text = [
    "# Benchmark results",
    "Made by `make bench`; do not edit. What the figures mean, and which goals they meet, is in [README.md](README.md).",
    "```\n" + (folder / "machine.txt").read_text().strip() + "\n```",
]

# ------------------------------------------------------------------------------------------- goals
goals = []


def goal(what, value, shown, limit, kind, least=False):
    if value is not None:
        met = value >= limit if least else value <= limit
        sign = "≥" if least else "≤"
        goals.append((what, shown(value), f"{sign} {kind}", "yes" if met else "**no**"))


percent = lambda ratio: f"{ratio * 100:.0f} %"
micro = lambda value: f"{number(value)} µs"
goal("throughput of 1024×1024 through `weaved`, of a socket pair's", get("relay/1024/weaved_ratio"), percent, 0.75, "75 %", True)
slowest = lambda *names: max(get(f"relay/1024/{name}_cpu_us", 0) for name in names)
if get("relay/1024/client_cpu_us"):
    goal("the same by processor time: the slowest of two against the slowest of three",
         slowest("writer", "reader") / slowest("worker", "router", "client"), percent, 0.75, "75 %", True)
goal("the same by processor time on one thread, without a worker",
     times["relay/direct"] / times["relay/spliced"] if "relay/spliced" in times else None, percent, 0.75, "75 %", True)
goal("bytes of pixels copied by the router", get("relay/copied_bytes"), size, 0, "0")
goal("added to 64×64, median", get("latency/added_median_us"), micro, 40, "40 µs")
goal("added to 64×64, p99", get("latency/added_p99_us"), micro, 150, "150 µs")
goal("the router's program", get("footprint/program_bytes"), size, 1.2e6, "1.2 MB")
goal("resident with 64 connections", get("footprint/64_rss"), size, 2.5e6, "2.5 MB")
goal("of that, memory of its own (the rest is its program and the C library)", get("footprint/64_own"), size, 2.5e6, "2.5 MB")
goal("a connection, of 10,000", get("connections/10000/bytes_each"), size, 8192, "8,192 B")
goal("from start to listening", get("footprint/listening_ms"), lambda v: f"{number(v)} ms", 10, "10 ms")
text += ["## Goals", table(("what", "measured", "goal", "met"), goals)]

# ------------------------------------------------------------------------------------------- relay
rows, costs = [], []
for side in keys("relay"):
    of = lambda name: get(f"relay/{side}/{name}")
    if side.isdigit():
        rows.append((f"{side}×{side}", *(number(of(f"{name}_gb_s")) for name in ("direct", "worker", "weaved", "weaved_tcp")),
                     percent(of("weaved_ratio"))))
        costs.append((f"{side}×{side}", *(number(of(f"{name}_cpu_us")) for name in ("writer", "reader", "worker", "router", "client"))))
if rows:
    text += ["## Images through the router",
             "One process writes images into a socket pair without being asked (direct); a worker answers requests over one "
             "(worker); the same worker behind `weaved`, over its Unix socket and over TCP; 8 requests under way. GB/s; the "
             "ratio is the median of rounds, each against its own direct one.",
             table(("image", "direct", "worker", "`weaved`", "TCP", "`weaved` : direct"), rows),
             "Processor time for an image in µs, which says less about who else was busy: of writer and reader of the direct "
             "way, and of the three through `weaved`.",
             table(("image", "writer", "reader", "worker", "router", "client"), costs)]
rows = [(name, time(times[f"relay/{key}"]), percent(times["relay/direct"] / times[f"relay/{key}"]))
        for name, key in (("written and read, nothing between", "direct"), ("spliced: what `weaved` does", "spliced"),
                          ("read and written, 64 KiB at a time: where there is no splice", "copied"),
                          ("in a sealed memory file, made for each image, sent by `sendfile`", "memory_file"),
                          ("spliced to TCP", "tcp_spliced"), ("copied to TCP", "tcp_copied"))
        if f"relay/{key}" in times]
if rows:
    text += ["An image of 1024×1024 on one thread, 128 KiB under way at once, in processor time (`cargo bench --bench relay`):",
             table(("way", "time", "of direct"), rows)]

# ----------------------------------------------------------------------------------------- latency
if get("latency/worker_median_us"):
    text += ["## Latency and load",
             "64×64 from the pattern engine, one request after the other, in µs:",
             table(("to", "median", "p99"), [
                 ("the worker itself", micro(get("latency/worker_median_us")), micro(get("latency/worker_p99_us"))),
                 ("`weaved`", micro(get("latency/weaved_median_us")), micro(get("latency/weaved_p99_us"))),
                 ("the difference, round by round", micro(get("latency/added_median_us")), micro(get("latency/added_p99_us")))]),
             "So many connections, each with one request under way all the time:",
             table(("connections", "requests/s", "median", "p99"), [
                 (n, number(get(f"load/{n}/per_s")), micro(get(f"load/{n}/median_us")), micro(get(f"load/{n}/p99_us")))
                 for n in keys("load")]),
             "One connection with so many requests under way; requests/s:",
             table(("under way", "at the worker itself", "at `weaved`"), [
                 (n, number(get(f"depth/{n}/worker_per_s")), number(get(f"depth/{n}/weaved_per_s"))) for n in keys("depth")]),
             "Processor time of the router for a request of 64×64 while so many clients wait:",
             table(("waiting", "µs"), [(n, number(get(f"queue/{n}/router_cpu_us"))) for n in keys("queue")])]

# --------------------------------------------------------------------------------------- footprint
if keys("connections"):
    text += ["## Connections",
             "Idle ones that have had an answer each, and what a request of one client more takes beside them:",
             table(("idle", "resident", "each of them", "request", "router's processor time"), [
                 (n, size(get(f"connections/{n}/rss")),
                  size(get(f"connections/{n}/bytes_each")) if get(f"connections/{n}/bytes_each") else "–",
                  micro(get(f"connections/{n}/request_us")), micro(get(f"connections/{n}/router_cpu_us")))
                 for n in keys("connections")])]

# ------------------------------------------------------------------------------------------- peers
plain = lambda name: name.replace("_", " ")
if keys("messages"):
    def cells(name):
        for what in ("encode_request", "decode_request", "encode_response", "decode_response"):
            of = lambda kind: get(f"messages/{name}/{what}_{kind}")
            yield f"{time(of('ns'))}, {of('allocations'):.0f}"
    text += ["## The same messages in other formats",
             "The request with three prompts, and the response with an image of 1024×1024: bytes, time, and how often memory "
             "is allocated once buffers have grown. Every field is looked at; buffers are used again, and what a library can "
             "lend instead of copying it lends. Pixels count as encoded when they could be handed to `writev`.",
             table(("format", "request", "encode", "decode", "response", "encode", "decode"), [
                 (plain(name), f"{get(f'messages/{name}/request_bytes'):.0f} B", *list(cells(name))[:2],
                  f"{get(f'messages/{name}/response_bytes'):,.0f} B", *list(cells(name))[2:]) for name in keys("messages")])]
    behind = []
    for what, unit in (("request_bytes", "size of a request"), ("encode_request_ns", "encoding a request"),
                       ("decode_request_ns", "decoding a request"), ("response_bytes", "size of a response"),
                       ("encode_response_ns", "encoding a response"), ("decode_response_ns", "decoding a response")):
        ours = get(f"messages/Weave/{what}")
        first = [plain(name) for name in keys("messages") if get(f"messages/{name}/{what}") < ours]
        behind += [f"{unit}: {', '.join(first)}"] if first else []
    text += ["Where Weave is not first: " + ("; ".join(behind) if behind else "nowhere here") + "."]
if keys("moving"):
    of = lambda name, what: get(f"moving/{name}/{what}")
    text += ["## Moving an image of 1024×1024",
             "From a process that has it to one that has its pixels in memory. Latency one by one; throughput and processor "
             "time with four connections (the worker alone has one). Peak memory of the serving side, for Weave that of router "
             "and worker together.",
             table(("way", "median", "p99", "images/s", "serving, ms", "asking, ms", "peak memory"), [
                 (plain(name), micro(of(name, "median_us")), micro(of(name, "p99_us")), number(of(name, "per_s")),
                  number(of(name, "server_cpu_ms")), number(of(name, "client_cpu_ms")), size(of(name, "peak_bytes")))
                 for name in keys("moving")])]
    for through in ("Weave,_through_weaved", "Weave,_through_weaved,_TCP"):
        behind = []
        for what, unit, least in (("median_us", "median", True), ("p99_us", "p99", True), ("per_s", "images/s", False),
                                  ("server_cpu_ms", "processor time of the serving side", True),
                                  ("client_cpu_ms", "processor time of the asking side", True), ("peak_bytes", "peak memory", True)):
            better = [plain(name) for name in keys("moving")
                      if not name.startswith("Weave") and (of(name, what) < of(through, what)) == least]
            behind += [f"{unit}: {', '.join(better)}"] if better else []
        text += [f"Where “{plain(through)}” is not before the others: " + ("; ".join(behind) if behind else "nowhere here") + "."]

# ---------------------------------------------------------------------------------------- criterion
if times:
    text += ["## Codec, splitting, router, relay", "criterion's medians:",
             table(("benchmark", "time"), [(f"`{name}`", time(value)) for name, value in sorted(times.items())])]

# ------------------------------------------------------------------------------------------- growth
series = {}


def grow(title, unit, prefix, names, scale=lambda n: n):
    lines = {}
    for label, name in names:
        points = [(scale(float(n)), get(f"{prefix}/{n}/{name}")) for n in keys(prefix) if n.isdigit()]
        points = [(x, y) for x, y in points if y is not None]
        if len(points) > 1:
            lines[label] = points
    if lines:
        series[title] = (unit, lines)


pixels = lambda side: side * side
grow("Latency against load: connections with a request under way", "µs", "load", [("median", "median_us"), ("p99", "p99_us")])
grow("Cost against image size: processor time against pixels", "µs", "relay", [("router", "router_cpu_us"), ("worker", "worker_cpu_us")], pixels)
grow("Cost of a request against clients that wait", "µs of the router", "queue", [("router", "router_cpu_us")])
grow("Cost of a request against idle connections", "µs of the router", "connections", [("router", "router_cpu_us")])
grow("Memory against connections", "bytes resident", "connections", [("router", "rss")])
grow("Requests a second against requests under way", "requests/s", "depth", [("worker", "worker_per_s"), ("weaved", "weaved_per_s")])
if series:
    rows = [(f"{title}: {label}", f"{slope(points):.2f}")
            for title, (_, lines) in series.items() for label, points in lines.items() if "second" not in title]
    text += ["## Scaling",
             "The exponent over the upper half of each range: 1 is linear, 0 is constant. [plots.html](plots.html) shows them all.",
             table(("cost", "exponent"), rows)]
(here / "RESULTS.md").write_text("\n\n".join(text) + "\n")

# -------------------------------------------------------------------------------------------- plots
WIDTH, HEIGHT, LEFT, BOTTOM = 620, 320, 70, 40
COLOURS = ("#1f6fb2", "#c1502e", "#3d8b40")


def ticks(low, high):
    return [10.0**n for n in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]


def plot(title, unit, lines):
    everything = [point for points in lines.values() for point in points]
    xs, ys = ticks(*(f(x for x, _ in everything) for f in (min, max))), ticks(*(f(y for _, y in everything) for f in (min, max)))

    def place(value, marks, length):
        span = math.log10(marks[-1] / marks[0]) or 1
        return math.log10(value / marks[0]) / span * length

    at = lambda x, y: (LEFT + place(x, xs, WIDTH - LEFT - 110), HEIGHT - BOTTOM - place(y, ys, HEIGHT - BOTTOM - 30))
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{title}</title>']
    for x in xs:
        px, _ = at(x, ys[0])
        parts.append(f'<line x1="{px:.1f}" x2="{px:.1f}" y1="30" y2="{HEIGHT - BOTTOM}" class="grid"/>'
                     f'<text x="{px:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x:,.0f}</text>')
    for y in ys:
        _, py = at(xs[0], y)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 110}" y1="{py:.1f}" y2="{py:.1f}" class="grid"/>'
                     f'<text x="{LEFT - 6}" y="{py + 4:.1f}" text-anchor="end">{y:,.0f}</text>')
    for colour, (label, points) in zip(COLOURS, lines.items()):
        path = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += ['<circle cx="{:.1f}" cy="{:.1f}" r="3" fill="{}"/>'.format(*at(x, y), colour) for x, y in points]
        px, py = at(*points[-1])
        parts.append(f'<text x="{px + 8:.1f}" y="{py + 4:.1f}" fill="{colour}">{label}</text>')
    parts.append(f'<text x="{LEFT - 6}" y="18" text-anchor="start">{unit}</text></svg>')
    return f"<h2>{title}</h2>\n" + "".join(parts)


(here / "plots.html").write_text(
    '<!doctype html>\n<!-- Made by `make bench`; do not edit. -->\n<html lang="en"><meta charset="utf-8"><title>Weave: benchmark results</title>\n<style>'
    "body{font:15px system-ui,sans-serif;max-width:660px;margin:2em auto;padding:0 1em}h2{font-size:1em;margin:2em 0 0}"
    "svg{width:100%;font:12px system-ui,sans-serif}.grid{stroke:#ddd}</style>\n<h1>Benchmark results</h1>\n"
    "<p>Both axes are logarithmic. The figures, the machine and the commands are in RESULTS.md.</p>\n"
    + "\n".join(plot(title, unit, lines) for title, (unit, lines) in series.items()) + "\n</html>\n")
