"""The training loop with a step made by hand, and the checkpoints that it leaves."""

import io
import json
import logging
import math
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgvc_jax.errors import UserError
from fgvc_jax.tracking.progress import Progress
from fgvc_jax.tracking.timers import Seconds
from fgvc_jax.tracking.writers import Writer
from fgvc_jax.train import loop, plateau
from fgvc_jax.train.checkpoint import METRIC, Checkpoints, pick
from fgvc_jax.train.clock import NEVER, Clock
from fgvc_jax.train.stop import Interrupted, Stop


def state_at(step):
    """As the train step has it; the weights tell the step."""
    state = {
        "step": jnp.int32(step),
        "params": {"w": jnp.full(3, step, jnp.float32)},
        "batch_stats": {"mean": jnp.full(2, step / 2, jnp.float32)},
        "opt": ({"w": jnp.full(3, -step, jnp.float32)},),
        "plateau": plateau.start(),
    }
    return jax.tree.map(jnp.asarray, state)


class Metric:
    """A number on the device that notes when the host reads it."""

    def __init__(self, number, value, events):
        self.number, self.value, self.events = number, value, events

    def __array__(self, dtype=None, copy=None):
        self.events.append(("read", self.number))
        return np.asarray(self.value, dtype)


class Run:
    """`fit` over a step that logs loss = step; `events` holds what happened, in order."""

    def __init__(self, folder):
        self.folder, self.events, self.stop = folder, [], Stop()
        self.kill_at = None
        self.loss, self.stop_at, self.scores = float, None, lambda step: {METRIC: step / 100}

    def step(self, state, batch):
        number = int(state["step"]) + 1
        assert batch == number
        if number == self.kill_at:
            raise KeyError("killed")
        self.events.append(("step", number))
        if number == self.stop_at:
            self.stop.requested = int(signal.SIGTERM)
        new = state_at(number) | {"plateau": state["plateau"]}
        return new, {"loss": Metric(number, self.loss(number), self.events)}

    def evaluate(self, state):
        self.events.append(("evaluate", int(state["step"])))
        return self.scores(int(state["step"]))

    def fit(self, total, eval_every, log_every, keep_every=0, clock=NEVER, **patience):
        checkpoints = Checkpoints(self.folder / "checkpoints")
        first, state, unlogged = checkpoints.restore_latest(state_at(0))
        writer = Writer(self.folder, tensorboard=False)
        writer.truncate(loop.logged(first, unlogged))
        self.text = io.StringIO()
        try:
            with Progress("finetune", total, 1, first_step=first, stream=self.text) as progress:
                return loop.fit(
                    state_at(0) if state is None else state,
                    self.step,
                    iter(range(first + 1, total + 1)),
                    milestones=loop.Milestones(first, total, eval_every, log_every, keep_every),
                    evaluate=self.evaluate,
                    checkpoints=checkpoints,
                    tracker=loop.Tracker(progress, Seconds(), writer),
                    stop=self.stop,
                    patience=plateau.Patience(**patience),
                    clock=clock,
                    unlogged=unlogged,
                )
        finally:
            checkpoints.close()
            writer.close()

    def lines(self, kind):
        text = (self.folder / "metrics.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        return [(x["step"], x.get("loss", x.get(METRIC))) for x in lines if x["kind"] == kind]

    def saved(self):
        checkpoints = Checkpoints(self.folder / "checkpoints")
        found = checkpoints.best(), checkpoints.latest(), sorted(checkpoints.manager.all_steps())
        checkpoints.close()
        return found


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_metrics_are_read_one_step_late(run):
    """Never before the next step was dispatched, but for the steps before an evaluation."""
    state = run.fit(total=7, eval_every=4, log_every=2)
    assert int(state["step"]) == 7
    assert run.events == [
        *(("step", 1), ("step", 2), ("read", 1), ("step", 3), ("read", 2)),
        *(("step", 4), ("read", 3), ("read", 4), ("evaluate", 4)),
        *(("step", 5), ("step", 6), ("read", 5)),
        *(("step", 7), ("read", 6), ("read", 7), ("evaluate", 7)),
    ]
    # The means of what was read since the line before, every step in one of them.
    assert run.lines("train") == [(1, 1.0), (4, 3.0), (5, 5.0), (7, 6.5)]
    assert run.lines("val") == [(4, 0.04), (7, 0.07)]


@pytest.mark.parametrize(
    ("bad", "value"), [(7, math.nan), (7, math.inf), (8, math.nan), (2, math.nan)]
)
def test_a_number_that_is_not_finite_stops_the_run(run, bad, value):
    run.loss = lambda number: value if number == bad else float(number)
    with pytest.raises(UserError) as error:
        run.fit(total=12, eval_every=4, log_every=3)
    message = str(error.value)
    assert f"loss became {value} at step {bad}" in message
    good = 4 if bad > 4 else None
    if good:
        assert f"step 4 in {run.folder / 'checkpoints'}" in message
    else:
        assert "Last good checkpoint: none yet" in message
    window = {2: "steps 1 to 2", 7: "steps 6 to 7", 8: "steps 6 to 8"}[bad]
    assert window in message
    # Found one step late at most, and nothing of it was evaluated or saved.
    assert max(n for what, n in run.events if what == "step") == (bad if bad == 8 else bad + 1)
    assert all(n <= 4 for what, n in run.events if what == "evaluate")
    assert run.saved() == ((4, 4, [4]) if good else (None, None, []))
    if good:
        assert run.lines("train") == [(2, 1.5), (4, 3.5), (5, 5.0)]


def test_an_interruption_saves_where_it_is_and_goes_on_from_there(run):
    run.stop_at = 3
    with pytest.raises(Interrupted) as interrupted:
        run.fit(total=6, eval_every=4, log_every=2)
    assert interrupted.value.signal == signal.SIGTERM
    assert run.events[-2:] == [("read", 2), ("read", 3)]  # read before it was saved
    assert run.saved() == (None, 3, [3])
    run.stop_at, run.stop.requested, run.events = None, 0, []
    state = run.fit(total=6, eval_every=4, log_every=2)
    assert run.events[0] == ("step", 4)
    # Means over the same steps as without a stop; the metrics of a step are read one step later.
    assert run.lines("train") == [(1, 1.0), (4, 3.0), (6, 5.5)]
    np.testing.assert_array_equal(state["params"]["w"], np.full(3, 6.0))
    assert run.saved() == (6, 6, [4, 6])


def test_an_interruption_at_the_last_step_or_an_evaluation_loses_no_score(run):
    run.stop_at = 4
    with pytest.raises(Interrupted):
        run.fit(total=6, eval_every=4, log_every=2)
    assert run.saved() == (4, 4, [4])
    run.stop_at, run.stop.requested = 6, 0
    run.fit(total=6, eval_every=4, log_every=2)  # nothing was left to interrupt
    assert run.saved() == (6, 6, [4, 6])


def test_nothing_that_a_nan_left_is_saved_on_interruption(run):
    run.stop_at = 3
    run.loss = lambda number: math.nan if number == 3 else 1.0
    with pytest.raises(UserError, match="loss became nan at step 3"):
        run.fit(total=6, eval_every=4, log_every=2)
    assert run.saved() == (None, None, [])


def test_without_validation_the_last_checkpoint_counts(run):
    run.scores = lambda step: None
    run.fit(total=6, eval_every=2, log_every=6)
    assert run.saved() == (None, 6, [4, 6])
    checkpoints = Checkpoints(run.folder / "checkpoints")
    assert pick(checkpoints, "best") == pick(checkpoints, "last") == 6
    checkpoints.close()
    assert run.lines("val") == []


def test_checkpoints_by_wall_time(run):
    """A step takes 10 s here: a checkpoint is due 25 s after the last one, whichever made that one."""
    saved, save = [], Checkpoints.save
    clock = Clock(25, now=lambda: 10 * len([e for e in run.events if e[0] == "step"]))

    class Noting(Checkpoints):
        def save(self, step, state, metrics, unlogged):
            saved.append((step, metrics is not None))
            save(self, step, state, metrics, unlogged)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("test_loop.Checkpoints", Noting)
        run.fit(total=13, eval_every=5, log_every=2, clock=clock)
    assert saved == [(3, False), (5, True), (8, False), (10, True), (13, True)]
    assert run.saved() == (13, 13, [10, 13])


@pytest.mark.parametrize("killed_at", range(4, 12))
def test_a_killed_run_logs_what_an_undisturbed_one_logs(tmp_path, killed_at):
    """With a checkpoint at every third step, wherever it is killed; log lines at every fourth."""

    def fit(run):
        return run.fit(total=12, eval_every=6, log_every=4, keep_every=3)

    whole, killed = Run(tmp_path / "whole"), Run(tmp_path / "killed")
    fit(whole)
    killed.kill_at = killed_at
    with pytest.raises(KeyError, match="killed"):
        fit(killed)
    killed.kill_at = None
    fit(killed)
    for kind in ("train", "val"):
        assert killed.lines(kind) == whole.lines(kind)


# Checkpoints


@pytest.mark.parametrize("restart", [False, True])
def test_best_and_two_latest_are_kept(tmp_path, restart):
    """Over many saves, with a restart between all of them or with none; saves without a score too."""
    scores = {2: 0.3, 4: 0.9, 5: None, 6: 0.1, 8: 0.5, 10: 0.8, 12: None}
    checkpoints = Checkpoints(tmp_path)
    best = None
    for step, score in scores.items():
        if restart:
            checkpoints.close()
            checkpoints = Checkpoints(tmp_path)
        checkpoints.save(step, state_at(step), score and {METRIC: score, "nll": 1 - score})
        best = {2: 2, 4: 4}.get(step, best)
        checkpoints.manager.wait_until_finished()
        assert (checkpoints.best(), checkpoints.latest()) == (best, step)
        two = [s for s in scores if s <= step][-2:]
        assert sorted(checkpoints.manager.all_steps()) == sorted({best, *two})
    checkpoints.close()

    checkpoints = Checkpoints(tmp_path)
    assert (pick(checkpoints, "best"), pick(checkpoints, "last")) == (4, 12)
    assert checkpoints.metrics(4) == {METRIC: 0.9, "nll": pytest.approx(0.1)}
    assert checkpoints.metrics(12) == {}
    like = state_at(0)
    for step in (4, 12):
        state = checkpoints.restore(step, like)
        assert jax.tree.structure(state) == jax.tree.structure(like)
        jax.tree.map(np.testing.assert_array_equal, state, state_at(step))
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
    )
    weights = checkpoints.restore_weights(4, {k: shapes[k] for k in ("params", "batch_stats")})
    np.testing.assert_array_equal(weights["params"]["w"], np.full(3, 4.0))
    checkpoints.close()


