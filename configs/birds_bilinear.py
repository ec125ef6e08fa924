"""A bilinear CNN on a small set of birds (report 004), on one backbone or two: first its head, then all.

    python launch.py --config=configs/birds_bilinear.py --config.data.root=DIR --workdir=runs/bilinear
    python launch.py --config=configs/birds_bilinear.py:resnet50,vit_base_patch16_224 ...

DIR holds train_images/<class>/ and val_images/<class>/ (theirs: 20 bird species, 1800 training images), or
class folders alone. Weights: the message at the start names the files to bring.
Variants: one backbone (`:resnet152`, as '' and as the report; `:resnet50`), whose maps are multiplied with
themselves, or two, such as a CNN beside a transformer. Without a transformer images have 448 pixels.

Source: report 004, ResNet-152, at most 10 epochs, the epoch chosen on the validation split that is then
reported: accuracy on it 0.53 for the plain ResNet-152, 0.75 for its bilinear CNN, 0.89 for a ViT. Rate and
place of its dropout are not stated, nor are size, batch and learning rates: dropout 0.5 before the last layer
and the reduction to 512 channels are our choice, the two phases and their rates those of the usual
reproduction (HaoMood/bilinear-cnn, 1 and 1e-2 at a batch of 64; CUB 76.77 after the first phase, 84.17 after
the second, VGG-16, where the test split schedules the rate). Report 004 believes that transformers would make
the bilinear CNN better still: here is where to see.
Ran by us: never in full; two steps at a small size in the tests.
"""

from fgvc_jax.config import base
from fgvc_jax.errors import UserError, choose
from fgvc_jax.phases import section
from fgvc_jax.recipes import NO_DECAY, merge

# Backbone: its weights, trained on ImageNet alone or before that on ImageNet-21k, no birds' set among them.
WEIGHTS = {
    "resnet50": "torchvision/resnet50.IMAGENET1K_V1",
    "resnet101": "torchvision/resnet101.IMAGENET1K_V1",
    "resnet152": "torchvision/resnet152.IMAGENET1K_V1",
    "vit_small_patch16_224": "timm/vit_small_patch16_224.augreg_in21k_ft_in1k",
    "vit_base_patch16_224": "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k",
    "swin_tiny_patch4_window7_224": "timm/swin_tiny_patch4_window7_224.ms_in1k",
}


def get_config(variant=""):
    names = (variant or "resnet152").split(",")
    for name in names:
        choose(name, WEIGHTS, "configs/birds_bilinear.py: backbone")
    if len(names) > 2:
        raise UserError(
            f"configs/birds_bilinear.py:{variant} names {len(names)} backbones, not 1 or 2"
        )
    first, second = [*names, ""][:2]
    config = base()
    config.model.backbone, config.model.pretrained = first, WEIGHTS[first]
    config.model.second_pretrained = WEIGHTS.get(second, "")
    size = 448 if all(name.startswith("resnet") for name in names) else 224
    config.image.size = config.image.resize = size
    config.image.crop = "random"
    common = {
        "method": "bilinear",
        "length": "10 epochs",
        "batch": 32,
        "arguments": {"second": second, "dropout": 0.5},
        "optimizer": {"no_decay": NO_DECAY, "clip": 1.0},
    }
    freeze = ("backbone/.*", *(["second/.*"] if second else []))
    head = {"optimizer": {"learning_rate": 0.5, "weight_decay": 1e-8, "freeze": freeze}}
    config.head = section("train", **merge(common, head))
    whole = {
        "init": {"phase": "head"},
        "optimizer": {"learning_rate": 0.005, "weight_decay": 1e-5},
        "schedule": {"warmup": "1 epochs"},
    }
    config.finetune = section("train", **merge(common, whole))
    config.evaluate = section("evaluate", batch=32)
    config.phases = ("head", "finetune", "evaluate")
    return config
