"""A finished run as timm's files: timm opens them, computes the same, and they come back bit for bit."""

import dataclasses
import json
import runpy
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import load_file

from fgvc_jax import backbones, cli
from fgvc_jax.errors import UserError
from fgvc_jax.export.timm import to_timm
from fgvc_jax.images.view import View
from fgvc_jax.model import Specification
from fgvc_jax.train import tree
from fgvc_jax.train.checkpoint import METRIC, Checkpoints
from fgvc_jax.weights import load_pretrained

CLASSES = ("käfer", "ant", "bee")
VIEW = View(64, 73, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic")
RESNET = Specification("resnet18", "baseline", CLASSES, VIEW, 64)
RESNET = dataclasses.replace(RESNET, backbone_arguments={"depths": (1, 1, 1, 1)})
VIT = Specification("vit_tiny_patch16_224", "baseline", CLASSES, VIEW, 64)
VIT = dataclasses.replace(VIT, backbone_arguments={"depth": 1, "width": 16, "heads": 2})
SWIN = Specification("swin_tiny_patch4_window7_224", "baseline", CLASSES, VIEW, 64)
SWIN = dataclasses.replace(
    SWIN,
    backbone_arguments={"depths": (1, 1, 1, 1), "width": 8, "heads": (1, 1, 2, 2), "window": 2},
)
CONVNEXT = Specification("convnext_tiny", "baseline", CLASSES, VIEW, 64)
CONVNEXT = dataclasses.replace(CONVNEXT, backbone_arguments={"depths": (1, 1, 1, 1)})
EFFICIENTNET = Specification("tf_efficientnet_b0", "baseline", CLASSES, VIEW, 64)
FAMILIES = {
    "resnet": RESNET,
    "vit": VIT,
    "swin": SWIN,
    "convnext": CONVNEXT,
    "efficientnet": EFFICIENTNET,
}


def finish(folder, specification):
    """A training phase with random weights and statistics; returns the module and them."""
    module = specification.build(3)
    static, params, stats = tree.split(module)
    rng = np.random.default_rng(0)

    def noisy(flat, low, high):
        return {
            path: (x + rng.uniform(low, high, x.shape)).astype(x.dtype) for path, x in flat.items()
        }

    params, stats = noisy(params, -0.1, 0.1), noisy(stats, 0, 0.5)
    folder.mkdir(parents=True)
    specification.save(folder / "model.json")
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(
        1, {"params": params, "batch_stats": stats, "step": jnp.int32(1)}, {METRIC: 0.5}
    )
    checkpoints.close()
    (folder / "DONE.json").write_text(json.dumps({"validation": {"best": {METRIC: 0.5}}}))
    return tree.merge(static, params, stats), params | stats


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of images of several sizes."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(5)
    for i, (width, height) in enumerate([(90, 70), (64, 64), (50, 120), (64, 80)]):
        rough = rng.integers(0, 256, (6, 6, 3), np.uint8)
        Image.fromarray(rough).resize((width, height), Image.BICUBIC).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES)
def exported(request, tmp_path_factory, photos, timm):
    """(specification, module, weights, folder of timm's files)."""
    top = tmp_path_factory.mktemp("export")
    module, weights = finish(top / "run" / "finetune", request.param)
    assert to_timm(top / "run", top / "out", images=[photos]) == top / "run" / "finetune"
    return request.param, module, weights, top / "out"


@pytest.fixture(scope="module")
def timm():
    # It imports torchvision, and the parity tests know how to where that was built for another torch.
    keep = runpy.run_path(str(Path(__file__).parents[1] / "parity" / "conftest.py"))
    yield pytest.importorskip("timm", reason="the reference")
    del keep


