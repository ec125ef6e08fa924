"""Two ways to the device, one set of batches; and prediction over whole splits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgvc_jax import mesh as meshes
from fgvc_jax.data import sampler
from fgvc_jax.data.cache import Canvases
from fgvc_jax.data.feed import Feed, gather, make_resident
from fgvc_jax.train.predict import predict_all


def canvases(count, seed):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 6, 6, 3), np.uint8)
    sizes = rng.integers(1, 7, (count, 2)).astype(np.int32)
    for image, (h, w) in zip(pixels, sizes, strict=True):
        image[h:] = image[:, w:] = 0
    return Canvases(pixels, sizes)


def decoded(canvases):
    """What reads the same images from files."""

    def read(file):
        pixels, (h, w) = canvases.pixels[int(file)], canvases.sizes[int(file)]
        return pixels[:h, :w]

    files = tuple(map(str, range(len(canvases.pixels))))
    rows = np.full(len(files), -1)
    return Canvases(np.zeros((0, 6, 6, 3), np.uint8), canvases.sizes, rows, files, read)


@pytest.fixture(scope="module")
def mesh():
    return meshes.make()


def ways(sources, mesh):
    """The same images (streamed, resident, decoded)."""
    resident = tuple(make_resident(s, mesh) for s in sources)
    return Feed(sources, mesh), Feed(sources, mesh, resident), Feed([*map(decoded, sources)], mesh)


@pytest.mark.parametrize("images", [1, 2])
def test_all_ways_are_equal(mesh, images):
    """Batches, their order and their pixels; the two images of an example lie in two splits."""
    splits = [canvases(10, seed=0), canvases(7, seed=1)][:images]
    rng = np.random.default_rng(2)
    examples = {
        "index": np.stack([rng.integers(0, len(s.pixels), 13) for s in splits], axis=1),
        "label": np.arange(13, dtype=np.int32),
    }
    order = sampler.shuffled(13, 4, seed=5).slice(slice(3, 12))
    found = [
        [
            (*map(np.asarray, gather(feed.resident, batch, mesh)), np.asarray(batch["label"]))
            for batch in feed.stream(order, examples)
        ]
        for feed in ways(splits, mesh)
    ]
    for number, rows in enumerate(order):
        expected = (
            np.stack([s.pixels[examples["index"][rows, i]] for i, s in enumerate(splits)], axis=1),
            np.stack([s.sizes[examples["index"][rows, i]] for i, s in enumerate(splits)], axis=1),
            rows,
        )
        for batches in found:
            assert len(batches) == 9
            for x, y in zip(batches[number], expected, strict=True):
                assert x.dtype in (np.uint8, np.int32)
                np.testing.assert_array_equal(x, y)


def test_what_is_sent(mesh):
    streamed, resident, _ = ways([canvases(10, seed=0)], mesh)
    label = np.arange(4, dtype=np.int32)
    index = np.array([[3], [1], [4], [1]])
    sent = streamed.batch(index, label=label)
    assert sent["pixels"].shape == (4, 1, 6, 6, 3) and sent["pixels"].dtype == np.uint8
    assert sent["sizes"].shape == (4, 1, 2) and streamed.resident == ()
    sent = resident.batch(index, label=label)
    assert sent.keys() == {"index", "label"} and sent["index"].dtype == np.int32
    assert all(array.sharding == resident.sharding for array in sent.values())


@pytest.mark.parametrize("count", [1, 4, 8, 11])
@pytest.mark.parametrize("way", [0, 1, 2])
def test_predict_all_covers_every_example_once_in_order(mesh, count, way):
    """Also where the batch does not divide the split, or is larger than it; in one compilation."""
    split = canvases(12, seed=0)
    feed = ways([split], mesh)[way]
    index = np.random.default_rng(1).permutation(12)[:count, None]
    traces, seen = [], []

    @jax.jit
    def step(params, stats, pixels, sizes, seed, number):
        traces.append(pixels.shape)
        sums = jnp.sum(pixels.astype(jnp.int32), axis=(1, 2, 3, 4))
        return {"sum": sums * params["w"], "size": sizes[:, 0], "batch": jnp.full(4, number)}

    weights = {"params": {"w": jnp.int32(3)}, "batch_stats": {}}
    found = predict_all(step, weights, feed.in_order(index, 4), check=lambda: seen.append(1))
    np.testing.assert_array_equal(found["sum"], 3 * split.pixels[index[:, 0]].sum((1, 2, 3), int))
    np.testing.assert_array_equal(found["size"], split.sizes[index[:, 0]])
    np.testing.assert_array_equal(found["batch"], np.arange(count) // 4)
    assert traces == [(4, 1, 6, 6, 3)] and len(seen) == -(-count // 4)
