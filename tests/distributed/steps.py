"""A few steps of training on as many virtual CPU devices as asked for; the end state goes to a file.

python steps.py OUT.npz DEVICES FSDP METHOD
"""

import os
import sys
from pathlib import Path

out, devices, shard, method = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
flags = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}"
os.environ["JAX_ENABLE_X64"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import numpy as np
import tiny

from fgvc_jax import phases
from fgvc_jax.train.checkpoint import Checkpoints

assert jax.device_count() == int(devices)
config = tiny.pipeline()
config.model.dtype = config.model.param_dtype = "float64"
config.devices.fsdp = shard
workdir = Path(out).parent / f"{method}_{devices}_{shard}"
run, data, models = tiny.parts(config, workdir)
if method == "pairs":
    from fgvc_jax.mining import pairs

    count = np.arange(40, dtype=np.int32)
    labels = data.labels("train")
    zeros = np.zeros(40, np.int32)
    found = pairs.Pairs(
        count, count + 1, (labels[:40] == labels[1:41]).astype(np.int32), zeros, zeros, zeros
    )
    pairs.save(found, run.directory("mine") / "train_pairs.npz")
    config.pairs.init.phase = ""
    config.pairs.length = "4 steps"
else:
    config.finetune.length = "4 steps"
phase = "pairs" if method == "pairs" else "finetune"
next(p for p in phases.of(config) if p.name == phase).run(run, data, models)
checkpoints = Checkpoints(workdir / phase / "checkpoints")
state = checkpoints.manager.restore(4)["weights"]
checkpoints.close()
np.savez(out, **{f"{kind}/{k}": v for kind, flat in state.items() for k, v in flat.items()})
