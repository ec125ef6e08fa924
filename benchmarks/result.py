"""What the scripts here share: when, on what and with what a result was measured, and how it is written."""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import runpy
import shlex
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path


def facts(packages: Iterable[str]) -> dict:
    """Command, date, hardware and versions."""
    hardware = {
        "cpu": f"{len(os.sched_getaffinity(0))} cores, {cpu_name()}",
        "load_average": os.getloadavg(),
    }
    if "jax" in sys.modules:
        devices = sys.modules["jax"].devices()
        hardware = {"devices": f"{len(devices)} x {devices[0].device_kind}"} | hardware
    return {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": hardware,
        "versions": versions(packages),
    }


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def spread(values) -> dict[str, float]:
    short = [float(f"{v:.4g}") for v in (min(values), statistics.median(values), max(values))]
    return dict(zip(("min", "median", "max"), short, strict=True))


def import_torchvision():
    """Also a CPU torch beside a torchvision built for CUDA: the parity tests know how. Keep the result."""
    return runpy.run_path(str(Path(__file__).resolve().parents[1] / "tests/parity/conftest.py"))


def add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="JSON file for the result")


def write(result: dict, out: Path | None) -> None:
    """Prints a result, and writes it where a file is named."""
    text = json.dumps(result, indent=1)
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")
