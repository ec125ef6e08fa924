"""What is printed at the end of a run: the table, the verdict with both budgets, the summary's headings."""

import pytest

from fgvc_jax.data.manifest import Manifest, Split
from fgvc_jax.report import summary, tables

COMPARISON = {
    "pipeline": "retrain",
    "control": "control",
    "split": "test",
    "count": 1539,
    "b": 30,
    "c": 10,
    "p": 0.0022,
}
METRICS = {
    "top1": 0.5,
    "top1_low": 0.45,
    "top1_high": 0.55,
    "top5": 0.875,
    "mean_class_accuracy": 0.25,
    "macro_f1": 0.125,
    "nll": 1.5,
}


def test_what_was_not_measured_is_a_dash():
    rows = [
        {"name": "full", "val": METRICS, "test": METRICS, "last_test": METRICS},
        {"name": "re-ranked", "val": METRICS, "test": METRICS | {"top5": None, "nll": None}},
        {"name": "majority", "test": {"top1": 0.1}},
        {"name": "broken off"},
    ]
    head, *lines = tables.table(rows, ["train", "val", "test"])
    assert lines[0].split() == [
        "full",
        "50.00",
        "50.00",
        "45.00",
        "-",
        "55.00",
        "87.50",
        "25.00",
        "12.50",
        "50.00",
    ]
    assert lines[1].split() == [
        "re-ranked",
        "50.00",
        "50.00",
        "45.00",
        "-",
        "55.00",
        "-",
        "25.00",
        "12.50",
        "-",
    ]
    assert lines[2].split() == ["majority", "-", "10.00"]
    assert lines[3].split() == ["broken", "off", "-"]
    ends = [head.index(word) + len(word) for word in ("val top-1", "test top-1", "top-5", "F1")]
    for line in lines[:2]:  # numbers and dashes stand under the ends of their titles
        assert all(line[end - 1] != " " and line[end : end + 1] in (" ", "") for end in ends)
    assert tables.table(rows[:1], ["train", "val"])[0].split() == ["val", "top-1"]


@pytest.mark.parametrize(
    ("b", "c", "p", "word"),
    [(30, 10, 0.002, "better"), (10, 30, 0.002, "worse"), (30, 10, 0.06, "not better")],
)
def test_the_word_of_the_verdict(b, c, p, word):
    (line,) = tables.verdict(COMPARISON | {"b": b, "c": c, "p": p})
    assert line == (
        f"  The pipeline (retrain) is {word} than the control (p={p:.2g}): "
        f"of 1,539 test images {b} are right only with it, {c} only without."
    )


def pair(pipeline, control):
    return {"pipeline": pipeline, "control": control}


def test_the_verdict_tells_images_and_passes_of_both():
    text = tables.verdict(
        COMPARISON
        | {"images": pair(12000, 12000), "passes": pair(21000, 12000), "remarks": ["Sic."]}
    )
    assert text[1:] == [
        "  Images trained on: 12,000 by the pipeline, 12,000 by the control.",
        "  Forward and backward passes: 21,000 by the pipeline, 12,000 by the control.",
        "  This comparison is equal in images but not in compute: the pipeline took 1.75 times as many "
        "forward and backward passes as the control.",
        "  Sic.",
    ]


@pytest.mark.parametrize(
    ("images", "passes", "shown"),
    [
        (pair(10000, 10000), pair(10000, 10000), None),
        (pair(10100, 10000), pair(10100, 10000), None),  # 1 % of the larger, not more
        (
            pair(10102, 10000),
            None,
            "not of equal budget: the pipeline took 1.01 times as many images",
        ),
        (pair(5000, 10000), pair(9, 9), "not of equal budget: the pipeline took 0.50 times"),
        (pair(5000, 0), None, "not of equal budget: the control took no images"),
        (None, pair(30, 10), "not of equal compute: the pipeline took 3.00 times as many forward"),
        (pair(0, 0), pair(0, 0), None),
    ],
)
def test_budgets_that_differ_are_named(images, passes, shown):
    comparison = COMPARISON | {"images": images, "passes": passes}
    text = "\n".join(tables.verdict({k: v for k, v in comparison.items() if v is not None}))
    assert ("This comparison is" in text) == (shown is not None)
    assert (shown or "") in text


def test_every_run_has_a_heading():
    manifest = Manifest("x", (), {name: Split((), ()) for name in ("train", "val", "test")}, None)
    results = {"evaluate": {"rows": [{"name": "a", "test": METRICS}], "seconds": 1.0}}

    def headings(*parts):
        lines = summary.lines(dict.fromkeys(parts, results), manifest, "out")
        return [line for line in lines if line.endswith(":") and not line.startswith(("mean", " "))]

    assert headings("") == []
    assert headings("", "refit") == ["validation run:", "refit on train + val:"]
    assert headings("seed_0", "seed_1") == ["seed_0:", "seed_1:"]
    assert headings("seed_0", "seed_0/refit", "seed_1", "seed_1/refit") == [
        "seed_0, validation run:",
        "seed_0, refit on train + val:",
        "seed_1, validation run:",
        "seed_1, refit on train + val:",
    ]


def test_a_table_of_retrieval_has_a_line_for_each_split_and_a_column_for_what_was_measured():
    among = {"recall@1": 0.5, "recall@8": 1.0, "r_precision": 0.25, "map@r": 0.125, "nmi": 0.75}
    among |= {"cosine_same": 0.9204, "cosine_other": None, "count": 5, "excluded": 0}
    read_off = {"knn1": 0.625, "knn5": 0.875, "centroid": 0.5, "probe": 1.0}
    rows = [{"name": "finetune", "val": among, "test": among | read_off, "last_test": among}]
    head, *lines = tables.retrieval_table(rows)
    assert head.split() == (
        [
            "recall@1",
            "recall@8",
            "R-prec.",
            "MAP@R",
            "NMI",
            "cos",
            "same",
            "cos",
            "other",
            "centroid",
            "probe",
            "1-NN",
            "5-NN",
        ]
    )
    shared = ["50.00", "100.00", "25.00", "12.50", "75.00", "0.920", "-"]
    assert lines[0].split() == ["finetune,", "val", *shared, "-", "-", "-", "-"]
    assert lines[1].split() == [
        "finetune,",
        "test",
        *shared,
        "50.00",
        "100.00",
        "62.50",
        "87.50",
    ]
    assert lines[2].split()[:4] == ["finetune,", "test,", "last", "epoch"]
    assert len({len(line) for line in (head, *lines)}) == 1  # columns stand under their titles
    open_set = tables.retrieval_table([{"name": "finetune", "test": among}])
    assert "NN" not in open_set[0] and "probe" not in open_set[0] and len(open_set) == 2


def test_seeds_of_retrieval_are_averaged_by_recall():
    def one(recall):
        row = {"name": "finetune", "val": {"recall@1": recall}, "test": {"recall@1": recall / 2}}
        return {"evaluate": {"retrieval": [row], "seconds": 1.0}}

    head, line = summary.over_seeds([one(0.5), one(0.7)])
    assert head == "mean and standard deviation over 2 seeds, Recall@1 in percent:"
    assert line.split() == [
        "finetune",
        "val",
        "60.00",
        "+-",
        "14.14",
        "test",
        "30.00",
        "+-",
        "7.07",
    ]
