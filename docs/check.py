#!/usr/bin/env python3
"""Whether the documentation is true: WEAVED=… WEAVE=… docs/check.py [FILE…]

Runs the commands of README.md and docs/*.md, each page in a home of its own, against a weaved with test pictures: blocks
marked `sh` have to succeed, blocks marked `console` (`$ command`, and what it prints, … for what differs) also have to print
that (but for times). What can't be run here has `<!-- not run: REASON -->` in the line above. Verbs of make have to exist.
Also looks whether each link within the repository leads somewhere, and whether SUMMARY.md has all pages.
"""
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^(?:<!-- not run:(?P<reason>.*)-->\n)?```(?P<kind>\w*)[^\n]*\n(?P<text>.*?)^```$", re.M | re.S)
MARK = "\x01"
# Test pictures are drawn at once, but the pages show what the demo model says and makes.
DEMO = {"WEAVE_DEFAULT_SIZE": "128x128", "WEAVE_DEFAULT_STEPS": "8", "WEAVE_DEFAULT_CFG_SCALE": "1"}
SAYS = [("test pattern", "demo model"), ("a checkerboard or a gradient instead of what the prompt says", "coloured shapes on coloured backgrounds")]
PATIENCE_S = 120
# A daemon that was sent into the background is given the time that people give it.
AWAIT = 'until weave ping%s >/dev/null 2>&1; do kill -0 $!; sleep 0.05; done'


def blocks(page):
    """Kind, text, reason not to run it, and line of each block."""
    text = page.read_text(encoding="utf-8")
    return [(found["kind"], found["text"], found["reason"], text.count("\n", 0, found.start("kind")) + 1)
            for found in BLOCK.finditer(text)]


def commands(kind, text):
    """The commands of a block, and what each has to print (None: anything)."""
    if kind == "sh":
        yield text, None
        return
    for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
        lines = part.splitlines()
        last = next(at for at, line in enumerate(lines) if not line.endswith("\\"))
        yield "\n".join(lines[:last + 1]), "\n".join(lines[last + 1:])


def script_of(command):
    """The command as it is run: make is not, and who starts a weaved waits for it."""
    verbs = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    lines = []
    for line in command.replace("\\\n", " ").splitlines():
        words = line.partition(" #")[0].split()
        if words[:1] == ["make"]:
            unknown = [word for word in words[1:] if "=" not in word and word not in verbs]
            lines.append("false # no verb of make: %s" % unknown if unknown else ":")
            continue
        starts = re.fullmatch(r"(.*\bweaved\b.*) &\s*(#.*)?", line)
        lines.append(starts[1] + ' 2>>"$HOME/log" &' if starts else line)
        if words[:2] == ["kill", "$!"]:
            lines.append("wait $! || true")
        if starts:
            socket = words[words.index("--socket") + 1] if "--socket" in words else None
            lines.append(AWAIT % (" --socket " + shlex.quote(socket) if socket else ""))
    return "\n".join(lines)


def same(printed, expected):
    for pattern, demo in SAYS:
        printed = printed.replace(pattern, demo)
    parts = re.split(r"…|\d+\.\d+ m?s\b", expected)  # how long it took differs as well
    pattern = r"[^\n]*".join(map(re.escape, parts))
    return re.fullmatch(pattern, "\n".join(line.rstrip() for line in printed.strip().splitlines()))


def run(page, programs):
    """What is wrong with the page's commands, and how many were run."""
    faults, plan = [], []
    for kind, text, reason, line in blocks(page):
        if reason is not None and not reason.strip():
            faults.append("%s:%d: the reason is missing" % (page.name, line))
        if kind in ("sh", "console") and reason is None:
            plan += [(line, command, expected) for command, expected in commands(kind, text)]
    if not plan:
        return faults, 0
    with tempfile.TemporaryDirectory(prefix="weave-docs-") as folder:
        home = pathlib.Path(folder)
        (home / "run").mkdir(mode=0o700)
        (home / "bin").mkdir()
        work = home / "work"  # looks like the repository, with what was built
        (work / "target").mkdir(parents=True)
        for name in os.listdir(ROOT):
            if name not in ("target", ".git"):
                (work / name).symlink_to(ROOT / name)
        (work / "target" / "release").symlink_to(home / "bin")
        for name, program in programs.items():
            (home / "bin" / name).symlink_to(program)
        script = "set -e\ntrap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n" + "".join(
            "printf '%s%d\\n'\n%s\n" % (MARK, number, script_of(command)) for number, (_, command, _) in enumerate(plan))
        environment = {"HOME": folder, "XDG_RUNTIME_DIR": folder + "/run", "WEAVE_ENGINE": "pattern", **DEMO, "LANG": "C.UTF-8",
                       "PATH": "%s/bin:%s" % (folder, os.environ["PATH"]), "PYTHONDONTWRITEBYTECODE": "1",
                       **{name: os.environ[name] for name in ("GOTOOLCHAIN", "GOPROXY", "GOFLAGS") if name in os.environ}}
        with open(home / "said", "w+b") as said:
            process = subprocess.Popen(["bash", "-c", script], cwd=work, env=environment, stdin=subprocess.DEVNULL,
                                       stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                status = process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                status = "no end within %d s" % PATIENCE_S
            said.seek(0)
            printed = said.read().decode("utf-8", "replace").split(MARK)[1:]
    for number, (line, command, expected) in enumerate(plan[:len(printed)]):
        text = printed[number].partition("\n")[2]
        if status != 0 and number == len(printed) - 1:  # the last one that began is where it stopped
            faults.append("%s:%d: ends with %s:\n%s\n%s" % (page.name, line, status, command, text))
        elif expected is not None and not same(text, expected):
            faults.append("%s:%d: %s\nprints\n%s\nand not\n%s" % (page.name, line, command, text, expected))
    return faults, len(printed)


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower()).replace(" ", "-")
            for heading in re.findall(r"^#+ (.*)$", text, re.M)}


def links(page):
    """The links that lead nowhere."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or anchor and file.suffix == ".md" and anchor not in anchors(file):
            yield "%s: %s leads nowhere" % (page.relative_to(ROOT), target)


def book(folder):
    """The links of the pages that mdBook has made, which lead nowhere."""
    bad = set()
    for page in folder.rglob("*.html"):
        if page.name in ("print.html", "404.html", "toc.html"):
            continue
        for target in re.findall(r'(?:href|src)="([^"#?]+)', page.read_text(encoding="utf-8")):
            if not re.match(r"\w+:|//", target) and not (page.parent / urllib.parse.unquote(target)).exists():
                bad.add("%s: %s leads nowhere" % (page.relative_to(folder), target))
    return sorted(bad)


def main():
    if sys.argv[1:2] == ["--book"]:
        faults = book(pathlib.Path(sys.argv[2]))
        print("\n".join(faults + ["book: %d links lead nowhere" % len(faults)]))
        return bool(faults)
    programs = {name: pathlib.Path(os.environ[name.upper()]).resolve() for name in ("weaved", "weave")}
    pages = [pathlib.Path(name).resolve() for name in sys.argv[1:]] or [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
    faults, number = [], 0
    for page in pages:
        found, ran = run(page, programs)
        faults += found + list(links(page))
        number += ran
    summary = (DOCS / "SUMMARY.md").read_text()
    faults += ["SUMMARY.md lacks %s" % page.name for page in sorted(DOCS.glob("*.md"))
               if page.name != "SUMMARY.md" and "(%s)" % page.name not in summary]
    for fault in faults:
        print("docs: " + fault, file=sys.stderr)
    print("docs: %d blocks of %d pages run, %d faults" % (number, len(pages), len(faults)))
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
