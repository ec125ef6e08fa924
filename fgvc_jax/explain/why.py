"""Why one class and not another: the training photos of both that an image is nearest to.

Nearest is the largest cosine of the classifier's embeddings. Where the run has trained a comparator (method
'pairs'), it says of each pair how likely both are of one class.
"""

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from fgvc_jax import methods
from fgvc_jax.errors import UserError
from fgvc_jax.explain.heat import SECOND, Asked, Heat, explain
from fgvc_jax.inference import Classifier, of_phase
from fgvc_jax.model import load_specification, read_done
from fgvc_jax.trained import Found, finished, trained_on


class Neighbour(NamedTuple):
    """The training photo of a class that is nearest to an image.

    Attributes:
      heat: of the photo, for the image's predicted and second class.
      cosine: of the two embeddings.
      same: the comparator's probability that image and photo are of one class; None without a comparator.
    """

    heat: Heat
    cosine: float
    same: float | None


class Gallery:
    """A classifier's training photos by class, embedded when a class is first asked for.

    Raises:
      UserError: where they cannot be had any more, with the reason.
    """

    def __init__(self, classifier: Classifier):
        self.classifier, self.files = classifier, training_files(classifier)
        self.embedded: dict[int, np.ndarray] = {}

    def nearest(self, label: int, embedding: np.ndarray, but: str) -> tuple[str, float] | None:
        """(file, cosine) of the class's nearest photo that is not the file `but`; None without any."""
        files = self.files.get(label, [])
        if not files:
            return None
        if label not in self.embedded:
            self.embedded[label] = unit(self.classifier.embed(files))
        cosines = self.embedded[label] @ unit(embedding)
        itself = [os.path.realpath(file) == os.path.realpath(but) for file in files]
        best = int(np.argmax(np.where(itself, -np.inf, cosines)))
        return None if itself[best] else (files[best], float(cosines[best]))


class Comparator:
    """The comparator of a run: `same(queries, neighbours)`."""

    def __init__(self, found: Found):
        self.model = of_phase(found)

    def same(self, queries: list, neighbours: list) -> np.ndarray:
        """The probability [N] that each pair of images is of one class."""
        pairs = self.model.embed(queries), self.model.embed(neighbours)
        return np.asarray(jax.nn.sigmoid(self.model.same(*pairs)))


def training_files(classifier: Classifier) -> dict[int, list[str]]:
    """The training images of each class, as far as they still lie where they lay; see `Gallery`."""
    manifest, images = trained_on(classifier.phase)
    if manifest["root"] is None:
        raise UserError(f"the images of {manifest['name']} are no files")
    of_name = {name: label for label, name in enumerate(classifier.classes)}
    of_manifest = [of_name.get(name) for name in manifest["classes"]]
    files: dict[int, list[str]] = {}
    for file, label in images.items():
        file = os.path.join(manifest["root"], file)
        if of_manifest[label] is not None and os.path.exists(file):
            files.setdefault(of_manifest[label], []).append(file)
    if not files:
        raise UserError(f"none of the training images is in {manifest['root']} any more")
    return files


def comparator(phase: Path) -> Comparator | None:
    """The comparator that the run of a phase has trained, the last that was finished; None without one."""
    for folder in (path.parent for path in reversed(finished(phase.parent))):
        if not (folder / "model.json").exists() or not read_done(folder):
            continue
        specification = load_specification(folder / "model.json")
        if hasattr(methods.get(specification.method), "same"):
            return Comparator(Found(folder, "best", specification))
    return None


def neighbours(
    gallery: Gallery,
    comparator: Comparator | None,
    heats: Iterable[Heat],
    asked: Asked,
    batch: int = 16,
) -> Iterator[tuple[Heat, list[Neighbour | None]]]:
    """Each image's heat, and the photos of its predicted and of its second class that are nearest to it.

    None stands for a class without photos; [] where the image cannot be read.

    Args:
      heats: of the images, which are files, with the gallery's classifier.
      asked: of the heat maps; covers, scores and evidence are left out.
      batch: images at a time.
    """
    asked, heats = asked._replace(occlude="", steps=0, evidence=False), iter(heats)
    while some := list(itertools.islice(heats, batch)):
        good = [heat for heat in some if not heat.error]
        embeddings = gallery.classifier.embed([heat.image for heat in good]) if good else []
        found, places = [], []  # of all photos in this batch; whose they are and of which class
        for number, (heat, embedding) in enumerate(zip(good, embeddings, strict=True)):
            for which, label in enumerate(heat.classes[: SECOND + 1]):
                if nearest := gallery.nearest(int(label), embedding, heat.image):
                    found.append(nearest)
                    places.append((number, which))
        files = [file for file, _ in found]
        classes = [good[number].classes[: SECOND + 1] for number, _ in places]
        maps = explain(gallery.classifier, files, asked=asked, batch=batch, classes=classes)
        same = [None] * len(found)
        if comparator and found:
            same = comparator.same([good[number].image for number, _ in places], files)
        rows: list[list[Neighbour | None]] = [[None, None] for _ in good]
        for (number, which), of_photo, (_, cosine), p in zip(
            places, maps, found, same, strict=True
        ):
            rows[number][which] = Neighbour(of_photo, cosine, None if p is None else float(p))
        whole = iter(rows)
        for heat in some:
            yield heat, [] if heat.error else next(whole)


def unit(x: np.ndarray) -> np.ndarray:
    """Vectors of length 1 along the last axis, in float64; a zero vector stays 0."""
    length = np.linalg.norm(x.astype(np.float64), axis=-1, keepdims=True)
    return x / np.where(length > 0, length, 1)
