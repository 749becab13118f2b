#!/usr/bin/env python3
"""Mutation test of the suite: puts one defect at a time into the implementations and runs weave-conform on them.

The lists are LANGUAGE.txt in this folder; README.md says how they are written. A mutant is seen rightly if a case of
the requirement that it breaks fails, or the program crashes or hangs in it. At least 95 % of those that can be seen
from outside must be; in a sample, of those that the lists don't say are missed. Before that, the implementations without a defect must pass.

    conformance/mutants/run.py [--sample] [--sound N] [--only TEXT] [--jobs N] [CONFORM]
"""
import argparse
import collections
import concurrent.futures
import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

HERE = pathlib.Path(__file__).resolve().parent
IMPLEMENTATIONS = HERE.parent / "implementations"
CONFORM = HERE.parent.parent / "target" / "conform" / "release" / "weave-conform"

TIMEOUT = "6"     # of weave-conform, in seconds: what takes longer hangs
LONGEST = 90      # seconds that a run on a mutant may take: one that is slow in all cases is seen in the first
SAMPLED = 10      # a sample has every tenth mutant
ENOUGH = 95       # percent
NOT_COPIED = shutil.ignore_patterns("node_modules", "dist", "build", "__pycache__", ".mypy_cache", "*.test.ts", "*_test.go",
                                   "test_*")


class Fault(Exception):
    """Something is wrong with a list, not with the suite."""


class Mutant(NamedTuple):
    language: str
    line: int
    kind: str
    mode: str
    file: str
    variant: str          # of the implementation, or "" for the implementation itself
    tcp: bool             # the server listens at a TCP port
    requirements: list[str]  # beginnings of ids: a case of one of them has to fail
    old: str
    new: str
    unseen: str           # why it can't be seen from outside, or ""
    missed: str           # why no case sees it yet, or ""

    def __str__(self):
        what = " ".join((self.new or "without " + self.old).split())
        return f"{self.language}.txt:{self.line}: {self.mode} {self.file}: {what[:100]}"


class Variant(NamedTuple):
    """An implementation with something that it has no need of, for the mistakes that can be made there. It is sound."""

    mode: str
    changes: list[tuple[str, str, str]]  # file, old text, new text
    files: list[tuple[str, str]]         # where it comes to lie, and which file of this folder it is


# ---- The lists ----

MUTANT = re.compile(r"(codec|server|client) (\S+?)(?: on (\w+))?( tcp)?: (W1-[-0-9a-zA-Z ]+)$")


def read(language):
    """The mutants and the variants of a list."""
    mutants, variants = [], {}
    kind, head, sides, variant = "", None, {"-": [], "+": []}, None

    def finish(unseen="", missed=""):
        nonlocal head
        if head is None:
            return
        number, *fields = head
        texts = ["\n".join(sides[sign]) for sign in "-+"]
        if isinstance(fields[0], Variant):
            fields[0].changes.append((fields[1], *texts))
        else:
            mutants.append(Mutant(language, number, kind, *fields, *texts, unseen, missed))
        head, sides["-"], sides["+"] = None, [], []

    lines = (HERE / (language + ".txt")).read_text().split("\n")
    for number, line in enumerate(lines, 1):
        if head is not None and line[:1] in ("-", "+"):
            sides[line[0]].append(line[1:])
            continue
        if line.startswith("cannot be seen: ") and head is not None:
            finish(unseen=line.removeprefix("cannot be seen: "))
            continue
        if line.startswith("not seen: ") and head is not None:
            finish(missed=line.removeprefix("not seen: "))
            continue
        finish()
        if line.startswith("== "):
            kind = line.removeprefix("== ")
        elif found := MUTANT.match(line):
            mode, file, on, tcp, requirements = found.groups()
            head = (number, mode, file, on or "", bool(tcp), requirements.split())
        elif found := re.match(r"variant (\w+) of (\w+)$", line):
            variant = variants[found[1]] = Variant(found[2], [], [])
        elif line.startswith("@ ") and variant:
            head = (number, variant, line.removeprefix("@ "))
        elif (found := re.match(r"file (\S+): (\S+)$", line)) and variant:
            variant.files.append((found[1], found[2]))
        elif line and not line.startswith("#"):
            raise Fault(f"{language}.txt:{number}: what is this? {line}")
    return mutants, variants


