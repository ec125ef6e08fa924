"""The last lines of a run: accuracies, a verdict, pairs, seconds, files."""

from pathlib import Path

import numpy as np

from fgvc_jax.data.manifest import Manifest
from fgvc_jax.report import tables

Results = dict[str, dict]  # by phase, the content of its DONE.json


def lines(parts: dict[str, Results], manifest: Manifest, folder: Path) -> list[str]:
    """The last lines of a run.

    Args:
      parts: by sub-folder: '' alone, or seed_0, seed_1, ..., each with its refit where there is one.
      manifest: the data; its splits are the table's columns.
      folder: the workdir, which the last line names.

    Returns:
      One string a line; where there are several parts, each under a heading.
    """
    told: list[str] = []
    refitted = any(part.endswith("refit") for part in parts)
    for part, results in parts.items():
        heading = [_heading(part, refitted)] if len(parts) > 1 else []
        told += ["", *heading, *_one(results, manifest)]
    for refit in (False, True):
        seeds = {p: r for p, r in parts.items() if p.endswith("refit") == refit}
        if len(seeds) > 1:
            told += ["", *over_seeds(list(seeds.values()), " after the refit" if refit else "")]
    total = sum(result["seconds"] for results in parts.values() for result in results.values())
    return [*told, f"  {total:.0f} seconds in all", f"  files: {folder}"]


def _heading(part: str, refitted: bool) -> str:
    """The title of one of several runs: its seed, and whether it trained on validation images too."""
    refit = part.endswith("refit")
    kind = "refit on train + val" if refit else "validation run" if refitted else ""
    seed = part.removesuffix("refit").rstrip("/")
    return ", ".join(filter(None, (seed, kind))) + ":"


def _one(results: Results, manifest: Manifest) -> list[str]:
    told = []
    for result in results.values():
        if "rows" in result:
            told += tables.table(result["rows"], list(manifest.splits))
        if "retrieval" in result:
            told += tables.retrieval_table(result["retrieval"])
        if "verification" in result:
            names = ("auroc", "accuracy")
            told += tables.plain_table(result["verification"], ["val", "test"], names)
        if "comparison" in result:
            told += tables.verdict(result["comparison"])
    for result in results.values():
        for split in ("train", "val"):
            if isinstance(result.get(split), dict) and "pairs" in result[split]:
                found = result[split]
                share = found["positive_share"]
                told.append(f"  {found['pairs']:,} {split} pairs, {share:.1%} of the same class")
    took = ", ".join(f"{name} {result['seconds']:.0f}" for name, result in results.items())
    return [*told, f"  seconds: {took}"]


def over_seeds(runs: list[Results], note: str = "") -> list[str]:
    """Mean and standard deviation of top-1 or Recall@1 over seeds; in how many the pipeline is better."""
    evaluations = [r for results in runs for r in results.values()]
    told = []
    for kind, metric, title in (
        ("rows", "top1", "top-1"),
        ("retrieval", "recall@1", "Recall@1"),
    ):
        every = [row for e in evaluations for row in e.get(kind, ())]
        if every:
            told.append(
                f"mean and standard deviation over {len(runs)} seeds{note}, {title} in percent:"
            )
        for name in dict.fromkeys(row["name"] for row in every):
            cells = []
            for split in ("val", "test"):
                values = [
                    100 * row[split][metric]
                    for row in every
                    if row["name"] == name and split in row
                ]
                if len(values) > 1:
                    cells.append(f"{split} {np.mean(values):6.2f} +- {np.std(values, ddof=1):.2f}")
            told.append(f"  {name:<32}{'    '.join(cells)}")
    found = [e["comparison"] for e in evaluations if "comparison" in e]
    if found:
        better = sum(map(tables.is_better, found))
        worse = sum(map(tables.is_worse, found))
        told.append(
            f"  The pipeline ({found[0]['pipeline']}) is better than the {found[0]['control']} in "
            f"{better} of {len(found)} seeds, worse in {worse} (McNemar, p < 0.05 each)."
        )
    return told
