"""The images whose labels look wrong, as one HTML file that needs no other."""

import hashlib
import json
import os

import jinja2
import numpy as np

from fgvc_jax import files
from fgvc_jax.audit.score import Scores, nearest_of_class
from fgvc_jax.data.doctor.findings import shown
from fgvc_jax.data.patch import DROP
from fgvc_jax.data.thumbnails import thumbnail
from fgvc_jax.photos import Photos

LARGE, SMALL = 224, 108  # longer side of a photo and of those beside it, pixels
NEAREST = 3  # photos of each class


def write(
    path: str | os.PathLike, name: str, photos: Photos, embeddings_ND: np.ndarray, scores: Scores, count: int
) -> None:  # fmt: skip
    """Writes the page, atomically: the first `count` of the ranking, each beside its nearest photos.

    Args:
      name: of the data, for the title.
      embeddings_ND: of the photos.
    """
    rows = [row for row in scores.order[:count].tolist() if np.isfinite(scores.score[row])]
    pictures: dict[str, str] = {}  # each once, however often it is shown

    def picture(row: int, side: int) -> str:
        key = f"{row} {side}"
        if key not in pictures:
            pictures[key] = thumbnail(photos.read(photos.files[row]), side)
        return key

    def side(row: int, label: int, title: str) -> dict:
        others = np.flatnonzero((photos.labels == label) & (np.arange(len(photos.labels)) != row))
        near = nearest_of_class(embeddings_ND[row], embeddings_ND, others, NEAREST)
        return {
            "title": title,
            "name": photos.classes[label],
            "photos": [picture(other, SMALL) for other in near.tolist()],
        }

    cases = []
    for row in rows:
        label, suggestion = int(photos.labels[row]), int(scores.suggestion[row])
        cases.append(
            {
                "shown": shown(photos.files[row]),
                "photo": picture(row, LARGE),
                "label": photos.classes[label],
                "suggestion": photos.classes[suggestion],
                "score": scores.score[row],
                "own": scores.probe[row, label],
                "theirs": scores.probe[row, suggestion],
                "other": scores.other[row],
                "suspect": bool(scores.suspect[row]),
                "sides": [
                    side(row, suggestion, "nearest images of the suggested class"),
                    side(row, label, "nearest images of its own class"),
                ],
            }
        )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fgvc_jax.audit", "."), autoescape=True, trim_blocks=True
    )
    lines = [
        (photos.files[row], case["label"], case["suggestion"])
        for row, case in zip(rows, cases, strict=True)
    ]
    page = environment.get_template("page.html").render(
        name=shown(name),
        cases=cases,
        pictures=pictures,
        lines=lines,
        count=len(photos.files),
        suspects=int(scores.suspect.sum()),
        may_drop=DROP not in photos.classes,
        digest=_digest(photos),
    )
    files.write_text(path, page)


def _digest(photos: Photos) -> str:
    """Choices belong to these images with these labels, whichever run ranked them."""
    content = json.dumps([photos.files, photos.labels.tolist(), photos.classes])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
