"""Backbones against torchvision's and timm's modules, through files in their real formats.

torch's weights are random, with BatchNorm statistics that are far from 0 and 1, saved as their
libraries save them, and read back by `load_pretrained`.
"""

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

torch = pytest.importorskip("torch", reason="parity needs torch: pip install -e '.[test]'")
torchvision = pytest.importorskip("torchvision", reason="parity needs torchvision")
timm = pytest.importorskip("timm", reason="parity needs timm")


def resnet_blocks(model) -> dict:
    blocks = {}
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        *early, last = list(getattr(model, stage))
        blocks |= {f"{stage}/{i}": block for i, block in enumerate(early)} | {stage: last}
    return blocks


def grid(tokens, side: int):
    """[B, 1 + side * side, D] with the class token -> [B, D, side, side]."""
    return tokens[:, 1:].transpose(1, 2).reshape(tokens.shape[0], -1, side, side)


@pytest.mark.parametrize("source", ["torchvision/resnet18.pth", "timm/resnet18.safetensors"])
@pytest.mark.parametrize("size", [64, 75])
def test_resnet18(source, size, tmp_path):
    # 75 is odd at every stride: wrong padding shows there.
    if source.startswith("torchvision"):
        model, path = randomise(torchvision.models.resnet18()), tmp_path / "resnet18.pth"
        torch.save(model.state_dict(), path)
    else:
        from safetensors.torch import save_file

        model, path = randomise(timm.create_model("resnet18")), tmp_path / "model.safetensors"
        save_file(model.state_dict(), path)
    check_resnet("resnet18", model, path, size)


def test_resnet50_legacy_file_of_a_training_run(tmp_path):
    model, path = randomise(torchvision.models.resnet50()), tmp_path / "checkpoint.pt"
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, path, _use_new_zipfile_serialization=False)
    check_resnet("resnet50", model, path, 64)


def check_resnet(name, model, path, size):
    module = backbones.create(name, rngs=nnx.Rngs(0))
    _, report = load_pretrained(module, str(path))
    assert sorted(report.head) == ["fc.bias", "fc.weight"]
    assert not report.differences()

    theirs = hook(
        resnet_blocks(model) | {"pooled": getattr(model, "avgpool", None) or model.global_pool}
    )
    x = images(size)
    with torch.no_grad():
        model(to_torch(x))
    ours = forward(module, x)
    assert ours.maps.keys() | {"pooled"} == theirs.keys()
    for tap, value in ours.maps.items():
        assert relative(value.transpose(0, 3, 1, 2), theirs[tap]) <= FLOAT32, tap
    assert relative(ours.pooled, theirs["pooled"].flatten(1)) <= FLOAT32


def check_vit(module, model, blocks, embed, norm, size):
    """`embed` is a torch module whose input enters the first block, `blocks` and `norm` give their output."""
    side = size // 16
    theirs = hook({f"block{i}": block for i, block in enumerate(blocks)} | {"norm": norm})
    embed.register_forward_pre_hook(lambda m, inputs: theirs.update(embed=inputs[0]))
    x = images(size)
    with torch.no_grad():
        model(to_torch(x))
    ours = forward(module, x)
    assert ours.maps.keys() | {"norm"} == theirs.keys()
    for tap, value in ours.maps.items():
        assert relative(value.transpose(0, 3, 1, 2), grid(theirs[tap], side)) <= FLOAT32, tap
    assert relative(ours.pooled, theirs["norm"][:, 0]) <= FLOAT32
    assert relative(ours.class_token, theirs["norm"][:, 0]) <= FLOAT32


