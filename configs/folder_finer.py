"""FineNet's pipeline on your own images: fine-tune, mine look-alikes, same/different, retrain; a control.

    python launch.py --config=configs/folder_finer.py --config.data.root=DIR --workdir=runs/finer

The data and the weights are given as for `my_images.py`. Read the row 'control' beside the row 'retrain': it
is the plain fine-tune, gone on with for as many images as the pair phase and the retraining used.

Source: github.com/danhugo/finernet, with our defaults (cosine similarity, evaluation
preprocessing, the image itself left out by index, selection on validation); the report's gains are 0.1 to
1.2 points. Ran: see README.md, on 31 kinds of produce.
"""

from fgvc_jax import config as c
from fgvc_jax import recipes


def get_config():
    config = c.base()
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
