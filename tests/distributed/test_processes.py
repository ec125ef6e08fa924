"""Three processes on one machine: they start, agree and leave one run behind."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROCESS = Path(__file__).with_name("process.py")


def start(workdir: Path, processes: int) -> list[tuple[int, str, str]]:
    """(exit status, standard output, standard error) of each process."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    arguments = [str(workdir), str(port), str(processes)]
    running = [
        subprocess.Popen(
            [sys.executable, str(PROCESS), *arguments, str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ,
        )
        for number in range(processes)
    ]
    ended = [process.communicate(timeout=300) for process in running]
    return [(p.returncode, *texts) for p, texts in zip(running, ended, strict=True)]


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    return folder, start(folder, 3)


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


def test_a_second_run_in_the_same_workdir_is_refused_by_the_writer_alone(three):
    """The processes of one run lock nothing against each other; another run is told."""
    import fcntl

    folder, _ = three
    with open(folder / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ended = start(folder, 1)
    assert ended[0][0] == 2 and f"another process is running in {folder}" in ended[0][1]
