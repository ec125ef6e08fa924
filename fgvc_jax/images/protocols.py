"""Resize protocols of the literature by name, for `--config.image.protocol=fgvc448`."""

from ml_collections import ConfigDict

from fgvc_jax.config import base
from fgvc_jax.errors import choose

_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

# By name, keys of config.image. 'resize' is of the shorter side, 'squash' to (height, width) whatever the
# aspect. 'random' crops from the resized image in training; at evaluation the crop is central. Where a
# protocol names no mean and deviation, they are those of the weights.
PROTOCOLS = {
    # The default: random-resized-crop in training; at evaluation as the weights want.
    "timm": {"crop": "random_resized"},
    # FineNet at its two sizes
    "finenet224": {"size": 224, "resize": 256, "crop": "random_resized"},
    "finenet384": {"size": 384, "resize": 512, "crop": "random_resized"},
    # FBSD, CMAL-Net, PMG
    "fgvc448": {"size": 448, "squash": (550, 550), "crop": "random", "crop_pad": 8, **_HALF},
    # MMAL-Net: no crop at all
    "mmal448": {"size": 448, "squash": (448, 448), "crop": "random"},
    # PIM at its two sizes
    "pim384": {"size": 384, "squash": (510, 510), "crop": "random"},
    "pim448": {"size": 448, "squash": (600, 600), "crop": "random"},
    # Bilinear CNN
    "bcnn448": {"size": 448, "resize": 448, "crop": "random"},
    # The usual ResNet baseline on CUB
    "shorter512_448": {"size": 448, "resize": 512, "crop": "random"},
    # A comparison of optimizers by Curci and others: Flowers-102, then FGVC-Aircraft; nothing is mirrored
    "squash300x323_224": {"size": 224, "squash": (300, 323), "crop": "random", "flip": 0.0},
    "squash260_224": {"size": 224, "squash": (260, 260), "crop": "random", "flip": 0.0},
}


def apply(config: ConfigDict) -> ConfigDict:
    """The config with the keys of the protocol that `config.image.protocol` names, if it names one.

    A key whose value is not the default stays. One that was set to the default by hand cannot be told from
    one that was left alone, and is replaced.

    Returns:
      a copy; the argument is left alone.

    Raises:
      UserError: for an unknown name.
    """
    if not config.image.protocol:
        return config
    config, defaults = config.copy_and_resolve_references(), base().image
    choose(config.image.protocol, PROTOCOLS, "config.image.protocol")
    for key, value in PROTOCOLS[config.image.protocol].items():
        if config.image[key] == defaults[key]:
            config.image[key] = value
    return config
