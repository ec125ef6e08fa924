"""ResNeXt, EfficientNet and ConvNeXt against torchvision's and timm's modules, through their files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import (
    FLOAT32,
    check_gradients,
    forward,
    hook,
    images,
    load_pretrained,
    randomise,
    relative,
    to_torch,
)
from flax import nnx

from fgvc_jax import backbones
from fgvc_jax.errors import UserError
from fgvc_jax.weights import wanted_arguments

torch = pytest.importorskip("torch", reason="parity needs torch: pip install -e '.[test]'")
torchvision = pytest.importorskip("torchvision", reason="parity needs torchvision")
timm = pytest.importorskip("timm", reason="parity needs timm")

from timm.models.efficientnet import _gen_efficientnet  # noqa: E402
from torchvision.models.efficientnet import MBConvConfig  # noqa: E402

NAMES = [
    name
    for family in ("resnext", "efficientnet", "tf_efficientnet", "convnext")
    for name in backbones.names()
    if name.startswith(family)
]


def made_by(library: str, name: str, **kw) -> "torch.nn.Module":
    """The library's model, its random weights far from their initial values."""
    model = getattr(torchvision.models, name)() if library == "torchvision" else None
    return spread(model or timm.create_model(name, **kw))


def spread(model):
    """Values that neither grow nor vanish through the layers: else a deep net amplifies rounding at will."""
    randomise(model)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 4:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / tensor[0].numel() ** 0.5)
        elif name.endswith("layer_scale"):  # of three axes, which `randomise` leaves at 1e-6
            tensor.copy_(torch.linspace(-0.3, 0.3, tensor.numel()).reshape(tensor.shape))
    return model


def save(model, folder):
    """A file as the library writes it, and its path."""
    if type(model).__module__.startswith("torchvision"):
        torch.save(model.state_dict(), folder / "weights.pth")
        return str(folder / "weights.pth")
    from safetensors.torch import save_file

    save_file(model.state_dict(), folder / "model.safetensors")
    return str(folder / "model.safetensors")


def stages(model) -> list:
    """The modules whose outputs are 'layer1', 'layer2', ..."""
    if hasattr(model, "layer1"):
        return [model.layer1, model.layer2, model.layer3, model.layer4]
    if isinstance(model, torchvision.models.ConvNeXt):
        return [model.features[i] for i in (1, 3, 5, 7)]
    if isinstance(model, torchvision.models.EfficientNet):
        return list(model.features)[1:8]
    return list(model.blocks if hasattr(model, "blocks") else model.stages)


def parts(model) -> dict:
    """By tap, the module whose output it is, and that of `pooled`."""
    taps = {f"layer{i + 1}": stage for i, stage in enumerate(stages(model))}
    for tap, stage in list(taps.items()):
        blocks = list(getattr(stage, "blocks", stage))
        taps |= {f"{tap}/{i}": block for i, block in enumerate(blocks[:-1])}
    if isinstance(model, torchvision.models.EfficientNet):
        taps["head"] = model.features[8]
    elif hasattr(model, "conv_head"):
        taps["head"] = model.bn2
    if isinstance(model, torchvision.models.ConvNeXt):
        return taps | {"pooled": model.classifier[0]}
    pool = getattr(model, "avgpool", None) or getattr(model, "global_pool", None)
    return taps | {"pooled": pool or model.head.norm}


def check(module, model, sizes):
    theirs = hook(parts(model))
    for size in sizes:
        x = images(size)
        with torch.no_grad():
            model(to_torch(x))
        ours = forward(module, x)
        assert ours.maps.keys() | {"pooled"} == theirs.keys()
        for tap, value in ours.maps.items():
            assert relative(value.transpose(0, 3, 1, 2), theirs[tap]) <= FLOAT32, (size, tap)
        assert relative(ours.pooled, theirs["pooled"].flatten(1)) <= FLOAT32, size


def loaded(name, model, folder, **kw):
    module = backbones.create(name, rngs=nnx.Rngs(0), **kw)
    _, report = load_pretrained(module, save(model, folder))
    assert not report.differences()
    assert all(key.startswith(("fc.", "classifier.", "head.fc.")) for key in report.head)
    return module, report


