"""A classifier by one flag: the plain recipe takes any of them, label smoothing is the same in all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
import tiny
from flax import nnx

from fgvc_jax import contract, methods, phases, recipes

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


@pytest.mark.parametrize("method", small.some(CLASSIFIERS, "baseline", "bilinear", "pim"))
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
