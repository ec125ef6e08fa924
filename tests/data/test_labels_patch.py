"""`config.data.labels_patch`: what it changes, what it refuses, and what a workdir makes of it."""

import sys

import numpy as np
import pytest
import tiny
from PIL import Image

from fgvc_jax import cli, phases, workdir
from fgvc_jax import config as configs
from fgvc_jax.data import load, patch
from fgvc_jax.data import manifest as manifests
from fgvc_jax.errors import UserError

HEAD = "file,label,new_label\n"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 5), ("test", 2)):
        for name in ("ant", "bee", "cat, small"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (24, 24, 3), np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture
def data(root):
    made = configs.base().data
    made.root = str(root)
    return made


def written(folder, text, name="patch.csv"):
    path = folder / name
    path.write_text(text)
    return str(path)


def test_relabelled_dropped_and_all_else_as_it_was(data, tmp_path):
    before = load.read(data)
    lines = '# a remark\n"train/ant/1.png","ant","cat, small"\n\n'
    lines += "train/bee/0.png,bee,drop\ntest/ant/0.png,ant,bee\n"
    data.labels_patch = written(tmp_path, HEAD + lines)
    after = load.read(data)
    expected = dict(zip(*before.splits["train"], strict=True))
    del expected["train/bee/0.png"]
    expected["train/ant/1.png"] = 2
    assert dict(zip(*after.splits["train"], strict=True)) == expected
    assert list(after.splits["train"].files) == list(expected)  # in their order
    expected = dict(zip(*before.splits["test"], strict=True)) | {"test/ant/0.png": 1}
    assert dict(zip(*after.splits["test"], strict=True)) == expected
    assert after.classes == before.classes
    where = f"dropped by {data.labels_patch}, line 5"
    assert after.excluded == {"train/bee/0.png": where}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "train/ant/1.png,ant,be\n", r"line 2: there is no class 'be'; did you mean 'bee'"),
        (HEAD + "# x\ntrain/ant/1.png,bee,ant\n", r"line 3: .*has the label 'ant' now, not 'bee'"),
        (
            HEAD + "train/ant/11.png,ant,bee\n",
            r"line 2: .*no image.*did you mean 'train/ant/1.png'",
        ),
        (HEAD + "train/ant/1.png,ant\n", r"line 2: 2 entries"),
        (HEAD + "train/ant/1.png,ant,ant\n", r"line 2: the new label is the old one"),
        (HEAD + "train/ant/1.png,ant,bee\n" * 2, r"line 3: .*stands in line 2 too"),
        ("file,new_label\n", r"line 1: the header must be file,label,new_label"),
        (HEAD + "# train/ant/1.png,ant,bee\n", r"changes no label"),
        ("", r"changes no label"),
    ],
)
def test_a_line_that_does_not_fit_is_named(data, tmp_path, text, message):
    data.labels_patch = written(tmp_path, text)
    with pytest.raises(UserError, match=message) as raised:
        load.read(data)
    assert data.labels_patch in str(raised.value)


def test_a_file_that_is_missing_is_named(data, tmp_path):
    data.labels_patch = str(tmp_path / "none.csv")
    with pytest.raises(UserError, match=r"labels_patch: .*none.csv: No such file"):
        load.read(data)


def test_drop_means_two_things_where_a_class_is_called_so(data, tmp_path):
    manifest = load.read(data)
    manifest = manifest.__class__(**vars(manifest) | {"classes": ("ant", "bee", "drop")})
    changes = patch.read(written(tmp_path, HEAD + "train/ant/1.png,ant,drop\n"))
    with pytest.raises(UserError, match=r"a class is called 'drop'"):
        patch.apply(manifest, changes)


def test_a_run_is_tied_to_the_content_of_the_patch_and_not_to_its_place(data, tmp_path, root):
    config = tiny.pipeline()
    config.data.source, config.data.root = "folder", str(root)
    config.data.val_fraction = 0.2
    config.phases = ("finetune",)
    folder = tmp_path / "run"
    (folder / "finetune").mkdir(parents=True)
    (folder / "finetune" / "model.json").write_text("{}")  # it has begun

    def claimed(text, name="a.csv"):
        config.data.labels_patch = written(tmp_path, HEAD + text, name) if text else ""
        manifest = load.load(config.data)
        workdir.claim(config, manifest, folder, main=True)
        (phase,) = phases.of(config)
        return phases.hash_of(phase, {}, manifests.digest(manifest))

    first = claimed("train/ant/1.png,ant,bee\n")
    assert claimed("# again\ntrain/ant/1.png,ant,bee\n", "b.csv") == first
    for other in ("train/ant/1.png,ant,drop\n", ""):
        with pytest.raises(UserError, match=r"images or labels have changed.*labels_patch"):
            claimed(other)


def test_an_empty_key_leaves_hashes_as_they_were(root):
    config = tiny.pipeline()
    config.phases = ("finetune",)
    (phase,) = phases.of(config)
    now = phases.hash_of(phase, {}, "x")
    with config.unlocked():
        del config.data["labels_patch"]
    (phase,) = phases.of(config)
    assert phases.hash_of(phase, {}, "x") == now


def test_check_tells_the_counts_and_refuses_a_bad_line(root, tmp_path, monkeypatch, capsys):
    def check(text):
        file = written(tmp_path, HEAD + text)
        flag = f"--config.data.labels_patch={file}"
        monkeypatch.setattr(sys, "argv", ["fgvc", "check", str(root), flag])
        return cli.main(), *capsys.readouterr()

    status, out, _ = check("train/ant/1.png,ant,bee\ntrain/ant/2.png,ant,drop\n")
    assert status == 0 and "1 relabelled, 1 dropped" in out
    assert check("train/ant/1.png,ant,wasp\n")[0] == 2
