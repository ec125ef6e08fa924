"""Memory, FLOPs and messages of compiled programs, and the search of the largest batch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgvc_jax.hardware import chips, compiled, search


def test_a_product_of_matrices_is_counted_as_by_hand():
    traced = jax.jit(lambda a, b: a @ b).trace(jnp.zeros((64, 32)), jnp.zeros((32, 16)))
    found = compiled.measure(traced, 1)
    assert found.flops == pytest.approx(2 * 64 * 32 * 16, rel=0.01)
    assert found.memory.arguments == 4 * (64 * 32 + 32 * 16)
    assert found.memory.output == 4 * 64 * 16
    assert found.needed == sum(found.memory)
    assert compiled.flops(traced) == pytest.approx(found.flops)


def test_an_argument_that_is_given_away_needs_no_output():
    step = jax.jit(lambda state: state + 1, donate_argnums=0)
    found = compiled.measure(step.trace(jnp.zeros(1024)), 1)
    assert found.memory.arguments == 4096 and found.memory.output == 0


def test_bound_is_the_slower_of_arithmetic_and_traffic():
    chip = chips.Chip("x", "X", flops=100.0, memory=1e3, share=0.5, bandwidth=10.0, ring=1.0)
    assert chip.room == 500
    assert compiled.Measured(None, 0, flops=200.0, bytes=10.0).bound(chip) == 2
    assert compiled.Measured(None, 0, flops=200.0, bytes=50.0).bound(chip) == 5
    assert compiled.Measured(None, 0, flops=200.0).bound(chip) == 2
    assert compiled.Measured(None, 0).bound(chip) is None


def test_the_compilers_message_tells_what_is_needed():
    text = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm."
    assert compiled.needed(text) == 20.5 * 2**30
    text = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
        "(17.00G) exceeds available HBM (15.75G)."
    )
    assert compiled.needed(text) == 17 * 2**30
    assert compiled.needed("RESOURCE_EXHAUSTED: out of memory") == 0


def test_kinds_of_devices_are_told_apart():
    names = [chips.of(kind) and chips.of(kind).name for kind in ("TPU v5", "TPU v5 lite", "cpu")]
    assert names == ["v5p", "v5e", None]
    assert chips.of("NVIDIA H100 80GB HBM3").name == "h100"


@pytest.mark.parametrize("fixed,each", [(1.0, 0.01), (0.2, 1.0), (0.2, 0.005), (20.0, 0.01)])
@pytest.mark.parametrize("says", [True, False])
def test_largest_batch_is_as_near_as_promised(fixed, each, says):
    """Against the line's own answer; a compiler that refuses may say how much it needed, or not."""
    asked = []

    def needed(batch: int) -> float:
        asked.append(batch)
        need = fixed + each * batch + 0.1 * math.sin(batch)  # not quite a line
        return need if says or need <= 16 else math.inf

    room, unit = 15.7, 8
    found = search.largest(needed, room, unit, {128: needed(128)})
    fitting = [b for b in range(unit, 20_000, unit) if fixed + each * b + 0.1 * math.sin(b) <= room]
    best = max(fitting, default=0)
    assert found <= best <= max(found + unit, found * (1 + search.CLOSE) + unit)
    assert len(asked) <= 12 and all(b % unit == 0 for b in asked)


@pytest.mark.parametrize("seed", range(20))
def test_search_ends_where_the_compiler_computes_again(seed):
    """Memory as a TPU's compiler lays it out: a line, then hardly more, then refusals without a number."""
    rng = np.random.default_rng(seed)
    bend, end, unit = *sorted(rng.integers(300, 30_000, 2)), int(rng.choice([8, 24, 64]))
    asked = []

    def needed(batch: int) -> float:
        asked.append(batch)
        again = 10 + 5 * batch / bend if batch < bend else 15 + 0.5 * rng.random()
        return math.inf if batch > end else again

    found = search.largest(needed, 15.7, unit, {unit: needed(unit)})
    assert found <= end < found * (1 + search.CLOSE) + 2 * unit
    assert len(asked) <= 25 and len(set(asked)) == len(asked)


def test_search_ends_at_the_most_that_there_can_be():
    asked = []

    def needed(batch: int) -> float:
        asked.append(batch)
        return batch / 1000

    assert search.largest(needed, 15.7, 8, {256: 0.256}, most=5994) == 5992
    assert max(asked) == 5992 and len(asked) == 1
    assert search.largest(needed, 15.7, 8, {8: 0.008}, most=5) == 8
    # Fewer than a batch at least has.
    assert search.largest(needed, 0.05, 8, {64: 0.064}, most=5) == 8
