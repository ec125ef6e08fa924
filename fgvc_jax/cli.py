"""The console command: `fgvc train` is `python launch.py`, `fgvc predict` uses a finished run."""

import argparse
import csv
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags

from fgvc_jax.config import as_json, did_you_mean
from fgvc_jax.errors import UserError

USAGE = """usage: fgvc train --config=FILE.py[:VARIANT] --workdir=DIR [--config.KEY=VALUE ...]
       fgvc predict RUN PATHS ... --out=FILE.csv
'fgvc train --help' and 'fgvc predict --help' say more."""


def main() -> int:
    commands = {"train": train, "predict": predict}
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        print(USAGE, file=sys.stderr)
        return 0 if sys.argv[1:] in (["-h"], ["--help"]) else 2
    command = sys.argv.pop(1)
    return commands[command]()


def train() -> int:
    """Parses the flags of the command line and the config file, runs, and returns the exit status.

    0 done, 2 a mistake of the user's (one message, no traceback), 128 + the signal where it was stopped.
    """
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
        "Start jax.distributed: by itself on TPU pods and Slurm; elsewhere with JAX_COORDINATOR_ADDRESS, "
        "JAX_NUM_PROCESSES and JAX_PROCESS_ID.",
        flag_values=values,
    )
    flags.DEFINE_bool("help", False, "Print this.", short_name="h", flag_values=values)

    def body() -> None:
        rest = _parse(values)
        if values.help:
            print(USAGE, values.get_help(), sep="\n")
            return
        if rest:
            raise UserError(f"unexpected argument {rest[0]!r}. A flag is written --name=value.")
        if values.config is None:
            raise UserError("no config: pass --config=configs/quickstart.py, for instance.")
        config = values.config
        if values.print_config:
            print(as_json(config))
            return
        if not values.workdir:
            raise UserError(
                "no workdir: pass --workdir=runs/NAME, the folder for this run's files."
            )
        if values.distributed:
            _start_distributed()
        from fgvc_jax.run import run

        logging.set_verbosity(logging.ERROR)  # the libraries' own remarks
        run(config, values.workdir, dry_run=values.dry_run, reuse=values.reuse)

    return _exit_status(body)


def _parse(values: flags.FlagValues) -> list[str]:
    """The arguments that are not flags; UserError for a flag, key, value or file that is wrong."""
    for argument in sys.argv[1:]:
        name, _, value = argument.lstrip("-").partition("=")
        path = Path(value.partition(":")[0])
        if name == "config" and not path.is_file():
            there = sorted(p.name for p in path.parent.glob("*.py"))
            raise UserError(f"no config file {path}{did_you_mean(path.name, there)}")
    try:
        return values(sys.argv)[1:]
    except flags.Error as error:
        raise UserError(str(error)) from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # ml_collections puts the repr of a repr into its message.
        text = str(error.args[0] if error.args else error)
        near = re.search(r'Did you mean "(.*)" instead of "(.*)"', text)
        if near:
            text = f"there is no config key {near[2]!r}; did you mean {near[1]!r}?"
        raise UserError(text) from None


def _start_distributed() -> None:
    import jax

    environment = os.environ
    if "JAX_COORDINATOR_ADDRESS" in environment:
        jax.distributed.initialize(
            num_processes=int(environment["JAX_NUM_PROCESSES"]),
            process_id=int(environment["JAX_PROCESS_ID"]),
        )
    else:
        jax.distributed.initialize()


def _exit_status(body: Callable[[], None]) -> int:
    from fgvc_jax.train.stop import Interrupted

    try:
        body()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as interrupted:
        return 128 + interrupted.signal
    return 0


def predict() -> int:
    """Classifies images with a finished run, as CSV: file, class, probability, second, margin."""
    parser = argparse.ArgumentParser("fgvc predict", description=predict.__doc__)
    parser.add_argument("run", help="the run's workdir, or one of its training phases")
    parser.add_argument("paths", nargs="+", help="images, or folders that are searched for images")
    parser.add_argument("--out", required=True, help="the CSV file to write")
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()

    def body() -> None:
        from fgvc_jax.inference import load

        folder = Path(arguments.out).expanduser().resolve().parent
        if not os.access(folder, os.W_OK):
            raise UserError(f"--out={arguments.out}: {folder} is no folder that can be written to.")
        if arguments.batch < 1:
            raise UserError(f"--batch={arguments.batch}; it must be at least 1.")
        classifier = load(arguments.run)
        files = classifier.find_images(arguments.paths)
        probabilities = classifier.predict(files, batch=arguments.batch)
        order = (-probabilities).argsort(axis=1, kind="stable")
        names = classifier.classes
        partial = f"{arguments.out}.partial"
        with open(partial, "w", newline="", encoding="utf-8") as out:
            writer = csv.writer(out)
            writer.writerow(["file", "class", "probability", "second", "margin"])
            for file, row, (first, second) in zip(files, probabilities, order[:, :2], strict=True):
                margin = row[first] - row[second]
                writer.writerow(
                    [file, names[first], f"{row[first]:.6f}", names[second], f"{margin:.6f}"]
                )
        os.replace(partial, arguments.out)
        print(f"{len(files):,} images, classified by {classifier.phase}: {arguments.out}")

    return _exit_status(body)
