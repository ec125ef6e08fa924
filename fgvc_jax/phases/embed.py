"""An embedding phase: whole splits through a trained model, saved as plain arrays."""

import numpy as np

from fgvc_jax.phases.context import Context
from fgvc_jax.phases.train import phase_seed
from fgvc_jax.train.predict import predict_all


def run(context: Context, name: str) -> dict:
    """Writes <split>_embedding.npy [N, D] and <split>_scores.npy [N, C] (logits) for train and val.

    With view 'train' the images are augmented as in training, and train is drawn twice: the second draw,
    'gallery', is what queries are compared with.
    """
    section = context.config[name]
    _, module, weights = context.trained_model(section.model, section.model_from)
    folder = context.directory(name)
    random = section.view == "train"
    passes = [("train", "train")] + ([("gallery", "train")] if random else [])
    if "val" in context.manifest.splits:
        passes.append(("val", "val"))
    images = 0
    for file, split in passes:
        count = len(context.manifest.splits[split].labels)
        outputs = predict_all(
            context.predictor(module, random),
            weights,
            context.feed([split]),
            np.arange(count)[:, None],
            section.batch,
            seed=phase_seed(context.config.seed, f"{name}/{file}"),
            check=context.stop.check,
        )
        images += count
        if context.main:
            np.save(folder / f"{file}_embedding.npy", outputs["embedding"].astype(np.float32))
            np.save(folder / f"{file}_scores.npy", outputs["scores"].astype(np.float32))
    context.say(f"  {images:,} images embedded, {outputs['embedding'].shape[1]} numbers each")
    return {"images_forward": images, "width": int(outputs["embedding"].shape[1])}
