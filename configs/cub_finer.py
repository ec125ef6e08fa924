"""FineNet on CUB-200-2011, 200 bird species.

    export FGVC_DATA=DIR
    fgvc prepare cub --archive CUB_200_2011.tgz
    python launch.py --config=configs/cub_finer.py --workdir=runs/cub_finer

Data: $FGVC_DATA/cub, the official split; validation is carved from train. --download in place of --archive
gets the file from its official address. Class folders: --config.data.source=folder --config.data.root=DIR.
Weights: the message at the start names the file to bring; --config.model.pretrained=FILE.
Variants: :resnet50, :vit_b16_224, :vit_b16_384; each also with ':released',
the authors' code as it is (constant learning rate, inner product, self by rank, TrivialAugment, BatchNorm
that drifts though frozen), but for its choice of the best epoch on the test set. The authors did not record
all settings: `fgvc_jax/recipes.py` says which ones are ours.

Source: github.com/danhugo/finernet. Published top-1, fine-tune -> pipeline (one seed, best epoch
on the test set): ResNet-50 87.90 -> 88.44, ViT-B/16 90.39 -> 90.66.
The ResNet-50 numbers almost surely start from iNaturalist weights, not from the ImageNet weights named
here: an independent ImageNet ResNet-50 at 448 px reaches 84.55. Do not expect 87.9 from this config.
Ran by us: never in full; two steps of every phase at a small size, in the tests.
"""

from finenet import finenet


def get_config(variant=""):
    return finenet("cub", variant)
