"""The train step: its draws, its freezing, and a method with two updates and a carried crop."""

import functools
import json
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny
from flax import nnx

from fgvc_jax import mesh as meshes
from fgvc_jax import methods
from fgvc_jax.backbones.features import Features
from fgvc_jax.data.cache import Canvases
from fgvc_jax.data.feed import Feed, gather
from fgvc_jax.images.batch import plain_views, random_views
from fgvc_jax.images.mix import mix
from fgvc_jax.images.view import View
from fgvc_jax.layers.norm import BatchNorm
from fgvc_jax.methods import baseline
from fgvc_jax.ops.crop import crop_resize
from fgvc_jax.ops.losses import cross_entropy
from fgvc_jax.phases import train
from fgvc_jax.tracking.progress import Progress
from fgvc_jax.train import optim, tree
from fgvc_jax.train import step as steps
from fgvc_jax.train.checkpoint import Checkpoints
from fgvc_jax.train.microbatch import accumulate
from fgvc_jax.train.sam import sam
from fgvc_jax.train.stop import Interrupted

VIEW = View(size=4, resize=4, mean=(0.0,) * 3, std=(1.0,) * 3, crop_scale=(0.2, 1.0))
BATCH, SEED = 6, 7
STEPS_PER_EPOCH = 1.5
rng = np.random.default_rng(0)
CANVASES = Canvases(
    rng.integers(0, 256, (BATCH, 8, 8, 3), np.uint8), np.full((BATCH, 2), 8, np.int32)
)
LABELS = np.array([0, 1, 2, 0, 1, 2], np.int32)
PIXELS, SIZES = jnp.asarray(CANVASES.pixels[:, None]), jnp.asarray(CANVASES.sizes[:, None])


def engine(
    module,
    *,
    freeze=(),
    rate=0.1,
    momentum=0.9,
    dtype=jnp.float32,
    total_steps=10,
    ema=0.0,
    wrap=lambda gradient: gradient,
    mix=None,
):
    """(state, step function: state -> (state, metrics)) on the six canvases."""
    mesh = meshes.make()
    _, params, stats = tree.split(module)
    trainable = [path for path in params if not tree.matches(freeze, path)]
    recipe = steps.Recipe(
        optimizer=optim.optimizer("sgd", trainable, momentum=momentum),
        learning_rate=optim.schedule("constant", peak=rate, total=total_steps),
        total_steps=total_steps,
        steps_per_epoch=STEPS_PER_EPOCH,
        freeze=freeze,
        ema=ema,
        wrap=wrap,
        mix=mix,
    )
    state = steps.init_state(params, stats, recipe)
    state = jax.device_put(state, meshes.shardings(state, mesh))
    batch = Feed([CANVASES], mesh).batch(np.arange(BATCH)[:, None], label=LABELS)
    function = steps.train_step(
        *(module, state, recipe),
        mesh=mesh,
        gather=functools.partial(gather, mesh=mesh),
        preprocess=functools.partial(random_views, view=VIEW, dtype=dtype),
    )
    return state, lambda state: function(state, (), batch, np.uint32(SEED))


# Draws


draw_views = jax.jit(random_views, static_argnums=(3, 4))


def views(keys, pixels=PIXELS, sizes=SIZES, dtype=jnp.float32):
    return np.asarray(draw_views(keys, pixels, sizes, VIEW, dtype))


def test_a_draw_belongs_to_seed_step_update_and_position():
    keys = steps.example_keys(SEED, 3, 0, BATCH)
    images = views(keys)
    # Other contents at the same positions get the same crops and flips, which are linear in the
    # pixels: the negative of the canvases gives the negative of the images. float32 of 0..1.
    np.testing.assert_allclose(views(keys, 255 - PIXELS), 1 - images, rtol=0, atol=1e-5)
    # The same positions of a larger batch too.
    twice = jnp.concatenate([PIXELS, PIXELS]), jnp.concatenate([SIZES, SIZES])
    larger = views(steps.example_keys(SEED, 3, 0, 2 * BATCH), *twice)
    np.testing.assert_allclose(larger[:BATCH], images, rtol=0, atol=1e-6)
    # Anything else draws otherwise: the position, ...
    assert (np.abs(larger[BATCH:] - images).max((1, 2, 3)) > 0.01).all()
    # ... the seed, the step and the update.
    for other in ((SEED + 1, 3, 0), (SEED, 4, 0), (SEED, 3, 1)):
        changed = views(steps.example_keys(*other, BATCH))
        assert (np.abs(changed - images).max((1, 2, 3)) > 0.01).all(), other


