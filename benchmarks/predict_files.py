"""10,000 files through `fgvc predict`, 12 of them damaged: rows, reasons, memory, speed.

    python benchmarks/predict_files.py [--files=10000] [--size=224] [--backbone=resnet18] [--out=FILE.json]

Makes JPEGs of 256 x 256 in a temporary folder and a model folder with random weights, runs the command in a
process of its own, and then measures in this one, on the first --timed files: decoding alone, the forward
pass alone (on canvases in memory), and all of `predictions`, in turns, so that what else runs on the machine
disturbs all three alike. With decoding counted apart, the speed over the forward pass is the forward's
seconds divided by what the whole takes more than decoding alone.
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
from result import add_out, facts, spread, write

import fgvc_jax
from fgvc_jax import model_folder
from fgvc_jax.images.view import View
from fgvc_jax.model import Specification
from fgvc_jax.model_folder import ModelFolder, Support
from fgvc_jax.predictions import predictions
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


def measure(classifier, files: list[str], batch: int, rounds: int) -> dict:
    """Decoding alone, the forward pass alone, and the stream, in turns; after one batch that compiles.

    Returns:
      {'seconds', 'cpu_seconds': sums over the rounds by part; and by round the forward pass's seconds over
      the stream's, 'as_it_is' and less those of decoding, 'decoding_apart': min, median, max}.
    """
    list(classifier.stream(files[:batch], batch))
    _, pixels, sizes = next(classifier.canvases(files[:batch], batch))
    step, weights = classifier._step, classifier.weights

    def decoding(part):
        for _ in classifier.canvases(part, batch):
            pass

    def forward(part):
        for _ in range(-(-len(part) // batch)):
            found = step(weights["params"], weights["batch_stats"], pixels, sizes, np.uint32(0), 0)
            np.asarray(found["scores"])

    def stream(part):
        for _ in predictions(classifier, part, batch=batch):
            pass

    wall, cpu = [], []
    each = -(-len(files) // rounds // batch) * batch  # whole batches
    for start in range(0, len(files), each):
        part = files[start : start + each]
        wall.append({})
        cpu.append({})
        for work in (decoding, forward, stream):
            before = time.perf_counter(), time.process_time()
            work(part)
            wall[-1][work.__name__] = time.perf_counter() - before[0]
            cpu[-1][work.__name__] = time.process_time() - before[1]
    return {
        "rounds": len(wall),
        "seconds": {name: round(sum(r[name] for r in wall), 2) for name in wall[0]},
        "cpu_seconds": {name: round(sum(r[name] for r in cpu), 2) for name in cpu[0]},
        "over_forward": {
            "as_it_is": spread([r["forward"] / r["stream"] for r in wall]),
            "decoding_apart": spread([r["forward"] / (r["stream"] - r["decoding"]) for r in wall]),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--timed", type=int, default=2560, help="files of the rounds")
    parser.add_argument("--rounds", type=int, default=10)
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
        timed = files[: arguments.timed]
        found = measure(fgvc_jax.load(model), timed, arguments.batch, arguments.rounds)
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
        "timed": len(timed),
    } | found
    write(result, arguments.out)
    for row in bad:
        print(f"  {Path(row['file']).name}: {row['error'].replace(row['file'], '')}")


if __name__ == "__main__":
    main()
