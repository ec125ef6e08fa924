"""Runs the parity tests and writes docs/parity.md from what they measured.

    python benchmarks/parity.py             # with the heavy sweeps: every variant at full width
    python benchmarks/parity.py --quick     # what `pytest` runs
    python benchmarks/parity.py --loading   # only the loading times anew

Loading times come from load_weights.py, which is run last, when the tests no longer disturb it.
"""

import argparse
import datetime
import json
import os
import runpy
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from result import cpu_name, import_torchvision, versions

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / "benchmarks/results/parity.json"
BOUNDS = {
    "forward": 1e-5,
    "gradient": 1e-10,
    "statistics": 1e-12,
    "SGD update": 1e-9,
    "SAM update": 1e-9,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="without the tests marked slow")
    parser.add_argument("--loading", action="store_true", help="errors as measured before")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/parity.md")
    args = parser.parse_args()
    passed = True
    if not args.loading:
        measured, passed = measure(args.quick)
        rows = [[*key, row] for key, row in sorted(measured.items())]
        MEASURED.write_text(json.dumps(rows, indent=1) + "\n")
    errors = {(name, layout): row for name, layout, row in json.loads(MEASURED.read_text())}
    loading = json.loads(load_times().read_text())
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(page(errors, counts(), loading))
    print(f"written: {args.out}")
    if not passed:
        sys.exit("but tests failed, see above: not to be published")


def measure(quick: bool) -> tuple[dict[tuple[str, str], dict[str, float]], bool]:
    """(backbone, layout) -> {what: largest error}, and whether all tests passed."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pytest", "tests/parity"]
        command += [] if quick else ["-m", "not accelerator"]
        environment = os.environ | {"FGVC_PARITY_RECORD": folder}
        done = subprocess.run(command, cwd=ROOT, env=environment)
        for path in Path(folder).glob("*.json"):
            for name, layout, what, error in json.loads(path.read_text()):
                row = found.setdefault((name, layout), {})
                row[what] = max(error, row.get(what, 0.0))
    return found, not done.returncode


def load_times() -> Path:
    out = "benchmarks/results/load_weights.json"
    command = [sys.executable, "benchmarks/load_weights.py", "--rounds=3", f"--out={out}"]
    subprocess.run(command, cwd=ROOT, check=True)
    return ROOT / out


def counts() -> dict[str, tuple[int, int, str]]:
    """By backbone with a classifier of 1000 classes: our parameters, theirs, and whose these are."""
    alive = import_torchvision()
    import jax
    import timm
    import torch
    import torchvision
    from flax import nnx

    from fgvc_jax import backbones

    renamed = runpy.run_path(str(ROOT / "tests/parity/compare.py"))["TORCHVISION"]
    found = {}
    for name in backbones.names():
        module = nnx.eval_shape(lambda name=name: backbones.create(name, rngs=nnx.Rngs(0)))
        ours = sum(p.size for p in jax.tree.leaves(nnx.state(module, nnx.Param)))
        ours += 1000 * (module.info.width + 1)
        theirs = renamed.get(name, name)
        if alive and theirs in torchvision.models.list_models():
            weights = torchvision.models.get_model_weights(theirs)
            found[name] = ours, next(iter(weights)).meta["num_params"], "torchvision, published"
        else:
            with torch.device("meta"):
                model = timm.create_model(name, num_classes=1000)
            found[name] = ours, sum(p.numel() for p in model.parameters()), "timm, its module"
    return found


def page(errors, counts, loading) -> str:
    date = datetime.datetime.now(datetime.UTC).date()
    packages = versions(("jax", "flax", "torch", "torchvision", "timm"))
    on = ", ".join(f"{name} {version}" for name, version in packages.items())
    return (
        "\n\n".join(
            [
                "# Parity with torch, in numbers",
                f"Made by `{' '.join(['python', *sys.argv])}` on {date}, {cpu_name()}, {on}.",
                prose(REFERENCES),
                "## Errors",
                prose(ERRORS),
                table(("backbone", "layout", *BOUNDS), error_rows(errors)),
                "## Parameters",
                prose(PARAMETERS),
                table(("backbone", "ours", "theirs", "whose"), count_rows(counts)),
                "## Loading a file",
                prose(LOADING),
                table(LOADING_COLUMNS, loading_rows(loading)),
                "",
            ]
        ).rstrip()
        + "\n"
    )


REFERENCES = """
    The references are torchvision's and timm's own modules with random weights and BatchNorm statistics
    far from 0 and 1, written as their libraries write them and read by `load_pretrained`. Real
    pretrained files were not at hand: `pytest tests/parity --torch-checkpoint=FILE` does the same with
    one of yours."""
ERRORS = f"""
    forward: `pooled` and the maps at every tap, float32, relative to the largest value (bound
    {BOUNDS["forward"]:g}; torch's own distance to float64 is about 1e-6). gradient: float64, each
    tensor relative to max(its norm, 1e-6 of the whole gradient's) (bound {BOUNDS["gradient"]:g}).
    statistics: the running ones after a training step, float64 (bound {BOUNDS["statistics"]:g}).
    updates: 20 steps of the project's own train step, float64, each from torch's weights (bound
    {BOUNDS["SGD update"]:g}). Gradients and updates are of nets with the real structure but few blocks."""
PARAMETERS = "With a classifier of 1000 classes."
LOADING = """
    Against `torch.load(weights_only=True)` (or safetensors) and `load_state_dict`; medians. Memory is
    the peak beyond what the process held before: torch's model held its arrays before, ours gets them
    by the load."""
LOADING_COLUMNS = ("file", "MiB", "ours, s", "torch, s", "ours / torch", "ours, MiB", "torch, MiB")


def prose(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 110)


def table(columns, rows) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def error_rows(errors):
    for (name, layout), row in sorted(errors.items()):
        yield [name, layout, *(f"{row[what]:.1e}" if what in row else "" for what in BOUNDS)]


def count_rows(counts):
    for name, (ours, theirs, whose) in counts.items():
        yield [name, f"{ours:,}", f"{theirs:,}", whose]


def loading_rows(loading):
    for file, row in loading["files"].items():
        ours, torch = row["ours"], row["torch"]
        yield [
            file,
            f"{row['mib']}",
            f"{ours['seconds']['median']:.3f}",
            f"{torch['seconds']['median']:.3f}",
            f"{row['time, ours / torch']['median']:.2f}",
            f"{ours['peak_mib']['median']:.0f}",
            f"{torch['peak_mib']['median']:.0f}",
        ]


if __name__ == "__main__":
    main()
