"""Recipes that several configs share: FineNet's pipeline, and the authors' settings by data set."""

from ml_collections import ConfigDict

from fgvc_jax import config as c
from fgvc_jax.errors import UserError

NO_DECAY = (".*/bias", ".*/scale")
BACKBONE = ("backbone/.*",)


def finer(config: ConfigDict, *, finetune: dict, pairs: dict, retrain: dict, mine: dict) -> None:
    """Adds the sections of FineNet's pipeline (report 000) and a control, and sets the phase list.

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


# The authors' settings as committed, by data set and backbone; None = not recorded there.
#   classifier: batch, epochs of fine-tune and of retrain, learning rate of retrain, alpha, frozen backbone
#   comparator: batch, epochs, learning rate, classes searched (Q)
# What their files inherit from their defaults is filled in: batch 128, 100 epochs, 1e-3, alpha 1, not
# frozen; 128, 40 epochs, 4e-4, Q = 7.
AUTHORS = {
    ("cub", "resnet50"): ((128, 100, 1e-3, 0.2, True), (128, 100, 4e-4, 7)),
    ("cars", "resnet50"): ((128, 100, 1e-2, 0.2, True), (128, 40, 4e-4, 7)),
    ("dogs", "resnet50"): ((128, 100, 1e-3, 0.6, True), (128, 30, 4e-4, 7)),
    ("dtd", "resnet50"): ((128, 100, 5e-4, 1.0, True), (128, 20, 4e-4, 7)),
    ("flowers", "resnet50"): ((128, 100, 1e-3, 0.0, False), (128, 30, 4e-4, 5)),
    ("cub", "vit_b16_224"): ((256, 100, 1e-3, 1.0, True), (128, 40, 1e-6, 7)),
    ("dtd", "vit_b16_224"): ((128, 100, 5e-4, 1.0, False), (64, 20, 4e-4, 7)),
    ("cars", "vit_b16_384"): ((64, 100, 2e-3, 0.2, True), (64, 20, 4e-4, 7)),
    ("cub", "vit_b16_384"): ((64, 100, 1e-3, 0.7, True), (64, 5, 4e-4, 7)),
    ("dogs", "vit_b16_384"): ((64, 100, 2e-4, 0.8, True), (64, 20, 4e-4, 7)),
    ("dtd", "vit_b16_384"): ((128, 100, 1e-3, 1.0, False), (64, 20, 4e-4, 7)),
    ("flowers", "vit_b16_384"): ((64, 100, 1e-4, 1.0, False), (64, 20, 4e-4, 7)),
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
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def variants(dataset: str) -> list[str]:
    """'resnet50', 'resnet50:released', ... for the rows that the authors have for a data set."""
    names = [backbone for data, backbone in AUTHORS if data == dataset]
    return [name for backbone in names for name in (backbone, f"{backbone}:released")]


def finenet(dataset: str, variant: str) -> ConfigDict:
    """FineNet on one of its data sets, for `configs/<dataset>_finer.py:<variant>`.

    Args:
      dataset: 'cub', 'cars', 'dogs', 'flowers' or 'dtd'; its images are looked for in
        $FGVC_DATA/<dataset>/train and /test, class folders as report 000 lays them out.
      variant: a backbone ('' = resnet50), with ':released' for the authors' code as it is.
    """
    backbone, _, released = (variant or "resnet50").partition(":")
    if backbone == "released" and not released:  # 'cub_finer.py:released' means the ResNet-50's
        backbone, released = "resnet50", "released"
    name = f"{backbone}:{released}" if released else backbone
    if name not in variants(dataset):
        raise UserError(
            f"configs/{dataset}_finer.py has no variant {name!r}{c.did_you_mean(name, variants(dataset))}"
        )
    classifier, comparator = AUTHORS[dataset, backbone]
    batch, epochs, rate, alpha, frozen = classifier
    pair_batch, pair_epochs, pair_rate, top_classes = comparator
    model, size, resize, weights, method = BACKBONES[backbone]

    config = c.base()
    config.data.root = f"$FGVC_DATA/{dataset}"
    config.model.backbone, config.model.pretrained = model, weights
    config.image.size, config.image.resize = size, resize
    if released:
        _released(config, batch, epochs, rate, alpha, frozen)
        config.image.update(IMAGENET)  # for every backbone, whatever its weights were trained with
        config.mine.update(similarity="ip", self_by_rank=True, top_classes=top_classes)
        config.embed.view = "train"
        config.pairs.update(batch=pair_batch, length=f"{pair_epochs} epochs", learning_rate=pair_rate)
        config.pairs.arguments = ConfigDict(method | {"joint": False})
        return config
    finer(
        config,
        finetune={
            "batch": batch,
            "length": "30 epochs",
            "learning_rate": 0.01,
            "learning_rate_scale": (("head/.*", 10.0),),
            "momentum": 0.9,
            "no_decay": NO_DECAY,
            "warmup": "1 epochs",
            "clip": 1.0 if backbone.startswith("vit") else 0.0,
            "arguments": {"label_smoothing": 0.1},
        },
        mine={"top_classes": top_classes},
        pairs={
            "batch": pair_batch,
            "learning_rate": pair_rate,
            "momentum": 0.95,
            "weight_decay": 5e-4,
            "arguments": method,
        },
        retrain={
            "alpha": alpha,
            "freeze": BACKBONE if frozen else (),
            "length": "10 epochs",
            "learning_rate": rate,
            "warmup": "1 epochs",
        },
    )
    return config


def _released(config: ConfigDict, batch, epochs, rate, alpha, frozen) -> None:
    """The authors' training as committed, in ordinary arguments."""
    config.image.augment = "trivial_augment_wide"
    config.image.augment_probability = 0.5
    config.image.augment_first = True
    plain = {
        "batch": batch,
        "length": f"{epochs} epochs",
        "learning_rate": rate,
        "momentum": 0.9,
        "weight_decay": 1e-3,
        "schedule": "constant",
        "frozen_batch_norm": "update",
    }
    finer(
        config,
        finetune=plain,
        mine={},
        pairs={"momentum": 0.95, "weight_decay": 5e-4, "schedule": "constant", "eval_every": "1 epochs"},
        retrain=plain | {"alpha": alpha, "freeze": BACKBONE if frozen else ()},
    )
