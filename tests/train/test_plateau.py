"""What validation decides: against torch's ReduceLROnPlateau and by hand."""

import numpy as np
import pytest

from fgvc_jax.train import plateau
from fgvc_jax.train.plateau import Patience

VALUES = [0.1, 0.3, 0.3, 0.2, 0.25, 0.31, 0.31, 0.31, 0.3, 0.3, 0.3, 0.4, 0.1, 0.1, 0.1]


def test_plateau_lowers_the_rate_when_torch_does():
    torch = pytest.importorskip("torch", reason="the reference of this test is torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.5, patience=1, threshold=0.0
    )
    ours = plateau.start()
    dropped = []
    for step, value in enumerate(VALUES):
        theirs.step(value)
        before = float(ours["rate_factor"])
        ours = plateau.after_evaluation(ours, value, step, Patience(drop=1, factor=0.5))
        assert float(ours["rate_factor"]) == optimizer.param_groups[0]["lr"]
        dropped += [step] if ours["rate_factor"] < before else []
    assert len(dropped) >= 3 and plateau.drops(ours) == dropped


def test_early_stop_counts_evaluations_without_a_better_one():
    ours, stopped = plateau.start(), []
    for step, value in enumerate(VALUES):
        ours = plateau.after_evaluation(ours, value, step, plateau.NEVER)
        stopped.append(plateau.is_over(ours, Patience(stop=3)))
    best, since = -np.inf, 0
    for value, over in zip(VALUES, stopped, strict=True):
        best, since = (value, 0) if value > best else (best, since + 1)
        assert over == (since >= 3)
    assert not plateau.is_over(ours, plateau.NEVER)
    assert float(ours["rate_factor"]) == 1.0
