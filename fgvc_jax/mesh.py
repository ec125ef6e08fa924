"""The devices as a mesh, and where each array lies on it."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fgvc_jax.errors import UserError

AXES = ("data", "fsdp")
BATCH = P(AXES)  # the batch axis is split over all devices of the mesh


def make(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The devices as ('data', 'fsdp'). The batch is split over both axes, parameters over 'fsdp'.

    Args:
      fsdp: over how many devices each parameter is split.
      devices: all that there are where None; else these, which need not be of this machine.

    Raises:
      UserError: the number of devices is not divisible by `fsdp`.
    """
    count = jax.device_count() if devices is None else len(devices)
    if fsdp < 1 or count % fsdp:
        raise UserError(f"config.devices.fsdp = {fsdp} does not divide the {count} device(s).")
    shape = (count // fsdp, fsdp)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def shardings(tree: Any, mesh: Mesh) -> Any:
    """A sharding for each array: its largest axis that divides evenly is split over 'fsdp', if any."""
    parts = mesh.shape["fsdp"]

    def one(leaf) -> NamedSharding:
        axes = [a for a in np.argsort(leaf.shape)[::-1] if leaf.shape[a] % parts == 0]
        if (
            parts == 1 or not axes or leaf.size < 2**16
        ):  # small ones cost more to gather than to keep
            return NamedSharding(mesh, P())
        return NamedSharding(mesh, P(*("fsdp" if a == axes[0] else None for a in range(leaf.ndim))))

    return jax.tree.map(one, tree)


def abstract(tree: Any, mesh: Mesh) -> Any:
    """The shapes and dtypes of a tree with the shardings that its arrays have on the mesh."""
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        tree,
        shardings(tree, mesh),
    )


def check_batch(batch: int, mesh: Mesh, where: str) -> None:
    """Raises UserError where a batch cannot be split evenly over the devices."""
    if batch % mesh.size:
        lower, upper = batch // mesh.size * mesh.size, (batch // mesh.size + 1) * mesh.size
        options = f"{lower} or {upper}" if lower else f"{upper}"
        raise UserError(
            f"{where} = {batch} is not divisible by the {mesh.size} devices; use {options}, for instance."
        )


def to_host(x: jax.Array) -> np.ndarray:
    """The values of an array, wherever its parts lie; all processes must call it."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)


def name_devices() -> str:
    """'8 x NVIDIA H200' or '1 x cpu (16 cores)', and a hint where an accelerator seems unused."""
    import os
    import shutil

    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{jax.device_count()} x {device.device_kind}"
    text = (
        f"{jax.device_count()} x cpu ({len(os.sched_getaffinity(0))} cores)"
        if hasattr(os, "sched_getaffinity")
        else f"{jax.device_count()} x cpu"
    )
    if os.path.exists("/dev/nvidia0") or shutil.which("nvidia-smi"):
        text += "\nhint: there seems to be an NVIDIA GPU that JAX does not use: pip install -e '.[cuda]'"
    elif os.path.exists("/dev/accel0") or os.path.exists("/dev/vfio/0"):
        text += "\nhint: there seems to be a TPU that JAX does not use: pip install -e '.[tpu]'"
    return text
