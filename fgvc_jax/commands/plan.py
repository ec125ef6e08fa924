"""fgvc plan --config=FILE.py[:VARIANT] [--config.KEY=VALUE ...] [--on=v5e:2x4] [--price=DOLLARS]

Memory, speed at most and cost at least of every phase, from compiled programs; nothing is run.
"""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from fgvc_jax.commands.train import parse, with_arguments
from fgvc_jax.errors import UserError

if TYPE_CHECKING:
    from fgvc_jax.data.counts import Counts
    from fgvc_jax.forecast import Forecast
    from fgvc_jax.hardware.chips import Chip


def main() -> None:
    values = _flags()
    rest, arguments = parse(values)
    if values.help:
        print(f"usage: {__doc__}", values.get_help(), sep="\n")
        return
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}. A flag is written --name=value.")
    if values.config is None:
        raise UserError("no config: pass --config=configs/cub_finer.py, for instance.")
    logging.set_verbosity(logging.ERROR)  # the libraries' own remarks
    config = with_arguments(values.config, arguments)
    if values.dtype:
        config.model.dtype = values.dtype
    _plan(config, values)


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "Config file, with a variant behind a colon.", flag_values=values
    )
    text = {
        "on": "Chips that need not be there: v5e:2x4 (v4, v5p, v6e; 'pip install fgvc_jax[plan]'), h100, "
        "h200, a100, h100:8 ('plan-cuda'). '' = this machine.",
        "images": "Images of train, val and test, where the data are not here: 5394,600,5794.",
        "dtype": "config.model.dtype; 'auto' = bfloat16 on an accelerator.",
    }
    for name, help_ in text.items():
        flags.DEFINE_string(name, "", help_, flag_values=values)
    flags.DEFINE_integer("classes", 0, "How many classes, beside --images.", flag_values=values)
    flags.DEFINE_float("price", None, "Dollars of a chip an hour.", 0, flag_values=values)
    flags.DEFINE_bool(
        "largest",
        False,
        "Search the largest batch also where the config's fits.",
        flag_values=values,
    )
    flags.DEFINE_bool("help", False, "Print this.", short_name="h", flag_values=values)
    return values


def _plan(config: ConfigDict, values: flags.FlagValues) -> None:
    import jax

    from fgvc_jax import checks, forecast, phases
    from fgvc_jax import mesh as meshes
    from fgvc_jax.context.models import Models, dtype_of, view_of
    from fgvc_jax.data import counts as counting
    from fgvc_jax.hardware import chips, devices
    from fgvc_jax.images import protocols

    config = protocols.apply(phases.complete(config))
    checks.check(config)
    if values.on:  # chips of this machine, if any, are none of the plan's business
        jax.config.update("jax_platforms", "cpu")
    found, options = devices.find(values.on)
    mesh, chip = meshes.make(config.devices.fsdp, found), chips.of(found[0].device_kind)
    config.model.dtype = str(dtype_of(config, found[0].platform))
    left_out = [key for key in ("pretrained", "second_pretrained") if config.model[key]]
    config.model.pretrained = config.model.second_pretrained = config.init.file = ""
    view = view_of(config)
    counts = counting.of(
        config.data,
        resize=view.resize,
        squash=view.squash,
        images=values.images,
        classes=values.classes,
    )
    manifest = counts.manifest(config.data.source)
    models = Models(config, Path(), manifest, mesh, view, counts.canvas)
    here = meshes.make(devices=jax.local_devices()[:1])
    print(_head(config, counts, mesh.size, found[0].device_kind, chip), flush=True)
    if left_out:
        print("weights: of the shapes of the config's backbone; the files are not read")
    told, seconds, short = "", 0.0, []
    for one in forecast.of(
        config,
        models,
        counts,
        chip,
        options=options,
        counter=Models(config, Path(), manifest, here, view, counts.canvas),
        largest=values.largest,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    ):
        if one.phase != told:
            print(f"{one.phase}:")
            told = one.phase
        for line in _lines(one, chip, mesh.size):
            print(f"  {line}", flush=True)
        if one.fits is False:
            short.append(_shortage(one, chip, mesh.size))
        if chip and one.measured.bound(chip):
            seconds += one.runs * one.measured.bound(chip)
    if seconds:
        print(_total(seconds * config.seeds, config.seeds, mesh.size, values.price))
    if short:
        raise UserError("\n".join(short))


