"""Files that are whole or not there, a lock that dies with its process, and the folder of caches."""

import contextlib
import fcntl
import json
import math
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


def cache_folder(given: str | os.PathLike = "") -> Path:
    """Where caches lie: as given, else $FGVC_CACHE, else ~/.cache/fgvc_jax."""
    return Path(given or os.environ.get("FGVC_CACHE") or "~/.cache/fgvc_jax").expanduser()


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file to write to, which takes the place of `path` when the block ends without an error.

    A reader sees the old file or the new one, whole. After an error the old one stays and nothing else
    is left. The folder must exist. The file has the usual permissions.
    """
    path = Path(path)
    # A name of its own: two that write the same file at once do not mix, on two hosts or in two containers
    # whose process ids are the same either.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        with open(partial, "wb") as out:
            yield out
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Replaces a file, see `atomic`."""
    with atomic(path) as out:
        out.write(content)


def write_text(path: str | os.PathLike, content: str) -> None:
    """Replaces a text file, see `atomic`: UTF-8, and names of files that are not UTF-8 as they came."""
    write_bytes(path, content.encode("utf-8", "surrogateescape"))


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Replaces a JSON file, see `atomic`. NaN and infinities, which JSON does not have, become null."""
    write_text(path, to_json(content))


def to_json(content: Any) -> str:
    """JSON text with a line break at the end, non-ASCII letters as they are.

    NumPy's and JAX's numbers and arrays become numbers and lists, paths strings; NaN and infinities null.

    Raises:
      TypeError: for anything else that JSON does not have.
    """
    return json.dumps(plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """A value as JSON has it, see `to_json`: NaN and infinities are None."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "__array__"):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextlib.contextmanager
def locked(path: str | os.PathLike, *, wait: bool = True) -> Iterator[None]:
    """Holds an exclusive lock, a file at `path`, for the block. The system frees it if the process dies.

    Args:
      path: of the lock's file; it is made where it is missing and stays.
      wait: for another process that holds it.

    Raises:
      BlockingIOError: another process holds it, and `wait` is False.
    """
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
