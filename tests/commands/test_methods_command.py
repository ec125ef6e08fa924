"""`fgvc methods`: the list, and the check that a user runs on a method of their own."""

import sys

import pytest

from fgvc_jax import cli, methods

HEAD = '''"""A method."""
import jax
from fgvc_jax.methods import Cost
from fgvc_jax.methods import Method as Base
from fgvc_jax.methods._base import torch_linear
from fgvc_jax.ops.losses import cross_entropy


class Method(Base):
    def __init__(self, backbone, num_classes, *, image_size, rngs, dtype, param_dtype, factor=1.0):
        kw = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.backbone, self.factor = backbone, factor
        self.head = torch_linear(backbone.info.width, num_classes, **kw)

    def update(self, batch, carry, context):
        logits = self.head(self.backbone(batch["image"]).pooled)
        return self.factor * cross_entropy(logits, batch["label"]), carry, {}
'''
PREDICT = """
    def predict(self, images, edit=None):
        pooled = self.backbone(images, edit=edit).pooled
        return {"scores": self.head(pooled), "embedding": pooled}
"""


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """call(code of a method, *flags) -> (exit status, standard output, standard error)."""

    def run(code: str, *flags: str):
        path = tmp_path / f"m{abs(hash((code, flags)))}.py"
        path.write_text(code)
        monkeypatch.setattr(sys, "argv", ["fgvc", "methods", "--check", str(path), *flags])
        return (cli.main(), *capsys.readouterr())

    return run


def test_a_method_that_keeps_the_contract(call):
    status, out, err = call(HEAD + PREDICT)
    assert status == 0 and err == ""
    for said in ("1 update", "costs 1 forward", "learns", "compiled once"):
        assert said in out
    assert "works with SAM" in out and out.rstrip().endswith("methods/_base.py")


@pytest.mark.parametrize(
    ("code", "flags", "message"),
    [
        (HEAD, (), "does not define predict"),
        (HEAD + PREDICT.replace("edit=edit", "edit=None"), (), "does not hand `edit`"),
        (HEAD + PREDICT.replace(", edit=None", ""), (), "takes no edit"),
        (HEAD + PREDICT.replace('"scores"', '"logits"'), (), "gives no 'scores'"),
        (
            HEAD + PREDICT.replace("self.head(pooled),", "self.head(pooled - pooled[:1]),"),
            (),
            "depends on the other images",
        ),
        (HEAD + PREDICT, ("--set", "factor=0"), "it should fall"),
        (HEAD + PREDICT, ("--set", "factor=1e30"), "became infinite or no number"),
        (HEAD + PREDICT, ("--set", "facto=2"), "did you mean 'factor'"),
        (HEAD + PREDICT, ("--set", "factor"), "give NAME=VALUE"),
        (HEAD + PREDICT, ("--size", "8"), "at least 16 x 16"),
        (
            HEAD.replace("carry, {}\n", 'carry | {"x": logits[:3]}, {}\n') + PREDICT,
            (),
            "leading axis of 8",
        ),
    ],
)
def test_a_promise_that_is_broken_is_named(call, code, flags, message):
    status, _, err = call(code, *flags)
    assert status == 2 and message in err and "Traceback" not in err


def test_the_list_has_every_method_and_says_why_one_does_not_work(monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["fgvc", "methods", "--backbone=resnet18", "--size=224", "--classes=10"]
    )
    assert cli.main() == 0
    out = capsys.readouterr().out
    for name in methods.names():
        assert f"\n{name}: " in out
    assert "cost 1 + 1 passes, 1 x" in out  # the baseline
    assert "cost 2 + 2 passes, 2 x" in out  # pairs
