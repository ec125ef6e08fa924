"""The pair method and the plain classifier against the same networks in torch."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fgvc_jax import methods
from fgvc_jax.backbones.features import Features
from fgvc_jax.errors import UserError
from fgvc_jax.layers.norm import BatchNorm
from fgvc_jax.train import tree

torch = pytest.importorskip("torch", reason="the reference is the same network in torch")
from torch import nn  # noqa: E402

WIDTH, HIDDEN, BATCH = 6, 5, 8
TYPES = {"dtype": jnp.float64, "param_dtype": jnp.float64}
TOLERANCE = 1e-10  # float64; BatchNorm over 8 values amplifies roundings of 1e-16 a little
rng = np.random.default_rng(0)
CONTEXT = methods.Context(
    jax.random.key(0), jax.random.split(jax.random.key(1), BATCH), 0, 0.0, 0.0
)
IMAGES = rng.normal(size=(BATCH, 2, 2, 2, 3))
LABELS = rng.integers(0, 2, BATCH)


class Backbone(nnx.Module):
    """One linear layer and BatchNorm, all that the comparator needs below it."""

    info = SimpleNamespace(width=WIDTH)

    def __init__(self, rngs):
        self.fc = nnx.Linear(12, WIDTH, rngs=rngs, **TYPES)
        self.bn = BatchNorm(WIDTH, **TYPES)

    def __call__(self, images, edit=None, keys=None):
        return Features({}, self.bn(self.fc(images.reshape(len(images), -1))), None)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def pairs(**arguments):
    """The method, and torch's (backbone, comparator) with the same weights."""
    ours = methods.create(
        "pairs",
        Backbone(nnx.Rngs(0)),
        3,
        image_size=2,
        rngs=nnx.Rngs(1),
        **TYPES,
        hidden=HIDDEN,
        **arguments,
    )
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, WIDTH), nn.BatchNorm1d(WIDTH))
    comparator = nn.Sequential(
        *(nn.Linear(2 * WIDTH + 2, 192), nn.BatchNorm1d(192), nn.GELU()),
        *(nn.Linear(192, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.GELU()),
        *(nn.Linear(HIDDEN, 2), nn.Linear(2, 1)),
    )
    backbone.double(), comparator.double()
    norms = [ours.backbone.bn, ours.comparator.bn1, ours.comparator.bn2]
    for i, norm in enumerate(norms):  # statistics and biases that are not ones and zeros
        draw = np.random.default_rng(i)
        for array, low in ((norm.scale, 0.5), (norm.bias, -1), (norm.mean, -1), (norm.var, 0.5)):
            array[...] = jnp.asarray(draw.uniform(low, 2, array.shape))
    c = ours.comparator
    linears = [(ours.backbone.fc, backbone[1])]
    linears += zip((c.fc1, c.fc2, c.fc3, c.fc4), (comparator[i] for i in (0, 3, 6, 7)), strict=True)
    for mine, torchs in linears:
        torchs.weight.data = torch.tensor(np.asarray(mine.kernel[...]).T.copy())
        mine.bias[...] = jnp.asarray(torchs.bias.detach().numpy())
    torch_norms = [backbone[2], comparator[1], comparator[4]]
    for mine, torchs in zip(norms, torch_norms, strict=True):
        torchs.weight.data, torchs.bias.data, torchs.running_mean, torchs.running_var = (
            torch.tensor(np.array(x[...])) for x in (mine.scale, mine.bias, mine.mean, mine.var)
        )
    return ours, backbone, comparator, list(zip(norms, torch_norms, strict=True))


def torch_logits(backbone, comparator, joint):
    query, neighbour = (torch.tensor(IMAGES[:, i]) for i in (0, 1))
    if joint:
        both = backbone(torch.cat([query, neighbour]))
        query, neighbour = both[:BATCH], both[BATCH:]
    else:
        query, neighbour = backbone(query), backbone(neighbour)
    zero = torch.zeros(BATCH, 1, dtype=torch.float64)
    return comparator(torch.cat([zero, query, zero, neighbour], 1))[:, 0]


@pytest.mark.parametrize("joint", [True, False])
def test_pairs_in_eval_mode_are_torchs(x64, joint):
    ours, backbone, comparator, _ = pairs(joint=joint)
    ours.eval(), backbone.eval(), comparator.eval()
    found = ours.predict(jnp.asarray(IMAGES))["scores"]
    expected = torch_logits(backbone, comparator, joint).detach()
    assert found.shape == (BATCH,) and float(expected.std()) > 1e-3
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    embedding = ours.predict(jnp.asarray(IMAGES[:, 0]))["embedding"]
    np.testing.assert_allclose(
        embedding, backbone(torch.tensor(IMAGES[:, 0])).detach(), rtol=0, atol=TOLERANCE
    )


@pytest.mark.parametrize("joint", [True, False])
def test_a_training_update_of_pairs_is_torchs(x64, joint):
    """Loss, gradients and running statistics; apart, the backbone's statistics move twice."""
    ours, backbone, comparator, norms = pairs(joint=joint)
    ours.train(), backbone.train(), comparator.train()
    static, params, stats = tree.split(ours)
    batch = {"image": jnp.asarray(IMAGES), "label": jnp.asarray(LABELS)}

    def loss(params):
        module = tree.merge(static, params, stats)
        value, carry, metrics = module.update(batch, {}, CONTEXT)
        assert carry == {}
        return value, (tree.batch_stats(module), metrics["accuracy"])

    (value, (moved, accuracy)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    logits = torch_logits(backbone, comparator, joint)
    expected = nn.functional.binary_cross_entropy_with_logits(
        logits, torch.tensor(LABELS, dtype=torch.float64)
    )
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=0, atol=TOLERANCE)
    assert accuracy == np.mean((logits.detach().numpy() > 0) == LABELS)
    for path, layer in (
        ("backbone/fc", backbone[1]),
        ("comparator/fc1", comparator[0]),
        ("comparator/fc4", comparator[7]),
    ):
        np.testing.assert_allclose(
            gradients[f"{path}/kernel"].T, layer.weight.grad, rtol=0, atol=TOLERANCE
        )
    for path, (_, layer) in zip(
        ("backbone/bn", "comparator/bn1", "comparator/bn2"), norms, strict=True
    ):
        for name, statistic in (("mean", layer.running_mean), ("var", layer.running_var)):
            np.testing.assert_allclose(
                moved[f"{path}/{name}"], statistic, rtol=0, atol=TOLERANCE, err_msg=path
            )
            assert np.abs(moved[f"{path}/{name}"] - stats[f"{path}/{name}"]).max() > 1e-3


def test_the_order_of_a_pair_matters(x64):
    ours, *_ = pairs()
    ours.eval()
    there, back = (ours.predict(jnp.asarray(x))["scores"] for x in (IMAGES, IMAGES[:, ::-1]))
    assert np.abs(there - back).min() > 1e-6


@pytest.mark.parametrize("hidden", [32, 192])
def test_hidden_is_the_width_of_the_second_layer(hidden):
    def make():
        return methods.create(
            "pairs",
            Backbone(nnx.Rngs(0)),
            3,
            image_size=2,
            rngs=nnx.Rngs(1),
            hidden=hidden,
            init="torch",
        )

    with jax.enable_x64(True):
        comparator = nnx.eval_shape(make).comparator
    shapes = [layer.kernel.shape for layer in (comparator.fc1, comparator.fc2, comparator.fc3)]
    assert shapes == [(2 * WIDTH + 2, 192), (192, hidden), (hidden, 2)]
    assert comparator.bn2.scale.shape == (hidden,)


def test_initial_weights_are_spread_as_torch_spreads_them():
    """fc1 has 14 x 192 weights: their standard deviation is known to about 2 %, asked for to 6."""
    with jax.enable_x64(True):
        for init, reference in (
            ("xavier", nn.init.xavier_normal_),
            ("torch", lambda w: nn.init.kaiming_uniform_(w, a=5**0.5)),
        ):
            ours = methods.create(
                "pairs", Backbone(nnx.Rngs(0)), 3, image_size=2, rngs=nnx.Rngs(1), init=init
            ).comparator.fc1.kernel[...]
            theirs = reference(torch.empty(192, 2 * WIDTH + 2))
            assert ours.std() == pytest.approx(theirs.std().item(), rel=0.06)
            if init == "torch":  # uniform, so bounded
                assert np.abs(ours).max() <= (2 * WIDTH + 2) ** -0.5


def test_the_classifier_is_a_linear_layer_on_the_pooled_features(x64):
    ours = methods.create(
        "baseline",
        Backbone(nnx.Rngs(0)),
        3,
        image_size=2,
        rngs=nnx.Rngs(1),
        label_smoothing=0.1,
        **TYPES,
    )
    ours.train()
    labels = np.arange(BATCH) % 3
    images = jnp.asarray(IMAGES[:, 0])
    batch = {"image": images, "label": jnp.asarray(labels)}
    pooled = np.asarray(ours.backbone(images).pooled)  # in train mode: by the batch's statistics
    loss, carry, metrics = ours.update(batch, {}, CONTEXT)
    logits = torch.tensor(pooled @ np.asarray(ours.head.kernel[...]))
    expected = nn.functional.cross_entropy(logits, torch.tensor(labels), label_smoothing=0.1)
    np.testing.assert_allclose(loss, expected.item(), rtol=0, atol=TOLERANCE)
    assert carry == {} and metrics["accuracy"] == np.mean(logits.argmax(1).numpy() == labels)
    ours.eval()
    outputs = ours.predict(images)
    assert outputs["scores"].shape == (BATCH, 3) and outputs["embedding"].shape == (BATCH, WIDTH)


def test_unknown_methods_arguments_and_choices_are_named(x64):
    with pytest.raises(UserError, match="did you mean 'baseline'"):
        methods.get("basline")
    with pytest.raises(UserError, match=r"'pairs'.*did you mean 'hidden'"):
        methods.create("pairs", None, 3, hiden=3)
    with pytest.raises(UserError, match=r"init.*'xavier'"):
        methods.create(
            "pairs", Backbone(nnx.Rngs(0)), 3, image_size=2, rngs=nnx.Rngs(1), init="xavir"
        )
