"""A comparison as Markdown, CSV, LaTeX and HTML."""

import csv
import io
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def cells(row: Row) -> dict[str, str]:
    """Title -> text of a row of `compare.row`."""
    spread = f" ± {100 * row['sd']:.2f}" if row["sd"] is not None else ""
    rate = row["images_per_second"]
    levels = {key: _percent(value) for key, value in row.items() if key.endswith(" accuracy")}
    interval = "–" if row["low"] is None else f"{100 * row['low']:.2f} – {100 * row['high']:.2f}"
    return {
        "run": row["run"],
        "model": row["model"] or "–",
        "method": row["method"] or "–",
        "optimizer": row["optimizer"] or "–",
        "split": row["split"],
        "top-1": f"{_percent(row['top1'])}{spread}"
        + (" (Recall@1)" if row["metric"] != "top1" else ""),
        "95 % interval": interval,
        "seeds": str(row["seeds"]),
        "mean class acc.": _percent(row["mean_class_accuracy"]),
        **levels,
        "parameters": f"{row['parameters'] / 1e6:.2f} M",
        "wall time": f"{row['seconds']:,.0f} s",
        "images/s": "–" if rate is None else f"{rate:,.0f}",
    }


def test_cells(test: Row) -> dict[str, str]:
    """Title -> text of a row of `compare.tests`."""
    return {
        "a": test["a"],
        "b": test["b"],
        "a less b, points": f"{100 * test['difference']:+.2f}",
        "95 % interval": f"{100 * test['low']:+.2f} to {100 * test['high']:+.2f}",
        "only a right": f"{test['only_a']:,}",
        "only b right": f"{test['only_b']:,}",
        "p (McNemar)": f"{test['p']:.2g}",
        "p (Holm)": f"{test['p_holm']:.2g}",
    }


def markdown(rows: Sequence[Row], tests: Sequence[Row], note: str) -> str:
    def table(items: Sequence[dict[str, str]]) -> str:
        lines = [list(items[0]), ["---"] * len(items[0]), *(list(item.values()) for item in items)]
        escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
        return "\n".join(f"| {' | '.join(line)} |" for line in escaped)

    parts = [table([cells(row) for row in rows]), *([note] if note else [])]
    if tests:
        parts.append(table([test_cells(test) for test in tests]))
    return "\n\n".join(parts) + "\n"


def comma(rows: Sequence[Row], tests: Sequence[Row], note: str) -> str:
    """The numbers themselves, unrounded; the tests below, after an empty line."""
    out = io.StringIO(newline="")
    for number, items in enumerate(filter(None, (rows, tests))):
        if number:
            out.write("\r\n")
        names = dict.fromkeys(name for item in items for name in item)
        writer = csv.DictWriter(out, list(names))
        writer.writeheader()
        writer.writerows(items)
    return out.getvalue()


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--",
}  # fmt: skip


def latex(rows: Sequence[Row], tests: Sequence[Row], note: str) -> str:
    """Tables for booktabs."""

    def told(text: str) -> str:
        return "".join(_LATEX.get(letter, letter) for letter in text)

    def table(items: Sequence[dict[str, str]]) -> str:
        lines = [" & ".join(map(told, item.values())) + r" \\" for item in items]
        head = " & ".join(map(told, items[0])) + r" \\"
        columns = "l" + "r" * (len(items[0]) - 1)
        body = "\n".join([r"\toprule", head, r"\midrule", *lines, r"\bottomrule"])
        return f"\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}"

    parts = [table([cells(row) for row in rows]), *([told(note)] if note else [])]
    if tests:
        parts.append(table([test_cells(test) for test in tests]))
    return "% \\usepackage{booktabs}\n" + "\n\n".join(parts) + "\n"
