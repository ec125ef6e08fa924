"""A run that was killed and started again equals one that was not, bit for bit."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from fgvc_jax.train.checkpoint import Checkpoints

DRIVER = Path(__file__).with_name("driver.py")
PHASES = ("finetune", "pairs", "retrain", "control")


def drive(workdir, *when) -> subprocess.CompletedProcess:
    command = [sys.executable, str(DRIVER), str(workdir), *map(str, when)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(uninterrupted, killed in the fine-tune, in mining and in the pair phase): two workdirs."""
    whole, broken = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("broken")
    done = drive(whole)
    assert done.returncode == 0, done.stderr[-3000:]
    # Step 6 lies between the checkpoints at 4 and 8, so that work is lost and done again.
    for when in (("finetune", 6, 9), ("mine", 0, 9), ("pairs", 6, 9)):
        killed = drive(broken, *when)
        assert killed.returncode == -signal.SIGKILL, killed.stdout[-2000:] + killed.stderr[-3000:]
    # The retraining is asked to stop politely, which saves where it is.
    stopped = drive(broken, "retrain", 2, int(signal.SIGTERM))
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr[-3000:]
    assert "the same command goes on from here" in stopped.stdout
    last = drive(broken)
    assert last.returncode == 0, last.stderr[-3000:]
    assert "retrain goes on from step 2 of 4" in last.stdout
    return whole, broken


@pytest.mark.parametrize("phase", PHASES)
def test_states_are_equal_to_the_bit(runs, phase):
    whole, broken = (every_checkpoint(workdir / phase / "checkpoints") for workdir in runs)
    assert whole.keys() == broken.keys() == {"best", "latest"}
    for which, (step, state) in whole.items():
        other_step, other = broken[which]
        assert other_step == step
        state, other = dict(leaves(state)), dict(leaves(other))
        assert state.keys() == other.keys() and len(state) > 20
        for path in state:
            np.testing.assert_array_equal(state[path], other[path], err_msg=path)


def every_checkpoint(directory):
    """{'best', 'latest'} -> (step, everything that is stored)."""
    checkpoints = Checkpoints(directory)
    items = ocp.args.Composite(
        weights=ocp.args.StandardRestore(), training=ocp.args.StandardRestore()
    )
    steps = {"best": checkpoints.best(), "latest": checkpoints.latest()}
    found = {
        name: (step, dict(checkpoints.manager.restore(step, args=items)))
        for name, step in steps.items()
    }
    checkpoints.close()
    return found


def leaves(node, path=""):
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{path}/{key}")
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from leaves(value, f"{path}/{i}")
    elif node is not None:
        yield path, np.asarray(node)


@pytest.mark.parametrize("phase", PHASES)
def test_logged_numbers_are_equal(runs, phase):
    def lines(workdir):
        text = (workdir / phase / "metrics.jsonl").read_text().splitlines()
        clocks = ("time", "data_wait")
        return [{k: v for k, v in json.loads(line).items() if k not in clocks} for line in text]

    whole, broken = map(lines, runs)
    assert whole == broken


def test_pairs_embeddings_and_scores_are_equal(runs):
    whole, broken = runs
    files = [p.relative_to(whole) for p in whole.rglob("*.np[yz]")]
    assert len(files) > 10
    for file in files:
        a, b = np.load(whole / file), np.load(broken / file)
        for name in getattr(a, "files", [None]):
            x, y = (a, b) if name is None else (a[name], b[name])
            np.testing.assert_array_equal(x, y, err_msg=str(file))


def test_a_finished_run_says_so_at_once(runs):
    again = drive(runs[0])
    assert again.returncode == 0
    assert "all phases are done" in again.stdout
    assert "compiling" not in again.stdout
