"""FineNet's pipeline on FGVC-Aircraft, 100 variants.

    export FGVC_DATA=DIR
    fgvc prepare aircraft --archive fgvc-aircraft-2013b.tar.gz
    python launch.py --config=configs/aircraft_finer.py --workdir=runs/aircraft_finer

Data: $FGVC_DATA/aircraft, the official train, val and test, without the banner below each photo. --download
in place of --archive gets the file from its official address. 70 families or 30 manufacturers:
--config.data.label_feature=family or manufacturer. The usual protocol trains on train + val:
--config.protocol=refit.
Weights: the message at the start names the file to bring; --config.model.pretrained=FILE.

Source: github.com/danhugo/finernet, with our defaults as in `folder_finer.py`. Its authors give no number for
this set; MMAL-Net reports 94.7 top-1 (ResNet-50, 448 px, train + val, best epoch on the test set).
Ran by us: never in full; two steps of every phase at a small size, in the tests.
"""

from fgvc_jax import config as c
from fgvc_jax import recipes


def get_config():
    config = c.base()
    config.data.source, config.data.root = "tfds", "$FGVC_DATA/aircraft"
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
