"""Starts a run: python launch.py --config=configs/quickstart.py --workdir=runs/quickstart"""

import sys

from fgvc_jax import cli

if __name__ == "__main__":
    sys.exit(cli.run("train"))
