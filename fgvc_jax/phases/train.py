"""A training phase: from the data and earlier weights to checkpoints and model.json."""

import io
import zlib
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from fgvc_jax import lengths, methods
from fgvc_jax.data import sampler
from fgvc_jax.data.feed import Feed, gather
from fgvc_jax.errors import UserError
from fgvc_jax.metrics import classification
from fgvc_jax.mining import pairs as mined
from fgvc_jax.phases.context import Context
from fgvc_jax.tracking.progress import Progress
from fgvc_jax.tracking.writers import Writer
from fgvc_jax.train import initial, loop, optim, tree
from fgvc_jax.train import mesh as meshes
from fgvc_jax.train import step as steps
from fgvc_jax.train.checkpoint import METRIC, Checkpoints
from fgvc_jax.train.microbatch import accumulate
from fgvc_jax.train.predict import predict_all
from fgvc_jax.train.sam import l2_in_loss, sam


def check(context: Context, name: str) -> None:
    """Builds the model's shapes, so that mistakes in its arguments and patterns are told before any training.

    Raises:
      UserError: an argument that the backbone or method does not take, a pattern that matches nothing.
    """
    section = context.config[name]
    try:
        module = nnx.eval_shape(context.describe(section).build)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"config.{name}.arguments = {section.arguments!r} do not suit {section.method!r}: {error}"
        ) from error
    if not section.pairs:
        _order(section, context.manifest.splits["train"].labels, 0)
    _, params, _ = tree.split(module)
    if section.head == "means" and not {"head/kernel", "head/bias"} <= params.keys():
        raise UserError(
            f"config.{name}.head = 'means' needs a method with one linear head, such as 'baseline'; "
            f"{section.method!r} has none. Use 'keep' or 'fresh'."
        )
    if all(tree.matches(section.freeze, path) for path in params):
        raise UserError(f"config.{name}.freeze = {section.freeze!r} leaves nothing to train.")
    patterns = [(pattern, "freeze") for pattern in section.freeze]
    patterns += [(pattern, "learning_rate_scale") for pattern, _ in section.learning_rate_scale]
    for pattern, key in patterns:
        if not any(tree.matches([pattern], path) for path in params):
            raise UserError(
                f"config.{name}.{key}: {pattern!r} matches no parameter. They are called, for instance, "
                f"{', '.join([*list(params)[:3], list(params)[-1]])}."
            )


class Examples(NamedTuple):
    """What a phase trains or validates on."""

    feed: Feed
    index: np.ndarray  # int [N, V], rows of the feed's views
    labels: np.ndarray  # int32 [N], class ids, or 1 for a pair of the same class


