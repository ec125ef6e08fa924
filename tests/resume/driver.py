"""Runs the tiny pipeline in a process of its own, and kills it where the test says.

    python driver.py WORKDIR [PHASE STEP SIGNAL]

SIGNAL is sent to the process itself once PHASE has dispatched STEP; for a mining phase, while it saves its
pairs. Nothing of the package knows about this.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tiny

from fgvc_jax.mining import pairs
from fgvc_jax.run import run
from fgvc_jax.tracking.logs import to_stdout
from fgvc_jax.tracking.progress import Progress
from fgvc_jax.train.stop import Interrupted

workdir, *when = sys.argv[1:]
if when:
    phase, step, number = when[0], int(when[1]), int(when[2])
    update = Progress.update

    def update_and_die(self, steps=1, text=""):
        update(self, steps, text)
        if self.phase == phase and self.step == step and steps:
            os.kill(os.getpid(), number)

    Progress.update = update_and_die
    if phase == "mine":
        pairs.save = lambda *_: os.kill(os.getpid(), number)
to_stdout()
try:
    run(tiny.pipeline(), workdir)
except Interrupted as interrupted:
    sys.exit(128 + interrupted.signal)
