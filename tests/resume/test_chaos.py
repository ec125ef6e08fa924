"""Killed at random moments, and all it leaves is what a run in peace leaves; the 50 kills are for by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 3])
def test_five_kills_leave_no_difference(tmp_path, processes):
    command = [sys.executable, "chaos.py", f"--workdir={tmp_path}", "--kills=5"]
    command += [f"--processes={processes}", f"--config={ROOT}/tests/distributed/spread_run.py"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'tests'}"}
    done = subprocess.run(
        command, cwd=ROOT / "benchmarks", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] == 5 and found["differences"] == [] and found["compared_in_each"] > 100
