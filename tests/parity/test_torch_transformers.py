"""Transformers against timm's and torchvision's modules, through files in their real formats."""

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
from fgvc_jax.backbones import swin as swin_module
from fgvc_jax.backbones import vit as vit_module
from fgvc_jax.commands import weights as weights_command
from fgvc_jax.errors import UserError
from fgvc_jax.weights import swin as swin_weights
from fgvc_jax.weights import wanted_arguments
from fgvc_jax.weights.readers import Entry

torch = pytest.importorskip("torch", reason="parity needs torch: pip install -e '.[test]'")
torchvision = pytest.importorskip("torchvision", reason="parity needs torchvision")
timm = pytest.importorskip("timm", reason="parity needs timm")

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def from_file(name: str, path, **kw) -> "torch.nn.Module":
    """timm's model with the weights of a file, fitted by timm to the size that `kw` asks for."""
    overlay = {"file": str(path)}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kw).eval()


def shapes(name: str, **kw) -> nnx.Module:
    """A backbone without values: every one has to come from the file."""
    return nnx.eval_shape(lambda: backbones.create(name, **kw, rngs=nnx.Rngs(0)))


# --- ViT


def check_vit(module, model, x):
    """Every tap and `pooled`, against timm's VisionTransformer without a classifier."""
    side = x.shape[1] // model.patch_embed.patch_size[0]
    theirs = hook({f"block{i}": block for i, block in enumerate(model.blocks)})
    model.blocks[0].register_forward_pre_hook(lambda m, inputs: theirs.update(embed=inputs[0]))
    with torch.no_grad():
        pooled = model(to_torch(x))
    ours = forward(module, x)
    assert ours.maps.keys() == theirs.keys()
    for tap, tokens in theirs.items():
        patches = tokens[:, model.num_prefix_tokens :].unflatten(1, (side, side))
        assert relative(ours.maps[tap], patches) <= FLOAT32, tap
    assert relative(ours.pooled, pooled) <= FLOAT32
    assert relative(ours.class_token, pooled) <= FLOAT32


@pytest.mark.parametrize("size", [518, 98])
def test_dinov2_with_registers_of_timm(size, tmp_path):
    # Of full size. The position embedding is made for 518 px.
    name, path = "vit_small_patch14_reg4_dinov2", tmp_path / "model.safetensors"
    save(randomise(timm.create_model(name)), path)
    module = shapes(name, image_size=size)
    _, report = load_pretrained(module, str(path))
    assert report.resized == ([] if size == 518 else ["pos_embed"])
    assert module.info.preprocessing == backbones.Preprocessing(size, *IMAGENET, 1.0, "bicubic")
    check_vit(module, from_file(name, path, img_size=size), images(size, batch=1))


def save(model, path):
    from safetensors.torch import save_file

    save_file(model.state_dict(), path)


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("size", [56, 84])
def test_dinov2_of_its_own_repository(registers, size, tmp_path):
    # Its files name the registers differently and give the class token a position in any case.
    name = f"vit_small_patch14_{'reg4_' if registers else ''}dinov2"
    shape = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 56}
    model = timm.create_model(name, **shape | {"no_embed_class": False})
    state = randomise(model).state_dict()
    state["mask_token"] = torch.randn(1, 48)
    if registers:
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = state["pos_embed"][:, registers:]  # timm made rows for the registers
    assert state["pos_embed"].shape == (1, 1 + 16, 48)
    path = tmp_path / "dinov2.pth"
    torch.save(state, path)

    kw = {"depth": 2, "width": 48, "heads": 3, "image_size": size}
    module = shapes(name, **kw)
    _, report = load_pretrained(module, str(path))
    assert report.layout.startswith("layout of DINOv2") and not report.differences()
    check_vit(module, from_file(name, path, **shape | {"img_size": size}), images(size))


