"""The devices as a mesh, and where each array lies on it."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from fgvc_jax.errors import UserError

AXES = ("data", "fsdp")
BATCH = P(AXES)  # the batch axis is split over all devices of the mesh
SMALLEST = (
    2**16
)  # elements of a kernel that is split: smaller ones cost more to gather than to keep


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
    """Where each array of a state lies: kernels are split over 'fsdp', all else is on every device.

    A kernel is an array at a path that ends in 'kernel', of the parameters, their moving average or the
    optimizer's state. It is split along its largest axis that divides evenly, if it has `SMALLEST` elements.
    """

    def one(path, leaf) -> NamedSharding:
        name = str(getattr(path[-1], "key", "")) if path else ""
        return NamedSharding(mesh, _split(name, leaf.shape, mesh.shape["fsdp"]))

    return jax.tree_util.tree_map_with_path(one, tree)


def _split(path: str, shape: tuple[int, ...], parts: int) -> P:
    axes = [a for a in np.argsort(shape, kind="stable")[::-1] if shape[a] % parts == 0]
    is_kernel = path.rpartition("/")[2] == "kernel" and np.prod(shape) >= SMALLEST
    if parts == 1 or not axes or not is_kernel:
        return P()
    return P(*("fsdp" if a == axes[0] else None for a in range(len(shape))))


def gathered(
    params: dict[str, jax.Array], mesh: Mesh, dtype: DTypeLike | None
) -> dict[str, jax.Array]:
    """The parameters as a forward pass uses them: kernels that are split are cast to `dtype`, then gathered.

    Their gradients fall back onto the parts, in the parameters' dtype. Left to itself the partitioner splits
    the products instead, which moves and holds more than parameters that are not split at all.

    Args:
      params: by path.
      dtype: of the computation, in which layers use their kernels; None = the parameters' own.
    """

    def one(path: str, x: jax.Array) -> jax.Array:
        parts = _split(path, x.shape, mesh.shape["fsdp"])
        if parts == P():
            return x
        return _gather(x, NamedSharding(mesh, parts), jnp.dtype(dtype or x.dtype))

    return {path: one(path, x) for path, x in params.items()}


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(x: jax.Array, place: NamedSharding, dtype: jnp.dtype) -> jax.Array:
    part = jax.lax.with_sharding_constraint(x.astype(dtype), place)
    return jax.lax.with_sharding_constraint(part, NamedSharding(place.mesh, P()))


def _gather_forward(x, place, dtype):
    return _gather(x, place, dtype), jnp.zeros((), x.dtype)  # the residual says the dtype alone


def _gather_backward(place, dtype, like, gradient):
    # First added up over all, then cut: the compiler makes one reduce-scatter of the two. Asked for the parts
    # alone it cuts the product that makes them, and keeps more in memory meanwhile.
    whole = jax.lax.with_sharding_constraint(gradient, NamedSharding(place.mesh, P()))
    return (jax.lax.with_sharding_constraint(whole, place).astype(like.dtype),)


_gather.defvjp(_gather_forward, _gather_backward)


def abstract(tree: Any, mesh: Mesh) -> Any:
    """The shapes and dtypes of a tree with the shardings that its arrays have on the mesh."""
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        tree,
        shardings(tree, mesh),
    )


def check_batches(batches: dict[str, int], mesh: Mesh) -> None:
    """Raises UserError where a batch, by its config key, cannot be split evenly over the devices."""
    wrong = {key: batch for key, batch in batches.items() if batch % mesh.size}
    if wrong:
        upper = {key: -(-batch // mesh.size) * mesh.size for key, batch in wrong.items()}
        found = ", ".join(f"{key} = {batch}" for key, batch in wrong.items())
        instead = " ".join(f"--{key}={batch}" for key, batch in upper.items())
        verb = "is" if len(wrong) == 1 else "are"
        raise UserError(
            f"{found} {verb} not divisible by the {mesh.size} devices; use, for instance, {instead}"
        )


def to_host(x: jax.Array) -> np.ndarray:
    """The values of an array, wherever its parts lie; all processes must call it."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)


def from_all(x: np.ndarray) -> np.ndarray:
    """[P, ...]: the array of each of P processes, of one shape and dtype; all must call it."""
    return multihost_utils.process_allgather(x)


def wait_for_all(what: str) -> None:
    """Returns when all processes have called it with this name; at once where there is one."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


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
