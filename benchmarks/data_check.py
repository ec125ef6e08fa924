"""What a long list of images costs before training: indexing, checking and shuffling it.

    python benchmarks/data_check.py --images=100000

Makes small PNGs of 100 classes, all different, and a CSV list of them in a temporary folder; then, in this
order and in one process:

    index     the list read, its files looked up, the splits carved
    check     every image decoded once, equal and nearly equal ones searched
    again     the same once more, from what was kept
    shuffle   one epoch of batches of 64 in random order

Seconds each, CPU seconds of all threads (what other programs disturb least), and how much the peak of the
process's memory has grown since the packages were imported.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import faiss  # noqa: F401  imported here so that its memory is not counted
import numpy as np
from PIL import Image
from result import add_out, facts, write

from fgvc_jax.config import base
from fgvc_jax.data import doctor, load
from fgvc_jax.data.sampler import shuffled

CLASSES, BATCH = 100, 64


def make(folder: Path, images: int, side: int) -> Path:
    """`images` PNGs of coarse random colours, in folders of a thousand, and their list."""
    rng = np.random.default_rng(0)
    rows = ["path,label"]
    for i in range(images):
        at = f"{i // 1000:03d}/{i:06d}.png"
        if i % 1000 == 0:
            (folder / at).parent.mkdir()
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / at, compress_level=1)
        rows.append(f"{at},class {i % CLASSES:02d}")
    (folder / "list.csv").write_text("\n".join(rows) + "\n")
    return folder / "list.csv"


def peak_mib() -> float:
    per_mib = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / per_mib


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=32, help="of each image, pixels")
    add_out(parser)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        if os.fork() == 0:  # what making them takes is not this process's memory
            make(Path(temporary), args.images, args.side)
            os._exit(0)
        os.wait()
        data = base().data
        data.source, data.root = "list", f"{temporary}/list.csv"
        stages, before = {}, peak_mib()

        def measure(name, function):
            start, start_busy = time.perf_counter(), time.process_time()
            result = function()
            stages[name] = {
                "seconds": round(time.perf_counter() - start, 2),
                "cpu_seconds": round(time.process_time() - start_busy, 2),
                "peak_mib": round(peak_mib() - before, 1),
            }
            print(name, stages[name], flush=True)
            return result

        manifest = measure("index", lambda: load.load(data))
        cache = Path(temporary, "cache")

        def check():
            return doctor.judge(manifest, doctor.collect(manifest, cache))

        findings = measure("check", check)
        assert measure("again", check) == findings
        assert not findings.of("error")
        train = len(manifest.splits["train"].files)

        def epoch():
            sampler = shuffled(train, BATCH, seed=0)
            rows = np.concatenate([sampler[step] for step in range(-(-train // BATCH))])
            assert len(np.unique(rows[:train])) == train

        measure("shuffle", epoch)
    result = {
        **facts(("fgvc_jax", "numpy", "pillow", "faiss-cpu")),
        "images": args.images,
        "side": args.side,
        "stages": stages,
        "findings": [f"{f.severity}: {f.text}" for f in findings.items],
    }
    write(result, args.out)


if __name__ == "__main__":
    main()
