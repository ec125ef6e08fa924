"""An embedding of mechanical parts by triplets (report 001): images of one failure near, of others far.

    python launch.py --config=configs/triplet_parts.py --config.data.root=DIR --workdir=runs/triplet

DIR holds train/<class>/ and test/<class>/ (theirs: 6 kinds of failed parts, 1890 and 389 images of 256 x 256,
which are private), any class folders will do; validation is carved from train. To judge on classes that were
never trained on: --config.data.splits=retrieval. Weights: the message at the start names the file to bring.
Variants: `:released`, the settings as far as the report has them (learning rate 1e-4, weight decay 0.05, ten
epochs, squared distances, an embedding after every epoch; momentum, embedding length and sampling are not
stated). A decay of 0.05 at that rate is a preset to compare with, not one to use.

Embeddings of all splits before, during and after training lie in runs/triplet/finetune/embeddings, for t-SNE.

Source: report 001, ResNet-50: accuracy 98 % on train, 94 % on test, mean cosine similarity 0.92 with hard
negatives. How accuracy is read off embeddings is not said there, nor whether the test images chose
anything; the last table has 1-NN, 5-NN, nearest centroid and a linear probe.
Ran by us: never in full, for want of the images; two steps at a small size in the tests.
"""

from fgvc_jax.config import base
from fgvc_jax.errors import choose
from fgvc_jax.phases import section
from fgvc_jax.recipes import NO_DECAY, merge

# Four classes with four images each, as six classes and a batch of 16 allow.
COMMON = {
    "method": "triplet",
    "batch": 16,
    "sampler": {"name": "classes_by_images", "images_per_class": 4},
    "arguments": {"embedding": 128, "mining": "batch_hard", "margin": 0.2},
}
OURS = {
    "length": "30 epochs",
    "optimizer": {
        "learning_rate": 0.003,
        "rate_scale": (("head/.*", 10.0),),
        "nesterov": True,
        "no_decay": NO_DECAY,
        "clip": 1.0,
    },
    "schedule": {"warmup": "1 epochs"},
    # Rectified features all point one way; without it the first steps tend to collapse.
    "arguments": {"batch_norm": True},
    "validation": {"embeddings": ("0 epochs", "1 epochs", "10 epochs", "100 %")},
}
RELEASED = {
    "length": "10 epochs",
    "optimizer": {"learning_rate": 1e-4, "momentum": 0.0, "weight_decay": 0.05},
    "schedule": {"name": "constant"},
    "arguments": {"distance": "squared"},
    "validation": {"embeddings": tuple(f"{number} epochs" for number in range(11))},
}
VARIANTS = {"": OURS, "released": RELEASED}


def get_config(variant=""):
    choose(variant, VARIANTS, "configs/triplet_parts.py: variant")
    config = base()
    config.model.pretrained = "torchvision/resnet50.IMAGENET1K_V1"
    config.image.size, config.image.resize = 224, 256
    config.image.crop_scale = (0.25, 1.0)
    config.finetune = section("train", **merge(COMMON, VARIANTS[variant]))
    config.evaluate = section("evaluate")
    config.phases = ("finetune", "evaluate")
    return config
