"""How a retrained head should start, and how far its learning rate must reach: on made features.

    python benchmarks/retrain_head.py --out=benchmarks/results/retrain_head.json   # 5 minutes of one core

FineNet retrains a linear head on a frozen backbone: a linear model of fixed features. The features here
are drawn: 200 classes of 2,048 numbers, 27 images a class for training, 3 for validation and 29 for the
test, about as CUB-200-2011, with the mean and the norm of a ResNet-50's pooled features. Two kinds:

    round   the same spread around every class mean in all directions, so no head beats the nearest mean
    long    the classes differ in 64 directions, and images of one class differ along the same ones, in some
            more than the classes do: the nearest mean is good, but not the best

Each line is a recipe: start of the head (fresh, or the class means), optimizer, peak rate, schedule,
epochs; then the sum of the rate over the steps, and the accuracies. A recipe is chosen by the column val.
Float32, batch 128, by the project's own optimizers, schedules and loss.
"""

import argparse
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from result import add_out, facts, write

from fgvc_jax.ops.losses import cross_entropy
from fgvc_jax.train import optim
from fgvc_jax.train.initial import class_mean_head

BATCH, SHARED = 128, 64


@dataclasses.dataclass(frozen=True)
class Recipe:
    start: str  # 'fresh', 'means', 'keep'
    rate: float
    epochs: int
    schedule: str = "cosine"
    optimizer: str = "sgd"
    nesterov: bool = False
    weight_decay: float = 1e-4
    warmup: float = 1.0  # epochs, of cosine