def run(context: Context, name: str) -> dict:
    """Trains, resuming from the latest checkpoint of this phase if there is one.

    Returns:
      What DONE.json keeps: steps, images through a backward pass, seconds by kind, and the validation
      metrics of the best and the last checkpoint.
    """
    config, section = context.config, context.config[name]
    seconds = loop.Seconds()
    folder = context.directory(name)
    train, val = _examples(context, section, "train"), _examples(context, section, "val")
    if train is None:
        raise UserError(
            f"phase {name!r} has nothing to train on: {section.pairs!r} found no pairs. Search more classes "
            "(top_classes), or train the model that embeds longer."
        )
    cost = cost_of(context, name, len(train.index))

    description = context.describe(section)
    module = _initial_model(context, name, section, description)
    if context.main:
        description.save(folder / "model.json")

    _, params, stats = tree.split(module)
    freeze = tuple(section.freeze)
    trainable = [path for path in params if not tree.matches(freeze, path)]
    optimizer = optim.direction(
        section.optimizer,
        trainable,
        momentum=section.momentum,
        nesterov=section.nesterov,
        beta2=section.beta2,
        weight_decay=0.0 if section.decay_in_loss else section.weight_decay,
        no_decay=section.no_decay,
        clip=section.clip,
    )

    def length(text: str, key: str) -> int:
        return cost.length(text, f"config.{name}.{key}")

    drops = [length(text, "schedule_steps") for text in section.schedule_steps]
    rate = optim.schedule(
        section.schedule,
        peak=section.learning_rate,
        total=cost.steps,
        warmup=length(section.warmup, "warmup"),
        drops=drops,
        factor=section.schedule_factor,
    )

    state = steps.init_state(params, stats, optimizer, freeze, ema=section.ema > 0)
    state = jax.device_put(state, meshes.shardings(state, context.mesh))
    keep_every = length(section.keep_every, "keep_every") if section.keep_every else 0
    checkpoints = Checkpoints(folder / "checkpoints", keep_every)
    writer = Writer(folder, tensorboard=config.log.tensorboard) if context.main else None
    first = checkpoints.latest() or 0
    if first:
        state = checkpoints.restore(first, state)
        context.say(f"  {name} goes on from step {first} of {cost.steps}")
    if writer:
        writer.truncate(first)

    predict = context.predictor(module)  # in eval mode, as it was built
    module.train()
    if section.frozen_batch_norm == "fixed":
        steps.fix_batch_norm(module, freeze)
    train_step = steps.train_step(
        module,
        state,
        mesh=context.mesh,
        view=context.view,
        optimizer=optimizer,
        rate=rate,
        scales=optim.learning_rate_scales(trainable, tuple(section.learning_rate_scale)),
        freeze=freeze,
        total_steps=cost.steps,
        dtype=context.dtype(),
        wrap=lambda gradient: _wrap(gradient, section, trainable),
        ema=section.ema,
    )

    seed = np.uint32(phase_seed(config.seed, name))
    order = _order(section, train.labels, int(seed))
    examples = {"index": train.index, "label": train.labels}
    batches = train.feed.stream(order.slice(slice(first, cost.steps)), examples)
    if first < cost.steps:
        context.say("  compiling the train step ... (first time; the result is cached)")
        with seconds.measure("compile"):
            example = train.feed.batch(
                **{key: column[order[first]] for key, column in examples.items()}
            )
            train_step = train_step.lower(state, train.feed.resident, example, seed).compile()

    def evaluate(state) -> dict[str, float] | None:
        if val is None:
            return None
        outputs = predict_all(predict, state.get("ema", state), val.feed, val.index, section.batch)
        return score(
            methods.get(section.method).task, outputs, val.labels, len(description.classes)
        )

    progress = Progress(
        name,
        cost.steps,
        cost.images_per_step,
        first_step=first,
        later_seconds=context.later_seconds,
        stream=None if context.main else io.StringIO(),
    )
    try:
        with progress:
            state = loop.fit(
                state,
                step_function=lambda state, batch: train_step(
                    state, train.feed.resident, batch, seed
                ),
                batches=batches,
                first_step=first,
                total_steps=cost.steps,
                eval_every=max(1, length(section.eval_every, "eval_every")),
                log_every=max(1, length(config.log.every, "log.every")),
                evaluate=evaluate,
                checkpoints=checkpoints,
                writer=writer,
                progress=progress,
                seconds=seconds,
                stop=context.stop,
                keep_every=keep_every,
                patience=section.patience,
                plateau_patience=section.schedule_patience if section.schedule == "plateau" else 0,
                plateau_factor=section.schedule_factor,
            )
        last = int(state["step"])
    finally:
        with seconds.measure("save"):
            checkpoints.close()
        if writer:
            writer.close()
    return {
        "steps": last,
        "images": last * cost.images_per_step,
        "seconds_by_kind": {k: round(v, 2) for k, v in vars(seconds).items()},
        "validation": _validation(folder / "checkpoints", last),
    }


def _order(section, labels: np.ndarray, seed: int):
    if section.sampler == "balanced":
        return sampler.balanced(labels, section.batch, seed)
    if section.sampler == "classes_by_images":
        return sampler.classes_by_images(labels, section.batch, section.images_per_class, seed)
    return sampler.shuffled(len(labels), section.batch, seed)


def _wrap(gradient, section, trainable):
    """SAM around accumulation around the decay in the loss, as far as they are asked for."""
    if section.decay_in_loss:
        decays = {path: not tree.matches(section.no_decay, path) for path in trainable}
        gradient = l2_in_loss(gradient, section.weight_decay, decays)
    gradient = accumulate(gradient, section.accumulate)
    if section.sam_rho:
        gradient = sam(
            gradient,
            section.sam_rho,
            adaptive=section.sam_adaptive,
            eta=section.sam_eta,
            weights_only=section.sam_weights_only,
            groups=section.sam_groups,
        )
    return gradient


def _validation(directory, last: int) -> dict:
    checkpoints = Checkpoints(directory)
    best = checkpoints.best() or last
    result = {
        "best": {"step": best} | checkpoints.metrics(best),
        "last": {"step": last} | checkpoints.metrics(last),
    }
    checkpoints.close()
    return result


def score(task: str, outputs: dict, labels: np.ndarray, classes: int) -> dict[str, float]:
    """Validation metrics of a task, with 'selection', by which the best checkpoint is chosen."""
    if task == "verify":
        metrics = classification.binary(outputs["scores"], labels)
        return {
            "auroc": metrics["auroc"],
            "accuracy": metrics["accuracy"],
            METRIC: metrics["auroc"] if np.isfinite(metrics["auroc"]) else metrics["accuracy"],
        }
    metrics = classification.classification(outputs["scores"], labels, classes)
    return {"top1": metrics["top1"], "nll": metrics["nll"], METRIC: metrics["top1"]}


def phase_seed(seed: int, name: str) -> int:
    """Phases draw differently from each other, and the same in every run with one seed."""
    return zlib.crc32(f"{seed}/{name}".encode()) & 0x7FFFFFFF


