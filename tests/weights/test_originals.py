"""A run that starts from a checkpoint of a method's authors, here of MMAL-Net, in a small net."""

import numpy as np
import pytest
import tiny

from fgvc_jax.errors import UserError
from fgvc_jax.phases import complete
from fgvc_jax.train import tree
from fgvc_jax.weights import torch_axes
from fgvc_jax.weights.originals import mmal

torch = pytest.importorskip("torch", reason="it writes the checkpoint")


def config(path):
    made = tiny.pipeline(depths=(1, 1, 1, 2))
    with made.unlocked():
        made.finetune.method, made.finetune.arguments = "mmal", {"windows": "1 of 1x1"}
        made.image.size = made.image.resize = 32
        made.phases, made.init.file = ("finetune",), str(path)
    return complete(made)


@pytest.fixture(scope="module")
def random(tmp_path_factory):
    """{path: array} of a model for ten classes, with random values in the place of all."""
    _, _, models = tiny.parts(config(""), tmp_path_factory.mktemp("random"))
    arrays = tree.weights(models.specify(models.config.finetune).build())
    rng = np.random.default_rng(0)
    every = arrays["params"] | arrays["batch_stats"]
    return {path: rng.normal(size=x.shape).astype(np.float32) for path, x in every.items()}


def write(path, arrays, changes=()):
    """In the authors' names and torch's axes, from a DataParallel model, among other things."""
    state = {mmal.key(p): torch.tensor(torch_axes(p, x).copy()) for p, x in arrays.items()}
    state |= {"pretrained_model.fc.weight": torch.zeros(3, 2)} | dict(changes)
    state = {f"module.{key}": x for key, x in state.items() if x is not None}
    torch.save({"epoch": 3, "model_state_dict": state, "learning_rate": 0.1}, path)
    return path


def start(path, folder):
    _, _, models = tiny.parts(config(path), folder)
    specification = models.specify(models.config.finetune)
    found = tree.weights(models.starting_model(specification))
    fresh = tree.weights(specification.build(models.config.seed))
    return [x["params"] | x["batch_stats"] for x in (found, fresh)]


def test_every_array_is_where_it_belongs(random, tmp_path):
    found, _ = start(write(tmp_path / "mmal.pth", random), tmp_path)
    assert found.keys() == random.keys()
    for path, value in found.items():
        np.testing.assert_array_equal(value, random[path])


def test_with_another_number_of_classes_the_head_is_fresh(random, tmp_path, caplog):
    other = random | {"head/kernel": np.ones((32, 7), np.float32), "head/bias": np.ones(7)}
    found, fresh = start(write(tmp_path / "mmal.pth", other), tmp_path)
    for path, value in found.items():
        expected = fresh[path] if path.startswith("head/") else random[path]
        np.testing.assert_array_equal(value, expected)
    assert "fresh, for other classes: head/bias, head/kernel" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rawcls_net.bias": None}, r"1 arrays are missing \(the first: 'rawcls_net.bias'"),
        ({"neck.weight": torch.ones(2)}, r"1 are unexpected \(as 'neck.weight'\)"),
        ({"pretrained_model.bn1.weight": torch.ones(5)}, r"bn1.weight' is \(5,\).*is \(4,\)"),
        ({"pretrained_model.bn1.weight": torch.full((4,), float("nan"))}, "not finite"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(random, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        start(write(tmp_path / "mmal.pth", random, changes), tmp_path)
