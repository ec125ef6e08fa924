"""Prepared TFDS data sets as manifests: array_record files by random access, without TensorFlow."""

import functools
import hashlib
import io
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from fgvc_jax.data.manifest import Manifest, Split
from fgvc_jax.data.sources import decode
from fgvc_jax.data.sources.names import split_of
from fgvc_jax.data.split import halves
from fgvc_jax.errors import UserError, choose
from fgvc_jax.files import atomic

log = logging.getLogger(__name__)

NAMES = ("file_name", "filename", "image/filename")  # features that may name an image
FORMAT = 2  # of the index
FOLDS = ("train", "val", "test")  # the codes of the feature 'folds'


class Index(NamedTuple):
    """All that is known of the images before any is decoded, in the order of splits and records."""

    files: np.ndarray  # str [N], unique
    labels: np.ndarray  # int64 [N]
    folds: np.ndarray  # uint8 [N, F]; F = 0 where the set has none
    sizes: np.ndarray  # int32 [N, 2], height and width as the headers say; 0 where they say nothing


def prepared(
    root: str | os.PathLike,
    *,
    cache: Path,
    splits: str = "official",
    fold: int = 1,
    label: str = "",
    image: str = "",
    val_fraction: float = 0.1,
    seed: int = 0,
) -> Manifest:
    """A TFDS data set that `fgvc prepare`, or anybody with TensorFlow, has written.

    Args:
      root: its folder: the one with dataset_info.json, or one or two above; 'tfds:NAME' is looked for
        in $TFDS_DATA_DIR or ~/tensorflow_datasets.
      cache: folder for the index, which is made by reading every record once.
      splits: 'official', or 'retrieval': the first half of the classes in train, the second in test, as
        metric learning has it for CUB and Cars; validation is then `val_fraction` of the first half's
        classes, held out whole.
      fold: which of the official splits, from 1, where a set has several (DTD has ten).
      label, image: features to use where there are several; '' = those called 'label' and 'image', or
        the only ones.
      seed: of the held-out validation classes.

    Returns:
      A manifest with the splits as they are stored (no validation split where the set has none). Its
      files are the official names where the set has unique ones, else 'train/000000' and so on.

    Raises:
      UserError: no prepared set there; a file format that only TensorFlow reads; a feature, fold or
        choice of splits that the set does not have.
    """
    directory = _directory(root)
    import tensorflow_datasets as tfds

    info = tfds.builder_from_directory(directory).info
    name, features, kinds = info.name, dict(info.features), tfds.features
    image = _feature(features, kinds.Image, image, "image", directory)
    label = _feature(features, kinds.ClassLabel, label, "label", directory)
    stored = _stored(directory)
    own = own_metadata(directory)
    stamp = _stamp(directory, image)
    path = cache / f"{name}-index{FORMAT}-{stamp}.npz"
    if not path.exists():
        log.info(f"reading {sum(map(len, stored.values())):,} records once, for {path}")
        classes = [key for key, kind in features.items() if isinstance(kind, kinds.ClassLabel)]
        named = [key for key in NAMES if isinstance(features.get(key), kinds.Text)]
        _save(_scan(stored, image, classes, named, "folds" if own else ""), path)
    index = _load(path, label)
    labels = index.labels.astype(np.int32)
    names = tuple(features[label].names)
    parts, unlabelled = _parts(name, stored, labels)
    if index.folds.size or fold != 1:
        parts = _fold(name, index.folds, fold)
    if choose(splits, ("official", "retrieval"), "config.data.splits") == "retrieval":
        if label != "label" or not own.get("retrieval"):
            raise UserError(
                f"config.data.splits = 'retrieval': {name} has no such split; "
                "the official order of its classes makes one for cub and cars only."
            )
        parts = halves(labels, len(names), val_fraction, seed)
    files = index.files.tolist()
    return Manifest(
        name,
        names,
        {k: Split(tuple(files[i] for i in at), labels[at]) for k, at in parts.items()},
        functools.partial(
            _read,
            str(directory),
            list(stored.values()),
            np.cumsum([0, *map(len, stored.values())]),
            {file: i for i, file in enumerate(files)},
            image,
            own.get("banner", 0),
        ),
        ids=tuple(own.get("ids", ())) if label == "label" else (),
        unlabelled=tuple(files[i] for i in unlabelled),
        stamp=stamp,
        size_of=dict(zip(files, index.sizes.tolist(), strict=True)).__getitem__,
        official=bool(own) and splits == "official",
    )


def _read(directory, sources, starts, index, image, banner, file: str) -> np.ndarray:
    record = index[file]
    source = int(np.searchsorted(starts, record, side="right")) - 1
    pixels = decode(sources[source][record - starts[source]][image], f"{directory}: {file}")
    return pixels[: len(pixels) - banner]


def _directory(root: str | os.PathLike) -> Path:
    """The folder with dataset_info.json at or below `root`."""
    text = str(root)
    if text.startswith("tfds:"):
        home = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
        text = os.path.join(home, text.removeprefix("tfds:"))
    top = Path(text).expanduser()
    found = sorted(
        path.parent
        for depth in ("", "*/", "*/*/")
        for path in top.glob(f"{depth}dataset_info.json")
        if "incomplete." not in path.parent.name
    )
    if len(found) > 1:
        raise UserError(
            f"{top} holds {len(found)} prepared data sets: {', '.join(map(str, found[:5]))}. "
            "Name one of them as config.data.root."
        )
    if not found:
        raise UserError(
            f"no prepared data set in {top}: there is no dataset_info.json. 'fgvc prepare NAME --archive "
            f"FILE ... --out={top.parent}' makes those that 'fgvc prepare --help' names; others are made, "
            "where TensorFlow is installed, by tfds.builder(NAME, file_format='array_record')"
            ".download_and_prepare(). Class folders are read with --config.data.source=folder."
        )
    return found[0]


