"""What validation decides: against torch's ReduceLROnPlateau and by hand."""

import numpy as np
import pytest

from fgvc_jax.train import course

VALUES = [0.1, 0.3, 0.3, 0.2, 0.25, 0.31, 0.31, 0.31, 0.3, 0.3, 0.3, 0.4, 0.1, 0.1, 0.1]


def test_plateau_lowers_the_rate_when_torch_does():
    torch = pytest.importorskip("torch", reason="the reference of this test is torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.5, patience=1, threshold=0.0
    )
    ours, drops = course.start(), 0
    for value in VALUES:
        theirs.step(value)
        before = float(ours["rate_factor"])
        ours = course.after_evaluation(ours, value, plateau_patience=1, factor=0.5)
        assert float(ours["rate_factor"]) == optimizer.param_groups[0]["lr"]
        drops += ours["rate_factor"] < before
    assert drops >= 3


def test_early_stop_counts_evaluations_without_a_better_one():
    ours, stopped = course.start(), []
    for value in VALUES:
        ours = course.after_evaluation(ours, value)
        stopped.append(course.is_over(ours, 3))
    best, since = -np.inf, 0
    for value, over in zip(VALUES, stopped, strict=True):
        best, since = (value, 0) if value > best else (best, since + 1)
        assert over == (since >= 3)
    assert not course.is_over(ours, 0)  # 0 = never
    assert float(ours["rate_factor"]) == 1.0
