"""Optimizers and schedules against torch's."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fgvc_jax.train import optim

torch = pytest.importorskip("torch", reason="the reference is torch.optim")

rng = np.random.default_rng(0)
START = {
    "backbone/conv/kernel": rng.normal(size=(3, 4)),
    "backbone/bn/bias": rng.normal(size=4),
    "head/kernel": rng.normal(size=(4, 2)),
    "head/bias": rng.normal(size=2),
}
GRADIENTS = [{path: rng.normal(size=x.shape) * 3 for path, x in START.items()} for _ in range(10)]
RATE = 0.1
SGD = {"momentum": 0.9, "weight_decay": 0.05}


def ours(name, scales=None, **arguments):
    """Ten updates in float64, with the learning rate applied as the train step applies it."""
    with jax.enable_x64(True):
        params = {path: jnp.asarray(x) for path, x in START.items()}
        optimizer = optim.optimizer(name, list(params), **arguments)
        state = optimizer.init(params)

        @jax.jit
        def update(params, state, gradients):
            moves, state = optimizer.update(gradients, state, params)
            scale = scales or dict.fromkeys(params, 1.0)
            return {p: params[p] - RATE * scale[p] * moves[p] for p in params}, state

        for gradients in GRADIENTS:
            params, state = update(params, state, gradients)
        assert all(x.dtype == jnp.float64 for x in params.values())
        return {path: np.asarray(x) for path, x in params.items()}


def theirs(make, group=lambda path: {}, clip=None):
    """The same with torch; `group` gives the options of each parameter's group."""
    params = {path: torch.nn.Parameter(torch.tensor(x)) for path, x in START.items()}
    optimizer = make([{"params": [p], **group(path)} for path, p in params.items()])
    for gradients in GRADIENTS:
        for path, p in params.items():
            p.grad = torch.tensor(gradients[path])
        if clip:
            torch.nn.utils.clip_grad_norm_(params.values(), clip)
        optimizer.step()
    return {path: p.detach().numpy() for path, p in params.items()}


def check(found, expected, tolerance=1e-12):  # ten updates round at 1e-15 each
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=0, atol=tolerance, err_msg=path)
        assert np.abs(value - START[path]).max() > 0.01


@pytest.mark.parametrize(
    "arguments",
    [
        {"momentum": 0.0},
        {"momentum": 0.9},
        SGD,
        SGD | {"nesterov": True},
    ],
)
def test_sgd_is_torchs(arguments):
    """With weight decay coupled: in the gradient, before the momentum buffer."""
    check(ours("sgd", **arguments), theirs(lambda p: torch.optim.SGD(p, lr=RATE, **arguments)))


@pytest.mark.parametrize("beta2", [0.999, 0.95])
def test_adamw_is_torchs(beta2):
    found = ours("adamw", momentum=0.9, beta2=beta2, weight_decay=0.05)
    expected = theirs(
        lambda p: torch.optim.AdamW(p, lr=RATE, betas=(0.9, beta2), eps=1e-8, weight_decay=0.05)
    )
    check(found, expected)


@pytest.mark.parametrize("clip", [1.0, 1e9])
def test_clipping_is_torchs(clip):
    """Over all parameters together, before decay and momentum; torch adds 1e-6 to the norm of about 13."""
    found = ours("sgd", clip=clip, **SGD)
    expected = theirs(lambda p: torch.optim.SGD(p, lr=RATE, **SGD), clip=clip)
    check(found, expected, tolerance=1e-6)
    unclipped = ours("sgd", **SGD)
    moved = max(np.abs(found[p] - unclipped[p]).max() for p in found)
    # With and without are two programs, each with roundings of its own.
    assert moved > 0.1 if clip == 1.0 else moved < 1e-12


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_no_decay_is_a_group_without_decay(name):
    patterns = (".*/bias", "head/.*")

    def group(path):
        return {"weight_decay": 0.0} if path.endswith("/bias") or path.startswith("head/") else {}

    found = ours(name, no_decay=patterns, **SGD)
    make = {
        "sgd": lambda p: torch.optim.SGD(p, lr=RATE, **SGD),
        "adamw": lambda p: torch.optim.AdamW(p, lr=RATE, weight_decay=0.05),
    }[name]
    check(found, theirs(make, group))
    everywhere = ours(name, **SGD)
    for path in found:  # only those that the patterns name are spared
        spared = path != "backbone/conv/kernel"
        assert (np.abs(found[path] - everywhere[path]).max() > 1e-3) == spared, path


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_learning_rate_scales_are_groups_with_their_own_rate(name):
    patterns = (("head/bias", 0.5), ("head/.*", 10.0), (".*", 2.0))
    scales = optim.learning_rate_scales(list(START), patterns)
    assert scales == {  # the first pattern that matches counts
        "backbone/conv/kernel": 2.0,
        "backbone/bn/bias": 2.0,
        "head/kernel": 10.0,
        "head/bias": 0.5,
    }
    make = {
        "sgd": lambda p: torch.optim.SGD(p, lr=RATE, **SGD),
        "adamw": lambda p: torch.optim.AdamW(p, lr=RATE, weight_decay=0.05),
    }[name]
    found = ours(name, scales=scales, **SGD)
    # Adam divides by sqrt(v): rates of 1 make numbers of 1e2, whose roundings are larger.
    check(found, theirs(make, lambda path: {"lr": RATE * scales[path]}), tolerance=1e-10)


