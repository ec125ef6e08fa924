"""Sharpness-aware minimisation (SAM) around any gradient function, hence any Optax optimizer.

With g the gradient at the weights w, and norms over all trained tensors together:

    SAM   e = rho * g / ||g||              Foret et al., arXiv 2010.01412, eq. 2
    ASAM  e = rho * T^2 g / ||T g||        Kwon et al., arXiv 2102.11600, T = |w| + eta

The optimizer then steps at w with the gradient taken at w + e. A gradient function has the
signature described in `fgvc_jax.train.microbatch`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fgvc_jax.train.microbatch import in_groups

# Named "weight" in other frameworks: the tensors that the ASAM authors' T covers.
WEIGHTS = ("kernel", "scale", "embedding")


def sam(
    value_and_grad: Callable,
    rho: float,
    *,
    adaptive: bool = False,
    eta: float = 0.01,
    weights_only: bool = True,
    groups: int = 1,
    epsilon: float = 1e-12,
) -> Callable:
    """Wraps a gradient function: the gradients it returns are those at the perturbed weights.

    Loss, statistics, metrics and carry come from the first pass, at the weights themselves, so
    BatchNorm's running statistics never see the perturbation. Both passes get the same batch, and
    with it the same random draws. What is not in `params` (frozen) is neither perturbed nor in the
    norm. A zero gradient gives a zero perturbation. Around `accumulate`, both passes accumulate.

    Args:
      value_and_grad: the gradient function.
      rho: radius of the perturbation; may be a traced scalar (a schedule). 0 gives the wrapped
        function's own gradients, bit for bit. Not transferable between the forms: 0.05 to 0.1 are
        usual for SAM, 0.5 to 2 for ASAM.
      adaptive: ASAM.
      eta: added to |w| in ASAM's T.
      weights_only: True, the ASAM authors' form: T = 1 on what is not a weight (biases, tokens,
        position embeddings; a weight's path ends in kernel, scale or embedding). False with eta=0
        is the other form in use: T = |w| on every tensor.
      groups: m-sharpness. The batch falls into so many contiguous blocks, each with a perturbation
        (and batch statistics) of its own, and the results are averaged. 1: over the whole batch.
      epsilon: added to the norm.

    Returns:
      A gradient function.
    """

    def sam_value_and_grad(params, batch):
        clean, grads = value_and_grad(params, batch)
        step = _perturbation(params, grads, rho, adaptive, eta, weights_only, epsilon)
        # The barrier keeps the perturbation out of the second pass's own fusions: at rho = 0 the
        # two passes are then one and the same computation.
        perturbed = jax.lax.optimization_barrier(jax.tree.map(jnp.add, params, step))
        _, grads = value_and_grad(perturbed, batch)
        return clean, grads

    return in_groups(sam_value_and_grad, groups)


def _perturbation(params, grads, rho, adaptive, eta, weights_only, epsilon):
    def t(path, w):
        name = path.rsplit("/", 1)[-1]
        return jnp.abs(w) + eta if adaptive and (name in WEIGHTS or not weights_only) else 1.0

    scaled = {path: t(path, w) * grads[path] for path, w in params.items()}
    squares = [jnp.sum(jnp.square(_at_least_float32(x))) for x in scaled.values()]
    factor = rho / (jnp.sqrt(sum(squares)) + epsilon)
    return {
        path: (factor * t(path, w) * scaled[path]).astype(w.dtype) for path, w in params.items()
    }


def _at_least_float32(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def l2_in_loss(
    value_and_grad: Callable, weight_decay: float, mask: dict[str, bool] | None = None
) -> Callable:
    """Adds 0.5 * weight_decay * ||w||^2 to the loss, and weight_decay * w to the gradients.

    Inside `sam` the decay enters both passes (the convention of SAM's authors); decay in the
    optimizer, as torch has it, enters the step only. Use one of the two.

    Args:
      value_and_grad: the gradient function.
      weight_decay: scalar, may be traced.
      mask: dict path -> bool, which parameters decay; None for all.
    """

    def decayed_value_and_grad(params, batch):
        (loss, aux), grads = value_and_grad(params, batch)
        grads = dict(grads)
        for path, w in params.items():
            if mask is None or mask[path]:
                loss = loss + 0.5 * weight_decay * jnp.sum(jnp.square(_at_least_float32(w)))
                grads[path] = grads[path] + (weight_decay * w).astype(grads[path].dtype)
        return (loss, aux), grads

    return decayed_value_and_grad
