"""One run in several processes: starting them together, one voice, and stopping together.

The rule by which a run in several processes equals one in a single process: every process has the rows of the whole
batch (in RL it reads its own, and `gather` gives the rows of all to all; in supervised training it reads all), and from
there on every process calls the same programs with the same host values, of which `mesh.put` places each device's part.
So shapes that depend on data (text and token buckets, sizes of images) agree without being negotiated, and a batch need
not divide over the processes. What is gathered is small beside the work: for 48 prompts and 576 edits of 512 x 512
pixels, 38 MB of sources and 453 MB of edits a phase.
"""

import concurrent.futures
import os
import pickle
import shlex
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from spatialreward_jax.errors import InputError

HEARTBEAT = 60
"""Seconds after which a process that gives no sign of life is taken for lost, and the others end."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_OF_ONE = ("--coordinator=", "--num_processes=", "--process_id=")  # flags by which a process joins the others


def initialize(
    coordinator: str = "", num_processes: int = 0, process_id: int = -1, *, heartbeat: int = HEARTBEAT
) -> None:
    """Joins this process to the others; must come before anything else of jax.

    With a coordinator ("host:port") all three values are needed. Without one, a slice on GKE is recognised by its
    environment and describes itself; any other machine runs alone. Slices of Cloud TPU VMs carry no such environment:
    there `launch/worker.sh` gives the three values, which it reads from the metadata server.

    Args:
        heartbeat: seconds without a sign of life after which a process is lost, and all others end with an error.

    Raises:
        InputError: only some of the three values, or values that cannot be.
    """
    if heartbeat < 1:
        raise InputError(f"--heartbeat={heartbeat}: use at least 1 second")
    timeouts = {"heartbeat_timeout_seconds": heartbeat, "shutdown_timeout_seconds": heartbeat}
    if coordinator:
        if num_processes < 1 or not 0 <= process_id < num_processes:
            raise InputError(
                f"--coordinator needs --num_processes of at least 1 and --process_id from 0 to num_processes - 1,"
                f" got {num_processes} and {process_id}"
            )
        jax.distributed.initialize(coordinator, num_processes, process_id, **timeouts)
        # Gloo, the CPU's collectives, gives up when a process comes 30 s late to the first of them: meet before work.
        multihost_utils.sync_global_devices("start")
    elif num_processes > 1 or process_id >= 0:
        raise InputError("--num_processes and --process_id need --coordinator=HOST:PORT")
    elif "MEGASCALE_COORDINATOR_ADDRESS" in os.environ or "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
        jax.distributed.initialize(**timeouts)


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return jax.process_index() == 0


def say(line: str) -> None:
    """Prints a line, in the first process only."""
    if is_first():
        print(line, flush=True)


def on_all_hosts(command: Sequence[str], coordinator: str, count: int) -> str:
    """What to type to start a run again, given the command of one process.

    coordinator: "" where the command starts all processes by itself; else one of the `count` hosts of the run.
    """
    joining = f"--coordinator={coordinator} --num_processes={count} and its --process_id"
    where = f"on each of the {count} hosts, with {joining}: " if coordinator else ""
    return where + shlex.join(argument for argument in command if not argument.startswith(_OF_ONE))


def gather(value: Any) -> list[Any]:
    """The values of all processes, in their order; all must call. A value is anything that pickles."""
    if jax.process_count() == 1:
        return [value]
    own = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(own.size, np.int32))
    room = 1 << (int(sizes.max()) - 1).bit_length()  # a power of two: few shapes are compiled
    rows = multihost_utils.process_allgather(np.pad(own, (0, room - own.size)))
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes)]


def begin_divided(function: Callable[[Sequence[Any]], list[Any]], items: Sequence[Any]) -> Callable[[], list[Any]]:
    """Begins `function(items)`, one result per item, in a thread: each process works on its contiguous share of them.

    Returns what waits for the results of all processes; all must call it. `function` must not use the devices: programs
    that processes run together have to come in one order.
    """
    index, count = jax.process_index(), jax.process_count()
    bounds = [len(items) * part // count for part in range(count + 1)]
    share = items[bounds[index] : bounds[index + 1]]
    thread = concurrent.futures.ThreadPoolExecutor(1)
    own = thread.submit(lambda: function(share) if share else [])
    thread.shutdown(wait=False)
    return lambda: [result for part in gather(own.result()) for result in part]


def together(function: Callable[[], Any]) -> Any:
    """`function()`; where it raises InputError in some processes, it is raised in all. All must call.

    For what can fail in one process alone, such as reading files: the others would wait for it for ever.
    """
    if jax.process_count() == 1:
        return function()
    try:
        value, problem = function(), None
    except InputError as error:
        value, problem = None, str(error)
    problems = [problem for problem in gather(problem) if problem is not None]
    if problems:
        raise InputError(problems[0])
    return value


class Interrupts:
    """Context in which the first SIGINT or SIGTERM only raises a flag; the second one acts as it always does.

    Outside of the main thread, where Python forbids handlers, nothing is caught.
    """

    def __init__(self, notify: Callable[[str], None] = say):
        self._notify, self._before = notify, {}
        self._seen = self._told = 0  # the signal that came here; that which any process told of

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._catch) for number in _SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def agreed(self) -> bool:
        """Whether any process has been told to stop. All processes must ask at the same step and get one answer."""
        if jax.process_count() == 1:
            return self._seen != 0
        # What comes meanwhile stays in `_seen` for the next step.
        self._told = int(multihost_utils.process_allgather(np.array(self._seen, np.int32)).max())
        return self._told != 0

    @property
    def name(self) -> str:
        """Name of the signal, "" if none came."""
        number = self._seen or self._told
        return signal.Signals(number).name if number else ""

    def _catch(self, number, _frame):
        self._seen = number
        self._restore()
        self._notify(f"{self.name}: saving after this step; a second one stops at once, without saving")

    def _restore(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
