"""Recipes that several configs share: a plain fine-tune, and FineNet's pipeline with its control."""

from ml_collections import ConfigDict

from fgvc_jax.phases import section

BACKBONE = ("backbone/.*",)
# Without weight decay, as timm has it: biases, scales and offsets of normalisation, and what stands for a
# token, a place or a channel.
NO_DECAY = (
    ".*/(bias|scale)",
    ".*/(cls_token|reg_token|pos_embed|relative_position_bias_table|gamma)",
)
# All that is not pretrained trains ten times faster.
FAST_HEAD = (("(?!backbone/|second/).*", 10.0),)
# The plain fine-tune that the field agrees on.
PLAIN = {
    "length": "30 epochs",
    "batch": 64,
    "optimizer": {
        "learning_rate": 0.01,
        "rate_scale": FAST_HEAD,
        "nesterov": True,
        "no_decay": NO_DECAY,
        "clip": 1.0,
    },
    "schedule": {"warmup": "1 epochs"},
    "arguments": {"label_smoothing": 0.1},
}
# FineNet's last phase: a linear head on the interpolated, frozen backbone. From class means and at this rate
# it arrives in ten epochs where a fresh head at the authors' 1e-3 needs their hundred; chosen on validation
# (benchmarks/retrain_head.py).
RETRAIN = {
    "init": {"head": "means", "batch_norm": "estimate"},
    "length": "10 epochs",
    "optimizer": {
        "learning_rate": 0.01,
        "rate_scale": FAST_HEAD,
        "freeze": BACKBONE,
    },
    "schedule": {"warmup": "1 epochs"},
}


def merge(first: dict, second: dict) -> dict:
    """The first dictionary with the second's values in their places, group by group."""
    result = dict(first)
    for key, value in second.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merge(result[key], value) if both else value
    return result


def finer(config: ConfigDict, *, finetune: dict, pairs: dict, retrain: dict, mine: dict) -> None:
    """Adds the sections of FineNet's pipeline and a control, and sets the phase list.

    fine-tune -> embed -> mine -> same/different phase -> retrain; the control goes on fine-tuning for as
    many images as pairs and retrain used, with its backbone free, as the pair phase has it. The arguments set
    keys of the sections; groups are dictionaries.
    """
    config.finetune = section("train", **finetune)
    config.embed = section("embed", model="finetune", batch=config.finetune.batch)
    config.mine = section("mine", embeddings="embed", **mine)
    usual = {
        "method": "pairs",
        "init": {"phase": "finetune"},
        "pairs": "mine",
        "length": "2 x finetune",
        "batch": max(1, config.finetune.batch // 2),  # a pair is two images
        "validation": {"every": "20 %"},
    }
    config.pairs = section("train", **merge(usual, pairs))
    usual = {
        "init": {"phase": "finetune", "interpolate": "pairs", "head": "fresh"},
        "batch": config.finetune.batch,
    }
    config.retrain = section("train", **merge(usual, retrain))
    own = {
        "init": {"phase": "finetune"},
        "length": "pairs + retrain",
        "validation": {"every": "10 %"},
        "optimizer": {"freeze": ()},
    }
    config.control = section("train", **merge(finetune, own))
    config.evaluate = section("evaluate", batch=config.finetune.batch)
    config.phases = ("finetune", "embed", "mine", "pairs", "retrain", "control", "evaluate")
