"""A run that starts from a weights file in torch's layout."""

import numpy as np
import pytest
import tiny
from safetensors.numpy import save_file

from fgvc_jax.run import run
from fgvc_jax.train import tree

NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """(file, our paths -> arrays) of the tiny ResNet with random weights and statistics."""
    config = tiny.pipeline()
    folder = tmp_path_factory.mktemp("weights")
    _, _, models = tiny.parts(config, folder)
    module = models.specify(config.finetune).build(99)
    _, params, stats = tree.split(module.backbone)
    rng = np.random.default_rng(0)
    stats = {path: x + rng.uniform(-0.1, 0.1, x.shape).astype(x.dtype) for path, x in stats.items()}
    ours = {path: np.asarray(x) for path, x in (params | stats).items()}
    theirs = {}
    for path, array in ours.items():
        *layers, last = (
            path.replace("downsample/conv", "downsample/0")
            .replace("downsample/bn", "downsample/1")
            .split("/")
        )
        array = array.transpose(3, 2, 0, 1) if last == "kernel" else array
        theirs[".".join([*layers, NAMES.get(last, last)])] = np.ascontiguousarray(array)
    save_file(theirs, folder / "model.safetensors")
    return folder / "model.safetensors", ours


def test_phases_start_from_the_file_and_the_knn_row_still_can(
    weights, tmp_path, caplog, monkeypatch
):
    file, ours = weights
    config = tiny.pipeline()
    config.model.pretrained = str(file)
    config.phases = ("finetune", "evaluate")
    config.finetune.length = "2 steps"
    config.finetune.optimizer.update(learning_rate=0.0, freeze=("backbone/.*",))
    results = run(config, tmp_path)[""]
    assert str(file) in caplog.text
    # kNN on the starting features, after training has given its buffers away
    assert results["evaluate"]["rows"][1]["test"]["top1"] > 0.2

    # A finished run reads no array of the file again.
    monkeypatch.setattr("fgvc_jax.context.models.load_pretrained", None)
    assert run(config, tmp_path)[""]["finetune"] == results["finetune"]
    monkeypatch.undo()

    _, _, models = tiny.parts(config, tmp_path)
    for weights in (
        tree.weights(models.starting_model(models.specify(config.finetune))),
        models.trained("finetune", "best")[2],
    ):
        found = {path: x for flat in weights.values() for path, x in flat.items()}
        for path, value in ours.items():
            np.testing.assert_array_equal(found[f"backbone/{path}"], value, err_msg=path)