def test_two_views_of_a_pair_get_different_draws():
    keys = steps.example_keys(SEED, 0, 0, BATCH)
    pair = [jnp.concatenate([x, x], axis=1) for x in (PIXELS, SIZES)]
    images = views(keys, *pair)
    assert images.shape == (BATCH, 2, 4, 4, 3)
    assert (np.abs(images[:, 0] - images[:, 1]).max((1, 2, 3)) > 0.01).all()
    np.testing.assert_allclose(images[:, 0], views(keys), rtol=0, atol=1e-6)
    plain = plain_views(*pair, VIEW, jnp.float32)
    np.testing.assert_array_equal(plain[:, 0], plain[:, 1])


# Freezing


class Backbone(nnx.Module):
    info = SimpleNamespace(width=5)

    def __init__(self):
        self.fc = nnx.Linear(48, 5, rngs=nnx.Rngs(0))
        self.bn = BatchNorm(5)

    def __call__(self, images, edit=None, keys=None):
        return Features({}, self.bn(self.fc(images.reshape(len(images), -1))), None)


def classifier():
    module = baseline.Method(Backbone(), 3, image_size=4, rngs=nnx.Rngs(1))
    module.train()
    return module


@pytest.mark.parametrize("batch_norm", ["fixed", "update"])
def test_frozen_parameters_stay_to_the_bit(batch_norm):
    freeze = ("backbone/.*",)
    module = classifier()
    if batch_norm == "fixed":
        steps.fix_batch_norm(module, freeze)
    state, step = engine(module, freeze=freeze)
    before = jax.tree.map(np.array, state)
    assert not any("backbone" in str(path) for path, _ in jax.tree.leaves_with_path(state["opt"]))
    for _ in range(3):
        given = jax.tree.leaves_with_path(state)
        state, _ = step(state)
        assert not [path for path, array in given if not array.is_deleted()]  # donated
    for path, value in before["params"].items():
        same = np.array_equal(state["params"][path], value)
        assert same == path.startswith("backbone/"), path
    for path, value in before["batch_stats"].items():
        assert np.array_equal(state["batch_stats"][path], value) == (batch_norm == "fixed"), path


def test_the_gradient_norm_is_that_of_what_is_trained():
    """Against jax.grad of the loss on the same views."""
    module = classifier()
    static, params, stats = tree.split(module)
    images = views(steps.example_keys(SEED, 0, 0, BATCH))

    def loss(params):
        merged = tree.merge(static, params, stats)
        return cross_entropy(merged.head(merged.backbone(images).pooled), LABELS)

    value, gradients = jax.value_and_grad(loss)(params)
    for freeze in ((), ("backbone/.*",), (".*/bias", "head/.*")):
        state, step = engine(classifier(), freeze=freeze)
        _, metrics = step(state)
        kept = [g for path, g in gradients.items() if not tree.matches(freeze, path)]
        norm = np.sqrt(sum(np.square(np.asarray(g, np.float64)).sum() for g in kept))
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)  # float32
        np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)


def test_only_batch_norm_with_a_frozen_scale_is_fixed():
    module = classifier()
    steps.fix_batch_norm(module, ("backbone/bn/scale",))
    assert module.backbone.bn.fixed
    steps.fix_batch_norm(module, ("backbone/fc/.*", "backbone/bn/bias"))
    assert not module.backbone.bn.fixed


# SAM, accumulation and the moving average inside the step

NO_GRADIENT = "backbone/fc/bias"  # BatchNorm takes its effect away


