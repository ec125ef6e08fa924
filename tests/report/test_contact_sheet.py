"""The contact sheet: which pairs are drawn, and that it is a picture."""

import numpy as np
from PIL import Image

from fgvc_jax.mining.pairs import Pairs
from fgvc_jax.report.contact_sheet import contact_sheet


def test_contact_sheet_shows_the_hardest_pairs_with_variety(tmp_path):
    rng = np.random.default_rng(0)
    similarity = rng.permutation(12).astype(np.float32)
    label = np.array([0, 1] * 6, np.int32)
    names = ["a", "a", "b", "b", "a long name of a class, too long for the space of two lines"] * 4
    mined = Pairs(
        np.arange(12, dtype=np.int32),
        np.array([19, *range(1, 12)], np.int32),
        label,
        similarity,
        *np.zeros((2, 12), np.int32),
    )
    shown = []

    def read(i):
        shown.append(i)
        return np.full((30 + i, 40, 3), 20 * (i % 12), np.uint8)

    path = tmp_path / "sheet.png"
    contact_sheet(mined, read, read, names, names, path, rows=1)
    with Image.open(path) as sheet:
        assert sheet.format == "PNG" and sheet.width > 1000
    positives = [i for i in np.argsort(similarity) if label[i] == 1]
    assert shown[0] == positives[0], "the least similar positive comes first"
    classes = [names[i] for i in shown[:4:2]]
    assert len(set(classes)) == 2, "one pair for each class while there are others"
    negatives = [i for i in np.argsort(-similarity) if label[i] == 0]
    assert shown[4] == negatives[0], "the most similar negative comes first"

    nothing = Pairs(*(array[:0] for array in mined))
    contact_sheet(nothing, read, read, names, names, path)
    assert path.stat().st_size > 0
