"""Several seeds, the refit, and phases taken over from an old workdir."""

import json
import logging

import numpy as np
import pytest
import tiny

from fgvc_jax.pages import report
from fgvc_jax.run import run
from fgvc_jax.train.checkpoint import Checkpoints

VIT = {"depth": 1, "width": 8, "heads": 1}


def config(**finetune):
    made = tiny.pipeline("vit_tiny_patch16_224", **VIT)
    made.finetune.update(finetune)
    return made


@pytest.fixture(scope="module")
def two_seeds(tmp_path_factory):
    """(workdir, results, the last lines of the run) of two seeds with the refit."""
    folder, said = tmp_path_factory.mktemp("seeds"), []
    made = config()
    made.seeds, made.protocol = 2, "refit"
    made.phases = ("finetune", "embed", "mine", "pairs", "retrain", "control", "evaluate")
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("fgvc_jax.run")
    logger.addHandler(handler)
    results = run(made, folder)
    logger.removeHandler(handler)
    return folder, results, "\n".join(said)


def test_seeds_share_the_split_and_nothing_else(two_seeds):
    folder, results, _ = two_seeds
    assert set(results) == {"seed_0", "seed_0/refit", "seed_1", "seed_1/refit"}
    assert (folder / "manifest.json").exists()
    counts = [r["evaluate"]["rows"][0] for r in results.values()]
    assert counts[0]["test"] == counts[2]["test"]  # the majority class of one and the same split
    embeddings = [np.load(folder / f"seed_{k}/embed/train_embedding.npy") for k in (0, 1)]
    assert embeddings[0].shape == embeddings[1].shape
    assert np.abs(embeddings[0] - embeddings[1]).max() > 1e-3


def test_mean_and_deviation_are_those_of_the_rows(two_seeds):
    _, results, said = two_seeds

    def control(seed):
        rows = results[f"seed_{seed}"]["evaluate"]["rows"]
        return next(row for row in rows if row["name"] == "control")

    top1 = [100 * control(seed)["test"]["top1"] for seed in (0, 1)]
    line = f"test {np.mean(top1):6.2f} +- {np.std(top1, ddof=1):.2f}"
    assert line in said
    assert "of 2 seeds" in said


def test_refit_trains_on_train_and_val_as_long_as_validation_picked(two_seeds):
    folder, results, _ = two_seeds
    first, again = results["seed_0"], results["seed_0/refit"]
    splits = json.loads((folder / "manifest.json").read_text())["splits"]
    train, val = len(splits["train"]), len(splits["val"])
    for phase in ("finetune", "pairs", "retrain"):
        best = first[phase]["validation"]["best"]["step"]
        assert again[phase]["steps"] == max(1, round(best * (train + val) / train))
    # The control follows the refitted phases: as many images as they, up to the last batch.
    images = {phase: again[phase]["images"] for phase in ("pairs", "retrain", "control")}
    assert images["pairs"] + images["retrain"] <= images["control"]
    assert images["control"] < images["pairs"] + images["retrain"] + 16
    assert (images["control"] - 15) // 16 != first["control"]["validation"]["best"]["step"]
    passes = again["evaluate"]["comparison"]["passes"]
    embedded = again["embed"]["images_forward"] / 3  # forward alone, as the frozen retraining
    expected = again["finetune"]["images"] + images["pairs"] + images["retrain"] / 3 + embedded
    assert passes["pipeline"] == round(expected)
    assert passes["control"] == again["finetune"]["images"] + images["control"]
    assert not again["evaluate"]["comparison"]["remarks"]
    comparison = again["evaluate"]["comparison"]["images"]
    assert comparison["control"] - comparison["pipeline"] == images["control"] - (
        images["pairs"] + images["retrain"]
    )
    assert np.load(folder / "seed_0/refit/embed/train_embedding.npy").shape[0] == train + val
    row = next(r for r in again["evaluate"]["rows"] if r["name"] == "retrain")
    assert "val" not in row and row["test"] == row["last_test"]


def test_reuse_takes_what_is_the_same_and_runs_the_rest(two_seeds, tmp_path, caplog):
    folder, results, _ = two_seeds
    made = config()
    made.phases = ("finetune", "embed", "mine", "evaluate")
    made.mine.top_classes = 2
    new = run(made, tmp_path, reuse=folder)[""]
    text = caplog.text
    assert "finetune: taken from" in text and "embed: taken from" in text
    assert "mine: taken from" not in text and "compiling" not in text
    assert new["finetune"] == results["seed_0"]["finetune"]
    assert new["mine"]["train"]["pairs"] < results["seed_0"]["mine"]["train"]["pairs"]


def test_a_finished_phase_can_be_lengthened(two_seeds, tmp_path, caplog):
    folder, _, _ = two_seeds
    made = config(length="16 steps")
    made.phases = ("finetune",)
    new = run(made, tmp_path, reuse=folder)[""]
    assert "finetune: 12 steps taken from" in caplog.text
    assert "finetune goes on from step 12 of 16" in caplog.text
    assert new["finetune"]["steps"] == 16
    checkpoints = Checkpoints(tmp_path / "finetune" / "checkpoints")
    assert checkpoints.latest() == 16
    checkpoints.close()


def test_another_length_in_the_same_workdir_is_refused(two_seeds):
    from fgvc_jax.errors import UserError

    folder, _, _ = two_seeds
    made = config(length="16 steps")
    made.seeds, made.protocol = 2, "refit"
    with pytest.raises(UserError, match=r"(?s)finetune.length: '12 steps' there.*--reuse="):
        run(made, folder)


def test_the_report_is_of_all_seeds(two_seeds):
    """Means over the refitted seeds, the verdict in how many; pictures of the first."""
    folder, results, _ = two_seeds
    report.make(folder, use_model=False)
    said = json.loads((folder / "report" / "report.json").read_text())
    assert said["model"] == {"part": "seed_0/refit", "phase": "retrain", "checkpoint": "last"}
    assert "of 2 seeds" in said["verdict"]
    values = [
        100 * row["test"]["top1"]
        for part in ("seed_0/refit", "seed_1/refit")
        for row in results[part]["evaluate"]["rows"]
        if row["name"] == "retrain"
    ]
    text = (folder / "report" / "report.html").read_text()
    assert f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}" in text
