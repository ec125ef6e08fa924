"""Every method on one small backbone and every family of backbones with one method, through one contract."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import small

from fgvc_jax import contract, methods

DEVICES = Path(__file__).with_name("devices.py")


def test_every_method_has_a_small_size():
    assert sorted(small.METHODS) == methods.names()


def kept(method, backbone):
    return list(
        contract.check(
            method,
            small.METHODS[method],
            backbone=backbone,
            backbone_arguments=small.BACKBONES[backbone],
        )
    )


@pytest.mark.parametrize("method", small.METHODS)
def test_a_method_keeps_the_contract(method):
    """Twenty steps lower the loss, one compilation, the same step to the bit, accumulation and SAM."""
    said = "\n".join(kept(method, "resnet18"))
    assert "learns" in said and "compiled once" in said and "works with SAM" in said


@pytest.mark.parametrize("backbone", [name for name in small.BACKBONES if name != "resnet18"])
def test_a_backbone_carries_the_contract(backbone):
    assert "compiled once" in "\n".join(kept("baseline", backbone))


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
