"""Examples as they stand in lists, turned into splits."""

from collections.abc import Iterable, Mapping

import numpy as np

from fgvc_jax.data.manifest import Split


def as_splits(rows: Iterable[tuple[str, str, str]], label: Mapping[str, int]) -> dict[str, Split]:
    """(file, class, split) -> splits, each in the order of the rows; `label` is the class table."""
    files: dict[str, list[str]] = {"all": [], "train": [], "val": [], "test": []}
    labels: dict[str, list[int]] = {split: [] for split in files}
    for file, name, split in rows:
        files[split].append(file)
        labels[split].append(label[name])
    return {k: Split(tuple(files[k]), np.array(labels[k], np.int32)) for k in files if files[k]}
