"""Shared by all tests: the CPU, and caches that are thrown away afterwards."""

import os
import tempfile
from pathlib import Path

import pytest

# Before jax is imported. One compilation cache for all tests of a session, subprocesses included.
_caches = tempfile.TemporaryDirectory(prefix="fgvc_tests_")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["FGVC_CACHE"] = _caches.name
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(_caches.name, "xla"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"


@pytest.fixture
def no_logs():
    return lambda line: None
