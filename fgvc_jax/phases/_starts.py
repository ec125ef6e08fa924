"""The weights that a training phase starts from: pretrained, an earlier phase's, or two interpolated."""

import logging

from ml_collections import ConfigDict

from fgvc_jax.model import Specification
from fgvc_jax.phases._models import Models
from fgvc_jax.train import tree

log = logging.getLogger(__name__)

HEADS = ("keep", "fresh")


def weights(
    seed: int, init: ConfigDict, specification: Specification, models: Models
) -> dict[str, tree.Flat]:
    """{'params', 'batch_stats'} at step 0.

    Args:
      seed: of the phase, for what is drawn anew.
      init: `config.<phase>.init`.
    """
    if not init.phase:
        return tree.weights(models.starting_model(specification))
    # Of its own draw: a fresh head must not be the one that the fine-tune started from.
    ours = tree.weights(specification.build(seed))
    _, _, source = models.trained(init.phase, init.checkpoint)
    note = ""
    if init.interpolate:
        _, _, second = models.trained(init.interpolate, init.checkpoint)
        source = {
            kind: tree.interpolate(source[kind], second[kind], init.alpha, "backbone/")
            for kind in source
        }
        note = f", interpolated with {init.interpolate} (alpha {init.alpha:g})"
    taken = 0
    for kind, arrays in source.items():
        for path, value in arrays.items():
            if path in ours[kind] and (path.startswith("backbone/") or init.head == "keep"):
                ours[kind][path] = value
                taken += 1
    fresh = sum(map(len, ours.values())) - taken
    log.info("  starts from %s%s: %s arrays taken, %s fresh", init.phase, note, taken, fresh)
    return ours
