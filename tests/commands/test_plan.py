"""`fgvc plan` as a stranger uses it: what it prints, what it refuses, what does not fit."""

import functools
import importlib.util
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import tiny

from fgvc_jax import cli, phases
from fgvc_jax import mesh as meshes
from fgvc_jax.config import base
from fgvc_jax.context.models import Models, view_of
from fgvc_jax.data import counts
from fgvc_jax.errors import UserError
from fgvc_jax.hardware import chips, compiled
from fgvc_jax.phases._training import Length
from fgvc_jax.train import loop
from fgvc_jax.train.build import batch_of

FINETUNE = ("--config.phases=finetune", "--config.finetune.length=40 steps")


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "tiny_config.py"
    path.write_text("import tiny\n\n\ndef get_config():\n    return tiny.pipeline()\n")
    return path


@pytest.fixture
def call(monkeypatch, capsys, config_file):
    """call('plan', *arguments) -> (exit status, standard output, standard error)."""

    def run(command: str, *arguments: str):
        words = ["fgvc", command, f"--config={config_file}", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", words)
        status = cli.main()
        return (status, *capsys.readouterr())

    return run


@functools.cache
def measured(batch: int) -> compiled.Measured:
    """The train step of the tiny config's fine-tuning, as the phase itself has it, on this machine."""
    config, mesh = tiny.pipeline(), meshes.make()
    manifest = counts.Counts(10, {"train": 100}, 8, "").manifest()
    models = Models(config, Path(), manifest, mesh, view_of(config), 8)
    (phase, *_) = phases.of(config)
    _, program, _ = phase._build(models, Length(1, batch, 1))
    return compiled.measure(program.trace(batch_of(mesh, batch, 1, 8, label=jnp.int32)), 1)


def number(text: str, pattern: str) -> float:
    return float(re.search(pattern, text)[1].replace(",", ""))


def test_this_machine(call):
    """Its figures are those of the phase's own step, compiled here; its data are read."""
    status, out, _ = call("plan", *FINETUNE)
    assert status == 0 and "plan for 1 x cpu" in out and "float32" in out
    assert "357 train, 90 val, 1,350 test images of 10 classes (read)" in out
    assert "train step, config.finetune.batch = 16 (16 a chip), 40 times" in out
    # 90 images of validation, every 4 steps: 900 images in batches of 16.
    assert "forward pass, config.finetune.batch = 16 (16 a chip), 57 times" in out
    found = measured(16)
    assert number(out, r"temporaries ([\d.]+) MiB") == pytest.approx(
        found.memory.temporaries / 2**20, rel=0.1
    )
    assert number(out, r"a step: ([\d.]+) MFLOP") == pytest.approx(found.flops / 1e6, rel=0.05)
    assert "bound" not in out.replace("no bound", "")  # nobody knows this CPU


@pytest.mark.slow
def test_what_does_not_fit_is_told_with_the_largest_batch_that_does(call, monkeypatch):
    """A toy chip with less memory than the batch needs; the largest batch is tried again by hand."""
    room = 0.8 * measured(32).needed
    toy = chips.Chip("toy", "cpu", 1e9, room, 1.0, 1e9, 1e9)
    monkeypatch.setattr(chips, "CHIPS", (toy,))
    status, out, err = call(
        "plan",
        *FINETUNE,
        "--config.finetune.batch=32",
        "--images=500",
        "--classes=10",
        "--config.data.canvas=8",
        "--config.data.feed=streamed",
        "--price=3600",
    )
    assert status == 2 and "DOES NOT FIT" in out
    message = err[err.index("error:") :]
    assert "config.finetune.batch = 32 needs" in message and "toy has" in message
    assert "accumulate" in message and "remat" in message and "fsdp" in message
    largest = int(number(message, r"Lower it to ([\d,]+)"))
    assert 8 <= largest < 32
    ahead = 16 * 3 * 8**2  # bytes of an example's canvases that a streamed feed has made ahead
    more = largest + max(1, largest // 16) + 1
    assert measured(largest).needed + largest * ahead <= room
    assert measured(more).needed + more * ahead > room
    # What it costs: dollars are the seconds, at 3,600 an hour.
    bounds = [float(x) for x in re.findall(r"([\d.e+-]+) ms a step", out)]
    runs = [int(x) for x in re.findall(r"(\d+) times", out)]
    cost = sum(b * n / 1e3 for b, n in zip(bounds, runs, strict=True))
    assert number(out, r"\$([\d.,]+) at") == pytest.approx(cost, rel=0.02, abs=0.02)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_tpus_that_are_not_there(call):
    status, out, _ = call("plan", *FINETUNE, "--on=v5e:2x2", "--images=2000,0,100", "--classes=10")
    assert status == 0 and "plan for 4 x TPU v5 lite" in out and "bfloat16" in out
    assert "2,000 train, 100 test images of 10 classes (as given)" in out
    assert "fits" in out and "forward pass" not in out  # there is nothing to validate on
    bound = number(out, r"bound: ([\d,]+) images/s")
    assert bound == pytest.approx(16e3 / number(out, r"images/s, ([\d.]+) ms a step"), rel=0.01)
    # The gradients of a step are summed over the chips: ten times more than its statistics.
    assert number(out, r"all-reduce of ([\d.]+) kB") > 20


@pytest.mark.parametrize(
    "flags,said",
    [
        (("--images=many",), "give the images of train, val and test"),
        (("--images=0,5",), "there must be training images"),
        (("--images=100",), "--images needs --classes"),
        (("--config.finetune.batch=0",), "must be at least 1"),
        (("--on=v9",), "'v9' is unknown"),
        (("--config.data.source=folder", "--config.data.root=/none"), "--images=TRAIN,VAL,TEST"),
    ],
)
def test_mistakes_are_told(call, flags, said):
    status, _, err = call("plan", *FINETUNE, *flags)
    assert status == 2 and said in err and "Traceback" not in err


def test_counts_of_a_named_data_set_that_is_not_here(monkeypatch):
    monkeypatch.delenv("FGVC_DATA", raising=False)
    data = base().data
    data.source, data.root = "tfds", "$FGVC_DATA/cub"
    found = counts.of(data, resize=256, squash=())
    assert found.classes == 200 and found.source == "official counts"
    assert found.splits == {"train": 5395, "val": 599, "test": 5794}  # 10 % carved
    assert found.canvas == 512
    data.root = "$FGVC_DATA/aircraft"
    data.label_feature = "family"
    found = counts.of(data, resize=256, squash=())
    assert found.classes == 70 and found.splits["val"] == 3333  # its own
    data.splits = "retrieval"  # other counts, which nobody has
    with pytest.raises(UserError, match="--classes=N"):
        counts.of(data, resize=256, squash=())


def test_training_that_runs_out_of_memory_says_what_to_change(call, monkeypatch, tmp_path):
    """As XLA raises it, from within a step."""

    def full(state, step, batches, **kw):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.")

    monkeypatch.setattr(loop, "fit", full)
    status, _, err = call("train", *FINETUNE, f"--workdir={tmp_path}/run")
    assert status == 2 and "Traceback" not in err
    assert "config.finetune.batch = 16 does not fit into memory" in err
    assert re.search(r"the step alone needs \d+\.\d\d GiB on each device", err)
    for change in ("Lower config.finetune.batch", "accumulate", "remat", "fsdp", "fgvc plan"):
        assert change in err
