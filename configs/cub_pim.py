"""PIM around Swin-L on CUB-200-2011: a pyramid whose surest tokens are put together.

    export FGVC_DATA=DIR
    fgvc prepare cub --archive CUB_200_2011.tgz
    python launch.py --config=configs/cub_pim.py --workdir=runs/cub_pim

Data: $FGVC_DATA/cub, the official split; validation is carved from train (--config.protocol=refit then trains
on both).
Weights: Swin-L of ImageNet-22k at 384 pixels, which the authors call swin-t; the message at the start names
the file to bring; --config.model.pretrained=FILE. The authors' checkpoint: --config.init.file=FILE.
Variants: '' (no decay of biases, norms and the graph; images resized as the weights want), released (the
authors' recipe: everything decays, bilinear). Both have their 50 epochs of 2 x 16 images, their blur and
sharpening. Their warm-up of 800 iterations counts parts of a batch: 400 updates. Their cosine ends slightly
above 0, ours at 0.
Heavy: 384 pixels give 2,304 tokens of 1,536 channels. Less memory: --config.finetune.accumulate=4 (BatchNorm
then has 8 images) and --config.model.remat=full. PIM around other nets: report003.py.

Source: Chou et al. 2022, arXiv 2202.03822; github.com/chou141253/FGVC-PIM. Published top-1 92.77 (NABirds
92.83): the best epoch and the best of about 15 outputs, both on the test set. Here scores are the sum of all
five softmaxes. An independent run: 91.74, and 90.31 for Swin alone.
Ran by us: never in full; on 31 kinds of produce around a ResNet and in the tests, both small.
"""

from fgvc_jax import recipes
from fgvc_jax.config import base
from fgvc_jax.errors import choose
from fgvc_jax.phases import section

GRAPH = "combiner/(adjacency|alpha)"


def get_config(variant=""):
    choose(variant, ("", "released"), "configs/cub_pim.py: variant")
    config = base()
    config.data.source, config.data.root = "tfds", "$FGVC_DATA/cub"
    config.model.backbone = "swin_large_patch4_window12_384"
    config.model.arguments = {"stochastic_depth": 0.1}  # their library's default
    config.model.pretrained = "timm/swin_large_patch4_window12_384.ms_in22k"
    config.image.protocol = "pim384"
    config.image.blur = config.image.sharpen = 0.1
    if variant:
        config.image.interpolation = "bilinear"
    config.finetune = section(
        "train",
        method="pim",
        arguments={"width": 1536, "num_selects": (2048, 512, 128, 32), "upsample": "tokens"},
        length="50 epochs",
        batch=32,
        accumulate=2,
        optimizer={
            "learning_rate": 5e-4,
            "nesterov": True,
            "weight_decay": 5e-4,
            "no_decay": () if variant else (*recipes.NO_DECAY, GRAPH),
        },
        schedule={"warmup": "400 steps"},
    )
    config.evaluate = section("evaluate", batch=32)
    config.phases = ("finetune", "evaluate")
    return config
