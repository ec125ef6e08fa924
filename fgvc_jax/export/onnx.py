"""A trained model as ONNX, by jax2onnx."""

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from fgvc_jax.errors import UserError
from fgvc_jax.export import _model

NAME = "model.onnx"
OPSET = 21
# What jax2onnx 0.17 has no form for, by method.
UNFIT = {
    "mmal": "it looks for the largest connected part of a map in a loop of unknown length",
    "pim": "it enlarges maps by jax.image.resize and marks the tokens it selects by a scatter",
}
INSTALL = (
    "--format=onnx needs packages that are not installed: pip install 'fgvc_jax[onnx]' && "
    "pip install --no-deps 'jax2onnx>=0.17,<0.18'"
)


def to_onnx(
    run: str | os.PathLike, out: str | os.PathLike, which: str = "best", images: Sequence[str] = ()
) -> Path:
    """Writes model.onnx and config.json; arguments, errors and result as for `stablehlo.to_stablehlo`.

    Its input is `images` float32 [batch, S, S, 3], RGB in grey levels 0 to 255, already resized and cropped
    as config.json's 'preprocessing' says; mean and deviation are taken inside. Its outputs are
    'probabilities' (of a classifier) and 'embedding', float32. Where jax2onnx cannot leave the batch free, it
    is 1, which config.json says. Before the file is written it is run on real images by onnxruntime.

    Raises:
      UserError: also where jax2onnx cannot convert the model, or is not installed.
    """
    out = _model.new_folder(out)
    model = _model.Model(run, which)
    method, size = model.specification.method, model.specification.view.size
    if method in UNFIT:
        raise UserError(
            f"the method {method!r} cannot become ONNX: {UNFIT[method]}. --format=stablehlo takes it."
        )
    try:
        import jax2onnx  # noqa: F401
        import onnxruntime
    except ImportError as error:
        raise UserError(f"{INSTALL} ({error})") from None
    images = _model.real_images(model, images)
    expected = _model.expected(model, images)
    names = list(expected)

    def function(images) -> tuple[jax.Array, ...]:
        outputs = model.of_images(images)
        return tuple(outputs[name] for name in names)

    try:
        batch, content = "batch", _convert(function, "batch", size, names)
    except Exception:  # of many kinds, none of them named by jax2onnx
        try:
            batch, content = 1, _convert(function, 1, size, names)
        except Exception as error:
            raise UserError(f"jax2onnx cannot convert {_name(model, error)}") from error
    cropped = np.asarray(jax.jit(model.crop)(*_model.canvases(model, images)))
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
        # In parts of two sizes, where the batch is free.
        places = [1] if batch == "batch" else range(1, len(cropped))
        parts = [session.run(names, {"images": x}) for x in np.split(cropped, places) if len(x)]
    except Exception as error:
        raise UserError(f"onnxruntime cannot run {_name(model, error)}") from error
    found = dict(zip(names, map(np.concatenate, zip(*parts, strict=True)), strict=True))
    differences = _model.compare(expected, found, NAME)
    more = {
        "inputs": {"images": [batch, size, size, 3]},
        "outputs": names,
        "opset": OPSET,
        "checked": {
            "images": len(images),
            "largest_differences": differences,
            "onnxruntime": onnxruntime.__version__,
        },
    }
    _model.write(out, NAME, content, model, more)
    return model.folder


def _convert(function: Callable, batch: str | int, size: int, names: list[str]) -> bytes:
    """The content of an ONNX file of a function of `images`; a batch with a name is of any size."""
    import jax2onnx

    with _forms_for_any_platform(), warnings.catch_warnings():
        # Its own where() asks jax for float64 and gets the float32 that it should have.
        warnings.filterwarnings("ignore", "Explicitly requested dtype float64", UserWarning)
        proto = jax2onnx.to_onnx(
            function,
            [(batch, size, size, 3)],
            input_names=["images"],
            output_names=names,
            opset=OPSET,
        )
    return proto.SerializeToString()


def _name(model: _model.Model, error: Exception) -> str:
    return (
        f"method {model.specification.method!r} on {model.specification.backbone}: "
        f"{(str(error) or repr(error)).splitlines()[0]}. Nothing was written. --format=stablehlo takes every "
        "model."
    )


@contextlib.contextmanager
def _forms_for_any_platform() -> Iterator[None]:
    """Operations in their general form instead of a CPU's; jax2onnx does not know of the choice."""

    def general(*arguments, default, **_):
        return default(*arguments)

    quiet = logging.getLogger("onnx_ir")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with mock.patch.object(jax.lax, "platform_dependent", general):
            yield
    finally:
        quiet.setLevel(level)
