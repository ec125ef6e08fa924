"""A checkpoint of your own: pytest tests/parity --torch-checkpoint=FILE [--torch-model=NAME]

Finds the backbone that the file fits, builds the library's model around the same file, and compares the
pooled features in float32.
"""

import pytest
from compare import (
    FLOAT32,
    TORCHVISION,
    forward,
    images,
    load_pretrained,
    randomise,
    relative,
    to_torch,
)
from flax import nnx

from fgvc_jax import backbones
from fgvc_jax.errors import UserError
from fgvc_jax.weights import arguments_for, match, open_weights

torch = pytest.importorskip("torch", reason="parity needs torch: pip install -e '.[test]'")
torchvision = pytest.importorskip("torchvision", reason="parity needs torchvision")
timm = pytest.importorskip("timm", reason="parity needs timm")


def shapes(name: str, arguments: dict) -> nnx.Module:
    return nnx.eval_shape(lambda: backbones.create(name, **arguments, rngs=nnx.Rngs(0)))


def fitting(path: str) -> tuple[str, str]:
    """(name of the backbone, layout) that a file fits without a difference; the first where several do."""
    weights = open_weights(path)
    for family in backbones.FAMILIES:
        for name in family.VARIANTS:
            try:
                module = shapes(name, arguments_for(name, weights))
            except UserError:
                break  # names of another family
            report, _, layout = match(module, weights)
            if not (report.refused or report.differences() or report.resized):
                return name, layout.name
    pytest.fail(f"{path} fits no backbone at its own size: fgvc weights {path} says why")


def by_torch(name: str, layout: str, path: str) -> "torch.nn.Module":
    """The library's model with the file's weights, from images to pooled features."""
    if layout.startswith("torchvision"):
        model = getattr(torchvision.models, TORCHVISION.get(name, name))(weights=None)
        state = torch.load(path, map_location="cpu", weights_only=True)
        for container in ("state_dict", "model", "model_state_dict"):
            state = state.get(container, state)
        state = {key.removeprefix("module."): value for key, value in state.items()}
        head = next(h for h in ("fc", "heads", "head", "classifier") if hasattr(model, h))
        ours = {key: value for key, value in state.items() if not key.startswith(f"{head}.")}
        lost = model.load_state_dict(ours, strict=False)
        assert not lost.unexpected_keys and all(k.startswith(head) for k in lost.missing_keys)
        setattr(model, head, torch.nn.Identity())
        return model.eval()
    overlay = {"file": path}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0)
    return model.eval()


def check(path: str, model_name: str | None = None) -> float:
    name, layout = fitting(path)
    module = shapes(name, arguments_for(name, open_weights(path)))
    load_pretrained(module, path)
    x = images(module.info.preprocessing.size, batch=1)
    with torch.no_grad():
        theirs = by_torch(model_name or name, layout, path)(to_torch(x))
    error = relative(forward(module, x).pooled, theirs)
    print(f"{path}: {name}, layout of {layout}: relative error {error:.1e}")
    return error


def test_given_checkpoint(request):
    path = request.config.getoption("--torch-checkpoint")
    if not path:
        pytest.skip("no --torch-checkpoint=FILE")
    assert check(path, request.config.getoption("--torch-model")) <= FLOAT32


@pytest.mark.parametrize(
    "source",
    ["torchvision/resnet18", "timm/vit_tiny_patch16_224"],
)
def test_a_checkpoint_is_recognised(source, tmp_path):
    library, _, name = source.partition("/")
    if library == "torchvision":
        model = getattr(torchvision.models, TORCHVISION.get(name, name))()
    else:
        model = timm.create_model(name)
    torch.save({"state_dict": randomise(model).state_dict()}, tmp_path / "checkpoint.pth")
    assert check(str(tmp_path / "checkpoint.pth")) <= FLOAT32
