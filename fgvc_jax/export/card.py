"""The model card of a model folder: what the model is, its numbers, how to use it."""

import json
from pathlib import Path
from typing import Any

from fgvc_jax.data.manifest import Manifest
from fgvc_jax.metrics.calibration import threshold
from fgvc_jax.model import Specification
from fgvc_jax.model_folder import ModelFolder
from fgvc_jax.trained import gives_classes

PRECISIONS = (0.9, 0.95, 0.99)


def text(content: ModelFolder, results: dict[str, dict], manifest: Manifest) -> str:
    """The card as Markdown with a YAML head as the Hugging Face hub wants it.

    Args:
      results: DONE.json of the run's phases, for the rows of its evaluation.
      manifest: the data that it was trained on.
    """
    specification, about = content.specification, content.about
    classes, view = specification.classes, specification.view
    shown = ", ".join(classes[:20]) + (f" and {len(classes) - 20:,} more" if classes[20:] else "")
    parameters = sum(x.size for x in content.arrays.values())
    counts = ", ".join(f"{len(s.labels):,} {name}" for name, s in manifest.splits.items())
    size = view.squash or f"shorter side {view.resize}"
    return f"""---
library_name: fgvc_jax
pipeline_tag: image-classification
tags: [image-classification, fine-grained, {json.dumps(specification.backbone)}]
---

# {specification.backbone}, method {Path(specification.method).stem}, on {manifest.name}

Tells {len(classes):,} classes apart: {shown}.

Trained by fgvc_jax on {manifest.name} ({counts} images), phase `{about["phase"]}`,
{about["checkpoint"]} checkpoint, seed {about["seed"]}. {parameters:,} numbers in `model.safetensors`, batch
statistics among them.

## How good it is

{_results(results, about["phase"], about["checkpoint"])}
{_decisions(content.calibration)}
## How to use it

    import fgvc_jax
    classifier = fgvc_jax.load("this/folder")
    {_use(specification)}

Images: RGB, {size}, central crop {view.size},
{view.interpolation}, then (x / 255 - mean) / std; the numbers are in `preprocessing.json`.

## Limits

{_limits(specification)}Nothing is known of its errors on images
that are taken otherwise than those of {manifest.name}. The licences of these images and of pretrained
weights, if it started from any, bind its users; this card does not know them.

Made with {_versions(about["versions"])}.
"""


def _use(specification: Specification) -> str:
    if not gives_classes(specification):
        return 'classifier.embed(["photo.jpg"])  # [1, D]; near images are alike'
    return (
        f'classifier.predict(["photo.jpg"])  # probabilities [1, {len(specification.classes)}], columns as '
        "in classes.json\n\nor `fgvc predict this/folder PHOTOS --out=preds.csv`."
    )


def _limits(specification: Specification) -> str:
    if not gives_classes(specification):
        return ""
    return (
        "It answers with one of its classes whatever it is shown. `fgvc predict` marks images whose "
        "embedding lies far\nfrom all training images ('unlike'), which finds some of them only. "
    )


def _results(results: dict[str, dict], phase: str, checkpoint: str) -> str:
    rows = [row for r in results.values() for row in r.get("rows", ()) if row["name"] == phase]
    if not rows:
        return "No classification was evaluated in its run."
    lines = [
        "| split | images | top-1 | 95 % interval | mean class accuracy |",
        "|---|---|---|---|---|",
    ]
    for split in ("val", "test"):
        if found := rows[-1].get(split):
            cells = [f"{100 * found[k]:.1f} %" for k in ("top1", "top1_low", "top1_high")]
            lines.append(
                f"| {split} | {found['count']:,} | {cells[0]} | {cells[1]} to {cells[2]} | "
                f"{100 * found['mean_class_accuracy']:.1f} % |"
            )
    chosen = "Validation chose the checkpoint; the" if checkpoint == "best" else "The"
    return "\n".join(lines) + f"\n\n{chosen} test images chose nothing."


def _decisions(calibration: dict[str, Any]) -> str:
    if "confidence" not in calibration:
        return ""
    lines = [
        "",
        f"Answers to accept for a wanted precision, by {calibration['images']:,} validation images "
        f"(temperature {calibration['temperature']:.3g}):",
        "",
        "| wanted | accept from probability | accepts | right among these | 95 % interval from |",
        "|---|---|---|---|---|",
    ]
    for wanted in PRECISIONS:
        t = threshold(calibration["confidence"], calibration["right"], wanted)
        cells = ["-"] * 4
        if t.value is not None:
            cells = [f"{t.value:.4f}", *(f"{100 * x:.1f} %" for x in t[1:])]
        lines.append(f"| {100 * wanted:g} % | {' | '.join(cells)} |")
    if calibration.get("before_refit"):
        lines += ["", "Measured before the model was trained again on train + val."]
    return "\n".join(lines) + "\n"


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
