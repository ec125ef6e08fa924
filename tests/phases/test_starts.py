"""A phase that starts from a phase of another method takes the net, and of the head what fits."""

import numpy as np
import pytest
import tiny

from fgvc_jax import files, phases, rerun, workdir
from fgvc_jax.config import as_json
from fgvc_jax.errors import UserError
from fgvc_jax.phases import complete
from fgvc_jax.run import run
from fgvc_jax.train.checkpoint import Checkpoints


def weights(folder):
    checkpoints = Checkpoints(folder / "checkpoints")
    found = checkpoints.restore_weights(checkpoints.latest(), None)["params"]
    checkpoints.close()
    return found


def config(method, **arguments):
    made = tiny.pipeline()
    with made.unlocked():
        made.finetune.length = "2 steps"
        made.more = phases.section("train", method=method, arguments=arguments, length="1 steps")
        made.more.batch, made.more.init.phase = 8, "finetune"
        made.more.optimizer.learning_rate = 0.0
        if method == "triplet":
            made.more.sampler.name, made.more.sampler.images_per_class = "classes_by_images", 2
    made.phases = ("finetune", "more")
    return complete(made)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        pytest.param("bilinear", {"reduction": 8}, marks=pytest.mark.slow),
        ("triplet", {"embedding": 10}),
        pytest.param("baseline", {}, marks=pytest.mark.slow),
    ],
)
def test_the_net_is_taken_and_a_head_where_it_is_one(method, arguments, tmp_path):
    """A bilinear head has another shape; an embedding of ten numbers the shape of a head of ten classes."""
    run(config(method, **arguments), tmp_path)
    before, after = weights(tmp_path / "finetune"), weights(tmp_path / "more")
    for path, value in before.items():
        if path.startswith("backbone/") or method == "baseline":
            np.testing.assert_array_equal(value, after[path])
    if method == "triplet":
        assert before["head/kernel"].shape == after["head/kernel"].shape
        assert not np.array_equal(before["head/kernel"], after["head/kernel"])


def test_statistics_outside_the_backbone_are_not_estimated(tmp_path):
    made = config("triplet", batch_norm=True)
    made.more.init.batch_norm = "estimate"
    with pytest.raises(UserError, match=r"is for the statistics of the backbone.*such as bn/mean"):
        run(made, tmp_path)


def test_class_means_are_no_embedding(tmp_path):
    made = config("triplet", embedding=32)  # as wide as the backbone
    made.more.init.head = "means"
    with pytest.raises(UserError, match=r"'means'.*'triplet' has none"):
        run(made, tmp_path)


def test_a_dry_run_of_many_classes_by_images(tmp_path):
    made = config("triplet")
    made.more.batch, made.more.sampler.images_per_class = (
        40,
        4,
    )  # ten classes; a dry run keeps eight
    run(made, tmp_path, dry_run=True)
    assert rerun.shrink(made).more.batch == 32


def test_a_workdir_from_before_a_backbone_had_an_argument_goes_on(tmp_path):
    made = tiny.pipeline("vit_tiny_patch16_224", depth=1, width=16, heads=1)
    made.image.size = made.image.resize = 32
    made.phases = ("finetune",)
    _, data, _ = tiny.parts(made, tmp_path)
    old = made.copy_and_resolve_references()
    with old.unlocked():
        del old.model.arguments["stochastic_depth"]
    files.write_text(tmp_path / "config.json", as_json(old))
    (tmp_path / "finetune").mkdir()
    (tmp_path / "finetune" / "model.json").write_text("{}")  # it has begun
    workdir.claim(made, data.manifest, tmp_path, True)
    made.model.arguments.stochastic_depth = 0.1
    with pytest.raises(UserError, match=r"stochastic_depth: 0.0 there, 0.1 now"):
        workdir.claim(made, data.manifest, tmp_path, True)
