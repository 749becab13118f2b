#!/usr/bin/env python3
"""Whether the simulator and the router's tests find deliberate defects of the router.

    weave-daemon/defects.py [NAME...]

Each defect is a piece of the source and what stands in its place. It is put into a copy of this checkout in
target/defects, and the simulator runs; if it finds nothing, the tests of tests/router.rs do. Exit status 0 if each
defect is found by one of the two, and by the simulator where it says so. Takes minutes; the results stand in
weave-daemon/RELIABILITY.md.
"""

import pathlib
import re
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
COPY = ROOT / "target/defects/tree"
ROUTER = "weave-daemon/src/router/"
EVENTS = "2000000"  # as make simulate
SIMULATOR, TESTS = "simulator", "tests/router.rs"

# Name, who finds it, file, what stands there, what stands there instead.
DEFECTS = [
    ("an error goes out twice", SIMULATOR, "requests.rs",
     "            self.connections[id].push(self.jobs.get(job).frame());\n",
     "            self.connections[id].push(self.jobs.get(job).frame());\n"
     "            if self.connections[id].takes_error() {\n"
     "                self.connections[id].push(self.jobs.get(job).frame());\n"
     "            }\n"),
    ("a worker's error reaches nobody", SIMULATOR, "requests.rs",
     "                job.set_error(code, frame);\n                self.jobs.set_failed(id);\n",
     "                job.set_error(code, frame);\n                self.drop_job(id, shared);\n"),
    ("one client's requests come first", SIMULATOR, "turns.rs",
     "            self.rings[user].rotate(&self.clients);\n", ""),
    ("one user's clients come first", SIMULATOR, "turns.rs",
     "            self.ring.rotate(&self.users);\n", ""),
    ("each connection has the turns and the share of a user", SIMULATOR, "users.rs",
     "let known = self.find(user);", "let known = self.find(user).filter(|_| user < User::Owner(0));"),
    ("a user that goes keeps its share of the connections", SIMULATOR, "users.rs",
     "        self.connections.give_back(account);\n", "        let _ = account;\n"),
    ("a request that is answered keeps its place in the queue", SIMULATOR, "jobs.rs",
     "        let index = share.failed.pop_front(&mut self.table)?;\n        self.places.give_back(share.of);\n",
     "        let index = share.failed.pop_front(&mut self.table)?;\n"),
    ("nothing is kept for the owner", SIMULATOR, "users.rs",
     "let kept = if places < 2 { 0 } else { places.div_ceil(16) };", "let kept = 0;"),
    ("requests that are tried again take the owner's places in the queue", SIMULATOR, "jobs.rs",
     "self.guests_queued.saturating_sub(self.places.share().all)", "0"),
    ("errors that nobody takes use up the table of jobs", TESTS, "jobs.rs",
     "let limit = queue + 2 * workers;", "let limit = queue + workers;"),
    ("who has no more than the newcomer makes room", SIMULATOR, "requests.rs",
     "(most > has && is_in_the_way)", "(most >= has && is_in_the_way)"),
    ("quarantine begins a death too late", TESTS, "quarantine.rs",
     "const DEATHS: u8 = 2;", "const DEATHS: u8 = 3;"),
    ("a connection is read on with as many requests under way as it may have", SIMULATOR, "connection.rs",
     "self.outstanding < in_flight && self.takes_error()", "self.takes_error()"),
    ("who takes nothing keeps its connection", SIMULATOR, "connection.rs",
     "if took == 0 || self.lacking >= LEAST_PROGRESS {", "if false {"),
    ("what the system has already sent on is not counted", SIMULATOR, "connection.rs",
     "let took = before.saturating_add(taken).saturating_sub(held);", "let took = taken;"),
    ("an error comes between pixels", SIMULATOR, "connection.rs",
     "        self.relay.is_none() && self.out.capacity() - self.out.len() >= MAX_ERROR_FRAME",
     "        self.out.capacity() - self.out.len() >= MAX_ERROR_FRAME"),
    ("the queue holds one too many", SIMULATOR, "jobs.rs",
     "self.queued_len - beyond >= self.queue", "self.queued_len - beyond > self.queue"),
    ("a client has one too many under way", SIMULATOR, "connection.rs",
     "self.outstanding < in_flight && self.takes_error()", "self.outstanding <= in_flight && self.takes_error()"),
    ("a request is tried for ever", TESTS, "requests.rs",
     "} else if attempts >= MAX_ATTEMPTS {", "} else if attempts == 255 {"),
    ("nothing wakes for a worker's deadline", SIMULATOR, "worker.rs",
     "        shared.agenda.mark_worker(id);\n        self.rearm(id, shared);\n    }\n\n    /// The worker has nothing",
     "        shared.agenda.mark_worker(id);\n    }\n\n    /// The worker has nothing"),
    ("a slow reader has as long while others wait", TESTS, "connection.rs",
     "Pressure::OthersWait => limits.busy_stall.min(limits.stall),", "Pressure::OthersWait => limits.stall,"),
    ("half an image, and the connection goes on", SIMULATOR, "requests.rs",
     "        connection.relay.take_if(|relay| *relay == worker)?;\n",
     "        connection.relay.take_if(|relay| *relay == worker);\n        if client.0 < usize::MAX {\n"
     "            return None;\n        }\n"),
    ("an answer to another request is taken", SIMULATOR, "answer.rs",
     "if head.request_id != asked.request_id {", "if head.request_id < u64::MIN {"),
    ("an image of another size is taken", SIMULATOR, "answer.rs",
     "if (head.image.width(), head.image.height()) != (asked.width, asked.height) {",
     "if head.image.height() != asked.height {"),
    ("the wrong request is cancelled", SIMULATOR, "worker.rs",
     "Order::Cancel(nth)", "Order::Cancel(nth + 1)"),
    ("a worker that is being killed gets a job", SIMULATOR, "worker.rs",
     "self.ids().find(|id| matches!(self[*id].life, Life::Idle { .. }))",
     "self.ids().find(|id| matches!(self[*id].life, Life::Idle { .. } | Life::Ending { .. }))"),
    ("a job that nobody has begun is forgotten", SIMULATOR, "mod.rs",
     "        if let Some(job) = not_begun {\n            self.requests.try_again(job, death, &mut self.shared, now);\n        }\n",
     "        if let Some(job) = not_begun.filter(|_| id.0 > 0) {\n"
     "            self.requests.try_again(job, death, &mut self.shared, now);\n        }\n"),
    ("pixels of a client that has gone stay", SIMULATOR, "mod.rs",
     "                self.pool.discard(id, len, &mut self.shared, now);\n", "                let _ = (len, now);\n"),
]