# Native size and another; 100 px has odd and even maps, where paddings differ, 79 px none that divides.
FULL = [
    ("torchvision", "resnext50_32x4d", (224,)),
    ("timm", "resnext50_32x4d", (79,)),
    ("torchvision", "efficientnet_b0", (224,)),
    ("timm", "efficientnet_b0", (79,)),
    ("timm", "tf_efficientnet_b0", (100,)),
    ("torchvision", "convnext_tiny", (224,)),
    ("timm", "convnext_tiny", (79,)),
]


@pytest.mark.parametrize(("library", "name", "sizes"), FULL)
def test_full_width(library, name, sizes, tmp_path):
    model = made_by(library, name)
    module, _ = loaded(name, model, tmp_path)
    check(module, model, sizes)


@pytest.mark.slow
@pytest.mark.parametrize("library", ["torchvision", "timm"])
@pytest.mark.parametrize("name", NAMES)
def test_every_variant(library, name, tmp_path):
    if library == "torchvision" and name.startswith("tf_"):
        pytest.skip("not in torchvision")
    # timm's B5 to B7 have another epsilon.
    kw = {}
    if library == "timm" and name in ("efficientnet_b5", "efficientnet_b6", "efficientnet_b7"):
        kw["eps"] = 1e-5
    model = made_by(library, name)
    module, _ = loaded(name, model, tmp_path, **kw)
    check(module, model, (module.info.preprocessing.size,))


# --- gradients and statistics: real structure, few blocks


def torchvision_efficientnet(width, depth, **kw):
    stages = [
        (1, 3, 1, 32, 16, 1),
        (6, 3, 2, 16, 24, 2),
        (6, 5, 2, 24, 40, 2),
        (6, 3, 2, 40, 80, 3),
        (6, 5, 1, 80, 112, 3),
        (6, 5, 2, 112, 192, 4),
        (6, 3, 1, 192, 320, 1),
    ]
    settings = [MBConvConfig(*stage, width_mult=width, depth_mult=depth) for stage in stages]
    return torchvision.models.EfficientNet(settings, 0.0, stochastic_depth_prob=0.0, **kw)


def large_norm(channels):
    return torch.nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


SMALL = {"width": 0.25, "depth": 0.3}
NARROW = {
    "resnext50_32x4d": (
        lambda: torchvision.models.ResNet(
            torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], groups=32, width_per_group=4
        ),
        {"depths": (1, 1, 1, 1)},
    ),
    "efficientnet_b5": (lambda: torchvision_efficientnet(**SMALL, norm_layer=large_norm), SMALL),
    "tf_efficientnet_b5": (
        lambda: _gen_efficientnet(
            "tf_efficientnet_b5",
            channel_multiplier=0.25,
            depth_multiplier=0.3,
            bn_eps=1e-3,
            pad_type="same",
        ),
        SMALL,
    ),
    "convnext_tiny": (
        lambda: timm.models.ConvNeXt(depths=(1, 1, 1, 1), dims=(16, 32, 64, 128)),
        {"width": 16, "depths": (1, 1, 1, 1)},
    ),
}


def pooled(model):
    """The torch function from images to what we call pooled."""
    if isinstance(model, torchvision.models.EfficientNet):
        return lambda x: model.avgpool(model.features(x)).flatten(1)
    if isinstance(model, torchvision.models.ResNet):
        model.fc = torch.nn.Identity()
        return model
    model.reset_classifier(0)
    return model


@pytest.mark.parametrize(
    ("name", "remat", "size"),
    [
        ("resnext50_32x4d", "none", 52),
        ("efficientnet_b5", "full", 36),
        ("convnext_tiny", "none", 52),
        pytest.param("tf_efficientnet_b5", "none", 36, marks=pytest.mark.slow),
        pytest.param("resnext50_32x4d", "full", 52, marks=pytest.mark.slow),
        pytest.param("convnext_tiny", "full", 52, marks=pytest.mark.slow),
    ],
)
def test_gradients_and_statistics_in_float64(name, remat, size, tmp_path):
    make, arguments = NARROW[name]
    model = spread(make()).double()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # Where one BatchNorm follows another, the bias of the first has a gradient of exactly 0, and each
            # library rounding in its place: less, the larger the scale (and the fewer the cells).
            module.weight.data.mul_(4)
    with jax.enable_x64(True):
        kw = {"dtype": jnp.float64, "param_dtype": jnp.float64, "remat": remat}
        module, report = loaded(name, model, tmp_path, **arguments, **kw)
        check_gradients(module, report, model, images(size, 2, np.float64), pooled(model))


