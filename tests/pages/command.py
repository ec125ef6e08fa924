"""A command as it is typed, for fixtures of a module, which have no monkeypatch."""

import sys

from fgvc_jax import cli


def call(*arguments):
    """The exit status of `fgvc ARGUMENTS`."""
    before, sys.argv = sys.argv, ["fgvc", *map(str, arguments)]
    try:
        return cli.main()
    finally:
        sys.argv = before
