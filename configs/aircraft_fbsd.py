"""FBSD on FGVC-Aircraft: strips of the maps of a ResNet-50, boosted for a branch, hidden from the next stage.

    export FGVC_DATA=DIR
    fgvc prepare aircraft --archive fgvc-aircraft-2013b.tar.gz
    python launch.py --config=configs/aircraft_fbsd.py --workdir=runs/aircraft_fbsd

Data: $FGVC_DATA/aircraft, the official train, val and test; the authors train on train + val:
--config.protocol=refit. Other sets: --config.data.root='$FGVC_DATA/cub', and so on.
Weights: the message at the start names the file to bring; --config.model.pretrained=FILE.
Variants: '' (one cosine over the whole run, as their code means to; statistics of the strips over the whole
map; no decay of biases and norms), released (their code: the cosine is stepped every iteration and so goes to
0 and back every 400 steps, statistics strip by strip). Both have their batch of 20, 200 epochs and rates
(2e-3, the backbone 2e-4). Images of 256, 320, 384 or 448 pixels; at 224 the maps do not divide into strips.
Report 002 (competition of 100 mammals) trains it with --config.finetune.arguments.dropout=0.2.

Source: Song & Yang 2021, arXiv 2103.02782; github.com/chaomaer/FBSD. Published top-1, best epoch on the test
set: CUB 89.5 by a list of results that names no backbone; the paper's own table could not be read here, from
memory ResNet-50 has Aircraft 92.7, CUB 89.3, Cars 94.4. Nobody is known to have reproduced them. Report 002
has 71 % on its mammals, with a last layer that its test script had drawn anew.
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
RELEASED = {
    "arguments": {"strip_norm": "per_strip"},
    "schedule": {"name": "oscillating", "period": "400 steps"},
}


def get_config(variant=""):
    choose(variant, ("", "released"), "configs/aircraft_fbsd.py: variant")
    config = base()
    config.data.source, config.data.root = "tfds", "$FGVC_DATA/aircraft"
    config.model.pretrained = "torchvision/resnet50.IMAGENET1K_V1"
    config.image.protocol = "fgvc448"
    settings = {
        "method": "fbsd",
        "length": "200 epochs",
        "batch": 20,
        "optimizer": {
            "learning_rate": 2e-3,
            "rate_scale": (("backbone/.*", 0.1),),
            "weight_decay": 5e-4,
        },
        "validation": {"every": "5 epochs"},
    }
    settings = recipes.merge(settings, RELEASED if variant else OURS)
    config.finetune = section("train", **settings)
    config.evaluate = section("evaluate")
    config.phases = ("finetune", "evaluate")
    return config
