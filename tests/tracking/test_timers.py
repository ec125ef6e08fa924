"""Seconds by kind, with a clock that is set by hand."""

import time

import pytest

from fgvc_jax.tracking.timers import Seconds


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_time_is_added_to_its_kind(clock):
    seconds = Seconds()
    for kind, passed in (("steps", 2.0), ("data_wait", 0.5), ("steps", 3.0), ("save", 0.25)):
        with seconds.measure(kind):
            clock[0] += passed
        clock[0] += 7  # between two blocks: nobody's
    assert vars(seconds) == {
        "compile": 0.0,
        "data_wait": 0.5,
        "steps": 5.0,
        "evaluate": 0.0,
        "save": 0.25,
    }


def test_time_before_an_error_counts_and_the_error_goes_on(clock):
    seconds = Seconds()
    with pytest.raises(KeyError), seconds.measure("evaluate"):
        clock[0] += 1.5
        raise KeyError
    assert seconds.evaluate == 1.5


def test_an_unknown_kind_is_refused_before_anything_runs():
    with pytest.raises(AttributeError, match="evalaute"), Seconds().measure("evalaute"):
        raise AssertionError("the block was entered")
