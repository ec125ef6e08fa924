"""Every method on several devices computes what it computes on one, its kernels split or not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import small

DEVICES = Path(__file__).with_name("devices.py")

# A method on pairs, one with a rule across examples, and SAM on four devices as 2 x 2.
QUICK = ("pairs:4/1", "triplet:4/4", "baseline+sam:4/2")
LAYOUTS = ("2/1", "4/1", "8/1", "2/2", "4/2", "8/2", "8/8")


def differences(steps, runs):
    """By run, the largest difference to the state after as many steps on one device."""
    command = [sys.executable, str(DEVICES), str(steps), *runs]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(steps, runs):
    """Relative to each array's largest value. float64, where the order of a sum costs 1e-16 a step."""
    found = differences(steps, runs)
    assert found.keys() == set(runs)
    assert {run: apart for run, apart in found.items() if not apart < 1e-9} == {}


def test_four_devices_compute_what_one_computes():
    check(3, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("method", small.METHODS)
def test_two_four_and_eight_devices_compute_what_one_computes(method):
    check(10, [f"{name}:{layout}" for name in (method, f"{method}+sam") for layout in LAYOUTS])
