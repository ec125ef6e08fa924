"""fgvc train --config=FILE.py[:VARIANT] --workdir=DIR [--config.KEY=VALUE ...]

The same as `python launch.py`.
"""

import ast
import re
import shlex
import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from fgvc_jax import heap
from fgvc_jax.config import as_json
from fgvc_jax.errors import UserError, choose, did_you_mean


def main() -> None:
    """Parses the flags of the command line and the config file, and runs."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "Config file, with a variant behind a colon.", flag_values=values
    )
    flags.DEFINE_string("workdir", None, "The run's folder.", flag_values=values)
    flags.DEFINE_bool(
        "dry_run", False, "Two steps of every phase on 64 images.", flag_values=values
    )
    flags.DEFINE_string(
        "reuse",
        "",
        "A workdir to take phases from that would come out the same.",
        flag_values=values,
    )
    flags.DEFINE_bool("print_config", False, "Print the config and stop.", flag_values=values)
    flags.DEFINE_bool(
        "distributed",
        False,
        "Join other processes: by itself on TPU pods, Slurm, Kubernetes and Open MPI; elsewhere with the "
        "next three flags, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.",
        flag_values=values,
    )
    flags.DEFINE_string("coordinator", "", "HOST:PORT of the first process.", flag_values=values)
    flags.DEFINE_integer("processes", None, "How many there are.", flag_values=values)
    flags.DEFINE_integer("process", None, "Which one this is, from 0.", flag_values=values)
    flags.DEFINE_list(
        "local_devices", [], "Of this host, those of this process, as 0,1.", flag_values=values
    )
    flags.DEFINE_bool("help", False, "Print this.", short_name="h", flag_values=values)

    config = config_of(values, __doc__, "configs/quickstart.py")
    if config is None:
        return
    if values.print_config:
        print(as_json(config))
        return
    if not values.workdir:
        raise UserError("no workdir: pass --workdir=runs/NAME, the folder for this run's files.")
    heap.keep_freed()
    # Before the others are joined: what comes after must not fail outside of `together`.
    from fgvc_jax import processes
    from fgvc_jax.run import run
    from fgvc_jax.tracking.logs import to_stdout

    if values.distributed or values.coordinator:
        local = _numbers(values.local_devices, "--local_devices")
        processes.start(values.coordinator, values.processes, values.process, local)
    elif values.processes is not None or values.process is not None or values.local_devices:
        raise UserError("--processes, --process and --local_devices go with --distributed.")
    to_stdout()
    command = shlex.join(["fgvc", "train", *sys.argv[1:]])
    with processes.together():
        run(config, values.workdir, dry_run=values.dry_run, reuse=values.reuse, command=command)


def config_of(values: flags.FlagValues, usage: str, example: str) -> ConfigDict | None:
    """The config of the command line; None where help was asked for, which is printed.

    Raises:
      UserError: an argument that is no flag; no config, `example` being one.
    """
    rest, arguments = _parse(values)
    if values.help:
        print(f"usage: {usage}", values.get_help(), sep="\n")
        return None
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}. A flag is written --name=value.")
    if values.config is None:
        raise UserError(f"no config: pass --config={example}, for instance.")
    return _with_arguments(values.config, arguments)


def _parse(values: flags.FlagValues) -> tuple[list[str], dict[str, str]]:
    """What is neither a flag nor an argument of a backbone or method; these arguments, by key.

    A key that names another backbone or method, such as 'finetune.method', is among them: the arguments that
    the config file has are for the one that it names.

    Raises:
      UserError: for a flag, key, value or file that is wrong.
    """
    command, arguments = sys.argv[:1], {}
    for word in sys.argv[1:]:
        name, _, value = word.lstrip("-").partition("=")
        path = Path(value.partition(":")[0])
        if name == "config" and not path.is_file():
            there = sorted(p.name for p in path.parent.glob("*.py"))
            raise UserError(f"no config file {path}{did_you_mean(path.name, there)}")
        if name == "config":
            sys.path.insert(
                0, str(path.resolve().parent)
            )  # a config may import the files beside it
        # Known only when the backbone and the methods are, which other flags may set.
        if re.fullmatch(r"config\.\w+\.arguments\.\w+", name) and "=" in word:
            arguments[name.removeprefix("config.")] = value
            continue
        if re.fullmatch(r"config\.(model\.backbone|\w+\.method)", name):
            arguments = {name.removeprefix("config."): value} | arguments
        command.append(word)
    typed, sys.argv = sys.argv, command  # where ml_collections looks for overrides
    try:
        return values(command)[1:], arguments
    except flags.Error as error:
        raise UserError(str(error)) from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # ml_collections puts the repr of a repr into its message.
        text = str(error.args[0] if error.args else error)
        near = re.search(r'Did you mean "(.*)" instead of "(.*)"', text)
        if near:
            text = f"there is no config key {near[2]!r}; did you mean {near[1]!r}?"
        raise UserError(text) from None
    finally:
        sys.argv = typed


def _with_arguments(config: ConfigDict, given: dict[str, str]) -> ConfigDict:
    """The config with all arguments of its backbone and methods, set where the command line sets them."""
    from fgvc_jax import methods
    from fgvc_jax.phases import complete, sections

    with config.unlocked():
        for key, text in given.items():
            name, _, argument = key.partition(".arguments.")
            if not argument:
                section = config[name.partition(".")[0]]
                known = (
                    methods.arguments(section.method, f"config.{name}")
                    if "method" in section
                    else ()
                )
                kept = {k: v for k, v in section.arguments.items() if k in known}
                section.arguments = kept
                continue
            choose(name, ["model", *sections(config)], f"--config.{key}: section")
            try:
                value = ast.literal_eval(text)
            except (SyntaxError, ValueError):
                value = text  # a bare word
            config[name].arguments = config[name].arguments.to_dict() | {argument: value}
    return complete(config)


def _numbers(words: list[str], where: str) -> tuple[int, ...]:
    if not all(word.isdigit() for word in words):
        raise UserError(f"{where}={','.join(words)}: give numbers from 0, as 0,1.")
    return tuple(map(int, words))
