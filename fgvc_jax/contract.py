"""Whether a method keeps the contract of `methods/_base.py`: it is built, trained and used on made images."""

import contextlib
import functools
import inspect
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fgvc_jax import backbones, evaluators, methods
from fgvc_jax import mesh as meshes
from fgvc_jax.errors import UserError
from fgvc_jax.images.batch import plain_views
from fgvc_jax.images.view import View
from fgvc_jax.train import optim, tree
from fgvc_jax.train.build import Program, build, new_state
from fgvc_jax.train.checkpoint import Checkpoints
from fgvc_jax.train.microbatch import accumulate
from fgvc_jax.train.sam import sam
from fgvc_jax.train.step import Recipe, State

BATCH, CLASSES = 8, 4
NARROW = {"resnet18": {"width": 8, "depths": (1, 1, 1, 1)}}
OUTPUTS = {"classify": ("scores", "embedding"), "verify": ("scores",), "retrieve": ("embedding",)}


def check(
    method: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    backbone: str = "resnet18",
    backbone_arguments: Mapping[str, Any] | None = None,
    image_size: int = 64,
    steps: int = 20,
) -> Iterator[str]:
    """Yields a line for each promise that the method has been seen to keep.

    Args:
      method: a name, or the path of a .py file.
      arguments: its own.
      backbone, backbone_arguments: what it is built around; None = a narrow net, where there is one.
      steps: over which the loss has to fall, on one batch of made images.

    Raises:
      UserError: for the first promise that it breaks, with what was seen.
    """
    where = f"method {method!r}"
    made = made_batch(methods.get(method), image_size)
    module = functools.partial(
        make, method, dict(arguments or {}), backbone, backbone_arguments, image_size
    )
    with _explained(where, "its constructor"):
        abstract = nnx.eval_shape(module)
    abstract.eval()
    arrays = sum(int(np.prod(x.shape)) for x in tree.weights(abstract)["params"].values())
    yield f"is built: {arrays:,} parameters, {len(abstract.updates)} update(s) a step"
    if not all(np.isfinite(c) and c >= 0 for c in abstract.cost) or not abstract.cost.forward:
        raise UserError(f"{where}: its cost is {abstract.cost}; it must be passes an example.")
    yield f"costs {abstract.cost.forward:g} forward, {abstract.cost.backward:g} backward passes"

    if "edit" not in inspect.signature(type(abstract).predict).parameters:
        raise UserError(f"{where}: predict(images, edit=None) takes no edit; nothing explains it.")
    with _explained(where, "predict"):
        _uses_its_output(module(), made, where)
    yield f"predicts for its evaluator, {abstract.evaluator!r}, each image by itself"
    _hands_on_edit(module(), made, where)
    yield "hands `edit` to the backbone"
    with _explained(where, "evidence"):
        evidence = _evidence(module(), made, where)
    if evidence:
        yield f"shows what it has picked out: {', '.join(evidence)}"

    with _explained(where, "its updates"):
        program, state, batch = trainer(module(), made)
        program.trace(batch)
    first, seen = jax.device_get(state), []
    state, metrics = program.step(state, (), batch, np.uint32(0))
    second = jax.device_get(state)
    for _ in range(steps):
        seen.append({name: float(value) for name, value in metrics.items()})
        state, metrics = program.step(state, (), batch, np.uint32(0))
    bad = sorted({name for line in seen for name, x in line.items() if not np.isfinite(x)})
    if bad:
        raise UserError(f"{where}: {', '.join(bad)} became infinite or no number in {steps} steps.")
    # After the second step, for what begins with the second epoch; mean of three, as draws differ.
    total = [sum(x for name, x in line.items() if name.startswith("loss")) for line in seen[2:]]
    start, end = np.mean(total[:3]), np.mean(total[-3:])
    if not end < start:
        raise UserError(
            f"{where}: in {steps} steps on one batch the loss went from {start:.4g} to {end:.4g}; it should "
            "fall."
        )
    yield f"learns: the loss falls from {start:.4g} to {end:.4g} in {steps} steps"
    same = [np.array_equal(x, second["params"][path]) for path, x in first["params"].items()]
    if any(same):
        paths = [path for path, still in zip(first["params"], same, strict=True) if still]
        yield f"note: {len(paths)} arrays get no gradient, such as {paths[0]}"
    again, _ = program.step(_restored(first, program), (), batch, np.uint32(0))
    if not jax.tree.all(jax.tree.map(np.array_equal, second, jax.device_get(again))):
        raise UserError(f"{where}: a step from a restored checkpoint gives another result.")
    if program.step._cache_size() != 1:
        raise UserError(f"{where}: its step was compiled {program.step._cache_size()} times.")
    yield "goes on from a checkpoint to the bit, compiled once"

    wraps = {"SAM": lambda gradient: sam(gradient, 0.05)}
    if not abstract.compares_examples:
        wraps["gradient accumulation"] = lambda gradient: accumulate(gradient, 2)
    for name, wrap in wraps.items():
        with _explained(where, f"with {name}"):
            program, _, batch = trainer(module(), made, wrap=wrap)
            program.trace(batch)
        yield f"works with {name}"


