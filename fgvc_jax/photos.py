"""The images of a finished run: names, labels, and how their pixels are read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fgvc_jax.config import base
from fgvc_jax.data import load
from fgvc_jax.errors import UserError
from fgvc_jax.trained import run_of, trained_on


class Photos(NamedTuple):
    """N images.

    Attributes:
      files: as in the run's manifest.json.
      labels: int32 [N], places in `classes`: the labels that the run was given.
      classes: the class names of the data.
      read: file -> uint8 [H, W, 3], RGB, upright. Raises UserError for a file it cannot read.
    """

    files: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    read: Callable[[str], np.ndarray]


def of_phase(phase: Path, split: str = "") -> Photos:
    """What a training phase was trained on; or another split of its run, which may be empty.

    Raises:
      UserError: its run has no manifest.json any more, or its data are not where they were.
    """
    manifest, images = trained_on(phase)
    images = manifest["splits"].get(split, {}) if split else images
    data = base().data
    path = run_of(phase) / "config.json"
    if not path.exists():
        raise UserError(f"{path} does not exist, which says how the run's images are read")
    saved = json.loads(path.read_text("utf-8", "surrogateescape"))["data"]
    for key in data.keys() & saved.keys():
        data[key] = tuple(saved[key]) if isinstance(saved[key], list) else saved[key]
    data.labels_patch = ""  # the labels are the manifest's, and the patch may be gone
    try:
        read = load.read(data).read
    except UserError as error:
        raise UserError(
            f"the images that {phase} was trained on cannot be read: {error}"
        ) from error
    labels = np.array(list(images.values()), np.int32)
    return Photos(tuple(images), labels, tuple(manifest["classes"]), read)
