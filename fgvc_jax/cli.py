"""The console command: `fgvc train` is `python launch.py`, `fgvc predict` uses a finished run."""

import importlib
import sys

from fgvc_jax.errors import UserError

COMMANDS = (
    "train",
    "plan",
    "predict",
    "explain",
    "report",
    "compare",
    "methods",
    "weights",
    "export",
    "demo",
    "check",
    "audit",
    "evolution",
    "prepare",
)


def main() -> int:
    """Runs the command that the first argument names."""
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        print(_usage(), file=sys.stderr)
        return 0 if sys.argv[1:] in (["-h"], ["--help"]) else 2
    return run(sys.argv.pop(1))


def run(command: str) -> int:
    """Runs a command of `fgvc_jax/commands` on sys.argv[1:] and returns the exit status.

    0 done, 2 a mistake of the user's (one message, no traceback), 128 + the signal where it was stopped.
    A command's main() may return another one: 3, where it is done but for some images (`fgvc predict`).
    """
    from fgvc_jax.train.stop import Interrupted

    try:
        return _module(command).main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as interrupted:
        return 128 + interrupted.signal


def _module(command: str):
    return importlib.import_module(f"fgvc_jax.commands.{command}")


def _usage() -> str:
    lines = [_module(command).__doc__.splitlines()[0] for command in COMMANDS]
    return (
        "\n       ".join(["usage: " + lines[0], *lines[1:]]) + "\n'fgvc COMMAND --help' says more."
    )
