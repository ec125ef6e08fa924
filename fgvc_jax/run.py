"""Runs the phases of a config in order: finished ones are skipped, an unfinished one goes on."""

import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import jax
from ml_collections import ConfigDict

from fgvc_jax import config as configs
from fgvc_jax import plan
from fgvc_jax.data import manifest as manifests
from fgvc_jax.data.load import load
from fgvc_jax.errors import UserError
from fgvc_jax.metrics.progress import duration
from fgvc_jax.phases import embed, evaluate, mine, train
from fgvc_jax.phases.context import Context, write_json
from fgvc_jax.train import mesh as meshes
from fgvc_jax.train.stop import Interrupted, Stop
from fgvc_jax.weights.published import locate

PHASES = {"train": train.run, "embed": embed.run, "mine": mine.run, "evaluate": evaluate.run}
PACKAGES = ("fgvc_jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "faiss-cpu", "numpy")


def run(
    config: ConfigDict,
    workdir: str | os.PathLike,
    *,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, dict]:
    """Runs every phase of `config.phases` that is not yet done in this workdir.

    Args:
      config: see `fgvc_jax.config`.
      workdir: the run's folder; one folder a phase, config.json, manifest.json.
      dry_run: two steps of every phase on 64 images, in workdir/dry_run, which is emptied first.
      say: gets every line of the log.

    Returns:
      What each phase's DONE.json holds, by phase.

    Raises:
      UserError: for what the user can mend.
      Interrupted: after Ctrl-C or SIGTERM; the same call goes on.
    """
    configs.check(config)
    workdir = Path(workdir).expanduser().resolve()
    if dry_run:
        config, workdir = plan.shrink(config), workdir / "dry_run"
        shutil.rmtree(workdir, ignore_errors=True)
    main = jax.process_index() == 0
    say_all, say = say, say if main else lambda line: None
    say(f"device: {meshes.name_devices()}")
    use_compilation_cache()
    workdir.mkdir(parents=True, exist_ok=True)
    with _lock(workdir, main), Stop() as stop:
        _check_workdir(config, workdir)
        found = _find_inputs(config, say)
        if dry_run:
            found = plan.few_images(found)
        if main:
            write_json(workdir / "config.json", json.loads(configs.as_json(config)))
            manifests.save(found, workdir / "manifest.json")
        say(describe_data(found))
        context = Context(config, workdir, found, say, stop)
        try:
            results = _phases(context)
        except Interrupted:
            say_all("stopped; everything is saved, the same command goes on from here.")
            raise
    for line in summary(context):
        say(line)
    return results


def _find_inputs(config: ConfigDict, say) -> manifests.Manifest:
    """The data; one UserError that names all that is missing, weights included."""
    missing, found = [], None
    try:
        found = load(config.data, say)
    except UserError as error:
        missing.append(str(error))
    if config.model.pretrained:
        try:
            locate(config.model.pretrained)
        except UserError as error:
            missing.append(str(error))
    if missing:
        raise UserError("\n".join(missing))
    return found


def _phases(context: Context) -> dict[str, dict]:
    config, say = context.config, context.say
    names = configs.phases(config)
    hashes: dict[str, str] = {}
    for name in names:
        hashes[name] = configs.phase_hash(config, name, hashes)
    done = {}
    for name in names:
        path = context.workdir / name / "DONE.json"
        content = json.loads(path.read_text()) if path.exists() else {}
        if content.get("hash") == hashes[name]:
            done[name] = content
    todo = [name for name in names if name not in done]
    if not todo:
        say("all phases are done.")
    costs = plan.costs(context, done)
    if todo:
        for line in plan.lines(costs, done):
            say(line)
    for name in names:
        if name in done:
            context.results[name] = done[name]
            if todo:
                say(f"{name}: done before")
            continue
        context.stop.check()
        say(f"{name}:")
        context.later_seconds = plan.later_seconds(costs, todo, name)
        start = time.monotonic()
        result = PHASES[config[name].kind](context, name)
        result |= {
            "hash": hashes[name],
            "seconds": round(time.monotonic() - start, 2),
            "versions": versions(),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        if context.main:
            write_json(context.directory(name) / "DONE.json", result)
        context.results[name] = result
        say(f"  {name} took {duration(result['seconds'])}")
    return context.results


def _check_workdir(config: ConfigDict, workdir: Path) -> None:
    """Refuses a workdir that holds another config's run."""
    path = workdir / "config.json"
    if not path.exists():
        return
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
            + "\nNothing there was touched. Use a new --workdir, or the config that made it."
        )


class _lock:
    """One run at a time in a workdir; freed by the system when the process dies."""

    def __init__(self, workdir: Path, main: bool):
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


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs, in $JAX_COMPILATION_CACHE_DIR or ~/.cache/fgvc_jax/xla."""
    if not jax.config.jax_compilation_cache_dir:
        folder = os.environ.get("FGVC_CACHE", "~/.cache/fgvc_jax")
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(f"{folder}/xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def describe_data(manifest: manifests.Manifest) -> str:
    counts = ", ".join(f"{len(s.labels):,} {name}" for name, s in manifest.splits.items())
    return f"data: {manifest.name}: {len(manifest.classes)} classes, {counts} images"


def versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}


def summary(context: Context) -> list[str]:
    """What a person wants to see at the end: accuracies, pairs, seconds, files."""
    results, lines = context.results, [""]
    for result in results.values():
        if "rows" in result:
            lines += evaluate.table(result["rows"], list(context.manifest.splits))
    for result in results.values():
        for split in ("train", "val"):
            if isinstance(result.get(split), dict) and "pairs" in result[split]:
                found = result[split]
                share = found["positive_share"]
                lines.append(f"  {found['pairs']:,} {split} pairs, {share:.1%} of the same class")
    took = ", ".join(f"{name} {result['seconds']:.0f}" for name, result in results.items())
    total = sum(result["seconds"] for result in results.values())
    return [*lines, f"  seconds: {took}; {total:.0f} in all", f"  files: {context.workdir}"]
