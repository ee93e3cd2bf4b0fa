"""One run on several hosts: starting them together, one voice, and stopping together when one is told to stop."""

import os
import signal
import threading
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from spatialreward_jax.errors import InputError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def initialize(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Joins this process to the others; must come before anything else of jax.

    With a coordinator ("host:port") all three values are needed. Without one, a TPU pod is recognised by its
    environment and describes itself; any other machine runs alone.

    Raises:
        InputError: only some of the three values, or values that cannot be.
    """
    if coordinator:
        if num_processes < 1 or not 0 <= process_id < num_processes:
            raise InputError(
                f"--coordinator needs --num_processes of at least 1 and --process_id from 0 to num_processes - 1,"
                f" got {num_processes} and {process_id}"
            )
        jax.distributed.initialize(coordinator, num_processes, process_id)
    elif num_processes > 1 or process_id >= 0:
        raise InputError("--num_processes and --process_id need --coordinator=HOST:PORT")
    elif "MEGASCALE_COORDINATOR_ADDRESS" in os.environ or "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
        jax.distributed.initialize()


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return jax.process_index() == 0


def say(line: str) -> None:
    """Prints a line, in the first process only."""
    if is_first():
        print(line, flush=True)


class Interrupts:
    """Context in which the first SIGINT or SIGTERM only raises a flag; the second one acts as it always does.

    Outside of the main thread, where Python forbids handlers, nothing is caught.
    """

    def __init__(self, notify: Callable[[str], None] = say):
        self._notify, self._before, self._seen = notify, {}, 0

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._catch) for number in _SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def agreed(self) -> bool:
        """Whether any process has been told to stop. All processes must ask at the same step and get one answer."""
        if jax.process_count() > 1:
            self._seen = int(multihost_utils.process_allgather(np.array(self._seen, np.int32)).max())
        return self._seen != 0

    @property
    def name(self) -> str:
        """Name of the signal, "" if none came."""
        return signal.Signals(self._seen).name if self._seen else ""

    def _catch(self, number, _frame):
        self._seen = number
        self._restore()
        self._notify(f"{self.name}: saving after this step; a second one stops at once, without saving")

    def _restore(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
