"""A mining phase: from embeddings to look-alike pairs and a contact sheet of the hardest ones."""

import numpy as np

from fgvc_jax.mining import pairs as mined
from fgvc_jax.phases.context import Context
from fgvc_jax.report.contact_sheet import contact_sheet


def run(context: Context, name: str) -> dict:
    """Writes train_pairs.npz, val_pairs.npz (validation queries against the training gallery) and a PNG."""
    section, manifest = context.config[name], context.manifest
    source, folder = context.workdir / section.embeddings, context.directory(name)
    train = np.load(source / "train_embedding.npy")
    gallery = source / "gallery_embedding.npy"
    gallery = np.load(gallery) if gallery.exists() else train
    result = {}
    for split in ("train", "val"):
        if split not in manifest.splits:
            continue
        context.stop.check()
        queries = np.load(source / f"{split}_embedding.npy")
        arguments = {"top_classes": section.top_classes, "query_is_gallery": split == "train"}
        labels, gallery_labels = manifest.splits[split].labels, manifest.splits["train"].labels
        found = mined.mine(
            queries,
            np.load(source / f"{split}_scores.npy"),
            labels,
            gallery,
            gallery_labels,
            similarity=section.similarity,
            backend=section.backend,
            self_by_rank=section.self_by_rank and split == "train",
            **arguments,
        )
        context.say(f"  {split}:")
        for line in mined.summary(found, labels, gallery_labels, manifest.classes, **arguments):
            context.say(f"    {line}")
        result[split] = {
            "pairs": len(found.query),
            "positive_share": round(float(np.mean(found.label)), 4) if len(found.query) else 0.0,
        }
        if context.main:
            mined.save(found, folder / f"{split}_pairs.npz")
        if context.main and split == "train" and section.sheet_rows and len(found.query):
            _sheet(context, found, folder / "hardest_pairs.png", section.sheet_rows)
    return result


def _sheet(context: Context, found: mined.Pairs, path, rows: int) -> None:
    train = context.manifest.splits["train"]
    names = [context.manifest.classes[label] for label in train.labels]

    def read(row: int) -> np.ndarray:
        return context.manifest.read(train.files[row])

    contact_sheet(found, read, read, names, names, path, rows=rows)
    context.say(f"  hardest pairs: {path}")
