"""Several processes of one run: how they start, and that all end, with one message, when one of them does.

JAX's coordination service keeps values by key for all processes; the first process serves it. In it each
process says every few seconds that it is alive, and one that fails says why. (JAX itself notices a killed
process, too, but ends the others by an abort in C++ that names no cause. Where the first process is killed
that abort comes first: a client cannot outlive its service.)
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import NoReturn

import jax
from jax._src import distributed  # its client has no public name; orbax takes it from here, too

from fgvc_jax.errors import UserError
from fgvc_jax.train.stop import Interrupted

ALIVE, ENDED = "fgvc_jax/alive/", "fgvc_jax/ended/"
EVERY = 2.0  # seconds between two signs of life
GONE = 30.0  # seconds without one, after which a process counts as gone
GOES_ON = (
    "All processes end with it. What was saved is intact; the same command goes on from there."
)
# What collectives and the coordination service raise in the processes that are left.
_SIGNS = ("Gloo", "NCCL", "UNAVAILABLE", "coordination service", "Connection closed", "heartbeat")


def start(
    coordinator: str = "",
    processes: int | None = None,
    process: int | None = None,
    local_devices: tuple[int, ...] = (),
) -> None:
    """Joins the other processes of the run; must come before any computation.

    Args:
      coordinator: 'host:port' of the first process; '' = $JAX_COORDINATOR_ADDRESS, or as the TPU pod, Slurm,
        Kubernetes or MPI says.
      processes: how many; None = $JAX_NUM_PROCESSES where there is a coordinator, else as above.
      process: which one this is, from 0; None = $JAX_PROCESS_ID likewise.
      local_devices: of this host, which this process uses; () = all.

    Raises:
      UserError: something is missing, or the others did not come.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    numbers = {}
    if not coordinator and (processes is not None or process is not None):
        raise UserError(
            "--processes and --process go with --coordinator=HOST:PORT of the first process."
        )
    if coordinator:
        given = {"processes": processes, "process": process}
        names = {"processes": "JAX_NUM_PROCESSES", "process": "JAX_PROCESS_ID"}
        for flag, name in names.items():
            text = os.environ.get(name, "") if given[flag] is None else str(given[flag])
            if not text.isdigit():
                raise UserError(
                    f"a coordinator ({coordinator}) is given, but --{flag} (or {name}) is {text!r}; it must "
                    "be a number: how many processes there are, and which one this is, from 0."
                )
            numbers[flag] = int(text)
        if not 0 <= numbers["process"] < numbers["processes"]:
            raise UserError(
                f"--process={numbers['process']} of --processes={numbers['processes']}: they are counted "
                f"from 0 to {numbers['processes'] - 1}."
            )
    try:
        jax.distributed.initialize(
            coordinator or None,
            numbers.get("processes"),
            numbers.get("process"),
            local_devices or None,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"could not join the other processes: {str(error).splitlines()[0]}\nOn a TPU pod, under Slurm, "
            "Kubernetes and Open MPI --distributed alone is enough. Elsewhere each process needs "
            "--coordinator=HOST:PORT of the first one, --processes=N and --process=0, 1, ..., and all must "
            "be started within five minutes."
        ) from None


@contextlib.contextmanager
def together() -> Iterator[None]:
    """While it is entered, all processes end when one fails or is gone. For one process it does nothing."""
    if jax.process_count() == 1:
        yield
        return
    watch = _Watch(distributed.global_state.client)
    try:
        yield
    except Interrupted:  # which comes in all of them at the same step
        watch.leave()
        raise
    except BaseException as error:
        watch.fail(error)
    watch.leave()


