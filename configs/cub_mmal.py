"""MMAL-Net on CUB-200-2011: the bird is found and cropped, then its parts; one ResNet-50 for all.

    export FGVC_DATA=DIR
    fgvc prepare cub --archive CUB_200_2011.tgz
    python launch.py --config=configs/cub_mmal.py --workdir=runs/cub_mmal

Data: $FGVC_DATA/cub, the official split; validation is carved from train (--config.protocol=refit then trains
on both). Cars and Aircraft have windows of their own: --config.finetune.arguments.windows=cars.
Weights: the message at the start names the file to bring; --config.model.pretrained=FILE. The authors'
checkpoint: --config.init.file=FILE.
Variants: '' (cosine, no decay of biases and norms), released (the authors' recipe: steps at 60 and 100
epochs, the same decay for everything). Both have their batch of 6, which by their account is the best, and
their 200 epochs at 1e-3. An example costs 3.75 passes of the image.

Source: Zhang et al. 2020, arXiv 2003.09150; github.com/ZF4444/MMAL-Net. Published top-1: 89.6 (Aircraft 94.7,
Cars 95.0); the best epoch on the test set, of several runs without a seed. Users report 89.1 and 89.25.
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
RELEASED = {"schedule": {"name": "step", "drops": ("60 epochs", "100 epochs")}}


def get_config(variant=""):
    choose(variant, ("", "released"), "configs/cub_mmal.py: variant")
    config = base()
    config.data.source, config.data.root = "tfds", "$FGVC_DATA/cub"
    config.model.pretrained = "torchvision/resnet50.IMAGENET1K_V1"
    config.image.protocol = "mmal448"
    config.image.jitter = (0.2, 0.2, 0.0, 0.0)
    settings = {
        "method": "mmal",
        "arguments": {"windows": "cub"},
        "length": "200 epochs",
        "batch": 6,
        "optimizer": {"learning_rate": 1e-3, "weight_decay": 1e-4},
        "validation": {"every": "5 epochs"},
    }
    settings = recipes.merge(settings, RELEASED if variant else OURS)
    config.finetune = section("train", **settings)
    config.evaluate = section("evaluate")
    config.phases = ("finetune", "evaluate")
    return config