def google(state: dict, prefix: str, numbers: tuple[int, int, int, int]) -> dict:
    """timm's arrays under Google's names: kernels [in, ..., out], heads apart."""
    norm1, attention, norm2, mlp = numbers
    arrays = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
        "pre_logits/kernel": np.eye(48, dtype=np.float32),
        "pre_logits/bias": np.zeros(48, np.float32),
    }
    for i in range(2):
        there, here = f"blocks.{i}", f"Transformer/encoderblock_{i}"
        for number, name in ((norm1, "norm1"), (norm2, "norm2")):
            arrays[f"{here}/LayerNorm_{number}/scale"] = state[f"{there}.{name}.weight"]
            arrays[f"{here}/LayerNorm_{number}/bias"] = state[f"{there}.{name}.bias"]
        for number in (0, 1):
            layer = f"{there}.mlp.fc{number + 1}"
            arrays[f"{here}/MlpBlock_{mlp}/Dense_{number}/kernel"] = state[f"{layer}.weight"].T
            arrays[f"{here}/MlpBlock_{mlp}/Dense_{number}/bias"] = state[f"{layer}.bias"]
        heads = f"{here}/MultiHeadDotProductAttention_{attention}"
        weights = np.split(state[f"{there}.attn.qkv.weight"], 3)
        biases = np.split(state[f"{there}.attn.qkv.bias"], 3)
        for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            arrays[f"{heads}/{name}/kernel"] = weight.T.reshape(48, 3, 16)
            arrays[f"{heads}/{name}/bias"] = bias.reshape(3, 16)
        arrays[f"{heads}/out/kernel"] = state[f"{there}.attn.proj.weight"].T.reshape(3, 16, 48)
        arrays[f"{heads}/out/bias"] = state[f"{there}.attn.proj.bias"]
    return {prefix + key: array for key, array in arrays.items()}


@pytest.mark.parametrize("prefix", ["", "opt/target/", "params/"])
def test_google(prefix, tmp_path):
    # timm reads its own copy of the file. big_vision gives the class token no position.
    big_vision = prefix == "params/"
    shape = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 48}
    shape |= {"num_classes": 5, "no_embed_class": big_vision}
    source = timm.models.VisionTransformer(patch_size=16, **shape)
    state = {key: value.numpy() for key, value in randomise(source).state_dict().items()}
    arrays = google(state, prefix, (0, 0, 1, 0) if big_vision else (0, 1, 2, 3))
    name = "pos_embedding" if big_vision else "Transformer/posembed_input/pos_embedding"
    arrays[prefix + name] = state["pos_embed"]
    if prefix == "opt/target/":
        arrays["opt/state/step"] = np.asarray(10_000)
    np.savez(tmp_path / "vit.npz", **arrays)

    model = timm.models.VisionTransformer(patch_size=16, **shape).eval()
    model.load_pretrained(str(tmp_path / "vit.npz"))
    model.reset_classifier(0)
    module = small("vit_base_patch16_224")
    _, report = load_pretrained(module, str(tmp_path / "vit.npz"))
    assert report.layout == "layout of Google, npz" and not report.differences()
    assert "head.weight" in report.head and "head.pre_logits.weight" in report.head
    assert module.info.preprocessing[1:] == ((0.5,) * 3, (0.5,) * 3, 0.9, "bicubic")
    check_vit(module, model, images(48))


def small(name, size=48):
    return shapes(name, depth=2, width=48, heads=3, image_size=size)


def test_google_with_a_part_missing(tmp_path):
    shape = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 48, "num_classes": 5}
    source = timm.models.VisionTransformer(patch_size=16, **shape)
    state = {key: value.numpy() for key, value in source.state_dict().items()}
    arrays = google(state, "", (0, 1, 2, 3))
    del arrays["Transformer/encoderblock_1/MultiHeadDotProductAttention_1/key/kernel"]
    np.savez(tmp_path / "vit.npz", **arrays)
    with pytest.raises(UserError, match=r"blocks\.1\.attn\.qkv\.weight(.|\n)*attn\.query\.weight"):
        load_pretrained(small("vit_base_patch16_224"), str(tmp_path / "vit.npz"))


def test_miil(tmp_path):
    name = "vit_base_patch16_224_miil"
    model = timm.create_model(name, depth=2, embed_dim=48, num_heads=3, img_size=48, num_classes=0)
    torch.save({"state_dict": randomise(model).state_dict()}, tmp_path / "miil.pth")
    module = small("vit_base_patch16_224")
    _, report = load_pretrained(module, str(tmp_path / "miil.pth"))
    assert report.layout.startswith("layout of MIIL")
    assert (module.blocks[1].attn.qkv.bias[...] == 0).all()
    assert module.info.preprocessing[1:] == preprocessing(model)[1:]
    check_vit(module, model, images(48))


