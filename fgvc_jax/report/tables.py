"""The evaluation as text: the table of accuracies, and whether the pipeline beats its control."""

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]  # 'name', and by split ('val', 'test', 'last_test', ...) its metrics
Comparison = Mapping[str, Any]  # see `verdict`

BUDGET = 0.01  # images or passes that differ by more than this share are not an equal budget


def table(rows: Sequence[Row], splits: Sequence[str]) -> list[str]:
    """The rows as lines of text: top-1 in percent with its 95 % interval, and further metrics.

    Args:
      rows: metrics are shares between 0 and 1, as `fgvc_jax.metrics.classification` gives them; one that
        is absent or None is printed as '-'.
      splits: those of the data; without 'test' its columns are left out.
    """
    head = f"  {'':<32}{'val top-1':>10}"
    if "test" in splits:
        head += f"{'test top-1':>12}{'95 % interval':>17}{'top-5':>8}"
        head += f"{'by class':>10}{'F1':>7}{'last epoch':>12}"
    lines = [head]
    for row in rows:
        line = f"  {row['name']:<32}{_percent(row.get('val'), 'top1'):>10}"
        test = row.get("test")
        if test:
            line += f"{_percent(test, 'top1'):>12}"
        if test and "macro_f1" in test:
            interval = f"{_percent(test, 'top1_low')} - {_percent(test, 'top1_high')}"
            line += f"{interval:>17}{_percent(test, 'top5'):>8}"
            line += f"{_percent(test, 'mean_class_accuracy'):>10}{_percent(test, 'macro_f1'):>7}"
            line += f"{_percent(row.get('last_test'), 'top1'):>12}"
        lines.append(line)
    return lines


def is_better(comparison: Comparison, alpha: float = 0.05) -> bool:
    """Whether the pipeline is better than its control by an exact McNemar test."""
    return comparison["p"] < alpha and comparison["b"] > comparison["c"]


def is_worse(comparison: Comparison, alpha: float = 0.05) -> bool:
    """Whether the pipeline is worse than its control by an exact McNemar test."""
    return comparison["p"] < alpha and comparison["b"] < comparison["c"]


def verdict(comparison: Comparison) -> list[str]:
    """Lines of text that say whether the pipeline is better than its control, and at which cost of each.

    Args:
      comparison: 'pipeline' and 'control', names of phases; 'split' and 'count', its images; 'b' and 'c',
        how many of them only the pipeline, only the control has right; 'p' of the McNemar test. Optional:
        'images' and 'passes', each {'pipeline': int, 'control': int}: images trained on, and how many
        times an image went through a forward and a backward pass (under SAM twice for each image); and
        'remarks', sentences that are printed as they are.
    """
    b, c, p, count = (comparison[key] for key in ("b", "c", "p", "count"))
    word = "better than" if is_better(comparison) else "not better than"
    word = "worse than" if is_worse(comparison) else word
    lines = [
        f"The pipeline ({comparison['pipeline']}) is {word} the {comparison['control']} (p={p:.2g}): "
        f"of {count:,} {comparison['split']} images {b} are right only with it, {c} only without."
    ]
    lines += _budget(comparison.get("images"), comparison.get("passes"))
    return [f"  {line}" for line in [*lines, *comparison.get("remarks", ())]]


def _budget(images: Mapping[str, int] | None, passes: Mapping[str, int] | None) -> list[str]:
    lines = []
    counted = (("Images trained on", images), ("Forward and backward passes", passes))
    for name, pair in counted:
        if pair:
            lines.append(
                f"{name}: {pair['pipeline']:,} by the pipeline, {pair['control']:,} by the control."
            )
    if images and _differ(images):
        lines.append(f"This comparison is not of equal budget: {_times(images, 'images')}.")
    elif passes and _differ(passes):
        equal = "equal in images but not in compute" if images else "not of equal compute"
        lines.append(
            f"This comparison is {equal}: {_times(passes, 'forward and backward passes')}."
        )
    return lines


def _differ(pair: Mapping[str, int]) -> bool:
    return abs(pair["pipeline"] - pair["control"]) > BUDGET * max(pair.values())


def _times(pair: Mapping[str, int], what: str) -> str:
    if not pair["control"]:
        return f"the control took no {what}"
    ratio = pair["pipeline"] / pair["control"]
    return f"the pipeline took {ratio:.2f} times as many {what} as the control"


def plain_table(rows: Sequence[Row], splits: Sequence[str], names: Sequence[str]) -> list[str]:
    """The rows with some of their metrics in percent, a group of columns for each split that they have."""
    shown = [split for split in splits if any(split in row for row in rows)]
    width = 2 + max(len(f"{split} {name}") for split in shown for name in names) if shown else 0
    head = "".join(f"{f'{split} {name}':>{width}}" for split in shown for name in names)
    lines = [f"  {'':<32}{head}"]
    for row in rows:
        cells = [_percent(row.get(split), name) for split in shown for name in names]
        lines.append(f"  {row['name']:<32}" + "".join(f"{cell:>{width}}" for cell in cells))
    return lines


def retrieval_table(rows: Sequence[Row]) -> list[str]:
    """A line for each row and split: images of the split among themselves, then with train as gallery.

    Args:
      rows: as `fgvc_jax.evaluators.retrieve.final` gives them. What no row has gets no column; cosines are
        means over pairs of one class and of different classes, all else is in percent.
    """
    splits = ("val", "test", "last_val", "last_test")
    lines = [(row, split) for row in rows for split in splits if row.get(split)]
    found = {name: None for row, split in lines for name in row[split]}
    knn = {name: (f"{name[3:]}-NN", _percent) for name in found if name.startswith("knn")}
    columns = {name: shown for name, shown in (_RETRIEVAL | knn).items() if name in found}
    told = [f"  {'':<32}" + "".join(f"{title:>10}" for title, _ in columns.values())]
    for row, split in lines:
        name = f"{row['name']}, {split.removeprefix('last_')}"
        cells = [shown(row[split], key) for key, (_, shown) in columns.items()]
        name += ", last epoch" if split.startswith("last_") else ""
        told.append(f"  {name:<32}" + "".join(f"{cell:>10}" for cell in cells))
    return told


def _percent(metrics: Mapping[str, Any] | None, key: str) -> str:
    value = (metrics or {}).get(key)
    return "-" if value is None else f"{100 * value:.2f}"


def _number(metrics: Mapping[str, Any] | None, key: str) -> str:
    value = (metrics or {}).get(key)
    return "-" if value is None else f"{value:.3f}"


# Of a row of retrieval: metric -> (title, how it is printed).
_RETRIEVAL = {
    "recall@1": ("recall@1", _percent),
    "recall@8": ("recall@8", _percent),
    "r_precision": ("R-prec.", _percent),
    "map@r": ("MAP@R", _percent),
    "nmi": ("NMI", _percent),
    "cosine_same": ("cos same", _number),
    "cosine_other": ("cos other", _number),
    "centroid": ("centroid", _percent),
    "probe": ("probe", _percent),
}
