"""Phases: one file each, a class `Phase`; `_base.py` holds their contract.

Files with a leading underscore are what all phases are given. A phase of one's own is a file anywhere, named
by its path as the `kind` of its section.
"""

import inspect
from collections.abc import Iterable

from ml_collections import ConfigDict

from fgvc_jax import backbones, modules
from fgvc_jax import config as configs
from fgvc_jax.errors import UserError, choose, did_you_mean
from fgvc_jax.phases._base import Phase


def get(kind: str, where: str = "kind") -> type[Phase]:
    """The class of a phase, by name or by the path of a .py file.

    Raises:
      UserError: no such phase (the nearest is named), or a file without a subclass of it called `Phase`.
    """
    found = getattr(modules.load("phases", kind, where), "Phase", None)
    if not (inspect.isclass(found) and issubclass(found, Phase)):
        raise UserError(f"{where} = {kind!r} defines no class Phase(fgvc_jax.phases.Phase).")
    return found


def defaults(kind: str, where: str = "kind") -> ConfigDict:
    """The section of a phase as its file has it."""
    section = get(kind, where).defaults()
    section.kind = kind
    return section


def section(kind: str, **values) -> ConfigDict:
    """The section of a phase with some keys set: `section("train", optimizer={"learning_rate": 0.05})`."""
    return configs.override(defaults(kind), values, f"section({kind!r})")


def sections(config: ConfigDict) -> list[str]:
    """The keys of a config that are sections of phases, whether they are in `config.phases` or not."""
    return [k for k, value in config.items() if isinstance(value, ConfigDict) and "kind" in value]


def complete(config: ConfigDict) -> ConfigDict:
    """A copy in which every group of arguments has all its keys, from the class that it is for.

    Raises:
      UserError: an unknown backbone, method or argument.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        model = config.model
        choose(model.backbone, backbones.names(), "config.model.backbone")
        known = backbones.arguments(model.backbone)
        model.arguments = configs.fill_arguments(model.arguments, known, "config.model.arguments")
        for name in sections(config):
            own = config[name]
            if "arguments" in own:
                where = f"config.{name}.arguments"
                known = get(own.kind, f"config.{name}.kind").arguments(own, f"config.{name}")
                own.arguments = configs.fill_arguments(own.arguments, known, where)
    return config


def of(config: ConfigDict) -> list[Phase]:
    """The phases of `config.phases`, in order.

    Raises:
      UserError: none, an unknown or a repeated one, one that reads another that does not come before it.
    """
    names = configs.phases(config)
    if not names:
        raise UserError("config.phases is empty: name at least one phase.")
    found: dict[str, Phase] = {}
    for name in names:
        choose(name, sections(config), "config.phases: phase")
        if name in found:
            raise UserError(f"config.phases names {name!r} twice.")
        phase = get(config[name].kind, f"config.{name}.kind")(config, name, tuple(found))
        for read in phase.reads():
            _check_read(phase, read.phase, read.kind)
        found[name] = phase
    return list(found.values())


def trained(config: ConfigDict, names: Iterable[str] | None = None) -> list[str]:
    """Those of some phases (None: of `config.phases`) that leave a trained model, in order."""
    names = configs.phases(config) if names is None else names
    return [name for name in names if get(config[name].kind).trains]


def batches(todo: Iterable[Phase]) -> dict[str, int]:
    """The batches of the phases that have one, by config key."""
    return {f"config.{p.name}.batch": p.section.batch for p in todo if "batch" in p.section}


def _check_read(phase: Phase, read: str, kind: str) -> None:
    if read not in phase.before:
        before = ", ".join(phase.before) or "nothing"
        unit = (
            " In a length, it is no unit either."
            if read in str(phase.section.get("length"))
            else ""
        )
        raise UserError(
            f"phase {phase.name!r} reads {read!r}, which does not come before it in config.phases "
            f"(before it: {before}){did_you_mean(read, phase.before)}{unit}"
        )
    if phase.config[read].kind != kind:
        raise UserError(
            f"phase {phase.name!r} reads {read!r}, which is a phase of kind {phase.config[read].kind!r}; "
            f"here one of kind {kind!r} is needed."
        )


def hash_of(
    phase: Phase, hashes: dict[str, str], data: str = "", without: tuple[str, ...] = ()
) -> str:
    """A hash of what a phase computes from: its section, what all phases share, and its inputs' hashes.

    Keys at their defaults are left out, so that a new key leaves finished phases as they are.

    Args:
      hashes: of the phases before it.
      data: digest of the manifest.
      without: keys of its section to leave out.
    """
    usual = complete_defaults(phase.section)
    own = configs.changed(phase.section, usual)
    shared = configs.changed(phase.config, complete_base(phase.config))
    return configs.digest(
        {
            "kind": phase.section.kind,
            "section": {key: value for key, value in own.items() if key not in without},
            "images": data,
            "shared": {
                key: value
                for key, value in shared.items()
                if key.split(".")[0] in ("seed", "data", "image", "model", "init")
                and not configs.is_placement(key)
            },
            "inputs": {read.phase: hashes[read.phase] for read in phase.reads()},
        }
    )


def complete_defaults(section: ConfigDict) -> ConfigDict:
    """The defaults of a section, those of its arguments included."""
    usual = defaults(section.kind)
    if "arguments" in usual:
        usual.arguments = ConfigDict(get(section.kind).arguments(section, "section"))
    return usual


def complete_base(config: ConfigDict) -> ConfigDict:
    """The keys that every run has, at their defaults, with all arguments of the config's backbone."""
    usual = configs.base()
    usual.model.arguments = ConfigDict(backbones.arguments(config.model.backbone))
    return usual