def test_sam_in_the_step_against_two_passes_by_hand():
    module = classifier()
    static, params, stats = tree.split(module)
    images, rho = views(steps.example_keys(SEED, 0, 0, BATCH)), 0.05

    def loss(params):
        merged = tree.merge(static, params, stats)
        value = cross_entropy(merged.head(merged.backbone(images).pooled), LABELS)
        return value, tree.batch_stats(merged)

    (_, clean_stats), g = jax.value_and_grad(loss, has_aux=True)(params)
    norm = np.sqrt(sum(np.square(np.asarray(x, np.float64)).sum() for x in g.values()))
    _, second = jax.value_and_grad(loss, has_aux=True)(
        {path: params[path] + rho / norm * g[path] for path in params}
    )
    before = jax.tree.map(np.array, params)
    state, step = engine(module, wrap=lambda gradient: sam(gradient, rho))
    state, _ = step(state)
    for path, w in before.items():  # momentum has no history yet; float32
        np.testing.assert_allclose(state["params"][path], w - 0.1 * second[path], rtol=0, atol=2e-6)
        if path != NO_GRADIENT:  # elsewhere the perturbation matters
            assert np.abs(second[path] - g[path]).max() > 1e-5
    for path, value in clean_stats.items():  # statistics are the first pass's
        np.testing.assert_allclose(state["batch_stats"][path], value, rtol=0, atol=1e-6)


def test_accumulation_in_the_step_equals_the_whole_batch():
    """With BatchNorm fixed no layer mixes examples, so parts of the batch sum up to it (float32)."""
    ends = []
    for parts in (1, 3):
        module = classifier()
        module.backbone.bn.fixed = True
        state, step = engine(module, wrap=lambda gradient, n=parts: accumulate(gradient, n))
        for _ in range(3):
            state, metrics = step(state)
        ends.append((state["params"], metrics))
    (whole, metrics), (parts, other) = ends
    for path in whole:
        np.testing.assert_allclose(parts[path], whole[path], rtol=0, atol=1e-5)
    np.testing.assert_allclose(other["loss"], metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(other["accuracy"], metrics["accuracy"], rtol=1e-6)


def test_the_moving_average_against_a_loop():
    state, step = engine(classifier(), ema=0.5)
    averages = {
        k: {p: np.array(x, np.float64) for p, x in state[k].items()}
        for k in ("params", "batch_stats")
    }
    for number in range(6):
        state, _ = step(state)
        keep = min(0.5, (1 + number) / (10 + number))
        for kind, flat in averages.items():
            for path in flat:
                flat[path] = keep * flat[path] + (1 - keep) * np.asarray(
                    state[kind][path], np.float64
                )
    for kind, flat in averages.items():
        for path, value in flat.items():
            np.testing.assert_allclose(state["ema"][kind][path], value, rtol=0, atol=1e-5)
            assert path == NO_GRADIENT or np.abs(value - np.asarray(state[kind][path])).max() > 1e-4


def test_a_checkpoint_of_a_moving_average_holds_it_as_the_weights(tmp_path):
    state, step = engine(classifier(), ema=0.5)
    for _ in range(2):
        state, _ = step(state)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, state, {"selection": 1.0})
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    places = meshes.abstract(state["ema"], meshes.make())
    weights = checkpoints.restore_weights(2, places)
    whole = checkpoints.restore(2, state)
    checkpoints.close()
    for path, value in state["ema"]["params"].items():
        np.testing.assert_array_equal(weights["params"][path], value)
    assert jax.tree.structure(whole) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, whole, state)


@pytest.mark.parametrize(
    "strength", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}]
)
def test_a_mixed_batch_against_its_loss_by_hand(strength):
    """The step's loss is that of the images and shares that `mix` makes with the draw of the whole batch."""
    mixed = functools.partial(mix, **strength)
    state, step = engine(classifier(), mix=mixed)
    module = classifier()
    key = jax.random.fold_in(steps.update_key(SEED, 0, 0), 2**32 - 1)
    images = views(steps.example_keys(SEED, 0, 0, BATCH))
    images, targets = mixed(key, images, jnp.asarray(LABELS))
    logits = np.asarray(module.head(module.backbone(images).pooled), np.float64)
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    rows, share = np.arange(BATCH), np.asarray(targets["share"], np.float64)
    expected = share * logp[rows, LABELS] + (1 - share) * logp[rows, LABELS[::-1]]
    _, metrics = step(state)
    np.testing.assert_allclose(metrics["loss"], -expected.mean(), rtol=1e-5)  # float32
    assert 0 < share.min() < 1


