"""Embeddings written on the way: what they hold, that nothing depends on them, and what a resumed run has."""

import os

import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from fgvc_jax.errors import UserError
from fgvc_jax.model import predictor
from fgvc_jax.phases import complete
from fgvc_jax.run import run
from fgvc_jax.tracking.progress import Progress
from fgvc_jax.train import tree
from fgvc_jax.train.checkpoint import Checkpoints
from fgvc_jax.train.predict import predict_all

AT = ("0 epochs", "4 steps", "5 steps", "8 steps", "99 steps")


def config(embeddings=AT, **keys) -> ConfigDict:
    """Eight steps with a checkpoint after 4 and 8; 99 lies beyond the end."""
    made = tiny.pipeline()
    with made.unlocked():
        made.finetune.length = "8 steps"
        made.finetune.validation.embeddings = embeddings
        made.finetune.update_from_flattened_dict(keys)
        made.phases = ("finetune",)
    return complete(made)


def written(workdir) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (workdir / "finetune/embeddings").iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(config(), folder)[""]["finetune"]


def test_every_split_is_embedded_where_it_was_asked_for(whole):
    folder, _ = whole
    assert sorted(written(folder)) == [f"step_{n:06d}.npz" for n in (0, 4, 5, 8)]
    _, data, models = tiny.parts(config(), folder)
    for step in (0, 4, 8):
        arrays = np.load(folder / f"finetune/embeddings/step_{step:06d}.npz")
        names = {f"{split}_{what}" for split in data.sizes for what in ("embedding", "label")}
        assert set(arrays) == names and len(data.sizes) == 3
        for split, count in data.sizes.items():
            assert arrays[f"{split}_embedding"].shape == (count, 32)
            np.testing.assert_array_equal(arrays[f"{split}_label"], data.labels(split))
    # Before training, after the checkpoint at 4 and at the end: what the weights of that moment give.
    _, module, last = models.trained("finetune", "last")
    start = tree.weights(models.starting_model(models.specify(models.config.finetune)))
    predict = predictor(tree.split(module)[0], data.mesh, models.view, np.dtype("float32"))
    for step, weights in ((0, start), (8, last)):
        expected = predict_all(predict, weights, data.whole("test", 16))["embedding"]
        found = np.load(folder / f"finetune/embeddings/step_{step:06d}.npz")["test_embedding"]
        # float32, by another program
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_nothing_depends_on_them(whole, tmp_path):
    folder, result = whole
    other = run(config(()), tmp_path)[""]["finetune"]
    assert not (tmp_path / "finetune/embeddings").exists()
    assert other["validation"] == result["validation"]
    for path, value in latest(folder).items():
        np.testing.assert_array_equal(value, latest(tmp_path)[path], err_msg=path)


def latest(folder):
    checkpoints = Checkpoints(folder / "finetune" / "checkpoints")
    found = checkpoints.restore_weights(checkpoints.latest(), None)
    checkpoints.close()
    return found["params"]


@pytest.mark.parametrize(
    "step", [pytest.param(2, marks=pytest.mark.slow), 5, pytest.param(6, marks=pytest.mark.slow)]
)
def test_a_resumed_run_has_the_same_files(whole, step, tmp_path, monkeypatch):
    """Killed before the first checkpoint, in the step that embeds, and after it, where it is done again."""
    update = Progress.update

    def die(self, steps=1, text=""):
        update(self, steps, text)
        if steps and self.step == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "update", die)
        with pytest.raises(KeyboardInterrupt):
            run(config(), tmp_path)
    before = written(tmp_path)
    assert len(before) == {2: 1, 5: 2, 6: 3}[step]
    times = {name: os.stat(tmp_path / "finetune/embeddings" / name).st_mtime_ns for name in before}
    run(config(), tmp_path)
    assert written(tmp_path) == written(whole[0])
    # What lies before the checkpoint that it goes on from is not written again.
    if step > 4:
        for name in ("step_000000.npz", "step_000004.npz"):
            path = tmp_path / "finetune/embeddings" / name
            assert os.stat(path).st_mtime_ns == times[name]


def test_lengths_beyond_the_end_are_told(tmp_path, caplog):
    run(config(("99 steps",)), tmp_path)
    assert "no embeddings after 99 steps: the phase has 8 steps" in caplog.text
    assert not (tmp_path / "finetune/embeddings").exists()


NO_EMBEDDING = """
from fgvc_jax.methods.baseline import Method as Base


class Method(Base):
    def predict(self, images, edit=None):
        return {"scores": super().predict(images, edit)["scores"]}
"""


def test_what_cannot_be_embedded_is_told_before_training(tmp_path):
    (tmp_path / "own.py").write_text(NO_EMBEDDING)
    made = config(("0 epochs",), method=str(tmp_path / "own.py"))
    with pytest.raises(UserError, match=r"finetune\.validation\.embeddings.*gives no embedding"):
        run(made, tmp_path / "run")
    with pytest.raises(UserError, match=r"validation\.embeddings = '3 eons'.*unknown unit 'eons'"):
        run(config(("3 eons",)), tmp_path / "run")
    with pytest.raises(UserError, match=r"validation\.embeddings = 'often 1' is not a length"):
        run(config(("often 1",)), tmp_path / "run")
