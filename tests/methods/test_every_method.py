"""Every method on one small backbone and every family of backbones with one method, through one contract."""

import pytest
import small

from fgvc_jax import contract, methods


def test_every_method_has_a_small_size():
    assert sorted(small.METHODS) == methods.names()


def kept(method, backbone, **arguments):
    return list(
        contract.check(
            method,
            small.METHODS[method],
            backbone=backbone,
            backbone_arguments=small.BACKBONES[backbone],
            **arguments,
        )
    )


@pytest.mark.parametrize("method", small.some(small.METHODS, *(small.METHODS.keys() - {"cmal"})))
def test_a_method_keeps_the_contract(method):
    """Twenty steps lower the loss, one compilation, the same step to the bit, accumulation and SAM."""
    said = "\n".join(kept(method, "resnet18"))
    assert "learns" in said and "compiled once" in said and "works with SAM" in said


OTHERS = [name for name in small.BACKBONES if name != "resnet18"]


@pytest.mark.parametrize("backbone", OTHERS)
def test_a_backbone_carries_the_contract(backbone):
    """Ten steps are enough for the plain method, whose every step lowers the loss."""
    assert "compiled once" in "\n".join(kept("baseline", backbone, steps=10))
