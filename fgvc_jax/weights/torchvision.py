"""torchvision's published weights: their files, what images they want, and the way to get them."""

from pathlib import Path
from typing import NamedTuple

from fgvc_jax import download, files

SERVER = "https://download.pytorch.org/models/"
SWAG = "cc-by-nc-4.0"  # of github.com/facebookresearch/SWAG
NONE_STATED = (
    "none stated by torchvision (its code is BSD-3-Clause); trained on ImageNet, which is licensed "
    "for non-commercial research"
)


class Weights(NamedTuple):
    """A file of `SERVER` (the digits in its name begin its SHA-256) and its evaluation transform.

    Attributes:
      size: side of the centre crop in pixels.
      resize: the image's short side before it.
    """

    file: str
    size: int
    resize: int
    interpolation: str = "bilinear"
    licence: str = NONE_STATED


WEIGHTS = {
    "resnet18.IMAGENET1K_V1": Weights("resnet18-f37072fd.pth", 224, 256),
    "resnet34.IMAGENET1K_V1": Weights("resnet34-b627a593.pth", 224, 256),
    "resnet50.IMAGENET1K_V1": Weights("resnet50-0676ba61.pth", 224, 256),
    "resnet50.IMAGENET1K_V2": Weights("resnet50-11ad3fa6.pth", 224, 232),
    "resnet101.IMAGENET1K_V1": Weights("resnet101-63fe2227.pth", 224, 256),
    "resnet101.IMAGENET1K_V2": Weights("resnet101-cd907fc2.pth", 224, 232),
    "resnet152.IMAGENET1K_V1": Weights("resnet152-394f9c45.pth", 224, 256),
    "resnet152.IMAGENET1K_V2": Weights("resnet152-f82ba261.pth", 224, 232),
    "resnext50_32x4d.IMAGENET1K_V1": Weights("resnext50_32x4d-7cdf4587.pth", 224, 256),
    "resnext50_32x4d.IMAGENET1K_V2": Weights("resnext50_32x4d-1a0047aa.pth", 224, 232),
    "resnext101_32x8d.IMAGENET1K_V1": Weights("resnext101_32x8d-8ba56ff5.pth", 224, 256),
    "resnext101_32x8d.IMAGENET1K_V2": Weights("resnext101_32x8d-110c445d.pth", 224, 232),
    "resnext101_64x4d.IMAGENET1K_V1": Weights("resnext101_64x4d-173b62eb.pth", 224, 232),
    "vit_b_16.IMAGENET1K_V1": Weights("vit_b_16-c867db91.pth", 224, 256),
    "vit_b_16.IMAGENET1K_SWAG_E2E_V1": Weights(
        "vit_b_16_swag-9ac1b537.pth", 384, 384, "bicubic", SWAG
    ),
    "vit_b_16.IMAGENET1K_SWAG_LINEAR_V1": Weights(
        "vit_b_16_lc_swag-4e70ced5.pth", 224, 224, "bicubic", SWAG
    ),
    "vit_l_16.IMAGENET1K_V1": Weights("vit_l_16-852ce7e3.pth", 224, 242),
    "vit_l_16.IMAGENET1K_SWAG_E2E_V1": Weights(
        "vit_l_16_swag-4f3808c9.pth", 512, 512, "bicubic", SWAG
    ),
    "vit_l_16.IMAGENET1K_SWAG_LINEAR_V1": Weights(
        "vit_l_16_lc_swag-4d563306.pth", 224, 224, "bicubic", SWAG
    ),
    "efficientnet_b0.IMAGENET1K_V1": Weights(
        "efficientnet_b0_rwightman-7f5810bc.pth", 224, 256, "bicubic"
    ),
    "efficientnet_b1.IMAGENET1K_V1": Weights(
        "efficientnet_b1_rwightman-bac287d4.pth", 240, 256, "bicubic"
    ),
    "efficientnet_b1.IMAGENET1K_V2": Weights("efficientnet_b1-c27df63c.pth", 240, 255),
    "efficientnet_b2.IMAGENET1K_V1": Weights(
        "efficientnet_b2_rwightman-c35c1473.pth", 288, 288, "bicubic"
    ),
    "efficientnet_b3.IMAGENET1K_V1": Weights(
        "efficientnet_b3_rwightman-b3899882.pth", 300, 320, "bicubic"
    ),
    "efficientnet_b4.IMAGENET1K_V1": Weights(
        "efficientnet_b4_rwightman-23ab8bcd.pth", 380, 384, "bicubic"
    ),
    "efficientnet_b5.IMAGENET1K_V1": Weights(
        "efficientnet_b5_lukemelas-1a07897c.pth", 456, 456, "bicubic"
    ),
    "efficientnet_b6.IMAGENET1K_V1": Weights(
        "efficientnet_b6_lukemelas-24a108a5.pth", 528, 528, "bicubic"
    ),
    "efficientnet_b7.IMAGENET1K_V1": Weights(
        "efficientnet_b7_lukemelas-c5b4e57e.pth", 600, 600, "bicubic"
    ),
    "convnext_tiny.IMAGENET1K_V1": Weights("convnext_tiny-983f1562.pth", 224, 236),
    "convnext_small.IMAGENET1K_V1": Weights("convnext_small-0c510722.pth", 224, 230),
    "convnext_base.IMAGENET1K_V1": Weights("convnext_base-6075fbad.pth", 224, 232),
    "swin_t.IMAGENET1K_V1": Weights("swin_t-704ceda3.pth", 224, 232, "bicubic"),
    "swin_s.IMAGENET1K_V1": Weights("swin_s-5e29d889.pth", 224, 246, "bicubic"),
    "swin_b.IMAGENET1K_V1": Weights("swin_b-68c6b09e.pth", 224, 238, "bicubic"),
}
BY_FILE = {weights.file: weights for weights in WEIGHTS.values()}


def cached(file: str) -> Path:
    """Where a file of `SERVER` lies once it is downloaded: $FGVC_CACHE/weights (~/.cache/fgvc_jax)."""
    return files.cache_folder() / "weights" / file


def fetch(file: str) -> Path:
    """A file of `SERVER`, downloaded to `cached(file)` where it is not there yet.

    Raises:
      UserError: as `fgvc_jax.download.fetch`.
    """
    path = cached(file)
    digest = f"sha256:{Path(file).stem.rpartition('-')[2]}"
    bring = f"Or bring it into {path.parent}, or pass --config.model.pretrained=PATH/{file}"
    return download.fetch(SERVER + file, path, digest, bring=bring)
