"""Weights & Biases: a run of the tiny pipeline in offline mode, cut and gone on with; refusals."""

import importlib.util
import json
import struct
import sys

import pytest
import tiny

from fgvc_jax import checks, config, phases
from fgvc_jax.errors import UserError
from fgvc_jax.run import run
from fgvc_jax.tracking.wandb import Wandb


def small():
    """Two phases of a few steps on the digits."""
    made = tiny.pipeline()
    made.phases = ("finetune",)
    made.finetune.length = "4 steps"
    made.finetune.validation.every = "4 steps"
    made.log.every = "2 steps"
    return made


def test_it_changes_no_hash():
    """So that an old workdir goes on when it is switched on."""
    plain, tracked = small(), small()
    tracked.tracking.wandb = "birds"
    assert config.is_placement("tracking.wandb")
    hashes = [phases.hash_of(phases.of(c)[0], {}) for c in (plain, tracked)]
    assert hashes[0] == hashes[1]


def test_a_package_that_is_not_there_is_named_before_anything_runs(monkeypatch):
    tracked = small()
    tracked.tracking.wandb = "birds"
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "wandb" else found(name)
    )
    with pytest.raises(UserError, match=r"pip install 'fgvc_jax\[wandb\]'"):
        checks.check(tracked)
    checks.check(small())


def chunks(content):
    """The records of a .wandb file: after 7 bytes, LevelDB's log format in blocks of 32 KiB."""
    place, part = 7, b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        part += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield part
            part = b""


def records(folder):
    """([(step, {name: number})], {(id, project, group, name)}) of every offline run below a folder."""
    from wandb.proto import wandb_internal_pb2 as pb

    found, ids = [], set()
    for file in sorted(folder.rglob("*.wandb")):
        for chunk in chunks(file.read_bytes()):
            record = pb.Record()
            record.ParseFromString(chunk)
            if record.HasField("run"):
                ids.add(
                    (
                        record.run.run_id,
                        record.run.project,
                        record.run.run_group,
                        record.run.display_name,
                    )
                )
            if record.HasField("history"):
                items = {
                    item.key or item.nested_key[0]: json.loads(item.value_json)
                    for item in record.history.item
                }
                found.append((record.history.step.num, items))
    return found, ids


def test_a_run_offline_that_is_cut_and_goes_on(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracked = small()
    tracked.tracking.wandb = "birds"
    workdir = tmp_path / "mine"
    run(tracked, workdir)
    wandb.teardown()  # waits for wandb's process, which writes the file
    phase = workdir / "finetune"
    name = (phase / "wandb_id").read_text().strip()
    written = [json.loads(line) for line in (phase / "metrics.jsonl").read_text().splitlines()]
    history, ids = records(phase)
    assert (
        ids == {(name, "birds", "mine", "mine/finetune")} and len(list(phase.rglob("*.wandb"))) == 1
    )
    there = {(step, key): value for step, items in history for key, value in items.items()}
    for line in written:
        for key in line.keys() - {"step", "kind", "time"}:
            expected = line[key]
            assert there[line["step"], f"{line['kind']}/{key}"] == pytest.approx(expected, rel=1e-6)
    # As after a cut: the phase goes on, in the same run at Weights & Biases.
    again = Wandb(phase, "birds", "mine", "finetune", {})
    again.open()
    again.write(9, {"train/loss": 0.5})
    again.close()
    wandb.teardown()
    history, ids = records(phase)
    assert {i[0] for i in ids} == {name}
    assert history[-1][0] == 9 and history[-1][1]["train/loss"] == 0.5


def test_what_wandb_refuses(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def refuse(**_):
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match=r"No API key configured.*wandb login.*WANDB_MODE=offline"):
        Wandb(tmp_path, "birds", "mine", "finetune", {}).open()
    assert "wandb" in sys.modules
