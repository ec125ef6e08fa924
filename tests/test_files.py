"""Files that are replaced whole, and the lock."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from fgvc_jax import files


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), files.atomic(path) as out:
        out.write(b"half of the n")
        out.flush()
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]
    files.write_text(path, "né caf\udce9.jpg")  # a name that is not UTF-8, as the system gives it
    assert path.read_bytes() == b"n\xc3\xa9 caf\xe9.jpg" and os.listdir(tmp_path) == ["a.txt"]
    files.write_bytes(path, b"\0")
    plain = tmp_path / "plain"
    plain.touch()
    assert path.read_bytes() == b"\0" and path.stat().st_mode == plain.stat().st_mode


def test_json_is_what_any_reader_takes(tmp_path):
    content = {
        "nan": float("nan"),
        "list": [1, float("-inf"), 2.5],
        "tuple": (np.float32("nan"), np.float32(0.5), np.int64(3), np.bool_(True)),
        "array": np.array([[1.0, np.inf]]),
        "jax": jnp.float32(2.0),
        "path": Path("a/b"),
        "é": None,
    }
    files.write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text("utf-8")

    def refuse(word):
        raise AssertionError(word)

    assert json.loads(text, parse_constant=refuse) == {
        "nan": None,
        "list": [1, None, 2.5],
        "tuple": [None, 0.5, 3, True],
        "array": [[1.0, None]],
        "jax": 2.0,
        "path": "a/b",
        "é": None,
    }
    assert '"é"' in text and text.endswith("}\n")
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "a.json", {"a": object()})
    assert (tmp_path / "a.json").read_text("utf-8") == text


def test_cache_folder(monkeypatch):
    monkeypatch.setenv("FGVC_CACHE", "/caches")
    assert files.cache_folder() == Path("/caches") and files.cache_folder("/x") == Path("/x")
    monkeypatch.delenv("FGVC_CACHE")
    assert files.cache_folder() == Path.home() / ".cache/fgvc_jax"
    assert files.cache_folder("~/x") == Path.home() / "x"


HOLD = """
import sys, time
from fgvc_jax import files
with files.locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("killed", [False, True])
def test_the_lock_is_held_against_another_process_until_it_ends(tmp_path, killed):
    path = tmp_path / ".lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(BlockingIOError), files.locked(path, wait=False):
        pass
    if killed:
        other.kill()
    else:
        other.stdin.close()
    other.wait(timeout=60)
    with files.locked(path), pytest.raises(BlockingIOError), files.locked(path, wait=False):
        pass
