"""torchvision and a photo, for all tests of image work."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def transforms():
    """torchvision.transforms; the test skips where it is not installed."""
    torch = pytest.importorskip("torch", reason="torchvision is the reference for images")
    if not hasattr(torch.ops.torchvision, "nms"):
        # A torchvision built for CUDA beside a CPU torch imports only with these declared.
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torch.torchvision_schemas = library  # it must outlive this function
    return pytest.importorskip(
        "torchvision.transforms", reason="torchvision is the reference for images"
    )


@pytest.fixture(scope="session")
def autoaugment(transforms):
    from torchvision.transforms import autoaugment

    return autoaugment


@pytest.fixture(scope="session")
def photo():
    """photo(h, w): a picture of that size; a real photo where there is one, else colours with noise."""
    root = os.environ.get("FGVC_PRODUCE31")
    files = sorted(Path(root).glob("train/*/*.jpg")) if root else []

    def made(h, w):
        if files:
            image = Image.open(files[7]).convert("RGB")
            return image.resize((w, h), Image.Resampling.BICUBIC)
        y, x = np.mgrid[:h, :w] / 30
        smooth = 128 + 100 * np.stack([np.sin(x * y), np.cos(x - y), np.sin(x + 2 * y)], -1)
        noise = np.random.default_rng(0).normal(0, 10, smooth.shape)
        return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))

    return made


@pytest.fixture(scope="session")
def image(photo):
    """A picture of odd by even pixels."""
    return photo(74, 61)


@pytest.fixture(scope="session")
def on_canvas():
    """on_canvas(image, side): a uint8 [side, side, 3] with the image at the top left, and its (h, w)."""

    def laid(image, side):
        canvas = np.zeros((side, side, 3), np.uint8)
        canvas[: image.height, : image.width] = np.asarray(image)
        return canvas, np.array([image.height, image.width], np.int32)

    return laid
