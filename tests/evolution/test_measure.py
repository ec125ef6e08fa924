"""t-SNE from point to point, cosines, and which files are read."""

import json

import numpy as np
import pytest
from sklearn.manifold import trustworthiness

from fgvc_jax.errors import UserError
from fgvc_jax.evolution import measure


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose three classes move apart over three points."""
    folder, rng = tmp_path_factory.mktemp("run"), np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 14)
    centres, noise = rng.normal(size=(3, 8)), rng.normal(size=(42, 8))
    (folder / "train" / "embeddings").mkdir(parents=True)
    for step, spread in ((0, 0.0), (10, 1.0), (40, 5.0)):
        x = (noise + spread * centres[labels]).astype(np.float32)
        arrays = {"test_embedding": x, "test_label": labels}
        np.savez(folder / "train" / "embeddings" / f"step_{step:06d}.npz", **arrays)
    train = {f"{i}.png": i % 3 for i in range(50)}
    manifest = {"classes": ["ant", "bee", "<b>cat"], "splits": {"train": train}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "train" / "DONE.json").write_text(json.dumps({"steps": 40, "images": 200}))
    return folder


def test_epochs_are_passes_over_the_training_images(run):
    saved = measure.read(run, "test")
    assert saved.steps == [0, 10, 40] and saved.epochs == [0, 1, 4]  # 5 images a step, of 50
    few = measure.read(run / "train", "test", most=10)
    rows = [int(np.flatnonzero((saved.embeddings[2] == x).all(1))[0]) for x in few.embeddings[2]]
    assert rows == sorted(rows) and len(set(rows)) == 10
    np.testing.assert_array_equal(few.embeddings[0], saved.embeddings[0][rows])
    np.testing.assert_array_equal(few.labels, saved.labels[rows])


def test_cosines_by_a_plain_loop(run):
    saved = measure.read(run, "test")
    found = measure.measure(saved)
    for point in range(3):
        parts = {True: [], False: []}
        for i, a in enumerate(saved.embeddings[point].astype(float)):
            for j, b in enumerate(saved.embeddings[point].astype(float)[:i]):
                cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
                parts[bool(saved.labels[i] == saved.labels[j])].append(cosine)
        # Unit vectors are float32 as they are searched.
        assert found.same[point] == pytest.approx(np.mean(parts[True]), abs=1e-6)
        assert found.different[point] == pytest.approx(np.mean(parts[False]), abs=1e-6)
        assert found.counts[point].sum(1).tolist() == [len(parts[True]), len(parts[False])]
        assert found.counts[point][0, 20:].sum() == sum(x >= 0 for x in parts[True])


def test_the_projection_keeps_neighbours_and_begins_where_the_last_one_ended(run):
    saved = measure.read(run, "test")
    units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in saved.embeddings]
    found = measure.project(units)
    for unit, positions in zip(units, found, strict=True):
        assert trustworthiness(unit, positions, n_neighbors=5) > 0.8  # 0.5 is chance
    twice = measure.project([units[2], units[2]])
    moved = np.linalg.norm(twice[1] - twice[0], axis=1).mean()
    assert moved < 0.1 * np.ptp(twice[0])  # the same embedding again stays
    np.testing.assert_allclose(measure.project(units[:1]), found[:1], rtol=1e-5, atol=1e-5)  # seed


def test_what_is_missing_is_told(run, tmp_path):
    with pytest.raises(UserError, match=r"no saved embeddings\. Train with"):
        measure.read(tmp_path, "test")
    with pytest.raises(UserError, match=r"no split 'val'; it has test"):
        measure.read(run, "val")
