"""FineNet on its authors' data sets: their settings by data set and backbone, and ours beside them.

Shared by cub_finer.py, cars_finer.py, dogs_finer.py, flowers_finer.py and dtd_finer.py; no config by itself.
"""

from ml_collections import ConfigDict

from fgvc_jax.config import base
from fgvc_jax.errors import UserError, did_you_mean
from fgvc_jax.recipes import BACKBONE, PLAIN, RETRAIN, finer, merge

# The authors' settings as committed, by data set and backbone. What their files inherit from their defaults
# is filled in (batch 128, 100 epochs, 1e-3, alpha 1, not frozen; 128, 40 epochs, 4e-4, Q = 7).
#   classifier: batch, epochs, learning rate, alpha, frozen backbone, phase whose settings these are
#   comparator: batch, epochs, learning rate, classes searched (Q)
# Their files hold one classifier section, edited between the phases: 'retrain' rows were left in the state
# of the last phase, 'finetune' rows in that of the first. The other phase's settings are not recorded.
AUTHORS = {
    ("cub", "resnet50"): ((128, 100, 1e-3, 0.2, True, "retrain"), (128, 100, 4e-4, 7)),
    ("cars", "resnet50"): ((128, 100, 1e-2, 0.2, True, "retrain"), (128, 40, 4e-4, 7)),
    ("dogs", "resnet50"): ((128, 100, 1e-3, 0.6, True, "retrain"), (128, 30, 4e-4, 7)),
    ("dtd", "resnet50"): ((128, 100, 5e-4, 1.0, True, "retrain"), (128, 20, 4e-4, 7)),
    # alone in taking the comparator's backbone as it is: alpha 0
    ("flowers", "resnet50"): ((128, 100, 1e-3, 0.0, False, "retrain"), (128, 30, 4e-4, 5)),
    ("cub", "vit_b16_224"): ((256, 100, 1e-3, 1.0, True, "finetune"), (128, 40, 1e-6, 7)),
    ("dtd", "vit_b16_224"): ((128, 100, 5e-4, 1.0, False, "retrain"), (64, 20, 4e-4, 7)),
    ("cars", "vit_b16_384"): ((64, 100, 2e-3, 0.2, True, "retrain"), (64, 20, 4e-4, 7)),
    ("cub", "vit_b16_384"): ((64, 100, 1e-3, 0.7, True, "retrain"), (64, 5, 4e-4, 7)),
    ("dogs", "vit_b16_384"): ((64, 100, 2e-4, 0.8, True, "retrain"), (64, 20, 4e-4, 7)),
    ("dtd", "vit_b16_384"): ((128, 100, 1e-3, 1.0, False, "finetune"), (64, 20, 4e-4, 7)),
    ("flowers", "vit_b16_384"): ((64, 100, 1e-4, 1.0, False, "finetune"), (64, 20, 4e-4, 7)),
}
BACKBONES = {
    # variant: backbone, size, shorter side at evaluation, weights the authors started from, comparator
    "resnet50": ("resnet50", 224, 256, "torchvision/resnet50.IMAGENET1K_V1", {"hidden": 32}),
    "vit_b16_224": (
        "vit_base_patch16_224",
        224,
        256,
        "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k",
        {"hidden": 192, "init": "torch"},
    ),
    "vit_b16_384": (
        "vit_base_patch16_384",
        384,
        512,
        "timm/vit_base_patch16_384.augreg_in21k_ft_in1k",
        {"hidden": 192, "init": "torch"},
    ),
}


def variants(dataset: str) -> list[str]:
    """'resnet50', 'resnet50:released', ... for the rows that the authors have for a data set."""
    names = [backbone for data, backbone in AUTHORS if data == dataset]
    return [name for backbone in names for name in (backbone, f"{backbone}:released")]


def finenet(dataset: str, variant: str) -> ConfigDict:
    """FineNet on one of its data sets, for `configs/<dataset>_finer.py:<variant>`.

    Args:
      dataset: 'cub', 'cars', 'dogs', 'flowers' or 'dtd', which `fgvc prepare` has written to
        $FGVC_DATA/<dataset>.
      variant: a backbone ('' = resnet50), with ':released' for the authors' code as it is.
    """
    backbone, _, released = (variant or "resnet50").partition(":")
    if backbone == "released" and not released:  # 'cub_finer.py:released' means the ResNet-50's
        backbone, released = "resnet50", "released"
    name = f"{backbone}:{released}" if released else backbone
    if name not in variants(dataset):
        raise UserError(
            f"configs/{dataset}_finer.py has no variant {name!r}{did_you_mean(name, variants(dataset))}"
        )
    batch, epochs, rate, alpha, frozen, recorded = AUTHORS[dataset, backbone][0]
    pair_batch, pair_epochs, pair_rate, top_classes = AUTHORS[dataset, backbone][1]
    model, size, resize, weights, comparator = BACKBONES[backbone]

    config = base()
    config.data.source, config.data.root = "tfds", f"$FGVC_DATA/{dataset}"
    config.model.backbone, config.model.pretrained = model, weights
    config.image.size, config.image.resize = size, resize
    pairs = {
        "batch": pair_batch,
        "optimizer": {"learning_rate": pair_rate, "momentum": 0.95, "weight_decay": 5e-4},
        "arguments": comparator,
    }
    freeze = BACKBONE if frozen else ()
    if released:
        # For every backbone, whatever its weights were trained with, as the authors do.
        config.image.interpolation = "bilinear"
        config.image.mean, config.image.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        config.image.augment = "trivial_augment_wide"
        config.image.augment_probability = 0.5
        config.image.augment_first = True
        plain = {
            "batch": batch,
            "length": f"{epochs} epochs",
            "optimizer": {
                "learning_rate": rate,
                "weight_decay": 1e-3,
                "frozen_batch_norm": "update",
            },
            "schedule": {"name": "constant"},
            "arguments": {"bias_init": "torch"},
        }
        finer(
            config,
            finetune=merge(
                plain, {"optimizer": {"freeze": freeze if recorded == "finetune" else ()}}
            ),
            mine={"similarity": "ip", "self_by_rank": True, "top_classes": top_classes},
            pairs=merge(
                pairs,
                {
                    "arguments": {"joint": False},
                    "length": f"{pair_epochs} epochs",
                    "schedule": {"name": "constant"},
                    "validation": {"every": "1 epochs"},
                },
            ),
            retrain=merge(plain, {"init": {"alpha": alpha}, "optimizer": {"freeze": freeze}}),
        )
        config.embed.augment = True
        return config
    # Ours where the authors recorded nothing: all of the fine-tune; alpha 0.5 where theirs is 1, which
    # would leave the pair phase out; the lengths. And the other rows' rate of the pair phase in place of
    # 1e-6, which with a cosine on top trains next to nothing.
    finer(
        config,
        finetune=PLAIN | {"batch": batch},
        mine={"top_classes": top_classes},
        pairs=merge(pairs, {"optimizer": {"learning_rate": max(pair_rate, 4e-4)}}),
        retrain=merge(
            RETRAIN,
            {
                "init": {"alpha": alpha if alpha < 1 else 0.5},
                "optimizer": {"freeze": freeze},
            },
        ),
    )
    return config