def test_patterns_match_whole_paths_and_the_rest_keeps_its_rate():
    paths = ["head/kernel", "overhead/kernel", "head/kernel/more"]
    scales = optim.learning_rate_scales(paths, (("head/kernel", 3.0),))
    assert scales == {"head/kernel": 3.0, "overhead/kernel": 1.0, "head/kernel/more": 1.0}


def rates(total, **arguments):
    rate = jax.jit(optim.schedule(**arguments, total=total))
    return np.array([rate(np.int32(step)) for step in range(total)])


def torch_rates(total, make):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=0.3)
    scheduler = make(optimizer)
    found = []
    for _ in range(total):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


# The rate is float32: one part in 1e7, and cos near its zero a little of the peak.
CLOSE = {"rtol": 1e-5, "atol": 1e-7}


def test_cosine_is_torchs():
    found = rates(40, name="cosine", peak=0.3)
    expected = torch_rates(40, lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=40))
    np.testing.assert_allclose(found, expected, **CLOSE)
    assert found[0] == np.float32(0.3) and 0 < found[-1] < 0.001


def test_step_is_torchs():
    found = rates(40, name="step", peak=0.3, drops=(10, 25), factor=0.2)
    expected = torch_rates(
        40, lambda o: torch.optim.lr_scheduler.MultiStepLR(o, milestones=[10, 25], gamma=0.2)
    )
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_oscillating_is_torchs_cosine_stepped_on_beyond_its_end():
    """As FBSD's authors do, with T_max = half a period: to 0, back to the peak, and so on."""
    found = rates(130, name="oscillating", peak=0.3, period=40)
    expected = torch_rates(130, lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=20))
    np.testing.assert_allclose(found, expected, **CLOSE)
    assert found[0] == found[40] == found[120] == np.float32(0.3)
    assert np.abs(found[[20, 60, 100]]).max() < 1e-7


def test_constant_stays():
    np.testing.assert_array_equal(rates(5, name="constant", peak=0.3), np.float32([0.3] * 5))


@pytest.mark.parametrize("name", ["constant", "cosine", "oscillating", "step"])
def test_warm_up_rises_in_a_line_and_reaches_the_peak(name):
    warmup, total, peak = 8, 40, 0.3
    found = rates(total, name=name, peak=peak, warmup=warmup, drops=(20,), period=16)
    np.testing.assert_allclose(found[:warmup], peak * np.arange(1, 9) / 8, rtol=1e-6)
    after = np.arange(warmup, total)
    expected = {
        "constant": [peak] * 32,
        "cosine": [peak * 0.5 * (1 + math.cos(math.pi * (s - 8) / 32)) for s in after],
        "oscillating": [peak * 0.5 * (1 + math.cos(math.pi * (s - 8) / 8)) for s in after],
        "step": [peak if s < 20 else peak * 0.1 for s in after],
    }[name]
    np.testing.assert_allclose(found[warmup:], expected, **CLOSE)


def test_optax_agrees_on_cosine_with_warm_up_but_for_its_lost_first_step():
    found = rates(40, name="cosine", peak=0.3, warmup=8)
    theirs = optax.warmup_cosine_decay_schedule(0.0, 0.3, 8, 40)
    assert theirs(0) == 0 and found[0] > 0
    np.testing.assert_allclose(found[8:], [theirs(s) for s in range(8, 40)], **CLOSE)
