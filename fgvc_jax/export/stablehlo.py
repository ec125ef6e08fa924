"""A trained model as StableHLO: one file for CPUs, NVIDIA GPUs and TPUs, for batches of any size."""

import os
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export

from fgvc_jax.export import _model

NAME = "model.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")


def to_stablehlo(
    run: str | os.PathLike, out: str | os.PathLike, which: str = "best", images: Sequence[str] = ()
) -> Path:
    """Writes model.stablehlo, for `jax.export.deserialize`, and config.json.

    The preprocessing is inside: the function takes images at the top left of square canvases, `pixels`
    uint8 [B, C, C, 3] with their heights and widths `sizes` int32 [B, 2], and gives a dictionary of float32
    arrays, 'probabilities' [B, classes] (of a classifier) and 'embedding' [B, D]. It computes in float32.
    Before it is written it is read back and run on real images.

    Args:
      run: a run's workdir, or one of its training phases; the model is `trained.find`'s.
      out: folder to write, new or empty.
      which: the checkpoint, 'best' by validation or 'last'; of a refitted model always the last.
      images: files or folders to try it on; () = the run's.

    Returns:
      The folder of the training phase that was exported.

    Raises:
      UserError: no model there, a folder that is not empty, a file that does not compute the same.
    """
    out = _model.new_folder(out)
    model = _model.Model(run, which)
    images = _model.real_images(model, images)
    side = model.specification.canvas
    (batch,) = export.symbolic_shape("batch")
    shapes = (
        jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8),
        jax.ShapeDtypeStruct((batch, 2), jnp.int32),
    )
    with jax.default_matmul_precision("highest"):
        exported = export.export(jax.jit(model.of_canvases), platforms=PLATFORMS)(*shapes)
    content = bytes(exported.serialize())
    again = export.deserialize(bytearray(content)).call(*_model.canvases(model, images))
    found = jax.device_get(again)
    differences = _model.compare(_model.expected(model, images), found, NAME)
    more = {
        "inputs": {"pixels": ["batch", side, side, 3], "sizes": ["batch", 2]},
        "outputs": list(found),
        "platforms": PLATFORMS,
        "jax": jax.__version__,
        "calling_convention_version": exported.calling_convention_version,
        "checked": {"images": len(images), "largest_differences": differences},
    }
    _model.write(out, NAME, content, model, more)
    return model.folder
