"""Which examples a step sees: a pure function of (seed, step), so that resuming needs no iterator state."""

import functools

import grain
import numpy as np

from fgvc_jax.errors import UserError

NAMES = ("shuffled", "balanced", "classes_by_images")
STEPS = 2**31  # of an endless stream


def shuffled(examples: int, batch: int, seed: int) -> grain.MapDataset:
    """`sampler[step]` -> int64 [batch], an endless stream of epochs, each in its own random order.

    Every batch is full: the stream of epochs is cut into batches, so one may straddle two epochs and every
    example is seen equally often.
    """
    return grain.MapDataset.range(examples).seed(seed).shuffle().repeat().batch(batch)


def balanced(labels: np.ndarray, batch: int, seed: int) -> grain.MapDataset:
    """`sampler[step]` -> int64 [batch], every class equally often and every image of a class equally often.

    The stream goes in rounds. A round has one image of every class, the classes in an order of the round's
    own; a class shows all its images before it shows one again. Rounds are cut into batches as epochs are
    in `shuffled`. For labels of pairs (1 same, 0 different): half of each.
    """
    members = _members(labels)

    def pick(position: int) -> int:
        round_, place = divmod(position, len(members))
        number = _order(len(members), seed, 0, round_)[place]
        own = members[number]
        epoch, place = divmod(round_, len(own))
        return own[_order(len(own), seed, 1 + number, epoch)[place]]

    def make(step: int) -> np.ndarray:
        return np.array([pick(step * batch + i) for i in range(batch)])

    return grain.MapDataset.range(STEPS).map(make)


def classes_by_images(labels: np.ndarray, batch: int, images: int, seed: int) -> grain.MapDataset:
    """`sampler[step]` -> int64 [batch]: batch / images different classes with `images` images of each.

    The P x K sampler of metric learning (Hermans et al. 2017). The classes go through epochs, each in its
    own order; those that do not fill an epoch's last batch are left out of that epoch. The images of a
    class are drawn without replacement, unless it has fewer than `images`. A class's images lie together.

    Raises:
      UserError: `images` does not divide the batch, or the batch asks for more classes than there are.
    """
    members = _members(labels)
    per_batch, rest = divmod(batch, images)
    if rest or per_batch > len(members):
        raise UserError(
            f"A batch of {batch} with {images} images a class has {batch / images:g} classes; it must be a "
            f"whole number, at most the {len(members)} classes there are."
        )
    per_epoch = len(members) // per_batch

    def make(step: int) -> np.ndarray:
        epoch, place = divmod(step, per_epoch)
        classes = _order(len(members), seed, 0, epoch)[place * per_batch :][:per_batch]
        chosen = []
        for number in classes:
            own = members[number]
            order = _order(len(own), seed, 1 + number, epoch)
            chosen.append(own[np.resize(order, images)])
        return np.concatenate(chosen)

    return grain.MapDataset.range(STEPS).map(make)


def in_order(examples: int, batch: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """[(int64 [batch], bool [batch])]: every example once; the last batch is padded, masked."""
    batches = []
    for start in range(0, examples, batch):
        index = np.arange(start, start + batch)
        batches.append((np.where(index < examples, index, 0), index < examples))
    return batches


def _members(labels: np.ndarray) -> list[np.ndarray]:
    """The examples of each class that has some."""
    by_class = np.argsort(labels, kind="stable")
    return np.split(by_class, np.flatnonzero(np.diff(labels[by_class])) + 1)


@functools.lru_cache(maxsize=16)  # the order of a round is asked for by every place in it
def _order(count: int, seed: int, stream: int, epoch: int) -> np.ndarray:
    """A permutation of 0..count-1. NumPy promises the raw words of Philox for all versions."""
    words = np.random.Philox(key=[seed, stream], counter=[0, 0, 0, epoch]).random_raw(count)
    return np.argsort(words, kind="stable")
