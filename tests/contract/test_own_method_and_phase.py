"""A method and a phase, each defined in one file outside the package, go through everything a run has."""

import json
import logging
import os
import re
import shutil
import signal
import tempfile
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny
from ml_collections import ConfigDict

import fgvc_jax
from fgvc_jax import checks, methods, phases, plan
from fgvc_jax.data.sources import digits
from fgvc_jax.errors import UserError
from fgvc_jax.metrics.retrieval import retrieval
from fgvc_jax.phases import complete
from fgvc_jax.run import run
from fgvc_jax.tracking.progress import Progress
from fgvc_jax.train.checkpoint import Checkpoints
from fgvc_jax.train.stop import Interrupted

HERE = Path(__file__).parent
PHASE = str(HERE / "own_phase.py")
DOCUMENT = HERE.parents[1] / "docs" / "add_a_method.md"


def write_method() -> str:
    """The example of the documentation as a file; its path."""
    code = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)[1]
    assert len(code.splitlines()) < 60
    path = Path(tempfile.mkdtemp(dir=os.environ["FGVC_TESTS"])) / "zoom.py"
    path.write_text(code)
    return str(path)


METHOD = write_method()


def config(**arguments) -> ConfigDict:
    """Six steps of the method, an embedding, the phase, an evaluation."""
    made = tiny.pipeline("vit_tiny_patch16_224", depth=1, width=16, heads=1)
    made.image.size = made.image.resize = 32
    with made.unlocked():
        made.finetune.method, made.finetune.arguments = METHOD, arguments
        made.finetune.length = "6 steps"
        made.finetune.validation.every = "2 steps"
        made.finetune.accumulate = 2
        made.means = phases.section(PHASE, power=2)
        made.phases = ("finetune", "embed", "means", "evaluate")
    return complete(made)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(workdir, results, log) of an undisturbed run."""
    said, handler = [], logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("fgvc_jax").addHandler(handler)
    folder = tmp_path_factory.mktemp("whole")
    results = run(config(), folder)
    logging.getLogger("fgvc_jax").removeHandler(handler)
    return folder, results[""], said


def test_it_trains_is_embedded_and_evaluated(whole):
    folder, results, _ = whole
    assert list(results) == ["finetune", "embed", "means", "evaluate"]
    assert results["finetune"]["steps"] == 6 and results["means"]["classes"] == 10
    lines = [json.loads(x) for x in (folder / "finetune/metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    assert all({"loss_1", "loss_2", "accuracy_1", "epoch_2", "strength_2"} <= set(x) for x in train)
    embedding = np.load(folder / "embed" / "train_embedding.npy")
    means = np.load(folder / "means" / "means.npy")
    assert means.shape == (10, embedding.shape[1])
    labels = {int(row["name"] == "finetune") for row in results["evaluate"]["rows"]}
    assert labels == {0, 1}


def test_what_a_run_costs_counts_the_methods_own_passes(whole, tmp_path):
    """1 + 1/4 of a pass an example at zoom 2, forward and backward: 3.75 forward passes."""
    made = config()
    _, data, models = tiny.parts(made, tmp_path)
    costs = plan.costs(phases.of(made), models, data.sizes, {})
    assert costs["finetune"].images == 6 * 16 and costs["finetune"].steps == 6
    assert costs["finetune"].passes == 6 * 16 * 3 * 1.25 + costs["finetune"].forward
    assert costs["means"].forward == data.sizes["train"]
    assert whole[1]["finetune"]["passes"] == 6 * 16 * 1.25
    text = "\n".join(whole[2])
    assert "means" in text and "6 steps" in text


def test_its_model_folder_is_loaded_in_use(whole, tmp_path):
    folder, _, _ = whole
    manifest = digits()
    files = json.loads((folder / "manifest.json").read_text())["splits"]["test"]
    images = [manifest.read(file) for file in list(files)[:20]]
    shutil.copytree(folder / "model", tmp_path / "model")  # which holds the method's file too
    classifier = fgvc_jax.load(tmp_path / "model")
    found = classifier.predict(images)
    scores = np.load(folder / "evaluate" / "finetune" / "test" / "scores.npy")[:20]
    scores = scores.astype(np.float64) / classifier.temperature
    expected = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)  # float32, other batch sizes


def arrays(folder):
    checkpoints = Checkpoints(folder / "finetune" / "checkpoints")
    restore = ocp.args.StandardRestore()
    items = ocp.args.Composite(weights=restore, training=restore)
    found = dict(checkpoints.manager.restore(checkpoints.latest(), args=items))
    checkpoints.close()
    import jax

    return {jax.tree_util.keystr(k): v for k, v in jax.tree.leaves_with_path(found)}


def test_it_resumes_bit_for_bit(whole, tmp_path, monkeypatch):
    update, made = Progress.update, config()

    def interrupt(self, steps=1, text=""):
        update(self, steps, text)
        if steps and self.phase == "finetune" and self.step == 3:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "update", interrupt)
        with pytest.raises(Interrupted):
            run(made, tmp_path)
    assert not (tmp_path / "finetune" / "DONE.json").exists()
    run(made, tmp_path)
    one, other = arrays(whole[0]), arrays(tmp_path)
    assert one.keys() == other.keys() and len(one) > 20
    for path, value in one.items():
        np.testing.assert_array_equal(value, other[path], err_msg=path)
    for file in (
        "embed/train_embedding.npy",
        "means/means.npy",
        "evaluate/finetune/test/scores.npy",
    ):
        np.testing.assert_array_equal(np.load(whole[0] / file), np.load(tmp_path / file))


def test_an_impossible_size_is_told_before_anything_trains(tmp_path):
    made = config()
    made.image.size = made.image.resize = 33
    with pytest.raises(UserError, match="multiples of 16"):
        run(made, tmp_path)
    assert not list(tmp_path.glob("*/model.json"))


def test_arguments_are_the_methods_own():
    assert methods.arguments(METHOD) == {"zoom": 2.0, "parts": 1}
    assert config(zoom=4).finetune.arguments.zoom == 4.0
    with pytest.raises(
        UserError, match=r"config\.finetune\.arguments has no 'zom'; did you mean 'zoom'"
    ):
        config(zom=4)
    made = config()
    made.means.power = 0
    with pytest.raises(UserError, match=r"config\.means\.power = 0"):
        checks.check(made)


def broken(tmp_path, body: str) -> str:
    path = tmp_path / "broken.py"
    path.write_text(
        "import jax.numpy as jnp\n"
        "from fgvc_jax.methods.baseline import Method as Base\n"
        f"class Method(Base):\n    def update(self, batch, carry, context):\n        {body}\n"
    )
    return str(path)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return jnp.zeros(4), carry, {}", r"the loss has shape \(4,\); it must be a scalar"),
        ("return jnp.zeros(()), {'x': jnp.zeros(3)}, {}", r"carry\['x'\] has shape \(3,\)"),
        ("return jnp.zeros(()), carry, {'m': jnp.zeros(2)}", "metric 'm' has shape"),
        ("return self.head(batch['image']), carry, {}", "cannot train vit_tiny_patch16_224"),
    ],
)
def test_a_method_that_breaks_the_contract_is_told_where(tmp_path, body, message):
    made = config()
    with made.unlocked():
        made.finetune.method, made.finetune.arguments = broken(tmp_path, body), {}
        made.phases = ("finetune",)
    with pytest.raises(UserError, match=message):
        run(made, tmp_path / "run")
    assert not list((tmp_path / "run").glob("*/model.json"))


def test_a_file_that_is_none_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no file .*nowhere\.py"):
        methods.get(str(tmp_path / "nowhere.py"))
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(UserError, match=r"defines no class Method"):
        methods.get(str(tmp_path / "empty.py"))
    (tmp_path / "wrong.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(UserError, match=r"cannot be imported: ModuleNotFoundError"):
        phases.get(str(tmp_path / "wrong.py"))


RETRIEVE = """
import jax.numpy as jnp
from fgvc_jax.methods.baseline import Method as Base


