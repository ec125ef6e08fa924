"""The contract of a method: what the engine calls, and what it may rely on."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from fgvc_jax.layers.initializers import torch_bias

Batch = dict[str, jax.Array]
Carry = dict[str, Any]


class Context(NamedTuple):
    """The draws and the progress that an update may use, beside the batch. All arrays; traced.

    Attributes:
      key: one draw for the whole update, the same in every part of an accumulated batch.
      keys: [B], a draw for each example, which belongs to its place in the global batch. Give the backbone
        its own, `fold(context.keys, 0)` (fgvc_jax.layers.dropout), for its stochastic depth.
      step: int32, optimizer steps before this one, over the whole phase.
      epoch: float32, passes over the training examples before this step.
      progress: float32, the share of the phase that lies behind, from 0 to below 1.
    """

    key: jax.Array
    keys: jax.Array
    step: jax.Array
    epoch: jax.Array
    progress: jax.Array


class Cost(NamedTuple):
    """Passes through the backbone that one training example takes, in images of the full size.

    A method that also looks at a crop of half the side adds 0.25. The plan's times, `images/s` and the
    comparison of budgets count with it. `predict`: the passes of an image in use.
    """

    forward: float
    backward: float
    predict: float = 1.0


class Method(nnx.Module):
    """A backbone and what is trained around it. Subclass it as `Method` in a file of `fgvc_jax/methods`.

    The constructor is `Method(backbone, num_classes, *, image_size, rngs, dtype, param_dtype, **own)`. It
    sizes its layers from `backbone.info` and `image_size`, never from a name. Its own arguments have
    defaults: they are the defaults of `config.<phase>.arguments`.

    Attributes:
      evaluator: who validates and scores it: 'classify', 'verify', 'retrieve' (fgvc_jax/evaluators), or the
        path of a file of one's own.
      trains_on: 'images' or 'pairs' (mined ones, see `config.<phase>.pairs`).
      takes_mixed_labels: its loss takes batch['partner'] int32 [B] and batch['share'] float32 [B], see
        `fgvc_jax.images.mix`; without, mixup and CutMix are refused.
      images_per_example: V; with V > 1, batch['image'] is [B, V, S, S, 3].
      compares_examples: its loss compares the examples of a batch with each other. Accumulation and
        `sam.groups`, which would hand it parts of the batch, are refused then.
      second: a second backbone, or None; its weights are `config.model.second_pretrained`. The method makes
        it itself, from its arguments `second` (the name) and `second_arguments`.
    """

    evaluator: ClassVar[str] = "classify"
    trains_on: ClassVar[str] = "images"
    takes_mixed_labels: ClassVar[bool] = False
    images_per_example: ClassVar[int] = 1
    compares_examples: ClassVar[bool] = False

    backbone: nnx.Module
    second: nnx.Module | None = None
    taps: tuple[
        str, ...
    ] = ()  # names of the maps that it reads, where these are not the pooled features

    @property
    def cam_tap(self) -> str:
        """The tap at which heat maps are drawn: the deepest that the scores depend on."""
        return self.backbone.info.cam_tap

    @property
    def updates(self) -> tuple[Callable[[Batch, Carry, Context], tuple], ...]:
        """The updates of one training step, in order; each is one optimizer update with its own forward.

        An update is called as `update(batch, carry, context) -> (loss, carry, metrics)`:

        - batch: 'image' [B, S, S, 3] (or [B, V, S, S, 3]), 'label' int32 [B], and what else the feed's
          columns hold;
        - carry: starts as {} in every step; what one update returns the next one receives. Each of its
          arrays has a leading axis B, or is a scalar. Under accumulation a part of the batch sees its own
          rows and every scalar whole; rows are put back in the order of the batch, scalars are averaged;
        - loss: a scalar; metrics: a dictionary of scalars.

        The module holds the weights that the update before has left. A property, because arguments may
        decide how many updates there are.
        """
        return (self.update,)

    @property
    def cost(self) -> Cost:
        """Passes through the backbone an example; see `Cost`."""
        return Cost(forward=self.images_per_example, backward=self.images_per_example)

    def update(self, batch: Batch, carry: Carry, context: Context) -> tuple:
        """The only update of a method that has one; see `updates`."""
        raise NotImplementedError(f"{type(self).__module__} defines neither update nor updates")

    def predict(self, images: jax.Array, edit: Callable | None = None) -> dict[str, jax.Array]:
        """The module in use, in eval mode.

        Args:
          images: as an example has them, [B, S, S, 3], or [B, V, S, S, 3].
          edit: handed to the backbone, which calls edit(name, map) at every tap; explanations use it.

        Returns:
          Arrays with leading axis B. The evaluator says which it reads: 'classify' scores [B, C] (logits)
          and embedding [B, D]; 'verify' scores [B] (logit of "same class"); 'retrieve' embedding [B, D].
          A method whose `edit` reaches the pass of a part of the image names that part as box, int [B, 4]:
          first row, first column, last row, last column in pixels.
        """
        raise NotImplementedError(f"{type(self).__module__} does not define predict")

    def evidence(self, images: jax.Array) -> dict[str, jax.Array]:
        """What the method itself has picked out of the images, in eval mode; `fgvc explain` draws it.

        Args:
          images: as for `predict`.

        Returns:
          Of each kind by name, with leading axis B, one of
          - boxes: int32 [B, N, 4], first row, first column, last row, last column in pixels, inclusive;
          - a map: float [B, h, w], from 0 to 1, of h x w equal parts of the image.
          {} = it picks out nothing.
        """
        return {}


def torch_linear(
    inputs: int, outputs: int, *, bias: str = "zeros", rngs, dtype, param_dtype
) -> nnx.Linear:
    """A linear layer with torch's default kernel: uniform within +-1 / sqrt(inputs).

    Args:
      bias: 'zeros', or 'torch' for torch's own, drawn as the kernel is.
    """
    return nnx.Linear(
        inputs,
        outputs,
        kernel_init=nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
        bias_init=torch_bias(inputs) if bias == "torch" else nnx.initializers.zeros_init(),
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )


def check_smoothing(label_smoothing: float) -> None:
    """ValueError unless it lies in 0 to below 1."""
    if not 0 <= label_smoothing < 1:  # TypeError for what is no number
        raise ValueError(f"label_smoothing={label_smoothing} must lie in 0 to below 1")


def mixed_labels(batch: Batch) -> dict[str, jax.Array | None]:
    """{'partner', 'share'} for `fgvc_jax.ops.losses.cross_entropy`; None where nothing was mixed."""
    return {name: batch.get(name) for name in ("partner", "share")}


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The share of rows whose largest logit is the label's."""
    return jnp.mean(jnp.argmax(logits, axis=1) == labels)