def test_vit_b_16_of_torchvision(tmp_path):
    model, path = randomise(torchvision.models.vit_b_16(image_size=48)), tmp_path / "vit_b_16.pth"
    # The published file names the two layers of an MLP as torchvision 0.12 did.
    state = {
        key.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): value
        for key, value in model.state_dict().items()
    }
    assert state.keys() != model.state_dict().keys()
    torch.save(state, path)
    module = backbones.create("vit_base_patch16_224", image_size=48, rngs=nnx.Rngs(0))
    _, report = load_pretrained(module, str(path))
    assert sorted(report.head) == ["heads.head.bias", "heads.head.weight"]
    assert module.info.preprocessing == backbones.Preprocessing(
        48, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.875, "bilinear"
    )
    layers = list(model.encoder.layers)
    check_vit(module, model, layers, layers[0], model.encoder.ln, 48)


@pytest.mark.parametrize("size", [32, 64])
def test_vit_tiny_of_timm_at_another_size(size, tmp_path):
    # The file is made for 48 px. timm resizes the position embedding when it loads it for another size.
    from safetensors.torch import save_file

    source = randomise(timm.create_model("vit_tiny_patch16_224", img_size=48))
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=size,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "model.safetensors"), "num_classes": 1000},
    ).eval()
    assert torch.equal(model.norm.weight, source.norm.weight)

    module = backbones.create("vit_tiny_patch16_224", image_size=size, rngs=nnx.Rngs(0))
    _, report = load_pretrained(module, str(tmp_path / "model.safetensors"))
    assert report.resized == ["pos_embed"]
    assert relative(module.pos_embed[...], model.pos_embed) <= FLOAT32
    assert np.array_equal(module.pos_embed[0, 0], source.pos_embed[0, 0].detach().numpy())
    check_vit(module, model, list(model.blocks), model.blocks[0], model.norm, size)


