"""Every method on two devices computes what it computes on one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import small

DEVICES = Path(__file__).with_name("devices.py")


@pytest.fixture(scope="module")
def differences():
    """By method, the largest difference between states after three steps on one and on two devices."""
    done = subprocess.run(
        [sys.executable, str(DEVICES)], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("method", small.METHODS)
def test_two_devices_compute_what_one_computes(differences, method):
    """Relative to each array's largest value. float64, where the order of a sum costs 1e-16 a step."""
    assert differences[method] < 1e-9
