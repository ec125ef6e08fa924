"""Stratified, seeded splits that keep photos of one thing on one side."""

import dataclasses
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fgvc_jax.data.manifest import Fault, Manifest, Split
from fgvc_jax.data.sources.names import few
from fgvc_jax.errors import UserError

log = logging.getLogger(__name__)


def carve(
    manifest: Manifest,
    *,
    val_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
    group: str = "",
    alike: Sequence[tuple[str, str]] = (),
) -> Manifest:
    """Makes the splits that data come without.

    The split 'all' becomes train, val and test. Else, where there is no 'val', it is taken from
    train; a test split is never made beside a given training split.

    Args:
      val_fraction, test_fraction: shares of all images (of the training images where only
        validation is carved), by class; 0 carves nothing.
      seed: of the draw.
      group: regular expression, see `groups`; '' = every image for itself.
      alike: pairs of files that show the same, which stay together, too.

    Raises:
      UserError: for a `group` that fits no file. A split that would come out empty becomes one of `faults`.
    """
    name, classes = manifest.name, manifest.classes
    splits, fractions, faults = dict(manifest.splits), {}, list(manifest.faults)
    if "all" in splits or ("train" in splits and "val" not in splits):
        fractions = {"val": val_fraction, "test": test_fraction if "all" in splits else 0.0}
        whole = splits.pop("all" if "all" in splits else "train")
        keys = _told_groups(whole.files, group) if group else np.arange(len(whole.files))
        keys = _joined(whole.files, keys, alike)
        splits = _parts(whole, keys, fractions["val"], fractions["test"], seed) | splits
    elif group:
        log.info(f"{name}: data.group = {group!r} is not used: train and val are given")
    for split, fraction in fractions.items():
        if fraction == 0:
            continue
        if split not in splits:
            largest = np.bincount(whole.labels).max()
            faults.append(
                Fault(
                    "empty_split",
                    f"{name}: no class is large enough to give a {split} image at "
                    f"{split}_fraction={fraction} (the largest has {largest} images"
                    f"{', kept together by data.group' if group else ''}"
                    f"{', equal and nearly equal ones kept together' if alike else ''})",
                    f"Raise {split}_fraction, or bring a {split} split.",
                )
            )
            continue
        log.info(f"{split} carved: {fraction:.0%} of every class, seed {seed}")
        small = sorted(set(range(len(classes))) - set(splits[split].labels.tolist()))
        if small:
            log.info(
                f"{len(small)} of {len(classes)} classes are too small to give a {split} image "
                f"and stay in train: {few([classes[i] for i in small])}"
            )
    manifest = dataclasses.replace(manifest, splits=splits, faults=tuple(faults))
    tell(manifest)
    return manifest


def tell(manifest: Manifest) -> None:
    """Logs the size of every split."""
    classes = len(manifest.classes)
    for split, (files, labels) in manifest.splits.items():
        lacks = classes - len(np.unique(labels))
        log.info(
            f"{manifest.name} {split}: {len(files):,} images of {classes - lacks} classes"
            + (f" ({lacks} of {classes} have none)" if lacks else "")
        )


def _joined(files: Sequence[str], keys: np.ndarray, alike: Sequence[tuple[str, str]]) -> np.ndarray:
    """int64 [N]: the groups, joined where files of two of them are alike."""
    row = {file: i for i, file in enumerate(files)}
    pairs = [(row[a], row[b]) for a, b in alike if a in row and b in row]
    if not pairs:
        return keys
    images = len({i for pair in pairs for i in pair})
    log.info(f"{images:,} images are equal or nearly equal to another: such ones stay in one split")
    ends = keys[np.array(pairs)]
    graph = coo_array((np.ones(len(ends)), ends.T), shape=(keys.max() + 1,) * 2)
    return connected_components(graph, directed=False)[1][keys]


