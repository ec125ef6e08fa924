"""The pipeline made so small that a whole run takes seconds."""

import gc

from fgvc_jax import files, recipes
from fgvc_jax import mesh as meshes
from fgvc_jax.config import base
from fgvc_jax.context.data import Data
from fgvc_jax.context.models import Models, view_of
from fgvc_jax.context.run import Run
from fgvc_jax.data import doctor
from fgvc_jax.data.load import load
from fgvc_jax.images.view import View
from fgvc_jax.phases import complete
from fgvc_jax.train.stop import Stop

# As conftest.py does for the tests themselves; here for the processes that they start.
gc.freeze()
gc.set_threshold(100_000, 50, 1000)

VIEW = View(32, 32, (0.5,) * 3, (0.5,) * 3, "bilinear", (0.5, 1.0), (1.0, 1.0), 0.5)


def pipeline(backbone="resnet18", **arguments):
    """FineNet on the digits: 12 steps of fine-tuning, and so on. A ResNet-18 is narrow and shallow."""
    config = base()
    config.data.source = "digits"
    config.data.val_fraction = 0.05
    config.data.test_fraction = 0.75
    config.image.size = 16
    config.image.resize = 16
    config.image.crop_scale = (0.6, 1.0)
    config.model.backbone = backbone
    narrow = {"width": 4, "depths": (1, 1, 1, 1)} if backbone == "resnet18" else {}
    config.model.arguments = narrow | arguments
    config.log.every = "4 steps"
    config.log.tensorboard = False
    config.log.report = False  # tests/pages makes reports
    recipes.finer(
        config,
        finetune={
            "length": "12 steps",
            "batch": 16,
            "validation": {"every": "4 steps"},
            "optimizer": {"learning_rate": 0.05},
        },
        mine={"top_classes": 3, "sheet_rows": 2},
        pairs={
            "length": "8 steps",
            "optimizer": {"learning_rate": 0.01},
            "validation": {"every": "4 steps"},
        },
        retrain={
            "length": "4 steps",
            "optimizer": {"learning_rate": 0.05, "freeze": recipes.BACKBONE},
        },
    )
    config.control.validation.every = "100 %"
    config.evaluate.batch = 64
    return complete(config)


def parts(config, workdir):
    """(run, data, models): what a run gives to its phases."""
    manifest, view = load(config.data), view_of(config)
    mesh = meshes.make(config.devices.fsdp)
    look = doctor.look(
        manifest,
        files.cache_folder(),
        resize=view.resize,
        squash=view.squash,
        canvas=config.data.canvas,
        feed=config.data.feed,
    )
    data = Data(manifest, config.data, mesh, look)
    models = Models(config, workdir, manifest, mesh, view, data.canvas_later(view))
    return Run(config, workdir, Stop()), data, models