# ---- The languages ----

def command(program, *arguments, folder=None, env=None):
    done = subprocess.run([program, *map(str, arguments)], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        raise Fault(f"{program} fails: {done.stdout.decode(errors='replace').strip()}")
    return done.stdout.decode().strip()


class Python:
    build = staticmethod(lambda folder, mode: None)
    programs = {
        "codec": ["--exec", "python3 -B {folder}/adapter.py"],
        "server": ["--exec", "python3 -B {folder}/server.py {{address}}"],
        "client": ["--exec", "env PYTHONPATH={folder} python3 -B -m weave_client --timeout 5 {{address}}",
                   "--exec-several", "env PYTHONPATH={folder} python3 -B -m weave_client --timeout 5 {{address}} --count {{count}}"],
    }


class Go:
    programs = {
        "codec": ["--exec", "{folder}/built"],
        "server": ["--exec", "{folder}/built {{address}}"],
        "client": ["--exec", "{folder}/built -timeout 5 {{address}}",
                   "--exec-several", "{folder}/built -timeout 5 {{address}} -count {{count}}"],
    }

    def __init__(self):
        path = command(HERE.parent / "go")
        self.env = {**os.environ, "PATH": path + os.pathsep + os.environ["PATH"], "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod",
                    "GOPROXY": "off"}

    def build(self, folder, mode):
        program = "adapter" if mode == "codec" else mode
        command("go", "build", "-trimpath", "-o", "built", "./cmd/" + program, folder=folder, env=self.env)


class TypeScript:
    programs = {
        "codec": ["--exec", "node {folder}/dist/adapter.js"],
        "server": ["--expected-failures", "{folder}/expected-failures.txt", "--exec", "node {folder}/dist/server.js {{address}}"],
        "client": ["--exec", "node {folder}/dist/client.js --timeout 5 {{address}}",
                   "--exec-several", "node {folder}/dist/client.js --timeout 5 {{address}} --count {{count}}"],
    }
    # One file after the other, without types: a whole check takes ten times as long.
    transpile = """
        const [, compiler, folder, ...names] = process.argv, fs = require("fs"), ts = require(compiler);
        const compilerOptions = { target: "es2022", module: "esnext", verbatimModuleSyntax: true };
        for (const name of names) {
            const text = fs.readFileSync(`${folder}/src/${name}`, "utf8");
            const made = ts.transpileModule(text, { compilerOptions, reportDiagnostics: true, fileName: name });
            for (const { messageText } of made.diagnostics) throw new Error(`${name}: ${messageText}`);
            fs.writeFileSync(`${folder}/dist/${name.replace(".ts", ".js")}`, made.outputText);
        }
    """

    def __init__(self):
        self.folder = IMPLEMENTATIONS / "typescript"
        self.compiler = self.folder / "node_modules" / "typescript"
        if not self.compiler.exists():
            command("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", folder=self.folder)
        self.scratch = tempfile.TemporaryDirectory(prefix="weave-mutant-")
        self.made = pathlib.Path(self.scratch.name)
        shutil.copytree(self.folder, self.made, ignore=NOT_COPIED, dirs_exist_ok=True)
        (self.made / "dist").mkdir()
        self.compile(self.made, sorted(path.name for path in (self.made / "src").iterdir()))

    def compile(self, folder, names):
        command("node", "-e", self.transpile, self.compiler, folder, *names)

    def build(self, folder, mode):
        shutil.copytree(self.made / "dist", folder / "dist")
        changed = [path.name for path in (folder / "src").iterdir()
                   if path.read_bytes() != (self.folder / "src" / path.name).read_bytes()]
        if changed:
            self.compile(folder, changed)


class C:
    programs = {"codec": ["--exec", "{folder}/built"]}

    @staticmethod
    def build(folder, mode):
        command("cc", "-std=c99", "-O1", "-Wall", "-Wno-unused", "-o", "built", "adapter.c", "weave.c", folder=folder)


LANGUAGES = {"python": Python, "go": Go, "typescript": TypeScript, "c": C}


# ---- Running ----

class Text:
    """The files of an implementation as they are, with a variant's changes, or with a defect."""

    def __init__(self, language, variant=None):
        self.folder = IMPLEMENTATIONS / language
        self.files = {}
        if variant:
            self.files = {to: (HERE / name).read_text() for to, name in variant.files}
            for file, old, new in variant.changes:
                self.change(file, old, new)

    def change(self, file, old, new):
        text = self.files[file] if file in self.files else (self.folder / file).read_text()
        if text.count(old) != 1:
            raise Fault(f"{file} has {text.count(old)} times, not once: {old}")
        self.files[file] = text.replace(old, new)

    def write(self, folder):
        for file, text in self.files.items():
            (folder / file).write_text(text)


class Runner:
    def __init__(self, conform, languages):
        self.conform = conform
        self.languages = {name: LANGUAGES[name]() for name in languages}
        self.lists = {name: read(name) for name in languages}

    def text(self, language, variant, mutant=None):
        try:
            text = Text(language, self.lists[language][1][variant] if variant else None)
            if mutant:
                text.change(mutant.file, mutant.old, mutant.new)
        except Fault as fault:
            raise Fault(f"{mutant or variant}: {fault}") from None
        return text

    @contextlib.contextmanager
    def built(self, language, mode, variant="", mutant=None):
        """A folder with the programs of an implementation, or of one with a defect."""
        with tempfile.TemporaryDirectory(prefix="weave-mutant-") as scratch:
            folder = pathlib.Path(scratch) / language
            shutil.copytree(IMPLEMENTATIONS / language, folder, ignore=NOT_COPIED)
            self.text(language, variant, mutant).write(folder)
            try:
                self.languages[language].build(folder, mode)
            except Fault as fault:
                raise Fault(f"{mutant or language}: {fault}") from None
            yield folder

    def run(self, language, mode, folder, *options, longest=None):
        """The cases that count against the programs in the folder."""
        report = folder / "report.json"
        report.unlink(missing_ok=True)
        programs = [part.format(folder=folder) for part in self.languages[language].programs[mode]]
        asked = [str(self.conform), mode, "--json", str(report), "--timeout", TIMEOUT, "--strict", *options, *programs]
        with subprocess.Popen(asked, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as done:
            try:
                told, _ = done.communicate(timeout=longest)
            except subprocess.TimeoutExpired:
                done.terminate()  # it reports what it has
                told, _ = done.communicate()
        if report.exists() and report.stat().st_size > 0:
            # What could not be judged counts as well with --strict, but says nothing of a defect.
            return [case for case in json.loads(report.read_text())["cases"]
                    if case["counts_against"] and case["verdict"] != "skip"]
        if done.returncode == 2 and b"no case" in told:
            return []
        raise Fault("%s: %s" % (" ".join(asked), told.decode(errors="replace")))

    def sound(self, clients, variants):
        """Runs everything without a defect. Clients take a minute each."""
        for language in self.languages:
            todo = [(mode, "") for mode in self.languages[language].programs if clients or mode != "client"]
            if variants:
                todo += [(variant.mode, name) for name, variant in self.lists[language][1].items()]
            for mode, variant in todo:
                with self.built(language, mode, variant) as folder:
                    for case in self.run(language, mode, folder):
                        yield f"{language} {mode} {variant}: {case['id']}: {case['failures']}"

    def judge(self, mutant):
        """What has failed of the cases that should, and of the others if none of them has."""
        def right(cases):
            """By the id of the case, or by what it says is broken: all cases see to it that ids are echoed, for example."""
            wanted = tuple(mutant.requirements)
            return [case["id"] for case in cases if case["id"].startswith(wanted) or
                    any((failure.get("requirement") or "").startswith(wanted) for failure in case["failures"])]

        options = ["--tcp"] if mutant.tcp else []
        with self.built(mutant.language, mutant.mode, mutant.variant, mutant) as folder:
            filters = [part for requirement in mutant.requirements for part in ("--filter", requirement)]
            failed = self.run(mutant.language, mutant.mode, folder, *options, *filters, longest=LONGEST)
            if not failed and not mutant.unseen:
                failed = self.run(mutant.language, mutant.mode, folder, *options, longest=LONGEST)
            return right(failed), [case["id"] for case in failed]


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", action="store_true", help="every %dth, and no clients without a defect" % SAMPLED)
    parser.add_argument("--sound", type=int, default=1, metavar="N", help="how many times to run what has no defect (%(default)s)")
    parser.add_argument("--only", default="", metavar="TEXT", help="those with TEXT in language, kind, mode, requirement or change")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="how many at the same time (%(default)s)")
    parser.add_argument("--language", action="append", choices=LANGUAGES, help="only this one; may be repeated")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("conform", nargs="?", default=CONFORM, metavar="CONFORM")
    return parser, parser.parse_args()


def main():
    parser, args = parse()
    runner = Runner(pathlib.Path(args.conform).resolve(), args.language or LANGUAGES)
    mutants = [mutant for found, _ in runner.lists.values() for mutant in found
               if args.only in f"{mutant.language} {mutant.kind} {mutant} {mutant.variant} {mutant.requirements} {mutant.new}"]
    for mutant in mutants:  # whether all can be made, before any is
        runner.text(mutant.language, mutant.variant, mutant)
    if not mutants:
        parser.error("no mutant has %r in it" % args.only)
    if args.sample:
        mutants = mutants[::SAMPLED]

    for number in range(args.sound):
        faults = list(runner.sound(clients=number == 0 and not args.sample, variants=number == 0))
        if faults:
            print(f"mutants: fails without a defect, in run {number + 1}:", *faults, sep="\n  ")
            return 1
    if args.sound:
        print(f"mutants: nothing fails without a defect, {args.sound} times", flush=True)

    begun = time.monotonic()
    table = collections.defaultdict(lambda: [0, 0, 0, 0, 0])
    known = 0
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        for mutant, (right, failed) in zip(mutants, pool.map(runner.judge, mutants)):
            column = 4 if mutant.unseen and not right else 1 if right else 2 if failed else 3
            for row in (mutant.kind, "all"):
                table[row][0] += 1
                table[row][column] += 1
            if column in (2, 3):
                said = "but " + " ".join(failed[:8]) if failed else "nor anything else"
                print(f"NOT SEEN {mutant} [{mutant.kind}]: {' '.join(mutant.requirements)} does not fail, {said}", flush=True)
                known += bool(mutant.missed)
            elif mutant.unseen:
                print(f"{'SEEN, though it can not be' if right else 'can not be seen'}: {mutant}: {mutant.unseen}", flush=True)
    heads = ("mutants", "seen rightly", "seen otherwise", "not seen", "can't be seen")
    form = "| {:32} |" + "".join(" {:>%d} |" % len(head) for head in heads)
    print(form.format("kind", *heads))
    if args.markdown:
        print("| --- |" + " ---: |" * len(heads))
    for kind in sorted(table, key=lambda kind: (kind == "all", kind.lower())):
        print(form.format(kind, *table[kind]))
    total, right, _, _, unseen = table["all"]
    if args.sample:
        total -= known
    share = 100 * right / max(1, total - unseen)
    print("mutants: %d of %d that can be seen are seen rightly (%.1f %%), in %d s" % (
        right, total - unseen, share, time.monotonic() - begun))
    return 0 if share >= ENOUGH else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Fault as fault:
        sys.exit(f"mutants: {fault}")
