"""The whole pipeline in two minutes on a CPU, on the 1,797 real digit images that come with scikit-learn.

    python launch.py --config=configs/quickstart.py --workdir=runs/quickstart

Digits are easy: this shows that the pipeline runs, not that it helps. Ran: see README.md for its table.
"""

from fgvc_jax import recipes
from fgvc_jax.config import base


def get_config():
    config = base()
    config.data.source = "digits"
    config.data.test_fraction = 0.3
    config.image.size = 32
    config.image.resize = 32
    config.image.crop_scale = (0.6, 1.0)
    config.image.flip = 0.0  # a mirrored digit is another sign
    config.model.backbone = "resnet18"
    config.model.arguments = {"width": 16}
    recipes.finer(
        config,
        finetune={
            "length": "10 epochs",
            "batch": 64,
            "optimizer": {"learning_rate": 0.05, "weight_decay": 5e-4},
            "schedule": {"warmup": "1 epochs"},
            "validation": {"every": "2 epochs"},
        },
        mine={},
        pairs={
            "length": "1 x finetune",
            "optimizer": {"learning_rate": 0.01, "weight_decay": 5e-4},
        },
        retrain={
            "length": "3 epochs",
            "optimizer": {"learning_rate": 0.05, "freeze": recipes.BACKBONE},
        },
    )
    return config
