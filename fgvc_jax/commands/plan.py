"""fgvc plan --config=FILE.py[:VARIANT] [--config.KEY=VALUE ...] [--on=v5e:2x4] [--price=DOLLARS]

Memory, speed at most and cost at least of every phase, from compiled programs; nothing is run.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from fgvc_jax.commands.train import config_of
from fgvc_jax.errors import UserError

if TYPE_CHECKING:  # JAX is imported when it is needed
    from jax.sharding import Mesh

    from fgvc_jax.data.counts import Counts
    from fgvc_jax.forecast import Forecast
    from fgvc_jax.hardware.chips import Chip


def main() -> None:
    values = _flags()
    logging.set_verbosity(logging.ERROR)  # the libraries' own remarks
    config = config_of(values, __doc__, "configs/cub_finer.py")
    if config is None:
        return
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


class Planned(NamedTuple):
    """What a plan is made of.

    Attributes:
      config: complete, with the dtype of the chips.
      chip: None where it is not in the table.
      programs: compiled as they are asked for, while `tracing()` is entered.
    """

    config: ConfigDict
    counts: "Counts"
    mesh: "Mesh"
    chip: "Chip | None"
    programs: "Iterator[Forecast]"
    tracing: Callable[[], AbstractContextManager]


def planned(
    config: ConfigDict,
    on: str = "",
    *,
    images: str = "",
    classes: int = 0,
    largest: bool = False,
    say: Callable[[str], None] = print,
) -> Planned:
    """The programs of a config on chips that need not be there.

    Args:
      config: as a file gives it; it gets the dtype of the chips and no files of weights.
      on, images, classes, largest: as the command's flags.
      say: told before each compilation.

    Raises:
      UserError: what is wrong with the config, the chips or the images.
    """
    import jax

    from fgvc_jax import checks, forecast, phases
    from fgvc_jax import mesh as meshes
    from fgvc_jax.context.models import Models, dtype_of, view_of
    from fgvc_jax.data import counts as counting
    from fgvc_jax.hardware import chips, devices
    from fgvc_jax.images import protocols

    config = protocols.apply(phases.complete(config))
    checks.check(config)
    if on:  # chips of this machine, if any, are none of the plan's business
        jax.config.update("jax_platforms", "cpu")
    found, options, tracing = devices.find(on)
    mesh, chip = meshes.make(config.devices.fsdp, found), chips.of(found[0].device_kind)
    config.model.dtype = str(dtype_of(config, found[0].platform))
    # Shapes are enough; the files of weights need not be here.
    config.model.pretrained = config.model.second_pretrained = config.init.file = ""
    view = view_of(config)
    counts = counting.of(
        config.data, resize=view.resize, squash=view.squash, images=images, classes=classes
    )

    def models(mesh: jax.sharding.Mesh) -> Models:
        return Models(config, Path(), counts.manifest(), mesh, view, counts.canvas)

    programs = forecast.of(
        config,
        models(mesh),
        counts,
        chip,
        options=options,
        counter=models(meshes.make(devices=jax.local_devices()[:1])),
        largest=largest,
        say=say,
    )
    return Planned(config, counts, mesh, chip, programs, tracing)


def _plan(config: ConfigDict, values: flags.FlagValues) -> None:
    from fgvc_jax.report import forecast as report

    config, counts, mesh, chip, programs, tracing = planned(
        config,
        values.on,
        images=values.images,
        classes=values.classes,
        largest=values.largest,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    print(report.head(config.model.dtype, counts, mesh, chip), flush=True)
    phase, seconds, short = "", 0.0, []
    with tracing():
        for one in programs:
            if one.phase != phase:
                phase = one.phase
                print(f"{phase}:")
            for line in report.lines(one, chip, mesh.size):
                print(f"  {line}", flush=True)
            seconds += config.seeds * report.seconds(one, chip)
            if one.fits is False:
                short.append(report.shortage(one, chip))
    if seconds:
        print(report.total(seconds, config.seeds, mesh.size, values.price))
    if short:
        raise UserError("\n".join(short))
