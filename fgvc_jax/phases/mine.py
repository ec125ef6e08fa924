"""A mining phase: from embeddings to look-alike pairs and a contact sheet of the hardest ones."""

import logging

import numpy as np
from ml_collections import ConfigDict

from fgvc_jax.context.data import Data
from fgvc_jax.context.models import Models
from fgvc_jax.context.run import Run
from fgvc_jax.errors import UserError, at_least, choose
from fgvc_jax.mining import pairs as mined
from fgvc_jax.ops import knn
from fgvc_jax.phases._base import Cost, Read, Result
from fgvc_jax.phases._base import Phase as Base
from fgvc_jax.report.contact_sheet import contact_sheet

log = logging.getLogger(__name__)

USUAL_CLASSES = 7  # the authors' Q


class Phase(Base):
    @staticmethod
    def defaults() -> ConfigDict:
        section = ConfigDict()
        section.embeddings = "embed"  # the embedding phase
        section.top_classes = (
            0  # Q: how many predicted classes are searched; 0 = 7, or all if fewer
        )
        section.similarity = "cosine"  # 'cosine', 'ip' (inner product), 'l2'
        section.backend = "faiss"  # 'faiss' or 'jax', both exact
        # True: take rank 0 for the image itself, as the authors' code does.
        section.self_by_rank = False
        section.sheet_rows = 12  # pairs of each kind on the contact sheet; 0 = none
        return section

    def reads(self) -> list[Read]:
        return [Read(self.section.embeddings, "embed")]

    def check(self) -> None:
        section, where = self.section, f"config.{self.name}"
        choose(section.similarity, knn.SIMILARITIES, f"{where}.similarity")
        choose(section.backend, knn.BACKENDS, f"{where}.backend")
        at_least(section.top_classes, 0, f"{where}.top_classes")

    def prepare(self, run: Run, data: Data, models: Models) -> None:
        classes = len(data.manifest.classes)
        if self.section.top_classes > classes:
            raise UserError(
                f"config.{self.name}.top_classes = {self.section.top_classes}, but there are {classes} "
                f"classes; it may be 1 to {classes}, or 0 for {min(USUAL_CLASSES, classes)}."
            )

    def cost(self, models: Models, sizes: dict[str, int], known: dict[str, Result]) -> Cost:
        """Pairs that are not yet mined are counted as 2Q-1 an image."""
        width = 2 * self._top_classes(len(models.manifest.classes)) - 1
        pairs = {name: {"pairs": sizes[name] * width} for name in ("train", "val") if name in sizes}
        return Cost(expected=pairs)

    def run(self, run: Run, data: Data, models: Models) -> Result:
        """Writes train_pairs.npz, val_pairs.npz (queries against the training gallery) and a PNG."""
        section, manifest = self.section, data.manifest
        source, folder = run.workdir / section.embeddings, run.directory(self.name)
        train = np.load(source / "train_embedding.npy")
        gallery = source / "gallery_embedding.npy"
        gallery = np.load(gallery) if gallery.exists() else train
        result = {}
        for split in ("train", "val"):
            if split not in manifest.splits:
                continue
            run.stop.check()
            arguments = {
                "top_classes": self._top_classes(len(manifest.classes)),
                "query_is_gallery": split == "train",
            }
            labels, gallery_labels = data.labels(split), data.labels("train")
            found = mined.mine(
                train if split == "train" else np.load(source / f"{split}_embedding.npy"),
                np.load(source / f"{split}_scores.npy", mmap_mode="r"),
                labels,
                gallery,
                gallery_labels,
                similarity=section.similarity,
                backend=section.backend,
                self_by_rank=section.self_by_rank and split == "train",
                **arguments,
            )
            log.info("  %s:", split)
            for line in mined.summary(found, labels, gallery_labels, manifest.classes, **arguments):
                log.info("    %s", line)
            share = round(float(np.mean(found.label)), 4) if len(found.query) else 0.0
            result[split] = {"pairs": len(found.query), "positive_share": share}
            if run.main:
                mined.save(found, folder / f"{split}_pairs.npz")
            if run.main and split == "train" and section.sheet_rows and len(found.query):
                _sheet(data, found, folder / "hardest_pairs.png", section.sheet_rows)
        return result

    def _top_classes(self, classes: int) -> int:
        return min(self.section.top_classes or USUAL_CLASSES, classes)


def _sheet(data: Data, found: mined.Pairs, path, rows: int) -> None:
    train = data.manifest.splits["train"]
    names = [data.manifest.classes[label] for label in train.labels]

    def read(row: int) -> np.ndarray:
        return data.manifest.read(train.files[row])

    contact_sheet(found, read, read, names, names, path, rows=rows)
    log.info("  hardest pairs: %s", path)
