"""The text of `fgvc plan`."""

import math
from collections.abc import Iterator

from jax.sharding import Mesh

from fgvc_jax.data.counts import Counts
from fgvc_jax.forecast import Forecast
from fgvc_jax.hardware.chips import Chip
from fgvc_jax.tracking.progress import duration


def head(dtype: str, counts: Counts, mesh: Mesh, chip: Chip | None) -> str:
    said = (
        f"at most {chip.flops / 1e12:g} TFLOP/s, {chip.bandwidth / 1e9:g} GB/s, {_gib(chip.memory)} each"
        if chip
        else "its speed and memory are not in the table: no bound, no fit"
    )
    splits = ", ".join(f"{n:,} {name}" for name, n in counts.splits.items())
    return (
        f"plan for {mesh.size} x {mesh.devices.flat[0].device_kind} ({said}), {dtype}\n"
        f"data: {splits} images of {counts.classes} classes ({counts.source}), canvases of "
        f"{counts.canvas} pixels"
    )


def lines(one: Forecast, chip: Chip | None, devices: int) -> Iterator[str]:
    """One program of one phase."""
    batch = one.one.batch
    yield (
        f"{one.one.name}, {one.one.key} = {batch:,} ({batch // devices:,} a chip), {one.runs:,} times"
    )
    yield f"  memory a chip: {_memory(one)}{_gib(one.needed)}{_verdict(one, chip)}"
    if one.largest is not None:
        tried = ", ".join(f"{b:,}" for b in sorted(one.tried))
        yield f"  largest batch that fits: {one.largest:,} (compiled: {tried})"
    yield from (f"  {line}" for line in _speed(one, chip, devices))


def _memory(one: Forecast) -> str:
    """The parts, by kind; '' of a program that the compiler refused."""
    memory = one.measured.memory
    if memory is None:
        return ""
    parts = {
        "arguments": memory.arguments - one.own,
        "resident images": one.images,
        "training state beside": one.beside,
        "temporaries": memory.temporaries,
        "output": memory.output,
        "program": memory.program,
    }
    return ", ".join(f"{name} {_gib(n)}" for name, n in parts.items() if n) + ": "


def _speed(one: Forecast, chip: Chip | None, devices: int) -> Iterator[str]:
    found = one.measured
    if found.flops:
        moved = f", {_si(found.bytes * devices, 'B')} to and from memory" if found.bytes else ""
        yield f"a step: {_si(found.flops * devices, 'FLOP')}{moved}, over all chips"
    bound = chip and found.bound(chip)
    if bound:
        images = one.one.batch * (len(one.one.splits) if one.one.name == "train step" else 1)
        yield (
            f"bound: {images / bound:,.0f} images/s, {bound * 1e3:.3g} ms a step, by {found.bound_by(chip)}; "
            f"all {one.runs:,}: at least {duration(one.runs * bound)}"
        )
    if found.collectives:
        kinds = ", ".join(f"{c.count} {c.kind} of {_si(c.bytes, 'B')}" for c in found.collectives)
        took = found.sending(chip) if chip else 0
        share = f"; {took * 1e3:.3g} ms at full speed" if chip else ""
        share += f", {took / (took + bound):.0%} of a step where nothing hides it" if bound else ""
        yield f"between chips, each: {kinds}{share}"


def seconds(one: Forecast, chip: Chip | None) -> float:
    """What a phase's runs of the program take at least; 0 where no bound is known."""
    return one.runs * ((chip and one.measured.bound(chip)) or 0.0)


def _verdict(one: Forecast, chip: Chip | None) -> str:
    if one.fits is None:
        return ""
    return f" of {_gib(chip.room)}: {'fits' if one.fits else 'DOES NOT FIT'}"


def shortage(one: Forecast, chip: Chip) -> str:
    """What does not fit, by how much, and what to change."""
    lower = f"Lower it to {one.largest:,}" if one.largest else "Take more chips"
    also = (
        ", or keep it and compute it in parts (accumulate=2, 4, ...), set config.model.remat=full, lower "
        "config.image.size, or split the parameters over chips (config.devices.fsdp)"
        if one.one.name == "train step"
        else ""
    )
    return (
        f"{one.one.key} = {one.one.batch:,} needs {_gib(one.needed)} a chip in the {one.one.name}, and "
        f"{chip.name} has {_gib(chip.room)} for it. {lower}{also}."
    )


def total(seconds: float, seeds: int, devices: int, price: float | None) -> str:
    """Args: price, dollars of a chip an hour."""
    text = f"all{f', {seeds} seeds' if seeds > 1 else ''}: at least {duration(seconds)}"
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
