"""Names of published weights, and the files that hold them."""

from pathlib import Path

from fgvc_jax.errors import UserError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".npz")

# Files of https://download.pytorch.org/models/; the digits are the start of the file's SHA-256.
TORCHVISION = {
    "resnet18.IMAGENET1K_V1": "resnet18-f37072fd.pth",
    "resnet34.IMAGENET1K_V1": "resnet34-b627a593.pth",
    "resnet50.IMAGENET1K_V1": "resnet50-0676ba61.pth",
    "resnet50.IMAGENET1K_V2": "resnet50-11ad3fa6.pth",
    "resnet101.IMAGENET1K_V1": "resnet101-63fe2227.pth",
    "resnet101.IMAGENET1K_V2": "resnet101-cd907fc2.pth",
    "resnet152.IMAGENET1K_V1": "resnet152-394f9c45.pth",
    "resnet152.IMAGENET1K_V2": "resnet152-f82ba261.pth",
    "vit_b_16.IMAGENET1K_V1": "vit_b_16-c867db91.pth",
}


def locate(source: str) -> Path:
    """The file that `source` names; where there is none, a UserError says which file to bring."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        files = sorted(p.name for p in path.iterdir() if p.suffix in SUFFIXES)
        listed = f" Files of weights in it: {', '.join(files)}." if files else ""
        raise UserError(f"pretrained={source!r} is a folder; name one file of weights.{listed}")
    library, _, name = str(source).partition("/")
    if library == "torchvision" and name in TORCHVISION:
        bring = (
            f"Download https://download.pytorch.org/models/{TORCHVISION[name]} "
            f"and pass --config.model.pretrained=PATH/{TORCHVISION[name]}"
        )
    elif library == "torchvision":
        bring = f"Of torchvision there are: {', '.join(TORCHVISION)}"
    elif library == "timm" and name:
        bring = (
            f"Download model.safetensors from https://huggingface.co/timm/{name} "
            "and pass --config.model.pretrained=PATH/model.safetensors"
        )
    else:
        bring = f"Pass --config.model.pretrained=PATH of a file ({', '.join(SUFFIXES)})"
    raise UserError(
        f"pretrained={source!r} is not a file on this machine. {bring}\n"
        "(Without weights, from scratch: --config.model.pretrained=)"
    )
