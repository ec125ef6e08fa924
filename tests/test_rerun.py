"""The refit: how long it trains, and the drops of a plateau that validation decided."""

import numpy as np
import tiny

from fgvc_jax import rerun
from fgvc_jax.data.manifest import Manifest, Split
from fgvc_jax.train import optim


def manifest(train: int, val: int) -> Manifest:
    sizes = {"train": train, "val": val, "test": 4}
    splits = {
        name: Split(tuple(f"{name}{i}" for i in range(n)), np.arange(n, dtype=np.int32) % 2)
        for name, n in sizes.items()
    }
    return Manifest("made", ("a", "b"), splits, read=None)


def result(best: int, drops=()) -> dict:
    return {"validation": {"best": {"step": best}}, "plateau_drops": list(drops)}


def test_a_plateau_drops_at_the_epochs_where_validation_made_it_drop():
    """40 train images and 10 of validation: a step stands for a quarter more of them."""
    config = tiny.pipeline()
    config.finetune.schedule.name, config.finetune.schedule.factor = "plateau", 0.5
    config.phases = ("finetune", "evaluate")
    again = rerun.refit(config, {"finetune": result(80, [20, 44])}, manifest(40, 10))
    section = again.finetune
    assert section.length == "100 steps" and section.validation.early_stopping == 0
    assert section.schedule.name == "step"
    drops = [int(text.removesuffix(" steps")) for text in section.schedule.drops]
    assert drops == [25, 55]
    rate = optim.schedule("step", peak=1.0, total=100, drops=drops, factor=section.schedule.factor)
    assert [float(rate(step)) for step in (24, 25, 54, 55, 99)] == [1.0, 0.5, 0.5, 0.25, 0.25]


def test_a_plateau_that_never_dropped_stays_constant():
    config = tiny.pipeline()
    config.finetune.schedule.name = "plateau"
    config.phases = ("finetune", "evaluate")
    again = rerun.refit(config, {"finetune": result(8)}, manifest(40, 10))
    assert tuple(again.finetune.schedule.drops) == ()


def test_the_control_follows_and_other_phases_keep_what_validation_picked():
    config = tiny.pipeline()
    config.pairs.length = "2 x finetune"  # in terms of another phase, but not the control
    results = {name: result(8) for name in ("finetune", "pairs", "retrain", "control")}
    again = rerun.refit(config, results, manifest(40, 10))
    assert again.pairs.length == again.retrain.length == again.finetune.length == "10 steps"
    assert again.control.length == "pairs + retrain"
