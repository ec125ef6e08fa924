"""The pipeline made so small that a whole run takes seconds."""

from fgvc_jax import config as c
from fgvc_jax import recipes


def pipeline(backbone="resnet18", arguments="width=4, depths=(1, 1, 1, 1)"):
    """FineNet on the digits: 12 steps of fine-tuning, and so on."""
    config = c.base()
    config.data.source = "digits"
    config.data.val_fraction = 0.05
    config.data.test_fraction = 0.75
    config.image.size = 16
    config.image.resize = 16
    config.image.crop_scale = (0.6, 1.0)
    config.model.backbone = backbone
    config.model.arguments = arguments
    config.log.every = "4 steps"
    config.log.tensorboard = False
    recipes.finer(
        config,
        finetune={
            "length": "12 steps",
            "batch": 16,
            "eval_every": "4 steps",
            "learning_rate": 0.05,
        },
        mine={"top_classes": 3, "sheet_rows": 2},
        pairs={"length": "8 steps", "learning_rate": 0.01, "eval_every": "4 steps"},
        retrain={"length": "4 steps", "freeze": recipes.BACKBONE, "learning_rate": 0.05},
    )
    config.control.eval_every = "100 %"
    config.evaluate.batch = 64
    return config
