"""On four virtual devices: images spread over them against images on each of them. Prints bytes as JSON."""

import json
import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)

import jax
import numpy as np

from fgvc_jax import mesh as meshes
from fgvc_jax.data.cache import Canvases
from fgvc_jax.data.feed import Feed, gather, make_resident

assert jax.device_count() == 4
mesh = meshes.make(2)  # two axes of two
rng = np.random.default_rng(0)
images, side, batch = 101, 32, 16  # 101 is no multiple of 4: the last part is padded
canvases = Canvases(
    rng.integers(0, 256, (images, side, side, 3), np.uint8),
    rng.integers(1, side, (images, 2)).astype(np.int32),
)
one, other = (make_resident(canvases, mesh, spread) for spread in (False, True))
assert other.pixels.addressable_shards[0].data.shape[0] == 26
assert one.pixels.addressable_shards[0].data.shape[0] == images

# Any row from any device, the first and the last among them, and all rows of one device.
orders = [rng.integers(0, images, (batch, 2)) for _ in range(3)]
orders += [np.full((batch, 2), 100), np.arange(2 * batch).reshape(batch, 2) % 26]
for index in orders:
    feed = Feed([canvases, canvases], mesh, (one, other))
    pixels, sizes = gather(feed.resident, feed.batch(index), mesh)
    assert pixels.sharding == feed.sharding
    expected = np.stack([canvases.pixels[index[:, i]] for i in (0, 1)], axis=1)
    np.testing.assert_array_equal(pixels, expected)
    np.testing.assert_array_equal(
        sizes, np.stack([canvases.sizes[index[:, i]] for i in (0, 1)], axis=1)
    )

small = Feed([canvases], mesh, (other,)).batch(orders[0][:, :1])
compiled = gather.lower((other,), small, mesh).compile()
print(
    json.dumps(
        {
            "local_batch": batch // 4 * side * side * 3,
            "cache": canvases.pixels.nbytes,
            "temporary": compiled.memory_analysis().temp_size_in_bytes,
        }
    )
)
