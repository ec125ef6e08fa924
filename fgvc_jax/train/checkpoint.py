"""Checkpoints of a phase: the latest and the best by validation, written in the background by orbax."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from fgvc_jax.errors import UserError

METRIC = "selection"  # the validation metric, turned so that higher is better


class Checkpoints:
    """`weights` (parameters, statistics) and `optimizer` (its state, the step) by step."""

    def __init__(self, directory: str | Path):
        def metric(metrics: dict) -> float:
            return metrics[METRIC]

        # Either policy alone loses one of the two: BestN without the latest, LatestN without the best.
        policy = keep.AnyPreservationPolicy(
            [
                keep.LatestN(1),
                keep.BestN(get_metric_fn=metric, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        self.directory = Path(directory).resolve()
        self.manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                best_fn=metric, best_mode="max", preservation_policy=policy
            ),
        )

    def save(self, step: int, state: dict[str, Any], metrics: dict[str, float] | None) -> None:
        """Copies the state off the device and returns; the writing goes on behind."""
        weights = {"params": state["params"], "stats": state["stats"]}
        optimizer = {"opt": state["opt"], "step": state["step"]}
        self.manager.save(
            step,
            args=ocp.args.Composite(
                weights=ocp.args.StandardSave(weights), optimizer=ocp.args.StandardSave(optimizer)
            ),
            metrics=metrics,
            force=True,
        )

    def latest(self) -> int | None:
        return self.manager.latest_step()

    def best(self) -> int | None:
        return self.manager.best_step()

    def metrics(self, step: int) -> dict[str, float]:
        return dict(self.manager.metrics(step) or {})

    def restore(self, step: int, like: dict[str, Any]) -> dict[str, Any]:
        """The whole state of a step, with the shapes, dtypes and shardings of `like`."""
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = self.manager.restore(
            step,
            args=ocp.args.Composite(
                weights=ocp.args.StandardRestore(
                    {"params": shapes["params"], "stats": shapes["stats"]}
                ),
                optimizer=ocp.args.StandardRestore({"opt": shapes["opt"], "step": shapes["step"]}),
            ),
        )
        return {**items["weights"], **items["optimizer"]}

    def restore_weights(self, step: int, like: dict[str, Any]) -> dict[str, Any]:
        """{'params', 'stats'} alone; `like` holds jax.ShapeDtypeStruct with shardings."""
        args = ocp.args.Composite(weights=ocp.args.StandardRestore(like))
        return self.manager.restore(step, args=args)["weights"]

    def close(self) -> None:
        """Waits for the writing."""
        self.manager.wait_until_finished()
        self.manager.close()


def pick(checkpoints: Checkpoints, which: str) -> int:
    """The step of 'best' or 'last'; UserError where there is no checkpoint."""
    step = checkpoints.best() if which == "best" else checkpoints.latest()
    if step is None:
        raise UserError(f"no checkpoint in {checkpoints.directory}: has the phase run?")
    return step
