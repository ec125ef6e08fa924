"""Images from files to the device: ours against torch's DataLoader, in one run.

    python benchmarks/data.py                      # 600 made photos of 500 x 375
    python benchmarks/data.py --root=shared/photos # class folders of your own

Measured in turn, round after round, so that a busy machine slows all alike:

    decoded   uint8 canvases on the device, every JPEG decoded again (config.data.feed='decoded')
    streamed  the same from the memory-mapped cache (config.data.feed='streamed')
    torch     finished batches of DataLoader(ImageFolder) with torchvision's random-resized-crop, flip and
              normalisation, the same number of workers

What remains to be done with a canvas (crop, flip, normalisation) is done in the train step on the device;
what that costs there is measured by train_step.py (`ours_augmented`, `ours_resident`).
"""

import argparse
import itertools
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from result import add_out, facts, import_torchvision, spread, write

from fgvc_jax import mesh as meshes
from fgvc_jax.data import cache, doctor, feed, sampler
from fgvc_jax.data.sources import folder


def make_photos(root: Path, count: int) -> None:
    """Smooth colours with noise, as JPEG of the usual quality: about as many bytes as a photo has."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:375, :500] / 60
    for number in range(count):
        a, b, c = rng.uniform(0.5, 2, 3)
        smooth = 128 + 90 * np.stack([np.sin(a * x * y), np.cos(b * x - y), np.sin(x + c * y)], -1)
        pixels = (smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
        place = root / "train" / f"class{number % 4}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.jpg", quality=85)


def endless_torch(root: Path, batch: int, workers: int, size: int):
    alive = import_torchvision()
    import torch
    import torchvision
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    images = torchvision.datasets.ImageFolder(root / "train", transform)
    loader = torch.utils.data.DataLoader(
        *(images, batch), shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True
    )
    while alive:
        yield from loader


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, help="folder with train/<class>/*.jpg")
    parser.add_argument("--images", type=int, default=600, help="how many to make without --root")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--canvas", type=int, default=512)
    parser.add_argument("--size", type=int, default=224, help="of torch's finished images")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="threads; processes of torch"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=12, help="in a round")
    parser.add_argument("--torch", action=argparse.BooleanOptionalAction, default=True)
    add_out(parser)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        root = args.root or Path(scratch, "photos")
        if not args.root:
            make_photos(root, args.images)
        result = measure(args, root, Path(scratch, "cache"))
    write(result, args.out)


def measure(args, root: Path, directory: Path) -> dict:
    manifest = folder(root)
    files = manifest.splits["train"].files
    sizes = cache.image_sizes(manifest, files)
    canvas = cache.canvas_side(sizes, resize=round(args.size / 0.875), canvas=args.canvas)
    streams = {}
    if args.torch:  # first, because its workers are forks, which should not inherit jax's threads
        try:
            torch_stream = endless_torch(root, args.batch, args.workers, args.size)
            next(torch_stream)
            streams["torch"] = torch_stream
        except ImportError as error:
            print(f"torch is not measured: {error}")
    before, start = peak(), time.perf_counter()
    look = doctor.look(manifest, directory, resize=args.size, canvas=canvas, feed="streamed")
    canvases = look.canvases(files)
    seconds = time.perf_counter() - start
    preparation = {
        "images": len(files),
        "median_kilobytes": statistics.median(
            os.path.getsize(root / file) for file in files
        ) / 1e3,
        "canvas": canvas,
        "preparation_images_per_second": len(files) / seconds,
        "preparation_peak_memory_mb": peak() - before,
        "cache_mb": canvases.nbytes / 1e6,
    }  # fmt: skip

    feed.THREADS = args.workers
    mesh, order = meshes.make(), sampler.shuffled(len(files), args.batch, seed=0)
    examples = {"index": np.arange(len(files))[:, None]}
    nothing = np.zeros((0, canvas, canvas, 3), np.uint8)
    rows = np.full(len(files), -1)
    decoded = cache.Canvases(nothing, canvases.sizes, rows, files, manifest.read)
    for name, images in (("decoded", decoded), ("streamed", canvases)):
        streams[name] = feed.Feed([images], mesh).stream(order, examples)
    rates = {name: [] for name in streams}
    for number in range(args.rounds):
        for name, stream in streams.items():
            # What was made ahead while the others were measured is not timed.
            for batch in itertools.islice(stream, 4 * args.workers):
                jax.block_until_ready(batch) if name != "torch" else None
            start = time.perf_counter()
            for batch in itertools.islice(stream, args.batches):
                if name != "torch":
                    jax.block_until_ready(batch)
            rates[name].append(args.batch * args.batches / (time.perf_counter() - start))
        latest = ", ".join(f"{name} {column[-1]:.4g}" for name, column in rates.items())
        print(f"round {number + 1}: {latest} images/s", flush=True)
    return {
        **facts(("fgvc_jax", "jax", "grain", "pillow", "torch", "torchvision")),
        "cache": preparation,
        "images_per_second": {name: spread(column) for name, column in rates.items()},
        "ratios": {
            f"{name} / torch": spread(
                [a / b for a, b in zip(rates[name], rates["torch"], strict=True)]
            )
            for name in ("decoded", "streamed")
            if "torch" in rates
        },
    }


def peak() -> float:
    """Largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()
