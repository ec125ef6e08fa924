"""What a run's comparator (method 'pairs') looks at in the hardest pairs that were mined for it."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fgvc_jax import photos
from fgvc_jax.errors import UserError
from fgvc_jax.explain import cam, draw
from fgvc_jax.explain.heat import pixels_of
from fgvc_jax.images.batch import plain_views
from fgvc_jax.images.view import View
from fgvc_jax.inference import Classifier
from fgvc_jax.mining import pairs as mined
from fgvc_jax.report.contact_sheet import varied
from fgvc_jax.train import tree
from fgvc_jax.trained import run_of


class Hard(NamedTuple):
    """A mined pair of different classes.

    Attributes:
      query, neighbour: the files; the neighbour is a training image.
      classes: of both.
      similarity: by which the neighbour was mined.
      same: the comparator's probability that both are of one class, which is wrong.
      seen: uint8 [2, S, S, 3], both as the net sees them.
      maps: float32 [2, 2, h, w] from 0 to 1: of each image what speaks for "same", and for "different".
    """

    query: str
    neighbour: str
    classes: tuple[str, str]
    similarity: float
    same: float
    seen: np.ndarray
    maps: np.ndarray


def hardest(comparator: Classifier, kind: str, count: int, batch: int = 16) -> Iterator[Hard]:
    """The most similar pairs of different classes, of validation queries where there are such pairs.

    For variety a query, a neighbour and a pair of classes come once as long as there are others.

    Args:
      comparator: the run's phase of method 'pairs', as a `Classifier`.
      kind: of the heat maps, one of `cam.KINDS`, of the comparator's logit.
      count: pairs, at most.

    Raises:
      UserError: its mined pairs or images are not there any more, or no pair is of different classes.
    """
    phase = comparator.phase
    config = json.loads((run_of(phase) / "config.json").read_text())
    mine = phase.parent / config[phase.name]["pairs"]
    for split in ("val", "train"):
        path = mine / f"{split}_pairs.npz"
        pairs = mined.load(path) if path.exists() else None
        if pairs is not None and (pairs.label == 0).any():
            break
    else:
        raise UserError(f"{mine} holds no mined pairs of different classes.")
    gallery = photos.of_phase(phase)
    queries = photos.of_phase(phase, split) if split == "val" else gallery
    of_query, of_neighbour = ([p.classes[x] for x in p.labels] for p in (queries, gallery))
    different = np.flatnonzero(pairs.label == 0)
    order = different[np.argsort(-pairs.similarity[different], kind="stable")]
    chosen = varied(order, pairs, of_query, of_neighbour, count)
    both = [(int(pairs.query[p]), int(pairs.neighbour[p])) for p in chosen]
    images = (
        photo
        for q, n in both
        for photo in (queries.read(queries.files[q]), gallery.read(gallery.files[n]))
    )
    found = _look(comparator, images, kind, 2 * max(1, batch // 2))
    for p, (q, n), (same, seen, maps) in zip(chosen, both, found, strict=True):
        names = of_query[q], of_neighbour[n]
        similarity = float(pairs.similarity[p])
        yield Hard(queries.files[q], gallery.files[n], names, similarity, same, seen, maps)


def _look(
    comparator: Classifier, images: Iterator[np.ndarray], kind: str, batch: int
) -> Iterator[tuple]:
    """(probability, seen, maps), see `Hard`, of images that follow each other in pairs."""
    specification = comparator.specification
    # Both images of a pair in one batch, so that one tap holds both; in use that changes nothing.
    arguments = specification.method_arguments | {"joint": True}
    joint = dataclasses.replace(specification, method_arguments=arguments)
    static, _, _ = tree.split(nnx.eval_shape(joint.build))
    step = _step(static, specification.view, specification.dtype, kind)
    weights = jax.device_put(comparator.weights, jax.local_devices()[0])
    for chunk, pixels, sizes in comparator.canvases(images, batch):
        pixels, sizes = (x.reshape(batch // 2, 2, *x.shape[2:]) for x in (pixels, sizes))
        same, seen, maps = jax.device_get(
            step(weights["params"], weights["batch_stats"], pixels, sizes)
        )
        for pair in range(len(chunk) // 2):
            yield float(same[pair]), seen[pair], maps[pair]


@functools.cache
def _step(static: tree.Static, view: View, dtype: str, kind: str) -> Callable:
    """The jitted pass: (params, batch_stats, pixels, sizes of [B, 2, ...]) -> as `_look`, [B, ...]."""

    @jax.jit
    def step(params, batch_stats, pixels, sizes):
        module = tree.merge(static, params, batch_stats)
        images = plain_views(pixels, sizes, view, jnp.dtype(dtype))

        def predict(images, edit=None) -> dict[str, jax.Array]:
            same = module.predict(images, edit)["scores"]
            return {"scores": jnp.stack([same, -same], axis=1)}

        both = jnp.broadcast_to(jnp.arange(2), (len(images), 2))  # "same", "different"
        found = cam.at_tap(predict, images, module.cam_tap, both)
        activations, *gradients = (
            x.astype(jnp.float32) for x in (found.activations, *found.gradients)
        )
        maps = jnp.stack([cam.unit(cam.KINDS[kind](activations, g)) for g in gradients], 1)
        same = jax.nn.sigmoid(found.outputs["scores"][:, 0].astype(jnp.float32))
        return same, pixels_of(images, view), maps.reshape(len(images), 2, *maps.shape[1:])

    return step


def pictures(found: Hard) -> list[tuple]:
    """A pair as pictures for `draw.row`: each image, and its heat of "same" and of "different"."""
    row = []
    notes = f"{100 * found.same:.0f} % same class", f"similarity {found.similarity:.3f}"
    for name, note, seen, maps in zip(found.classes, notes, found.seen, found.maps, strict=True):
        row.append((seen, name, note))
        for what, heat in zip(("same", "different"), maps, strict=True):
            row.append((draw.overlay(seen, heat), f'for "{what}"', name))
    return row
