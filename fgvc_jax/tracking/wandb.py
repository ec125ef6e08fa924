"""A training phase as a run of Weights & Biases, which goes on where the phase goes on."""

import importlib.util
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fgvc_jax.errors import UserError
from fgvc_jax.files import plain, write_text

ID = "wandb_id"  # in the phase's folder; the id is in the address of the run


def check_installed() -> None:
    """UserError where wandb is not installed."""
    if importlib.util.find_spec("wandb") is None:
        raise UserError(
            "config.tracking.wandb needs a package that is not installed: pip install 'fgvc_jax[wandb]'. "
            "Or leave it empty; metrics.jsonl and TensorBoard events are written anyway."
        )


class Wandb:
    """The run of one phase. To be used by one process only.

    Login, server, entity and mode are wandb's own: `wandb login`, WANDB_ENTITY, WANDB_MODE=offline, ...

    Args:
      directory: of the phase. It keeps the run's id, and in offline mode what `wandb sync` uploads.
      project: at Weights & Biases.
      group: of the runs of all phases, the workdir's name.
      name: of this run in it, such as 'finetune' or 'seed_0/finetune'.
      config: what the run was started with.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        project: str,
        group: str,
        name: str,
        config: Mapping[str, Any],
    ):
        self._directory = Path(directory)
        self._project, self._group, self._name = project, group, name
        self._config = plain(dict(config))
        self._run: Any = None

    def open(self) -> None:
        """Begins the run, or goes on with it.

        Raises:
          UserError: wandb cannot begin it, as without a login or without a connection.
        """
        import wandb

        path = self._directory / ID
        if not path.exists():
            write_text(path, uuid.uuid4().hex + "\n")
        try:
            self._run = wandb.init(
                project=self._project,
                id=path.read_text().strip(),
                resume="allow",
                group=self._group,
                name=f"{self._group}/{self._name}",
                dir=self._directory,
                config=self._config,
                settings=wandb.Settings(console="off", silent=True),
            )
        except (wandb.errors.Error, OSError) as error:
            raise UserError(
                f"config.tracking.wandb={self._project}: wandb cannot begin a run: {error} Log in with "
                "`wandb login`, or set WANDB_MODE=offline and use `wandb sync` later."
            ) from error

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Named numbers of a step; of steps before the last one wandb keeps what it has."""
        if self._run is None:
            self.open()
        self._run.log(dict(values), step=int(step))

    def close(self) -> None:
        """Ends the run; a later `write` goes on with it."""
        if self._run is not None:
            self._run.finish()
            self._run = None