def test_of_equal_scores_one_is_best_and_stays_readable(tmp_path):
    """The same one before and after a restart."""
    checkpoints = Checkpoints(tmp_path)
    for step, score in ((1, 0.5), (2, 0.9), (3, 0.9), (4, 0.9), (5, 0.2)):
        checkpoints.save(step, state_at(step), {METRIC: score})
    checkpoints.manager.wait_until_finished()
    best = checkpoints.best()
    assert best in (2, 3, 4) and checkpoints.latest() == 5
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.best() == best
    assert int(checkpoints.restore(best, state_at(0))["step"]) == best
    assert checkpoints.metrics(best) == {METRIC: 0.9}
    checkpoints.close()


def test_no_checkpoint_is_told(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for which in ("best", "last"):
        with pytest.raises(UserError, match="no checkpoint in"):
            pick(checkpoints, which)
    checkpoints.close()


def broken(folder, how):
    """A checkpoint as a dead disk or a full one might leave it."""
    if how == "emptied":
        for path in (p for p in folder.rglob("*") if p.is_file()):
            path.write_bytes(b"")
    elif how == "cut":  # the largest file, which holds arrays
        path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        path.write_bytes(path.read_bytes()[:-20])
    else:
        shutil.rmtree(folder / "training")


@pytest.mark.parametrize("how", ["emptied", "cut", "without a part"])
def test_training_goes_on_from_the_checkpoint_before_one_that_cannot_be_read(tmp_path, caplog, how):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (2, 4, 6):
        checkpoints.save(step, state_at(step), {METRIC: step / 10})
    checkpoints.close()
    broken(tmp_path / "checkpoints" / "6", how)
    checkpoints = Checkpoints(tmp_path / "checkpoints", mend=True)
    with caplog.at_level(logging.WARNING, "fgvc_jax"):
        step, state, _ = checkpoints.restore_latest(state_at(0))
    assert step == 4
    jax.tree.map(np.testing.assert_array_equal, state, state_at(4))
    assert "step 6 cannot be read" in caplog.text and "unreadable_6" in caplog.text
    assert any((tmp_path / "unreadable_6").rglob("*"))  # nothing is deleted
    checkpoints.save(6, state_at(6), {METRIC: 0.6})
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert (checkpoints.best(), checkpoints.latest()) == (6, 6)
    assert checkpoints.restore_latest(state_at(0))[0] == 6
    checkpoints.close()


def test_where_no_checkpoint_can_be_read_nothing_starts_anew_in_silence(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.restore_latest(state_at(0)) == (0, None, [])
    checkpoints.save(2, state_at(2), None)
    checkpoints.close()
    broken(tmp_path / "checkpoints" / "2", "emptied")
    checkpoints = Checkpoints(tmp_path / "checkpoints", mend=True)
    with pytest.raises(
        UserError, match=r"(?s)no checkpoint in .* can be read; of step 2: .*anew, remove"
    ):
        checkpoints.restore_latest(state_at(0))
    assert (tmp_path / "checkpoints" / "2").is_dir()
    checkpoints.close()
