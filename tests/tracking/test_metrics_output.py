"""The metrics writer and the progress display."""

import io
import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from fgvc_jax.files import write_json
from fgvc_jax.tracking.progress import Progress, duration
from fgvc_jax.tracking.writers import Writer


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_lines_are_json_and_truncated_on_resume(tmp_path):
    writer = Writer(tmp_path, tensorboard=False)
    for step in (1, 2, 3):
        writer.write(step, {"loss": step / 2})
    writer.write(3, {"top1": 0.5}, kind="val")
    writer.write(4, {"loss": float("nan"), "rate": float("inf")})
    assert [(x["step"], x["kind"]) for x in lines(tmp_path)] == [
        (1, "train"),
        (2, "train"),
        (3, "train"),
        (3, "val"),
        (4, "train"),
    ]
    assert lines(tmp_path)[1]["loss"] == 1.0
    assert lines(tmp_path)[4]["loss"] is None is lines(tmp_path)[4]["rate"]

    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "kind": "tra')  # killed while writing
    writer = Writer(tmp_path, tensorboard=False)
    writer.truncate(2)
    writer.write(3, {"loss": 7.0})
    writer.close()
    assert [x["step"] for x in lines(tmp_path)] == [1, 2, 3]
    assert lines(tmp_path)[2]["loss"] == 7.0
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]
    Writer(tmp_path / "new", tensorboard=False).truncate(0)  # nothing written yet


def test_tensorboard_events_are_readable_without_tensorflow(tmp_path):
    # In a process of its own, so that no other test can have imported TensorFlow.
    script = f"""
import sys
sys.modules["tensorflow"] = None  # importing it fails
from fgvc_jax.tracking.writers import Writer
writer = Writer({str(tmp_path)!r})
writer.write(5, {{"loss": 2.5}})
writer.write(6, {{"top1": 0.25}}, kind="val")
writer.close()
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator({str(tmp_path)!r})
events.Reload()
for tag in sorted(events.Tags()["tensors"]):
    for event in events.Tensors(tag):
        print(tag, event.step, *event.tensor_proto.float_val)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["train/loss 5 2.5", "val/top1 6 0.25"]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_plain_lines_every_ten_seconds_and_at_the_end():
    clock, stream = Clock(), io.StringIO()
    with Progress(
        "finetune", 30, 16, first_step=4, later_seconds=60, stream=stream, clock=clock
    ) as progress:
        clock.now = 100.0  # the first step compiles: not part of the speed
        progress.update(text="loss 3.1")
        for _ in range(25):
            clock.now += 2.0
            progress.update()
        assert progress.images_per_second() == pytest.approx(8.0)
        assert progress.step == 30
    text = stream.getvalue().splitlines()
    assert text[0] == "finetune  5/30  17%  loss 3.1"
    assert text[1] == "finetune  10/30  33%  8 images/s  0:40 left  run 1:40 left  loss 3.1"
    assert len(text) == 1 + 4 + 1, "every 10 s of 50, and the end"
    assert text[-1] == "finetune  30/30  100%  8 images/s  run 1:00 left  loss 3.1"


def test_bar_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    clock, stream = Clock(), Terminal()
    with Progress("pairs", 3, 2, stream=stream, clock=clock) as progress:
        for _ in range(3):
            clock.now += 1.0
            progress.update(text="loss 0.5")
    last = stream.getvalue().split("\r")[-1]
    assert "pairs 100%" in last and "3/3" in last and "2 images/s" in last and "loss 0.5" in last


def test_durations():
    assert [duration(s) for s in (7.4, 754, 3723, 2 * 86400 + 3 * 3600 + 240)] == [
        "0:07",
        "12:34",
        "1:02:03",
        "2 d 03:04",
    ]


def strict(text):
    """By a parser that knows no NaN and no Infinity, as those of other languages."""

    def refuse(word):
        raise ValueError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_files_are_json_whatever_was_measured(tmp_path):
    content = {
        "rows": [{"nll": float("inf"), "top5": None, "top1": np.float32(0.5)}],
        "auroc": np.float64("nan"),
        "steps": (np.int32(3), 4, True),
        "name": "NaN",
        "loss": jnp.float32("-inf"),
    }
    write_json(tmp_path / "DONE.json", content)
    assert strict((tmp_path / "DONE.json").read_text()) == {
        "rows": [{"nll": None, "top5": None, "top1": 0.5}],
        "auroc": None,
        "steps": [3, 4, True],
        "name": "NaN",
        "loss": None,
    }
    Writer(tmp_path, tensorboard=False).write(1, {"loss": np.inf})
    assert strict((tmp_path / "metrics.jsonl").read_text())["loss"] is None
