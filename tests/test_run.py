"""A run of phases: what makes a phase another one, what is skipped, refused and left alone."""

import fcntl
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from absl import flags
from ml_collections import config_flags

from fgvc_jax import checks, phases
from fgvc_jax import config as configs
from fgvc_jax import run as runs
from fgvc_jax.errors import UserError
from fgvc_jax.phases import train
from fgvc_jax.train import tree


def small():
    """One training phase of two steps of a very small ViT."""
    config = tiny.pipeline("vit_tiny_patch16_224", depth=1, width=16, heads=1)
    config.phases = ("finetune",)
    config.finetune.length = config.finetune.validation.every = "2 steps"
    return config


# What a phase is


def hashes(config):
    found = {}
    for phase in phases.of(config):
        found[phase.name] = phases.hash_of(phase, found, "images")
    return found


def changed(key, value):
    """The phases whose hash another value of a key changes."""
    config = tiny.pipeline()
    before = hashes(config)
    *groups, leaf = key.split(".")
    target = config
    for group in groups:
        target = target[group]
    assert target[leaf] != value
    target[leaf] = value
    after = hashes(config)
    return [name for name in before if before[name] != after[name]]


ALL = list(configs.phases(tiny.pipeline()))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        # what all of them compute from
        ("seed", 1, ALL),
        ("data.split_seed", 1, ALL),
        ("data.root", "elsewhere", ALL),
        ("image.flip", 0.0, ALL),
        ("model.backbone", "resnet34", ALL),
        ("model.dtype", "bfloat16", ALL),
        # their own section, and what comes from it
        ("finetune.optimizer.learning_rate", 0.06, ALL),
        ("embed.augment", True, ["embed", "mine", "pairs", "retrain", "control", "evaluate"]),
        ("mine.top_classes", 4, ["mine", "pairs", "retrain", "control", "evaluate"]),
        ("pairs.length", "9 steps", ["pairs", "retrain", "control", "evaluate"]),
        # the control's length is that of pairs + retrain
        ("retrain.init.alpha", 0.6, ["retrain", "control", "evaluate"]),
        ("control.optimizer.momentum", 0.8, ["control", "evaluate"]),
        ("evaluate.neighbours", 3, ["evaluate"]),
        # where it is watched and placed
        ("log.every", "3 steps", []),
        ("data.on_bad", "skip", []),
        ("model.remat", "full", []),
        ("log.tensorboard", True, []),
        ("log.report", True, []),
        ("devices.fsdp", 2, []),
        ("data.cache", "elsewhere", []),
        ("data.feed", "streamed", []),
        ("data.resident_gb", 1.0, []),
    ],
)
def test_a_hash_changes_with_what_a_phase_computes_from(key, value, expected):
    assert changed(key, value) == expected


def test_a_hash_changes_with_the_images_and_not_with_the_list_of_phases():
    config = tiny.pipeline()
    found = phases.hash_of(phases.of(config)[0], {}, "images")
    assert found != phases.hash_of(phases.of(config)[0], {}, "other images")
    config.phases = ("finetune", "evaluate")
    assert found == phases.hash_of(phases.of(config)[0], {}, "images")


def test_a_new_key_at_its_default_leaves_finished_phases_and_old_workdirs(
    finished, monkeypatch, caplog, tmp_path
):
    """As if this version had brought a key to every room of the config."""
    folder, results = tmp_path / "old", finished[1]
    shutil.copytree(finished[0], folder)
    usual, base = train.Phase.defaults, configs.base

    def defaults():
        found = usual()
        found.brand_new, found.optimizer.brand_new = 3, (1, 2)
        return found

    def base_with_more():
        found = base()
        found.brand_new, found.image.brand_new = "a", 0.5
        return found

    monkeypatch.setattr(train.Phase, "defaults", staticmethod(defaults))
    monkeypatch.setattr(configs, "base", base_with_more)
    monkeypatch.setattr(tiny, "base", base_with_more)
    config = small()
    assert config.finetune.brand_new == 3 and config.image.brand_new == 0.5
    assert runs.run(config, folder) == results
    assert "all phases are done." in caplog.messages
    config.finetune.optimizer.brand_new = (1, 3)
    with pytest.raises(
        UserError, match=r"finetune.optimizer.brand_new: \[1, 2\] there, \[1, 3\] now"
    ):
        runs.run(config, folder)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("finetune,evaluate", ("finetune", "evaluate")),
        ("finetune, embed ,mine", ("finetune", "embed", "mine")),
        ("finetune,", ("finetune",)),
        ("finetune", ("finetune",)),
    ],
)
def test_phases_as_typed_on_a_command_line(typed, expected, monkeypatch):
    """absl makes one string of the list."""
    monkeypatch.setattr(sys, "argv", ["launch.py", f"--config.phases={typed}"])
    values = flags.FlagValues()
    config = tiny.pipeline()
    config_flags.DEFINE_config_dict("config", config, flag_values=values)
    values(sys.argv)
    assert configs.phases(values.config) == expected
    checks.check(values.config)


