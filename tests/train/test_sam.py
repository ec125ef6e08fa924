"""SAM, ASAM and gradient accumulation against optax, float64 loops in NumPy, and themselves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fgvc_jax.errors import UserError
from fgvc_jax.train.microbatch import accumulate, in_groups
from fgvc_jax.train.sam import l2_in_loss, sam

# A gradient function as the engine has it: a two-layer ReLU net with a normalisation over the batch
# (`norm`), a draw for each example, running statistics, a metric and a carried array.


def network(params, batch, norm=True):
    h = batch["x"] @ params["fc1/kernel"] + params["fc1/bias"]
    mean = h.mean(axis=0)
    if norm:
        h = (h - mean) / jnp.sqrt(h.var(axis=0) + 1e-5)
    h = jax.nn.relu(h) * (jax.random.key_data(batch["key"])[:, :1] % 3)  # a cheap draw
    out = h @ params["fc2/kernel"] + params["fc2/bias"]
    loss = jnp.mean(jnp.square(out - batch["y"]))
    aux = {
        "batch_stats": {"bn/mean": 0.9 * 0.7 + 0.1 * mean, "fixed/mean": jnp.full(2, 0.1, h.dtype)},
        "metrics": {"error": jnp.mean(jnp.abs(out - batch["y"]))},
        "carry": {"out": out},
    }
    return loss, aux


gradient = jax.jit(jax.value_and_grad(network, has_aux=True))
plain_gradient = jax.jit(jax.value_and_grad(functools.partial(network, norm=False), has_aux=True))


def example(batch_size=12, dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = {"fc1/kernel": (5, 7), "fc1/bias": (7,), "fc2/kernel": (7, 3), "fc2/bias": (3,)}
    params = {path: jnp.asarray(rng.standard_normal(s), dtype) for path, s in shapes.items()}
    batch = {
        "x": jnp.asarray(rng.standard_normal((batch_size, 5)), dtype),
        "y": jnp.asarray(rng.standard_normal((batch_size, 3)), dtype),
        "key": jax.random.split(jax.random.key(1), batch_size),
    }
    return params, batch


def assert_close(a, b, tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def by_hand(params, batch, rho, t, epsilon=1e-12):
    """SAM in float64 NumPy, one tensor after the other; t: path, w -> T."""
    _, grads = gradient(params, batch)
    total = 0.0
    for path in params:
        total += np.sum((t(path, np.array(params[path])) * np.array(grads[path])) ** 2)
    moved = {}
    for path in params:
        w, g = np.array(params[path]), np.array(grads[path])
        moved[path] = jnp.asarray(w + rho * t(path, w) ** 2 * g / (np.sqrt(total) + epsilon))
    return gradient(moved, batch)[1]


FORMS = {
    "sam": ({}, lambda path, w: np.ones_like(w)),
    "asam": (
        {"adaptive": True},
        lambda path, w: abs(w) + 0.01 if path.endswith("kernel") else np.ones_like(w),
    ),
    "asam on every tensor": (
        {"adaptive": True, "weights_only": False, "eta": 0.0},
        lambda path, w: abs(w),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_against_float64_numpy(form):
    arguments, t = FORMS[form]
    with jax.enable_x64(True):
        params, batch = example(dtype=np.float64)
        clean, grads = jax.jit(sam(gradient, 0.3, **arguments))(params, batch)
        # The same numbers in the same precision, in another order of summation.
        assert_close(grads, by_hand(params, batch, 0.3, t), 1e-12)
        assert_close(clean, gradient(params, batch)[0], 1e-12)
        base = gradient(params, batch)[1]
        assert np.abs(grads["fc1/kernel"] - base["fc1/kernel"]).max() > 1e-3, "no perturbation"
        assert {g.dtype for g in grads.values()} == {np.dtype("float64")}


def test_against_optax_in_opaque_mode():
    params, batch = example()
    inner = optax.sgd(0.1, momentum=0.9)
    theirs = optax.contrib.sam(
        inner, optax.chain(optax.contrib.normalize(), optax.sgd(0.2)), opaque_mode=True
    )
    their_state, their_params = theirs.init(params), params
    our_state, our_params = inner.init(params), params
    ours = jax.jit(sam(plain_gradient, 0.2))
    for _ in range(4):
        grads = plain_gradient(their_params, batch)[1]
        updates, their_state = theirs.update(
            grads, their_state, their_params, grad_fn=lambda p, _: plain_gradient(p, batch)[1]
        )
        their_params = optax.apply_updates(their_params, updates)
        grads = ours(our_params, batch)[1]
        updates, our_state = inner.update(grads, our_state, our_params)
        our_params = optax.apply_updates(our_params, updates)
    assert_close(our_params, their_params, 1e-6)  # float32 rounding over four steps
    assert np.abs(our_params["fc1/kernel"] - params["fc1/kernel"]).max() > 0.01


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("traced", [False, True])
def test_rho_zero_is_the_base_optimizer_bit_for_bit(adaptive, traced):
    params, batch = example()

    def run(wrapped):
        optimizer = optax.sgd(0.1, momentum=0.9)

        @jax.jit
        def step(params, state, rho):
            (loss, aux), grads = wrapped(rho)(params, batch)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state, loss, aux

        now, state = params, optimizer.init(params)
        for _ in range(3):
            now, state, loss, aux = step(now, state, jnp.float32(0))
        return now, state, loss, aux

    wrapped = run(lambda rho: sam(gradient, rho if traced else 0.0, adaptive=adaptive))
    assert_equal(wrapped, run(lambda rho: gradient))


def test_zero_gradient_is_safe_and_equals_the_base():
    params, batch = example()
    dead = params | {"fc2/kernel": jnp.zeros((7, 3)), "fc2/bias": jnp.zeros(3)}
    batch = batch | {"y": jnp.zeros((12, 3))}
    for arguments, _ in FORMS.values():
        clean, grads = jax.jit(sam(gradient, 0.1, **arguments))(dead, batch)
        assert all((g == 0).all() for g in grads.values())
        assert float(clean[0]) == 0


def test_relative_perturbation_of_asam_ignores_a_rescaling():
    # w1 -> c w1, w2 -> w2 / c leaves a bias-free ReLU net as it is, and ASAM's e / w too (eta 0).
    with jax.enable_x64(True):
        params, batch = example(dtype=np.float64)
        weights = {path: params[path] for path in ("fc1/kernel", "fc2/kernel")}
        scaled = {
            "fc1/kernel": 7.3 * weights["fc1/kernel"],
            "fc2/kernel": weights["fc2/kernel"] / 7.3,
        }

        def relative(weights, **arguments):
            seen = []

            def spy(p, b):
                seen.append(p)
                zero = {"fc1/bias": jnp.zeros(7), "fc2/bias": jnp.zeros(3)}
                value, grads = plain_gradient(p | zero, b)
                return value, {path: grads[path] for path in p}

            sam(spy, 0.5, **arguments)(weights, batch)
            return {path: seen[1][path] / seen[0][path] - 1 for path in weights}

        before, after = (relative(w, adaptive=True, eta=0.0) for w in (weights, scaled))
        assert_close(before, after, 1e-12)
        assert max(float(abs(x).max()) for x in before.values()) > 1e-3
        plain, rescaled = relative(weights), relative(scaled)
        assert abs(plain["fc1/kernel"] - rescaled["fc1/kernel"]).max() > 1e-3


def test_frozen_parameters_stay_out():
    # Frozen: not in params. Nothing of them may enter the norm.
    params, batch = example()
    frozen = {path: params.pop(path) for path in ("fc1/kernel", "fc1/bias")}

    def head(p, b):
        return jax.value_and_grad(lambda p: network(frozen | p, b), has_aux=True)(p)

    grads = sam(head, 0.3)(params, batch)[1]
    g = head(params, batch)[1]
    norm = np.sqrt(sum(float((x**2).sum()) for x in g.values()))
    moved = {path: params[path] + 0.3 * g[path] / norm for path in params}
    assert_close(grads, head(moved, batch)[1], 1e-5)  # float32


@pytest.mark.parametrize("groups", [3, 4])
@pytest.mark.parametrize("form", FORMS)
def test_groups_against_a_loop_over_groups(form, groups):
    arguments, t = FORMS[form]
    with jax.enable_x64(True):
        params, batch = example(dtype=np.float64)
        (loss, aux), grads = jax.jit(sam(gradient, 0.3, groups=groups, **arguments))(params, batch)
        rows = 12 // groups
        batches = [
            jax.tree.map(lambda x, i=i: x[rows * i : rows * (i + 1)], batch) for i in range(groups)
        ]
        by_loop = [by_hand(params, part, 0.3, t) for part in batches]  # each its own perturbation
        mean = lambda *xs: sum(xs) / groups  # noqa: E731
        assert_close(grads, jax.tree.map(mean, *by_loop), 1e-12)
        # What else comes back is of the clean pass.
        parts = [gradient(params, part) for part in batches]
        assert_close(loss, sum(p[0][0] for p in parts) / groups, 1e-12)
        for name in ("batch_stats", "metrics"):
            expected = jax.tree.map(mean, *(p[0][1][name] for p in parts))
            assert_close(aux[name], expected, 1e-12)
        outputs = np.concatenate([p[0][1]["carry"]["out"] for p in parts])
        assert_close(aux["carry"]["out"], outputs, 1e-12)
        whole = jax.jit(sam(gradient, 0.3, **arguments))(params, batch)[1]
        assert abs(whole["fc1/kernel"] - grads["fc1/kernel"]).max() > 1e-4


def test_accumulation_equals_the_whole_batch_where_examples_do_not_mix():
    with jax.enable_x64(True):
        params, batch = example(dtype=np.float64)
        whole = jax.jit(plain_gradient)(params, batch)
        parts = jax.jit(accumulate(plain_gradient, 4))(params, batch)
        assert_close(parts, whole, 1e-13)  # loss, statistics, metrics, carry in order, gradients
        both = jax.jit(sam(accumulate(plain_gradient, 4), 0.3))(params, batch)
        assert_close(both, jax.jit(sam(plain_gradient, 0.3))(params, batch), 1e-12)


def test_accumulation_takes_every_nth_example():
    # With a normalisation over the part, the parts matter: i, n + i, 2n + i, ...
    with jax.enable_x64(True):
        params, batch = example(dtype=np.float64)
        (loss, aux), grads = jax.jit(accumulate(gradient, 3))(params, batch)
        parts = [gradient(params, jax.tree.map(lambda x, i=i: x[i::3], batch)) for i in range(3)]
        assert_close(grads, jax.tree.map(lambda *xs: sum(xs) / 3, *(p[1] for p in parts)), 1e-12)
        assert_close(loss, sum(p[0][0] for p in parts) / 3, 1e-12)
        for i, part in enumerate(parts):
            assert_close(aux["carry"]["out"][i::3], part[0][1]["carry"]["out"], 1e-12)


def test_statistics_that_no_part_changed_keep_every_bit():
    # 0.1 three times, divided by three, is not 0.1.
    params, batch = example()
    stats = jax.jit(in_groups(gradient, 3))(params, batch)[0][1]["batch_stats"]
    np.testing.assert_array_equal(stats["fixed/mean"], np.full(2, 0.1, np.float32))


@pytest.mark.parametrize("wrapped", [accumulate, in_groups])
def test_a_batch_that_does_not_divide_is_refused(wrapped):
    params, batch = example()
    with pytest.raises(UserError, match="batch of 12 does not divide into 5"):
        wrapped(gradient, 5)(params, batch)


def test_decay_in_the_loss_enters_both_passes():
    with jax.enable_x64(True):
        params, batch = example(dtype=np.float64)
        mask = {path: path.endswith("kernel") for path in params}

        def decayed(p, b):
            loss, aux = network(p, b)
            l2 = sum(jnp.sum(p[path] ** 2) for path in p if path.endswith("kernel"))
            return loss + 0.5 * 0.2 * l2, aux

        both = jax.jit(sam(jax.value_and_grad(decayed, has_aux=True), 0.3))
        expected = both(params, batch)
        result = jax.jit(sam(l2_in_loss(gradient, 0.2, mask), 0.3))(params, batch)
        assert_close(result, expected, 1e-12)
        plain = jax.jit(sam(gradient, 0.3))(params, batch)[1]
        step_only = plain["fc1/kernel"] + 0.2 * params["fc1/kernel"]
        assert abs(result[1]["fc1/kernel"] - step_only).max() > 1e-4
        everything = l2_in_loss(gradient, 0.2)(params, batch)[1]
        base = gradient(params, batch)[1]
        assert_close(everything["fc2/bias"], base["fc2/bias"] + 0.2 * params["fc2/bias"], 1e-12)


def test_rho_may_follow_a_schedule():
    params, batch = example()
    step = jax.jit(lambda rho: sam(gradient, rho)(params, batch)[1])
    for rho in (0.05, 0.3):
        assert_close(step(rho), jax.jit(sam(gradient, rho))(params, batch)[1], 1e-5)  # float32
    assert step._cache_size() == 1
