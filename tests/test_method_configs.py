"""The configs of single methods, and the reports' grids: each variant is built at full size, as shapes."""

import itertools
from pathlib import Path

import pytest
from flax import nnx
from test_configs import CONFIGS, every, get, many_classes

from fgvc_jax import checks
from fgvc_jax import config as c
from fgvc_jax import mesh as meshes
from fgvc_jax import phases as p
from fgvc_jax.context.models import Models, view_of
from fgvc_jax.errors import UserError
from fgvc_jax.images import protocols
from fgvc_jax.phases import _training as training
from fgvc_jax.phases._training import Length
from fgvc_jax.train import tree

NETS = ("resnet50", "resnext50", "efficientnet_b5", "vit", "swin_t")
# The plain rows for each data set; the plug-ins around every backbone, and with SAM.
GRID = tuple(
    ",".join(parts)
    for parts in itertools.chain(
        itertools.product(NETS, ("sgd", "sam"), ("none",), ("aircraft", "flowers", "mammalia")),
        itertools.product(NETS, ("sgd",), ("cmal", "pim")),
        [("resnet50", "sam", "cmal"), ("swin_t", "sam", "pim")],
    )
)
# The variants of each file, and its number of classes.
VARIANTS = {
    "aircraft_cmal": (("", "released"), 100),
    "aircraft_fbsd": (("", "released"), 100),
    "birds_backbones": (("", "resnet152", "vit_b16"), 20),
    "cub_mmal": (("", "released"), 200),
    "competition_mmal": (("", "released"), 100),
    "cub_pim": (("", "released"), 200),
    "report003": (GRID, 100),
}
ROWS = [
    (f"{file}:{variant}".rstrip(":"), classes)
    for file, (variants, classes) in VARIANTS.items()
    for variant in variants
]
SHARED = {"finenet"}  # parts of configs, which are none themselves


SHAPES = {}


def shapes(specification):
    """The parameters by path. Of rows that differ in data, optimizer or view they are the same: made once."""
    made = specification
    key = repr((made.backbone, made.backbone_arguments, made.method, made.method_arguments))
    key += f"{len(made.classes)} {made.view.size}"
    if key not in SHAPES:
        SHAPES[key] = tree.weights(nnx.eval_shape(made.build))["params"]
    return SHAPES[key]


def test_every_config_is_in_a_test():
    tested = {name.partition(":")[0] for name in every()} | set(VARIANTS) | SHARED
    assert {path.stem for path in CONFIGS.glob("*.py")} == tested


@pytest.mark.parametrize(("name", "classes"), ROWS)
def test_builds_at_full_size_and_every_pattern_matches(name, classes):
    config = protocols.apply(get(name))
    checks.check(config)
    assert config.model.pretrained, "the recipe starts from pretrained weights"
    config.model.pretrained = ""  # shapes do not need them
    mesh = meshes.make()
    models = Models(config, Path("/nowhere"), many_classes(classes), mesh, view_of(config), 512)
    trained = [phase for phase in p.of(config) if phase.trains]
    assert trained and c.phases(config)[-1] == "evaluate"
    for phase in trained:
        specification = models.specify(phase.section)
        params = shapes(specification)
        # Raises for a pattern of frozen or faster parameters that matches nothing.
        recipe = training.recipe(
            phase.section, f"config.{phase.name}", params, Length(1000, phase.section.batch, 6000)
        )
        assert any(recipe.trains(path) for path in params)


def test_report003_refuses_what_it_does_not_have():
    for variant, message in {
        "resnet50": "BACKBONE,OPTIMIZER,PLUGIN",
        "resnet5,sgd,none": "did you mean 'resnet50'",
        "resnet50,sgd,pum": "did you mean 'pim'",
        "resnet50,sgd,none,cub": "Known: aircraft, flowers, mammalia",
    }.items():
        with pytest.raises(UserError, match=message):
            get(f"report003:{variant}")


def test_report003_differs_from_row_to_row_in_what_the_row_says():
    plain, sharp = (get(f"report003:vit,{x},none") for x in ("sgd", "sam"))
    assert (plain.finetune.sam.rho, sharp.finetune.sam.rho) == (0.0, 0.05)
    sharp.finetune.sam.rho = 0.0
    assert plain == sharp


def test_fbsd_and_cmal_as_released():
    """METHODS.md C.5 and F.3."""
    for method, batch in (("fbsd", 20), ("cmal", 16)):
        ours, released = get(f"aircraft_{method}"), get(f"aircraft_{method}:released")
        for section in (ours.finetune, released.finetune):
            assert (section.method, section.batch, section.length) == (method, batch, "200 epochs")
            optimizer = section.optimizer
            rates = (optimizer.learning_rate, optimizer.learning_rate * optimizer.rate_scale[0][1])
            assert rates == pytest.approx((2e-3, 2e-4)) and optimizer.weight_decay == 5e-4
            assert optimizer.momentum == 0.9 and not optimizer.nesterov
        assert released.finetune.schedule.warmup == "0 steps"
        assert not released.finetune.optimizer.no_decay and ours.finetune.optimizer.no_decay
        image = protocols.apply(released).image
        assert (image.size, tuple(image.squash), image.crop_pad) == (448, (550, 550), 8)
        assert tuple(image.mean) == tuple(image.std) == (0.5,) * 3
    fbsd, released = get("aircraft_fbsd").finetune, get("aircraft_fbsd:released").finetune
    assert (fbsd.schedule.name, fbsd.arguments.strip_norm) == ("cosine", "full_map")
    assert (released.schedule.name, released.schedule.period) == ("oscillating", "400 steps")
    assert released.arguments.to_dict() == fbsd.arguments.to_dict() | {"strip_norm": "per_strip"}
    assert get("aircraft_cmal:released").finetune.schedule.name == "cosine"


def test_mmal_and_pim_as_released():
    """METHODS.md D.4 and E.4; the parts of theirs that ours leaves are the same in both variants."""
    for name in ("cub_mmal", "competition_mmal"):
        ours, released = get(name), get(f"{name}:released")
        section = released.finetune
        assert (section.batch, section.length, section.optimizer.learning_rate) == (
            *(6, "200 epochs"),
            1e-3,
        )
        assert (section.schedule.name, section.schedule.drops, section.schedule.factor) == (
            "step",
            ("60 epochs", "100 epochs"),
            0.1,
        )
        assert section.optimizer.weight_decay == 1e-4 and not section.optimizer.no_decay
        assert tuple(released.image.jitter) == (0.2, 0.2, 0.0, 0.0)
        assert ours.finetune.arguments == section.arguments
    assert get("cub_mmal").finetune.arguments.windows == "cub"
    assert get("competition_mmal").finetune.arguments.windows == "cars"
    ours, released = get("cub_pim"), get("cub_pim:released")
    section = released.finetune
    assert (section.batch, section.accumulate, section.length) == (32, 2, "50 epochs")
    assert section.schedule.warmup == "400 steps"  # their 800 are of half a batch
    optimizer = section.optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.nesterov) == (
        *(5e-4, 5e-4),
        True,
    )
    assert not optimizer.no_decay and ours.finetune.optimizer.no_decay
    assert tuple(section.arguments.num_selects) == (2048, 512, 128, 32)
    assert ours.finetune.arguments == section.arguments
    image = protocols.apply(released).image
    assert (image.size, tuple(image.squash), image.blur, image.sharpen) == (
        384,
        (510, 510),
        0.1,
        0.1,
    )
