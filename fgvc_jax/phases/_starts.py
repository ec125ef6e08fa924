"""The weights that a training phase starts from: pretrained, an earlier phase's, or two interpolated."""

import logging
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from fgvc_jax import mesh as meshes
from fgvc_jax import methods
from fgvc_jax.context.data import Data
from fgvc_jax.context.models import Models
from fgvc_jax.context.transfer import NETS
from fgvc_jax.data import sampler
from fgvc_jax.data.feed import gather
from fgvc_jax.model import Specification
from fgvc_jax.train import initial, tree
from fgvc_jax.train import step as steps
from fgvc_jax.train.predict import predict_all

log = logging.getLogger(__name__)

HEADS = ("keep", "fresh", "means")
BATCH_NORMS = ("keep", "estimate")

Weights = dict[str, tree.Flat]  # {'params', 'batch_stats'}


def weights(
    section: ConfigDict,
    specification: Specification,
    data: Data,
    models: Models,
    *,
    seed: int,
    batch_norm_seed: int,
) -> Weights:
    """The weights at step 0.

    Args:
      section: of the phase; its group `init` says where they come from.
      seed: for what is drawn anew; batch_norm_seed: for the images that BatchNorm's statistics are
        estimated from.
    """
    init = section.init
    if not init.phase:
        return tree.weights(models.starting_model(specification))
    # A draw of its own: a fresh head must not be the one that the fine-tune started from.
    module = specification.build(seed)
    ours = tree.weights(module)
    earlier, _, source = models.trained(init.phase, init.checkpoint)
    alike = methods.get(earlier.method).evaluator == methods.get(specification.method).evaluator
    note = ""
    if init.interpolate:
        _, _, second = models.trained(init.interpolate, init.checkpoint)
        source = {
            kind: tree.interpolate(source[kind], second[kind], init.alpha, NETS) for kind in source
        }
        note = f", interpolated with {init.interpolate} (alpha {init.alpha:g})"
    taken = 0
    for kind, arrays in source.items():
        for path, value in arrays.items():
            head = not path.startswith(NETS)
            fits = path in ours[kind] and ours[kind][path].shape == value.shape
            # The head of an embedding is none of a classifier, even where the shapes agree.
            if fits and not (head and (init.head != "keep" or not alike)):
                ours[kind][path] = value
                taken += 1
    fresh = sum(map(len, ours.values())) - taken
    log.info("  starts from %s%s: %s arrays taken, %s fresh", init.phase, note, taken, fresh)
    if init.batch_norm == "estimate":
        found = estimated_batch_norm(module, ours, data, models, section.batch, batch_norm_seed)
        ours["batch_stats"] = found
    if init.head == "means":
        ours["params"] |= _class_mean_head(module, ours, data, models, section.batch)
    return ours


def estimated_batch_norm(
    module: nnx.Module, ours: Weights, data: Data, models: Models, batch: int, seed: int
) -> tree.Flat:
    """The statistics over one epoch of training images, augmented as in training."""
    if not ours["batch_stats"]:
        log.info("  no BatchNorm in this backbone, so batch_norm = 'estimate' changes nothing")
        return ours["batch_stats"]
    count, feed = data.sizes["train"], data.feed(["train"])
    forward, preprocess = initial.batch_statistics(module), models.preprocess()

    @jax.jit
    def one(weights, resident, batch, number):
        pixels, sizes = gather(resident, batch, data.mesh)
        keys = steps.example_keys(np.uint32(seed), number, 0, pixels.shape[0])
        images = preprocess(keys, pixels, sizes)
        return forward(weights["params"], weights["batch_stats"], images)

    def batches() -> Iterator[tree.Flat]:
        order = sampler.shuffled(count, batch, seed).slice(slice(0, -(-count // batch)))
        stream = feed.stream(order, {"index": np.arange(count)[:, None]})
        for number, examples in enumerate(stream):
            yield one(ours, feed.resident, examples, number)

    log.info("  BatchNorm's statistics estimated anew from %s training images", f"{count:,}")
    return initial.estimate_batch_norm(batches())


def _class_mean_head(
    module: nnx.Module, ours: Weights, data: Data, models: Models, batch: int
) -> tree.Flat:
    """The head of the nearest class mean, on the training images without augmentation."""
    on_mesh = jax.device_put(ours, meshes.shardings(ours, data.mesh))
    predict = models.predictor(tree.split(module)[0])
    found = predict_all(predict, on_mesh, data.whole("train", batch))["embedding"]
    labels = data.labels("train")
    kernel, bias = initial.class_mean_head(found, labels, len(data.manifest.classes))
    right = np.mean((found @ kernel + bias).argmax(1) == labels)
    log.info(
        "  its head is the nearest class mean, right on %.1f %% of the training images", 100 * right
    )
    old = ours["params"]["head/kernel"]
    return {
        "head/kernel": jnp.asarray(kernel, old.dtype),
        "head/bias": jnp.asarray(bias, old.dtype),
    }
