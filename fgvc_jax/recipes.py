"""Recipes that several configs share: FineNet's pipeline, and the authors' settings by data set."""

from ml_collections import ConfigDict

from fgvc_jax import config as c
from fgvc_jax.errors import UserError, did_you_mean

NO_DECAY = (".*/bias", ".*/scale")
BACKBONE = ("backbone/.*",)
# The plain fine-tune that the field agrees on.
PLAIN = {
    "length": "30 epochs",
    "batch": 64,
    "learning_rate": 0.01,
    "learning_rate_scale": (("head/.*", 10.0),),
    "nesterov": True,
    "no_decay": NO_DECAY,
    "warmup": "1 epochs",
    "clip": 1.0,
    "arguments": "label_smoothing=0.1",
}
# The retraining of the head on the blended backbone. From the class means, 10 epochs at this rate suffice for
# 8 classes and for 200; a fresh head needs a rate for each (benchmarks/retrain_head.py).
RETRAIN = {
    "freeze": BACKBONE,
    "head": "means",
    "batch_norm": "estimate",
    "length": "10 epochs",
    "learning_rate": 0.01,  # 0.1 for the head; of a backbone that is not frozen, as in PLAIN
    "learning_rate_scale": (("head/.*", 10.0),),
    "warmup": "1 epochs",
}


def finer(config: ConfigDict, *, finetune: dict, pairs: dict, retrain: dict, mine: dict) -> None:
    """Adds the sections of FineNet's pipeline and a control, and sets the phase list.

    fine-tune -> embed -> mine -> same/different phase -> retrain; the control goes on fine-tuning for as
    many images as pairs and retrain used. The arguments override what `training()` and `mining()` say.
    """
    config.finetune = c.training(**finetune)
    config.embed = c.embedding(model="finetune", batch=config.finetune.batch)
    config.mine = c.mining(embeddings="embed", **mine)
    config.pairs = c.training(
        **{
            "method": "pairs",
            "init": "finetune",
            "pairs": "mine",
            "length": "2 x finetune",
            "batch": max(1, config.finetune.batch // 2),  # a pair is two images
            "eval_every": "20 %",
        }
        | pairs
    )
    config.retrain = c.training(
        **{"init": "finetune", "blend": "pairs", "head": "fresh", "batch": config.finetune.batch}
        | retrain
    )
    config.control = c.training(
        **finetune | {"init": "finetune", "length": "pairs + retrain", "eval_every": "10 %"}
    )
    config.evaluate = c.evaluation(batch=config.finetune.batch)
    config.phases = ("finetune", "embed", "mine", "pairs", "retrain", "control", "evaluate")


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
PAIR_RATE = 4e-4  # the comparator's, in all of their files but one
BACKBONES = {
    # variant: backbone, size, shorter side at evaluation, weights the authors started from, comparator
    "resnet50": ("resnet50", 224, 256, "torchvision/resnet50.IMAGENET1K_V1", "hidden=32"),
    "vit_b16_224": (
        "vit_base_patch16_224",
        224,
        256,
        "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k",
        "hidden=192, init=torch",
    ),
    "vit_b16_384": (
        "vit_base_patch16_384",
        384,
        512,
        "timm/vit_base_patch16_384.augreg_in21k_ft_in1k",
        "hidden=192, init=torch",
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

    config = c.base()
    config.data.source, config.data.root = "tfds", f"$FGVC_DATA/{dataset}"
    config.model.backbone, config.model.pretrained = model, weights
    config.image.size, config.image.resize = size, resize
    pairs = {
        "batch": pair_batch,
        # The 1e-6 of the authors' ViT-B/16 on CUB hardly moves a weight, under a cosine even less.
        "learning_rate": pair_rate if released else max(pair_rate, PAIR_RATE),
        "momentum": 0.95,
        "weight_decay": 5e-4,
        "arguments": comparator,
    }
    freeze = BACKBONE if frozen else ()
    if released:
        # For every backbone, whatever its weights were trained with, as the authors do.
        config.image.mean, config.image.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        config.image.interpolation = (
            "bilinear"  # torchvision's default; timm's ViT weights want bicubic
        )
        config.image.augment = "trivial_augment_wide"
        config.image.augment_probability = 0.5
        config.image.augment_first = True
        plain = {
            "batch": batch,
            "length": f"{epochs} epochs",
            "learning_rate": rate,
            "weight_decay": 1e-3,
            "schedule": "constant",
            "frozen_batch_norm": "update",
        }
        finer(
            config,
            finetune=plain | {"freeze": freeze if recorded == "finetune" else ()},
            mine={"similarity": "ip", "self_by_rank": True, "top_classes": top_classes},
            pairs=pairs
            | {
                "arguments": comparator + ", joint=False",
                "length": f"{pair_epochs} epochs",
                "schedule": "constant",
                "eval_every": "1 epochs",
            },
            retrain=plain | {"alpha": alpha, "freeze": freeze},
        )
        config.embed.view = "train"
        return config
    # Ours: all of the fine-tune, whose settings most of their files do not record; the retraining, but for
    # alpha, which is 0.5 where theirs is 1, since that would leave the pair phase out; the lengths.
    finer(
        config,
        finetune=PLAIN | {"batch": batch},
        mine={"top_classes": top_classes},
        pairs=pairs,
        retrain=RETRAIN | {"alpha": alpha if alpha < 1 else 0.5, "freeze": freeze},
    )
    return config
