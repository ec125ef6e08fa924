"""What the train step in bfloat16 asks of an accelerator, read from the program as it is lowered for one."""

import contextlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import tiny

from fgvc_jax import mesh as meshes
from fgvc_jax import phases
from fgvc_jax.context.models import Models, view_of
from fgvc_jax.data import counts
from fgvc_jax.hardware import cuda
from fgvc_jax.phases._training import Length
from fgvc_jax.train.build import batch_of

SMALL_VIT = {"depth": 2, "width": 32, "heads": 2}


def lowered(backbone, arguments, platform):
    """(text of the step of fine-tuning as StableHLO, how many arrays its state has)."""
    config, mesh = tiny.pipeline(backbone, **arguments), meshes.make()
    config.image.size = config.image.resize = 32
    config.model.dtype = "bfloat16"
    manifest = counts.Counts(10, {"train": 100}, 32, "").manifest()
    models = Models(config, Path(), manifest, mesh, view_of(config), 32)
    (phase, *_) = phases.of(config)
    _, program, _ = phase._build(models, Length(1, 16, 1))
    with cuda.tracing() if platform == "cuda" else contextlib.nullcontext():
        traced = program.trace(batch_of(mesh, 16, 1, 32, label=jnp.int32))
    text = traced.lower(lowering_platforms=(platform,)).as_text(debug_info=True)
    return text, len(jax.tree.leaves(program.state))


@pytest.mark.parametrize(
    ("backbone", "arguments", "platform"),
    [
        ("resnet18", {}, "tpu"),
        ("vit_tiny_patch16_224", SMALL_VIT, "tpu"),
        pytest.param("vit_tiny_patch16_224", SMALL_VIT, "cuda", marks=pytest.mark.slow),
        pytest.param("resnet18", {}, "cuda", marks=pytest.mark.slow),
    ],
)
def test_the_step_computes_in_bfloat16_on_the_device_in_place(backbone, arguments, platform):
    text, arrays = lowered(backbone, arguments, platform)
    places = dict(re.findall(r"^(#loc\d+) = (.*)$", text, flags=re.M))
    wide, narrow = [], 0
    for line in text.splitlines():
        if re.search(r"stablehlo\.(convolution|dot_general)\b", line):
            if re.search(r": \(.*f32.*\) ->", line):
                wide.append(places[re.search(r"loc\((#loc\d+)\)", line)[1]])
            else:
                narrow += 1
    # The two products of a crop, along x and along y, whose results are rounded to 8 bits in augmentation.
    assert len(wide) == 2 and all("hwc->hoc" in x or "hoc->poc" in x for x in wide), wide
    assert narrow > 20
    # Neither a callback to the host nor a kernel that nobody knows of; on NVIDIA GPUs cuDNN's attention.
    kernels = {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"}
    called = set(re.findall(r"stablehlo\.custom_call @([\w$]+)", text))
    assert called == (kernels if platform == "cuda" and backbone.startswith("vit") else set())
    # Every array of the state is given away, so none is copied.
    assert len(re.findall(r"tf\.aliasing_output|jax\.buffer_donor", text)) == arrays
