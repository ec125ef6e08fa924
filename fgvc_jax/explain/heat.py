"""Heat maps of a finished run's classifier on images from anywhere, and what can be asked about them."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fgvc_jax.errors import UserError
from fgvc_jax.explain import cam, curves, occlusion
from fgvc_jax.explain.enlarge import enlarge
from fgvc_jax.explain.rollout import rollout
from fgvc_jax.images.batch import plain_views
from fgvc_jax.images.view import View
from fgvc_jax.inference import Classifier, Image
from fgvc_jax.train import tree

PREDICTED, SECOND, TRUE = range(3)
KINDS = (*cam.KINDS, "rollout", "occlusion")


class Asked(NamedTuple):
    """What is to be found out about each image. Hashable.

    Attributes:
      kind: of the heat map, one of `KINDS`.
      cams: those of `cam.KINDS` that are computed; `kind` among them where it is one of these.
      patch, stride: of kind 'occlusion', in pixels. The stride is rounded so that the image is a whole number
        of them. 0 = a quarter of the image's side, an eighth of it.
      occlude: the colour of a cover over the hottest part, of `occlusion.COLOURS`; '' = it is not covered.
      steps: of the deletion and insertion curves; 0 = without them.
      evidence: what the method itself has picked out.
    """

    kind: str = "gradcam"
    cams: tuple[str, ...] = tuple(cam.KINDS)
    patch: int = 0
    stride: int = 0
    occlude: str = ""
    steps: int = 0
    evidence: bool = False


PLAIN = Asked()


class Occluded(NamedTuple):
    """An image with a cover over what the predicted class's heat map says is the hottest part.

    Attributes:
      seen: uint8 [S, S, 3].
      covered: int [4], the first row, first column, last row, last column of the cover; (0, 0, -1, -1) where
        no place is hot.
      map: float32 [h, w], the heat map of the same class now.
      box: as `Heat.box`, now.
      probability: of the same class, now.
    """

    seen: np.ndarray
    covered: np.ndarray
    map: np.ndarray
    box: np.ndarray | None
    probability: np.ndarray


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
      drop: float32 [3, n, n], of kind 'occlusion', what its maps are made of: how far each class's
        probability falls; else None.
      occluded: None unless it was asked for.
      curves: float32 [steps + 1] of the predicted class's probability: 'deletion' and 'insertion' in the
        order of its map, 'random_deletion' and 'random_insertion' in a random map's; else None.
      evidence: of the method by name, see `fgvc_jax.methods.Method.evidence`; {} unless it was asked for.
    """

    image: Image
    seen: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    classes: np.ndarray | None = None
    maps: dict[str, np.ndarray] | None = None
    box: np.ndarray | None = None
    drop: np.ndarray | None = None
    occluded: Occluded | None = None
    curves: dict[str, np.ndarray] | None = None
    evidence: dict[str, np.ndarray] = {}  # noqa: RUF012
    error: str | None = None


def pixels_of(images_BSSC: jax.Array, view: View) -> jax.Array:
    """Normalised images as they are seen: uint8 [B, S, S, 3]."""
    plain = images_BSSC.astype(jnp.float32) * jnp.array(view.std) + jnp.array(view.mean)
    return jnp.clip(jnp.round(255 * plain), 0, 255).astype(jnp.uint8)


def box_of(kind: str, box):
    """The part of the image that maps of a kind are of, where those of `cam.KINDS` are of this box."""
    return box if kind in cam.KINDS else None


def explain(
    classifier: Classifier,
    images: Iterable[Image],
    truth: Callable[[Image], int] = lambda image: -1,
    asked: Asked = PLAIN,
    batch: int = 16,
    classes: Iterable[tuple[int, int]] | None = None,
) -> Iterator[Heat]:
    """The heat maps of each image, in order, and what was asked for.

    Args:
      truth: the class of an image, -1 where it is not known.
      classes: two for each image, in place of the predicted and the second one.

    Raises:
      UserError: a model of one class, or one that only embeds; a kind that its net cannot have; a patch or
        stride beyond the image.
    """
    classifier.check_classes()
    if len(classifier.classes) < 2:
        raise UserError(f"{classifier.phase} knows one class; there is nothing to tell apart.")
    view = classifier.specification.view
    for name, value in (("patch", asked.patch), ("stride", asked.stride)):
        if not 0 <= value <= view.size:
            raise UserError(f"{name} = {value}; it must be 1 to {view.size}, the image's side.")
    classes = None if classes is None else iter(classes)
    # On one device: replicated over several, the loops' programs wait for each other, on a CPU for ever.
    weights = jax.device_put(classifier.weights, jax.local_devices()[0])
    step = _step(classifier.static, view, classifier.specification.dtype, asked)
    temperature = np.float32(classifier.temperature)  # for the probabilities of `predict`
    for chunk, pixels, sizes in classifier.canvases(images, batch):
        known = np.full((batch, TRUE + 1), -1, np.int32)
        known[: len(chunk), TRUE] = [truth(image) for image, _ in chunk]
        if classes is not None:
            known[: len(chunk), :TRUE] = list(itertools.islice(classes, len(chunk)))
        found = jax.device_get(
            step(weights["params"], weights["batch_stats"], pixels, sizes, known, temperature)
        )
        reached = found.pop("reached")[: len(chunk)]
        if asked.kind in cam.KINDS and not reached.any():
            raise UserError(
                f"{classifier.phase}: the scores of method {classifier.specification.method!r} do not depend "
                "on the map at its cam_tap (see fgvc_jax/methods/_base.py), so no heat can be drawn."
            )
        for i, (image, error) in enumerate(chunk):
            if error:
                yield Heat(image, error=error)
                continue
            one = jax.tree.map(lambda x, i=i: x[i], found)
            one["classes"] = np.append(one["classes"][:TRUE], known[i, TRUE])
            yield Heat(image, **one)