def _head(
    config: ConfigDict, counts: "Counts", devices: int, kind: str, chip: "Chip | None"
) -> str:
    said = (
        f"at most {chip.flops / 1e12:g} TFLOP/s, {chip.bandwidth / 1e9:g} GB/s, {_gib(chip.memory)} each"
        if chip
        else "its speed and memory are not in the table: no bound, no fit"
    )
    splits = ", ".join(f"{n:,} {name}" for name, n in counts.splits.items())
    return (
        f"plan for {devices} x {kind} ({said}), {config.model.dtype}\n"
        f"data: {splits} images of {counts.classes} classes ({counts.source}), canvases of "
        f"{counts.canvas} pixels"
    )


def _lines(one: "Forecast", chip: "Chip | None", devices: int) -> Iterator[str]:
    found, batch = one.measured, one.one.batch
    yield (
        f"{one.one.name}, {one.one.key} = {batch:,} ({batch // devices:,} a chip), {one.runs:,} times"
    )
    if found.memory:
        m = found.memory
        parts = {
            "arguments": m.arguments - one.own,
            "resident images": one.images,
            "training state beside": one.beside,
            "temporaries": m.temporaries,
            "output": m.output,
            "program": m.program,
        }
        text = ", ".join(f"{name} {_gib(n)}" for name, n in parts.items() if n)
        yield f"  memory a chip: {text}: {_gib(one.needed)}{_verdict(one, chip)}"
    else:
        yield f"  memory a chip: {_gib(one.needed)}{_verdict(one, chip)}"
    if one.largest is not None:
        tried = ", ".join(f"{b:,}" for b in sorted(one.tried))
        yield f"  largest batch that fits: {one.largest:,} (compiled: {tried})"
    if found.flops:
        moved = f", {_si(found.bytes * devices, 'B')} to and from memory" if found.bytes else ""
        yield f"  a step: {_si(found.flops * devices, 'FLOP')}{moved}, over all chips"
    bound = chip and found.bound(chip)
    if bound:
        by = "arithmetic" if found.flops / chip.flops >= bound else "memory traffic"
        images = batch * (len(one.one.splits) if one.one.name == "train step" else 1)
        yield (
            f"  bound: {images / bound:,.0f} images/s, {bound * 1e3:.3g} ms a step, by {by}; all "
            f"{one.runs:,}: at least {_duration(one.runs * bound)}"
        )
    if found.collectives:
        kinds = ", ".join(f"{c.count} {c.kind} of {_si(c.bytes, 'B')}" for c in found.collectives)
        took = found.sending(chip) if chip else 0
        share = f"; {took * 1e3:.3g} ms at full speed" if chip else ""
        share += f", {took / (took + bound):.0%} of a step where nothing hides it" if bound else ""
        yield f"  between chips, each: {kinds}{share}"


def _verdict(one: "Forecast", chip: "Chip | None") -> str:
    if one.fits is None:
        return ""
    return f" of {_gib(chip.room)}: {'fits' if one.fits else 'DOES NOT FIT'}"


def _shortage(one: "Forecast", chip: "Chip", devices: int) -> str:
    lower = f"Lower it to {one.largest:,}" if one.largest else "Take more chips"
    also = (
        ", or keep it and compute it in parts (accumulate=2, 4, ...), set config.model.remat=True, lower "
        "config.image.size, or split the parameters over chips (config.devices.fsdp)"
        if one.one.name == "train step"
        else ""
    )
    return (
        f"{one.one.key} = {one.one.batch:,} needs {_gib(one.needed)} a chip in the {one.one.name}, and "
        f"{chip.name} has {_gib(chip.room)} for it. {lower}{also}."
    )


def _total(seconds: float, seeds: int, devices: int, price: float | None) -> str:
    text = f"all{f', {seeds} seeds' if seeds > 1 else ''}: at least {_duration(seconds)}"
    if price is not None:
        text += f", ${seconds / 3600 * devices * price:,.2f} at ${price:g} a chip an hour"
    return f"{text}; compilation, reading and saving come on top"


def _gib(count: float) -> str:
    if count == math.inf:
        return "more than there is"
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.3g} MiB"


def _si(count: float, unit: str) -> str:
    """12.3 GB, 4.56 TFLOP."""
    power = max(0, min(5, int(math.log10(max(count, 1)) // 3)))
    return f"{count / 1000**power:.3g} {' kMGTP'[power].strip()}{unit}"


def _duration(seconds: float) -> str:
    from fgvc_jax.tracking.progress import duration

    return duration(seconds)