class Cost(NamedTuple):
    """Length of a training phase; images are those through a backward pass."""

    steps: int
    images_per_step: int
    images_per_epoch: int

    @property
    def images(self) -> int:
        return self.steps * self.images_per_step

    def length(self, text: str, where: str) -> int:
        """Steps of a length within the phase, such as its warm-up."""
        return lengths.steps(
            text,
            where=where,
            images_per_step=self.images_per_step,
            images_per_epoch=self.images_per_epoch,
            total_steps=self.steps,
        )


def cost_of(context: Context, name: str, examples: int) -> Cost:
    """Length of a training phase over this many examples (images or pairs)."""
    section = context.config[name]
    views = methods.get(section.method).views
    count = lengths.steps(
        section.length,
        where=f"config.{name}.length",
        images_per_step=section.batch * views,
        images_per_epoch=examples * views,
        earlier={p: r["images"] for p, r in context.results.items() if "images" in r},
    )
    return Cost(max(1, count), section.batch * views, examples * views)


def _examples(context: Context, section, split: str) -> Examples | None:
    """The examples of a split; None where there are none."""
    if not section.pairs:
        if split not in context.manifest.splits:
            return None
        labels = context.manifest.splits[split].labels
        return Examples(context.feed([split]), np.arange(len(labels))[:, None], labels)
    path = context.workdir / section.pairs / f"{split}_pairs.npz"
    if not path.exists():
        return None
    pairs = mined.load(path)
    if not len(pairs.query):
        return None
    index = np.stack([pairs.query, pairs.neighbour], axis=1)
    return Examples(context.feed([split, "train"]), index, pairs.label)


def _initial_model(context: Context, name: str, section, description):
    """The module with the weights that the phase starts from."""
    if not section.init:
        return context.starting_model(description)
    # Of its own draw: a fresh head must not be the one that the fine-tune started from.
    module = description.build(phase_seed(context.config.seed, name))
    static, params, stats = tree.split(module)
    _, _, source = context.trained_model(section.init, section.init_from)
    if section.blend:
        _, _, second = context.trained_model(section.blend, section.init_from)
        source = {
            kind: tree.blend(source[kind], second[kind], section.alpha, "backbone/")
            for kind in ("params", "stats")
        }
    fresh = section.head != "keep"
    taken = 0
    for ours, theirs in ((params, source["params"]), (stats, source["stats"])):
        for path, value in theirs.items():
            if path in ours and (path.startswith("backbone/") or not fresh):
                ours[path] = value
                taken += 1
    blended = f", blended with {section.blend} (alpha {section.alpha:g})" if section.blend else ""
    context.say(
        f"  starts from {section.init}{blended}: {taken} arrays taken, "
        f"{len(params) + len(stats) - taken} fresh"
    )
    if section.batch_norm == "estimate":
        stats = _estimated_batch_norm(context, name, section.batch, module, params, stats)
    if section.head == "means":
        params |= _class_mean_head(context, section.batch, tree.merge(static, params, stats))
    return tree.merge(static, params, stats)


def _estimated_batch_norm(context: Context, name: str, batch: int, module, params, stats):
    """The statistics over one epoch of training images, augmented as in training."""
    if not stats:
        context.say("  no BatchNorm in this backbone, so batch_norm = 'estimate' changes nothing")
        return stats
    count = len(context.manifest.splits["train"].labels)
    seed = phase_seed(context.config.seed, f"{name}/batch_norm")
    feed, forward = context.feed(["train"]), initial.batch_statistics(module)

    @jax.jit
    def one(params, stats, resident, batch, number):
        pixels, sizes = gather(resident, batch, context.mesh)
        keys = steps.example_keys(np.uint32(seed), number, 0, pixels.shape[0])
        images = steps.random_views(keys, pixels, sizes, context.view, context.dtype())
        return forward(params, stats, images)

    order = sampler.shuffled(count, batch, seed).slice(slice(0, -(-count // batch)))
    batches = feed.stream(order, {"index": np.arange(count)[:, None]})
    context.say(f"  BatchNorm's statistics estimated anew from {count:,} training images")
    return initial.estimate_batch_norm(
        one(params, stats, feed.resident, batch, number) for number, batch in enumerate(batches)
    )


def _class_mean_head(context: Context, batch: int, module) -> tree.Flat:
    """The head of the nearest class mean, on the training images without augmentation."""
    _, params, stats = tree.split(module)
    weights = {"params": params, "stats": stats}
    weights = jax.device_put(weights, meshes.shardings(weights, context.mesh))
    labels = context.manifest.splits["train"].labels
    index = np.arange(len(labels))[:, None]
    feed = context.feed(["train"])
    found = predict_all(context.predictor(module), weights, feed, index, batch)
    kernel, bias = initial.class_mean_head(
        found["embedding"], labels, len(context.manifest.classes)
    )
    right = np.mean((found["embedding"] @ kernel + bias).argmax(1) == labels)
    context.say(
        f"  its head is the nearest class mean, right on {right:.1%} of the training images"
    )
    old = params["head/kernel"]
    return {
        "head/kernel": jax.numpy.asarray(kernel, old.dtype),
        "head/bias": jax.numpy.asarray(bias, old.dtype),
    }