# Running


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(workdir, what run returned) of a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, runs.run(small(), folder)


def contents(folder):
    return {
        path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_finished_phase_is_skipped(finished, monkeypatch, caplog):
    folder, results = finished
    before = contents(folder / "finetune")
    assert results[""]["finetune"]["steps"] == 2

    def fail(*_):
        raise AssertionError("ran again")

    monkeypatch.setattr(train.Phase, "run", fail)
    config = small()
    config.log.every = "1 steps"  # how it is watched does not matter
    assert runs.run(config, folder) == results
    assert "all phases are done." in caplog.messages
    assert contents(folder / "finetune") == before

    # Without its DONE.json a phase is not finished.
    (folder / "finetune" / "DONE.json").rename(folder / "away")
    with pytest.raises(AssertionError, match="ran again"):
        runs.run(config, folder)
    (folder / "away").rename(folder / "finetune" / "DONE.json")


def test_a_dry_run_leaves_the_run_alone(finished):
    folder, _ = finished
    before = contents(folder)
    config = small()
    config.finetune.length = "1000 epochs"  # another config than the workdir's, too
    results = runs.run(config, folder, dry_run=True)
    assert results[""]["finetune"]["steps"] == 2
    after = contents(folder)
    assert {path: after[path] for path in before} == before
    new = after.keys() - before.keys()
    assert new and all(path.parts[0] == "dry_run" for path in new)


def test_a_workdir_in_use_is_refused(tmp_path):
    """Locks of two opened files exclude each other within one process too."""
    with open(tmp_path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is running in"):
            runs.run(small(), tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


# Interpolation by path


def weights(seed, dtype=np.float32):
    """Parameters or statistics: shared ones, one of another shape, one that only one has, a head."""
    draw = np.random.default_rng(seed)
    shapes = {
        "backbone/conv/kernel": (3, 4),
        "backbone/bn/mean": (4,),
        "backbone/bn/var": (4,),
        "backbone/pos_embed": (5 + seed, 2),
        f"backbone/only_{seed}": (2,),
        "head/kernel": (4, 3),
    }
    return {path: jnp.asarray(draw.normal(size=shape), dtype) for path, shape in shapes.items()}


def test_interpolation_is_by_path():
    first, second = weights(1), weights(2)
    found = tree.interpolate(first, second, 0.2, "backbone/")
    assert found.keys() == first.keys()
    for path in ("backbone/conv/kernel", "backbone/bn/mean", "backbone/bn/var"):
        expected = 0.2 * np.float64(first[path]) + 0.8 * np.float64(second[path])
        np.testing.assert_allclose(found[path], expected, rtol=0, atol=1e-6)  # float32 near 1
        assert found[path].dtype == first[path].dtype
    # Another shape, no partner, outside the prefix: the first's.
    for path in ("backbone/pos_embed", "backbone/only_1", "head/kernel"):
        np.testing.assert_array_equal(found[path], first[path])


def test_the_order_of_the_paths_does_not_matter():
    first, second = weights(1), weights(2)
    backwards = dict(reversed(second.items()))
    found, again = (
        tree.interpolate(first, other, 0.5, "backbone/") for other in (second, backwards)
    )
    for path in first:
        np.testing.assert_array_equal(found[path], again[path])


def test_the_ends_of_an_interpolation_are_the_two_to_the_bit():
    first, second = weights(1), weights(2)
    second["backbone/conv/kernel"] = second["backbone/conv/kernel"].at[0, 0].set(jnp.nan)
    for path, value in tree.interpolate(first, second, 1.0, "backbone/").items():
        np.testing.assert_array_equal(value, first[path])
    found = tree.interpolate(first, second, 0.0, "backbone/")
    for path in ("backbone/conv/kernel", "backbone/bn/mean", "backbone/bn/var"):
        np.testing.assert_array_equal(found[path], second[path])
