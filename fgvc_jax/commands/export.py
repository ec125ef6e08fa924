"""fgvc export RUN --out=DIR [--format=timm|onnx|stablehlo] [--images PATH ...] [--push=USER/NAME]

Writes a run's best model for another program, in a new folder:

  timm       config.json, model.safetensors: timm.create_model('local-dir:DIR', pretrained=True)
  onnx       config.json, model.onnx: the net with its normalisation, for onnxruntime and others
  stablehlo  config.json, model.stablehlo: all from the image on, for jax on CPUs, GPUs and TPUs

Before it is written, each is run on 32 real images, of the run's test or validation split or of --images,
and refused where its probabilities or embeddings differ from the model's by more than 1e-4.
"""

import argparse


def main() -> None:
    """Exports the run that the command line names."""
    parser = argparse.ArgumentParser(
        "fgvc export",
        description=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="the run's workdir, or one of its training phases")
    parser.add_argument("--out", required=True, help="the folder to write, new or empty")
    parser.add_argument("--format", default="timm", choices=("timm", "onnx", "stablehlo"))
    parser.add_argument("--checkpoint", default="best", choices=("best", "last"))
    parser.add_argument("--images", nargs="+", default=[], help="real images to try the file on")
    parser.add_argument(
        "--push", default="", metavar="USER/NAME", help="uploads the folder to the Hugging Face hub"
    )
    arguments = parser.parse_args()
    from fgvc_jax.export import hub, onnx, stablehlo, timm

    if arguments.push:
        hub.check_name(arguments.push)
    to_format = {"timm": timm.to_timm, "onnx": onnx.to_onnx, "stablehlo": stablehlo.to_stablehlo}
    phase = to_format[arguments.format](
        arguments.run, arguments.out, arguments.checkpoint, images=arguments.images
    )
    print(f"{phase} for {arguments.format}: {arguments.out}")
    if arguments.push:
        print(f"pushed: {hub.push(arguments.out, arguments.push)}")
