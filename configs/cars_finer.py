"""FineNet on Stanford Cars, 196 models.

    export FGVC_DATA=DIR
    fgvc prepare cars --archive cars_train.tgz cars_test.tgz car_devkit.tgz cars_test_annos_withlabels.mat
    python launch.py --config=configs/cars_finer.py --workdir=runs/cars_finer

Data: $FGVC_DATA/cars, the official split; validation is carved from train. The authors' address is dead:
`fgvc prepare --help` has the checksums of true copies. Class folders: --config.data.source=folder
--config.data.root=DIR.
Weights: the message at the start names the file to bring; --config.model.pretrained=FILE.
Variants: :resnet50, :vit_b16_384; each also with ':released',
the authors' code as it is (constant learning rate, inner product, self by rank, TrivialAugment, BatchNorm
that drifts though frozen), but for its choice of the best epoch on the test set. The authors did not record
all settings: `fgvc_jax/recipes.py` says which ones are ours.

Source: github.com/danhugo/finernet. Published top-1, fine-tune -> pipeline (one seed, best epoch
on the test set): ResNet-50 90.78 -> 91.62, ViT-B/16 92.20 -> 93.38.
The ViT-B/16 gain is the only one of the report that clearly exceeds two standard errors.
Ran by us: never in full; two steps of every phase at a small size, in the tests.
"""

from finenet import finenet


def get_config(variant=""):
    return finenet("cars", variant)