def test_vit_with_another_pooling_is_refused(tmp_path):
    kw = {"patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}
    model = timm.models.VisionTransformer(img_size=48, global_pool="avg", **kw)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    with pytest.raises(UserError, match=r"fc_norm\.weight"):
        load_pretrained(small("vit_base_patch16_224"), str(tmp_path / "vit.pth"))


# --- Swin


def check_swin(module, model, stages, mergings, norm, x, tolerance=FLOAT32):
    """Every tap and `pooled`; `stages` are the blocks of each stage in torch, `mergings` lie between them."""
    blocks = {f"merged{i + 1}": merging for i, merging in enumerate(mergings)}
    for i, (*early, last) in enumerate(stages):
        blocks |= {f"layer{i + 1}/{number}": block for number, block in enumerate(early)}
        blocks[f"layer{i + 1}"] = last
    theirs = hook(blocks | {"norm": norm})
    with torch.no_grad():
        model(to_torch(x))
    ours = forward(module, x)
    pooled = theirs.pop("norm").mean((1, 2))
    assert ours.maps.keys() == theirs.keys()
    for tap, value in theirs.items():
        assert relative(ours.maps[tap], value) <= tolerance, tap
    assert relative(ours.pooled, pooled) <= tolerance
    assert ours.class_token is None


def check_timm_swin(module, model, x, tolerance=FLOAT32):
    stages, mergings = zip(
        *((stage.blocks, stage.downsample) for stage in model.layers), strict=True
    )
    check_swin(module, model, stages, mergings[1:], model.norm, x, tolerance)


TINY = "swin_tiny_patch4_window7_224"
# Blocks of both kinds, and heads of 8 channels.
SWIN = {"depths": (2, 2, 1, 1), "width": 16, "heads": (2, 4, 8, 16)}
TIMM = {"depths": (2, 2, 1, 1), "embed_dim": 16, "num_heads": (2, 4, 8, 16)}


@pytest.mark.parametrize("size", [224, 160])
def test_swin_tiny_of_timm(size, tmp_path):
    # At 160 px the maps are of 40, 20, 10 and 5 cells: windows are padded, and the last one shrinks.
    save(randomise(timm.create_model(TINY)), tmp_path / "model.safetensors")
    module = shapes(TINY, image_size=size)
    _, report = load_pretrained(module, str(tmp_path / "model.safetensors"))
    assert sorted(report.head) == ["head.fc.bias", "head.fc.weight"]
    assert len(report.resized) == (0 if size == 224 else 2)
    model = from_file(TINY, tmp_path / "model.safetensors", img_size=size)
    check_timm_swin(module, model, images(size, batch=1))


LARGE = [pytest.param(*case, marks=pytest.mark.slow) for case in ((448, 7), (448, 14), (384, 12))]


@pytest.mark.parametrize(("size", "window"), [(224, 14), (192, 12), *LARGE])
def test_swin_of_timm_at_other_sizes_and_windows(size, window, tmp_path):
    torch.save(randomise(timm.create_model(TINY, **TIMM)).state_dict(), tmp_path / "swin.pth")
    module = shapes(TINY, **SWIN, image_size=size, window=window)
    load_pretrained(module, str(tmp_path / "swin.pth"))
    model = from_file(TINY, tmp_path / "swin.pth", **TIMM, img_size=size, window_size=window)
    check_timm_swin(module, model, images(size, batch=1))


def test_swin_of_timm_with_windows_that_shrink_on_one_axis(tmp_path):
    # Maps of 5 x 7 cells in the last stage; and 1 x 5, whose table is as long as that of a square window.
    for shape in ((160, 224), (32, 160)):
        torch.save(randomise(timm.create_model(TINY, **TIMM)).state_dict(), tmp_path / "swin.pth")
        module = shapes(TINY, **SWIN, image_size=shape)
        load_pretrained(module, str(tmp_path / "swin.pth"))
        model = from_file(TINY, tmp_path / "swin.pth", **TIMM, img_size=shape)
        check_timm_swin(module, model, noise(shape).astype(np.float32))


def test_swin_of_microsoft(tmp_path):
    # Patch merging belongs to the stage before, and constants are among the weights; so too timm before 0.9.
    state = {}
    for key, value in randomise(timm.create_model(TINY, **TIMM)).state_dict().items():
        for stage in (1, 2, 3):
            key = key.replace(f"layers.{stage}.downsample", f"layers.{stage - 1}_.downsample")
        state[key.replace("_.", ".").replace("head.fc.", "head.")] = value
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    torch.save({"model": state}, tmp_path / "swin.pth")
    module = shapes(TINY, **SWIN)
    _, report = load_pretrained(module, str(tmp_path / "swin.pth"))
    assert report.layout.startswith("layout of Microsoft") and not report.differences()
    assert sorted(report.head) == ["head.bias", "head.weight"]
    model = from_file(TINY, tmp_path / "swin.pth", **TIMM)
    check_timm_swin(module, model, images(224, batch=1))


def check_torchvision_swin(module, model, x, tolerance=FLOAT32):
    _, *layers = model.features
    check_swin(module, model, layers[::2], layers[1::2], model.norm, x, tolerance)


def test_swin_t_of_torchvision(tmp_path):
    model = randomise(torchvision.models.swin_t())
    torch.save(model.state_dict(), tmp_path / "swin_t.pth")
    module = shapes(TINY, convention="torchvision")
    _, report = load_pretrained(module, str(tmp_path / "swin_t.pth"))
    assert sorted(report.head) == ["head.bias", "head.weight"]
    check_torchvision_swin(module, model, images(224, batch=1))


@pytest.mark.parametrize("name", ["swin_t", "swin_s", "swin_b"])
def test_names_and_preprocessing_of_torchvision_swin(name):
    with torch.device("meta"):
        state = getattr(torchvision.models, name)().state_dict()
    entries = {key: Entry(tuple(value.shape), np.float32, None) for key, value in state.items()}
    layouts = swin_weights.TABLE.layouts
    layout = next(one for one in layouts if one.marker in entries and one.when(entries))

    ours = {"t": "tiny", "s": "small", "b": "base"}[name[-1]]
    ours = f"swin_{ours}_patch4_window7_224"
    module = shapes(ours)
    keys = ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(module))]
    there = [key for key in layout.translate(entries) if not key.startswith("head.")]
    assert sorted(map(layout.key, keys)) == sorted(there)

    transforms = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].transforms()
    assert module.info.preprocessing._replace(**layout.preprocessing) == backbones.Preprocessing(
        transforms.crop_size[0],
        tuple(transforms.mean),
        tuple(transforms.std),
        transforms.crop_size[0] / transforms.resize_size[0],
        transforms.interpolation.value,
    )


