"""The devices to plan for: those of this machine, or TPUs and GPUs that are not there."""

import contextlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from fgvc_jax.errors import UserError, choose
from fgvc_jax.hardware import cuda
from fgvc_jax.hardware.chips import CHIPS

TPUS = tuple(chip.name for chip in CHIPS if chip.kind.startswith("TPU"))


class Target(NamedTuple):
    """Attributes:
    devices: to make a mesh of.
    options: for their compiler.
    tracing: makes the context in which programs for them are traced.
    """

    devices: Sequence[jax.Device]
    options: dict[str, Any] | None = None
    tracing: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext


def find(on: str) -> Target:
    """The devices that `--on` names; '' = this machine's.

    Args:
      on: a TPU and its topology, 'v5e:2x4' (v4 and v5p have three axes, 'v4:2x2x1'), or a GPU and how many,
        'h100', 'h100:8'.

    Raises:
      UserError: an unknown chip or topology, or no compiler for it.
    """
    if not on:
        return Target(jax.devices())
    name, _, shape = on.partition(":")
    choose(name, (*TPUS, *cuda.TARGETS), "--on: chip")
    return _gpus(on, name, shape) if name in cuda.TARGETS else _tpus(on, name, shape)


def _gpus(on: str, name: str, count: str) -> Target:
    if not (count or "1").isdigit() or int(count or 1) < 1:
        raise UserError(f"--on={on}: give the number of GPUs of one host, such as --on={name}:8.")
    _insist(on, "jax_plugins.xla_cuda12", "plan-cuda")
    return Target(cuda.devices(name, int(count or 1)), cuda.OPTIONS, cuda.tracing)


def _tpus(on: str, name: str, topology: str) -> Target:
    if not topology:
        raise UserError(
            f"--on={on} names no topology: --on=v5e:2x4, for instance; v4 and v5p have three axes, "
            "--on=v4:2x2x1."
        )
    _insist(on, "libtpu", "plan")
    _quietly()
    from jax.experimental import topologies

    try:
        return Target(topologies.get_topology_desc(on, platform="tpu").devices)
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
        said = str(error).strip().splitlines()[0][:200]
        raise UserError(
            f"--on={on} is no topology of {name}: {said}. Known ones are, for instance, v5e:2x2, v5e:2x4, "
            "v5e:4x4, v6e:2x4, v4:2x2x1, v5p:2x2x2."
        ) from None


def _insist(on: str, package: str, extra: str) -> None:
    try:
        found = importlib.util.find_spec(package)
    except ModuleNotFoundError:  # not even the package that it would lie in
        found = None
    if found is None:
        raise UserError(
            f"--on={on} needs the compiler of these chips: pip install 'fgvc_jax[{extra}]'. The chips "
            "themselves are not needed."
        )


def _quietly() -> None:
    """The compiler looks for a TPU, a slice and a log; there is none of them."""
    usual = {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # it only compiles, so several processes may
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_MIN_LOG_LEVEL": "3",
        "TPU_STDERR_LOG_LEVEL": "3",
    }
    for name, value in usual.items():
        os.environ.setdefault(name, value)
