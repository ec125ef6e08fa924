"""The run's folder: whose it is, what is done in it, and what can be taken from another one."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from fgvc_jax import config as configs
from fgvc_jax.data import manifest as manifests
from fgvc_jax.errors import UserError
from fgvc_jax.phases.context import write_json

LENGTHENED = "LENGTHENED.json"  # in a phase that went on from a shorter one of another workdir


class Lock:
    """One run at a time in a workdir; freed by the system when the process dies."""

    def __init__(self, workdir: Path, main: bool):
        """Args: main, whether this is the process (of several of one run) that writes."""
        self.path = workdir / ".lock" if main else os.devnull

    def __enter__(self):
        self.file = open(self.path, "w")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is running in {Path(self.path).parent}; wait for it or use another "
                "--workdir."
            ) from None

    def __exit__(self, *_):
        self.file.close()


def claim(config: ConfigDict, manifest: manifests.Manifest, workdir: Path, main: bool) -> None:
    """Writes config.json and manifest.json, or refuses a workdir that holds another run.

    Raises:
      UserError: naming the keys that differ, or that the images changed.
    """
    path = workdir / "config.json"
    # A command that failed before it trained may be corrected in the same place.
    begun = [*workdir.glob("*/model.json"), *workdir.glob("seed_*/*/model.json")]
    if begun and path.exists():
        old = configs.flat(ConfigDict(json.loads(path.read_text())))
        new = configs.flat(ConfigDict(json.loads(configs.as_json(config))))
        different = [
            f"  {key}: {old.get(key, 'absent')!r} there, {new.get(key, 'absent')!r} now"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key) and not configs.is_placement(key)
        ]
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
                "what they were. Nothing there was touched. Use a new --workdir."
            )
    if main:
        write_json(path, json.loads(configs.as_json(config)))
        manifests.save(manifest, workdir / "manifest.json")


def done(directory: Path) -> dict:
    """What a phase's DONE.json holds; {} where it is not finished."""
    path = directory / "DONE.json"
    return json.loads(path.read_text()) if path.exists() else {}


def take_over(
    name: str,
    directory: Path,
    hashes: tuple[str, str],
    steps: int,
    sources: Sequence[Path],
    say: Callable[[str], None],
) -> dict:
    """Copies a phase from the first source that has the same one; its DONE.json, or {}.

    Of a training phase that differs only in being shorter, the checkpoints are taken, to go on from.

    Args:
      directory: of the phase in this workdir.
      hashes: of all that the phase depends on, and of all but its length.
      steps: its length.
      sources: workdirs.
    """
    for source in sources:
        there, found = source / name, done(source / name)
        # What came out of a lengthened phase is not what training it in one go would have given.
        lengthened = any(source.glob(f"*/{LENGTHENED}"))
        if found and found["hash"] == hashes[0] and not lengthened:
            _copy(there, directory)
            say(f"{name}: taken from {there}")
            return found
    for source in sources:
        there, found = source / name, done(source / name)
        shorter = found.get("hash_but_length") == hashes[1] and 0 < found.get("steps", 0) < steps
        if shorter and not directory.exists():
            _copy(there, directory, without="DONE.json")
            write_json(directory / LENGTHENED, {"from": str(there), "steps": found["steps"]})
            say(f"{name}: {found['steps']} steps taken from {there}, which differs in length")
            return {}
    return {}


def _copy(there: Path, here: Path, without: str = "") -> None:
    partial = here.with_name(f".{here.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(here, ignore_errors=True)  # an unfinished or outdated one
    shutil.copytree(there, partial, ignore=shutil.ignore_patterns(without))
    os.rename(partial, here)