# float64 throughout: torch and we differ by 1e-15 of the largest value, a wrong convention by 1e-2.
DOUBLE = {"dtype": jnp.float64, "param_dtype": jnp.float64}
FLOAT64 = 1e-10
# Shifted blocks in every stage, windows of 7. At 224 nothing is padded; (32, 224) has maps smaller than a
# window on one axis alone; the others have odd maps, padded ones, and ones that padding makes one window.
DEEP = {"depths": (2, 2, 2, 2), "width": 8, "heads": (1, 2, 2, 4)}
SHAPES = [(224, 224), (160, 160), (320, 256), (152, 216), (60, 100), (32, 224)]


def noise(shape, batch=1):
    return np.random.default_rng(0).normal(size=(batch, *shape, 3))


def swin_of_torchvision():
    return torchvision.models.SwinTransformer(
        *([4, 4], 8, [2, 2, 2, 2], [1, 2, 2, 4], [7, 7]), stochastic_depth_prob=0.0
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_swin_of_torchvision_at_any_size(shape, tmp_path):
    model = randomise(swin_of_torchvision()).double()
    torch.save(model.state_dict(), tmp_path / "swin.pth")
    with jax.enable_x64(True):
        module = shapes(TINY, **DEEP, **DOUBLE, convention="torchvision", image_size=shape)
        _, report = load_pretrained(module, str(tmp_path / "swin.pth"))
        assert not report.resized  # its windows keep their size
        check_torchvision_swin(module, model, noise(shape), FLOAT64)


@pytest.mark.parametrize("shape", SHAPES)
def test_swin_of_timm_made_for_any_size(shape, tmp_path):
    timm_shape = {"depths": (2, 2, 2, 2), "embed_dim": 8, "num_heads": (1, 2, 2, 4)}
    model = timm.create_model(TINY, **timm_shape, img_size=shape, num_classes=0)
    model = randomise(model).double()
    torch.save(model.state_dict(), tmp_path / "swin.pth")
    with jax.enable_x64(True):
        module = shapes(TINY, **DEEP, **DOUBLE, image_size=shape)
        _, report = load_pretrained(module, str(tmp_path / "swin.pth"))
        assert not report.resized
        check_timm_swin(module, model, noise(shape), FLOAT64)


@pytest.mark.parametrize("shape", [(152, 216), (448, 320), (60, 100)])
def test_swin_of_timm_called_at_another_size(shape, tmp_path):
    # As timm's dynamic_img_size: windows and shifts are those of the 224 px that it is made for.
    timm_shape = {"depths": (2, 2, 2, 2), "embed_dim": 8, "num_heads": (1, 2, 2, 4)}
    model = timm.create_model(TINY, **timm_shape, dynamic_img_size=True, num_classes=0)
    model = randomise(model).double()
    torch.save(model.state_dict(), tmp_path / "swin.pth")
    with jax.enable_x64(True):
        module = shapes(TINY, **DEEP, **DOUBLE)
        load_pretrained(module, str(tmp_path / "swin.pth"))
        check_timm_swin(module, model, noise(shape), FLOAT64)


def test_swin_gradients_of_torchvision_in_float64(tmp_path):
    # Padded and shifted maps of 38 x 26, 19 x 13, 10 x 7 and 5 x 4 cells.
    model = randomise(swin_of_torchvision()).double()
    model.head = torch.nn.Identity()
    torch.save(model.state_dict(), tmp_path / "swin.pth")
    with jax.enable_x64(True):
        module = shapes(TINY, **DEEP, **DOUBLE, convention="torchvision")
        _, report = load_pretrained(module, str(tmp_path / "swin.pth"))
        check_gradients(module, report, model, noise((152, 104), 2), model)


def test_swin_weights_want_their_own_convention(tmp_path):
    torch.save(swin_of_torchvision().state_dict(), tmp_path / "torchvision.pth")
    timm_shape = {"depths": (2, 2, 2, 2), "embed_dim": 8, "num_heads": (1, 2, 2, 4)}
    torch.save(timm.create_model(TINY, **timm_shape).state_dict(), tmp_path / "timm.pth")
    for theirs, other in (("torchvision", "timm"), ("timm", "torchvision")):
        file = str(tmp_path / f"{theirs}.pth")
        assert wanted_arguments(TINY, file) == {"convention": theirs}
        load_pretrained(shapes(TINY, **DEEP, convention=theirs), file)
        with pytest.raises(UserError, match=f"give it the argument convention={theirs}"):
            load_pretrained(shapes(TINY, **DEEP, convention=other), file)


@pytest.mark.parametrize(
    ("library", "expected"),
    [
        (
            "torchvision",
            "fits swin_tiny_patch4_window7_224 exactly (layout of torchvision, torch zip), made with "
            "convention=torchvision; head of 1000 classes left out",
        ),
        (
            "timm",
            "fits swin_tiny_patch4_window7_224 exactly (layout of timm, torch zip); head of 1000 "
            "classes left out",
        ),
    ],
)
def test_the_weights_command_names_what_fits(library, expected, tmp_path, monkeypatch, capsys):
    model = torchvision.models.swin_t() if library == "torchvision" else timm.create_model(TINY)
    torch.save(model.state_dict(), tmp_path / "swin.pth")
    for family in backbones.FAMILIES:  # one of each, and of Swin two: all of them take a minute
        few = list(family.VARIANTS.items())[: 2 if family is swin_module else 1]
        monkeypatch.setattr(family, "VARIANTS", dict(few))
    arguments = ["weights", str(tmp_path / "swin.pth"), "--keys=.*head.*bias"]
    monkeypatch.setattr("sys.argv", arguments)
    weights_command.main()
    said = capsys.readouterr().out.splitlines()
    # At another image size other windows would fit too, with their biases resized: that is said as well.
    fits = [line for line in said if "fit" in line]
    assert fits[0] == expected and all(line.startswith("fits swin_tiny_") for line in fits)
    assert "efficientnet" not in " ".join(said)


def test_version_2_of_swin_is_refused(tmp_path):
    from torchvision.models import swin_transformer as there

    model = there.SwinTransformer(
        *([4, 4], 16, [2, 2, 2, 2], [2, 4, 8, 16], [7, 7]),
        block=there.SwinTransformerBlockV2,
        downsample_layer=there.PatchMergingV2,
    )
    torch.save(model.state_dict(), tmp_path / "swin.pth")
    with pytest.raises(UserError, match="logit_scale"):
        load_pretrained(shapes(TINY, **SWIN), str(tmp_path / "swin.pth"))


@pytest.mark.parametrize(
    ("there", "here"),
    [
        *((7, (12, 12)), (12, (7, 7)), (7, (14, 14)), (7, (2, 2)), (3, (1, 1)), (7, (7, 7))),
        *((7, (5, 7)), (7, (7, 2)), (7, (12, 4))),
    ],
)
def test_relative_position_biases_for_another_window(there, here):
    from timm.layers import resize_rel_pos_bias_table

    table = torch.randn((2 * there - 1) ** 2, 3, generator=torch.Generator().manual_seed(0))
    rows = (2 * here[0] - 1) * (2 * here[1] - 1)
    expected = resize_rel_pos_bias_table(table, here, (rows, 3))
    ours = swin_module.resize_bias_table(jnp.asarray(table.numpy()), here)
    assert relative(ours, expected) <= FLOAT32


# --- both


def preprocessing(model) -> backbones.Preprocessing:
    cfg = model.pretrained_cfg
    return backbones.Preprocessing(
        cfg["input_size"][1], cfg["mean"], cfg["std"], cfg["crop_pct"], cfg["interpolation"]
    )


@pytest.mark.parametrize("name", [*vit_module.VARIANTS, *swin_module.VARIANTS])
def test_shapes_and_preprocessing_of_every_variant(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    module = shapes(name)
    ours = sorted(tuple(sorted(p.shape)) for p in jax.tree.leaves(nnx.state(module, nnx.Param)))
    assert ours == sorted(tuple(sorted(p.shape)) for p in model.parameters())
    assert module.info.preprocessing == preprocessing(model)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_dinov2_gradients_in_float64(remat, tmp_path):
    name = "vit_small_patch14_reg4_dinov2"
    model = timm.create_model(name, img_size=42, depth=2, embed_dim=48, num_heads=3, num_classes=0)
    torch.save(randomise(model).double().state_dict(), tmp_path / "vit.pth")
    with jax.enable_x64(True):
        shape = {"image_size": 42, "depth": 2, "width": 48, "heads": 3}
        module = shapes(name, **shape, **DOUBLE, remat=remat)
        _, report = load_pretrained(module, str(tmp_path / "vit.pth"))
        check_gradients(module, report, model, images(42, 2, np.float64), model)


def test_swin_gradients_in_float64(tmp_path):
    # Maps of 18, 9, 5 and 3 cells: a shifted map that is padded, odd maps, a window that shrinks.
    shape = {"depths": (2, 1, 1, 1), "img_size": 72, "window_size": 4}
    model = timm.create_model(TINY, **TIMM | shape, drop_path_rate=0.0, num_classes=0)
    torch.save(randomise(model).double().state_dict(), tmp_path / "swin.pth")
    with jax.enable_x64(True):
        shape = {"depths": (2, 1, 1, 1), "image_size": 72, "window": 4}
        module = shapes(TINY, **SWIN | shape, **DOUBLE)
        _, report = load_pretrained(module, str(tmp_path / "swin.pth"))
        check_gradients(module, report, model, images(72, 2, np.float64), model)