def cargo(*arguments):
    """Runs cargo on the copy, with the crates that are not the daemon's kept between defects."""
    command = ["cargo", *arguments, "--locked", "--quiet", "-p", "weave-daemon", "--no-default-features",
               "--features", "simulator", "--target-dir", str(COPY.parent / "target"),
               "--config", "profile.dev.package.weave-core.opt-level=3",
               "--config", "profile.dev.package.weave-daemon.opt-level=2"]
    return subprocess.run(command, cwd=COPY, capture_output=True, text=True)


def hunt():
    """Who finds what is in the copy, in how many seconds, and what it says."""
    built = cargo("build", "--example", "simulate")
    if built.returncode:
        sys.exit("defects: this does not compile:\n" + built.stderr)
    started = time.monotonic()
    program = COPY.parent / "target/debug/examples/simulate"
    try:
        run = subprocess.run([program, EVENTS, "1"], cwd=COPY, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return SIMULATOR, 300.0, "it does not end"
    if run.returncode:
        said = re.search(r"panicked at [^\n]*\n([^\n]*)", run.stderr)
        return SIMULATOR, time.monotonic() - started, said.group(1) if said else run.stderr.strip()
    tested = cargo("test", "--test", "router")
    failed = re.search(r"failures:\n +(\w+)\n", tested.stdout)
    if failed:
        return TESTS, time.monotonic() - started, failed.group(1)
    return None, time.monotonic() - started, tested.stderr.strip().splitlines()[-1:] if tested.returncode else ""


def main():
    chosen = [defect for defect in DEFECTS if not sys.argv[1:] or defect[0] in sys.argv[1:]]
    if not chosen:
        sys.exit("defects: there is none of that name; there are:\n" + "\n".join(name for name, *_ in DEFECTS))
    COPY.mkdir(parents=True, exist_ok=True)
    files = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                           capture_output=True, text=True, check=True).stdout.split("\n")
    # What has been deleted since the last time must not be compiled.
    for old in COPY.rglob("*"):
        if old.is_file() and str(old.relative_to(COPY)) not in files:
            old.unlink()
    for name in filter(None, files):
        source, target = ROOT / name, COPY / name
        if source.exists() and not (target.exists() and source.read_bytes() == target.read_bytes()):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    found_by, seconds, said = hunt() if not sys.argv[1:] else (None, 0, "")
    if found_by:
        sys.exit(f"defects: {found_by} fails without a defect: {said}")
    missed = 0
    for name, finder, file, right, wrong in chosen:
        path = COPY / ROUTER / file
        text = path.read_text()
        if text.count(right) != 1:
            sys.exit(f"defects: {name}: {file} has its place {text.count(right)} times")
        path.write_text(text.replace(right, wrong))
        found_by, seconds, said = hunt()
        path.write_text(text)
        result = f"found by {found_by} in {seconds:.1f} s: {said}" if found_by else f"NOT FOUND {said}"
        if found_by is None or (finder == SIMULATOR and found_by != SIMULATOR):
            missed += 1
            result += f" (expected: {finder})"
        print(f"defects: {name}: {result}", flush=True)
    print(f"defects: {len(chosen) - missed} passed, {missed} failed")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
