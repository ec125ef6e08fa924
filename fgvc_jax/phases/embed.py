"""An embedding phase: whole splits through a trained model, saved as plain arrays."""

import logging

import numpy as np
from ml_collections import ConfigDict

from fgvc_jax import methods
from fgvc_jax.context.data import Data
from fgvc_jax.context.models import Models
from fgvc_jax.context.run import Run
from fgvc_jax.errors import UserError, at_least, choose
from fgvc_jax.phases import _programs as programs
from fgvc_jax.phases._base import Cost, Pass, Read, Result
from fgvc_jax.phases._base import Phase as Base
from fgvc_jax.phases.train import phase_seed
from fgvc_jax.train import tree
from fgvc_jax.train.predict import predict_all

log = logging.getLogger(__name__)


class Phase(Base):
    @staticmethod
    def defaults() -> ConfigDict:
        section = ConfigDict()
        section.model = "finetune"  # the training phase whose model embeds
        section.checkpoint = "best"  # of that phase, or 'last'
        section.batch = 64
        section.augment = False  # random augmentation, as in training; train is then drawn twice
        return section

    def reads(self) -> list[Read]:
        return [Read(self.section.model, "train")]

    def check(self) -> None:
        section, where = self.section, f"config.{self.name}"
        choose(section.checkpoint, ("best", "last"), f"{where}.checkpoint")
        at_least(section.batch, 1, f"{where}.batch")
        method = self.config[section.model].method
        if methods.get(method).evaluator != "classify":
            raise UserError(
                f"phase {self.name!r} reads {section.model!r}, whose method {method!r} gives no class scores."
            )

    def cost(self, models: Models, sizes: dict[str, int], known: dict[str, Result]) -> Cost:
        images = sizes["train"] * (2 if self.section.augment else 1) + sizes.get("val", 0)
        return Cost(forward=images, passes=images)

    def passes(self, models: Models) -> list[Pass]:
        section = self.section
        model = programs.forward(
            models.specify(self.config[section.model]),
            models,
            key=f"config.{self.name}.batch",
            batch=section.batch,
            splits=("train", "val"),
            random=section.augment,
        )
        return [model]

    def run(self, run: Run, data: Data, models: Models) -> Result:
        """Writes <split>_embedding.npy [N, D] and <split>_scores.npy [N, C] (logits) for train and val.

        With `augment` the images are augmented as in training, and train is drawn twice: the second draw,
        'gallery', is what queries are compared with.
        """
        section, folder = self.section, run.directory(self.name)
        _, module, weights = models.trained(section.model, section.checkpoint)
        predict = models.predictor(tree.split(module)[0], section.augment)
        passes = [("train", "train")] + ([("gallery", "train")] if section.augment else [])
        if "val" in data.sizes:
            passes.append(("val", "val"))
        images = 0
        for file, split in passes:
            outputs = predict_all(
                predict,
                weights,
                data.whole(split, section.batch),
                seed=phase_seed(self.config.seed, f"{self.name}/{file}"),
                check=run.stop.check,
            )
            images += data.sizes[split]
            if run.main:
                np.save(folder / f"{file}_embedding.npy", outputs["embedding"].astype(np.float32))
                np.save(folder / f"{file}_scores.npy", outputs["scores"].astype(np.float32))
        width = int(outputs["embedding"].shape[1])
        log.info("  %s images embedded, %s numbers each", f"{images:,}", width)
        return {"images_forward": images, "width": width}
