"""Runs the phases of a config in order: finished ones are skipped, an unfinished one goes on."""

import datetime
import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from fgvc_jax import checks, files, plan, workdir
from fgvc_jax import config as configs
from fgvc_jax.data import doctor, load
from fgvc_jax.data import manifest as manifests
from fgvc_jax.errors import UserError
from fgvc_jax.images import protocols
from fgvc_jax.phases import embed, evaluate, mine, train
from fgvc_jax.phases.context import Context, first_view, write_json
from fgvc_jax.report import summary
from fgvc_jax.tracking.progress import duration
from fgvc_jax.train import mesh as meshes
from fgvc_jax.train.stop import Interrupted, Stop
from fgvc_jax.weights.published import locate

PHASES = {"train": train.run, "embed": embed.run, "mine": mine.run, "evaluate": evaluate.run}
PACKAGES = ("fgvc_jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "faiss-cpu", "numpy")


def run(
    config: ConfigDict,
    folder: str | os.PathLike,
    *,
    dry_run: bool = False,
    reuse: str | os.PathLike = "",
    say: Callable[[str], None] = print,
) -> dict[str, dict[str, dict]]:
    """Runs every phase of `config.phases` that is not yet done in this workdir.

    Args:
      config: see `fgvc_jax.config`.
      folder: the workdir: one folder a phase, config.json, manifest.json. With several seeds the phases lie
        in seed_0, seed_1, ...; with protocol 'refit' the second training lies in refit.
      dry_run: two steps of every phase on 64 images, in folder/dry_run, which is emptied first.
      reuse: another workdir, from which phases that would come out the same are taken.
      say: gets every line of the log.

    Returns:
      By sub-folder ('' for the workdir itself), what each phase's DONE.json holds.

    Raises:
      UserError: for what the user can mend.
      Interrupted: after Ctrl-C or SIGTERM; the same call goes on.
    """
    config = protocols.apply(config)
    checks.check(config)
    folder = Path(folder).expanduser().resolve()
    sources = _sources(reuse)
    if dry_run:
        config, folder = plan.shrink(config), folder / "dry_run"
        shutil.rmtree(folder, ignore_errors=True)
    main = jax.process_index() == 0
    say_if_main = say if main else lambda line: None
    say_if_main(f"device: {meshes.name_devices()}")
    use_compilation_cache()
    manifest = _find_inputs(config)
    _make_workdir(folder, manifest, config.data.source)
    if dry_run:
        manifest = load.split(manifest, config.data)
        if config.data.splits == "official":
            manifests.check_classification(manifest)
        manifest = plan.few_images(manifest)
    view = first_view(config)
    look = doctor.look(
        manifest,
        files.cache_folder(config.data.cache),
        resize=view.resize,
        squash=view.squash,
        canvas=config.data.canvas,
        feed=config.data.feed,
        on_bad=config.data.on_bad,
    )
    if not dry_run:
        manifest = load.split(manifest, config.data, look.facts)
    if config.protocol == "refit" and not {"val", "test"} <= manifest.splits.keys():
        raise UserError(
            "config.protocol = 'refit' needs a validation split to pick lengths on and a test split to score."
        )
    results: dict[str, dict[str, dict]] = {}
    with workdir.Lock(folder, main), Stop() as stop:
        findings = doctor.judge(
            manifest,
            look.facts,
            size=config.image.size,
            resize=view.resize,
            squash=view.squash,
            canvas=config.data.canvas,
            group=config.data.group,
            classify=config.data.splits == "official" and not dry_run,
        )
        if config.data.on_bad == "skip":
            manifest = doctor.leave_out(manifest, findings)
        workdir.claim(config, manifest, folder, main)
        if main and not dry_run:  # a few images of a few classes say nothing about all
            doctor.save(findings, manifest, folder)
            for finding in findings.of("warning"):
                say(f"warning: {finding.text}")
        doctor.stop_at_errors(findings, config.data.on_bad)
        say_if_main(describe_data(manifest))
        try:
            for seed in range(config.seeds):
                part = f"seed_{seed}" if config.seeds > 1 else ""
                seeded = config.copy_and_resolve_references()
                seeded.seed = config.seed + seed
                if part:
                    say_if_main(f"seed {seeded.seed}:")
                context = Context(seeded, folder / part, manifest, say_if_main, stop, look)
                results[part] = _phases(context, sources)
                if config.protocol == "refit":
                    say_if_main("refit on train + val, with the lengths that validation picked:")
                    again = plan.refit(seeded, results[part], manifest)
                    whole = plan.train_and_val(manifest)
                    inner = os.path.join(part, "refit")
                    context = Context(again, folder / inner, whole, say_if_main, stop, look)
                    results[inner] = _phases(context, sources)
        except Interrupted:
            say("stopped; everything is saved, the same command goes on from here.")
            raise
    for line in summary.lines(results, manifest, folder):
        say_if_main(line)
    return results


def _make_workdir(folder: Path, manifest: manifests.Manifest, source: str) -> None:
    searched = source in ("folder", "competition")  # the others read what their lists name
    root = Path(manifest.root).resolve() if manifest.root and searched else None
    if root and (folder == root or root in folder.parents):
        raise UserError(
            f"workdir {folder} lies inside the images' folder {root}, where its folders would be taken for "
            "classes. Use another --workdir."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").touch()
    except OSError as error:
        raise UserError(f"cannot write to --workdir={folder}: {error.strerror}.") from None


def _sources(reuse: str | os.PathLike) -> list[Path]:
    """A workdir to take phases from, and its parts."""
    if not reuse:
        return []
    top = Path(reuse).expanduser().resolve()
    if not (top / "config.json").exists():
        raise UserError(f"--reuse={reuse} is not the workdir of a run: it has no config.json.")
    parts = [top, *sorted(top.glob("seed_*"))]
    return [*parts, *(p / "refit" for p in parts if (p / "refit").is_dir())]


def _find_inputs(config: ConfigDict) -> manifests.Manifest:
    """The data; one UserError that names all that is missing, weights included."""
    missing, found = [], None
    try:
        found = load.read(config.data)
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


def _phases(context: Context, sources: list[Path]) -> dict[str, dict]:
    config, say = context.config, context.say
    names = configs.phases(config)
    digest = manifests.digest(context.manifest)
    hashes: dict[str, str] = {}
    shorter: dict[str, str] = {}  # without the phase's own length
    for name in names:
        hashes[name] = configs.phase_hash(config, name, hashes, digest)
        shorter[name] = configs.phase_hash(config, name, hashes, digest, without=("length",))
    done: dict[str, dict] = {}
    for name in names:
        directory = context.workdir / name
        found = workdir.done(directory)
        if found.get("hash") != hashes[name] and sources and context.main:
            steps = plan.costs(context, done)[name].steps
            both = (hashes[name], shorter[name])
            found = workdir.take_over(name, directory, both, steps, sources, say)
        if found.get("hash") == hashes[name]:
            done[name] = found
    todo = [name for name in names if name not in done]
    if not todo:
        say("all phases are done.")
    costs = plan.costs(context, done)
    if todo:  # what is wrong with arguments or images is told before anything trains
        for name in todo:
            if config[name].kind == "train":
                train.check(context, name)
        for split in context.manifest.splits:
            context.canvases(split)
        costs = plan.timed(context, costs)
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
            "hash_but_length": shorter[name],
            "seconds": round(time.monotonic() - start, 2),
            "versions": versions(),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        if context.main:
            write_json(context.directory(name) / "DONE.json", result)
        if jax.process_count() > 1:  # the others read what the first one has written
            multihost_utils.sync_global_devices(name)
        context.results[name] = result
        say(f"  {name} took {duration(result['seconds'])}")
    return context.results


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs, in $JAX_COMPILATION_CACHE_DIR or ~/.cache/fgvc_jax/xla."""
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(files.cache_folder() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def describe_data(manifest: manifests.Manifest) -> str:
    counts = ", ".join(f"{len(s.labels):,} {name}" for name, s in manifest.splits.items())
    return f"data: {manifest.name}: {len(manifest.classes)} classes, {counts} images"


def versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}
