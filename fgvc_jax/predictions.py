"""What a classifier says of each image: its first classes, whether to trust them, what it resembles.

`predictions(fgvc_jax.load(RUN), images)` is what `fgvc predict` writes, for any number of images.
"""

import itertools
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from fgvc_jax.errors import UserError
from fgvc_jax.inference import Classifier, Image
from fgvc_jax.metrics.calibration import Threshold, threshold
from fgvc_jax.ops.knn import prepare

PRECISION = 0.95  # wanted of the accepted answers, where the user names none


class Prediction(NamedTuple):
    """Of one image. Where `error` is not None all else is empty.

    Attributes:
      image: as it was given.
      labels: the most probable classes, positions in `Classifier.classes`, most probable first.
      probabilities: of these.
      margin: of the first over the second class.
      accepted: whether the first class is to be trusted, see `accept_from`; None without a calibration.
      nearest: the training image whose embedding is nearest, its path where it still lies there, '' where no
        embeddings were kept; and the label that it has, -1 then.
      distance: 1 - cosine of the two embeddings.
      unlike: whether the image lies further from the training images than almost all validation images;
        None without a calibration.
      error: why the image could not be read.
    """

    image: Image
    labels: tuple[int, ...] = ()
    probabilities: tuple[float, ...] = ()
    margin: float | None = None
    accepted: bool | None = None
    nearest: str = ""
    nearest_label: int = -1
    distance: float | None = None
    unlike: bool | None = None
    error: str | None = None


def predictions(
    classifier: Classifier,
    images: Iterable[Image],
    *,
    topk: int = 5,
    precision: float = PRECISION,
    tta: str = "",
    rerank: bool = False,
    batch: int = 64,
) -> Iterator[Prediction]:
    """One prediction for each image, in order; see `Classifier.stream` for `images` and the last three.

    Args:
      topk: classes of each image.
      precision: share of the accepted answers that should be right, above 0 and at most 1.

    Raises:
      UserError: a value outside its range; no comparator to re-rank with.
    """
    if topk < 1:
        raise UserError(f"topk = {topk}; it must be at least 1.")
    accept = accept_from(classifier, precision, rerank=rerank)
    search = Search(classifier) if classifier.support is not None else None
    answers = classifier.stream(images, batch, tta=tta, rerank=rerank)
    while some := list(itertools.islice(answers, batch)):
        good = [a for a in some if a.error is None]
        near = iter(search(np.stack([a.embedding for a in good])) if search and good else ())
        for answer in some:
            if answer.error is not None:
                yield Prediction(answer.image, error=answer.error)
            else:
                found = next(near) if search else {}
                yield _of(answer.image, answer.probabilities, topk, accept, found)


def accept_from(
    classifier: Classifier, precision: float, *, rerank: bool = False
) -> Threshold | None:
    """The probability from which answers are accepted, chosen on validation; None without a calibration.

    Raises:
      UserError: a precision outside (0, 1].
    """
    if not 0 < precision <= 1:
        raise UserError(f"precision = {precision}; it must be above 0 and at most 1 (0.95 = 95 %).")
    found = classifier.calibration.get("reranked" if rerank else "confidence")
    if found is None:
        return None
    found = found if rerank else classifier.calibration
    return threshold(found["confidence"], found["right"], precision)


class Search:
    """The training images that embeddings are nearest to, by cosine."""

    def __init__(self, classifier: Classifier):
        import faiss

        self.support, self.root = classifier.support, classifier.images_root
        found = classifier.calibration.get("distance", {"neighbour": 1, "value": None})
        self.neighbour, self.far = found["neighbour"], found["value"]
        self.index = faiss.IndexFlatIP(self.support.embedding.shape[1])
        self.index.add(prepare(self.support.embedding, "cosine", "gallery"))

    def __call__(self, embeddings: np.ndarray) -> list[dict[str, Any]]:
        """The fields of `Prediction` for embeddings float32 [N, D]."""
        cosines, index = self.index.search(prepare(embeddings, "cosine", "query"), self.neighbour)
        rows = []
        for near, i in zip(cosines, index[:, 0], strict=True):
            name = str(self.support.file[i])
            path = os.path.join(self.root, name)
            rows.append(
                {
                    "nearest": path if self.root and os.path.exists(path) else name,
                    "nearest_label": int(self.support.label[i]),
                    "distance": float(1 - near[0]),
                    "unlike": None if self.far is None else bool(1 - near[-1] > self.far),
                }
            )
        return rows


def _of(
    image: Image, row: np.ndarray, topk: int, accept: Threshold | None, near: dict[str, Any]
) -> Prediction:
    order = np.argsort(-row, kind="stable")
    first = float(row[order[0]])
    return Prediction(
        image,
        tuple(map(int, order[:topk])),
        tuple(map(float, row[order[:topk]])),
        first - float(row[order[1]]) if len(order) > 1 else None,
        None if accept is None else accept.value is not None and first >= accept.value,
        **near,
    )
