"""The tiny run of process.py as a config file; see there for TINY_OPTIONS."""

import json
import os

import tiny


def get_config():
    options = json.loads(os.environ.get("TINY_OPTIONS", "{}"))
    config = tiny.pipeline()
    config.phases = tuple(options.get("phases", ("finetune", "evaluate")))
    config.finetune.batch = config.evaluate.batch = options.get("batch", 12)
    config.finetune.length = options.get("length", "12 steps")
    if "images" in options:
        config.data.source, config.data.root = "folder", options["images"]
        config.data.test_fraction = 0.25
    config.update_from_flattened_dict(options.get("config", {}))
    config.log.every = "3 steps"  # which divides no period of validation
    config.model.dtype = config.model.param_dtype = options.get("dtype", "float32")
    return config
