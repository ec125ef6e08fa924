"""One of several processes of a tiny run on this machine, as the command line starts it.

python process.py WORKDIR PORT PROCESSES NUMBER [FAULT@PLACE]

FAULT: 'raise' an error, or 'hang' until it is killed. PLACE: 'data', before anything is compiled, or
'validation', the second one, so after a checkpoint. $TINY_OPTIONS, a JSON object: batch, phases, length,
dtype, devices (of each process), gone (seconds, see fgvc_jax.processes.GONE), images (a folder, else the
digits), config (further keys), caches (a folder for each process). At the end each prints how many times it
has read an image.
"""

import dataclasses
import json
import os
import sys
import time
from pathlib import Path

workdir, port, count, number = sys.argv[1:5]
fault, _, place = sys.argv[5].partition("@") if len(sys.argv) > 5 else ("", "", "")
options = json.loads(os.environ.get("TINY_OPTIONS", "{}"))
devices = options.get("devices", 1)
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
)
if "caches" in options:
    os.environ["FGVC_CACHE"] = options["caches"][int(number)]
os.environ["JAX_ENABLE_X64"] = "1" if options.get("dtype") == "float64" else "0"
tests = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(tests))

from fgvc_jax import cli, evaluators, processes
from fgvc_jax.data import doctor, load

classify, validations = evaluators.get("classify"), []
validate = classify.validate


def broken(*args, **kwargs):
    print("at the fault", flush=True)
    while fault == "hang":
        time.sleep(0.1)
    raise ValueError("this process broke")


def broken_the_second_time(*args):
    validations.append(None)
    return validate(*args) if len(validations) == 1 else broken()


if place == "data":
    doctor.judge = broken
if place == "validation":
    classify.validate = broken_the_second_time
read_data, reads = load.read, []


def counted(settings):
    manifest = read_data(settings)

    def read(file):
        reads.append(file)
        return manifest.read(file)

    return dataclasses.replace(manifest, read=read)


load.read = counted
processes.GONE = options.get("gone", processes.GONE)
sys.argv = ["fgvc", f"--config={tests / 'distributed' / 'spread_run.py'}", f"--workdir={workdir}"]
if int(count) > 1:
    sys.argv += ["--distributed", f"--coordinator=127.0.0.1:{port}"]
    sys.argv += [f"--processes={count}", f"--process={number}"]
status = cli.run("train")
print(f"read {len(reads)} images")
sys.exit(status)