def test_vit_called_at_another_size(tmp_path):
    # As timm's dynamic_img_size, not square.
    kw = {"patch_size": 16, "embed_dim": 48, "depth": 1, "num_heads": 3, "num_classes": 0}
    model = timm.models.VisionTransformer(img_size=48, dynamic_img_size=True, **kw)
    torch.save(randomise(model).state_dict(), tmp_path / "vit.pth")
    module = backbones.create(
        *("vit_tiny_patch16_224",), image_size=48, depth=1, width=48, heads=3, rngs=nnx.Rngs(0)
    )
    load_pretrained(module, str(tmp_path / "vit.pth"))
    x = np.random.default_rng(0).normal(size=(2, 32, 80, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = model(to_torch(x))
    assert relative(forward(module, x).pooled, theirs) <= FLOAT32


def test_resnet_gradients_and_statistics_in_float64(tmp_path):
    block = torchvision.models.resnet.Bottleneck
    model = randomise(torchvision.models.ResNet(block, [2, 1, 1, 1])).double()
    torch.save(model.state_dict(), tmp_path / "resnet.pth")
    model.fc = torch.nn.Identity()
    with jax.enable_x64(True):
        kw = {"dtype": jnp.float64, "param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}
        module = backbones.create("resnet50", depths=(2, 1, 1, 1), **kw)
        _, report = load_pretrained(module, str(tmp_path / "resnet.pth"))
        before = np.asarray(module.bn1.mean[...])
        check_gradients(module, report, model, images(48, 4, np.float64), model)
        assert np.array_equal(before, module.bn1.mean[...])  # the module outside is untouched


def test_vit_gradients_in_float64(tmp_path):
    kw = {"patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}
    model = randomise(timm.models.VisionTransformer(img_size=48, **kw)).double()
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    with jax.enable_x64(True):
        kw = {"dtype": jnp.float64, "param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}
        size = {"image_size": 48, "depth": 2, "width": 48, "heads": 3}
        module = backbones.create("vit_tiny_patch16_224", **size, **kw)
        _, report = load_pretrained(module, str(tmp_path / "vit.pth"))
        check_gradients(module, report, model, images(48, 2, np.float64), model)


@pytest.mark.parametrize("groups", [3, 4])
def test_batch_norm_groups_against_a_torch_layer_for_each(groups):
    """Outputs, gradients and, over two steps, running statistics, of which the groups' mean is kept."""
    from fgvc_jax.layers import norm

    def error(ours, theirs):  # relative to the largest; not noted, as it is of no backbone
        theirs = theirs.detach().numpy()
        theirs = np.moveaxis(theirs, 1, -1) if theirs.ndim == 4 else theirs
        return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()

    rng = np.random.default_rng(0)
    x = 3 + 2 * rng.normal(size=(12, 4, 3, 5)) * np.arange(1, 13)[:, None, None, None]
    weight = rng.normal(size=x.shape)  # of a loss that is no symmetric one
    scale, bias = rng.normal(size=(2, 5))
    layers = [torch.nn.BatchNorm2d(5, eps=1e-3, momentum=0.2).double() for _ in range(groups)]
    with jax.enable_x64(True):
        layer = norm.BatchNorm(5, eps=1e-3, momentum=0.8, groups=groups, param_dtype=jnp.float64)
        graph, params, stats = nnx.split(layer, nnx.Param, ...)
        params = {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)}

        @jax.jit
        def step(params, stats, x):
            def loss(params, x):
                merged = nnx.merge(graph, params, stats)
                y = merged(x)
                return (weight * y**2).sum(), (
                    y,
                    nnx.to_pure_dict(nnx.state(merged, nnx.BatchStat)),
                )

            (_, found), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)
            return *found, *gradients

        stats = nnx.to_pure_dict(stats)
        for number in range(2):
            batch = x + number
            y, stats, g_params, g_x = step(params, stats, batch)
            total = {"scale": 0.0, "bias": 0.0}
            for rows, there in zip(np.split(np.arange(12), groups), layers, strict=True):
                with torch.no_grad():
                    there.weight[:], there.bias[:] = torch.tensor(scale), torch.tensor(bias)
                there.zero_grad()
                part, w = (
                    torch.tensor(np.moveaxis(a[rows], -1, 1).copy()) for a in (batch, weight)
                )
                part.requires_grad_()
                out = there(part)
                (w * out**2).sum().backward()
                # The same numbers in float64 in another order; measured 1e-15 or less.
                assert error(y[rows], out) <= 1e-12
                assert error(g_x[rows], part.grad) <= 1e-12
                total["scale"] += there.weight.grad
                total["bias"] += there.bias.grad
            for name, expected in total.items():
                assert error(g_params[name], expected) <= 1e-12
        mean = torch.stack([there.running_mean for there in layers]).mean(0)
        var = torch.stack([there.running_var for there in layers]).mean(0)
        assert error(stats["mean"], mean) <= 1e-12
        assert error(stats["var"], var) <= 1e-12


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (6, 5)])
def test_batch_norm_of_torch_over_three_steps(shape):
    # 2d maps and vectors, other eps and momentum; statistics and outputs in float64 to 1e-12.
    from fgvc_jax.layers.norm import BatchNorm

    kind = torch.nn.BatchNorm2d if len(shape) == 4 else torch.nn.BatchNorm1d
    theirs = kind(shape[-1], eps=1e-3, momentum=0.01, dtype=torch.float64)
    with jax.enable_x64(True):
        ours = BatchNorm(shape[-1], eps=1e-3, momentum=0.99, param_dtype=jnp.float64)
        rng = np.random.default_rng(0)
        for _ in range(3):
            x = 3 + 2 * rng.normal(size=shape)
            there = theirs(torch.from_numpy(np.moveaxis(x, -1, 1).copy()))
            assert relative(np.moveaxis(np.asarray(ours(x)), -1, 1), there) <= 1e-12
        assert relative(ours.mean[...], theirs.running_mean) <= 1e-12
        assert relative(ours.var[...], theirs.running_var) <= 1e-12
        ours.eval()
        theirs.eval()
        there = theirs(torch.from_numpy(np.moveaxis(x, -1, 1).copy()))
        assert relative(np.moveaxis(np.asarray(ours(x)), -1, 1), there) <= 1e-12
