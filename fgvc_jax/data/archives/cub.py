"""CUB-200-2011, 200 bird species (Wah et al. 2011, Caltech technical report CNS-TR-2011-001)."""

from pathlib import PurePosixPath

import numpy as np

from fgvc_jax.data.archives.table import (
    Download,
    Expected,
    Row,
    Table,
    Tree,
    lines,
    numbers,
    same_keys,
)
from fgvc_jax.errors import UserError

MARKER = "train_test_split.txt"
EXPECTED = Expected({"label": 200}, {"train": 5994, "test": 5794}, retrieval=(5864, 5924))
DOWNLOADS = (
    Download(
        "CUB_200_2011.tgz",
        "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz?download=1",
        1150585339,
        "sha256:0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
    ),
)


def read(tree: Tree) -> Table:
    """CUB_200_2011/ as published: boxes, 15 parts; class '001.Black_footed_Albatross' has id '1'."""
    names = lines(tree.find("classes.txt"))
    classes = tuple(name.partition(".")[2].replace("_", " ") for name in names.values())
    rows, part_names = bird_rows(tree, {id_: i for i, id_ in enumerate(names)})
    return Table(
        {"label": classes},
        rows,
        {"bbox": (4,), "parts": (len(part_names), 3)},
        {"ids": list(names), "parts": part_names, "retrieval": True},
    )


def bird_rows(tree: Tree, labels: dict[str, int]) -> tuple[list[Row], list[str]]:
    """The rows of the text lists that CUB and NABirds share, and the names of the parts.

    Args:
      tree: has images.txt, image_class_labels.txt, train_test_split.txt, bounding_boxes.txt and
        parts/: a line begins with the image's id. Boxes are x, y, width, height there.
      labels: class id -> label.
    """
    lists = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt")
    tables = [lines(tree.find(name)) for name in lists]
    same_keys(dict(zip(lists, tables, strict=True)))
    files, class_of, is_train, boxes = tables
    part_names = lines(tree.find("parts/parts.txt"))
    parts = _parts(tree, files, list(part_names))
    # The last two components of a path: copies unpack to folders of many names.
    tails = ["/".join(PurePosixPath(file).parts[-2:]) for file in files.values()]
    rows = []
    for (id_, name), path in zip(files.items(), tree.images(tails, "images.txt"), strict=True):
        if class_of[id_] not in labels:
            raise UserError(
                f"image_class_labels.txt, image {id_} ({name}): class {class_of[id_]!r} is not in "
                f"classes.txt, which has {len(labels)}."
            )
        if is_train[id_] not in ("0", "1"):
            raise UserError(
                f"train_test_split.txt, image {id_} ({name}): {is_train[id_]!r} is neither 1 "
                "(train) nor 0 (test)."
            )
        x, y, width, height = numbers(boxes[id_], 4, f"bounding_boxes.txt, image {id_}")
        values = {
            "id": id_,
            "label": labels[class_of[id_]],
            "bbox": (x, y, x + width, y + height),
            "parts": parts[id_],
        }
        rows.append(Row("train" if is_train[id_] == "1" else "test", name, path, values))
    return rows, list(part_names.values())


def _parts(tree: Tree, images: dict[str, str], parts: list[str]) -> dict[str, np.ndarray]:
    """parts/part_locs.txt ('image part x y visible') -> image id -> float32 [parts, 3]."""
    index = {id_: i for i, id_ in enumerate(parts)}
    found = {id_: np.zeros((len(parts), 3), np.float32) for id_ in images}
    with open(tree.find("parts/part_locs.txt"), encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            image, part, *place = [*line.split(maxsplit=2), "", ""][:3]
            if image not in found or part not in index:
                raise UserError(
                    f"part_locs.txt, line {number}: image {image!r} or part {part!r} is unknown."
                )
            found[image][index[part]] = numbers(*place, 3, f"part_locs.txt, line {number}")
    return found