# Two updates and a carried crop, against a loop in NumPy


class Crops(nnx.Module):
    """First update: regression on the image; it hands on its brightest row, and what it has seen of
    the weights. Second: on the two rows from there, with a draw of its own for each example."""

    def __init__(self):
        self.w = nnx.Param(jnp.asarray(np.random.default_rng(3).normal(size=(4, 4, 3)) / 10))

    def first(self, batch, carry, context):
        assert carry == {}
        value = jnp.einsum("bhwc,hwc->b", batch["image"], self.w[...])
        row = jnp.argmax(batch["image"][:, :3].sum((2, 3)), axis=1)
        loss = jnp.mean(jnp.square(value - batch["label"]))
        known = {"progress": context.progress, "epoch": context.epoch}
        return loss, {"row": row, "moved_from": jnp.sum(self.w[...])}, known

    def second(self, batch, carry, context):
        crop = jax.vmap(lambda x, r: jax.lax.dynamic_slice_in_dim(x, r, 2))
        rows = crop(batch["image"], carry["row"])
        draw = jax.vmap(jax.random.uniform)(context.keys)
        value = jnp.einsum("bhwc,hwc->b", rows, self.w[:2]) * draw
        moved = jnp.abs(jnp.sum(self.w[...]) - carry["moved_from"])  # by the first update
        return jnp.mean(jnp.square(value - batch["label"])), carry, {"moved": moved}

    @property
    def updates(self):
        return self.first, self.second


def test_a_second_update_sees_the_weights_and_the_crops_of_the_first():
    with jax.enable_x64(True):
        module = Crops()
        w = np.asarray(module.w[...], np.float64)
        state, step = engine(module, dtype=jnp.float64, rate=0.125)  # exact in float32
        velocity = np.zeros_like(w)
        for number in range(4):
            images = views(steps.example_keys(SEED, number, 0, BATCH), dtype=jnp.float64)
            draws = jax.vmap(jax.random.uniform)(steps.example_keys(SEED, number, 2, BATCH))
            draws = np.asarray(draws, np.float64)
            # The first update.
            error = np.einsum("bhwc,hwc->b", images, w) - LABELS
            losses = [np.mean(error**2)]
            velocity = 0.9 * velocity + np.einsum("b,bhwc->hwc", 2 * error / BATCH, images)
            before, w = w, w - 0.125 * velocity
            # The second, at the weights that the first one left.
            rows = images[:, :3].sum((2, 3)).argmax(1)
            crops = np.stack([x[r : r + 2] for x, r in zip(images, rows, strict=True)])
            error = np.einsum("bhwc,hwc->b", crops, w[:2]) * draws - LABELS
            losses.append(np.mean(error**2))
            gradient = np.zeros_like(w)
            gradient[:2] = np.einsum("b,bhwc->hwc", 2 * error * draws / BATCH, crops)
            velocity = 0.9 * velocity + gradient
            moved, w = np.abs(np.sum(w) - np.sum(before)), w - 0.125 * velocity

            state, metrics = step(state)
            found = [metrics["loss_1"], metrics["loss_2"], metrics["moved_2"]]
            np.testing.assert_allclose(found, [*losses, moved], rtol=1e-6)
            assert moved > 1e-3 and metrics["progress_1"] == number / 10
            assert metrics["epoch_1"] == np.float32(number / STEPS_PER_EPOCH)
            # float64, but the image is drawn in float32 and may round otherwise inside the step
            np.testing.assert_allclose(state["params"]["w"], w, rtol=0, atol=1e-6)
        assert state["step"] == 4
        assert len({int(r) for r in rows}) > 1  # the crops differ from example to example


# The same through a whole phase


