"""Every method on one small backbone and every family of backbones with one method, through one contract."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
import tiny
from flax import nnx

from fgvc_jax import contract, methods, phases, recipes

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


CLASSIFIERS = [name for name in small.METHODS if methods.get(name).evaluator == "classify"]


@pytest.mark.parametrize("method", CLASSIFIERS)
def test_the_plain_recipe_takes_any_classifier(method, tmp_path):
    """configs/my_images.py with another method by one flag: every update is traced, nothing is refused."""
    made = tiny.pipeline("resnet18")
    made.image.size = made.image.resize = 64
    made.model.arguments = small.BACKBONES["resnet18"]
    made.phases = ("finetune",)
    with made.unlocked():
        made.finetune = phases.section("train", **recipes.PLAIN)
        made.finetune.batch, made.finetune.method = 4, method
        made.finetune.arguments = small.METHODS[method] | dict(recipes.PLAIN["arguments"])
    made = phases.complete(made)
    context = tiny.parts(made, tmp_path)
    (phase,) = phases.of(made)
    phase.check()
    phase.prepare(*context)


@pytest.mark.parametrize("method", CLASSIFIERS)
def test_label_smoothing_mixes_in_the_mean_over_all_classes(method):
    """So the loss is a straight line in it, from none up."""
    made = contract.made_batch(methods.get(method), 64)
    images = jnp.asarray(made[0][:, 0] / 127.5 - 1)
    batch = {"image": images.astype(jnp.float32), "label": jnp.asarray(made[1])}
    keys = jax.random.split(jax.random.key(1), contract.BATCH)
    context = methods.Context(jax.random.key(0), keys, 5, 3.0, 0.5)
    losses = []
    for smoothing in (0.0, 0.1, 0.3):
        arguments = small.METHODS[method] | {"label_smoothing": smoothing}
        body = small.BACKBONES["resnet18"]
        module = contract.make(method, arguments, "resnet18", body, 64)
        module.train()
        carry, found = {}, []
        for number in range(len(module.updates)):
            loss, carry, _ = nnx.jit(
                lambda m, batch, carry, n=number: m.updates[n](batch, carry, context)
            )(module, batch, carry)
            found.append(float(loss))
        losses.append(found)
    none, tenth, third = map(np.array, losses)
    assert (np.abs(tenth - none) > 1e-6).all()
    # float32: the differences are 2e-5 and more, the losses up to 20.
    np.testing.assert_allclose((third - none) / 3, tenth - none, rtol=1e-2, atol=1e-5)
    with pytest.raises(ValueError, match=r"label_smoothing=1.0 must lie in 0 to below 1"):
        contract.make(method, arguments | {"label_smoothing": 1.0}, "resnet18", body, 64)
