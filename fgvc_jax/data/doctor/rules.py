"""Findings from the facts about the images, from errors to remarks, and advice for training."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence, Sized
from typing import NamedTuple

import numpy as np

from fgvc_jax.data import cache
from fgvc_jax.data.doctor.duplicates import equal_groups
from fgvc_jax.data.doctor.facts import Facts
from fgvc_jax.data.doctor.findings import SEVERITIES, Case, Finding, Findings, shown
from fgvc_jax.data.doctor.image_file import KINDS
from fgvc_jax.data.manifest import Manifest, classification_faults
from fgvc_jax.data.sources.names import few
from fgvc_jax.data.split import groups, propose_groups

EXAMPLES = 20  # of a note; errors and warnings list everything
CONVERTED = {
    "cmyk": "CMYK, converted to RGB",
    "palette": "with a palette, converted to RGB",
    "alpha": "with transparency, laid over white",
    "sixteen_bits": "of 16 bits, of which the upper 8 are used",
    "grey": "grey, repeated in three channels",
    "rotated": "turned upright as their EXIF data say",
    "animated": "animated, of which the first frame is taken",
    "extension": "of another format than their extension says, which does no harm",
}


class Rows(NamedTuple):
    """Every file of a manifest, by name: however they are split, the order is the same."""

    files: list[str]
    splits: list[str]  # of each file
    labels: np.ndarray  # int [N], -1 where unlabelled
    classes: tuple[str, ...]

    def case(self, *rows: int, remark: str = "") -> Case:
        places = (
            f"{self.splits[r]}, {self.classes[self.labels[r]]}"
            if self.labels[r] >= 0
            else self.splits[r]
            for r in rows
        )
        return Case(tuple(self.files[r] for r in rows), tuple(places), remark)

    def contradict(self, rows: np.ndarray) -> bool:
        """Whether they have different classes."""
        return len({self.labels[r] for r in rows} - {-1}) > 1


def _list_rows(manifest: Manifest) -> Rows:
    files, splits, labels = [], [], []
    for name, split in manifest.splits.items():
        files += split.files
        splits += [name] * len(split.files)
        labels.append(split.labels)
    labels.append(np.full(len(manifest.unlabelled), -1, np.int32))
    files += manifest.unlabelled
    splits += ["unlabelled"] * len(manifest.unlabelled)
    order = sorted(range(len(files)), key=files.__getitem__)
    return Rows(
        [files[i] for i in order],
        [splits[i] for i in order],
        np.concatenate(labels)[order],
        manifest.classes,
    )


def judge(
    manifest: Manifest,
    facts: Facts,
    *,
    size: int = 224,
    resize: int = 0,
    squash: Sequence[int] = (),
    canvas: int = 0,
    group: str = "",
    classify: bool = True,
) -> Findings:
    """All that is wrong with a data set or remarkable: faults of its layout, and what the facts amount to.

    Args:
      manifest: the data set with its splits; its labels have been checked.
      facts: about exactly its files, however they are split.
      size: of the images in training, pixels.
      resize, squash, canvas: see `fgvc_jax.data.cache.canvas_side`; resize = 0 is size / 0.875, the usual.
      group: regular expression for what stays in one split, see `fgvc_jax.data.split.groups`; '' = as the
        names of the files suggest.
      classify: a classifier is trained, which needs two classes with a training image each.

    Raises:
      ValueError: the facts are about other files.
    """
    rows = _list_rows(manifest)
    if tuple(rows.files) != facts.files:
        raise ValueError("The facts are about other files than the manifest's.")
    resize = resize or round(size / 0.875)
    by_split = {
        name: np.bincount(split.labels, minlength=len(manifest.classes)).tolist()
        for name, split in manifest.splits.items()
    }
    counts = {
        name: {split: by_split[split][label] for split in by_split}
        for label, name in enumerate(manifest.classes)
    }
    equals = list(equal_groups(facts.digests, facts.sizes.min(1) > 0))
    unreadable = {row: rows.case(row, remark=why) for row, why in facts.unreadable.items()}
    items = [
        *_layout(manifest, classify),
        *_unreadable(tuple(unreadable.values())),
        *_equal(rows, equals, "warning" if manifest.official else "error"),
        *_near(rows, facts),
        *_groups(rows, group),
        *_classes(manifest, counts, classify),
        *_names(rows),
        *_kinds(rows, facts),
        *_canvas(facts.stored[rows.labels >= 0], resize, squash, canvas),
    ]
    items.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Findings(
        name=manifest.name,
        root=os.path.abspath(manifest.root) if manifest.root else None,
        counts=counts,
        items=tuple(items),
        training=tuple(_training(manifest, rows, facts, counts, size, resize, squash, canvas)),
        exclude=_exclude(rows, facts, equals),
        stuck=tuple(case for row, case in unreadable.items() if rows.splits[row] != "train"),
    )


def _layout(manifest: Manifest, classify: bool) -> Iterator[Finding]:
    for fault in (*manifest.faults, *(classification_faults(manifest) if classify else ())):
        yield Finding(fault.kind, "error", fault.text, advice=fault.advice)


def _canvas(
    sizes: np.ndarray, resize: int, squash: Sequence[int], canvas: int
) -> Iterator[Finding]:
    """Where a side that was given costs detail that the resize would keep."""
    sizes = sizes[sizes.min(1) > 0] if len(sizes) else sizes
    if not canvas or not len(sizes):
        return
    needs = cache.needed(sizes, resize=resize, squash=squash, most=cache.LONGEST_ASPECT)
    short = (needs > canvas).mean()
    if short > 1 - cache.SHARE:
        better = cache.canvas_side(sizes, resize=resize, squash=squash)
        yield Finding(
            "small_canvas",
            "warning",
            f"data.canvas={canvas} is too small for {short:.0%} of the images, which are resized to a "
            f"{'side' if squash else 'shorter side'} of {max(squash or (resize,))} pixels: detail is lost",
            advice=f"use data.canvas=0, which takes {better} here",
        )


def _exclude(rows: Rows, facts: Facts, equals: list[np.ndarray]) -> dict[str, str]:
    bad = dict(facts.unreadable)
    for group in equals:
        others = sorted({rows.splits[r] for r in group} - {"train"})
        if rows.contradict(group):
            bad |= dict.fromkeys(group.tolist(), "equal to an image of another class")
        elif others:
            bad |= dict.fromkeys(group.tolist(), f"equal to an image of {' and '.join(others)}")
    return {rows.files[r]: reason for r, reason in bad.items() if rows.splits[r] == "train"}


def _unreadable(cases: tuple[Case, ...]) -> Iterator[Finding]:
    if cases:
        yield Finding(
            "unreadable",
            "error",
            f"{_count(cases, 'image')} cannot be read",
            cases,
            "replace or remove them",
        )


def _equal(rows: Rows, equals: list[np.ndarray], severity: str) -> Iterator[Finding]:
    contradictions, leaks, copies = [], [], []
    for group in equals:
        if rows.contradict(group):
            contradictions.append(rows.case(*group))
        elif len({rows.splits[r] for r in group}) > 1:
            leaks.append(rows.case(*group))
        else:
            copies.append(rows.case(*group))
    if contradictions:
        yield Finding(
            "contradiction",
            severity,
            f"{_count(contradictions, 'set')} of equal images with different classes",
            tuple(contradictions),
            "keep the one whose class is right",
        )
    if leaks:
        yield Finding(
            "leak",
            severity,
            f"{_count(leaks, 'set')} of equal images in several splits, which makes scores too good",
            tuple(leaks),
            "remove the copies, from train first",
        )
    if copies:
        yield Finding(
            "copy",
            "warning",
            f"{_count(copies, 'set')} of equal images in one split and class, which count double",
            tuple(copies),
            "remove the copies",
        )


def _near(rows: Rows, facts: Facts) -> Iterator[Finding]:
    across, mislabelled, within = [], [], []
    for i, j in facts.near.tolist():
        case = rows.case(i, j)
        if rows.splits[i] != rows.splits[j]:
            across.append(case)
        elif rows.labels[i] != rows.labels[j]:
            mislabelled.append(case)
        else:
            within.append(case)
    if across:
        yield Finding(
            "near_leak",
            "warning",
            f"{_count(across, 'pair')} of nearly equal images in different splits: the same photo "
            "re-encoded, resized, cropped, mirrored, turned or recoloured, or one scene taken twice",
            tuple(across),
            "look at them; remove the copies from train",
        )
    if mislabelled:
        yield Finding(
            "near_contradiction",
            "warning",
            f"{_count(mislabelled, 'pair')} of nearly equal images with different classes",
            tuple(mislabelled),
            "look at them; one of the two classes may be wrong",
        )
    if within:
        yield Finding(
            "near_copy",
            "note",
            f"{_count(within, 'pair')} of nearly equal images within a split and class",
            tuple(within[:EXAMPLES]),
        )


def _groups(rows: Rows, pattern: str) -> Iterator[Finding]:
    """Photos of one thing, by their names, that carving has put on two sides."""
    labelled = [row for row, label in enumerate(rows.labels) if label >= 0]
    files = [rows.files[row] for row in labelled]
    proposed = None if pattern else propose_groups(files)
    if proposed:
        pattern = proposed[0]
    if not pattern:
        return
    members = defaultdict(list)
    for row, thing in zip(labelled, groups(files, pattern), strict=True):
        members[thing].append(row)
    apart = [m for m in members.values() if len({rows.splits[row] for row in m}) > 1]
    if apart:
        yield Finding(
            "group_leak",
            "warning",
            f"{len(apart):,} of {len(members):,} things have photos in several splits, by their names"
            + (f": {shown(proposed[1])}" if proposed else ""),
            tuple(rows.case(*m) for m in apart),
            f"keep the photos of one thing in one split: data.group={pattern!r}",
        )


def _classes(
    manifest: Manifest, counts: dict[str, dict[str, int]], classify: bool
) -> Iterator[Finding]:
    for split in manifest.splits if classify else ():
        # A class that train lacks is an error of the layout.
        lacking = [c for c in manifest.classes if not counts[c][split] and split != "train"]
        if lacking:
            yield Finding(
                "missing_class",
                "warning",
                f"{len(lacking)} of {len(counts)} classes have no {split} image: {_few(lacking)}",
                advice=f"their accuracy stays unknown; add {split} images",
            )
    single = [c for c in manifest.classes if counts[c]["train"] == 1]
    if single:
        yield Finding(
            "single_image",
            "warning",
            f"{len(single)} of {len(counts)} classes have a single training image: {_few(single)}",
            advice="it can have no positive pair; add images or merge the class into another",
        )
    smallest, largest = _extremes(manifest, counts)
    ratio = counts[largest]["train"] / max(1, counts[smallest]["train"])
    if ratio >= 10 and counts[smallest]["train"]:
        yield Finding(
            "imbalance",
            "warning",
            f"the largest class has {ratio:.0f} times the training images of the smallest "
            f"({largest}: {counts[largest]['train']:,}, {smallest}: {counts[smallest]['train']:,})",
            advice="read the accuracy by class, not only the mean over images",
        )
    spellings = defaultdict(list)
    for name in manifest.classes:
        spellings[name.casefold().strip()].append(name)
    twins = [names for names in spellings.values() if len(names) > 1]
    if twins:
        yield Finding(
            "twin_classes",
            "warning",
            f"class names that differ only in case or spaces: "
            f"{few([' and '.join(map(repr, names)) for names in twins])}",
            advice="if they are one class, put their images into one folder",
        )


def _names(rows: Rows) -> Iterator[Finding]:
    odd = [
        row
        for row, file in enumerate(rows.files)
        if not file.isprintable() or any(part != part.strip() for part in file.split("/"))
    ]
    if odd:
        yield Finding(
            "odd_name",
            "warning",
            f"{_count(odd, 'file')} with control characters, bytes that are no text, or spaces at an "
            "end of the name",
            tuple(rows.case(row) for row in odd),
            "they can be trained on; rename them if another program stumbles",
        )


def _kinds(rows: Rows, facts: Facts) -> Iterator[Finding]:
    tiny = np.flatnonzero((facts.sizes.min(1) > 0) & (facts.sizes.min(1) < 8))
    if len(tiny):
        cases = (
            rows.case(r, remark=f"{facts.sizes[r, 1]} x {facts.sizes[r, 0]} pixels") for r in tiny
        )
        yield Finding(
            "tiny",
            "warning",
            f"{_count(tiny, 'image')} with a side below 8 pixels, on which nothing can be seen",
            tuple(cases),
            "replace or remove them",
        )
    for bit, kind in enumerate(KINDS):
        found = np.flatnonzero(facts.kinds >> bit & 1)
        if len(found):
            cases = tuple(rows.case(r) for r in found[:EXAMPLES])
            yield Finding(kind, "note", f"{_count(found, 'image')} {CONVERTED[kind]}", cases)


def _training(
    manifest: Manifest,
    rows: Rows,
    facts: Facts,
    counts: dict[str, dict[str, int]],
    size: int,
    resize: int,
    squash: Sequence[int],
    canvas: int,
) -> Iterator[str]:
    smallest, largest = _extremes(manifest, counts)
    median = int(np.median([n for by_split in counts.values() if (n := by_split["train"])]))
    yield (
        f"classes: {counts[smallest]['train']:,} ({smallest}) to {counts[largest]['train']:,} "
        f"({largest}) training images, median {median:,}"
    )
    sizes = facts.sizes[facts.sizes.min(1) > 0]
    if not len(sizes):
        return
    height, width = np.median(sizes, axis=0).astype(int)
    short = int(np.median(sizes.min(1)))
    mark = 20 * size / short
    yield f"median image {width} x {height}: at {size} px a mark of 20 pixels is {mark:.2g}"
    smaller = (sizes.min(1) < size).mean()
    if smaller > 0.005:
        yield f"{smaller:.0%} of the images are smaller than {size} px and are enlarged"
    better = min(448, short // 32 * 32)
    if better >= 1.5 * size:
        cost = (better / size) ** 2
        yield f"fine marks may be lost: size={better} keeps more, at {cost:.0f} times the cost"
    stored = facts.stored[rows.labels >= 0]
    side = cache.canvas_side(stored, resize=resize, squash=squash, canvas=canvas)
    yield f"cached as {side} x {side} pixels: {len(stored) * side * side * 3 / 1e6:,.0f} MB on disk"
    stored = stored[stored.min(1) > 0]
    lossy = int((cache.needed(stored, resize=resize, squash=squash) > side).sum())
    if lossy and not canvas:
        yield f"{lossy:,} images of {len(stored):,} are longer than that serves, and lose detail"


def _extremes(manifest: Manifest, counts) -> tuple[str, str]:
    """The classes with the fewest and the most training images, of those that have any."""
    present = [c for c in manifest.classes if counts[c]["train"]] or manifest.classes
    order = sorted(present, key=lambda c: counts[c]["train"])
    return order[0], order[-1]


def _count(things: Sized, noun: str) -> str:
    return f"{len(things):,} {noun}{'' if len(things) == 1 else 's'}"


def _few(names: list[str]) -> str:
    return few([shown(name) for name in names])
