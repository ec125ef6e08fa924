"""Files over HTTP: goes on where it was interrupted, and checks the hash before the file gets its name."""

import hashlib
import http.client
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from fgvc_jax.errors import UserError
from fgvc_jax.files import locked

TRIES = 5  # without a single new byte
BLOCK = 2**18


def fetch(url: str, target: Path, digest: str, *, bring: str, wait: float = 2.0) -> Path:
    """Downloads a file, or finds it there. Of several processes one downloads and the others wait.

    It grows as NAME.partial; what is there of it is asked for no second time (HTTP Range).

    Args:
      digest: 'sha256:...' or 'md5:...', the whole of it or its beginning; '' = none is published.
      bring: what to do where this fails, for the message.
      wait: seconds before the first retry; doubled for each further one.

    Raises:
      UserError: the address cannot be reached, the connection broke too often, the folder cannot be
        written, or the hash is another (the file is then removed).
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(f".{target.name}.lock")):
            if not target.exists():
                _download(url, target, digest, bring, wait)
    except OSError as error:
        raise UserError(f"{url} cannot be downloaded to {target}: {error}. {bring}") from error
    return target


def has_digest(path: Path, digest: str) -> bool:
    """Whether a file's hash begins as it should."""
    kind, _, beginning = digest.partition(":")
    with open(path, "rb") as content:
        return hashlib.file_digest(content, kind).hexdigest().startswith(beginning)


def _download(url: str, target: Path, digest: str, bring: str, wait: float) -> None:
    partial = target.with_name(f"{target.name}.partial")
    failed = attempts = 0
    while True:
        attempts += 1
        before = partial.stat().st_size if partial.exists() else 0
        try:
            _transfer(url, partial, before)
            break
        except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
            status = getattr(error, "code", None)
            got = (partial.stat().st_size if partial.exists() else 0) > before
            failed = 0 if got else failed + 1
            unreachable = attempts == 1 and type(error) is urllib.error.URLError
            if failed == TRIES or unreachable or (status and 400 <= status < 500):
                raise UserError(
                    f"{url} cannot be downloaded: {error}. The same command goes on where it stopped. "
                    f"{bring}"
                ) from error
            time.sleep(wait * 2**failed)
    if digest and not has_digest(partial, digest):
        partial.unlink()
        raise UserError(
            f"{url}: what came does not have the published checksum {digest}; it was removed. Try "
            f"again. {bring}"
        )
    os.replace(partial, target)


def _transfer(url: str, partial: Path, start: int) -> None:
    """Appends what is missing from `start` on; begins anew where the server cannot go on."""
    request = urllib.request.Request(url, headers={"User-Agent": "fgvc_jax"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if (
            error.code == 416 and start
        ):  # nothing is left: it was complete, which the hash will tell
            return
        raise
    with response:
        if response.status != 206:
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        with (
            open(partial, "ab" if start else "wb") as out,
            tqdm(
                desc=partial.stem,
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
