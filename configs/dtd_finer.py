"""FineNet on DTD, 47 textures.

    export FGVC_DATA=DIR
    fgvc prepare dtd --archive dtd-r1.0.1.tar.gz
    python launch.py --config=configs/dtd_finer.py --workdir=runs/dtd_finer

Data: $FGVC_DATA/dtd, the first of the ten official splits; --config.data.fold=2 is the second. --download in
place of --archive gets the file from its official address. Class folders: --config.data.source=folder
--config.data.root=DIR.
Weights: the message at the start names the file to bring; --config.model.pretrained=FILE.
Variants: :resnet50, :vit_b16_224, :vit_b16_384; each also with ':released',
the authors' code as it is (constant learning rate, inner product, self by rank, TrivialAugment, BatchNorm
that drifts though frozen), but for its choice of the best epoch on the test set. The authors did not record
all settings: `fgvc_jax/recipes.py` says which ones are ours.

Source: github.com/danhugo/finernet. Published top-1, fine-tune -> pipeline (one seed, best epoch
on the test set): ResNet-50 77.23 -> 77.55, ViT-B/16 83.19 -> 84.41.
One of the ten official splits; which one, and whether 40 or 80 images a class, is not known. The official
score is the mean over all ten.
Ran by us: never in full; two steps of every phase at a small size, in the tests.
"""

from finenet import finenet


def get_config(variant=""):
    return finenet("dtd", variant)
