"""A phase in a file of its own: the mean embedding of every class."""

import numpy as np
from ml_collections import ConfigDict

from fgvc_jax.errors import at_least
from fgvc_jax.phases import Phase as Base
from fgvc_jax.phases._base import Cost, Read


class Phase(Base):
    @staticmethod
    def defaults():
        section = ConfigDict()
        section.embeddings = "embed"
        section.power = 1
        return section

    def reads(self):
        return [Read(self.section.embeddings, "embed")]

    def check(self):
        at_least(self.section.power, 1, f"config.{self.name}.power")

    def cost(self, models, sizes, known):
        return Cost(forward=sizes["train"])

    def run(self, run, data, models):
        embedding = np.load(run.workdir / self.section.embeddings / "train_embedding.npy")
        labels = data.labels("train")
        means = [embedding[labels == label].mean(0) for label in np.unique(labels)]
        if run.main:
            np.save(run.directory(self.name) / "means.npy", np.stack(means) ** self.section.power)
        return {"classes": len(means)}
