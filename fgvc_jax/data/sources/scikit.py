"""The digits that come with scikit-learn: real images without a download."""

import functools

import numpy as np

from fgvc_jax.data.manifest import Manifest, Split


def digits() -> Manifest:
    """The 1,797 real 8 x 8 handwritten digits that come with scikit-learn (Alpaydin & Kaynak 1998).

    Grey values 0..16 become 0..255 in three equal channels. Files are named 'digits/0000' to
    'digits/1796'.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    grey = np.round(data.images * (255 / 16)).astype(np.uint8)
    files = tuple(f"digits/{i:04d}" for i in range(len(grey)))
    splits = {"all": Split(files, data.target.astype(np.int32))}
    return Manifest("digits", tuple("0123456789"), splits, functools.partial(_read, grey))


def _read(grey: np.ndarray, file: str) -> np.ndarray:
    return np.repeat(grey[int(file.removeprefix("digits/")), :, :, None], 3, axis=2)
