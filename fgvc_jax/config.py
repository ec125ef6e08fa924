"""What a run can be told: every key with its default.

A config is an `ml_collections.ConfigDict` made by a file under `configs/`. `base()` holds what all phases
share; `training()`, `embedding()`, `mining()` and `evaluation()` make one section each. A section is named
like its phase, and `config.phases` says which run, in which order (a ConfigDict sorts its keys).
"""

import ast
import hashlib
import json

from ml_collections import ConfigDict

from fgvc_jax import lengths
from fgvc_jax.errors import UserError, did_you_mean

# Where a run is watched or placed, not what it computes: these may differ when a run goes on.
PLACEMENT = (
    "phases",
    "seeds",
    "log",
    "devices",
    "model.remat",
    "data.cache",
    "data.feed",
    "data.resident_gb",
    "data.on_bad",  # what it leaves out shows in the manifest
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
    # Of 'tfds': 'retrieval' = the first half of the classes in train, the second in test (cub, cars).
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
    config.data.split_seed = 0  # stays when `seed` changes: other seeds, the same split
    config.data.on_bad = "stop"  # 'skip' leaves bad training images out; see `fgvc check`
    config.data.canvas = 512  # images with a longer side are shrunk to it, once, when cached
    config.data.cache = ""  # folder of the decoded images; '' = $FGVC_CACHE or ~/.cache/fgvc_jax
    # 'resident' in device memory; 'streamed' from the cache on the host's disk; 'decoded' anew each time,
    # with no cache; 'auto': the first of these that there is room for.
    config.data.feed = "auto"
    # Of a device's memory; what is more is spread over the devices, and what is still more streamed.
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

    config.model = ConfigDict()
    config.model.backbone = "resnet50"
    config.model.arguments = ""  # of the backbone, such as 'width=16'; see its file
    # A file, a folder, 'torchvision/resnet50.IMAGENET1K_V2', 'timm/resnet50.a1_in1k'; '' = from scratch.
    config.model.pretrained = ""
    config.model.allow = ()  # patterns of names in which weights and backbone may differ
    config.model.dtype = "auto"  # of the computation: 'float32', 'bfloat16', 'auto' = by device
    config.model.param_dtype = "float32"  # of parameters and statistics
    # Gradient checkpointing: each block is computed again for the gradient. Less memory, a third more time.
    config.model.remat = False

    config.devices = ConfigDict()
    config.devices.shard_parameters = 1  # over how many devices each parameter is split (FSDP)

    config.log = ConfigDict()
    config.log.every = "50 steps"
    config.log.tensorboard = True
    return config


def training(**overrides) -> ConfigDict:
    """A phase that trains a model."""
    section = ConfigDict()
    section.kind = "train"
    section.method = "baseline"  # a file in fgvc_jax/methods
    section.arguments = ""  # of the method, such as 'label_smoothing=0.1'; see its file
    section.init = (
        ""  # the phase whose weights it starts from; '' = config.model.pretrained, or scratch
    )
    section.blend = ""  # a second one; the backbone is then alpha * init + (1 - alpha) * blend
    section.alpha = 0.5
    section.init_from = "best"  # which checkpoint of those phases: 'best' by validation or 'last'
    # 'keep' that of the init phase; 'fresh' = new random weights; 'means' = the nearest class mean, as a
    # linear layer on the embeddings of the training images
    section.head = "keep"
    # BatchNorm's running statistics: 'keep' those of the init phase (blended, with a blend), or 'estimate'
    # them anew from training images, which a blend of weights calls for
    section.batch_norm = "keep"
    section.pairs = ""  # for methods that train on pairs: the mining phase that made them
    section.length = "30 epochs"
    section.batch = 64  # examples per step over all devices; for pairs: pairs
    # 'shuffled' epochs; 'balanced': every class equally often; 'classes_by_images': a batch has
    # images_per_class images of each of its classes (P x K).
    section.sampler = "shuffled"
    section.images_per_class = 4
    section.eval_every = "1 epochs"  # validation, and a checkpoint
    section.optimizer = "sgd"  # 'sgd', 'adamw'
    section.learning_rate = 0.01
    section.momentum = 0.9
    section.nesterov = False
    section.beta2 = 0.999  # adamw (its beta1 is momentum)
    section.weight_decay = 1e-4
    section.no_decay = ()  # patterns of parameter paths without weight decay, such as '.*bias'
    section.learning_rate_scale = ()  # ((pattern, factor), ...); the first that matches counts
    section.freeze = ()  # patterns of parameter paths that stay as they are
    section.frozen_batch_norm = (
        "fixed"  # BatchNorm whose parameters are frozen: 'fixed' or 'update'
    )
    section.schedule = "cosine"  # 'constant', 'cosine', 'step', 'plateau'
    section.schedule_steps = ("60 %", "80 %")  # where 'step' multiplies by schedule_factor
    section.schedule_factor = 0.1
    section.schedule_patience = 5  # evaluations without a better one before 'plateau' multiplies
    section.warmup = "0 steps"  # linear, from 0
    section.clip = 0.0  # global norm of the gradient; 0 = off
    section.accumulate = 1  # parts of the batch, one after the other, in the memory of one
    section.sam_rho = 0.0  # sharpness-aware minimisation: radius, usually 0.05 to 0.1; 0 = off
    section.sam_adaptive = False  # ASAM, whose radius is ten times larger
    section.sam_eta = 0.01  # of ASAM
    section.sam_weights_only = True  # ASAM scales kernels only (its authors), or everything
    section.sam_groups = 1  # m-sharpness: parts of the batch with a perturbation each
    section.decay_in_loss = (
        False  # weight decay as 0.5 wd |w|^2 in the loss, so in both of SAM's passes
    )
    section.ema = (
        0.0  # decay of the weights' moving average, which is then validated and kept; 0 = off
    )
    section.patience = 0  # stop after so many evaluations without a better one; 0 = never
    section.keep_every = (
        ""  # checkpoints to keep besides the best and the latest, such as '10 epochs'
    )
    return _override(section, overrides, "training()")


def embedding(**overrides) -> ConfigDict:
    """A phase that embeds whole splits with a trained model."""
    section = ConfigDict()
    section.kind = "embed"
    section.model = "finetune"  # the training phase whose model embeds
    section.model_from = "best"
    section.batch = 64
    section.view = "eval"  # 'eval' preprocessing, or 'train' (random augmentation, drawn twice)
    return _override(section, overrides, "embedding()")


def mining(**overrides) -> ConfigDict:
    """A phase that mines look-alike pairs from embeddings."""
    section = ConfigDict()
    section.kind = "mine"
    section.embeddings = "embed"  # the embedding phase
    section.top_classes = 7  # Q: how many predicted classes are searched
    section.similarity = "cosine"  # 'cosine', 'ip' (inner product), 'l2'
    section.backend = "faiss"  # 'faiss' or 'jax', both exact
    section.self_by_rank = (
        False  # True: take rank 0 for the image itself, as the authors' code does
    )
    section.sheet_rows = 12  # pairs of each kind on the contact sheet; 0 = none
    return _override(section, overrides, "mining()")


def evaluation(**overrides) -> ConfigDict:
    """A phase that scores classifiers on validation and test."""
    section = ConfigDict()
    section.kind = "evaluate"
    section.models = ()  # training phases; () = every classifier that comes before
    section.batch = 64
    section.neighbours = 5  # of the kNN row
    # Two classifiers for the paired test and its verdict, if both ran: the pipeline's and its control's.
    section.compare = ("retrain", "control")
    # The first of them re-ranked by this phase's comparator, if it ran, among so many classes; '' = no.
    section.rerank = "pairs"
    section.rerank_classes = 5
    return _override(section, overrides, "evaluation()")


SECTIONS = {"train": training, "embed": embedding, "mine": mining, "evaluate": evaluation}


def _override(section: ConfigDict, overrides: dict, where: str) -> ConfigDict:
    for key, value in overrides.items():
        if key not in section:
            raise UserError(f"{where} has no key {key!r}{did_you_mean(key, section.keys())}")
        section[key] = value
    return section


def arguments(text: str, where: str) -> dict[str, object]:
    """'width=16, init=xavier' -> {'width': 16, 'init': 'xavier'}; a bare word is a string."""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if call.args:
            raise ValueError
        values = {keyword.arg: keyword.value for keyword in call.keywords}
        if None in values:  # f(**x)
            raise ValueError
        return {
            name: value.id if isinstance(value, ast.Name) else ast.literal_eval(value)
            for name, value in values.items()
        }
    except (SyntaxError, ValueError, AttributeError):
        raise UserError(
            f"{where} = {text!r} is not of the form 'name=value, name=value'."
        ) from None


def phases(config: ConfigDict) -> tuple[str, ...]:
    """The phase list; '--config.phases=a,b' arrives as ('a,b',), which means ('a', 'b')."""
    value = config.phases
    parts = (value,) if isinstance(value, str) else value
    return tuple(name.strip() for part in parts for name in part.split(",") if name.strip())


def inputs(section: ConfigDict, where: str = "") -> tuple[str, ...]:
    """The phases that a section (named `where` in errors) names, whose results it reads."""
    if section.kind == "train":
        units = [unit for _, unit in lengths.terms(section.length, f"{where}length")]
        units = [u for u in units if u not in ("steps", "epochs", "images", "%")]
        named = (section.init, section.blend, section.pairs, *units)
    else:
        key = {"embed": "model", "mine": "embeddings", "evaluate": "models"}[section.kind]
        named = (section[key],) if isinstance(section[key], str) else tuple(section[key])
    return tuple(dict.fromkeys(name for name in named if name))


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


def phase_hash(
    config: ConfigDict,
    name: str,
    hashes: dict[str, str],
    data: str = "",
    without: tuple[str, ...] = (),
) -> str:
    """A hash of what a phase computes from: its section, what all phases share, and its inputs' hashes.

    Args:
      hashes: of the phases before it.
      data: digest of the manifest.
      without: keys of its section to leave out.
    """
    section = config[name]
    read = inputs(section)
    if section.kind == "evaluate":
        read = tuple(p for p in hashes if config[p].kind == "train")
    content = {
        "section": {key: value for key, value in flat(section).items() if key not in without},
        "images": data,
        "shared": {
            key: value
            for key, value in flat(config).items()
            if key.split(".")[0] in ("seed", "data", "image", "model") and not is_placement(key)
        },
        "inputs": {phase: hashes[phase] for phase in read},
    }
    text = json.dumps(content, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
