"""The keys that every run has, with their defaults, and what is done with a config as a whole.

A config is an `ml_collections.ConfigDict` made by a file under `configs/`. `base()` holds what all phases
share; `fgvc_jax.phases.section(kind)` makes the section of a phase, whose keys stand in the phase's own
file. A section is named like its phase, and `config.phases` says which run, in which order (a ConfigDict
sorts its keys).
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from fgvc_jax.errors import UserError, did_you_mean

# Where a run is watched or placed, not what it computes: these may differ when a run goes on.
PLACEMENT = (
    "phases",
    "seeds",
    "log",
    "checkpoint_every",
    "tracking",
    "devices",
    "model.remat",
    "model.attention",
    "data.cache",
    "data.feed",
    "data.resident_gb",
    # What these leave out or relabel shows in the manifest, which a run is tied to.
    "data.on_bad",
    "data.labels_patch",
)


def base() -> ConfigDict:
    """The keys that every run has."""
    config = ConfigDict()
    config.seed = 0  # initial weights, order of the examples, augmentation
    config.seeds = 1  # how many runs, with seed, seed + 1, ...; the split stays the same
    # 'val': validation picks the checkpoints. 'refit': then the lengths that it picked are trained again on
    # train + val, and the last epoch is scored.
    config.protocol = "val"
    config.phases = ()  # in order; on the command line: --config.phases=finetune,evaluate

    config.data = ConfigDict()
    # 'folder' (train/<class>/..., or class folders alone), 'list' (CSV or text: path, label[, split]),
    # 'inaturalist' (its JSON lists), 'cub', 'cars', 'aircraft' (as their archives unpack), 'competition'
    # (train/<classID>_<className>/, flat test/), 'tfds' (see `fgvc prepare`), 'digits' (scikit-learn's)
    config.data.source = "folder"
    config.data.root = ""  # the folder; of 'list' the list
    config.data.images = ""  # what the paths in a list or a JSON are relative to; '' = its folder
    # 'retrieval' = the first half of the classes in train, the second in test; val has classes of train's.
    config.data.splits = "official"
    config.data.fold = 1  # which of several official splits; DTD has ten
    config.data.label_feature = (
        ""  # '' = 'label' or the only one; 'family', 'manufacturer' of aircraft
    )
    config.data.image_feature = ""
    config.data.val_fraction = 0.1  # carved from train where the data has no validation split
    config.data.test_fraction = 0.1  # only where class folders come without any split
    # Photos of one thing stay in one split: a regular expression over the path, whose first (...) tells which
    # thing, such as '(part\d+)_view'; '' = every photo for itself.
    config.data.group = ""
    # A CSV file of corrected labels, file,label,new_label, see `fgvc audit` and docs/audit.md; '' = none.
    config.data.labels_patch = ""
    config.data.split_seed = 0  # stays when `seed` changes: other seeds, the same split
    config.data.on_bad = "stop"  # 'skip' leaves bad training images out; see `fgvc check`
    # Images with a longer side are shrunk to it, once, when cached; 0 = what the resize needs, 512 at least.
    config.data.canvas = 0
    config.data.cache = ""  # folder of the decoded images; '' = $FGVC_CACHE or ~/.cache/fgvc_jax
    # 'resident' in device memory; 'streamed' from the cache on the host's disk; 'decoded' anew each time,
    # with no cache; 'auto': the first of these that there is room for.
    config.data.feed = "auto"
    # GB of canvases per device; beyond it they are sharded over the devices, then streamed.
    config.data.resident_gb = 4.0

    config.image = ConfigDict()
    config.image.protocol = (
        ""  # a named set of resize and crop (see protocols.py), for keys left as here
    )
    config.image.size = 224  # pixels, height = width, as the network sees them
    # Shorter side before the centre crop at evaluation, and before crop='random'; 0 = as the weights want.
    config.image.resize = 0
    config.image.squash = ()  # (height, width) to resize to instead, whatever the aspect
    config.image.mean = ()  # () = as the weights were trained with
    config.image.std = ()
    config.image.interpolation = ""  # 'bilinear', 'bicubic'; '' = as the weights were trained with
    config.image.crop = "random_resized"  # or 'random': size x size anywhere in the resized image
    config.image.crop_pad = 0  # of crop='random': pixels of black around the resized image
    config.image.crop_scale = (0.08, 1.0)  # random-resized-crop: share of the area
    config.image.crop_ratio = (3 / 4, 4 / 3)  # and width over height
    config.image.flip = 0.5  # probability of a horizontal flip
    config.image.augment = "none"  # 'none', 'trivial_augment_wide', 'auto_augment'
    config.image.augment_probability = 1.0
    config.image.augment_first = False  # before the crop, as torchvision's usual order; slower
    config.image.jitter = (0.0, 0.0, 0.0, 0.0)  # strength of brightness, contrast, saturation, hue
    config.image.blur = 0.0  # probability of a Gaussian blur
    config.image.blur_sigma = (0.1, 5.0)  # pixels, at least and at most
    config.image.sharpen = 0.0  # probability of sharpening
    config.image.sharpness = 1.5  # its factor; 1 changes nothing
    config.image.erase = 0.0  # probability of random erasing
    config.image.erase_scale = (0.02, 1 / 3)  # share of the area
    config.image.erase_ratio = (0.3, 1 / 0.3)  # height over width
    config.image.erase_mode = "pixel"  # noise, or 'const': the mean colour

    config.model = ConfigDict()
    config.model.backbone = "resnet50"
    config.model.arguments = (
        ConfigDict()
    )  # the backbone's own, such as width; defaults from its file
    # A file, a folder, 'torchvision/resnet50.IMAGENET1K_V2', 'timm/resnet50.a1_in1k'; '' = from scratch.
    config.model.pretrained = ""
    # The same for the second backbone of a method that has one (argument `second`); its weights' mean and
    # deviation need not be the first one's, what else they want of images has to be.
    config.model.second_pretrained = ""
    config.model.allow = ()  # patterns of names in which weights and backbone may differ
    config.model.dtype = "auto"  # of the computation: 'float32', 'bfloat16', 'auto' = by device
    config.model.param_dtype = "float32"  # of parameters and statistics
    # Gradient checkpointing: for the gradient 'full' computes each block again (least memory, up to a third
    # more time), 'products' all but its dense products and convolutions; 'none' keeps everything.
    config.model.remat = "none"
    config.model.attention = (
        "auto"  # on NVIDIA GPUs in bfloat16 cuDNN's; 'plain' = products and softmax
    )

    config.init = ConfigDict()
    # The workdir of an earlier run, from whose model training starts (its best classifier), or the folder of
    # one of its training phases; in place of config.model.pretrained. Heads keep classes of the same name.
    config.init.run = ""
    # A checkpoint of the authors of the phases' method, as of MMAL-Net; in place of config.model.pretrained.
    config.init.file = ""

    # How much time a killed training loses at most; it also saves with every validation. '' = only then. With
    # several processes it is looked at with every line of the log.
    config.checkpoint_every = "10 min"

    config.devices = ConfigDict()
    config.devices.fsdp = 1  # over how many devices each parameter is split

    config.log = ConfigDict()
    config.log.every = "50 steps"
    config.log.tensorboard = True
    # Which steps of each training phase are traced, '20:25' = 20 to 25; '' = none. See docs/performance.md.
    config.log.profile = ""
    config.log.report = True  # report/report.html at the end; `fgvc report RUN` makes it later

    config.tracking = ConfigDict()
    config.tracking.wandb = ""  # a project of Weights & Biases, where each training phase is a run
    return config


def override(section: ConfigDict, values: Mapping[str, Any], where: str) -> ConfigDict:
    """The section with these keys set, in place; groups take dictionaries of their own keys.

    `arguments` takes any key: its defaults come from the class that they are for, see `complete`.

    Raises:
      UserError: a key that there is not; the nearest is named.
    """
    for key, value in values.items():
        if key not in section:
            raise UserError(f"{where} has no key {key!r}{did_you_mean(key, section.keys())}")
        if key == "arguments":
            section[key] = ConfigDict(dict(value))
        elif isinstance(section[key], ConfigDict):
            if not isinstance(value, Mapping | ConfigDict):
                raise UserError(
                    f"{where}: {key} is a group of keys ({', '.join(section[key])}); give a dictionary, "
                    f"not {value!r}."
                )
            override(section[key], value, f"{where}.{key}")
        else:
            section[key] = value
    return section


def fill_arguments(given: ConfigDict, defaults: Mapping[str, Any], where: str) -> ConfigDict:
    """All arguments of a class: its defaults, and in their place what is given.

    Raises:
      UserError: an argument that the class does not take (the nearest is named), or of another type.
    """
    result = dict(defaults)
    for name, value in given.items():
        if name not in defaults:
            raise UserError(f"{where} has no {name!r}{did_you_mean(name, defaults)}")
        default = defaults[name]
        if isinstance(default, tuple) and isinstance(value, list):
            value = tuple(value)
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if default is not None and not isinstance(value, type(default)):
            raise UserError(
                f"{where}.{name} = {value!r} is no {type(default).__name__}; its default is {default!r}."
            )
        result[name] = value
    return ConfigDict(result)


def phases(config: ConfigDict) -> tuple[str, ...]:
    """The phase list; '--config.phases=a,b' arrives as ('a,b',), which means ('a', 'b')."""
    value = config.phases
    parts = (value,) if isinstance(value, str) else value
    return tuple(name.strip() for part in parts for name in part.split(",") if name.strip())


def flat(config: ConfigDict, prefix: str = "") -> dict[str, object]:
    """{'data.root': ..., 'finetune.batch': ...}: every leaf under its dotted name."""
    leaves = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves


def is_placement(key: str) -> bool:
    return any(key == name or key.startswith(name + ".") for name in PLACEMENT)


def as_json(config: ConfigDict) -> str:
    return json.dumps(config.to_dict(), indent=2, sort_keys=True, default=list)


def changed(section: ConfigDict, defaults: ConfigDict) -> dict[str, object]:
    """The leaves that are not at their defaults, by dotted name.

    Hashes and comparisons of runs look at these alone, so that a new key, at its default, changes nothing.
    """
    usual = plain(defaults)
    return {k: v for k, v in plain(section).items() if k not in usual or usual[k] != v}


def plain(config: ConfigDict) -> dict[str, object]:
    """As the config comes back from JSON: tuples are lists there."""
    return json.loads(json.dumps(flat(config), default=list))


def digest(content: object) -> str:
    """A short hash of something that JSON can hold."""
    text = json.dumps(content, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
