"""What needs the run's model: embeddings, heat maps, nearest training photos, the comparator. All bounded."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fgvc_jax.errors import UserError
from fgvc_jax.explain import draw, heat, why
from fgvc_jax.inference import Classifier, load
from fgvc_jax.pages.finished import Finished, Subject
from fgvc_jax.pages.pictures import Pictures

POINTS = 1_000  # of the embedding's picture
PHOTOS = 25  # training photos of a class that an image is compared with
TRAINING = 1_000  # of all classes together
BATCH = 32
SEED = 0


class Nearest(NamedTuple):
    """The training photo of a class that is nearest to an image."""

    file: str
    cosine: float


def model(run: Finished, subject: Subject) -> Classifier:
    return load(run.where(subject.part), subject.name, subject.which)


def sample(count: int, most: int) -> np.ndarray:
    """Rows, sorted: all of them, or so many at random, the same in every call."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(SEED).choice(count, most, replace=False))


def embed(classifier: Classifier, pictures: Pictures, files: Sequence[str]) -> np.ndarray:
    """float32 [N, D]; UserError for an image that cannot be read."""
    images = []
    for file in files:
        pixels = pictures.pixels(file)
        if pixels is None:
            raise UserError(pictures.missing[file])
        images.append(pixels)
    return classifier.embed(images, BATCH)


def project(embedding_ND: np.ndarray) -> tuple[np.ndarray, str]:
    """(float64 [N, 2], how it was made): t-SNE of the directions, of less than 30 points principal axes."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    directions = why.unit(embedding_ND)
    most = min(50, *directions.shape)
    reduced = PCA(most, random_state=SEED).fit_transform(directions)
    if len(reduced) < 30:
        return np.pad(reduced, ((0, 0), (0, 2)))[:, :2], "principal axes"
    perplexity = min(30, (len(reduced) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=SEED, max_iter=500)
    with threadpool_limits(
        1
    ):  # its threads wait for each other: where others work too, 6 times slower
        places = tsne.fit_transform(reduced).astype(np.float64)
    return places, f"t-SNE, perplexity {perplexity:.0f}"


def heats(
    classifier: Classifier, images: Sequence[np.ndarray], answered: np.ndarray, true: np.ndarray
) -> list[tuple[np.ndarray, ...]]:
    """(as the net sees it, heat of the answered class, of the true class) of each image, uint8 [S, S, 3].

    Only the first where the net's map is a single cell, which says nothing of places.
    """
    wanted = [(int(a), int(t)) for a, t in zip(answered, true, strict=True)]
    drawn = []
    for found in heat.explain(classifier, images, batch=min(8, len(images)), classes=wanted):
        box = heat.box_of("gradcam", found.box)
        maps = [m for m in found.maps["gradcam"][:2] if m.size > 1]
        maps = [draw.placed(m, box, len(found.seen)) for m in maps]
        drawn.append((found.seen, *(draw.overlay(found.seen, m) for m in maps)))
    return drawn


def nearest(
    run: Finished,
    part: str,
    classifier: Classifier,
    pictures: Pictures,
    images: np.ndarray,
    wanted: Sequence[Sequence[int]],
) -> list[list[Nearest | None]]:
    """For each image the nearest training photo of each wanted class, by cosine.

    Of a class at most `PHOTOS` are compared, fewer where many classes are asked for.

    Args:
      images: embeddings [N, D].
      wanted: classes of each image.
    """
    train = run.split("train", part)
    asked = sorted({c for classes in wanted for c in classes})
    each = max(1, min(PHOTOS, TRAINING // max(1, len(asked))))
    rows = {c: np.flatnonzero(train.labels == c) for c in asked}
    rows = {c: r[sample(len(r), each)] for c, r in rows.items()}
    files = [train.files[row] for c in asked for row in rows[c]]
    owners = np.array([c for c in asked for _ in rows[c]], int)
    if not files:
        return [[None] * len(classes) for classes in wanted]
    gallery = why.unit(embed(classifier, pictures, files))
    result = []
    for vector, classes in zip(why.unit(images), wanted, strict=True):
        cosines, found = gallery @ vector, []
        for c in classes:
            of_class = np.flatnonzero(owners == c)
            best = of_class[cosines[of_class].argmax()] if len(of_class) else None
            found.append(None if best is None else Nearest(files[best], float(cosines[best])))
        result.append(found)
    return result


def same_class(
    run: Finished, subject: Subject, pictures: Pictures, pairs: Sequence[tuple[str, str]]
) -> np.ndarray | None:
    """The comparator's probability [N] that both are of one class; None without it or an image."""
    comparator = why.comparator(run.where(subject.part, subject.name))
    images = [[pictures.pixels(file) for file in side] for side in zip(*pairs, strict=True)]
    if comparator is None or any(p is None for side in images for p in side):
        return None
    return comparator.same(*images)