class Toy(methods.Method):
    """Classifies the image, then the quarter of it where the backbone's map is strongest."""

    traces = []  # noqa: RUF012 - one entry for every time that Python runs through a function

    def __init__(self, backbone, num_classes, *, image_size, rngs, dtype, param_dtype):
        self.backbone = backbone
        self.head = nnx.Linear(backbone.info.width, num_classes, rngs=rngs)

    def whole(self, batch, carry, context):
        Toy.traces.append("whole")
        features = self.backbone(batch["image"])
        (cells,) = features.maps.values()  # [B, 2, 2, D]
        cell = jnp.argmax(jnp.square(cells).sum(-1).reshape(len(cells), -1), axis=1)
        side = batch["image"].shape[1] / 2
        corner = jnp.stack([cell // 2, cell % 2], axis=1) * side
        box = jnp.concatenate([corner, jnp.full_like(corner, side)], axis=1)
        carry = {"box": jax.lax.stop_gradient(box)}
        return cross_entropy(self.head(features.pooled), batch["label"]), carry, {}

    def part(self, batch, carry, context):
        Toy.traces.append("part")
        size = batch["image"].shape[1]
        corner = jax.vmap(lambda key: jax.random.uniform(key, (4,), maxval=2.0))(context.keys)
        crop = jax.vmap(lambda x, box: crop_resize(x, box, size, valid_hw=jnp.array([size, size])))
        parts = crop(batch["image"], carry["box"] + corner * jnp.array([1, 1, 0, 0]))
        logits = self.head(self.backbone(parts).pooled)
        return cross_entropy(logits, batch["label"]), carry, {"top": carry["box"][:, 0].mean()}

    @property
    def updates(self):
        return self.whole, self.part

    def predict(self, images, edit=None):
        Toy.traces.append("predict")
        return {"scores": self.head(self.backbone(images).pooled)}


@pytest.fixture
def toy(monkeypatch):
    """A method that is a file like any other, as far as the package can see."""
    monkeypatch.setattr(methods, "get", lambda name, where="": Toy)
    Toy.traces.clear()


def phase(workdir, stop_at=None):
    """Six steps of the toy, evaluated every two; asked to stop after step `stop_at`."""
    config = tiny.pipeline("vit_tiny_patch16_224", depth=1, width=16, heads=1)
    config.image.size = config.image.resize = 32
    with config.unlocked():
        config.finetune.method, config.finetune.arguments = "toy", {}
    config.finetune.length, config.finetune.validation.every = "6 steps", "2 steps"
    config.log.every = "1 steps"
    run, data, models = tiny.parts(config, workdir)
    update = Progress.update

    def update_and_stop(self, steps=1, text=""):
        update(self, steps, text)
        if steps and self.step == stop_at:
            run.stop.requested = int(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "update", update_and_stop)
        return data, train.Phase(config, "finetune").run(run, data, models)


def contents(workdir):
    """Every array of the latest checkpoint, and every line of the log."""
    folder = workdir / "finetune"
    checkpoints = Checkpoints(folder / "checkpoints")
    step = checkpoints.latest()
    restore = ocp.args.StandardRestore()
    items = checkpoints.manager.restore(
        step, args=ocp.args.Composite(weights=restore, training=restore)
    )
    checkpoints.close()
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    arrays = {jax.tree_util.keystr(k): v for k, v in jax.tree.leaves_with_path(dict(items))}
    clocks = ("time", "data_wait")
    return step, arrays, [{k: v for k, v in line.items() if k not in clocks} for line in log]


def test_two_updates_with_a_carried_crop_train_and_resume(toy, tmp_path):
    data, _ = phase(tmp_path / "whole")
    # Traced once for the whole phase: three evaluations, with a partial last batch, included.
    assert sorted(Toy.traces) == ["part", "predict", "whole"]
    assert data.sizes["val"] % 16

    with pytest.raises(Interrupted):
        phase(tmp_path / "broken", stop_at=3)
    assert contents(tmp_path / "broken")[0] == 3
    phase(tmp_path / "broken")

    (step, whole, log), (other_step, broken, other_log) = map(
        contents, (tmp_path / "whole", tmp_path / "broken")
    )
    assert step == other_step == 6 and whole.keys() == broken.keys() and len(whole) > 20
    for path, value in whole.items():
        np.testing.assert_array_equal(value, broken[path], err_msg=path)

    def lines(log, kind):
        return {line["step"]: line for line in log if line["kind"] == kind}

    assert lines(log, "val") == lines(other_log, "val")
    log, other_log = lines(log, "train"), lines(other_log, "train")
    # A line is the mean since the one before, also of steps between which the run was stopped.
    assert list(log) == [2, 4, 6] and log == other_log
    assert all(x["loss_1"] != x["loss_2"] and "loss" not in x for x in log.values())