def test_timm_computes_the_same(exported, timm):
    torch = pytest.importorskip("torch", reason="the reference")
    _, module, _, out = exported
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    assert model.num_classes == 3
    images = np.random.default_rng(1).normal(size=(2, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()
    assert np.abs(expected).max() > 0.1
    with jax.default_matmul_precision("highest"):
        found = jax.jit(lambda images: module.predict(images)["scores"])(images)
    # float32 sums in another order.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)

    settings = timm.data.resolve_model_data_config(model)
    assert tuple(settings["input_size"]) == (3, 64, 64) and settings["interpolation"] == "bicubic"
    assert (*settings["mean"], *settings["std"]) == (*VIEW.mean, *VIEW.std)
    resize, crop = timm.data.create_transform(**settings).transforms[:2]
    assert (resize.size, *crop.size) == (73, 64, 64)
    assert tuple(model.pretrained_cfg["label_names"]) == CLASSES


def test_it_comes_back_bit_for_bit(exported):
    specification, _, weights, out = exported
    backbone = backbones.create(
        specification.backbone, image_size=64, rngs=nnx.Rngs(9), **specification.backbone_arguments
    )
    _, report = load_pretrained(backbone, str(out))
    _, params, stats = tree.split(backbone)
    back = params | stats
    assert {f"backbone/{path}" for path in back} == {
        p for p in weights if p.startswith("backbone/")
    }
    for path, array in back.items():
        np.testing.assert_array_equal(array, weights[f"backbone/{path}"], err_msg=path)
    head = load_file(out / "model.safetensors")
    names = sorted(report.head)
    np.testing.assert_array_equal(head[names[0]], weights["head/bias"])
    np.testing.assert_array_equal(head[names[1]].T, weights["head/kernel"])
    wants = backbone.info.preprocessing
    assert (wants.size, wants.mean, wants.std, wants.interpolation) == (64, *VIEW[2:5])
    assert round(64 / wants.crop_fraction) == 73


@pytest.mark.parametrize("size", [224, 384, 448, 300])
def test_timm_resizes_to_the_same_side(size):
    """It takes the floor of size / crop_pct, which rounding may put one pixel below."""
    from fgvc_jax.export.timm import _crop

    for resize in range(size, 2 * size):
        assert int(np.floor(size / _crop(size, resize))) == resize


@pytest.mark.parametrize(
    ("specification", "reason"),
    [
        (dataclasses.replace(VIT, method="pairs"), "'pairs' model, which does not give classes"),
        (
            dataclasses.replace(RESNET, backbone_arguments={"width": 8, "depths": (1, 1, 1, 1)}),
            r"timm's resnet18 cannot be made with width=8",
        ),
        (
            dataclasses.replace(VIT, view=VIEW._replace(squash=(70, 75))),
            r"squash images to \(70, 75\)",
        ),
    ],
)
def test_what_timm_has_no_model_for(specification, reason, tmp_path):
    finish(tmp_path / "finetune", specification)
    with pytest.raises(UserError, match=reason):
        to_timm(tmp_path / "finetune", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_padding_of_torchvisions_swin(timm, photos, tmp_path):
    """It goes to timm where both libraries compute alike, as with maps of 16, 8, 4 and 2 cells here."""
    arguments = SWIN.backbone_arguments | {"convention": "torchvision"}
    description = dataclasses.replace(SWIN, backbone_arguments=arguments)
    finish(tmp_path / "run", description)
    to_timm(tmp_path / "run", tmp_path / "out", images=[photos])
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    other = dataclasses.replace(description, backbone_arguments=arguments | {"window": 3})
    finish(tmp_path / "other", other)
    with pytest.raises(UserError, match=r"compute something else.*convention=timm"):
        to_timm(tmp_path / "other", tmp_path / "no")


def test_an_epsilon_that_timm_has_too():
    from fgvc_jax.export.timm import _layout

    for eps, refused in ((1e-5, False), (1e-3, True)):
        description = dataclasses.replace(
            EFFICIENTNET, backbone="efficientnet_b5", backbone_arguments={"eps": eps}
        )
        module = nnx.eval_shape(description.build)
        if refused:
            with pytest.raises(UserError, match=r"compute something else.*eps=1e-05"):
                _layout(description, module)
        else:
            _layout(description, module)


def test_squashed_images(timm, photos, tmp_path):
    finish(tmp_path / "run", dataclasses.replace(VIT, view=VIEW._replace(squash=(75, 75))))
    to_timm(tmp_path / "run", tmp_path / "out", images=[photos])
    config = json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]
    assert config["crop_mode"] == "squash" and int(64 / config["crop_pct"]) == 75
    backbone = backbones.create(
        "vit_tiny_patch16_224", image_size=64, rngs=nnx.Rngs(0), **VIT.backbone_arguments
    )
    _, report = load_pretrained(backbone, str(tmp_path / "out"))
    assert "crops in mode 'squash'" in report.text


# --- the commands


def command(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["fgvc", *map(str, arguments)])
    status = cli.main()
    return status, *capsys.readouterr()


def test_the_export_command(exported, photos, tmp_path, monkeypatch, capsys):
    out = exported[-1]
    run = out.parent / "run"
    tried = ("--images", photos)
    status, said, _ = command(
        monkeypatch, capsys, "export", run, f"--out={tmp_path / 'new'}", *tried
    )
    assert status == 0 and str(tmp_path / "new") in said
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "new" / name).read_bytes() == (out / name).read_bytes()
    # Not over the files of a run, which has a config.json too.
    status, _, error = command(monkeypatch, capsys, "export", run, f"--out={run}")
    assert status == 2 and "name a new or an empty folder" in error
    status, _, error = command(monkeypatch, capsys, "export", tmp_path, f"--out={tmp_path / 'x'}")
    assert status == 2 and "no finished classifier" in error


def test_the_weights_command(timm, photos, tmp_path, monkeypatch, capsys):
    from safetensors.numpy import save_file

    specification = dataclasses.replace(RESNET, backbone_arguments={})
    finish(tmp_path / "run", specification)
    to_timm(tmp_path / "run", tmp_path / "out", images=[photos])
    monkeypatch.setattr(backbones, "FAMILIES", (backbones.vit, backbones.resnet))
    monkeypatch.setattr(
        backbones.resnet,
        "VARIANTS",
        {name: backbones.resnet.VARIANTS[name] for name in ("resnet34", "resnet18")},
    )
    status, said, _ = command(monkeypatch, capsys, "weights", tmp_path / "out", r"--keys=bn1\..*")
    state = load_file(tmp_path / "out" / "model.safetensors")
    values = state["bn1.running_var"].astype(np.float64)
    numbers = (values.min(), values.max(), values.mean(), values.std())
    row = next(line.split() for line in said.splitlines() if line.startswith("bn1.running_var"))
    assert row == ["bn1.running_var", "[64]", "float32", *(f"{n:.4g}" for n in numbers), "0"]
    assert "layer1" not in said and status == 0
    statistics = sum(v.size for k, v in state.items() if "running" in k)
    total = sum(v.size for v in state.values()) - statistics
    assert f"{len(state)} arrays: {total:,} parameters, {statistics:,} numbers of running" in said
    assert "fits resnet18 exactly" in said and "head of 3 classes left out" in said
    assert "resnet34" not in said and "vit_" not in said

    state["conv1.weight"] = np.full((64, 3, 3, 3), np.nan, np.float32)
    save_file(state, tmp_path / "odd.safetensors")
    status, said, _ = command(monkeypatch, capsys, "weights", tmp_path / "odd.safetensors")
    assert next(line for line in said.splitlines() if line.startswith("conv1")).endswith(" 1728")
    assert "fits no backbone; the nearest is resnet18" in said
    assert "'conv1.weight' is [64, 3, 3, 3] in the file, [64, 3, 7, 7] in the backbone" in said
    save_file({"neck": np.zeros(0, np.float32)}, tmp_path / "odd.safetensors")
    status, said, _ = command(monkeypatch, capsys, "weights", tmp_path / "odd.safetensors")
    assert status == 0 and "are of no known family" in said

    for pattern, reason in (("(", "no regular expression"), ("x", "no key matches")):
        arguments = ("weights", tmp_path / "odd.safetensors", f"--keys={pattern}")
        status, _, error = command(monkeypatch, capsys, *arguments)
        assert status == 2 and reason in error
    (tmp_path / "bad.pth").write_bytes(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.")
    status, said, error = command(monkeypatch, capsys, "weights", tmp_path / "bad.pth")
    assert status == 2 and "error:" in error and "Traceback" not in error + said
