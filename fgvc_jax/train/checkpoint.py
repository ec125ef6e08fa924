"""Checkpoints of a phase: the two latest and the best by validation, written in the background by orbax."""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from fgvc_jax import mesh as meshes
from fgvc_jax.errors import UserError

log = logging.getLogger(__name__)

Unlogged = Sequence[tuple[int, dict[str, float]]]  # metrics by step

# In what is raised where a process is gone or memory is short, while the files may be whole.
_NOT_THE_FILES = ("Gloo", "NCCL", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "Out of memory", "memory")

METRIC = "selection"  # the validation metric, turned so that higher is better


class Checkpoints:
    """By step, `weights` (parameters and statistics to use) and `training` (all else that resuming needs)."""

    def __init__(self, directory: str | Path, keep_every: int = 0, mend: bool = False):
        """To be made by all processes.

        Args:
          keep_every: a period in steps whose multiples are kept too; 0 for none.
          mend: move aside what cannot even be listed; for the phase that writes here.
        """

        def metric(metrics: dict) -> float:
            return metrics[METRIC]

        # Either policy alone loses one of the two: BestN without the latest, LatestN without the best.
        policies = [
            keep.LatestN(2),  # the one before, for when the latest cannot be read
            keep.BestN(get_metric_fn=metric, n=1, keep_checkpoints_without_metrics=False),
        ]
        if keep_every:
            policies.append(keep.EveryNSteps(keep_every))
        self.directory = Path(directory).resolve()
        if mend and jax.process_index() == 0:
            self._check_scores()
        meshes.wait_for_all(f"opened {self.directory}")
        self.manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                best_fn=metric,
                best_mode="max",
                preservation_policy=keep.AnyPreservationPolicy(policies),
            ),
        )

    def save(
        self,
        step: int,
        state: dict[str, Any],
        metrics: dict[str, float] | None,
        unlogged: Unlogged = (),
    ) -> None:
        """Copies the state off the device and returns; the writing goes on behind.

        Args:
          metrics: of validation, where there was one.
          unlogged: metrics of the steps since the last line of the log, by step.
        """
        weights, rest = _parts(state)
        self.manager.save(
            step,
            args=ocp.args.Composite(
                weights=ocp.args.StandardSave(weights),
                training=ocp.args.StandardSave(rest),
                unlogged=ocp.args.JsonSave({"steps": [list(x) for x in unlogged]}),
            ),
            metrics=metrics,
            force=True,
        )

    def preempted(self, step: int) -> bool:
        """Whether one of several processes was told to stop; true in all of them at the same step."""
        return jax.process_count() > 1 and self.manager.reached_preemption(step)

    def latest(self) -> int | None:
        return self.manager.latest_step()

    def best(self) -> int | None:
        return self.manager.best_step()

    def metrics(self, step: int) -> dict[str, float]:
        return dict(self.manager.metrics(step) or {})

    def restore(self, step: int, like: dict[str, Any]) -> dict[str, Any]:
        """The whole state of a step, with the shapes, dtypes and shardings of `like`."""
        weights, rest = _parts(jax.tree.map(ocp.utils.to_shape_dtype_struct, like))
        items = self.manager.restore(
            step,
            args=ocp.args.Composite(
                weights=ocp.args.StandardRestore(weights),
                training=ocp.args.StandardRestore(rest),
            ),
        )
        if "ema" in like:
            return {"ema": items["weights"], **items["training"]}
        return {**items["weights"], **items["training"]}

    def restore_latest(
        self, like: dict[str, Any]
    ) -> tuple[int, dict[str, Any], Unlogged] | tuple[int, None, Unlogged]:
        """(step, state, unlogged metrics) of the latest checkpoint that can be read; (0, None, []) if none.

        Later ones that cannot be read, in one process or in all, are moved beside the folder of checkpoints,
        which is said.

        Raises:
          UserError: there are some, and none can be read.
        """
        unreadable: dict[int, str] = {}
        for step in sorted(self.manager.all_steps(), reverse=True):
            why, state, unlogged = "another process cannot read it", None, []
            try:
                state, unlogged = self.restore(step, like), self._unlogged(step)
                fine = True
            except Exception as error:  # orbax raises many kinds
                if any(sign in str(error) for sign in _NOT_THE_FILES):
                    raise
                why = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
                fine = False
            if not _all(fine):
                unreadable[step] = why
                continue
            if unreadable:
                if jax.process_index() == 0:
                    for later, why in unreadable.items():
                        self._move_aside(later, why)
                meshes.wait_for_all(f"moved aside {list(unreadable)}")
                self.manager.reload()
            return step, state, unlogged
        if not unreadable:
            return 0, None, []
        step, why = next(iter(unreadable.items()))
        raise UserError(
            f"no checkpoint in {self.directory} can be read; of step {step}: {why}\nIf another version of "
            "fgvc_jax wrote it, go back to that one. To train the phase anew, remove "
            f"{self.directory.parent}."
        )

    def _unlogged(self, step: int) -> Unlogged:
        if not (self.directory / str(step) / "unlogged").exists():  # an older version wrote it
            return []
        args = ocp.args.Composite(unlogged=ocp.args.JsonRestore())
        found = self.manager.restore(step, args=args)["unlogged"]["steps"]
        return [(number, metrics) for number, metrics in found]

    def _check_scores(self) -> None:
        """Moves aside what orbax could not even list: a checkpoint whose scores are no JSON."""
        for file in sorted(self.directory.glob("*/metrics/metrics")):
            step = file.parents[1].name
            try:
                if step.isdigit():
                    json.loads(file.read_text())
            except (OSError, ValueError) as error:
                self._move_aside(int(step), str(error))

    def _move_aside(self, step: int, why: str) -> None:
        aside = self.directory.parent / f"unreadable_{step}"
        shutil.rmtree(aside, ignore_errors=True)  # of the same step, as unreadable
        (self.directory / str(step)).rename(aside)
        log.warning(
            "warning: the checkpoint of step %s cannot be read (%s); it was moved to %s, and training goes "
            "on from the one before.",
            *(step, why, aside),
        )

    def restore_weights(self, step: int, like: dict[str, Any]) -> dict[str, Any]:
        """{'params', 'batch_stats'} alone; `like` holds jax.ShapeDtypeStruct with shardings."""
        args = ocp.args.Composite(weights=ocp.args.StandardRestore(like))
        return self.manager.restore(step, args=args)["weights"]

    def arrays(self, step: int) -> dict[str, Any]:
        """{'weights', 'training'}: all arrays of a step as NumPy's, whatever devices they were saved from."""

        def read(folder: Path) -> Any:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                tree = reader.metadata(folder).item_metadata.tree
                kind = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
                return reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=kind))

        return {item: read(self.directory / str(step) / item) for item in ("weights", "training")}

    def close(self) -> None:
        """Waits for the writing."""
        self.manager.wait_until_finished()
        self.manager.close()

    def abandon(self) -> None:
        """After an error: one process finishes what it writes; of several some may be gone, so none waits."""
        if jax.process_count() == 1:
            self.close()


def _all(fine: bool) -> bool:
    """Whether it is so in all processes."""
    if jax.process_count() == 1:
        return fine
    return bool(multihost_utils.process_allgather(np.bool_(fine)).all())


def _parts(state: dict[str, Any]) -> tuple[dict, dict]:
    """(weights, rest): the weights to use are the moving average where there is one."""
    used = ("ema",) if "ema" in state else ("params", "batch_stats")
    weights = state["ema"] if "ema" in state else {name: state[name] for name in used}
    return weights, {name: part for name, part in state.items() if name not in used}


def pick(checkpoints: Checkpoints, which: str) -> int:
    """The step of the 'best' checkpoint (the last where nothing was validated) or the 'last' one.

    Raises:
      UserError: where there is none.
    """
    step = checkpoints.latest()
    if which == "best" and checkpoints.best() is not None:
        step = checkpoints.best()
    if step is None:
        raise UserError(f"no checkpoint in {checkpoints.directory}: has the phase run?")
    return step
