"""Backbones x optimizers x plug-ins on Aircraft, Flowers and Mammalia: the grid of a student report of 2024.

    export FGVC_DATA=DIR
    fgvc prepare aircraft --archive fgvc-aircraft-2013b.tar.gz
    python launch.py --config=configs/report003.py:resnet50,sam,none --workdir=runs/aircraft_resnet50_sam

Variants: BACKBONE,OPTIMIZER,PLUGIN[,DATASET], in this order:
  resnet50, resnext50, efficientnet_b5, vit, swin_t; sgd, sam; none, cmal, pim; aircraft (default), flowers,
  mammalia. Combinations that the report left out, such as SAM with CMAL or PIM, run too.
Data: $FGVC_DATA/aircraft and /flowers as `fgvc prepare` writes them, official splits; mammalia (100 mammals,
a course's set that is not public): --config.data.root=DIR with train/<classID>_<className>/ and flat test/.
Weights: torchvision's, trained on ImageNet-1K; the message at the start names the file to bring.

Source: Costamagna, Curci, Zaccaron, "Fine-Grained Image Recognition", University of Trento 2024,
github.com/giuseppecurci/Fine-Grained-Visual-Classification. Its top-1 test accuracy in percent:

                              aircraft   flowers   mammalia
    vit, sgd                      43.0      92.6       52.0
    vit, sam                      23.0      93.5       53.9
    resnet50, sgd                 25.0      90.4       45.2
    resnet50, sam                 65.5      94.3       45.5
    resnet50, sgd, cmal           72.7      97.2       46.9
    resnet50, sgd, pim            29.5      26.5
    resnext50, sgd                26.3      60.6       45.9
    resnext50, sgd, cmal          71.5      95.9       59.9
    efficientnet_b5, sgd          19.3      67.5       25.3
    efficientnet_b5, sam          30.6      87.3       24.7
    efficientnet_b5, sgd, pim     33.8      30.7
    swin_t, sgd                   50.8      95.0       62.1
    swin_t, sam                   54.8      95.7       61.4
    swin_t, sgd, pim              24.0      36.3

(ResNeXt-50 on flowers and ViT on mammalia as its training logs have them; the report prints each pair
exchanged.) Do not expect these numbers here, because their recipe is repaired:
- PIM's rows come from a faulty metric (one prediction for a whole batch); they say nothing about PIM.
- The report validates and tests with random crops and AutoAugment, and normalises with CIFAR-10's statistics;
  here evaluation crops the centre, and images are normalised as the weights want.
- Its SAM runs have label smoothing 0.1, most SGD runs none; here both have 0.1, so that one thing differs.
- Its Flowers runs train on the 6,149 test images and test on 1,020; here it is the official way round.
- It scores the last epoch; here validation picks the checkpoint, and the last one is printed beside it.
Kept: 10 epochs at a constant rate (1e-4, head 1e-3; CMAL 2e-4 and 2e-3), batch 16, 224 pixels, AutoAugment
before the crop, nothing mirrored. 10 epochs at 1e-4 leave ResNet-50 with SGD under-trained (36 % on its own
training images), so the gap to SAM there is no comparison of methods: --config.finetune.length='50 epochs'.
Ran by us: never in full; one step at a small size, in the tests.
"""

from fgvc_jax.config import base
from fgvc_jax.errors import UserError, choose
from fgvc_jax.phases import section

BACKBONES = {  # variant: backbone, torchvision's weights
    "resnet50": ("resnet50", "resnet50.IMAGENET1K_V2"),
    "resnext50": ("resnext50_32x4d", "resnext50_32x4d.IMAGENET1K_V2"),
    "efficientnet_b5": ("efficientnet_b5", "efficientnet_b5.IMAGENET1K_V1"),
    "vit": ("vit_base_patch16_224", "vit_b_16.IMAGENET1K_V1"),
    "swin_t": ("swin_tiny_patch4_window7_224", "swin_t.IMAGENET1K_V1"),
}
OPTIMIZERS = ("sgd", "sam")
PLUGINS = ("none", "cmal", "pim")
DATASETS = {  # source, folder, resize protocol
    "aircraft": ("tfds", "$FGVC_DATA/aircraft", "squash260_224"),
    "flowers": ("tfds", "$FGVC_DATA/flowers", "squash300x323_224"),
    "mammalia": ("competition", "", "squash260_224"),
}


def get_config(variant="resnet50,sgd,none"):
    parts = [part.strip() for part in variant.split(",")]
    if len(parts) not in (3, 4):
        raise UserError(
            f"configs/report003.py:{variant} must be BACKBONE,OPTIMIZER,PLUGIN[,DATASET], such as "
            "resnet50,sam,none,flowers."
        )
    backbone, optimizer, plugin, dataset = (*parts, "aircraft")[:4]
    choose(backbone, BACKBONES, "configs/report003.py: backbone")
    choose(optimizer, OPTIMIZERS, "configs/report003.py: optimizer")
    choose(plugin, PLUGINS, "configs/report003.py: plug-in")
    choose(dataset, DATASETS, "configs/report003.py: data set")

    config = base()
    config.data.source, config.data.root, config.image.protocol = DATASETS[dataset]
    if dataset == "mammalia":
        config.data.val_fraction = 0.2  # 1,000 of its 5,000 training images, as theirs
    config.image.augment, config.image.augment_first = "auto_augment", True
    config.model.backbone, weights = BACKBONES[backbone]
    if plugin == "cmal" and backbone == "resnet50":
        weights = "resnet50.IMAGENET1K_V1"  # theirs
    config.model.pretrained = f"torchvision/{weights}"
    cmal = plugin == "cmal"
    config.finetune = section(
        "train",
        method="baseline" if plugin == "none" else plugin,
        arguments={"label_smoothing": 0.1},
        length="10 epochs",
        batch=16,
        optimizer={
            "learning_rate": 2e-3 if cmal else 1e-3,
            "rate_scale": (("backbone/.*", 0.1),),
            "weight_decay": 5e-4 if cmal else 5e-3,
        },
        schedule={"name": "constant"},
        sam={"rho": 0.05 if optimizer == "sam" else 0.0},
        validation={"early_stopping": 5},
    )
    config.evaluate = section("evaluate")
    config.phases = ("finetune", "evaluate")
    return config
