"""fgvc weights FILE [--keys=PATTERN]

Says what a file of weights holds, and which backbones it fits.
"""

import argparse
import functools
import math
import re
from collections.abc import Iterator

import numpy as np

from fgvc_jax.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser("fgvc weights", description=__doc__.partition("\n\n")[2])
    parser.add_argument("file", help="a file, a folder or a name, as config.model.pretrained")
    parser.add_argument("--keys", default=".*", help="regular expression: only these, in full")
    arguments = parser.parse_args()
    try:
        pattern = re.compile(arguments.keys)
    except re.error as error:
        raise UserError(f"--keys={arguments.keys}: no regular expression: {error}.") from None
    from fgvc_jax.weights import open_weights

    weights = open_weights(arguments.file)
    print(f"{weights.published.title}: {weights.form}, licence: {weights.published.licence}")
    for lines in (_statistics(weights, pattern), [_count(weights)], _fits(weights)):
        for line in lines:
            print(line, flush=True)


def _statistics(weights, pattern: re.Pattern) -> Iterator[str]:
    """A line for every array. The statistics are of its finite values."""
    from fgvc_jax.weights.readers import explained

    entries = {key: entry for key, entry in weights.entries.items() if pattern.fullmatch(key)}
    if not entries:
        raise UserError(f"--keys={pattern.pattern}: no key matches.")
    shapes = {key: f"[{', '.join(map(str, entry.shape))}]" for key, entry in entries.items()}
    wide, shape_wide = max(map(len, shapes)), max(map(len, shapes.values()))
    columns = "".join(f"{name:>12}" for name in ("min", "max", "mean", "std", "not finite"))
    yield f"{'key':<{wide}}  {'shape':<{shape_wide}}  {'dtype':<8}{columns}"
    for key, entry in entries.items():
        with explained(weights.published.path):
            values = np.asarray(entry.load(), np.float64).ravel()
        finite = values[np.isfinite(values)]
        numbers = [finite.min(), finite.max(), finite.mean(), finite.std()] if finite.size else []
        columns = "".join(f"{number:>12.4g}" for number in numbers) or " " * 48
        yield (
            f"{key:<{wide}}  {shapes[key]:<{shape_wide}}  {entry.dtype!s:<8}{columns}"
            f"{values.size - finite.size:>12}"
        )


def _count(weights) -> str:
    counts = {"parameters": 0, "numbers of running statistics": 0, "integers": 0}
    for key, entry in weights.entries.items():
        if entry.dtype.kind in "iub":
            kind = "integers"
        elif key.endswith(("running_mean", "running_var")):
            kind = "numbers of running statistics"
        else:
            kind = "parameters"
        counts[kind] += math.prod(entry.shape)
    listed = ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count)
    return f"{len(weights.entries)} arrays: {listed}"


def _fits(weights) -> Iterator[str]:
    """The backbones that the weights fit, by names, shapes and arithmetic; else why the nearest does not."""
    from flax import nnx

    from fgvc_jax import backbones
    from fgvc_jax.weights import arguments_for, match

    nearest, found = None, False
    for family in backbones.FAMILIES:
        for name in family.VARIANTS:
            try:
                wanted = arguments_for(name, weights)
            except UserError:
                break  # names of another family
            make = functools.partial(backbones.create, name, **wanted)
            report, _, _ = match(nnx.eval_shape(lambda make=make: make(rngs=nnx.Rngs(0))), weights)
            if not report.different and not report.refused:
                found = True
                default = backbones.arguments(name)
                other = {key: v for key, v in wanted.items() if v != default[key]}
                yield f"fits {name}{_how(report, other)}"
            elif nearest is None or _distance(report) < _distance(nearest):
                nearest = report
    if found:
        return
    if nearest is None:
        yield "fits no backbone: the names of its arrays are of no known family"
        return
    yield f"fits no backbone; the nearest is {nearest.backbone}:"
    if nearest.refused:
        yield f"  {nearest.refused}"
    yield from nearest.differences()


def _distance(report) -> tuple[int, bool]:
    return len(report.different), bool(report.refused)


def _how(report, arguments: dict) -> str:
    how = f", with {', '.join(report.resized)} resized" if report.resized else " exactly"
    arguments = ", ".join(f"{key}={value}" for key, value in arguments.items())
    made = f", made with {arguments}" if arguments else ""
    classes = next((shape[0] for shape in report.head.values() if shape), None)
    head = f"; head of {classes} classes left out" if classes else ""
    return f"{how} ({report.layout}){made}{head}"
