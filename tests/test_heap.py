"""Freed memory of a process that computes on a CPU is used again."""

import json
import os
import platform
import subprocess
import sys

import pytest

# Threads, since glibc gives each its own memory, that allocate, fill and free a block again and again.
SCRIPT = """
import json, resource, sys, threading
import numpy as np
from fgvc_jax import heap
if sys.argv[1] == "keep":
    heap.keep_freed()
count, block = map(int, sys.argv[2:])
def work(rounds):
    for _ in range(rounds):
        np.empty(block, np.uint8)[::4096] = 1
def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    threads = [threading.Thread(target=work, args=(rounds,)) for _ in range(count)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(2)
print(json.dumps(faults(5)))
"""


@pytest.mark.parametrize(("threads", "block"), [(3, 64 * 2**20), (1, 2304 * 2**20)])
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is told")
def test_memory_is_not_given_back_and_asked_for_again(threads, block):
    faults = {}
    for kind in ("keep", "usual"):
        command = [sys.executable, "-c", SCRIPT, kind, str(threads), str(block)]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        faults[kind] = json.loads(done.stdout)
    # 15 times 64 MiB in pages of 4 KiB are 245,760; larger pages would make fewer on both sides.
    assert faults["keep"] < 0.2 * faults["usual"], faults