class Method(Base):
    evaluator = "retrieve"

    def predict(self, images, edit=None):
        return {"embedding": self.backbone(images, edit=edit).pooled}
"""


def test_a_method_that_retrieves_is_judged_on_classes_that_it_has_not_seen(tmp_path, caplog):
    """The row is the metric of the saved embeddings (tests/metrics has it against plain loops)."""
    (tmp_path / "own.py").write_text(RETRIEVE)
    made = config()
    with made.unlocked():
        made.finetune.method, made.finetune.arguments = str(tmp_path / "own.py"), {}
        made.data.splits = "retrieval"
        made.data.val_fraction, made.data.test_fraction = 0.4, 0.0
        made.phases = ("finetune", "evaluate")
    results = run(complete(made), tmp_path / "run")[""]
    splits = json.loads((tmp_path / "run" / "manifest.json").read_text())["splits"]
    classes = {name: set(files.values()) for name, files in splits.items()}
    assert not classes["train"] & classes["test"] and not classes["train"] & classes["val"]
    (row,) = results["evaluate"]["retrieval"]
    labels = np.array(list(splits["test"].values()))
    embedding = np.load(tmp_path / "run/evaluate/finetune/test/embedding.npy")
    assert embedding.shape[0] == len(labels)
    assert row["test"].items() >= retrieval(embedding, labels).items()
    assert row["test"]["recall@1"] > 0.3  # by chance it is a fifth
    assert any(line.startswith("  finetune, test   ") for line in caplog.messages)
    assert results["finetune"]["validation"]["best"]["selection"] == pytest.approx(
        results["finetune"]["validation"]["best"]["map@r"]
    )
