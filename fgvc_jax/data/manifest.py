"""What a data set is: class names, files and labels by split, and a function that reads a file."""

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fgvc_jax.errors import UserError
from fgvc_jax.files import write_json


class Split(NamedTuple):
    """The examples of one split, in order."""

    files: tuple[str, ...]
    labels: np.ndarray  # int32 [N], ids 0..C-1 of the manifest's class table


class Fault(NamedTuple):
    """Something wrong with how a data set is laid out, which does not keep the rest from being looked at."""

    kind: str  # such as 'empty_class'
    text: str  # one sentence, without the full stop
    advice: str  # what to do, a sentence or two
    files: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()  # that it is about


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A data set before any image is decoded.

    Attributes:
      name: short name, used for file names and messages.
      classes: class names; the position is the label.
      splits: 'train' and usually 'val' and 'test', in this order. Of data that come without any split, as
        they are read: 'all'.
      read: file -> uint8 [H, W, 3], RGB, upright. Raises UserError for a file it cannot read.
      root: the directory that `files` are relative to; None where they are not files on disk.
      ids: the original id of each class, where the data set has ids besides names ('04780'); a
        class's label is its position, never its id.
      unlabelled: files that come without labels, to be classified with a finished run.
      stamp: identifies the pixels where they are not files on disk; '' = they are hashed themselves.
      size_of: file -> (height, width) as stored, without decoding; None = by the file's header.
      official: the splits are published ones, in which results are compared: copies of test images are
        reported, but do not stop a training.
      excluded: training files that were left out, and why.
      faults: of the layout; `check` refuses them, the doctor lists them with all else that it finds.
    """

    name: str
    classes: tuple[str, ...]
    splits: dict[str, Split]
    read: Callable[[str], np.ndarray]
    root: str | None = None
    ids: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()
    stamp: str = ""
    size_of: Callable[[str], tuple[int, int]] | None = None
    official: bool = False
    excluded: dict[str, str] = dataclasses.field(default_factory=dict)
    faults: tuple[Fault, ...] = ()


def check(manifest: Manifest) -> None:
    """Raises UserError for faults of the layout, all in one, and as `check_labels`."""
    _refuse(manifest.faults)
    check_labels(manifest)


def check_classification(manifest: Manifest) -> None:
    """Raises UserError unless a classifier can be trained: two classes, each with a training image."""
    _refuse(classification_faults(manifest))


def classification_faults(manifest: Manifest) -> list[Fault]:
    """What keeps a classifier from being trained; classes that `manifest.faults` names are passed over."""
    classes, faults = manifest.classes, []
    if len(classes) < 2:
        faults.append(
            Fault(
                "single_class",
                f"{manifest.name}: {len(classes)} class{'' if classes else 'es'} ({', '.join(classes)}); "
                "classification needs at least two",
                "Add a second class.",
            )
        )
    known = {name for fault in manifest.faults for name in fault.classes}
    counts = np.bincount(manifest.splits["train"].labels, minlength=len(classes))
    empty = [classes[i] for i in np.flatnonzero(counts == 0) if classes[i] not in known]
    if empty:
        advice = "Give every class at least one, or remove it."
        test = manifest.splits.get("test")
        if test and not set(test.labels.tolist()) & set(manifest.splits["train"].labels.tolist()):
            advice += (
                " Train and test have no class in common, as for methods that learn a metric "
                "(config.data.splits = 'retrieval'); to classify, use --config.data.splits=official."
            )
        faults.append(
            Fault(
                "no_training_image",
                f"{manifest.name}: {len(empty)} class{'es have' if len(empty) > 1 else ' has'} no training "
                f"image: {', '.join(empty[:10])}{', ...' if len(empty) > 10 else ''}",
                advice,
                classes=tuple(empty),
            )
        )
    return faults


def _refuse(faults: Sequence[Fault]) -> None:
    if faults:
        raise UserError("\n".join(f"{fault.text}. {fault.advice}" for fault in faults))


def check_labels(manifest: Manifest) -> None:
    """Raises UserError unless labels, classes and splits are consistent; there is 'train' or, unsplit, 'all'.

    Runs on the host before anything reaches a device, where a label out of range would not fail
    but give NaN, wrap around or score zero in silence.
    """
    name, classes = manifest.name, manifest.classes
    repeated = [c for c, n in Counter(classes).items() if n > 1]
    if repeated:
        raise UserError(f"{name}: class {repeated[0]!r} stands twice in the class table.")
    ids = manifest.ids
    if ids and (len(ids) != len(classes) or len(set(ids)) != len(ids)):
        raise UserError(
            f"{name}: {len(ids)} class ids, {len(set(ids))} of them different, for {len(classes)} classes; "
            "each class needs one of its own."
        )
    if not {"train", "all"} & manifest.splits.keys():
        raise UserError(f"{name}: no 'train' split; there are: {', '.join(manifest.splits)}.")

    owner: dict[str, str] = {}
    for split, (files, labels) in manifest.splits.items():
        if len(files) == 0:
            raise UserError(f"{name}: split {split!r} is empty. Leave it out or give it images.")
        if np.shape(labels) != (len(files),):
            raise UserError(
                f"{name}: split {split!r} has {len(files)} files but labels of shape "
                f"{np.shape(labels)}; one label a file is needed."
            )
        if not np.issubdtype(np.asarray(labels).dtype, np.integer):
            raise UserError(
                f"{name}: labels of split {split!r} are {np.asarray(labels).dtype}, not integers."
            )
        wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
        if len(wrong):
            first = wrong[0]
            raise UserError(
                f"{name}: split {split!r}, file {files[first]!r}: label {labels[first]} is not in "
                f"0..{len(classes) - 1} ({len(classes)} classes). {len(wrong)} of {len(files)} "
                "labels are out of range. Map original ids through the class table first: an id "
                "such as 4780 is a name, not a label."
            )
        for file in files:
            if file in owner:
                where = (
                    f"twice in {split!r}"
                    if owner[file] == split
                    else f"in {owner[file]!r} and {split!r}"
                )
                raise UserError(
                    f"{name}: file {file!r} stands {where}. An example may be listed once only, "
                    "else the accuracy means nothing."
                )
            owner[file] = split


def save(manifest: Manifest, path: str | os.PathLike) -> None:
    """Writes classes, their ids and, by split, one line a file with its label, as JSON, atomically."""
    content = {
        "name": manifest.name,
        "root": manifest.root,
        "classes": list(manifest.classes),
        **({"ids": list(manifest.ids)} if manifest.ids else {}),
        "splits": {
            split: dict(zip(files, labels.tolist(), strict=True))
            for split, (files, labels) in manifest.splits.items()
        },
        **({"excluded": manifest.excluded} if manifest.excluded else {}),
    }
    write_json(path, content)


def digest(manifest: Manifest) -> str:
    """A hash of classes, their ids, files and labels by split."""
    splits = {name: (list(s.files), s.labels.tolist()) for name, s in manifest.splits.items()}
    return _digest(list(manifest.classes), splits, list(manifest.ids))


def digest_saved(path: str | os.PathLike) -> str:
    """The same hash, of a manifest that `save` wrote."""
    content = json.loads(Path(path).read_text(encoding="utf-8", errors="surrogateescape"))
    splits = {name: (list(s), list(s.values())) for name, s in content["splits"].items()}
    return _digest(content["classes"], splits, content.get("ids", []))


def _digest(classes: list[str], splits: dict, ids: list[str]) -> str:
    content = [classes, sorted(splits.items())] + ([ids] if ids else [])
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
