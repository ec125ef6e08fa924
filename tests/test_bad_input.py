"""Whatever a user gets wrong ends in one clear message, exit status 2, and nothing is lost."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from fgvc_jax import cli, lengths
from fgvc_jax import mesh as meshes
from fgvc_jax.data import load, sources
from fgvc_jax.data.manifest import Manifest, Split
from fgvc_jax.errors import UserError
from fgvc_jax.mining import pairs
from fgvc_jax.train.memory import explained

REPOSITORY = Path(__file__).resolve().parents[1]
MINE, FINER = (f"--config={REPOSITORY}/configs/{name}.py" for name in ("my_images", "folder_finer"))
# `my_images.py` with the smallest net there is, one step long.
TINY = (
    MINE,
    "--config.model.pretrained=",
    "--config.model.backbone=vit_tiny_patch16_224",
    "--config.model.arguments.depth=1",
    "--config.model.arguments.width=16",
    "--config.model.arguments.heads=1",
    "--config.image.size=32",
    "--config.log.tensorboard=false",
    "--config.log.report=false",
    "--config.finetune.length=1 steps",
    "--config.finetune.batch=4",
)


def put(*paths: Path, seed=0) -> None:
    rng = np.random.default_rng(seed)
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(path)


def fill(root: Path, counts: dict[str, int]) -> None:
    put(*[root / name / f"{i}.png" for name, n in counts.items() for i in range(n)])


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    fill(root, {"train/ant": 6, "train/bee": 6, "train/cat": 6, "val/cat": 2, "test/bee": 2})
    return root


@pytest.fixture
def start(monkeypatch, capsys, tmp_path):
    """start(*arguments) -> (exit status, standard output, standard error) of `launch.py`."""

    def run(*arguments: str):
        monkeypatch.setattr(sys, "argv", ["launch.py", *map(str, arguments)])
        status = cli.run("train")
        return (status, *capsys.readouterr())

    return run


@pytest.fixture
def refused(start, tmp_path):
    """refused(*arguments) -> the one message; no phase has left anything afterwards."""

    def run(*arguments: str) -> str:
        workdir = Path(tempfile.mkdtemp(dir=tmp_path), "run")
        status, _, err = start(*arguments, f"--workdir={workdir}")
        assert status == 2
        assert err.startswith("error: ") and err.count("error:") == 1 and "Traceback" not in err
        # Nothing that a corrected command would stumble over.
        left = {p.name for p in workdir.rglob("*")} if workdir.exists() else set()
        beside = {".lock", "config.json", "manifest.json", "started.json"}
        assert left <= beside | {"data.html", "data.json"}
        return err

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# The data


def test_missing_root(refused, tmp_path):
    text = refused(*TINY, f"--config.data.root={tmp_path}/nowhere")
    assert f"{tmp_path}/nowhere does not exist" in text and "ROOT/train/<class>/*.jpg" in text


def test_empty_root(refused):
    text = refused(*TINY)
    assert "--config.data.root=DIR" in text and "train/<class>/" in text


def test_data_variable_not_set(refused, monkeypatch):
    monkeypatch.delenv("FGVC_DATA", raising=False)
    text = refused(f"--config={REPOSITORY}/configs/cub_finer.py")
    assert "FGVC_DATA is not set" in text and "$FGVC_DATA/cub" in text
    assert "train/<class>/" in text and "--config.data.root=DIR" in text
    # In the same message, the other thing that is missing.
    text = refused(
        f"--config={REPOSITORY}/configs/cub_finer.py", "--config.model.pretrained=no.pth"
    )
    assert "FGVC_DATA is not set" in text
    assert "no.pth" in text and "--config.model.pretrained=" in text


def test_nothing_is_downloaded_before_all_that_is_missing_is_known(refused, monkeypatch, tmp_path):
    def fetch(*_, **__):
        raise AssertionError("downloaded")

    monkeypatch.setattr("fgvc_jax.download.fetch", fetch)
    monkeypatch.setenv("FGVC_DATA", str(tmp_path))
    text = refused(f"--config={REPOSITORY}/configs/cub_finer.py")  # its weights would be fetched
    assert f"{tmp_path}/cub" in text


def test_class_folder_without_images(refused, photos):
    (photos / "train" / "dog").mkdir()
    text = refused(*TINY, f"--config.data.root={photos}")
    assert "without images" in text and "dog" in text and f"{photos}/train" in text


def test_one_class_only(refused, tmp_path):
    fill(tmp_path / "photos", {"ant": 4})
    text = refused(*TINY, f"--config.data.root={tmp_path}/photos")
    assert "1 class (ant)" in text and "at least two" in text


@pytest.mark.parametrize("split", ["val", "test"])
def test_class_that_train_lacks(refused, photos, split):
    fill(photos, {f"{split}/bees": 1})
    text = refused(*TINY, f"--config.data.root={photos}")
    assert f"Class 'bees' in {photos}/{split}" in text and "nearest training class is 'bee'" in text


def test_validation_may_lack_classes_and_ids_stay_those_of_train(start, photos, tmp_path):
    status, out, _ = start(*TINY, f"--config.data.root={photos}", f"--workdir={tmp_path}/run")
    assert status == 0 and "val: 2 images of 1 classes (2 of 3 have none)" in out
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["classes"] == ["ant", "bee", "cat"]
    assert manifest["splits"]["val"] == {"val/cat/0.png": 2, "val/cat/1.png": 2}
    assert manifest["splits"]["test"] == {"test/bee/0.png": 1, "test/bee/1.png": 1}
    done = json.loads((tmp_path / "run" / "evaluate" / "DONE.json").read_text())
    majority, _, finetune = done["rows"]
    assert majority["val"]["top1"] == majority["test"]["top1"] == 0  # of equals the first: ant
    scores = np.load(tmp_path / "run" / "evaluate" / "finetune" / "val" / "scores.npy")
    assert finetune["val"]["top1"] == np.mean(scores.argmax(1) == 2)


def break_three(photos: Path) -> None:
    whole = (photos / "train" / "ant" / "0.png").read_bytes()
    (photos / "train" / "ant" / "half.png").write_bytes(whole[: len(whole) // 2])
    (photos / "train" / "bee" / "none.jpg").write_bytes(b"")
    (photos / "train" / "cat" / "text.jpg").write_text("<html>404</html>")


def test_unreadable_images_are_named_before_anything_trains(refused, photos):
    break_three(photos)
    err = refused(*TINY, f"--config.data.root={photos}")
    assert "3 images cannot be read" in err
    assert "train/ant/half.png (train, ant): " in err
    assert "train/bee/none.jpg (train, bee): the file is empty" in err
    assert "train/cat/text.jpg (train, cat): an HTML page" in err


def test_without_the_unreadable_images_the_same_command_goes_on(start, photos, tmp_path):
    break_three(photos)
    command = (*TINY, f"--config.data.root={photos}", f"--workdir={tmp_path}/run")
    command = (*command, "--config.phases=finetune")
    assert start(*command)[0] == 2
    for name in ("ant/half.png", "bee/none.jpg", "cat/text.jpg"):
        (photos / "train" / name).unlink()
    status, _, err = start(*command)
    assert status == 0, err


@pytest.mark.parametrize("label", [-1, 3, 4780])
@pytest.mark.parametrize("source", ["folder", "digits"])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_label_out_of_range_from_any_source(refused, monkeypatch, label, source, split):
    labels = {name: np.arange(3, dtype=np.int32) for name in ("train", "val", "test")}
    labels[split][1] = label
    splits = {k: Split(tuple(f"{k}{i}.png" for i in range(3)), v) for k, v in labels.items()}
    wrong = Manifest("wrong", ("ant", "bee", "cat"), splits, read=None)
    monkeypatch.setattr(sources, source, lambda *_, **__: wrong)
    assert load.sources is sources
    text = refused(*TINY, f"--config.data.source={source}", "--config.data.root=x")
    assert f"split '{split}', file '{split}1.png': label {label} is not in 0..2" in text
    assert "1 of 3 labels" in text


# Devices


def test_batch_that_the_devices_cannot_share():
    mesh = types.SimpleNamespace(size=8)
    one = r"config.finetune.batch = 12 is not .* 8 devices; use, for instance, --config.finetune.batch=16$"
    with pytest.raises(UserError, match=one):
        meshes.check_batches({"config.finetune.batch": 12, "config.embed.batch": 64}, mesh)
    three = r"a = 4, b = 7, c = 9 are not .*--a=8 --b=8 --c=16$"
    with pytest.raises(UserError, match=three):
        meshes.check_batches({"a": 4, "b": 7, "c": 9, "d": 8}, mesh)
    meshes.check_batches({"config.finetune.batch": 16}, mesh)


TWICE = """
import sys
from fgvc_jax import cli
for extra in ("--config.finetune.batch=5", "--config.evaluate.batch=5"):
    sys.argv = ["launch.py", *sys.argv[1:], extra]
    print("status", cli.run("train"))
    sys.argv.pop()
