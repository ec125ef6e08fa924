"""Mining of look-alike pairs at size, by faiss and by JAX: time, memory, and whether the pairs agree.

    python benchmarks/mining.py --out=benchmarks/results/mining_cpu.json

Makes embeddings and class scores in a temporary folder: of each image its class's centre plus noise; the
centres lie in groups of ten that are close together, and the scores are noisy similarities to the centres, so
that the classes of a group are confused. Then each backend mines the training pairs in a process of its own.

`seconds` is the call of `mine` alone, `cpu_seconds` the same of all threads. `peak_mib` is by how much the
peak of the process's memory has grown since embeddings and scores were read (`inputs_mib`, not in it) and the
packages imported.

The pairs agree if both backends give a query the same number of pairs for each class, and where they name
different neighbours, the two are as similar to the query as each other, to 1e-6 in float64.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from result import add_out, facts, write

BACKENDS = ("faiss", "jax")
GROUP = 10  # classes that are confused with each other
ROWS = 16_384  # made at a time
TIE = 1e-6  # of vectors of length 1


def make(folder: Path, images: int, dim: int, classes: int, long_tail: float) -> None:
    """embedding.npy float32 [N, D], scores.npy float16 [N, C], label.npy int32 [N], in mixed order."""
    rng = np.random.default_rng(0)
    weight = np.arange(1, classes + 1) ** -long_tail
    labels = rng.choice(classes, images, p=weight / weight.sum()).astype(np.int32)
    np.save(folder / "label.npy", labels)
    group = np.repeat(rng.standard_normal((-(-classes // GROUP), dim), np.float32), GROUP, axis=0)
    centres = group[:classes] + 0.5 * rng.standard_normal((classes, dim), np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    open_memmap = np.lib.format.open_memmap
    embeddings = open_memmap(folder / "embedding.npy", "w+", np.float32, (images, dim))
    scores = open_memmap(folder / "scores.npy", "w+", np.float16, (images, classes))
    for i in range(0, images, ROWS):
        label = labels[i : i + ROWS]
        noise = rng.standard_normal((len(label), dim), np.float32) / np.float32(dim**0.5)
        embeddings[i : i + ROWS] = centres[label] + noise
        jitter = rng.standard_normal((len(label), classes), np.float32)
        scores[i : i + ROWS] = 20 * (embeddings[i : i + ROWS] @ centres.T) + jitter
    embeddings.flush()
    scores.flush()


def peak_mib() -> float:
    per_mib = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / per_mib


def one(folder: Path, backend: str, top_classes: int) -> None:
    """Mines by one backend; prints what it took as JSON."""
    import faiss  # noqa: F401
    import jax

    from fgvc_jax.mining.pairs import mine, save

    jax.block_until_ready(jax.numpy.zeros(1))  # the device is there
    names = ("embedding", "scores", "label")
    embeddings, scores, labels = (np.load(folder / f"{name}.npy") for name in names)
    before, start, busy = peak_mib(), time.perf_counter(), time.process_time()
    pairs = mine(
        embeddings, scores, labels, embeddings, labels, top_classes=top_classes, backend=backend
    )
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    grown = peak_mib() - before
    save(pairs, folder / f"{backend}.npz")
    wrong = np.unique(pairs.query[(pairs.slot == 0) & (pairs.label == 0)])
    found = {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(busy, 2),
        "peak_mib": round(grown),
        "inputs_mib": round((embeddings.nbytes + scores.nbytes) / 2**20),
        "pairs": len(pairs.query),
        "positive_share": round(float(pairs.label.mean()), 4),
        "most_probable_class_wrong": round(len(wrong) / len(labels), 4),
    }
    print(json.dumps(found))


def compare(folder: Path) -> dict:
    """How far the pairs of both backends agree. Raises ValueError where they differ by more than ties."""
    from fgvc_jax.mining.pairs import load

    a, b = (load(folder / f"{backend}.npz") for backend in BACKENDS)
    for name in ("query", "slot", "rank"):
        if not np.array_equal(getattr(a, name), getattr(b, name)):
            raise ValueError(f"the backends differ in {name}")
    embeddings = np.load(folder / "embedding.npy", mmap_mode="r")
    differ = np.flatnonzero(a.neighbour != b.neighbour)

    def cosine(pairs) -> np.ndarray:
        x, y = (
            embeddings[rows[differ]].astype(np.float64) for rows in (pairs.query, pairs.neighbour)
        )
        return (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))

    gap = float(np.abs(cosine(a) - cosine(b)).max(initial=0))
    if gap > TIE:
        raise ValueError(f"where the neighbours differ, so do their similarities, by {gap:.2g}")
    apart = float(np.abs(a.similarity - b.similarity).max(initial=0))
    return {
        "pairs": len(a.query),
        "other_neighbour": len(differ),
        "similarity_apart_there_in_float64": float(f"{gap:.2g}"),
        "similarity_apart_anywhere_as_computed": float(f"{apart:.2g}"),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--top_classes", type=int, default=7)
    parser.add_argument("--long_tail", type=float, default=0.5, help="class i has ~ i^-this images")
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "BACKEND"), help=argparse.SUPPRESS)
    add_out(parser)
    args = parser.parse_args()
    if args.one:
        return one(Path(args.one[0]), args.one[1], args.top_classes)

    with tempfile.TemporaryDirectory() as temporary:
        if os.fork() == 0:  # so that its memory goes with it
            make(Path(temporary), args.images, args.dim, args.classes, args.long_tail)
            os._exit(0)
        if os.wait()[1]:
            raise SystemExit("no data could be made")
        labels = np.load(Path(temporary, "label.npy"))
        measured = {}
        for backend in BACKENDS:
            command = [sys.executable, __file__, "--one", temporary, backend]
            command.append(f"--top_classes={args.top_classes}")
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            measured[backend] = json.loads(done.stdout.splitlines()[-1])
            print(backend, measured[backend], flush=True)
        agreement = compare(Path(temporary))
    sizes = np.bincount(labels, minlength=args.classes)
    result = {
        **facts(("fgvc_jax", "jax", "numpy", "faiss-cpu")),
        "images": args.images,
        "dim": args.dim,
        "classes": args.classes,
        "images_a_class": {"least": int(sizes.min()), "most": int(sizes.max())},
        "top_classes": args.top_classes,
        **measured,
        "agreement": agreement,
        "time, jax / faiss": round(measured["jax"]["seconds"] / measured["faiss"]["seconds"], 2),
    }
    write(result, args.out)


if __name__ == "__main__":
    main()
