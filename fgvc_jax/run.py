"""Runs the phases of a config in order: finished ones are skipped, an unfinished one goes on."""

import datetime
import importlib.metadata
import logging
import os
import platform
import shlex
import shutil
import time
from pathlib import Path

import jax
from ml_collections import ConfigDict

from fgvc_jax import checks, files, methods, phases, plan, rerun, workdir
from fgvc_jax import mesh as meshes
from fgvc_jax.context import transfer
from fgvc_jax.context.data import Data
from fgvc_jax.context.models import Models, view_of
from fgvc_jax.context.run import Run
from fgvc_jax.data import doctor, load
from fgvc_jax.data import manifest as manifests
from fgvc_jax.data.shares import Share
from fgvc_jax.errors import UserError, disk_explained
from fgvc_jax.export import model_folder
from fgvc_jax.images import protocols
from fgvc_jax.images.view import View
from fgvc_jax.model import read_done
from fgvc_jax.pages import finished, report
from fgvc_jax.phases._base import Phase, Result
from fgvc_jax.report import summary
from fgvc_jax.tracking.progress import duration
from fgvc_jax.train.stop import Interrupted, Stop
from fgvc_jax.weights import published

log = logging.getLogger(__name__)

PACKAGES = ("fgvc_jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "faiss-cpu", "numpy")


def run(
    config: ConfigDict,
    folder: str | os.PathLike,
    *,
    dry_run: bool = False,
    reuse: str | os.PathLike = "",
    command: str = "",
) -> dict[str, dict[str, Result]]:
    """Runs every phase of `config.phases` that is not yet done in this workdir.

    Args:
      config: see `fgvc_jax.config`.
      folder: the workdir: one folder a phase, config.json, manifest.json. With several seeds the phases lie
        in seed_0, seed_1, ...; with protocol 'refit' the second training lies in refit.
      dry_run: two steps of every phase on 64 images, in folder/dry_run, which is emptied first.
      reuse: another workdir, from which phases that would come out the same are taken.
      command: what was typed, for the report.

    Returns:
      By sub-folder ('' for the workdir itself), what each phase's DONE.json holds.

    Raises:
      UserError: for what the user can mend.
      Interrupted: after Ctrl-C or SIGTERM; the same call goes on.
    """
    config = protocols.apply(phases.complete(config))
    checks.check(config)
    config = transfer.without_pretrained(config)
    if "://" in str(folder):
        raise UserError(
            f"--workdir={folder}: a bucket has neither locks nor renames, which keep a run's files whole. "
            "Use a folder on a disk (with several hosts one that all mount), and copy it afterwards."
        )
    folder = Path(folder).expanduser().resolve()
    sources = _sources(reuse)
    if dry_run:
        config, folder = rerun.shrink(config), folder / "dry_run"
        shutil.rmtree(folder, ignore_errors=True)
    main = jax.process_index() == 0
    log.info("device: %s", meshes.name_devices())
    use_compilation_cache()
    manifest, licences = _find_inputs(config)
    _make_workdir(folder, manifest, config.data.source)
    view, classifying = view_of(config), _classifying(config)
    if dry_run:  # without a look at all the others
        manifest = load.split(manifest, config.data)
        if classifying:
            manifests.check_classification(manifest)
        manifest = rerun.few_images(manifest)
    look = doctor.look(
        manifest,
        files.cache_folder(config.data.cache),
        resize=view.resize,
        squash=view.squash,
        canvas=config.data.canvas,
        feed=config.data.feed,
        on_bad=config.data.on_bad,
        share=Share(jax.process_index(), jax.process_count()),
    )
    if not dry_run:
        manifest = load.split(manifest, config.data, look.facts)
    rerun.check_refit(config, manifest)
    if config.init.run and not dry_run:
        transfer.check_images(config.init.run, manifest)
    results: dict[str, dict[str, Result]] = {}
    with workdir.locked(folder, main), disk_explained(folder), Stop() as stop:
        findings = doctor.judge(
            manifest,
            look.facts,
            size=view.size,
            resize=view.resize,
            squash=view.squash,
            canvas=config.data.canvas,
            group=config.data.group,
            classify=classifying and not dry_run,
        )
        if config.data.on_bad == "skip":
            manifest = doctor.leave_out(manifest, findings)
        workdir.claim(config, manifest, folder, main)
        if main and (command or not (folder / finished.STARTED).exists()):
            started = {"command": command, "weights": licences}
            files.write_json(folder / finished.STARTED, started)
        if main and not dry_run:  # a few images of a few classes say nothing about all
            doctor.save(findings, manifest, folder)
            for finding in findings.of("warning"):
                log.warning("warning: %s", finding.text)
        doctor.stop_at_errors(findings, config.data.on_bad)
        log.info(describe_data(manifest))
        try:
            for seed in range(config.seeds):
                part = f"seed_{seed}" if config.seeds > 1 else ""
                seeded = config.copy_and_resolve_references()
                seeded.seed = config.seed + seed
                if part:
                    log.info("seed %s:", seeded.seed)
                one = Run(seeded, folder / part, stop, dry_run)
                results[part] = _phases(one, manifest, look, view, sources)
                if config.protocol == "refit":
                    log.info("refit on train + val, with the lengths that validation picked:")
                    again = rerun.refit(seeded, results[part], manifest)
                    inner = os.path.join(part, "refit")
                    whole = rerun.train_and_val(manifest)
                    one = Run(again, folder / inner, stop, dry_run)
                    results[inner] = _phases(one, whole, look, view, sources)
        except Interrupted:
            log.info("stopped; everything is saved, the same command goes on from here.")
            raise
    for line in summary.lines(results, manifest, folder):
        log.info(line)
    if main and config.log.report and not dry_run:
        _report(folder, results)
    return results


def _report(folder: Path, results: dict[str, dict[str, Result]]) -> None:
    """Writes the report, where there is something new. The run is finished, whatever comes of it."""
    if not any("rows" in r or "retrieval" in r for done in results.values() for r in done.values()):
        return  # nothing was evaluated
    page = folder / report.FOLDER / report.PAGE
    done = [folder / part / name / "DONE.json" for part, names in results.items() for name in names]
    if not page.exists() or page.stat().st_mtime < max(d.stat().st_mtime for d in done):
        try:
            # With several processes the model's passes would wait for the others.
            report.make(folder, use_model=jax.process_count() == 1)
        except (Exception, KeyboardInterrupt) as error:
            log.warning(
                "warning: the report could not be made (%s: %s); the run is finished all the same. "
                "Try again: fgvc report %s",
                type(error).__name__,
                error,
                shlex.quote(str(folder)),
            )
            return
    log.info("  report: %s", page)


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
    workdir.check_shared(folder)


def _sources(reuse: str | os.PathLike) -> list[Path]:
    """A workdir to take phases from, and its parts."""
    if not reuse:
        return []
    top = Path(reuse).expanduser().resolve()
    if not (top / "config.json").exists():
        raise UserError(f"--reuse={reuse} is not the workdir of a run: it has no config.json.")
    parts = [top, *sorted(top.glob("seed_*"))]
    return [*parts, *(p / "refit" for p in parts if (p / "refit").is_dir())]


def _find_inputs(config: ConfigDict) -> tuple[manifests.Manifest, dict[str, str]]:
    """The data, and the licence of each file of weights.

    One UserError names all that is missing, before anything is downloaded.
    """
    missing, manifest = [], None
    try:
        manifest = load.read(config.data)
    except UserError as error:
        missing.append(str(error))
    weights = list(filter(None, (config.model.pretrained, config.model.second_pretrained)))
    weights += [config.init.file] if config.init.file else []
    for source in weights:
        try:
            published.find(source)
        except UserError as error:
            where = "config.init.file: " if source == config.init.file else ""
            missing.append(f"{where}{error}")
    if missing:
        raise UserError("\n".join(missing))
    return manifest, {source: published.locate(source).licence for source in weights}


def _classifying(config: ConfigDict) -> bool:
    """Whether a phase needs a training image of every class."""
    trained = [config[name].method for name in phases.trained(config)]
    return any(methods.get(method).evaluator != "retrieve" for method in trained)


def _phases(
    run: Run, manifest: manifests.Manifest, look: doctor.Look, view: View, sources: list[Path]
) -> dict[str, Result]:
    """All phases in one folder, for one seed."""
    config = run.config
    mesh = meshes.make(config.devices.fsdp)
    data = Data(manifest, config.data, mesh, look)
    models = Models(config, run.workdir, manifest, mesh, view, data.canvas_later(view))
    todo = phases.of(config)
    hashes, shorter = _hashes(todo, manifests.digest(manifest))
    done: dict[str, Result] = {}
    for phase in todo:
        directory = run.workdir / phase.name
        if read_done(directory).get("hash") != hashes[phase.name] and sources:
            steps = plan.costs(todo, models, data.sizes, done)[phase.name].steps
            both = (hashes[phase.name], shorter[phase.name])
            if run.main:
                workdir.take_over(phase.name, directory, both, steps, sources)
            meshes.wait_for_all(f"took over {phase.name}")
        found = read_done(directory)
        if found.get("hash") == hashes[phase.name]:
            done[phase.name] = found
    left = [phase for phase in todo if phase.name not in done]
    if not left:
        log.info("all phases are done.")
    else:  # what is wrong with arguments or images is told before anything trains
        meshes.check_batches(phases.batches(left), mesh)
        for phase in left:
            phase.prepare(run, data, models)
        costs, second = plan.costs(todo, models, data.sizes, done), plan.seconds_per_image(models)
        for line in plan.lines(costs, second, done):
            log.info(line)
    for phase in todo:
        if phase.name in done:
            run.results[phase.name] = done[phase.name]
            if left:
                log.info("%s: done before", phase.name)
            continue
        run.stop.check()
        log.info("%s:", phase.name)
        later = left[left.index(phase) + 1 :]
        run.later_seconds = second * sum(costs[after.name].passes for after in later)
        start = time.monotonic()
        result = phase.run(run, data, models)
        result |= {
            "hash": hashes[phase.name],
            "hash_but_length": shorter[phase.name],
            "seconds": round(time.monotonic() - start, 2),
            "versions": versions(),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        if run.main:
            files.write_json(run.directory(phase.name) / "DONE.json", result)
        meshes.wait_for_all(phase.name)  # the others read what the first one has written
        run.results[phase.name] = result
        log.info("  %s took %s", phase.name, duration(result["seconds"]))
    model_folder.write(run, data, models)
    return run.results


def _hashes(todo: list[Phase], digest: str) -> tuple[dict[str, str], dict[str, str]]:
    """Of each phase, by name: the hash of all that it depends on, and of all but its own length."""
    hashes: dict[str, str] = {}
    shorter: dict[str, str] = {}
    for phase in todo:
        hashes[phase.name] = phases.hash_of(phase, hashes, digest)
        shorter[phase.name] = phases.hash_of(phase, hashes, digest, without=("length",))
    return hashes, shorter


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
