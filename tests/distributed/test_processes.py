"""Several processes on one machine: they start, agree, leave one run behind, and end together."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PROCESS = Path(__file__).with_name("process.py")
WITHIN = 60  # seconds after which the others have ended when one is gone, on a machine that is not overloaded


def begin(workdir, processes, faults=None, **options):
    """The processes of a run, started; faults by number and options, see process.py."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    workdirs = workdir if isinstance(workdir, list) else [workdir] * processes
    common, faults = [str(port), str(processes)], faults or {}
    return [
        subprocess.Popen(
            [sys.executable, PROCESS, workdirs[n], *common, str(n), *faults.get(n, ())],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TINY_OPTIONS": json.dumps(options)},
        )
        for n in range(processes)
    ]


def end(running):
    """(exit status, standard output, standard error) of each process."""
    ended = [process.communicate(timeout=600) for process in running]
    return [(p.returncode, *texts) for p, texts in zip(running, ended, strict=True)]


def start(workdir, processes, **options):
    return end(begin(workdir, processes, **options))


def kill_at_the_fault(running, number):
    """Kills the process that hangs; what the others leave, and how many seconds later they had ended."""
    assert any("at the fault" in line for line in running[number].stdout)
    running[number].kill()
    killed = time.monotonic()
    ended = end(running)
    return ended, time.monotonic() - killed


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    return folder, start(folder, 3, batch=15)


def test_three_processes_on_one_machine_run_and_one_of_them_speaks(three):
    folder, ended = three
    for status, _, err in ended:
        assert status == 0, err[-3000:]
    outputs = [out for _, out, _ in ended]
    assert "device: 3 x cpu" in outputs[0] and "test top-1" in outputs[0]
    assert "finetune" not in outputs[1] + outputs[2]
    done = json.loads((folder / "finetune" / "DONE.json").read_text())
    assert done["steps"] == 12
    scores = np.load(folder / "evaluate" / "finetune" / "test" / "scores.npy")
    assert scores.shape == (1350, 10) and np.isfinite(scores).all()


def test_a_second_run_in_the_same_workdir_is_refused(three):
    """The processes of one run lock nothing against each other; another run is told."""
    import fcntl

    folder, _ = three
    with open(folder / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ended = start(folder, 1, batch=15)
    assert ended[0][0] == 2 and f"another process is running in {folder}" in ended[0][2]


def test_a_workdir_that_hosts_do_not_share_is_refused(tmp_path):
    ended = end(begin([tmp_path / "a", tmp_path / "a", tmp_path / "b"], 3))
    assert ended[2][0] == 2 and "process 2 does not see" in ended[2][2]
    for status, _, err in ended[:2]:
        assert status == 2 and "process 2 of 3 ended: process 2 does not see" in err
        assert "a disk that their hosts share" in err


def check_they_end_with(ended, number, reason):
    for other, (status, _, err) in enumerate(ended):
        if other != number:
            assert status == 1, err[-3000:]
            assert f"error: process {number} of {len(ended)} ended: {reason}" in err
            assert "the same command goes on" in err
            assert "Traceback" not in err and "*** Check failure stack trace" not in err


@pytest.mark.parametrize(
    ("number", "place"),
    [
        (1, "data"),
        pytest.param(0, "data", marks=pytest.mark.slow),
        pytest.param(0, "validation", marks=pytest.mark.slow),
        pytest.param(2, "validation", marks=pytest.mark.slow),
    ],
)
def test_an_error_in_one_process_ends_all_with_its_message(tmp_path, number, place):
    running = begin(tmp_path, 3, {number: [f"raise@{place}"]})
    assert any("at the fault" in line for line in running[number].stdout)
    broke = time.monotonic()
    ended = end(running)
    assert time.monotonic() - broke < WITHIN
    assert ended[number][0] == 1 and "ValueError: this process broke" in ended[number][2]
    check_they_end_with(ended, number, "ValueError: this process broke")


@pytest.mark.parametrize(
    ("number", "place", "options"),
    [
        (2, "data", {"gone": 12}),
        pytest.param(2, "validation", {}, marks=pytest.mark.slow),
        pytest.param(1, "validation", {}, marks=pytest.mark.slow),
    ],
)
def test_when_a_process_is_killed_the_others_say_which_and_end(tmp_path, number, place, options):
    running = begin(tmp_path, 3, {number: [f"hang@{place}"]}, **options)
    ended, seconds = kill_at_the_fault(running, number)
    assert seconds < WITHIN and ended[number][0] == -signal.SIGKILL
    check_they_end_with(ended, number, "no sign of life")


@pytest.mark.slow
@pytest.mark.parametrize("place", ["data", "validation"])
def test_when_the_first_process_is_killed_jax_ends_the_others(tmp_path, place):
    """It serves the coordination service, whose clients abort without it: in time, in words of JAX's own."""
    ended, seconds = kill_at_the_fault(begin(tmp_path, 3, {0: [f"hang@{place}"]}), 0)
    assert seconds < WITHIN
    for status, _, err in ended[1:]:
        assert status == -signal.SIGABRT or "process 0 of 3 ended: no sign of life" in err
        assert "another task died" in err or "process 0 of 3" in err


@pytest.mark.slow
def test_sigterm_to_one_process_saves_at_one_step_in_all(tmp_path):
    options = {"length": "400 steps", "phases": ["finetune"]}
    running = begin(tmp_path, 3, **options)
    while not (tmp_path / "finetune" / "checkpoints" / "8").is_dir():
        assert running[0].poll() is None
        time.sleep(0.1)
    running[1].send_signal(signal.SIGTERM)
    ended = end(running)
    for status, _, err in ended:
        assert status == 128 + signal.SIGTERM, err[-3000:]
    assert "everything is saved" in ended[0][1]
    steps = [int(p.name) for p in (tmp_path / "finetune" / "checkpoints").glob("[0-9]*")]
    again = begin(tmp_path, 3, **options | {"length": "400 steps"})
    assert any(f"goes on from step {max(steps)}" in line for line in again[0].stdout)
    assert {status for status, _, _ in end(again)} == {0}


def state(folder):
    from fgvc_jax.train.checkpoint import Checkpoints

    checkpoints = Checkpoints(folder / "finetune" / "checkpoints")
    weights = checkpoints.arrays(12)["weights"]
    checkpoints.close()
    return {f"{kind}/{k}": v for kind, flat in weights.items() for k, v in flat.items()}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_run_of_four_processes_goes_on_with_fewer(tmp_path, processes):
    """In float64: the same final weights as one process that is never interrupted, to 1e-9."""
    options = {"batch": 12, "dtype": "float64", "phases": ["finetune"]}
    whole = start(tmp_path / "whole", 1, **options)
    assert whole[0][0] == 0, whole[0][2][-3000:]
    running = begin(tmp_path / "four", 4, {3: ["hang@validation"]}, **options)
    ended, _ = kill_at_the_fault(running, 3)
    check_they_end_with(ended, 3, "no sign of life")
    assert (tmp_path / "four" / "finetune" / "checkpoints" / "4").is_dir()
    again = start(tmp_path / "four", processes, **options)
    for status, _, err in again:
        assert status == 0, err[-3000:]
    expected, found = state(tmp_path / "whole"), state(tmp_path / "four")
    assert expected.keys() == found.keys()
    for path, value in expected.items():
        np.testing.assert_allclose(
            found[path], value, rtol=0, atol=1e-9 * max(1, np.abs(value).max())
        )


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(2, 1), (4, 1), (2, 2)])
def test_several_processes_find_what_one_finds(tmp_path, processes, devices):
    """The pipeline in float64: the same mined pairs, and scores to 1e-9."""
    options = {
        "batch": 16,
        "dtype": "float64",
        "phases": ["finetune", "embed", "mine", "pairs", "evaluate"],
    }
    for name, count in (("one", 1), ("several", processes)):
        for status, _, err in start(
            tmp_path / name, count, devices=devices if count > 1 else 1, **options
        ):
            assert status == 0, err[-3000:]
    for split in ("train", "val"):
        one, several = (
            np.load(tmp_path / n / "mine" / f"{split}_pairs.npz") for n in ("one", "several")
        )
        for key in one.files:
            if one[key].dtype.kind in "iu":
                np.testing.assert_array_equal(several[key], one[key])
    one, several = (
        np.load(tmp_path / n / "evaluate" / "finetune" / "test" / "scores.npy")
        for n in ("one", "several")
    )
    np.testing.assert_allclose(several, one, rtol=0, atol=1e-6)  # scores are kept in float32


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """(Options for 160 photos of noise of five classes; devices -> the run of one process on them.)"""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(160):
        path = folder / "images" / "abcde"[i % 5] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 128, (40, 36, 3)) + 25 * (i % 5)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    options = {"batch": 12, "dtype": "float64", "images": str(folder / "images")}

    @functools.cache
    def alone(devices):
        one = folder / str(devices)
        ended = start(one, 1, devices=devices, caches=[str(one / "cache")], **options)
        assert ended[0][0] == 0, ended[0][2][-3000:]
        assert read_by(ended) == [160]
        return one

    return options, alone


