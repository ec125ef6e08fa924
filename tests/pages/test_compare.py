"""Comparisons of runs against plain loops; files that other programs read; refusals."""

import csv
import io
import json
import math
import shutil
import sys

import numpy as np
import pytest
from browser import WIDTHS, needs_browser, visit

from fgvc_jax import cli
from fgvc_jax.errors import UserError
from fgvc_jax.pages import compare
from fgvc_jax.pages import finished as finishing


def scores_of(folder):
    return np.load(folder / "evaluate" / "retrain" / "test" / "scores.npy").astype(np.float64)


@pytest.fixture(scope="module")
def three(finished, tmp_path_factory):
    """The run and two copies with other scores: 12 and 4 of 15 images right."""
    root, folders = tmp_path_factory.mktemp("three"), [finished]
    labels = finishing.read(finished).split("test").labels
    for seed, right in ((1, 12), (2, 4)):
        folder = shutil.copytree(finished, root / f"run_{seed}")
        answered = np.where(np.arange(15) < right, labels, (labels + 1) % 3)
        random = np.random.default_rng(seed)
        scores = (2 * np.eye(3)[answered] + random.normal(size=(15, 3)) / 3).astype(np.float32)
        np.save(folder / "evaluate" / "retrain" / "test" / "scores.npy", scores)
        folders.append(folder)
    return folders, labels


def call(monkeypatch, folders, out, *more):
    command = ["fgvc", "compare", *map(str, folders), f"--out={out}", *more]
    monkeypatch.setattr(sys, "argv", command)
    return cli.main()


def test_paired_tests_are_exact_and_corrected(three):
    folders, labels = three
    found = compare.tests(compare.read(folders))
    right = [scores_of(folder).argmax(1) == labels for folder in folders]
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = []
    for (i, j), test in zip(pairs, found, strict=True):
        b = sum(1 for x, y in zip(right[i], right[j], strict=True) if x and not y)
        c = sum(1 for x, y in zip(right[i], right[j], strict=True) if y and not x)
        assert (test["only_a"], test["only_b"]) == (b, c)
        tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1))
        expected.append(min(1, 2 * tail / 2 ** (b + c)))
        assert test["p"] == pytest.approx(expected[-1])
        assert test["difference"] == pytest.approx((b - c) / 15)
        assert test["low"] <= test["difference"] <= test["high"]
    highest = 0.0
    for place, k in enumerate(sorted(range(3), key=lambda k: expected[k])):
        highest = max(highest, min(1, (3 - place) * expected[k]))
        assert found[k]["p_holm"] == pytest.approx(highest)


def test_the_ensemble_is_the_mean_of_probabilities(three):
    folders, labels = three
    row = compare.ensemble(compare.read(folders), {})
    right = 0
    for i in range(15):
        mean = np.zeros(3)
        for folder in folders:
            e = np.exp(scores_of(folder)[i])
            mean += e / e.sum() / 3
        right += mean.argmax() == labels[i]
    assert row["top1"] == pytest.approx(right / 15)


def test_rows_have_parents_parameters_and_cost(three, tmp_path):
    folders, labels = three
    entries = compare.read(folders[:2])
    path = tmp_path / "parents.csv"
    classes = entries[0].run.classes
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [("class", "kind"), *zip(classes, ("insect", "pet", "pet"), strict=True)]
        )
    parents = compare.read_parents(path, classes)
    row = compare.row(entries[1], parents)
    answered = scores_of(folders[1]).argmax(1)
    assert row["kind accuracy"] == pytest.approx(np.mean((answered > 0) == (labels > 0)))
    done = [json.loads(p.read_text()) for p in folders[1].glob("*/DONE.json")]
    assert row["seconds"] == pytest.approx(sum(d["seconds"] for d in done))
    from fgvc_jax.inference import load

    held = load(folders[1], "retrain").weights["params"]
    assert row["parameters"] == sum(x.size for x in held.values())
    assert row["sd"] is None and row["seeds"] == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("class,kind\n", "lacks 3 of 3 classes"),
        ("class\na\n", "every line must have 2 columns"),
        ("class,kind\na,b\na,c\n", "stands twice"),
    ],
)
def test_bad_parents_are_named(tmp_path, text, said):
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        compare.read_parents(path, ["a", "b", "c"])


