"""fgvc export RUN --out=DIR [--format=timm] [--checkpoint=best|last]

Writes a run's best classifier for another library: timm.create_model('local-dir:DIR', pretrained=True).
"""

import argparse


def main() -> None:
    """Exports the run that the command line names."""
    parser = argparse.ArgumentParser("fgvc export", description=__doc__.partition("\n\n")[2])
    parser.add_argument("run", help="the run's workdir, or one of its training phases")
    parser.add_argument("--out", required=True, help="the folder to write, new or empty")
    parser.add_argument("--format", default="timm", choices=("timm",))
    parser.add_argument("--checkpoint", default="best", choices=("best", "last"))
    arguments = parser.parse_args()
    from fgvc_jax.export.timm import to_timm

    phase = to_timm(arguments.run, arguments.out, arguments.checkpoint)
    print(f"{phase} as timm's config.json and model.safetensors: {arguments.out}")
