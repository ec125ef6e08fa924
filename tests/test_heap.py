"""Freed memory of a process that computes on a CPU is used again."""

import json
import os
import platform
import subprocess
import sys

import pytest

# Three threads, since glibc gives each its own memory, that allocate and free 64 MiB again and again.
SCRIPT = """
import json, resource, sys, threading
import numpy as np
from fgvc_jax import heap
if sys.argv[1] == "keep":
    heap.keep_freed()
def work(rounds):
    for _ in range(rounds):
        np.ones(2**23)
def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    threads = [threading.Thread(target=work, args=(rounds,)) for _ in range(3)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(2)
print(json.dumps(faults(10)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is told")
def test_memory_is_not_given_back_and_asked_for_again():
    faults = {}
    for kind in ("keep", "usual"):
        command = [sys.executable, "-c", SCRIPT, kind]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        faults[kind] = json.loads(done.stdout)
    # 30 times 64 MiB in pages of 4 KiB are 491,520; larger pages would make fewer on both sides.
    assert faults["keep"] < 0.2 * faults["usual"], faults