class _Watch:
    """Of one process: tells the others that it lives, and ends it when another one has ended."""

    def __init__(self, client):
        self._client, self._me, self._count = client, jax.process_index(), jax.process_count()
        self._where = f"{socket.gethostname()}, process id {os.getpid()}"
        self._over = threading.Event()
        self._answered = time.monotonic()  # by the coordination service
        self._lock = threading.Lock()
        # A call to a machine that is gone may hang, so one thread asks and another one looks at the clock.
        loops = (self._ask, self._look) if self._me else (self._ask,)
        for loop in loops:
            threading.Thread(target=loop, daemon=True).start()

    def leave(self) -> None:
        """The run is over for this process, and all is well."""
        self._over.set()
        with contextlib.suppress(Exception):
            self._client.key_value_set(f"{ALIVE}{self._me}", "left", allow_overwrite=True)

    def fail(self, error: BaseException) -> NoReturn:
        """Ends the run of all processes by what was raised in this one."""
        text, status = f"{type(error).__name__}: {error}", 1
        if isinstance(error, UserError):
            text, status = str(error), 2
        elif isinstance(error, KeyboardInterrupt):
            text, status = "stopped by Ctrl-C", 128 + signal.SIGINT
        elif any(sign in text for sign in _SIGNS):
            # The watching threads find out who is missing, and end this process.
            time.sleep(GONE + 5 * EVERY)
        with contextlib.suppress(Exception):
            content = json.dumps({"process": self._me, "text": text, "status": status})
            self._client.key_value_set(f"{ENDED}{self._me}", content)
        if status == 1:
            traceback.print_exception(error)
        self._end(f"error: {text}", status)

    def _ask(self) -> None:
        seen: dict[str, tuple[str, float]] = {}
        number = 0
        while not self._over.is_set():
            number += 1
            try:
                sign = json.dumps([number, self._where])
                self._client.key_value_set(f"{ALIVE}{self._me}", sign, allow_overwrite=True)
                for _, content in self._client.key_value_dir_get(ENDED):
                    self._ended(**json.loads(content))
                if self._me == 0:
                    self._missing(dict(self._client.key_value_dir_get(ALIVE)), seen)
                self._answered = time.monotonic()
            except Exception:  # jaxlib raises several kinds
                pass  # `_look` counts the time since the last answer
            self._over.wait(EVERY)

    def _look(self) -> None:
        while not self._over.wait(EVERY):
            silent = time.monotonic() - self._answered
            if silent > GONE:
                address = distributed.global_state.coordinator_address
                self._gone(0, f"at {address}", silent)

    def _missing(self, signs: dict[str, str], seen: dict[str, tuple[str, float]]) -> None:
        """Ends all processes if one has given no new sign of life for too long; for the first process."""
        now = time.monotonic()
        never = {f"{ALIVE}{n}": json.dumps([0, "never heard of"]) for n in range(self._count)}
        for key, sign in (never | signs).items():
            if sign == "left" or seen.get(key, ("", 0))[0] != sign:
                seen[key] = (sign, now)
            elif now - seen[key][1] > GONE:
                who = int(key.removeprefix(ALIVE))
                self._gone(who, json.loads(sign)[1], now - seen[key][1])

    def _gone(self, process: int, where: str, silent: float) -> None:
        text = (
            f"no sign of life for {silent:.0f} s ({where}). It was killed, or its machine or its network "
            "failed."
        )
        if process:  # the first one, which keeps the values, cannot be told
            with contextlib.suppress(Exception):
                content = json.dumps({"process": process, "text": text, "status": 1})
                self._client.key_value_set(f"{ENDED}{process}", content)
        self._ended(process, text, 1)

    def _ended(self, process: int, text: str, status: int) -> None:
        if process != self._me:
            then = f"\n{GOES_ON}" if status != 2 else ""  # there is something to mend first
            self._end(f"error: process {process} of {self._count} ended: {text}{then}", status)

    def _end(self, text: str, status: int) -> NoReturn:
        """Ends this process at once, wherever its main thread hangs."""
        with self._lock:  # one message
            print(text, file=sys.stderr, flush=True)
            sys.stdout.flush()
            if self._me == 0:
                time.sleep(3 * EVERY)  # the others read here why they end
            os._exit(status)
