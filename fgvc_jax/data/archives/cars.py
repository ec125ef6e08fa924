"""Stanford Cars, 196 models (Krause et al., 3dRR 2013)."""

from pathlib import Path, PurePosixPath

from fgvc_jax.data.archives.table import Download, Expected, Row, Table, Tree, label, mat
from fgvc_jax.errors import UserError

MARKER = "cars_meta.mat"
EXPECTED = Expected({"label": 196}, {"train": 8144, "test": 8041}, retrieval=(8054, 8131))
DOWNLOADS = (
    Download(
        "cars_train.tgz",
        "",
        979269282,
        "sha256:512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288",
    ),
    Download(
        "cars_test.tgz",
        "",
        977350468,
        "sha256:bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243",
    ),
    Download(
        "car_devkit.tgz",
        "",
        330960,
        "sha256:b97deb463af7d58b6bfaa18b2a4de9829f0f79e8ce663dfa9261bf7810e9accd",
    ),
    Download(
        "cars_test_annos_withlabels.mat",
        "",
        185758,
        "sha256:790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05",
    ),
)
GET = (
    "The authors' address has been dead since 2023. Look for copies of these files (Kaggle and others have "
    "them); their checksums are known, so a true copy is recognised."
)


def read(tree: Tree) -> Table:
    """cars_train/, cars_test/, devkit/ and the labels of the test set; or car_ims/ with cars_annos.mat.

    Both are the same 16,185 images under other names; the names of one do not fit the list of the
    other, so `cars_annos.mat` is read only where car_ims/ lies beside it.
    """
    if tree.has("cars_annos.mat") and tree.has("car_ims/000001.jpg"):
        annos = tree.find("cars_annos.mat")
        (names,) = mat(annos, "class_names")
        rows = _rows(tree, annos, None, len(names))
    else:
        (names,) = mat(tree.find("cars_meta.mat"), "class_names")
        rows = _rows(tree, tree.find("cars_train_annos.mat"), "train", len(names))
        rows += _rows(tree, tree.find("cars_test_annos_withlabels.mat"), "test", len(names))
    ids = [str(i + 1) for i in range(len(names))]
    return Table(
        {"label": tuple(map(str, names))}, rows, {"bbox": (4,)}, {"ids": ids, "retrieval": True}
    )


def _rows(tree: Tree, annos: Path, split: str | None, classes: int) -> list[Row]:
    """The rows of one list; a split of None is in the list itself."""
    (entries,) = mat(annos, "annotations")
    fields = entries.dtype.names or ()
    name_field = "fname" if split else "relative_im_path"
    for field in (name_field, "class", "bbox_x1", *(() if split else ("test",))):
        if field not in fields:
            raise UserError(
                f"{annos.name} has no field {field!r}; it has: {', '.join(fields)}. The labels of the test "
                "images are in cars_test_annos_withlabels.mat, not in the devkit's cars_test_annos.mat."
            )
    folder = f"cars_{split}/" if split else "car_ims/"
    tails = [folder + PurePosixPath(str(name)).name for name in entries[name_field]]
    rows = []
    for entry, tail, path in zip(entries, tails, tree.images(tails, annos.name), strict=True):
        box = tuple(float(entry[f"bbox_{corner}"]) for corner in ("x1", "y1", "x2", "y2"))
        values = {
            "id": PurePosixPath(tail).stem,
            "label": label(entry["class"], classes, f"{annos.name}, {tail}"),
            "bbox": box,
        }
        rows.append(Row(split or ("test" if entry["test"] else "train"), tail, path, values))
    return rows
