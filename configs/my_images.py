"""A plain, strong fine-tune of your own images.

    python launch.py --config=configs/my_images.py --config.data.root=DIR --workdir=runs/mine

DIR holds train/<class>/ with optional val/ and test/, or class folders alone, which are then split
(stratified, seeded, saved in the run's manifest.json). Weights: the message at the start names the file to
bring; --config.model.pretrained=FILE. Without weights (--config.model.pretrained=) it trains from scratch,
which wants many more epochs and is far less accurate on a small set.

Source: the recipe that the field agrees on (SGD, cosine, label smoothing, head 10 times faster). There is
no published number for your images. Ran: see README.md, on 31 kinds of produce.
"""

from fgvc_jax import recipes
from fgvc_jax.config import base
from fgvc_jax.phases import section


def get_config():
    config = base()
    config.model.pretrained = "torchvision/resnet50.IMAGENET1K_V1"
    config.image.crop_scale = (0.25, 1.0)  # smaller crops often miss what tells look-alikes apart
    config.finetune = section("train", **recipes.PLAIN)
    config.evaluate = section("evaluate")
    config.phases = ("finetune", "evaluate")
    return config
