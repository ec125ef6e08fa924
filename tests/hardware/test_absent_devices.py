"""Which devices `--on` means, and that layers take the form of those, not of this machine."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fgvc_jax.config import base
from fgvc_jax.context.models import dtype_of
from fgvc_jax.errors import UserError
from fgvc_jax.hardware import chips, compiled, devices
from fgvc_jax.ops import pool

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")


@pytest.mark.parametrize(
    "on,said",
    [
        ("v5x:2x2", "did you mean 'v5[ep]'"),
        ("v5e", "names no topology"),
        ("h100:many", "number of GPUs"),
        pytest.param("v5e:3x5", "no topology of v5e", marks=needs_libtpu),
    ],
)
def test_what_cannot_be_is_told(on, said):
    with pytest.raises(UserError, match=said):
        devices.find(on)


def test_a_compiler_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'fgvc_jax\[plan\]'"):
        devices.find("v5e:2x2")
    with pytest.raises(UserError, match=r"pip install 'fgvc_jax\[plan-cuda\]'"):
        devices.find("h100")


def test_auto_is_bfloat16_on_an_accelerator_only():
    config = base()
    kinds = [str(dtype_of(config, p)) for p in ("cpu", "tpu", "gpu", "")]
    assert kinds == ["float32", "bfloat16", "bfloat16", "float32"]
    config.model.dtype = "float32"
    assert dtype_of(config, "tpu") == "float32"


@needs_libtpu
def test_layers_take_the_form_of_the_devices_that_are_planned_for():
    """The backward pass of max-pooling is XLA's select-and-scatter there, and slices on a CPU."""
    found = devices.find("v5e:2x2").devices
    assert [d.platform for d in found] == ["tpu"] * 4
    mesh = jax.make_mesh((4,), ("x",), devices=found)

    def text(**place) -> str:
        x = jax.ShapeDtypeStruct((4, 8, 8, 2), jnp.float32, **place)
        gradient = jax.grad(lambda x: pool.max_pool(x, 3, 2, 1).sum())
        return jax.jit(gradient).lower(x).as_text()

    assert "select_and_scatter" in text(sharding=NamedSharding(mesh, P()))
    assert "select_and_scatter" not in text()


def test_gpus_that_are_not_there():
    """The product of two matrices, one split over two GPUs: memory is the arrays', by hand."""
    pytest.importorskip("jax_plugins.xla_cuda12")
    found = devices.find("h100:2")
    assert [chips.of(d.device_kind).name for d in found.devices] == ["h100", "h100"]
    mesh = jax.make_mesh((2,), ("x",), devices=found.devices)
    a = jax.ShapeDtypeStruct((256, 64), jnp.bfloat16, sharding=NamedSharding(mesh, P("x")))
    b = jax.ShapeDtypeStruct((64, 32), jnp.bfloat16, sharding=NamedSharding(mesh, P()))
    measured = compiled.measure(jax.jit(lambda a, b: a @ b).trace(a, b), 2, found.options)
    assert measured.memory.arguments == 2 * (128 * 64 + 64 * 32)
    assert measured.memory.output == 2 * 128 * 32
