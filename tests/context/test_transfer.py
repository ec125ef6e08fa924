"""A run that starts from another run's model: what is taken, what is fresh, what is refused."""

import numpy as np
import pytest
import tiny
from PIL import Image

from fgvc_jax import phases, recipes
from fgvc_jax.backbones import vit
from fgvc_jax.config import base
from fgvc_jax.context import transfer
from fgvc_jax.errors import UserError
from fgvc_jax.phases import complete
from fgvc_jax.run import run
from fgvc_jax.train import tree
from fgvc_jax.train.checkpoint import Checkpoints

rng = np.random.default_rng(0)


def folder(root, classes):
    """Class folders of noise, six images each."""
    for name in classes:
        for number in range(6):
            path = root / "train" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(path)
    return root


def config(root, **model):
    made = base()
    made.data.root, made.data.val_fraction = str(root), 0.2
    made.image.size = made.image.resize = 16
    made.model.backbone = "resnet18"
    made.model.arguments = {"width": 4, "depths": (1, 1, 1, 1)} | model
    made.log.tensorboard = made.log.report = False
    settings = {"length": "3 steps", "batch": 4, "validation": {"every": "3 steps"}}
    made.finetune = phases.section("train", **recipes.merge(recipes.PLAIN, settings))
    made.finetune.schedule.warmup = "0 steps"
    made.phases = ("finetune",)
    return made


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """(workdir of a run on the classes a, b, c, d; its images' mean)."""
    root = folder(tmp_path_factory.mktemp("first_images"), "abcd")
    made = config(root)
    made.image.mean = (0.4, 0.5, 0.6)
    workdir = tmp_path_factory.mktemp("first")
    run(made, workdir)
    return workdir


def best(workdir):
    checkpoints = Checkpoints(workdir / "finetune" / "checkpoints")
    found = checkpoints.restore_weights(checkpoints.best(), None)
    checkpoints.close()
    return found


def start(made, workdir):
    """(starting weights, those of a fresh model, the view) of a config's fine-tune."""
    made = complete(made)
    _, data, models = tiny.parts(made, workdir)
    specification = models.specify(made.finetune)
    assert data.manifest.classes == specification.classes
    module = models.starting_model(specification)
    return tree.weights(module), tree.weights(specification.build(made.seed)), models.view


def test_the_backbone_and_the_classes_of_the_same_name_are_taken(first, tmp_path, caplog):
    made = config(folder(tmp_path / "images", "xcad"))
    made.init.run = str(first)
    ours, fresh, view = start(made, tmp_path)
    theirs = best(first)
    for kind in ours:
        for path, value in ours[kind].items():
            if not path.startswith("head/"):
                np.testing.assert_array_equal(value, theirs[kind][path])
    # Our classes are a, c, d, x; theirs a, b, c, d.
    for name in ("kernel", "bias"):
        got, old = (w["params"][f"head/{name}"] for w in (ours, theirs))
        np.testing.assert_array_equal(got[..., :3], old[..., [0, 2, 3]])
        np.testing.assert_array_equal(got[..., 3], fresh["params"][f"head/{name}"][..., 3])
    assert view.mean == (0.4, 0.5, 0.6)
    assert "of 4 classes 3 are known by name" in caplog.text


def test_with_the_same_classes_all_is_taken_and_with_no_common_one_the_head_is_fresh(
    first, tmp_path
):
    same = config(folder(tmp_path / "same", "abcd"))
    same.init.run = str(first / "finetune")
    ours, _, _ = start(same, tmp_path)
    theirs = best(first)
    for path, value in ours["params"].items():
        np.testing.assert_array_equal(value, theirs["params"][path])
    other = config(folder(tmp_path / "other", "vwxyz"))
    other.init.run = str(first)
    ours, fresh, _ = start(other, tmp_path)
    np.testing.assert_array_equal(ours["params"]["head/kernel"], fresh["params"]["head/kernel"])