def _evidence(
    module: methods.Method, made: tuple[np.ndarray, np.ndarray], where: str
) -> dict[str, jax.Array]:
    """The evidence of the made images; UserError where it is nothing that is drawn."""
    images = _as_given(made[0])
    static, params, stats = tree.split(module)
    found = jax.jit(lambda x: tree.merge(static, params, stats).evidence(x))(images)
    for name, x in found.items():
        boxes = x.ndim == 3 and x.dtype == jnp.int32 and x.shape[2] == 4
        maps = (
            x.ndim == 3 and jnp.issubdtype(x.dtype, jnp.floating) and 0 <= x.min() <= x.max() <= 1
        )
        if len(x) != len(images) or not (boxes or maps):
            raise UserError(
                f"{where}: its evidence {name!r} is {x.dtype} {x.shape}; it must be boxes, int32 "
                f"[{len(images)}, N, 4], or a map from 0 to 1, float [{len(images)}, h, w]."
            )
    return found


@contextlib.contextmanager
def _explained(where: str, what: str) -> Iterator[None]:
    """Turns what a method raises into one message that names the line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"{where}: {what} raises {type(error).__name__}: {str(error).partition(chr(10))[0]} "
            f"({frame.filename}, line {frame.lineno})"
        ) from error


def make(
    method: str, arguments: dict, backbone: str, backbone_arguments, image_size: int
) -> methods.Method:
    """The method around its backbone, drawn from seed 0, in eval mode."""
    if backbone_arguments is None:
        backbone_arguments = NARROW.get(backbone, {})
    body = backbones.create(
        backbone, image_size=image_size, rngs=nnx.Rngs(0), **dict(backbone_arguments)
    )
    module = methods.create(
        method,
        body,
        CLASSES,
        image_size=image_size,
        rngs=nnx.Rngs(1),
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        **arguments,
    )
    module.eval()
    return module


def made_batch(method: type[methods.Method], image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 images [B, V, S, S, 3], labels [B]): two of each class, which has a colour and a grating.

    Pairs are an image and the one before it, labelled 1 where both are of one class.
    """
    rng = np.random.default_rng(0)
    labels = np.arange(BATCH) * CLASSES // BATCH
    y, x = np.mgrid[:image_size, :image_size] / image_size
    images = []
    for label in labels:
        wave = np.sin(2 * np.pi * (label + 1) * (x if label % 2 else y) + rng.uniform(0, 6))
        colour = np.array([label == 0, label == 1, label == 2]) * 60
        image = 110 + 60 * wave[..., None] + colour + rng.normal(0, 8, (*wave.shape, 3))
        images.append(image.clip(0, 255))
    images = np.asarray(images, np.uint8)
    views = range(method.images_per_example)
    if method.trains_on == "pairs":
        labels = (labels == np.roll(labels, 1)).astype(labels.dtype)
    return np.stack([np.roll(images, shift, 0) for shift in views], 1), labels.astype(np.int32)


