"""From archives to a prepared data set: unpacked, checked against the official counts, written by TFDS."""

import contextlib
import importlib
import io
import logging
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image
from tqdm import tqdm

from fgvc_jax import download
from fgvc_jax.data.archives import folders
from fgvc_jax.data.archives import unpack as archives
from fgvc_jax.data.archives.table import Expected, Row, Table, Tree
from fgvc_jax.data.tfds import SETS, read
from fgvc_jax.errors import UserError, choose

log = logging.getLogger(__name__)

VERSION = "1.0.0"


def module(name: str) -> ModuleType:
    """`fgvc_jax.data.tfds.<name>`; UserError for a name that is none of the sets."""
    return importlib.import_module(f"fgvc_jax.data.archives.{choose(name, SETS, 'the data set')}")


def prepare(
    name: str,
    paths: list[Path],
    out: Path,
    *,
    expected: Expected | None = None,
) -> Path:
    """Writes OUT/NAME/1.0.0, array_record, the images' bytes as they came.

    Args:
      name: one of SETS.
      paths: its archives in any order, files such as .mat, or folders with any of these or already
        unpacked; or one copy as train/ and test/ class folders.
      out: where data sets lie.
      expected: the counts to insist on; None = the official ones.

    Returns:
      The folder that was written, or found there.

    Raises:
      UserError: whatever is missing, damaged or not as the official list has it. Nothing is left
        behind then.
    """
    set_ = module(name)
    expected = expected or set_.EXPECTED
    target = out / name / VERSION
    if (target / "dataset_info.json").exists():
        log.info(f"{target} is there already; to make it anew, remove it first.")
        return target
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=out) as temporary:
            roots = _roots(set_, paths, Path(temporary))
            table = _table(name, set_, roots)
            check(name, table, expected)
            _write(name, table, out, temporary)
    except OSError as error:
        raise UserError(f"{name} cannot be prepared in {out}: {error}.") from error
    return target


