#!/usr/bin/env python3
"""Compares ways in which the engine's threads wait for each other, on the machine as it is.

    threads.py ROUNDS WEAVE NAME=WEAVED,THREADS[,OMP_WAIT_POLICY]...

Starts one daemon for each NAME and has them make the same image in turn. Prints the medians of wall time and of the
worker's processor time. A program without OpenMP: `cargo build -p weave-daemon --no-default-features --features sdcpp`.
"""

import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time


def processor_time(daemon):
    """Seconds that the daemon's worker has computed for."""
    worker = pathlib.Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()[0]
    fields = pathlib.Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main():
    rounds, weave, *variants = sys.argv[1:]
    daemons = {}
    with tempfile.TemporaryDirectory() as folder:

        def image(name):
            subprocess.run(
                [weave, "generate", "a red circle", "--socket", f"{folder}/{name}/weave.sock", "--width=64"]
                + ["--height=64", "--steps=1", "--cfg=1", "--seed=1", "--quiet", "--force", "-o", f"{folder}/x.png"],
                check=True,
            )

        try:
            for variant in variants:
                name, words = variant.split("=", 1)
                program, threads, *policy = words.split(",")
                os.mkdir(f"{folder}/{name}", 0o700)
                environment = dict(os.environ)
                if policy:
                    environment["OMP_WAIT_POLICY"] = policy[0]
                command = [program, "--no-config", "--log=warn", f"--threads={threads}"]
                command += ["--socket", f"{folder}/{name}/weave.sock"]
                daemons[name] = subprocess.Popen(command, env=environment)
                while not os.path.exists(f"{folder}/{name}/weave.sock"):
                    time.sleep(0.05)
                image(name)
            taken = {name: [] for name in daemons}
            for _ in range(int(rounds)):
                for name, daemon in daemons.items():
                    before, start = processor_time(daemon), time.monotonic()
                    image(name)
                    taken[name].append((time.monotonic() - start, processor_time(daemon) - before))
            print("load average", os.getloadavg()[0])
            for name, pairs in taken.items():
                wall, processor = (statistics.median(values) for values in zip(*pairs))
                print(f"{name}: {wall:.2f} s, of which {processor:.2f} s of processors")
        finally:
            for daemon in daemons.values():
                daemon.terminate()
            for daemon in daemons.values():
                daemon.wait()


main()
