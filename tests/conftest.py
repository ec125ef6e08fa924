"""Shared by all tests: the CPU, quick compilation, and caches that are thrown away afterwards."""

import gc
import logging
import os
import re
import tempfile
from pathlib import Path

import pytest

# Before jax is imported; subprocesses and other workers of one session inherit it all. Tests run what they
# compile once or twice, so the compiler's optimizations cost more than they save. With the older emitter of
# fused loops, and one LLVM module a program in place of 32, a train step compiles in a quarter of the time.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if "FGVC_TESTS" not in os.environ:
    quick = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick}"
    _caches = tempfile.TemporaryDirectory(prefix="fgvc_tests_")
    os.environ["FGVC_TESTS"] = os.environ["FGVC_CACHE"] = _caches.name
    os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{_caches.name}/xla"
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"


# A handler of an earlier test may hold a stream that pytest has closed.
logging.raiseExceptions = False
logging.getLogger("fgvc_jax").setLevel(logging.INFO)  # so that caplog sees what a user sees


def pytest_addoption(parser):
    """For tests/parity; an option has to be known before any folder below is looked at."""
    parser.addoption("--torch-checkpoint", help="a torch file: its forward pass against ours")
    parser.addoption("--torch-model", help="the library's name of its model, where it is another")


def pytest_collection_finish():
    """Tracing makes many small objects that are no garbage, among a million of imported modules.

    Looking through them all again and again took a quarter of the time that tracing takes.
    """
    gc.freeze()
    gc.set_threshold(100_000, 50, 1000)


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """Lets go of compiled programs after a file of tests, where a process holds more than 3 GB."""
    yield
    status = Path("/proc/self/status")
    held = re.search(r"VmRSS:\s+(\d+)", status.read_text()) if status.exists() else None
    if held and int(held[1]) > 3e6:  # kB
        import jax

        jax.clear_caches()
        gc.collect()