def check(name: str, table: Table, expected: Expected) -> None:
    """Raises UserError unless classes and counts are the expected ones and every image opens."""
    classes = {level: len(names) for level, names in table.classes.items()}
    wanted = {level: n for level, n in expected.classes.items() if level in classes}
    if classes != wanted:
        raise UserError(
            f"{name}: {_counts(classes)} classes, where there must be {_counts(wanted)}."
        )
    for names in table.classes.values():
        wrong = [class_ for class_, n in Counter(names).items() if n > 1 or not class_]
        if wrong:
            raise UserError(f"{name}: a class name is empty or stands twice: {wrong[0]!r}.")
    repeated = [row for row, n in Counter(row.name for row in table.rows).items() if n > 1]
    if repeated:
        raise UserError(f"{name}: {repeated[0]} is listed twice ({len(repeated):,} such images).")
    if "folds" in table.shapes:
        for fold, codes in enumerate(np.array([row.values["folds"] for row in table.rows]).T, 1):
            counts = np.bincount(codes, minlength=3).tolist()
            found = dict(zip(("train", "val", "test"), counts, strict=True))
            _same_counts(f"{name}, split {fold} of the ten", found, expected.splits)
    else:
        _same_counts(name, Counter(row.split for row in table.rows), expected.splits)
    if table.metadata.get("retrieval") and expected.retrieval:
        labels = np.array([row.values["label"] for row in table.rows])
        first = int((labels < len(table.classes["label"]) // 2).sum())
        halves = (first, len(labels) - first)
        if halves != expected.retrieval:
            raise UserError(
                f"{name}: the two halves of the classes have {halves[0]:,} and {halves[1]:,} images, where "
                f"there must be {expected.retrieval[0]:,} and {expected.retrieval[1]:,}."
            )
    broken = [row for row in table.rows if not _opens(row.path)]
    if broken:
        raise UserError(
            f"{name}: {len(broken):,} files are not images: {', '.join(r.path for r in broken[:10])}. "
            "The archive or the copy is damaged: get it again."
        )


def standing(directory: Path) -> str:
    """'the official list', or what a copy without it can claim."""
    copy = read.own_metadata(directory).get("copy")
    return "the official counts, from class folders" if copy else "the official list"


def _same_counts(where: str, found: dict[str, int], wanted: dict[str, int]) -> None:
    found = dict(found)
    merged = {"train": wanted["train"] + wanted.get("val", 0), "test": wanted["test"]}
    if found in (wanted, merged):  # train + val is a usual copy; it is split again when it is read
        return
    hint = ""
    if found.get("train") == wanted["test"] and found.get("test") == wanted["train"]:
        hint = " Train and test are exchanged."
    raise UserError(
        f"{where}: {_counts(found)} images, where the official list has {_counts(wanted)}.{hint}"
    )


def _counts(counts: dict[str, int]) -> str:
    return " / ".join(f"{n:,} {name}" for name, n in counts.items())


def _opens(path: str) -> bool:
    try:
        with Image.open(path):  # the header only; the pixels are decoded before the first training
            return True
    except Exception:  # Pillow's plugins raise anything on damaged data
        return False


def _roots(set_: ModuleType, paths: list[Path], temporary: Path) -> list[Path]:
    """The folders to look in: those given, and one for what archives and files hold."""
    roots, todo = [], []
    for path in paths:
        if path.is_dir():
            roots.append(path.resolve())
            # Its archives by their official names only: who knows what else lies there.
            inside = [path / file.name for file in set_.DOWNLOADS]
            todo += [p for p in inside if p.is_file() and archives.is_archive(p)]
        elif path.is_file():
            todo.append(path)
        else:
            raise UserError(f"{path} does not exist.")
    official = {file.name: file for file in set_.DOWNLOADS if file.digest}
    for number, path in enumerate(todo):
        if path.name in official:
            true = download.has_digest(path, official[path.name].digest)
            log.info(f"{path.name} is {'' if true else 'not '}the official file, by its checksum")
        target = temporary / str(number)
        if archives.is_archive(path):
            log.info(f"unpacking {path}")
            target.mkdir()
            archives.unpack(path, target)
            roots.append(target)
        else:
            target.mkdir()
            (target / path.name).symlink_to(path.resolve())
            roots.append(target)
    return roots


def _table(name: str, set_: ModuleType, roots: list[Path]) -> Table:
    """By the official lists, or from class folders where those are not there."""
    if hasattr(set_, "BANNER"):
        log.info(
            f"the lowest {set_.BANNER} rows of each image, which are no photo, are cut off when it is read"
        )
    tree = Tree(roots)
    copy = None if tree.has(set_.MARKER) else folders.find(roots)
    if copy is not None:
        log.info(f"no {set_.MARKER}: read as class folders, by count only, without boxes")
        return folders.read(copy, getattr(set_, "BANNER", 0))
    try:
        return set_.read(tree)
    except UserError as error:
        needed = ", ".join(file.name for file in set_.DOWNLOADS)
        raise UserError(
            f"{name}: {error}\n{name} is read from {needed} (together or unpacked), or from a copy with "
            "train/<class>/ and test/<class>/ folders."
        ) from None


def _write(name: str, table: Table, out: Path, temporary: str) -> None:
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(),
        "file_name": tfds.features.Text(),
        **{level: tfds.features.ClassLabel(names=list(c)) for level, c in table.classes.items()},
        **{key: tfds.features.Tensor(shape=s, dtype=np.float32) for key, s in table.shapes.items()},
    }
    if "id" in table.rows[0].values:
        features["id"] = tfds.features.Text()
    bar = tqdm(total=len(table.rows), desc=name, unit=" images", disable=not sys.stderr.isatty())

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(VERSION)

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description=(module(name).__doc__ or "").strip(),
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
                metadata=tfds.core.MetadataDict({"fgvc_jax": table.metadata}),
                disable_shuffling=True,  # the official order stays
            )

        def _split_generators(self, dl_manager):
            names = {"val": "validation", "all": "images"}  # TFDS keeps 'all' for itself
            rows: dict[str, list[Row]] = {}
            for row in table.rows:
                rows.setdefault(names.get(row.split, row.split), []).append(row)
            return {split: self._generate_examples(rows[split]) for split in rows}

        def _generate_examples(self, rows):
            for number, row in enumerate(rows):
                with open(row.path, "rb") as image:
                    yield number, {"image": image, "file_name": row.name, **row.values}
                bar.update()

    Builder.name = name
    tfds.disable_progress_bar()
    with bar, contextlib.redirect_stdout(io.StringIO()):  # TFDS speaks of a download, and of /tmp
        builder = Builder(data_dir=str(out), file_format="array_record")
        builder.download_and_prepare(download_dir=f"{temporary}/downloads")