def test_it_trains_from_there_and_other_beginnings_make_other_phases(first, tmp_path):
    made = config(folder(tmp_path / "images", "cdef"))
    made.init.run = str(first)
    made.model.pretrained = "torchvision/resnet50.IMAGENET1K_V1"  # the run brings all that it would
    made.finetune.length, made.finetune.optimizer.learning_rate = "1 steps", 0.0
    result = run(made, tmp_path / "run")[""]
    assert result["finetune"]["steps"] == 1
    ours, theirs = best(tmp_path / "run"), best(first)
    path = "backbone/layer4/0/conv1/kernel"
    np.testing.assert_array_equal(ours["params"][path], theirs["params"][path])
    made.init.run = ""
    made.model.pretrained = ""
    hashes = [phases.hash_of(phases.of(c)[0], {}) for c in map(complete, (made, made))]
    assert hashes[0] == hashes[1] != result["finetune"]["hash"]


def test_what_cannot_be_a_beginning_is_refused(first, tmp_path):
    made = config(folder(tmp_path / "images", "ab"))
    made.init.run = str(first)
    made.model.backbone, made.model.arguments = "vit_tiny_patch16_224", {"depth": 1}
    with pytest.raises(UserError, match=r"holds a resnet18.*Set config.model.backbone=resnet18"):
        run(made, tmp_path / "a")
    made = config(tmp_path / "images", width=8)
    made.init.run = str(first)
    with pytest.raises(UserError, match=r"init.run.*\(4,\) there and \(8,\) here"):
        run(made, tmp_path / "b")
    made = config(tmp_path / "images")
    made.init.run = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no finished classifier in .*nowhere"):
        run(made, tmp_path / "c")
    made.init.file = "x.pth"
    with pytest.raises(UserError, match="two beginnings"):
        run(made, tmp_path / "d")
    made.init.run = ""
    with pytest.raises(UserError, match=r"config.init.file: .*x.pth"):
        run(made, tmp_path / "e")
    np.savez(tmp_path / "x.npz", a=np.zeros(3, np.float32))
    made.init.file = str(tmp_path / "x.npz")
    with pytest.raises(UserError, match=r"init.file is for the methods .*this one is 'baseline'"):
        run(made, tmp_path / "e")


def test_classes_are_found_wherever_a_method_has_them():
    axes = transfer.class_axes(
        transfer.Specification(
            backbone="resnet18",
            backbone_arguments={"width": 4, "depths": (1, 1, 1, 1)},
            method="baseline",
            classes=tuple("abc"),
            view=tiny.VIEW,
            canvas=32,
        )
    )
    assert axes == {"head/kernel": 1, "head/bias": 0}


def test_a_head_of_another_method_is_not_taken_even_in_the_same_shape(first, tmp_path):
    made = config(folder(tmp_path / "images", "abcd"))
    with made.unlocked():
        made.finetune.method, made.finetune.arguments = "triplet", {"embedding": 4}
    made.init.run = str(first)
    ours, fresh, _ = start(made, tmp_path)
    theirs = best(first)["params"]["head/kernel"]
    assert theirs.shape == ours["params"]["head/kernel"].shape
    np.testing.assert_array_equal(ours["params"]["head/kernel"], fresh["params"]["head/kernel"])


def test_a_vit_may_see_images_of_another_size(tmp_path):
    root = folder(tmp_path / "images", "ab")

    def at(size):
        made = config(root)
        made.model.backbone = "vit_tiny_patch16_224"
        made.model.arguments = {"depth": 1, "width": 16, "heads": 1}
        made.image.size = made.image.resize = size
        return made

    run(at(32), tmp_path / "first")
    made = at(48)
    made.init.run = str(tmp_path / "first")
    ours, _, _ = start(made, tmp_path)
    path = "backbone/pos_embed"
    expected = vit.resize_positions(best(tmp_path / "first")["params"][path], 3, 3)
    np.testing.assert_allclose(ours["params"][path], expected, rtol=0, atol=1e-6)  # float32


def test_images_that_the_earlier_run_has_trained_on_test_nothing(tmp_path, caplog):
    """Class folders alone, split in two ways."""
    for name in "ab":
        for number in range(20):
            path = tmp_path / "images" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(path)
    made = config(tmp_path / "images")
    made.data.test_fraction = 0.3
    run(made, tmp_path / "first")
    made.init.run = str(tmp_path / "first")
    run(made, tmp_path / "same")
    made.data.split_seed = 1
    with pytest.raises(UserError, match=r"was trained on \d+ of the \d+ images of this run's test"):
        run(made, tmp_path / "other")
