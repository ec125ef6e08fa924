"""One of several processes of a tiny run on this machine.

python process.py WORKDIR PORT PROCESSES NUMBER
"""

import logging
import os
import sys
from pathlib import Path

workdir, port, processes, number = sys.argv[1], *map(int, sys.argv[2:])
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=1"
)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax

jax.distributed.initialize(f"127.0.0.1:{port}", processes, number)
import tiny

from fgvc_jax.errors import UserError
from fgvc_jax.run import run
from fgvc_jax.tracking.logs import to_stdout

assert jax.device_count() == jax.process_count() == processes
config = tiny.pipeline()
config.phases = ("finetune", "evaluate")
config.finetune.batch = config.evaluate.batch = 5 * processes
to_stdout()
try:
    run(config, workdir)
except UserError as error:
    logging.getLogger("fgvc_jax").error("error: %s", error)
    sys.exit(2)
