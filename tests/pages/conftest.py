"""One small run of the whole pipeline on noise photos, with its report, for all tests of pages."""

import shutil

import numpy as np
import pytest
import tiny
from PIL import Image

from fgvc_jax.run import run

CLASSES = ("ant & <b>bee", "cat", "dog")  # a name that must be escaped


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for label in range(3):
        for number in range(14):
            split = "train" if number < 7 else "val" if number < 9 else "test"
            path = root / split / CLASSES[label] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (32, 40, 3)) // 2 + 40 * label
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="session")
def config(photos):
    made = tiny.pipeline("vit_tiny_patch16_224", depth=1, width=16, heads=1)
    made.image.size = made.image.resize = 32
    made.data.source, made.data.root, made.data.canvas = "folder", str(photos), 40
    for name in ("finetune", "pairs", "retrain"):
        made[name].length = made[name].validation.every = "2 steps"
        made[name].batch = 4
    made.log.report = made.log.tensorboard = True
    made.phases = (",".join(made.phases),)  # as a command line gives them
    return made


@pytest.fixture(scope="session")
def finished(config, tmp_path_factory):
    """The workdir of a finished run. To be changed in a copy only."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    run(config, folder, command="fgvc train --config=x.py '--workdir=a b'")
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "second")