def _feature(features: dict, kind: type, name: str, usual: str, directory: Path) -> str:
    """The feature of a kind that is named, or usual, or the only one."""
    of_kind = [key for key, feature in features.items() if isinstance(feature, kind)]
    key = f"config.data.{usual}_feature"
    if name:
        return choose(name, of_kind, key)
    if usual in of_kind:
        return usual
    if len(of_kind) != 1:
        there = ", ".join(of_kind) or f"none; it has {', '.join(features)}"
        raise UserError(
            f"{directory}: which {kind.__name__} feature? There are: {there}. Set {key}."
        )
    return of_kind[0]


def _stored(directory: Path) -> dict[str, Sequence]:
    """Split as stored -> its records, with images as bytes."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(directory)
    info = builder.info
    if "array_record" not in {format_.value for format_ in info.available_file_formats()}:
        raise UserError(
            f"{directory} is stored as {info.file_format.value}, which only TensorFlow reads. "
            "Prepare it again, where TensorFlow is installed, with "
            f"tfds.builder('{info.name}', file_format='array_record').download_and_prepare()."
        )
    images = [k for k, kind in info.features.items() if isinstance(kind, tfds.features.Image)]
    return {
        split: builder.as_data_source(
            split,
            decoders=dict.fromkeys(images, tfds.decode.SkipDecoding()),
            file_format="array_record",
        )
        for split in info.splits
        if info.splits[split].num_examples
    }


def own_metadata(directory: Path) -> dict:
    """The entries that `fgvc prepare` wrote beside the features; {} for other sets."""
    path = directory / "metadata.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return content.get("fgvc_jax", {}) if isinstance(content, dict) else {}


def _stamp(directory: Path, image: str) -> str:
    """A hash of the feature, the set's description and its files' names, sizes and times of change."""
    digest = hashlib.sha256(f"{directory.name} {image}\0".encode())
    for path in sorted(directory.iterdir()):
        stat = path.stat()
        digest.update(f"{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    digest.update((directory / "dataset_info.json").read_bytes())
    return digest.hexdigest()[:16]


def _scan(
    stored: dict[str, Sequence], image: str, classes: list[str], named: list[str], folds: str
) -> dict[str, np.ndarray]:
    """The contents of an Index, for every label feature, by reading each record once.

    Args:
      classes, named: the ClassLabel features, and those that may name an image.
      folds: the feature with the codes of several splits, if records have it.
    """
    rows = [
        (
            [f"{split}/{number:06d}", *(record[key].decode() for key in named)],
            [record[key] for key in classes],
            record.get(folds, ()),
            _size(record[image]),
        )
        for split, source in stored.items()
        for number, record in enumerate(source)
    ]
    names, labels, codes, sizes = zip(*rows, strict=True)
    numbered, *candidates = zip(*names, strict=True)
    unique = [column for column in candidates if len(set(column)) == len(rows)]
    labels = np.array(labels, np.int64).T
    return {
        "files": np.array([*unique, numbered][0]),
        "folds": np.array(codes, np.uint8),
        "sizes": np.array(sizes, np.int32),
        **{f"labels/{key}": column for key, column in zip(classes, labels, strict=True)},
    }


def _save(arrays: dict[str, np.ndarray], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as out:
        np.savez(out, **arrays)


def _load(path: Path, label: str) -> Index:
    with np.load(path) as saved:
        labels = saved[f"labels/{label}"]
        return Index(saved["files"], labels, saved["folds"], saved["sizes"])


def _size(data: bytes) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.size[::-1]
    except Exception:  # Pillow's plugins raise anything on damaged data; decoding names it
        return 0, 0


def _parts(name: str, stored: dict[str, Sequence], labels: np.ndarray):
    """Split -> positions, by the usual spellings; and the positions of images without labels."""
    parts: dict[str, np.ndarray] = {}
    unlabelled: list[int] = []
    start = 0
    for stored_as, source in stored.items():
        at = np.arange(start, start := start + len(source))
        split = "all" if len(stored) == 1 else split_of(stored_as)
        if split is None:
            log.info(f"{name}: split {stored_as!r} ({len(at):,} images) is not used")
        elif split in parts:
            raise UserError(f"{name}: split {stored_as!r} is a second {split} split.")
        elif (labels[at] == -1).all():
            log.info(f"{name} {split}: {len(at):,} images without labels")
            unlabelled += at.tolist()
        else:
            parts[split] = at
    order = ("all", "train", "val", "test")
    return {split: parts[split] for split in order if split in parts}, unlabelled


def _fold(name: str, folds: np.ndarray, fold: int) -> dict[str, np.ndarray]:
    count = folds.shape[1] if folds.size else 1
    if not 1 <= fold <= count:
        raise UserError(f"config.data.fold = {fold}: {name} has the splits 1 to {count}.")
    return {split: np.flatnonzero(folds[:, fold - 1] == i) for i, split in enumerate(FOLDS)}
