"""DTD, 47 describable textures with ten official splits (Cimpoi et al., CVPR 2014)."""

from fgvc_jax.data.archives.table import Download, Expected, Row, Table, Tree
from fgvc_jax.errors import UserError

MARKER = "labels/train1.txt"
EXPECTED = Expected({"label": 47}, {"train": 1880, "val": 1880, "test": 1880})
DOWNLOADS = (
    Download(
        "dtd-r1.0.1.tar.gz",
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
        625239812,
        "sha256:e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205",
    ),
)
SPLITS = ("train", "val", "test")


def read(tree: Tree) -> Table:
    """dtd/images and dtd/labels as published.

    Every image belongs to all ten splits, so it is stored once, with 'folds': for each of the ten
    0 (train), 1 (val) or 2 (test).
    """
    folds: dict[str, list[int]] = {}
    for fold in range(1, 11):
        for code, split in enumerate(SPLITS):
            list_ = tree.find(f"labels/{split}{fold}.txt")
            for file in list_.read_text(encoding="utf-8").split():
                of = folds.setdefault(file, [])
                if len(of) != fold - 1:
                    raise UserError(f"{list_.name}: {file} " + _wrong(of, fold))
                of.append(code)
    for file, of in folds.items():
        if len(of) != 10:
            raise UserError(f"{file} {_wrong(of, len(of) + 1)}")
    files = sorted(folds)
    classes = sorted({file.partition("/")[0] for file in files})
    rows = []
    for file, path in zip(files, tree.images(files, "labels/"), strict=True):
        label = classes.index(file.partition("/")[0])
        rows.append(Row("all", file, path, {"label": label, "folds": folds[file]}))
    names = tuple(name.replace("_", " ") for name in classes)
    return Table({"label": names}, rows, {"folds": (10,)}, {"ids": classes})


def _wrong(of: list[int], fold: int) -> str:
    if len(of) == fold:
        return f"stands twice in split {fold} of the ten."
    return f"is missing from split {len(of) + 1} of the ten. The lists are damaged: get them again."
