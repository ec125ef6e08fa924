"""torchvision's published weights: their files, what images they want, and the way to get them."""

import fcntl
import hashlib
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from fgvc_jax.errors import UserError

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


def fetch(file: str) -> Path:
    """A file of `SERVER`, downloaded into $FGVC_CACHE/weights (~/.cache/fgvc_jax) where it is not yet.

    An interrupted download is continued; the file appears under its name only when its hash is right.

    Raises:
      UserError: no connection, a connection that broke, a file of another hash.
    """
    folder = Path(os.environ.get("FGVC_CACHE", "~/.cache/fgvc_jax")).expanduser() / "weights"
    path = folder / file
    if path.exists():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one process downloads, the others wait for the file
            if not path.exists():
                partial = folder / f"{file}.partial"
                _download(SERVER + file, partial)
                _check(partial, file)
                os.replace(partial, path)
    except (OSError, EOFError) as error:  # urllib's errors are OSErrors
        raise UserError(
            f"{SERVER + file} could not be downloaded into {folder}: {error}. Start again, which goes "
            f"on where it stopped; or bring the file from another machine into {folder}, or pass "
            f"--config.model.pretrained=PATH/{file}"
        ) from None
    return path


def _download(url: str, partial: Path) -> None:
    there = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={there}-"} if there else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to send: the file was complete
            return
        raise
    with response:
        if response.status != 206:  # the whole file, asked for or not
            there = 0
        left = int(response.headers["Content-Length"])
        with (
            open(partial, "ab" if there else "wb") as out,
            tqdm(
                desc=partial.stem, initial=there, total=there + left, unit="B", unit_scale=True
            ) as progress,
        ):
            while block := response.read(2**20):
                out.write(block)
                left -= len(block)
                progress.update(len(block))
    if left:
        raise EOFError(f"the connection broke with {left:,} bytes to go")


def _check(partial: Path, file: str) -> None:
    expected = Path(file).stem.rpartition("-")[2]
    with open(partial, "rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if not found.startswith(expected):
        partial.unlink()
        raise UserError(
            f"{SERVER + file}: what was downloaded has the SHA-256 {found}, where {expected}... is "
            "right. It was deleted; start again, or bring the file from elsewhere."
        )
