"""Official archives over HTTP: goes on where it was interrupted, checks the checksum, then renames."""

import hashlib
import http.client
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from fgvc_jax.data.tfds.table import Download
from fgvc_jax.errors import UserError

TRIES = 5  # without a single new byte
BLOCK = 2**18


def fetch(file: Download, folder: Path, *, wait: float = 2.0) -> Path:
    """Downloads a file into a folder, or finds it there.

    It grows as NAME.partial; what is there of it is asked for no second time (HTTP Range).

    Args:
      wait: seconds before the first retry; doubled for each further one.

    Raises:
      UserError: the address cannot be reached, the connection broke too often, or the checksum is
        not the published one (the file is then removed).
    """
    target, partial = folder / file.name, folder / f"{file.name}.partial"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        try:
            _transfer(file, partial, before)
            break
        except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
            status = getattr(error, "code", None)
            got = (partial.stat().st_size if partial.exists() else 0) > before
            failed = 0 if got else failed + 1
            if failed == TRIES or (status and 400 <= status < 500):
                raise UserError(
                    f"{file.url} cannot be downloaded: {error}. The same command goes on where it stopped; "
                    f"or bring {file.name} yourself and pass it with --archive."
                ) from error
            time.sleep(wait * 2**failed)
    if not is_official(file, partial):
        partial.unlink()
        raise UserError(
            f"{file.url}: what came does not have the published checksum {file.digest}; it was removed. "
            f"Try again, or bring {file.name} yourself and pass it with --archive."
        )
    os.replace(partial, target)
    return target


def is_official(file: Download, path: Path) -> bool:
    """Whether a file has the published checksum."""
    kind, _, digest = file.digest.partition(":")
    with open(path, "rb") as content:
        return hashlib.file_digest(content, kind).hexdigest() == digest


def _transfer(file: Download, partial: Path, start: int) -> None:
    """Appends what is missing from `start` on; begins anew where the server cannot go on."""
    if file.bytes and start >= file.bytes:
        return  # complete, or too long to be it: the checksum says which
    request = urllib.request.Request(file.url, headers={"User-Agent": "fgvc_jax"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing is left: it was complete
            return
        raise
    with response:
        if response.status != 206:
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else file.bytes or None
        with (
            open(partial, "ab" if start else "wb") as out,
            tqdm(
                desc=file.name,
                total=total,
                initial=start,
                unit="B",
                unit_scale=True,
                disable=not sys.stderr.isatty(),
            ) as bar,
        ):
            while block := response.read(BLOCK):
                out.write(block)
                bar.update(len(block))
        if total and partial.stat().st_size < total:
            raise http.client.IncompleteRead(b"", total - partial.stat().st_size)