def trainer(
    module: methods.Method,
    made: tuple[np.ndarray, np.ndarray],
    *,
    wrap=lambda gradient: gradient,
    mesh: jax.sharding.Mesh | None = None,
    rate: float = 0.01,
) -> tuple[Program, State, dict]:
    """(program, state at step 0, batch) of plain SGD on one batch of made images, without augmentation."""
    mesh = meshes.make(devices=jax.devices()[:1]) if mesh is None else mesh
    images, labels = made
    view = View(images.shape[2], images.shape[2], (0.5,) * 3, (0.5,) * 3)
    params = tree.weights(module)["params"]
    dtype = next(iter(params.values())).dtype
    recipe = Recipe(
        optimizer=optim.optimizer("sgd", list(params), momentum=0.9),
        learning_rate=optim.schedule("constant", peak=rate, total=1000),
        total_steps=1000,
        steps_per_epoch=2.0,  # so that what begins with the second epoch begins at the third step
        wrap=wrap,
    )
    weights = tree.weights(module)
    program = build(
        module,
        recipe,
        mesh=mesh,
        gather=lambda resident, batch: (batch["pixels"], batch["sizes"]),
        preprocess=lambda keys, pixels, sizes: plain_views(pixels, sizes, view, dtype),
    )
    sizes = np.full((*images.shape[:2], 2), images.shape[2], np.int32)
    batch = {"pixels": images, "sizes": sizes, "label": labels}
    batch = jax.device_put(batch, jax.sharding.NamedSharding(mesh, meshes.BATCH))
    return program, new_state(program, **weights, recipe=recipe), batch


def _restored(state: State, program: Program) -> State:
    """The state, written to a checkpoint and read back."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(folder)
        checkpoints.save(0, state, None)
        checkpoints.manager.wait_until_finished()
        found = checkpoints.restore(0, program.state)
        checkpoints.close()
    return found


def _predictor(module: methods.Method):
    static, params, stats = tree.split(module)
    step = jax.jit(lambda images: tree.merge(static, params, stats).predict(images))
    return lambda images: jax.device_get(step(images))


def _as_given(images: np.ndarray) -> np.ndarray:
    scaled = images.astype(np.float32) / 127.5 - 1
    return scaled[:, 0] if scaled.shape[1] == 1 else scaled


def _uses_its_output(module: methods.Method, made, where: str) -> None:
    """Raises UserError unless `predict` gives what the evaluator reads, image by image."""
    images = _as_given(made[0])
    predict = _predictor(module)
    whole, turned = predict(images), predict(images[::-1])
    evaluator = module.evaluator
    evaluators.get(evaluator)
    for name in OUTPUTS.get(evaluator, ()):
        if name not in whole:
            raise UserError(f"{where}: predict gives no {name!r}, which {evaluator!r} reads.")
    for name, value in whole.items():
        if len(value) != BATCH or not np.isfinite(value).all():
            raise UserError(
                f"{where}: predict's {name!r} has shape {value.shape} for {BATCH} examples, or holds "
                "values that are not finite."
            )
        scale = np.abs(value).max() + 1e-6
        if np.abs(turned[name][::-1] - value).max() > 1e-3 * scale:
            raise UserError(
                f"{where}: predict's {name!r} of an image depends on the other images of the batch."
            )
    if evaluator == "classify" and whole["scores"].shape != (BATCH, CLASSES):
        raise UserError(
            f"{where}: predict's scores are {whole['scores'].shape}, not {(BATCH, CLASSES)}."
        )


def _hands_on_edit(module: methods.Method, made, where: str) -> None:
    """Raises UserError unless `edit` is called at a tap."""
    seen = []
    images = jnp.asarray(_as_given(made[0]))

    def edit(name, x):
        seen.append(name)
        return x

    jax.eval_shape(lambda x: module.predict(x, edit=edit), images)
    if module.cam_tap not in seen:
        raise UserError(f"{where}: predict does not hand `edit` to the backbone.")