@functools.cache
def _step(static: tree.Static, view: View, dtype: str, asked: Asked) -> Callable:
    """The jitted pass: (params, batch_stats, pixels, sizes, classes [B, 3], temperature) -> `Heat`'s arrays.

    Of the predicted, the second and the true class those count that are not -1.
    """
    size, kind = view.size, asked.kind
    patch = asked.patch or max(1, size // 4)
    cells = max(1, round(size / (asked.stride or max(1, size // 8))))
    mean = occlusion.colour("mean", view.mean, view.std)

    @jax.jit
    def step(params, batch_stats, pixels, sizes, known, temperature):
        module = tree.merge(static, params, batch_stats)
        images = plain_views(pixels, sizes, view, jnp.dtype(dtype))

        def probabilities(classes, images) -> jax.Array:
            scores = module.predict(images)["scores"].astype(jnp.float32)
            every = jax.nn.softmax(scores / temperature)
            return jnp.take_along_axis(every, classes, 1)

        def look(images, wanted) -> dict:
            """What `Heat` holds of some images, for the wanted classes."""
            found = cam.at_tap(module.predict, images, module.cam_tap, wanted)
            wide = [x.astype(jnp.float32) for x in (found.activations, *found.gradients)]
            scores = found.outputs["scores"].astype(jnp.float32)
            classes = wanted(scores) if callable(wanted) else wanted
            result = {
                "seen": pixels_of(images, view),
                "probabilities": jax.nn.softmax(scores / temperature),
                "classes": classes,
                "reached": jnp.any(found.gradients != 0, axis=(0, 2, 3, 4)),
                "maps": {
                    name: jnp.stack([cam.unit(cam.KINDS[name](wide[0], g)) for g in wide[1:]], 1)
                    for name in asked.cams
                },
                "box": found.outputs.get("box"),
            }
            if kind == "rollout":
                once = cam.unit(rollout(module.backbone, images).astype(jnp.float32))[:, None]
                result["maps"][kind] = jnp.repeat(once, classes.shape[1], 1)
            if kind == "occlusion":
                of_classes = functools.partial(probabilities, classes)
                result["drop"] = occlusion.drops(of_classes, images, patch, cells, mean)
                result["maps"][kind] = cam.unit(jax.nn.relu(result["drop"]))
            return result

        def best(scores) -> jax.Array:
            _, first = jax.lax.top_k(scores, 2)
            first = jnp.concatenate([first, first[:, :1]], axis=1)  # the true one, if unknown
            return jnp.where(known >= 0, known, first)

        result = look(images, best)
        heat, box = result["maps"][kind][:, PREDICTED], box_of(kind, result["box"])
        predicted = result["classes"][:, :1]
        if asked.occlude:
            covered = occlusion.hottest_box(enlarge(heat, size, box))
            filling = occlusion.colour(asked.occlude, view.mean, view.std)
            now = look(occlusion.cover(images, covered, filling), predicted)
            result["occluded"] = Occluded(
                now["seen"],
                covered,
                now["maps"][kind][:, 0],
                now["box"],
                jnp.take_along_axis(now["probabilities"], predicted, 1)[:, 0],
            )
        if asked.steps:
            random = jnp.broadcast_to(curves.random_heat(*heat.shape[1:]), heat.shape)
            orders = {"": enlarge(heat, size, box), "random_": enlarge(random, size)}
            of_predicted = functools.partial(probabilities, predicted)
            result["curves"] = {
                name + what: found[..., 0]
                for name, order in orders.items()
                for what, found in curves.both(
                    of_predicted, images, order, mean, asked.steps
                ).items()
            }
        if asked.evidence:
            result["evidence"] = module.evidence(images)
        return result

    return step
