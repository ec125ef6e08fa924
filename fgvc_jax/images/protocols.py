"""Resize protocols of the literature, by name: `--config.image.protocol=fgvc448`."""

from ml_collections import ConfigDict

from fgvc_jax.config import base
from fgvc_jax.errors import choose

# Keys of config.image. 'squash' resizes to (height, width) whatever the aspect, 'random' crops from the
# resized image in training; at evaluation the crop is central.
PROTOCOLS = {
    # Random-resized-crop in training; at evaluation as the weights want. The default.
    "timm": {"crop": "random_resized"},
    # FBSD, CMAL-Net, PMG
    "fgvc448": {"size": 448, "squash": (550, 550), "crop": "random", "crop_pad": 8},
    # MMAL-Net: no crop at all
    "mmal448": {"size": 448, "squash": (448, 448), "crop": "random"},
    # PIM at its two sizes
    "pim384": {"size": 384, "squash": (510, 510), "crop": "random"},
    "pim448": {"size": 448, "squash": (600, 600), "crop": "random"},
    # Bilinear CNN
    "bcnn448": {"size": 448, "resize": 448, "crop": "random"},
    # The usual ResNet baseline on CUB
    "shorter512_448": {"size": 448, "resize": 512, "crop": "random"},
    # A comparison of optimizers: Flowers, and (squash260_224) Aircraft
    "squash300x323_224": {"size": 224, "squash": (300, 323), "crop": "random", "flip": 0.0},
    "squash260_224": {"size": 224, "squash": (260, 260), "crop": "random", "flip": 0.0},
}


def apply(config: ConfigDict) -> ConfigDict:
    """The config with the keys that `config.image.protocol` names; a key that was set otherwise stays.

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
