"""Heat maps of a finished run's classifier on images from anywhere."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fgvc_jax.errors import UserError
from fgvc_jax.explain import cam
from fgvc_jax.explain.rollout import rollout
from fgvc_jax.images.batch import plain_views
from fgvc_jax.images.view import View
from fgvc_jax.inference import Classifier, Image
from fgvc_jax.train import tree

PREDICTED, SECOND, TRUE = range(3)
KINDS = (*cam.KINDS, "rollout")


class Heat(NamedTuple):
    """What a model looked at in one image; where it cannot be read, `error` says why and all else is None.

    Attributes:
      seen: uint8 [S, S, 3], the image as the net sees it: resized and cropped.
      probabilities: float32 [C].
      classes: int [3], the predicted, the second and the true class; the last is -1 where it is not known.
      maps: float32 [3, h, w] by kind, from 0 to 1, for each of these classes. Where the true class is not
        known its map is the predicted one's. 'rollout' has one map for all classes, three times.
      box: int [4], first row, first column, last row, last column in `seen` of the part that the maps of
        `cam.KINDS` are of, in a method that looks at a part (MMAL-Net); else None. Other maps are of the
        whole.
    """

    image: Image
    seen: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    classes: np.ndarray | None = None
    maps: dict[str, np.ndarray] | None = None
    box: np.ndarray | None = None
    error: str | None = None

    def box_of(self, kind: str) -> np.ndarray | None:
        """The part of `seen` that the maps of a kind are of; None where they are of the whole."""
        return self.box if kind in cam.KINDS else None


def explain(
    classifier: Classifier,
    images: Iterable[Image],
    truth: Callable[[Image], int] = lambda image: -1,
    kind: str = "gradcam",
    batch: int = 16,
) -> Iterator[Heat]:
    """The heat maps of each image, in order, of every kind in `cam.KINDS`, and of the kind asked for.

    Args:
      truth: the class of an image, -1 where it is not known.
      kind: one of `KINDS`.

    Raises:
      UserError: a model of one class; a kind that its net cannot have.
    """
    if len(classifier.classes) < 2:
        raise UserError(f"{classifier.phase} knows one class; there is nothing to tell apart.")
    batch = -(-batch // jax.device_count()) * jax.device_count()
    specification = classifier.specification
    step = _step(classifier.static, specification.view, specification.dtype, kind)
    for chunk, pixels, sizes in classifier.canvases(images, batch):
        known = np.full(batch, -1, np.int32)
        known[: len(chunk)] = [truth(image) for image, _ in chunk]
        weights = classifier.weights
        found = jax.device_get(
            step(weights["params"], weights["batch_stats"], pixels, sizes, known)
        )
        for i, (image, error) in enumerate(chunk):
            if error:
                yield Heat(image, error=error)
                continue
            yield Heat(
                image,
                found["seen"][i],
                found["probabilities"][i],
                np.append(found["classes"][i][:TRUE], known[i]),
                {name: maps[:, i] for name, maps in found["maps"].items()},
                found["box"][i] if "box" in found else None,
            )


@functools.cache
def _step(static: tree.Static, view: View, dtype: str, kind: str) -> Callable:
    """The jitted pass: (params, batch_stats, pixels, sizes, true classes) -> what `explain` hands out."""

    @jax.jit
    def step(params, batch_stats, pixels, sizes, known):
        module = tree.merge(static, params, batch_stats)
        images = plain_views(pixels, sizes, view, jnp.dtype(dtype))

        def classes(scores):
            _, best = jax.lax.top_k(scores, 2)
            true = jnp.where(known >= 0, known, best[:, PREDICTED])
            return jnp.concatenate([best, true[:, None]], axis=1)

        found = cam.at_tap(module.predict, images, module.backbone.info.cam_tap, classes)
        wide = [x.astype(jnp.float32) for x in (found.activations, *found.gradients)]
        grey = images.astype(jnp.float32) * jnp.array(view.std) + jnp.array(view.mean)
        scores = found.outputs["scores"].astype(jnp.float32)
        result = {
            "seen": jnp.clip(jnp.round(255 * grey), 0, 255).astype(jnp.uint8),
            "probabilities": jax.nn.softmax(scores),
            "classes": classes(scores),
            "maps": {
                name: jnp.stack([cam.unit(function(wide[0], g)) for g in wide[1:]])
                for name, function in cam.KINDS.items()
            },
        }
        if kind == "rollout":
            once = cam.unit(rollout(module.backbone, images).astype(jnp.float32))
            result["maps"][kind] = jnp.broadcast_to(once, (TRUE + 1, *once.shape))
        if "box" in found.outputs:
            result["box"] = found.outputs["box"]
        return result

    return step