def retrieval(manifest: Manifest, val_fraction: float, seed: int) -> Manifest:
    """Splits whose classes are not those of another, as for metric learning.

    Train and test that have no class in common stay. Else the first half of the class table, with the images
    of all splits, becomes train, and the second half test. Where there is no 'val' with classes of its own,
    `val_fraction` of the training classes are held out whole. That a class has no training image is no
    fault then.

    Raises:
      UserError: for fewer than four classes, which cannot be halved.
    """
    faults = tuple(fault for fault in manifest.faults if fault.kind != "unknown_class")
    splits, classes = manifest.splits, len(manifest.classes)
    own = {name: set(split.labels.tolist()) for name, split in splits.items()}
    if {"train", "test"} <= own.keys() and not own["train"] & own["test"]:
        rest = [name for name in splits if name != "test"]
        if "val" in own and not own["val"] & (own["train"] | own["test"]):
            return dataclasses.replace(manifest, faults=faults)
        training = sorted(set().union(*(own[name] for name in rest)))
    else:
        if classes < 4:
            raise UserError(
                f"{manifest.name}: {classes} classes; config.data.splits = 'retrieval' needs four at least, "
                "two to train on and two to test with."
            )
        rest, training = list(splits), list(range(classes // 2))
    files = [file for name in rest for file in splits[name].files]
    labels = np.concatenate([splits[name].labels for name in rest])
    held_out = np.array(training)[_held_out(len(training), val_fraction, seed)]
    is_val = np.isin(labels, held_out)
    is_train = np.isin(labels, training) & ~is_val
    masks = {"train": is_train, "val": is_val, "test": ~(is_train | is_val)}
    parts = {
        name: Split(
            tuple(file for file, is_in in zip(files, mask, strict=True) if is_in), labels[mask]
        )
        for name, mask in masks.items()
        if mask.any()
    }
    if len(rest) < len(splits):
        parts["test"] = splits["test"]
    return dataclasses.replace(manifest, splits=parts, official=False, faults=faults)


def halves(
    labels: np.ndarray, classes: int, val_fraction: float, seed: int
) -> dict[str, np.ndarray]:
    """Rows of the first half of the classes for training and validation, and of the second for testing.

    Args:
      labels: int [N].
      classes: how many there are.
      val_fraction: share of the first half's classes that is held out whole.
      seed: of that draw.
    """
    half = classes // 2
    is_val = np.isin(labels, _held_out(half, val_fraction, seed))
    parts = {"train": (labels < half) & ~is_val, "val": is_val, "test": labels >= half}
    return {split: np.flatnonzero(mask) for split, mask in parts.items() if mask.any()}


def _held_out(classes: int, fraction: float, seed: int) -> np.ndarray:
    """Which of so many classes: the share, at least one; none at 0."""
    count = max(1, int(fraction * classes + 0.5)) if fraction else 0
    return np.argsort(np.random.Philox(seed).random_raw(classes), kind="stable")[:count]


def _parts(whole: Split, keys, val_fraction, test_fraction, seed) -> dict[str, Split]:
    """Train, val and test; a split with no image is left out."""
    files, labels = np.array(whole.files, object), whole.labels
    rest, test = stratified(labels, test_fraction, seed, keys)
    # A share of the rest that test left, so that val_fraction stays a share of the whole.
    fraction = val_fraction / (1 - test_fraction)
    train, val = stratified(labels[rest], fraction, seed + 1, keys[rest])
    parts = {"train": rest[train], "val": rest[val], "test": test}
    return {
        split: Split(tuple(files[i].tolist()), labels[i]) for split, i in parts.items() if len(i)
    }


def stratified(
    labels: np.ndarray, fraction: float, seed: int, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Holds out `fraction` of every class.

    Of a class with n examples, fraction * n (rounded, halves up) are held out, but never all: one
    at least stays. So a class with a single example stays whole. Groups go to one side as a whole,
    so with them a class comes only as near to its share as they allow.

    Args:
      labels: int [N].
      fraction: 0 <= fraction < 1.
      seed: non-negative integer.
      groups: int [N], equal for examples that must stay together; None = every one for itself.

    Returns:
      (kept, held_out): two sorted index arrays, int64, which together are 0..N-1.

    Each example draws one raw 64-bit word of the Philox generator: NumPy promises the raw stream
    for all versions, which it does not for shuffles. A group has the word of its first example. In
    the order of their words, groups are held out where that brings the classes in them nearer to
    their shares, or at least no farther. For single examples these are the smallest words of a class.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction must be in [0, 1), not {fraction}")
    groups = np.arange(len(labels)) if groups is None else groups
    words = np.random.Philox(seed).random_raw(len(labels))
    _, labels, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    _, first, groups = np.unique(groups, return_index=True, return_inverse=True)
    # One entry for each class in each group, sorted by group.
    entries, counts = np.unique(groups * len(sizes) + labels, return_counts=True)
    owners, classes = np.divmod(entries, len(sizes))
    bounds = np.searchsorted(owners, np.arange(len(first) + 1)).tolist()
    classes, counts = classes.tolist(), counts.tolist()

    missing = np.minimum((fraction * sizes + 0.5).astype(int), sizes - 1).tolist()  # of the share
    left = sizes.tolist()
    held_out = np.zeros(len(first), bool)
    for group in np.argsort(words[first], kind="stable").tolist():
        parts = [(classes[i], counts[i]) for i in range(bounds[group], bounds[group + 1])]
        nearer = sum(abs(missing[c]) - abs(missing[c] - n) for c, n in parts)
        if nearer >= 0 and all(n < left[c] for c, n in parts):
            held_out[group] = True
            for c, n in parts:
                missing[c] -= n
                left[c] -= n
    return np.flatnonzero(~held_out[groups]), np.flatnonzero(held_out[groups])


def groups(files: Sequence[str], pattern: str) -> np.ndarray:
    """Which files belong together: those with the same match of a regular expression.

    Args:
      files: N paths, relative to the data's folder.
      pattern: searched in each path. The match's first group, or the whole match where it has none, is
        the key. A file that does not match is a group of its own.

    Returns:
      int64 [N], equal within a group.

    Raises:
      UserError: for a pattern that is no regular expression or matches no file.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"data.group = {pattern!r} is not a regular expression: {error}.") from None
    matches = (compiled.search(file) for file in files)
    keys = [match and match[min(1, compiled.groups)] for match in matches]
    alone = sum(key is None for key in keys)
    if alone == len(files):
        raise UserError(
            f"data.group = {pattern!r} matches none of {len(files):,} files, such as {files[0]!r}. "
            "Its first (...) must match what photos of one thing have in common."
        )
    number: dict[object, int] = {}
    index = [
        number.setdefault(i if key is None else key, len(number)) for i, key in enumerate(keys)
    ]
    return np.array(index)


def _told_groups(files: Sequence[str], pattern: str) -> np.ndarray:
    """The same, with a line about how many there are."""
    keys = groups(files, pattern)
    alone = sum(re.search(pattern, file) is None for file in files)
    log.info(
        f"{len(files):,} images are {keys.max() + 1:,} groups by {pattern!r}, each kept in one split"
        + (f"; {alone:,} that do not match it are groups of their own" if alone else "")
    )
    return keys


# The file's folder and its name up to the last part, where that is a short number ('_3', '-view12') or one
# letter ('-a', 'b') and the name has a digit before it.
VIEWS = r"(?:^|/)((?:[^/]+/)?[^/]*\d[^/]*?)(?:[ ._-]+[A-Za-z]*\d{1,5}|[ ._-]?[A-Za-z])\.[^./]+$"


def propose_groups(files: Sequence[str]) -> tuple[str, str] | None:
    """A `group` pattern where file names look like several photos of one thing, with the reason.

    So 'part12_view3.jpg', 'IMG_1234_1.jpg', 'serial-0042-a.jpg'. There is no proposal unless most
    names are of this kind, most groups have two images or more, and the folders have several groups
    each: names that count through a class ('Anjou_001.jpg', 'n02085620_10074.jpg') do not group.
    """
    matches = list(filter(None, map(re.compile(VIEWS).search, files)))
    keys = Counter(match[1] for match in matches)
    several = [key for key, count in keys.items() if count > 1]
    folders = {os.path.dirname(key) for key in keys}
    if (
        keys.total() < 0.8 * len(files)
        or len(several) <= len(keys) / 2
        or len(keys) < 3 * len(folders)
    ):
        return None
    key = several[0]
    names = [os.path.basename(match.string) for match in matches if match[1] == key][:2]
    return VIEWS, (
        f"{keys.total():,} of {len(files):,} file names look like several photos of one thing, "
        f"{len(keys):,} things in all, such as {' and '.join(names)}: {os.path.basename(key)}"
    )
