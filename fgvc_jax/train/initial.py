"""Where a training phase starts: class means as a head, and BatchNorm statistics for interpolated weights."""

from collections.abc import Callable, Iterable

import jax
import numpy as np
from flax import nnx

from fgvc_jax.errors import UserError
from fgvc_jax.layers.norm import BatchNorm
from fgvc_jax.train import tree


def class_mean_head(
    embeddings_ND: np.ndarray, labels_N: np.ndarray, classes: int, smoothing: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest class mean as a linear layer: softmax(z @ kernel + bias) over -scale * |z - mean|^2 / 2.

    With z and means measured from the mean of all embeddings, -|z - m|^2 / 2 is z @ m - |m|^2 / 2 but for
    a term that all classes share, so kernel = scale * m and bias = -scale * |m|^2 / 2 (moved to embeddings as
    they come). The scale minimises the cross-entropy of the training images, each against a mean of its own
    class that leaves it out; the labels are smoothed so that it stays finite where no image is mistaken.
    A class without images gets a kernel of zeros and the lowest bias of the others.

    Nearest class mean: Mensink et al. 2013. All sums are in float64.

    Args:
      embeddings_ND: N > 0 training images; labels_N: int, 0 to classes - 1.
      smoothing: share of the label that is spread over all classes, above 0 and below 1.

    Returns:
      (kernel float32 [D, C], bias float32 [C]).

    Raises:
      UserError: an embedding that is not finite.
    """
    z_ND = np.asarray(embeddings_ND, np.float64)
    if not np.isfinite(z_ND).all():
        bad = int(np.flatnonzero(~np.isfinite(z_ND).all(1))[0])
        raise UserError(
            f"head = 'means': the embedding of training image {bad} is not finite. Has the phase it starts "
            "from diverged? A lower learning_rate there helps."
        )
    centre_D = z_ND.mean(0)
    z_ND -= centre_D
    count_C = np.bincount(labels_N, minlength=classes)
    one_hot_NC = np.eye(classes)[labels_N]
    means_CD = one_hot_NC.T @ z_ND / np.maximum(count_C, 1)[:, None]
    offset_C = -0.5 * np.square(means_CD).sum(1)
    scores_NC = z_ND @ means_CD.T + offset_C

    kept_N = count_C[labels_N] > 1  # of an only image nothing is left for a mean without it
    present_C = count_C > 0
    scale = 1.0 / max(scores_NC[:, present_C].std(), 1e-12)
    if kept_N.any():
        without_N = _without_itself(z_ND, scores_NC, means_CD, labels_N, count_C)
        scores_NC[kept_N, labels_N[kept_N]] = without_N[kept_N]
        position_C = np.cumsum(present_C) - 1
        scale = _best_scale(
            scores_NC[kept_N][:, present_C], position_C[labels_N[kept_N]], smoothing
        )
    kernel_DC = scale * means_CD.T
    bias_C = scale * offset_C - centre_D @ kernel_DC
    bias_C[~present_C] = bias_C[present_C].min()
    return kernel_DC.astype(np.float32), bias_C.astype(np.float32)


def _without_itself(z_ND, scores_NC, means_CD, labels_N, count_C) -> np.ndarray:
    """z @ m - |m|^2 / 2 where m is the mean of the other images of its class [N]."""
    n, squared = count_C[labels_N].astype(float), np.square(z_ND).sum(1)
    length = np.square(means_CD).sum(1)[labels_N]
    product = scores_NC[np.arange(len(z_ND)), labels_N] + 0.5 * length
    others = np.maximum(n - 1, 1)
    product_others = (n * product - squared) / others
    length_others = (n**2 * length - 2 * n * product + squared) / others**2
    return product_others - 0.5 * length_others


def _best_scale(scores_NC, labels_N, smoothing: float) -> float:
    """The scale >= 0 that minimises the cross-entropy of scale * scores with smoothed labels, by bisection.

    The loss is convex in the scale, and its derivative is mean(scores under the softmax) - mean(scores under
    the labels).
    """
    unit = scores_NC.std()
    if not unit > 0:
        return 0.0
    scores_NC = scores_NC / unit
    own = scores_NC[np.arange(len(labels_N)), labels_N].mean()
    wanted = (1 - smoothing) * own + smoothing * scores_NC.mean()

    def slope(scale: float) -> float:
        weights = np.exp(scale * (scores_NC - scores_NC.max(1, keepdims=True)))
        return float(np.mean((weights * scores_NC).sum(1) / weights.sum(1)) - wanted)

    low, high = 1e-3, 1e6  # logits with a spread of 0.001 and of a million
    for _ in range(40):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return low / unit


def batch_statistics(module: nnx.Module) -> Callable[[tree.Flat, tree.Flat, jax.Array], tree.Flat]:
    """(params, batch_stats, images [B, S, S, 3]) -> batch_stats of these images alone.

    Every layer normalises by this batch, as in training; the function can be jitted. The module itself is
    left as it is.
    """
    module = nnx.clone(module)
    module.train()
    for _, layer in nnx.iter_modules(module):
        if isinstance(layer, BatchNorm):
            layer.fixed, layer.momentum = False, 0.0  # the running statistics are the batch's
    static, _, _ = tree.split(module)

    def forward(params, batch_stats, images):
        merged = tree.merge(static, params, batch_stats)
        merged.backbone(images)
        return tree.batch_stats(merged)

    return forward


def estimate_batch_norm(batches: Iterable[tree.Flat]) -> tree.Flat:
    """The cumulative average of statistics, batch by batch, each counting the same.

    Weights that were averaged have other activations than either of those they came from, so the average of
    their running statistics does not fit them (Izmailov et al. 2018, stochastic weight averaging;
    `torch.optim.swa_utils.update_bn`).

    Args:
      batches: of at least one batch, what `batch_statistics` gives.
    """
    average: tree.Flat | None = None
    for number, stats in enumerate(batches):
        if average is None:
            average = stats
        else:
            average = {p: average[p] + (x - average[p]) / (number + 1) for p, x in stats.items()}
    if average is None:
        raise UserError("batch_norm = 'estimate' needs at least one batch of training images.")
    return average
