"""FGVC-Aircraft, 100 variants in 70 families of 30 manufacturers (Maji et al. 2013, arXiv:1306.5151)."""

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

MARKER = "images_variant_train.txt"
EXPECTED = Expected(
    {"label": 100, "family": 70, "manufacturer": 30}, {"train": 3334, "val": 3333, "test": 3333}
)
DOWNLOADS = (
    Download(
        "fgvc-aircraft-2013b.tar.gz",
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
        0,
        "md5:d4acdd33327262359767eeaa97a4f732",
    ),
)
# The lowest 20 rows of every image name its author: text that gives photographers away, no photo.
BANNER = 20
LEVELS = (  # feature, singular and plural in the names of the lists
    ("label", "variant", "variants"),
    ("family", "family", "families"),
    ("manufacturer", "manufacturer", "manufacturers"),
)


def read(tree: Tree) -> Table:
    """fgvc-aircraft-2013b/data as published: 'label' is the variant; 'family' and 'manufacturer' beside it.

    The images are stored as they came, with the banner; it is cut off when they are read, because
    cutting a JPEG here would either re-encode it or make it several times larger.
    """
    classes = {}
    for level, _, plural in LEVELS:
        names = tree.find(f"{plural}.txt").read_text(encoding="utf-8").splitlines()
        classes[level] = tuple(name.strip() for name in names if name.strip())
    boxes = lines(tree.find("images_box.txt"))
    rows = []
    for split in EXPECTED.splits:
        names = [f"images_{word}_{split}.txt" for _, word, _ in LEVELS]
        lists = {name: lines(tree.find(name)) for name in names}
        same_keys(lists)
        ids = list(lists[names[0]])
        paths = tree.images([f"images/{id_}.jpg" for id_ in ids], names[0])
        for id_, path in zip(ids, paths, strict=True):
            if id_ not in boxes:
                raise UserError(f"images_box.txt has no line for image {id_}.")
            values = {"id": id_, "bbox": numbers(boxes[id_], 4, f"images_box.txt, image {id_}")}
            for name, (level, _, plural) in zip(names, LEVELS, strict=True):
                class_ = lists[name][id_]
                if class_ not in classes[level]:
                    raise UserError(
                        f"{name}, image {id_}: class {class_!r} is not in {plural}.txt."
                    )
                values[level] = classes[level].index(class_)
            rows.append(Row(split, f"{id_}.jpg", path, values))
    return Table(classes, rows, {"bbox": (4,)}, {"banner": BANNER})
