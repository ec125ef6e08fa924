"""CMAL-Net on FGVC-Aircraft: three depths of a ResNet-50 that train on what the others attend to.

    export FGVC_DATA=DIR
    fgvc prepare aircraft --archive fgvc-aircraft-2013b.tar.gz
    python launch.py --config=configs/aircraft_cmal.py --workdir=runs/aircraft_cmal

Data: $FGVC_DATA/aircraft, the official train, val and test; the authors train on train + val:
--config.protocol=refit. Other sets: --config.data.root='$FGVC_DATA/cub', and so on.
Weights: the message at the start names the file to bring; --config.model.pretrained=FILE. The authors publish
no checkpoint; a state dict in their names: --config.init.file=FILE.
Variants: '' (warm-up, no decay of biases and norms), released (their recipe, but for a cosine that falls
every step, not every epoch). Both have their batch of 16, 200 epochs and rates (2e-3, the backbone 2e-4). An
example costs five passes of the image forward and backward, and two in use; the maps that one update leaves
for the next take 17 MB an image at 448 pixels.

Source: Liu et al. 2023, Pattern Recognition 140, 109550; github.com/Dichao-Liu/CMAL. Published top-1: 94.7,
the best epoch on the test set. (97.1 on Cars starts from weights that had been trained on Cars.)
Report 003 has 72.7 with ResNet-50 in 10 epochs at 224 pixels, 80.6 at a larger size, batch 10; validated with
AutoAugment, by the concatenation's logits alone, boxes and crops by the nearest pixel. Its settings:
configs/report003.py:resnet50,sgd,cmal.
Ran by us: never in full; on 31 kinds of produce and in the tests, both small.
"""

from fgvc_jax import recipes
from fgvc_jax.config import base
from fgvc_jax.errors import choose
from fgvc_jax.phases import section

OURS = {
    "optimizer": {"no_decay": recipes.NO_DECAY},
    "schedule": {"warmup": "1 epochs"},
}


def get_config(variant=""):
    choose(variant, ("", "released"), "configs/aircraft_cmal.py: variant")
    config = base()
    config.data.source, config.data.root = "tfds", "$FGVC_DATA/aircraft"
    config.model.pretrained = "torchvision/resnet50.IMAGENET1K_V1"
    config.image.protocol = "fgvc448"
    settings = {
        "method": "cmal",
        "length": "200 epochs",
        "batch": 16,
        "optimizer": {
            "learning_rate": 2e-3,
            "rate_scale": (("backbone/.*", 0.1),),
            "weight_decay": 5e-4,
        },
        "validation": {"every": "5 epochs"},
    }
    settings = recipes.merge(settings, {} if variant else OURS)
    config.finetune = section("train", **settings)
    config.evaluate = section("evaluate")
    config.phases = ("finetune", "evaluate")
    return config
