"""Lists in the JSON of iNaturalist's challenges, which is COCO's."""

import functools
import json
import logging
import os
from collections import Counter
from pathlib import Path

from fgvc_jax.data.manifest import Fault, Manifest
from fgvc_jax.data.sources.files import present
from fgvc_jax.data.sources.images import read_in
from fgvc_jax.data.sources.names import few, split_of
from fgvc_jax.data.sources.rows import as_splits
from fgvc_jax.errors import UserError

log = logging.getLogger(__name__)

LAYOUT = """\
  ROOT/train2018.json, ROOT/val2018.json, ...   each with 'images' (id, file_name), 'categories' (id,
                                                name) and 'annotations' (image_id, category_id)
  ROOT/train_val2018/...                        as the file_names say
or the JSON files themselves, separated by commas: --config.data.root=a/train.json,a/val.json"""


def inaturalist(
    root: str | os.PathLike,
    *,
    images: str | os.PathLike = "",
) -> Manifest:
    """JSON lists such as train2018.json and val2018.json; the file's name tells the split.

    The categories that have a training image, in the order of their ids, are the class table; where
    two have the same name it is 'supercategory/name'. Images without an annotation are `unlabelled`.

    Args:
      root: the folder of the lists, or the lists themselves, separated by commas.
      images: the folder that file_names are relative to; '' = that of the first list.

    Raises:
      UserError: for a list that is missing or not of this form, two of one split, an image that is
        missing or has annotations of several categories. Categories that train lacks become `faults`.
    """
    lists = _lists(str(root))
    base = Path(images).expanduser() if images else lists["train"].parent
    names: dict[int, tuple[str, str]] = {}  # of a category: name, supercategory
    rows: list[tuple[str, int, str]] = []
    unlabelled: list[str] = []
    for split, path in lists.items():
        content = _content(path)
        try:
            for c in content.get("categories", ()):
                name = (c["name"], c.get("supercategory", ""))
                if names.setdefault(c["id"], name) != name:
                    raise UserError(
                        f"{path}: category {c['id']} has another name than in the list before."
                    )
            file_of = {image["id"]: image["file_name"] for image in content["images"]}
            category_of: dict[int, int] = {}
            for a in content.get("annotations", ()):
                image, category = a["image_id"], a["category_id"]
                if image not in file_of:
                    raise UserError(
                        f"{path}: an annotation names image {image}, which is not there."
                    )
                if category_of.setdefault(image, category) != category:
                    raise UserError(
                        f"{path}: image {image} ({file_of[image]}) has annotations of several categories, "
                        f"{category_of[image]} and {category}; classification needs one."
                    )
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is no such list: {error!r}. Expected:\n{LAYOUT}") from None
        present(base, file_of.values(), str(path))
        rows += [(file_of[i], c, split) for i, c in category_of.items()]
        bare = [file for i, file in file_of.items() if i not in category_of]
        if bare:
            log.info(f"{path.name}: {len(bare):,} images without labels are left out")
        unlabelled += bare
    table = sorted({category for _, category, split in rows if split == "train"})
    unknown = sorted({category for _, category, _ in rows} - set(table))
    table = sorted({*table, *unknown})
    bare = [str(category) for category in table if category not in names]
    if bare:
        raise UserError(f"{lists['train']}: no name among 'categories' for {few(bare)}.")
    times = Counter(names[category][0] for category in table)
    classes = tuple(
        "/".join(reversed(names[c])) if times[names[c][0]] > 1 else names[c][0] for c in table
    )
    called = dict(zip(table, classes, strict=True))
    fault = Fault(
        "unknown_class",
        f"{base}: categories {few(list(map(str, unknown)))} have images in another split but none in "
        "train, which gives the class table",
        "Add training images, or leave them out.",
        classes=tuple(called[category] for category in unknown),
    )
    return Manifest(
        base.resolve().name,
        classes,
        as_splits(rows, {category: label for label, category in enumerate(table)}),
        functools.partial(read_in, str(base)),
        str(base),
        ids=tuple(map(str, table)),
        unlabelled=tuple(unlabelled),
        faults=(fault,) if unknown else (),
    )


def _lists(root: str) -> dict[str, Path]:
    """Split -> its list."""
    if Path(root).expanduser().is_dir():
        found = [p for p in sorted(Path(root).expanduser().glob("*.json")) if _split(p)]
    else:
        found = [Path(part.strip()).expanduser() for part in root.split(",")]
    lists: dict[str, Path] = {}
    for path in found:
        split = _split(path)
        if not path.is_file() or split is None:
            what = "does not exist" if split else "does not say train, val or test in its name"
            raise UserError(f"List {path} {what}. Expected:\n{LAYOUT}")
        if split in lists:
            raise UserError(
                f"{lists[split]} and {path}: which is the {split} split? "
                "Name the lists: --config.data.root=a/train.json,a/val.json"
            )
        lists[split] = path
    if "train" not in lists:
        raise UserError(f"No train list in {root}. Expected:\n{LAYOUT}")
    return lists


def _split(path: Path) -> str | None:
    """'train_mini', 'val2018', 'public_test' -> 'train', 'val', 'test'."""
    words = path.stem.replace("-", "_").split("_")
    splits = {split_of(word.rstrip("0123456789")) for word in words} - {None}
    return splits.pop() if len(splits) == 1 else None


def _content(path: Path) -> dict:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}.") from None
