"""Every method on two devices computes what it computes on one; those with a rule across examples always."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import small

DEVICES = Path(__file__).with_name("devices.py")


QUICK = ("pairs", "pim", "triplet")


def differences(methods):
    """By method, the largest difference between states after three steps on one and on two devices."""
    command = [sys.executable, str(DEVICES), *methods]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "methods",
    [
        pytest.param(QUICK, id="quick"),
        pytest.param(small.METHODS.keys() - set(QUICK), marks=pytest.mark.slow, id="others"),
    ],
)
def test_two_devices_compute_what_one_computes(methods):
    """Relative to each array's largest value. float64, where the order of a sum costs 1e-16 a step."""
    found = differences(sorted(methods))
    assert found.keys() == set(methods)
    assert {method: apart for method, apart in found.items() if not apart < 1e-9} == {}
