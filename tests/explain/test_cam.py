"""Class activation maps against torch's hooks and NumPy, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fgvc_jax import backbones, methods
from fgvc_jax.explain import cam
from fgvc_jax.train import tree

torch = pytest.importorskip("torch", reason="the reference uses torch's gradients")
# float64: sums of some hundred products.
TOLERANCE = 1e-10
rng = np.random.default_rng(0)


@pytest.fixture(scope="module")
def tapped():
    """(Tapped of a small CNN with three images and two classes each, the same by torch)."""
    with jax.enable_x64(True):
        images = rng.normal(size=(3, 6, 5, 2))
        first, second = rng.normal(size=(2, 4)), rng.normal(size=(4, 7))
        classes = np.array([[0, 3], [6, 1], [2, 2]])

        def predict(images, edit=None):
            x = jax.nn.relu(images @ first)
            x = edit("layer", x) if edit else x
            return {"scores": jnp.tanh(x).mean((1, 2)) @ second}

        ours = jax.jit(lambda x: cam.at_tap(predict, x, "layer", jnp.asarray(classes)))(images)
        x = torch.relu(torch.tensor(images) @ torch.tensor(first)).requires_grad_()
        scores = torch.tanh(x).mean((1, 2)) @ torch.tensor(second)
        gradients = []
        for k in range(2):
            picked = scores[torch.arange(3), torch.tensor(classes[:, k])].sum()
            gradients.append(torch.autograd.grad(picked, x, retain_graph=True)[0].numpy())
        return ours, x.detach().numpy(), np.stack(gradients)


def test_map_and_gradients_are_torchs(tapped):
    ours, activations, gradients = tapped
    np.testing.assert_allclose(ours.activations, activations, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(ours.gradients, gradients, rtol=0, atol=TOLERANCE)
    assert ours.outputs["scores"].shape == (3, 7)


@pytest.mark.parametrize("kind", cam.KINDS)
def test_heat_is_that_of_the_definition(tapped, kind):
    _, activations, gradients = tapped
    for gradient in gradients:
        with jax.enable_x64(True):
            found = np.asarray(cam.KINDS[kind](jnp.asarray(activations), jnp.asarray(gradient)))
        for number, (a, g) in enumerate(zip(activations, gradient, strict=True)):
            weighted = a * g.mean((0, 1))
            if kind == "eigencam":
                flat = weighted.reshape(-1, a.shape[-1])
                flat = flat - flat.mean(0)
                values, vectors = np.linalg.eigh(flat.T @ flat)
                assert values[-1] > 1.01 * values[-2]  # one component is the first
                heat = (flat @ vectors[:, -1]).reshape(a.shape[:2])
                heat *= np.sign((heat * weighted.sum(-1)).sum())
            else:
                heat = ((a * g) if kind == "hirescam" else weighted).sum(-1)
            expected = np.maximum(heat, 0)
            np.testing.assert_allclose(found[number], expected, rtol=0, atol=1e-9)


def test_on_a_net_whose_head_is_linear_on_means_grad_cam_is_hires_cam():
    """And both are the classic map: the head's weights times the channels."""
    with jax.enable_x64(True):
        kw = {"dtype": jnp.float64, "param_dtype": jnp.float64}
        body = backbones.create(
            "resnet18", width=4, depths=(1, 1, 1, 1), image_size=64, rngs=nnx.Rngs(0), **kw
        )
        module = methods.create("baseline", body, 5, image_size=64, rngs=nnx.Rngs(1), **kw)
        module.eval()
        images = rng.normal(size=(2, 64, 64, 3))
        static, params, stats = tree.split(module)

        @jax.jit
        def run(images):
            merged = tree.merge(static, params, stats)
            best = lambda scores: jnp.argsort(-scores, axis=1)[:, :2]  # noqa: E731
            return cam.at_tap(merged.predict, images, merged.backbone.info.cam_tap, best)

        found = run(images)
        plain, fine = (
            k(found.activations, found.gradients[0]) for k in (cam.grad_cam, cam.hires_cam)
        )
        np.testing.assert_allclose(plain, fine, rtol=0, atol=TOLERANCE)
        kernel = np.asarray(module.head.kernel[...])
        best = np.asarray(found.outputs["scores"]).argmax(1)
        cells = found.activations.shape[1] * found.activations.shape[2]
        classic = np.einsum("bhwd,bd->bhw", found.activations, kernel[:, best].T) / cells
        np.testing.assert_allclose(plain, np.maximum(classic, 0), rtol=0, atol=TOLERANCE)


def test_from_0_to_1():
    heat = jnp.array([[[1.0, 3.0], [2.0, 5.0]], [[4.0, 4.0], [4.0, 4.0]]])
    expected = [[[0, 0.5], [0.25, 1]], [[0, 0], [0, 0]]]
    np.testing.assert_array_equal(cam.unit(heat), expected)


def test_hires_cam_is_empty_where_a_layer_norm_follows_and_grad_cam_is_not():
    """At a ViT's tap the sums cancel: what would be drawn is rounding, stretched from 0 to 1."""
    kw = {"depth": 2, "width": 16, "heads": 2, "image_size": 32}
    body = backbones.create("vit_tiny_patch16_224", **kw, rngs=nnx.Rngs(0))
    module = methods.create("baseline", body, 5, image_size=32, rngs=nnx.Rngs(1))
    module.eval()
    images = jnp.asarray(rng.normal(size=(1, 32, 32, 3)), jnp.float32)
    found = cam.at_tap(module.predict, images, module.cam_tap, jnp.array([[1]]))
    pair = found.activations, found.gradients[0]
    assert np.abs(pair[0] * pair[1]).max() > 0 and not cam.hires_cam(*pair).any()
    assert cam.grad_cam(-pair[0], pair[1]).any() or cam.grad_cam(*pair).any()
