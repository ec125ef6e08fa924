"""FineNet on Stanford Dogs, 120 breeds.

    export FGVC_DATA=DIR
    fgvc prepare dogs --archive images.tar lists.tar annotation.tar
    python launch.py --config=configs/dogs_finer.py --workdir=runs/dogs_finer

Data: $FGVC_DATA/dogs, the official split; validation is carved from train. --download in place of --archive
gets the files from their official address. Class folders: --config.data.source=folder --config.data.root=DIR.
Weights: the message at the start names the file to bring; --config.model.pretrained=FILE.
Variants: :resnet50, :vit_b16_384; each also with ':released',
the authors' code as it is (constant learning rate, inner product, self by rank, TrivialAugment, BatchNorm
that drifts though frozen), but for its choice of the best epoch on the test set. The authors did not record
all settings: `fgvc_jax/recipes.py` says which ones are ours.

Source: github.com/danhugo/finernet. Published top-1, fine-tune -> pipeline (one seed, best epoch
on the test set): ResNet-50 88.61 -> 88.72, ViT-B/16 89.09 -> 89.38.
The images come from ImageNet, so every ImageNet-pretrained number on this set is inflated.
Ran by us: never in full; two steps of every phase at a small size, in the tests.
"""

from finenet import finenet


def get_config(variant=""):
    return finenet("dogs", variant)
