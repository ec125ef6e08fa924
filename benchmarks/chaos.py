"""Kills a run at random moments, goes on with it each time, and compares its result with a run in peace.

    python benchmarks/chaos.py --workdir=runs/chaos [--kills=50] [--processes=1] [--seed=0]
        [--config=configs/quickstart.py] [--out=FILE.json] [--config.KEY=VALUE ...]

The run is killed by SIGKILL, during a save, too; with several processes one of them dies first and the
others within three seconds. Checkpoints are written every two seconds besides those with validation. A run
that ends before its next kill is compared, and another one begins, until all kills are done. Compared to the
bit: every array of the best and the last checkpoint of each phase, every .npy and .npz file, every logged
number but times, and what each phase's DONE.json says but times and dates. Exit status 1 if anything differs.
"""

import argparse
import json
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
from result import add_out, facts, write

from fgvc_jax.train.checkpoint import Checkpoints

ROOT = Path(__file__).resolve().parents[1]
CLOCKS = ("time", "data_wait", "seconds", "seconds_by_kind", "finished", "versions")


class Run:
    """All processes of a run in a workdir."""

    def __init__(self, args, rest: list[str], workdir: Path):
        self.count, self.log = args.processes, workdir.with_suffix(".log")
        command = [sys.executable, str(ROOT / "launch.py"), f"--config={args.config}"]
        command += [f"--workdir={workdir}", "--config.checkpoint_every=2 s", *rest]
        if self.count > 1:
            with socket.socket() as found:
                found.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{found.getsockname()[1]}"
            command += ["--distributed", f"--coordinator={address}", f"--processes={self.count}"]
        self.running = []
        for number in range(self.count):
            own = [f"--process={number}"] if self.count > 1 else []
            with open(self.log, "ab") as log:
                self.running.append(subprocess.Popen([*command, *own], stdout=log, stderr=log))

    def ends_within(self, seconds: float) -> bool:
        """Whether it is finished in that time. Any other end is an error."""
        until = time.monotonic() + seconds
        for process in self.running:
            try:
                status = process.wait(max(0.01, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                return False
            if status:
                self.kill(random.Random(0))
                raise SystemExit(f"error: it ended with status {status}; see {self.log}")
        return True

    def kill(self, rng: random.Random) -> None:
        first, *others = rng.sample(self.running, self.count)
        first.send_signal(signal.SIGKILL)
        if others:
            time.sleep(rng.uniform(0, 3))
        for process in others:
            process.send_signal(signal.SIGKILL)
        for process in self.running:
            process.wait()


def arrays(workdir: Path):
    """(name, array) of every checkpoint and every file of arrays."""
    for file in sorted(workdir.rglob("*.np[yz]")):
        found = np.load(file)
        for name in getattr(found, "files", [""]):
            yield f"{file.relative_to(workdir)} {name}", found[name] if name else found
    for folder in sorted(workdir.rglob("checkpoints")):
        checkpoints = Checkpoints(folder)
        for which, step in (("best", checkpoints.best()), ("last", checkpoints.latest())):
            where = f"{folder.relative_to(workdir)} {which}"
            yield f"{where} step", np.asarray(step)
            state = checkpoints.arrays(step)
            for path, leaf in ocp.tree.to_flat_dict(state, sep="/").items():
                yield f"{where} {path}", np.asarray(leaf)
        checkpoints.close()


def numbers(workdir: Path):
    """(name, value) of every logged number and of every result, without times."""
    for file in sorted(workdir.rglob("metrics.jsonl")):
        for number, line in enumerate(file.read_text().splitlines()):
            yield f"{file.relative_to(workdir)}:{number}", _timeless(json.loads(line))
    for file in sorted(workdir.rglob("DONE.json")):
        yield str(file.relative_to(workdir)), _timeless(json.loads(file.read_text()))


def _timeless(content: dict) -> dict:
    return {key: value for key, value in content.items() if key not in CLOCKS}


def contents(workdir: Path) -> dict[str, object]:
    """All that is compared, by name; an array as its dtype, shape and bytes."""
    found = {name: (x.dtype, x.shape, x.tobytes()) for name, x in arrays(workdir)}
    return found | dict(numbers(workdir))


def differences(one: dict[str, object], other: dict[str, object]) -> list[str]:
    """What differs, by name."""
    return sorted(
        n for n in one.keys() | other.keys() if one.get(n, "absent") != other.get(n, "absent")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--workdir", type=Path, required=True, help="gets all runs")
    parser.add_argument("--config", default=str(ROOT / "configs" / "quickstart.py"))
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    add_out(parser)
    args, rest = parser.parse_known_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    rng = random.Random(args.seed)
    whole = args.workdir / "whole"
    Run(args, rest, whole).ends_within(float("inf"))
    expected = contents(whole)
    # Again, with everything compiled: how long a run takes that has something to do.
    start = time.monotonic()
    Run(args, rest, args.workdir / "timed").ends_within(float("inf"))
    length = time.monotonic() - start
    print(f"a run in peace takes {length:.0f} s", flush=True)

    kills, runs, different = 0, 0, []
    while kills < args.kills:
        runs += 1
        workdir = args.workdir / f"killed_{runs}"
        while True:
            one = Run(args, rest, workdir)
            # Up to two thirds of a run, so that several kills meet one run, and each moment of it some.
            if kills == args.kills or rng.random() < 0.1:
                moment = float("inf")
            else:
                moment = rng.uniform(0, length * 2 / 3)
            if one.ends_within(moment):
                break
            one.kill(rng)
            kills += 1
            print(f"kill {kills} of {args.kills}: run {runs}, after {moment:.1f} s", flush=True)
        found = differences(expected, contents(workdir))
        different += [f"{workdir.name}: {name}" for name in found]
        print(f"run {runs}: {len(found)} differences", *found[:20], sep="\n  ", flush=True)
    row = {
        "kills": kills,
        "runs": runs,
        "processes": args.processes,
        "seconds_in_peace": round(length),
    }
    row |= {"compared_in_each": len(expected), "differences": different}
    print(json.dumps(row))
    if args.out:
        write(facts(("jax", "flax", "optax", "orbax-checkpoint", "numpy")) | row, args.out)
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
