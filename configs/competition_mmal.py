"""MMAL-Net on a course's competition, 100 mammals with 50 training images each: a student report of 2024.

    python launch.py --config=configs/competition_mmal.py --config.data.root=DIR --workdir=runs/mammals
    fgvc predict runs/mammals DIR/test --format=competition --group-name=NAME --out=answer.json

DIR holds train/<classID>_<className>/, a flat test/ and perhaps labels.txt, lines 'index classID'; the set is
not public. Class ids (04780) are no labels here and cannot be out of range, which was the report's great
trouble; the answer has them with their zeros. Validation is carved from train.
Weights: the message at the start names the file to bring; --config.model.pretrained=FILE. The report starts
from the authors' checkpoint for Aircraft instead: --config.init.file=FILE.
Variants: '' and released, as of cub_mmal.py, which has the recipe.

Source: "Fine-Grained Image Classification", University of Trento 2024, model 2, table 4.2 (variant released):
batch 6, 200 epochs at 1e-3 with steps at 60 and 100, the windows of Cars and Aircraft. Its test accuracy is
said to be "around 66 %" after 14 epochs, by the course's server; its validation images are training images.
Ran by us: never in full; in the tests at a small size.
"""

import cub_mmal


def get_config(variant=""):
    config = cub_mmal.get_config(variant)
    config.data.source, config.data.root = "competition", ""
    config.finetune.arguments.windows = "cars"
    return config
