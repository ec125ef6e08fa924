"""FineNet's pipeline on NABirds, 555 North American birds by plumage.

    export FGVC_DATA=DIR
    fgvc prepare nabirds --archive nabirds.tar.gz
    python launch.py --config=configs/nabirds_finer.py --workdir=runs/nabirds_finer

Data: $FGVC_DATA/nabirds, the official split; validation is carved from train. The archive is handed out
after a form: https://dl.allaboutbirds.org/nabirds.
Weights: the message at the start names the file to bring; --config.model.pretrained=FILE.

Source: github.com/danhugo/finernet, with our defaults as in `folder_finer.py`. Its authors give no number for
this set.
Ran by us: never in full; two steps of every phase at a small size, in the tests.
"""

from fgvc_jax import config as c
from fgvc_jax import recipes


def get_config():
    config = c.base()
    config.data.source, config.data.root = "tfds", "$FGVC_DATA/nabirds"
    config.model.pretrained = "torchvision/resnet50.IMAGENET1K_V1"
    config.image.crop_scale = (0.25, 1.0)
    recipes.finer(
        config,
        finetune=recipes.PLAIN,
        mine={},
        pairs={"learning_rate": 4e-4, "momentum": 0.95, "weight_decay": 5e-4},
        retrain=recipes.RETRAIN,
    )
    return config