# --- what the names and files mean


def small_timm(eps: float, padding: str):
    return spread(
        _gen_efficientnet(
            "efficientnet_b5",
            channel_multiplier=0.25,
            depth_multiplier=0.3,
            bn_eps=eps,
            pad_type=padding,
        )
    )


def shapes(name, **kw):
    return nnx.eval_shape(lambda: backbones.create(name, rngs=nnx.Rngs(0), **SMALL, **kw))


def test_weights_are_refused_in_the_arithmetic_of_others(tmp_path):
    ours = save(small_timm(1e-5, ""), tmp_path)
    # torchvision's B5 has another epsilon than timm's: no array shows it.
    with pytest.raises(UserError, match=r"want eps=1e-05.*give it the argument eps=1e-05"):
        load_pretrained(shapes("efficientnet_b5"), ours)
    assert wanted_arguments("efficientnet_b5", ours) == {"eps": 1e-5}
    load_pretrained(shapes("efficientnet_b5", eps=1e-5), ours)
    with pytest.raises(UserError, match=r"want eps=0.001"):
        load_pretrained(shapes("tf_efficientnet_b5", eps=1e-5), ours)

    theirs = save(spread(torchvision_efficientnet(**SMALL, norm_layer=large_norm)), tmp_path)
    load_pretrained(shapes("efficientnet_b5"), theirs)
    with pytest.raises(UserError, match=r"symmetric padding.*name the backbone efficientnet_b5"):
        load_pretrained(shapes("tf_efficientnet_b5"), theirs)
    with pytest.raises(UserError, match=r"want eps=1e-05"):
        load_pretrained(shapes("efficientnet_b4", eps=1e-3), theirs)


def test_weights_with_a_name_are_refused_in_other_padding(tmp_path):
    path = tmp_path / "tf_efficientnet_b5_ns-6f26d0cf.pth"
    torch.save(small_timm(1e-3, "same").state_dict(), path)
    load_pretrained(shapes("tf_efficientnet_b5"), str(path))
    with pytest.raises(UserError, match=r"padding of tf_efficientnet_b5.*name the backbone tf_"):
        load_pretrained(shapes("efficientnet_b5"), str(path))
    path = path.rename(tmp_path / "efficientnet_b5.pth")
    with pytest.raises(UserError, match=r"padding of efficientnet_b5.*name the backbone efficient"):
        load_pretrained(shapes("tf_efficientnet_b5"), str(path))


def test_miil_weights_bring_their_preprocessing(tmp_path):
    block, depths = torchvision.models.resnet.BasicBlock, (1, 1, 1, 1)
    found = {}
    for classes in (1000, 11_221):
        path = tmp_path / f"{classes}.pth"
        model = torchvision.models.ResNet(block, depths, num_classes=classes)
        torch.save({"state_dict": model.state_dict()}, path)
        module = nnx.eval_shape(
            lambda: backbones.create("resnet18", depths=depths, rngs=nnx.Rngs(0))
        )
        load_pretrained(module, str(path))
        found[classes] = module.info.preprocessing
    assert found[1000] == backbones.Preprocessing(
        224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.875, "bilinear"
    )
    assert found[11_221] == backbones.Preprocessing(224, (0.0,) * 3, (1.0,) * 3, 0.875, "bilinear")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("convnext_tiny", {"depths": (3, 3)}, "four"),
        ("convnext_tiny", {"image_size": 31}, "at least 32 x 32"),
        ("efficientnet_b0", {"width": 0}, "above 0"),
        ("resnext50_32x4d", {"width": 8}, "multiple of 16"),
    ],
)
def test_wrong_arguments(name, arguments, message):
    with pytest.raises(UserError, match=message):
        nnx.eval_shape(lambda: backbones.create(name, rngs=nnx.Rngs(0), **arguments))
