"""Time and memory of loading a file of weights, against torch's, in one run (Linux).

    python benchmarks/load_weights.py --out=benchmarks/results/load_weights.json

The files hold a ResNet-50 of torchvision and a ViT-B/16 of timm with random weights, each as torch.save
writes it and as safetensors. Every load is a process of its own, in turn, round after round; the imports,
the making of the model and one reading of the file are over before the clock starts:

    ours    load_pretrained into a backbone of shapes alone, as a run does it
    torch   torch.load(weights_only=True), or safetensors.torch.load_file, and load_state_dict

CPU seconds are of all threads, and what a busy machine disturbs least. Memory is the process's peak during
the load beyond what it held before, mapped files included. torch's model held its arrays before; ours gets
them by the load.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from result import add_out, facts, spread, write

TORCH = """
import runpy, sys
# A CPU torch beside a torchvision built for CUDA: the parity tests know how to import it.
keep = runpy.run_path({parity!r})
import timm, torch, torchvision
from safetensors.torch import load_file, save_file

def make(name):
    return torchvision.models.resnet50() if name == "resnet50" else timm.create_model(name)
"""
WRITE = """
for name, path in zip(sys.argv[1::2], sys.argv[2::2]):
    torch.manual_seed(0)
    state = make(name).state_dict()
    torch.save(state, path + ".pth")
    save_file(state, path + ".safetensors")
"""
MEASURE = """
import json, time
from pathlib import Path

def status(field):  # bytes
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))

Path(path).read_bytes()
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before, start, busy = status("VmRSS"), time.perf_counter(), time.process_time()
load()
seconds, busy = time.perf_counter() - start, time.process_time() - busy
print(json.dumps([seconds, busy, (status("VmHWM") - before) / 2**20]))
"""
OURS_LOAD = """
import sys
import jax
from flax import nnx
from fgvc_jax import backbones
from fgvc_jax.weights import load_pretrained
name, path = sys.argv[1:]
module = nnx.eval_shape(lambda: backbones.create(name, rngs=nnx.Rngs(0)))
jax.block_until_ready(jax.numpy.zeros(1))  # the device is there

def load():
    load_pretrained(module, path)
    jax.block_until_ready(nnx.state(module))
"""
TORCH_LOAD = """
name, path = sys.argv[1:]
model = make(name)

def load():
    safe = path.endswith("safetensors")
    state = load_file(path) if safe else torch.load(path, weights_only=True)
    model.load_state_dict(state)
"""

COLUMNS = ("seconds", "cpu_seconds", "peak_mib")


def child(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    add_out(parser)
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    parity = Path(__file__).resolve().parents[1] / "tests/parity/conftest.py"
    torch = TORCH.format(parity=str(parity))
    codes = {"ours": OURS_LOAD + MEASURE, "torch": torch + TORCH_LOAD + MEASURE}

    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: f"{folder}/{name}" for name in ("resnet50", "vit_base_patch16_224")}
        child(torch + WRITE, *(text for pair in paths.items() for text in pair))
        for number in range(args.rounds):
            for name, path in paths.items():
                for suffix in (".pth", ".safetensors"):
                    row = measured.setdefault(f"{name}{suffix}", {who: [] for who in codes})
                    for who, code in codes.items():
                        row[who].append(json.loads(child(code, name, path + suffix)))
            print(f"round {number + 1} of {args.rounds}", flush=True)
        sizes = {Path(f).name: os.path.getsize(f) / 2**20 for f in Path(folder).iterdir()}

    result = {
        **facts(("fgvc_jax", "jax", "flax", "safetensors", "torch", "torchvision", "timm")),
        "files": {
            file: {"mib": round(sizes[file], 1)}
            | {
                who: {
                    name: spread(values)
                    for name, values in zip(COLUMNS, zip(*column, strict=True), strict=True)
                }
                for who, column in row.items()
            }
            | {
                "time, ours / torch": spread(
                    [a[0] / b[0] for a, b in zip(row["ours"], row["torch"], strict=True)]
                )
            }
            for file, row in measured.items()
        },
    }
    print(f"{'medians':40}" + "".join(f"{name:>24}" for name in COLUMNS))
    print(f"{'file':32}{'MiB':>8}" + f"{'ours':>12}{'torch':>12}" * len(COLUMNS))
    for file, row in result["files"].items():
        medians = [row[who][name]["median"] for name in COLUMNS for who in codes]
        print(f"{file:32}{row['mib']:>8.1f}" + "".join(f"{value:>12.4g}" for value in medians))
    write(result, args.out)


if __name__ == "__main__":
    main()
