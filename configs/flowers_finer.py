"""FineNet on Oxford Flowers-102.

    export FGVC_DATA=DIR
    fgvc prepare flowers --archive 102flowers.tgz imagelabels.mat setid.mat
    python launch.py --config=configs/flowers_finer.py --workdir=runs/flowers_finer

Data: $FGVC_DATA/flowers, the official train, val and test. --download in place of --archive gets the files
from their official address. Class folders: --config.data.source=folder --config.data.root=DIR.
Weights: the message at the start names the file to bring; --config.model.pretrained=FILE.
Variants: :resnet50, :vit_b16_384; each also with ':released',
the authors' code as it is (constant learning rate, inner product, self by rank, TrivialAugment, BatchNorm
that drifts though frozen), but for its choice of the best epoch on the test set. The authors did not record
all settings: `fgvc_jax/recipes.py` says which ones are ours.

Source: github.com/danhugo/finernet. Published top-1, fine-tune -> pipeline (one seed, best epoch
on the test set): ResNet-50 97.12 -> 97.53; none for ViT.
Tested on the official 6,149 images; whether the authors trained on 1,020 or 2,040 is not known.
Ran by us: never in full; two steps of every phase at a small size, in the tests.
"""

from finenet import finenet


def get_config(variant=""):
    return finenet("flowers", variant)