PICTURES = 5  # a photo of each class, which the first process reads for its contact sheet


def read_by(ended):
    """By each process: how many images it has read for training and evaluation."""
    found = [int(out.rpartition("read ")[2].split()[0]) for _, out, _ in ended]
    return [found[0] - PICTURES, *found[1:]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "devices", "separate", "config"),
    [
        (3, 1, False, {}),  # everywhere
        (4, 1, True, {}),
        (3, 2, True, {"data.feed": "resident", "data.resident_gb": 1e-6}),  # spread
        (4, 1, False, {"data.feed": "resident", "data.resident_gb": 1e-6}),
        (3, 1, False, {"data.feed": "streamed"}),
        (4, 1, True, {"data.feed": "decoded"}),
    ],
)
def test_each_process_reads_its_share_of_the_images(
    photos, tmp_path, processes, devices, separate, config
):
    """And all find what one process finds with as many devices; a second time nothing is read.

    To 1e-9, in float64.
    """
    options, alone = photos
    caches = [str(tmp_path / (f"cache{n}" if separate else "cache")) for n in range(processes)]
    more = {"devices": devices, "caches": caches, "config": config}
    ended = start(tmp_path / "several", processes, **options, **more)
    for status, _, err in ended:
        assert status == 0, err[-3000:]
    resident = config.get("data.feed", "resident") == "resident"
    if resident:
        assert sum(read_by(ended)) == 160
        assert np.ptp(read_by(ended)) <= 4
    one = alone(processes * devices)
    expected, found = state(one), state(tmp_path / "several")
    assert expected.keys() == found.keys()
    for path, value in expected.items():
        scale = max(1, np.abs(value).max())
        np.testing.assert_allclose(found[path], value, rtol=0, atol=1e-9 * scale)
    scores, theirs = (
        np.load(at / "evaluate" / "finetune" / "test" / "scores.npy")
        for at in (one, tmp_path / "several")
    )
    np.testing.assert_allclose(theirs, scores, rtol=0, atol=1e-6)  # they are kept in float32
    if resident and not separate:  # tests/data/test_shares.py has the other caches
        again = start(tmp_path / "again", processes, **options, **more)
        assert [status for status, _, _ in again] == [0] * processes
        assert read_by(again) == [0] * processes
