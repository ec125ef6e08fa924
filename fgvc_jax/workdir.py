"""The run's folder: whose it is, what is done in it, and what can be taken from another one."""

import contextlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from fgvc_jax import config as configs
from fgvc_jax import files, phases
from fgvc_jax import mesh as meshes
from fgvc_jax.data import manifest as manifests
from fgvc_jax.errors import UserError
from fgvc_jax.model import read_done

log = logging.getLogger(__name__)

LENGTHENED = "LENGTHENED.json"  # in a phase that went on from a shorter one of another workdir


@contextlib.contextmanager
def locked(workdir: Path, main: bool) -> Iterator[None]:
    """One run at a time in a workdir; the system frees the lock when the process dies.

    Args:
      main: whether this is the process (of several of one run) that writes; the others lock nothing.

    Raises:
      UserError: another run holds it.
    """
    if not main:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.locked(workdir / ".lock", wait=False))
        except BlockingIOError:
            raise UserError(
                f"another process is running in {workdir}; wait for it or use another --workdir."
            ) from None
        yield


def check_shared(workdir: Path, patience: float = 10.0) -> None:
    """Refuses a workdir that not all processes see; all must call it.

    Args:
      patience: seconds that a network's disk may take to show a new file.

    Raises:
      UserError: in each process that does not see what the first one wrote.
    """
    if jax.process_count() == 1:
        return
    token = int(multihost_utils.broadcast_one_to_all(np.uint32(secrets.randbits(32))))
    path = workdir / f".shared_{token:08x}"
    if jax.process_index() == 0:
        path.touch()
    meshes.wait_for_all("wrote the file that all must see")
    until = time.monotonic() + patience
    while not path.exists():
        if time.monotonic() > until:
            raise UserError(
                f"process {jax.process_index()} does not see in --workdir={workdir} what the first process "
                "wrote there. All processes of a run need one workdir, on a disk that their hosts share."
            )
        time.sleep(0.2)
    meshes.wait_for_all("all saw it")
    if jax.process_index() == 0:
        path.unlink()


def claim(config: ConfigDict, manifest: manifests.Manifest, workdir: Path, main: bool) -> None:
    """Writes config.json and manifest.json, or refuses a workdir that holds another run.

    Raises:
      UserError: naming the keys that differ, or that the images changed.
    """
    path = workdir / "config.json"
    # A command that failed before it trained may be corrected in the same place.
    begun = [*workdir.glob("*/model.json"), *workdir.glob("seed_*/*/model.json")]
    if begun and path.exists():
        different = _differences(ConfigDict(json.loads(path.read_text())), config)
        if different:
            more = f"\n  and {len(different) - 10} more" if len(different) > 10 else ""
            raise UserError(
                f"{workdir} holds the run of another config:\n"
                + "\n".join(different[:10])
                + more
                + f"\nNothing there was touched. Use a new --workdir; with --reuse={workdir} it takes over "
                "the phases that are the same. Or start with the config that made it."
            )
    if begun and (workdir / "manifest.json").exists():
        before, now = manifests.digest_saved(workdir / "manifest.json"), manifests.digest(manifest)
        if before != now:
            raise UserError(
                f"the images or labels have changed since {workdir} was started; its manifest.json lists "
                "what they were (config.data.labels_patch changes them too). Nothing there was touched. "
                "Use a new --workdir."
            )
    if main:
        files.write_text(path, configs.as_json(config) + "\n")
        manifests.save(manifest, workdir / "manifest.json")


def _differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """The keys that differ, one line each. A key that one of them lacks counts as at its default there."""
    there, here = configs.plain(old), configs.plain(new)
    usual = configs.plain(phases.complete_base(new))
    for name in phases.sections(new):
        own = phases.complete_defaults(new[name])
        usual |= {f"{name}.{key}": value for key, value in configs.plain(own).items()}
    lines = []
    for key in sorted(there.keys() | here.keys()):
        before, now = (side.get(key, usual.get(key, "absent")) for side in (there, here))
        if before != now and not configs.is_placement(key):
            lines.append(f"  {key}: {before!r} there, {now!r} now")
    return lines


def take_over(
    name: str,
    directory: Path,
    hashes: tuple[str, str],
    steps: int,
    sources: Sequence[Path],
) -> None:
    """Copies a phase from the first source that has the same one.

    Of a training phase that differs only in being shorter, the checkpoints are taken, to go on from.

    Args:
      directory: of the phase in this workdir.
      hashes: of all that the phase depends on, and of all but its length.
      steps: its length.
      sources: workdirs.
    """
    for source in sources:
        there, found = source / name, read_done(source / name)
        # What came out of a lengthened phase is not what training it in one go would have given.
        lengthened = any(source.glob(f"*/{LENGTHENED}"))
        if found and found["hash"] == hashes[0] and not lengthened:
            _copy(there, directory)
            log.info("%s: taken from %s", name, there)
            return
    for source in sources:
        there, found = source / name, read_done(source / name)
        shorter = found.get("hash_but_length") == hashes[1] and 0 < found.get("steps", 0) < steps
        if shorter and not directory.exists():
            _copy(there, directory, without="DONE.json")
            files.write_json(directory / LENGTHENED, {"from": str(there), "steps": found["steps"]})
            log.info(
                "%s: %s steps taken from %s, which differs in length", name, found["steps"], there
            )
            return


def _copy(there: Path, here: Path, without: str = "") -> None:
    partial = here.with_name(f".{here.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(here, ignore_errors=True)  # an unfinished or outdated one
    shutil.copytree(there, partial, ignore=shutil.ignore_patterns(without))
    os.rename(partial, here)