"""


@pytest.fixture(scope="module")
def two_devices(tmp_path_factory):
    """Output and workdir of two commands with a wrong batch, on two devices."""
    root = tmp_path_factory.mktemp("devices")
    fill(root / "photos", {"train/ant": 6, "train/bee": 6, "test/bee": 2})
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    command = [*TINY, f"--config.data.root={root}/photos", f"--workdir={root}/run"]
    done = subprocess.run(
        [sys.executable, "-c", TWICE, *command],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": flags},
        timeout=120,
    )
    return done.stdout, done.stderr, root / "run"


def test_two_devices_refuse_an_odd_batch_of_training(two_devices):
    out, err, _ = two_devices
    assert "device: 2 x cpu" in out and out.count("status 2") == 2
    assert "error: config.finetune.batch = 5 is not divisible by the 2 devices; use" in err
    assert err.count("for instance, --config.finetune.batch=6\n") == 1


def test_two_devices_refuse_an_odd_batch_of_evaluation_before_training(two_devices):
    _, err, workdir = two_devices
    assert "error: config.evaluate.batch = 5 is not divisible by the 2 devices; use" in err
    assert err.count("for instance, --config.evaluate.batch=6\n") == 1
    assert not (workdir / "finetune").exists()


# The run's folder


def test_workdir_of_another_config_is_left_as_it_was(start, photos, tmp_path):
    command = (*TINY, f"--config.data.root={photos}", f"--workdir={tmp_path}/run")
    command = (*command, "--config.phases=finetune")
    assert start(*command)[0] == 0
    before = contents(tmp_path / "run")
    assert "finetune/DONE.json" in before
    status, _, err = start(
        *command, "--config.seed=1", "--config.finetune.optimizer.learning_rate=0.5"
    )
    assert status == 2 and "Traceback" not in err
    assert f"{tmp_path}/run holds the run of another config" in err
    assert (
        "seed: 0 there, 1 now" in err
        and "finetune.optimizer.learning_rate: 0.01 there, 0.5 now" in err
    )
    assert "Nothing there was touched" in err and "--workdir" in err
    assert contents(tmp_path / "run") == before
    # What does not change the results may change: where it runs, how it is watched, how far it goes.
    status, out, _ = start(*command, "--config.log.every=1 steps", "--config.data.feed=streamed")
    assert status == 0 and "all phases are done" in out


def test_a_command_that_failed_before_training_may_be_corrected_in_the_same_workdir(
    start, photos, tmp_path
):
    command = (*TINY, f"--config.data.root={photos}", f"--workdir={tmp_path}/run")
    command = (*command, "--config.phases=finetune")
    status, _, err = start(*command, "--config.image.size=33")
    assert status == 2 and "multiples of 16" in err
    status, _, err = start(*command)
    assert status == 0, err


def test_images_that_changed_since_the_run_began_are_not_mixed_with_it(start, photos, tmp_path):
    command = (*TINY, f"--config.data.root={photos}", f"--workdir={tmp_path}/run")
    command = (*command, "--config.phases=finetune")
    assert start(*command)[0] == 0
    before = contents(tmp_path / "run")
    fill(photos, {"train/aardvark": 2})
    status, _, err = start(*command)
    assert status == 2 and "images" in err and "changed" in err and "--workdir" in err
    assert contents(tmp_path / "run") == before


# Phases


def test_phase_that_names_one_which_does_not_come_before_it(refused):
    text = refused(FINER, "--config.phases=finetune,mine")
    assert "phase 'mine' reads 'embed', which does not come before it" in text
    assert "before it: finetune" in text
    text = refused(FINER, "--config.phases=embed,finetune")
    assert "phase 'embed' reads 'finetune'" in text and "before it: nothing" in text
    text = refused(FINER, "--config.retrain.init.phase=finetun")
    assert "phase 'retrain' reads 'finetun'" in text and "did you mean 'finetune'?" in text
    text = refused(FINER, "--config.phases=finetune,control")  # its length is theirs
    assert "phase 'control' reads 'pairs'" in text
    text = refused(FINER, "--config.phases=finetune,embed,mine,finetune")
    assert "names 'finetune' twice" in text


def test_phases_as_typed(start, photos, tmp_path):
    command = (*TINY, f"--config.data.root={photos}", f"--workdir={tmp_path}/run")
    status, _, err = start(*command, "--config.phases=finetune,evaluate")
    assert status == 0, err
    assert (tmp_path / "run" / "evaluate" / "DONE.json").exists()
    for typed in ("finetune, evaluate", "('finetune', 'evaluate')"):
        status, out, _ = start(*command, f"--config.phases={typed}")
        assert status == 0 and "all phases are done" in out


# Names and values


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([f"--config={REPOSITORY}/configs/my_image.py"], "did you mean 'my_images.py'"),
        (
            [f"--config={REPOSITORY}/configs/cub_finer.py:resnet_50"],
            "no variant 'resnet_50'; did you mean 'resnet50'",
        ),
        ([MINE, "--config.finetune.optimizer.learning_rat=1"], "did you mean 'learning_rate'"),
        ([MINE, "--config.datas.root=x"], "did you mean 'data'"),
        ([MINE, "--work_dir=x"], "work_dir"),
        ([MINE, "x"], "unexpected argument 'x'"),
        ([MINE, "--config.phases=finetun"], "'finetun' is unknown; did you mean 'finetune'"),
        ([MINE, "--config.phases="], "config.phases is empty"),
        (
            [MINE, "--config.finetune.method=baselin"],
            "config.finetune.method = 'baselin' is unknown; did you mean 'baseline'",
        ),
        (
            [MINE, "--config.model.backbone=resnet_50"],
            "config.model.backbone = 'resnet_50' is unknown; did you mean 'resnet50'",
        ),
        ([MINE, "--config.finetune.schedule.name=cosin"], "did you mean 'cosine'"),
        ([MINE, "--config.finetune.optimizer.name=adam"], "did you mean 'adamw'"),
        ([MINE, "--config.finetune.batch=many"], "many"),
        ([MINE, "--config.finetune.batch=0"], "config.finetune.batch = 0; it must be at least 1"),
        (
            [MINE, "--config.finetune.optimizer.learning_rate=-1"],
            "config.finetune.optimizer.learning_rate = -1",
        ),
        ([MINE, "--config.seed=abc"], "abc"),
        ([MINE, "--config.image.resize=100"], "config.image.resize"),
        ([FINER, "--config.mine.top_classes=-1"], "config.mine.top_classes = -1"),
        ([FINER, "--config.mine.similarity=cos"], "did you mean 'cosine'"),
        ([FINER, "--config.retrain.init.alpha=1.5"], "config.retrain.init.alpha = 1.5"),
        ([FINER, "--config.pairs.pairs=embed"], "'embed', which is a phase of kind 'embed'"),
    ],
    ids=lambda value: value[-1].removeprefix("--config.") if isinstance(value, list) else "",
)
def test_unknown_names_and_impossible_values(refused, arguments, expected):
    assert expected in refused(*arguments)


def test_unknown_arguments_of_backbone_and_method(refused, photos):
    command = (*TINY, f"--config.data.root={photos}")
    text = refused(*command, "--config.model.arguments.widht=16")
    assert "config.model.arguments has no 'widht'; did you mean 'width'" in text
    text = refused(*command, "--config.finetune.arguments.label_smothing=0.1")
    assert "config.finetune.arguments has no 'label_smothing'; did you mean 'label_smooth" in text
    text = refused(*command, "--config.finetun.arguments.label_smoothing=0.1")
    assert "'finetun' is unknown; did you mean 'finetune'" in text


@pytest.mark.parametrize("text", ["", "30", "epochs 30", "-3 epochs", "3 epochs 2 steps"])
def test_lengths_that_are_none(refused, text):
    message = refused(MINE, f"--config.finetune.length={text}")
    assert f"config.finetune.length = {text!r} is not a length" in message
    assert "'12 epochs'" in message and "'2 x finetune'" in message


def test_length_with_an_unknown_unit(refused):
    message = refused(MINE, "--config.finetune.length=3 epoch_s")
    assert "'epoch_s'" in message and "does not come before" in message
    with pytest.raises(UserError, match=r"validation\.every = '3 weeks': unknown unit 'weeks'"):
        lengths.steps("3 weeks", where="validation.every", images_per_step=1, images_per_epoch=1)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("image.crop_scale=(1.0,0.5)", "config.image.crop_scale"),
        ("model.param_dtype=float33", "config.model.param_dtype = 'float33' is unknown"),
        ("finetune.arguments.rngs=0", "has no 'rngs'"),
        ("finetune.method=pairs", "method 'pairs' trains on pairs"),
        ("finetune.optimizer.freeze=('backbone/(',)", "is not a regular expression"),
        ("finetune.optimizer.freeze=('backbon/.*',)", "'backbon/.*' matches no"),
        ("finetune.optimizer.rate_scale=(('head',10.),)", "'head' matches no"),
        ("finetune.optimizer.rate_scale=('head',10.)", "config.finetune.optimizer.rate_scale"),
        ("log.every=2", "config.log.every = '2' is not a length"),
        ("log.profile=5:2", "config.log.profile = '5:2' names no steps"),
        ("data.val_fraction=10", "config.data.val_fraction = 10"),
        ("data.test_fraction=1", "config.data.test_fraction = 1"),
        ("data.split_seed=-1", "config.data.split_seed = -1"),
        ("data.canvas=7", "config.data.canvas (or 0) = 7"),
        ("image.mean=(0.5,0.5)", "config.image.mean"),
        ("image.std=(0.,0.,0.)", "config.image.std"),
        ("image.flip=2", "config.image.flip = 2"),
        ("model.dtype=float64", "JAX_ENABLE_X64"),
        ("model.arguments.width=abc", "config.model.arguments.width = 'abc' is no int"),
        ("model.arguments.depth=1.5", "config.model.arguments.depth = 1.5 is no int"),
        ("model.arguments.heads=0", "heads"),
        ("model.arguments.width=0", "width"),
        ("finetune.arguments.label_smoothing=abc", "label_smoothing = 'abc' is no float"),
        ("finetune.arguments.label_smoothing=2", "label_smoothing=2"),
        ("finetune.batch=100000", "config.finetune.batch = 100,000 is more than the 18 training"),
        ("image.size=1", "vit_tiny_patch16_224"),
        ("finetune.mix.mixup=-1", "config.finetune.mix.mixup = -1"),
        ("finetune.mix.switch=2", "config.finetune.mix.switch = 2"),
        ("image.erase_mode=pixels", "did you mean 'pixel'"),
        ("evaluate.rerank_classes=0", "config.evaluate.rerank_classes = 0"),
        ("data.splits=retrievel", "did you mean 'retrieval'"),
        ("finetune.budget=pass", "did you mean 'passes'"),
        ("finetune.init.interpolate=x", "reads 'x'"),
        ("finetune.length=0 epochs", "config.finetune.length = '0 epochs'"),
        ("finetune.schedule.period=0 steps", "config.finetune.schedule.period = '0 steps'"),
        ("finetune.optimizer.freeze=('.*',)", "leaves nothing to train"),
        ("evaluate.neighbours=0", "config.evaluate.neighbours = 0"),
        ("evaluate.compare=('a',)", "config.evaluate.compare"),
        ("phases=evaluate", "nothing that it can score"),
    ],
    ids=lambda text: text.partition("=")[0],
)
def test_impossible_values(start, photos, argument, expected):
    command = (*TINY, f"--config.data.root={photos}", f"--workdir={photos}/../run")
    status, _, err = start(*command, f"--config.{argument}")
    assert status == 2 and err.startswith("error: ") and err.count("error: ") == 1
    assert expected in err


def test_a_plateau_without_validation_is_refused(start, photos, tmp_path):
    shutil.rmtree(photos / "val")
    command = (*TINY, f"--config.data.root={photos}", "--config.data.val_fraction=0")
    command = (*command, "--config.finetune.schedule.name=plateau", f"--workdir={tmp_path}/run")
    status, _, err = start(*command)
    assert status == 2 and "waits for validation" in err and "no val split" in err


def test_more_classes_searched_than_there_are(refused, photos):
    command = (FINER, *TINY[1:], f"--config.data.root={photos}", "--config.mine.top_classes=99")
    text = refused(*command, "--config.pairs.batch=2", "--config.retrain.batch=4")
    assert "config.mine.top_classes = 99, but there are 3 classes; it may be 1 to 3" in text


def test_another_method_drops_the_arguments_that_were_for_the_files(refused, photos):
    """The file gives label_smoothing, which the pair method does not take."""
    text = refused(*TINY, f"--config.data.root={photos}", "--config.finetune.method=pairs")
    assert "method 'pairs' trains on pairs" in text


def test_memory_that_is_full_is_told_with_what_to_change():
    """What XLA really raises where so much cannot be allocated."""
    full = pytest.raises(UserError, match=r"config\.x\.batch = 64 does not fit into memory")
    with full as found, explained("config.x.batch", 64):
        jax.block_until_ready(jax.numpy.zeros(2**50, jax.numpy.uint8))
    assert "accumulate=2" in str(found.value) and "remat" in str(found.value)
    with pytest.raises(ZeroDivisionError), explained("config.x.batch", 64):
        1 / 0  # noqa: B018


def test_workdir_among_the_images(start, tmp_path):
    """Its folders would be taken for classes the next time."""
    root = tmp_path / "photos"
    fill(root, {"ant": 12, "bee": 12})
    for workdir in (root, root / "runs" / "first"):
        command = (*TINY, f"--config.data.root={root}", "--config.phases=finetune")
        status, _, err = start(*command, f"--workdir={workdir}")
        assert status == 2 and str(root) in err and "Use another --workdir" in err
        assert sorted(p.name for p in root.iterdir()) == ["ant", "bee"]


def test_workdir_that_cannot_be_made(start, photos, tmp_path):
    (tmp_path / "file").touch()
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        status, _, err = start(*TINY, f"--config.data.root={photos}", f"--workdir={workdir}")
        assert status == 2 and f"--workdir={workdir}" in err


def test_mining_that_found_no_pairs(start, photos, tmp_path, monkeypatch):
    mine = pairs.mine
    monkeypatch.setattr(pairs, "mine", lambda *a, **k: pairs.Pairs(*(x[:0] for x in mine(*a, **k))))
    command = (FINER, *TINY[1:], "--config.pairs.length=1 steps", "--config.pairs.batch=2")
    command = (
        *command,
        "--config.finetune.schedule.warmup=0 steps",
        f"--config.data.root={photos}",
    )
    command = (*command, "--config.phases=finetune,embed,mine,pairs", f"--workdir={tmp_path}/run")
    status, _, err = start(*command)
    assert status == 2 and "'pairs' has nothing to train on: 'mine' found no pairs" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--workdir=gs://bucket/runs/x"], "a bucket has neither locks nor renames"),
        (
            ["--config.data.root=gs://bucket/birds", "--workdir=x"],
            "gs://bucket/birds: .*[Mm]ount it",
        ),
        (["--config.checkpoint_every=soon", "--workdir=x"], "'soon' is not a time"),
        (["--process=1", "--workdir=x"], "go with --distributed"),
        (
            ["--coordinator=a:1", "--processes=2", "--workdir=x"],
            "--process .* is ''; it must be a number",
        ),
        (["--coordinator=a:1", "--processes=2", "--process=2", "--workdir=x"], "from 0 to 1"),
        (["--coordinator=a:1", "--local_devices=a", "--workdir=x"], "give numbers from 0"),
    ],
)
def test_places_and_processes_that_cannot_be_are_refused(
    start, monkeypatch, tmp_path, arguments, expected
):
    monkeypatch.chdir(tmp_path)
    status, _, err = start(*TINY, *arguments)
    assert status == 2 and re.search(expected, err), err
    assert not list(tmp_path.iterdir())