def made(kind: str, seed: int, classes: int = 200, width: int = 2048, between: float = 0.175):
    """{'train', 'val', 'test'} -> (features float32 [N, D], labels int32 [N])."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(width, SHARED)))[
        0
    ].T  # for 'long', where the classes differ
    if kind == "long":
        each = (
            between * (width / SHARED) ** 0.5
        )  # so that the means are as far apart as those of 'round'
        means = 0.45 + each * rng.normal(size=(classes, SHARED)) @ basis
        stretch = each * np.linspace(0.1, 3, SHARED)[:, None] * basis
    else:
        means = 0.45 + between * rng.normal(size=(classes, width))
    parts = {}
    for split, count in (("train", 27), ("val", 3), ("test", 29)):
        labels = np.repeat(np.arange(classes), count).astype(np.int32)
        x = means[labels] + 0.4 * rng.normal(size=(len(labels), width))
        if kind == "long":
            x += rng.normal(size=(len(labels), SHARED)) @ stretch
        parts[split] = x.astype(np.float32), labels
    return parts


def fresh_head(width: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """What `methods.baseline` starts from: uniform in +-1/sqrt(width), bias 0."""
    bound = width**-0.5
    kernel = np.random.default_rng(seed).uniform(-bound, bound, (width, classes))
    return kernel.astype(np.float32), np.zeros(classes, np.float32)


def train_head(
    views_VND: np.ndarray,
    labels_N: np.ndarray,
    head: tuple[np.ndarray, np.ndarray],
    recipe: Recipe,
    seed: int = 0,
    batch: int = BATCH,
) -> tuple[np.ndarray, np.ndarray]:
    """A linear layer trained on features; each epoch sees the next of the V views of every image."""
    views, count = views_VND.shape[:2]
    batch = min(batch, count)
    per_epoch = count // batch
    steps = recipe.epochs * per_epoch
    rng = np.random.default_rng(seed)
    rows = np.concatenate(
        [rng.permutation(count)[: per_epoch * batch] for _ in range(recipe.epochs)]
    )
    rows = rows.reshape(steps, batch)
    view = np.repeat(np.arange(recipe.epochs) % views, per_epoch)
    params = {"kernel": jnp.asarray(head[0]), "bias": jnp.asarray(head[1])}
    run = _loop(recipe, steps, round(recipe.warmup * per_epoch), len(head[1]))
    params = run(params, jnp.asarray(views_VND), jnp.asarray(labels_N), rows, view)
    return np.asarray(params["kernel"]), np.asarray(params["bias"])


@functools.cache
def _loop(recipe: Recipe, steps: int, warmup: int, classes: int):
    optimizer = optim.optimizer(
        recipe.optimizer,
        ("kernel", "bias"),
        momentum=0.9,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )
    rate = optim.schedule(
        recipe.schedule,
        peak=recipe.rate,
        total=steps,
        warmup=warmup if recipe.schedule == "cosine" else 0,
    )

    def loss(params, x, y):
        return cross_entropy(x @ params["kernel"] + params["bias"], y, 0.0)

    @jax.jit
    def run(params, views, labels, rows, view):
        def step(carry, inputs):
            params, state = carry
            number, chosen, which = inputs
            gradient = jax.grad(loss)(params, views[which, chosen], labels[chosen])
            moves, state = optimizer.update(gradient, state, params)
            params = jax.tree.map(lambda p, m: p - rate(number) * m, params, moves)
            return (params, state), None

        start = (params, optimizer.init(params))
        (params, _), _ = jax.lax.scan(step, start, (jnp.arange(steps), rows, view))
        return params

    return run


def accuracy(x_ND, labels_N, head) -> float:
    return float(np.mean((x_ND @ head[0] + head[1]).argmax(1) == labels_N))


def integrated_rate(recipe: Recipe, images: int, batch: int = BATCH) -> float:
    """Sum of the learning rate over the steps."""
    per_epoch = images // batch
    steps = recipe.epochs * per_epoch
    warmup = round(recipe.warmup * per_epoch) if recipe.schedule == "cosine" else 0
    rate = optim.schedule(recipe.schedule, peak=recipe.rate, total=steps, warmup=warmup)
    return float(np.sum(np.asarray(jax.vmap(rate)(jnp.arange(steps)))))


RECIPES = [
    Recipe(start, rate, 10, optimizer=optimizer)
    for optimizer, rates in (("sgd", (1e-3, 1e-2, 3e-2, 0.1, 0.3)), ("adamw", (1e-3, 1e-2)))
    for start in ("fresh", "means")
    for rate in rates
]
# The authors' length and rate, and the same sum of the rate in a tenth of the time.
RECIPES += [Recipe(start, 1e-3, 100, "constant") for start in ("fresh", "means")]
RECIPES += [Recipe(start, 1e-2, 10, "constant") for start in ("fresh", "means")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="the recipes of 10 epochs on 'round' only"
    )
    add_out(parser)
    args = parser.parse_args()
    lines = []
    for kind in ("round",) if args.quick else ("round", "long"):
        parts = made(kind, seed=0)
        x, labels = parts["train"]
        heads = {"fresh": fresh_head(2048, 200, 0), "means": class_mean_head(x, labels, 200)}
        print(f"{kind:<7}{'':<46}{'sum of rate':>12}{'train':>8}{'val':>8}{'test':>8}")
        recipes = [None] + [r for r in RECIPES if r.epochs == 10 or not args.quick]
        for recipe in recipes:
            if recipe is None:
                head, name, total = heads["means"], "means, not trained", 0.0
            else:
                head = train_head(x[None], labels, heads[recipe.start], recipe)
                total = integrated_rate(recipe, len(labels))
                name = f"{recipe.start}, {recipe.optimizer} {recipe.rate:g}"
                name += f", {recipe.epochs} {recipe.schedule} epochs"
            found = {split: accuracy(*part, head) for split, part in parts.items()}
            print(
                f"  {name:<51}{total:>12.2f}" + "".join(f"{100 * a:>8.1f}" for a in found.values())
            )
            lines.append({"kind": kind, "recipe": name, "sum_of_rate": total} | found)
    if args.out:
        write(facts(("jax", "numpy", "optax")) | {"lines": lines}, args.out)


if __name__ == "__main__":
    main()