def test_means_and_deviations_are_over_seeds(three):
    """Two seeds in one workdir, as a run of seeds = 2 leaves them."""
    folders, _ = three
    run = folders[1].parent / "seeds"
    run.mkdir(exist_ok=True)
    for name in ("manifest.json", "config.json"):
        shutil.copy(folders[1] / name, run)
    for seed, top1 in ((0, 0.5), (1, 0.7)):
        part = shutil.copytree(folders[1], run / f"seed_{seed}", dirs_exist_ok=True)
        done = json.loads((part / "evaluate" / "DONE.json").read_text())
        for row in done["rows"]:
            row["test"] |= {"top1": top1}
        (part / "evaluate" / "DONE.json").write_text(json.dumps(done))
    first, _ = compare.read([run, folders[2]])
    row = compare.row(first, {})
    assert row["seeds"] == 2 and row["top1"] == pytest.approx(0.6)
    assert row["sd"] == pytest.approx(np.std([0.5, 0.7], ddof=1))
    assert row["low"] is None


# Files


def test_csv_holds_the_numbers(three, tmp_path, monkeypatch):
    assert call(monkeypatch, three[0], tmp_path / "t.csv") == 0
    runs, tests = (tmp_path / "t.csv").read_text().split("\n\n")
    rows = list(csv.DictReader(io.StringIO(runs)))
    assert [r["run"] for r in rows] == ["first", "run_1", "run_2", "ensemble of 3"]
    assert float(rows[1]["mean_class_accuracy"]) > 0
    assert len(list(csv.DictReader(io.StringIO(tests)))) == 3


def test_markdown_and_latex_are_tables(three, tmp_path, monkeypatch):
    assert call(monkeypatch, three[0], tmp_path / "t.md") == 0
    lines = (tmp_path / "t.md").read_text().splitlines()
    table = lines[: lines.index("")]
    assert len(table) == 6 and len({line.count("|") for line in table}) == 1
    assert call(monkeypatch, three[0], tmp_path / "t.tex") == 0
    text = (tmp_path / "t.tex").read_text()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    body = text.partition(r"\midrule")[2].partition(r"\bottomrule")[0]
    rows = [row for row in body.split(r"\\") if row.strip()]
    assert len(rows) == 4 and len({row.count(" & ") for row in rows}) == 1
    assert r"run\_1" in body and "run_1" not in body


@needs_browser
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_in_a_browser(three, tmp_path, monkeypatch, width):
    assert call(monkeypatch, three[0], tmp_path / "t.html") == 0
    seen = visit(tmp_path / "t.html", width, act=lambda tab: tab.inner_text("body"))
    assert seen.faults() == []
    assert "has the highest top-1" in seen.result and "Differences by class" in seen.result


# What is not compared


def test_other_images_are_not_tested_in_pairs(three, tmp_path, monkeypatch, capsys):
    other = shutil.copytree(three[0][1], tmp_path / "other")
    text = (other / "manifest.json").read_text()
    content = json.loads(text)
    test = content["splits"]["test"]
    first = next(iter(test))
    content["splits"]["test"] = {f"{first}.other": test.pop(first)} | test
    (other / "manifest.json").write_text(json.dumps(content))
    assert call(monkeypatch, [three[0][0], other], tmp_path / "t.md") == 0
    said = (tmp_path / "t.md").read_text()
    assert (
        "Not compared image by image: the test images of first and other are not the same." in said
    )
    assert "ensemble" not in said and "McNemar" not in said


def test_refusals(three, tmp_path, monkeypatch, capsys):
    first = three[0][0]
    assert call(monkeypatch, [first], tmp_path / "t.md") == 2
    assert "two runs or more" in capsys.readouterr().err
    assert call(monkeypatch, [first, first], tmp_path / "t.md") == 2
    assert "named twice" in capsys.readouterr().err
    assert call(monkeypatch, three[0], tmp_path / "t.xls") == 2
    assert ".md" in capsys.readouterr().err
    assert call(monkeypatch, three[0], tmp_path / "no" / "t.md") == 2
    assert "is no folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
