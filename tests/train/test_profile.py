"""The trace of some training steps: what is asked for, what a run leaves, and when it ends."""

import logging

import jax
import jax.numpy as jnp
import pytest
from tiny import parts, pipeline

from fgvc_jax import checks, phases
from fgvc_jax import config as configs
from fgvc_jax.errors import UserError
from fgvc_jax.train import profile
from fgvc_jax.train.profile import Profile, Steps


def traced(folder):
    """The numbers of the steps in the only trace of a folder, in order of time."""
    (path,) = folder.rglob("*.xplane.pb")
    found = []
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                number = dict(event.stats).get("step_num")
                if event.name == "train" and number is not None:
                    found.append((event.start_ns, int(number)))
    return [number for _, number in sorted(found)]


@pytest.mark.parametrize(
    ("text", "expected"), [("", None), ("  ", None), ("20:25", (20, 25)), ("3 : 3", (3, 3))]
)
def test_steps(text, expected):
    assert profile.steps(text, "here") == expected


@pytest.mark.parametrize("text", ["abc", "5:2", "0:4", "7", "1:2:3", "-1:3", "1.5:3"])
def test_other_texts_are_refused(text):
    config = pipeline()
    config.log.profile = text
    with pytest.raises(UserError, match=rf"config.log.profile = '{text}' names no steps.*'20:25'"):
        checks.check(config)


def test_it_is_no_part_of_what_a_run_computes():
    assert configs.is_placement("log.profile")
    config = pipeline()
    phase = phases.of(config)[0]
    before = phases.hash_of(phase, {})
    config.log.profile = "2:3"
    assert phases.hash_of(phases.of(config)[0], {}) == before


def test_a_run_leaves_a_trace_of_its_steps(tmp_path, caplog):
    config = pipeline()
    config.log.profile = "2:4"
    config.finetune.length = "5 steps"
    run, data, models = parts(config, tmp_path)
    phase = phases.of(config)[0]
    assert phase.name == "finetune"
    phase.prepare(run, data, models)
    with caplog.at_level(logging.INFO, logger="fgvc_jax"):
        assert phase.run(run, data, models)["steps"] == 5
    folder = tmp_path / "finetune" / "profile"
    assert traced(folder) == [2, 3, 4]
    assert f"trace of steps 2 to 4: {folder}" in caplog.text


def take(trace, numbers):
    """Some steps, each of them an addition."""
    total = jnp.zeros(())
    for number in numbers:
        with trace.step(number):
            total = total + 1
        trace.after(number, total)


def test_training_that_stops_inside_the_window(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="fgvc_jax")
    with pytest.raises(KeyError), Profile(Steps(3, 9), tmp_path / "a") as trace:
        take(trace, range(1, 5))
        raise KeyError
    assert traced(tmp_path / "a") == [3, 4]
    assert "trace of steps 3 to 4" in caplog.text
    # It has ended: the next one can begin, of a run that goes on from inside the window.
    with Profile(Steps(3, 6), tmp_path / "b") as trace:
        take(trace, range(5, 8))
    assert traced(tmp_path / "b") == [5, 6]


def test_a_window_beyond_the_end(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="fgvc_jax")
    with Profile(Steps(20, 25), tmp_path / "a") as trace:
        take(trace, range(1, 5))
    assert not (tmp_path / "a").exists()
    assert [r.getMessage().strip() for r in caplog.records] == [
        "no trace: no step from 20 to 25 (config.log.profile) was taken"
    ]


def test_nothing_is_said_where_nothing_was_asked(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="fgvc_jax")
    with Profile(None, tmp_path / "a") as trace:
        take(trace, range(1, 5))
    assert not caplog.records and not (tmp_path / "a").exists()


def test_the_last_step_is_waited_for(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(jax, "block_until_ready", lambda results: events.append(results))
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: events.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append("stop"))
    with Profile(Steps(2, 3), tmp_path) as trace:
        for number in range(1, 5):
            with trace.step(number):
                events.append(number)
            trace.after(number, f"of {number}")
    assert events == [1, "start", 2, 3, "of 3", "stop", 4]
