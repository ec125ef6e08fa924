"""10,000 files through `fgvc predict`, 12 of them damaged: rows, reasons, memory, speed.

    python benchmarks/predict_files.py [--files=10000] [--size=224] [--backbone=resnet18] [--out=FILE.json]

Makes JPEGs of 256 x 256 in a temporary folder and a model folder with random weights, runs the command in a
process of its own, and then measures in this one, on the same files: decoding alone, the forward pass alone
(on canvases in memory), and the whole stream. With decoding counted apart, the speed over the
forward pass is the forward's seconds divided by what the stream takes more than decoding alone.
"""

import argparse
import csv
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from flax import nnx
from PIL import Image
from result import add_out, facts, write

import fgvc_jax
import fgvc_jax.predictions
from fgvc_jax import model_folder
from fgvc_jax.images.view import View
from fgvc_jax.model import Specification
from fgvc_jax.model_folder import ModelFolder, Support
from fgvc_jax.train import tree

DAMAGED = 12
CLASSES = 200
# The command, and then the most memory that its process held, which Linux keeps.
COMMAND = """
import sys
from fgvc_jax import cli
status = cli.main()
print(open("/proc/self/status").read(), file=sys.stderr)
sys.exit(status)
"""


def make_files(folder: Path, count: int) -> list[str]:
    """JPEGs with coarse structure, as large as photos are; 12 at even places are damaged in several ways."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (64, 16, 16, 3), np.uint8)
    damage = [b"", b"no image", None, "truncated"]
    for number in range(count):
        path = folder / f"{number:05d}.jpg"
        small = Image.fromarray(np.roll(base[number % 64], number // 64, axis=0))
        small.resize((256, 256), Image.Resampling.BICUBIC).save(path, quality=90)
    for place, number in enumerate(np.linspace(7, count - 5, DAMAGED).astype(int)):
        path, kind = folder / f"{number:05d}.jpg", damage[place % len(damage)]
        content = path.read_bytes()
        if kind == "truncated":
            path.write_bytes(content[: len(content) // 2])
        else:
            path.write_bytes(content[:40] if kind is None else kind)
    return sorted(map(str, folder.iterdir()))


def make_model(folder: Path, backbone: str, size: int) -> None:
    view = View(size, round(size / 0.875), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    names = tuple(f"class {number}" for number in range(CLASSES))
    specification = Specification(backbone, "baseline", names, view, canvas=256)
    arrays = tree.weights(specification.build(0))
    arrays = {path: np.asarray(x) for part in arrays.values() for path, x in part.items()}
    rng, width = np.random.default_rng(1), nnx.eval_shape(specification.build).backbone.info.width
    support = Support(
        rng.normal(size=(6000, width)).astype(np.float32),
        rng.integers(0, CLASSES, 6000),
        np.array([f"train/{number}.jpg" for number in range(6000)]),
    )
    confidence = rng.uniform(0, 1, 1000)
    calibration = {
        "images": 1000,
        "temperature": 1.0,
        "confidence": confidence.tolist(),
        "right": (rng.uniform(0, 1, 1000) < confidence).astype(int).tolist(),
        "distance": {"neighbour": 5, "quantile": 0.99, "value": 0.5},
    }
    folder.mkdir()
    content = ModelFolder(specification, arrays, {}, calibration, support)
    model_folder.save(folder, content, "made\n")


def measure(classifier, files: list[str], batch: int) -> dict[str, float]:
    """Seconds: decoding alone, forward alone, the stream; after one batch that compiles."""
    list(classifier.stream(files[:batch], batch))
    start = time.perf_counter()
    for _ in classifier.canvases(files, batch):
        pass
    decoding = time.perf_counter() - start
    _, pixels, sizes = next(classifier.canvases(files[:batch], batch))
    step, weights = classifier._step, classifier.weights
    start = time.perf_counter()
    for _ in range(-(-len(files) // batch)):
        found = step(weights["params"], weights["batch_stats"], pixels, sizes, np.uint32(0), 0)
        np.asarray(found["scores"])
    forward = time.perf_counter() - start
    start = time.perf_counter()
    for _ in fgvc_jax.predictions.predictions(classifier, files, batch=batch):
        pass
    return {"decoding": decoding, "forward": forward, "stream": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--batch", type=int, default=64)
    add_out(parser)
    arguments = parser.parse_args()
    result = facts(("jax", "numpy", "pillow"))
    with tempfile.TemporaryDirectory() as top:
        photos, model, out = Path(top, "photos"), Path(top, "model"), Path(top, "preds.csv")
        photos.mkdir()
        files = make_files(photos, arguments.files)
        make_model(model, arguments.backbone, arguments.size)
        command = [sys.executable, "-c", COMMAND, "predict", str(model), str(photos)]
        command += [f"--out={out}", f"--batch={arguments.batch}"]
        start = time.perf_counter()
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        seconds = time.perf_counter() - start
        peak = int(re.search(r"VmHWM:\s+(\d+) kB", done.stderr)[1]) / 2**20
        with open(out, newline="") as file:
            rows = list(csv.DictReader(file))
        bad = [row for row in rows if row["error"]]
        found = measure(fgvc_jax.load(model), files, arguments.batch)
    result |= {
        "backbone": arguments.backbone,
        "size": arguments.size,
        "batch": arguments.batch,
        "exit_status": done.returncode,
        "rows": len(rows),
        "reasons": len(bad),
        "command_seconds": seconds,
        "command_images_per_second": len(rows) / seconds,
        "command_peak_gib": peak,
        "seconds": found,
        "over_forward_decoding_apart": found["forward"] / (found["stream"] - found["decoding"]),
        "over_forward_as_it_is": found["forward"] / found["stream"],
    }
    write(result, arguments.out)
    for row in bad:
        print(f"  {Path(row['file']).name}: {row['error'].replace(row['file'], '')}")


if __name__ == "__main__":
    main()
