"""Grad-CAM, HiResCAM and Eigen-CAM against pytorch-grad-cam, on the same ResNet-18 in float64.

Compared are the maps before they are scaled, those scaled from 0 to 1, and those enlarged to the image. Where
the two differ: the package adds 1e-7 to what it divides by; it works in float32 once it resizes or projects;
it scales once more after resizing; and its Eigen-CAM is of the plain map and leaves the sign as the SVD gives
it, while ours is of the weighted map (its `eigen_smooth`), with the sign turned to where the sum is larger.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import images, load_pretrained, randomise, to_torch
from flax import nnx

from fgvc_jax import backbones, methods
from fgvc_jax.explain import cam
from fgvc_jax.explain.enlarge import enlarge
from fgvc_jax.train import tree

torch = pytest.importorskip("torch", reason="parity needs torch: pip install -e '.[test]'")
torchvision = pytest.importorskip("torchvision", reason="parity needs torchvision")
package = pytest.importorskip("pytorch_grad_cam", reason="the reference: pip install grad-cam")

from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # noqa: E402

SIZE, CLASSES = 96, [3, 6]
FLOAT64 = 1e-10  # of the largest value: sums of some hundred products
FLOAT32 = 1e-6  # of maps from 0 to 1 that the package has rounded to float32


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """(the torch net, {tap: our activations and gradients}) of two images and a class each."""
    model = randomise(torchvision.models.resnet18(num_classes=7)).double()
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(model.state_dict(), path)
    with jax.enable_x64(True):
        kw = {"dtype": jnp.float64, "param_dtype": jnp.float64}
        body = backbones.create("resnet18", image_size=SIZE, rngs=nnx.Rngs(0), **kw)
        body, _ = load_pretrained(body, str(path), allow=("fc.*",))
        module = methods.create("baseline", body, 7, image_size=SIZE, rngs=nnx.Rngs(1), **kw)
        module.head.kernel[...] = jnp.asarray(model.fc.weight.detach().numpy().T)
        module.head.bias[...] = jnp.asarray(model.fc.bias.detach().numpy())
        module.eval()
        static, params, stats = tree.split(module)
        classes = jnp.array(CLASSES)[:, None]

        @jax.jit
        def look(params, stats, x):
            predict = tree.merge(static, params, stats).predict
            return {tap: cam.at_tap(predict, x, tap, classes) for tap in ("layer3", "layer4")}

        return model, jax.device_get(look(params, stats, images(SIZE, dtype=np.float64)))


def theirs(model, tap, kind, smooth, whole):
    """The package's maps: of the layer as they are, or scaled and resized to the image."""
    targets = [ClassifierOutputTarget(c) for c in CLASSES]
    x = to_torch(images(SIZE, dtype=np.float64))
    with kind(model=model, target_layers=[getattr(model, tap)]) as made:
        if whole:
            return made(x, targets, eigen_smooth=smooth)
        outputs = made.activations_and_grads(x)
        sum(t(o) for t, o in zip(targets, outputs, strict=True)).backward()
        a, g = (v[0].numpy() for v in (made.activations_and_grads.activations,
                                       made.activations_and_grads.gradients))  # fmt: skip
        return made.get_cam_image(x, None, targets, a, g, smooth)


def ours(found, name):
    with jax.enable_x64(True):
        function = cam.KINDS[name]
        return np.asarray(function(jnp.asarray(found.activations), jnp.asarray(found.gradients[0])))


@pytest.mark.parametrize("tap", ["layer3", "layer4"])
@pytest.mark.parametrize("name", ["gradcam", "hirescam"])
def test_maps_are_the_packages(nets, tap, name):
    model, found = nets
    kind = {"gradcam": package.GradCAM, "hirescam": package.HiResCAM}[name]
    here, there = ours(found[tap], name), np.maximum(theirs(model, tap, kind, False, False), 0)
    assert there.max() > 0 and there.dtype == np.float64
    np.testing.assert_allclose(here, there, rtol=0, atol=FLOAT64 * there.max())
    other = ours(found[tap], "hirescam" if name == "gradcam" else "gradcam")
    assert np.allclose(here, other) == (tap == "layer4")  # a linear head reads its mean


@pytest.mark.parametrize("tap", ["layer3", "layer4"])
def test_eigen_cam_is_its_smoothed_grad_cam_but_for_the_sign(nets, tap):
    model, found = nets
    here, there = ours(found[tap], "eigencam"), theirs(model, tap, package.GradCAM, True, False)
    for one, other in zip(here, there.astype(float), strict=True):
        signs = [np.maximum(sign * other, 0) for sign in (1, -1)]
        error = min(np.abs(one - expected).max() for expected in signs)
        assert error <= FLOAT32 * np.abs(other).max()


@pytest.mark.parametrize("name", ["gradcam", "hirescam"])
def test_enlarged_maps_are_the_packages(nets, name):
    model, found = nets
    kind = {"gradcam": package.GradCAM, "hirescam": package.HiResCAM}[name]
    with jax.enable_x64(True):
        here = cam.unit(enlarge(cam.unit(jnp.asarray(ours(found["layer3"], name))), SIZE))
    there = theirs(model, "layer3", kind, False, True)
    assert there.shape == (2, SIZE, SIZE) and np.ptp(there) > 0.9
    np.testing.assert_allclose(np.asarray(here), there, rtol=0, atol=FLOAT32)
