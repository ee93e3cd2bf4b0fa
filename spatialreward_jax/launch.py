"""Starts a program in one or several processes of this machine, and says in one line which one was lost.

    python -m spatialreward_jax.launch --processes=2 train --config=configs/grpo.py --workdir=DIR

With `--processes` above 1 each process gets a free port of this machine as `--coordinator` (several processes share the
machine's CPU; on accelerators a machine runs one process). Without it the program runs in one process with the flags as
they are: so `launch/worker.sh` starts it on every host of a slice. SIGTERM and SIGINT go on to all processes. When one
is lost, the others end by themselves (`--heartbeat`); what still runs after three heartbeats is killed.
"""

import collections
import contextlib
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from spatialreward_jax.processes import HEARTBEAT, on_all_hosts

_SILENT = re.compile(r"Task (\d+) heartbeat timeout")
_FIRST_GONE = "Failed to send RPC to coordination service"
_AFTERMATH = (_FIRST_GONE, "heartbeat timeout", "Connection closed by peer", "JAX distributed service detected fatal")
_KEPT_LINES = 400


class Child:
    """One process of a run: its output is passed on, with its number in front for all but the first."""

    def __init__(self, number: int, command: Sequence[str], prefix: str = ""):
        """number: of the process in the run."""
        self.number, self.lines = number, collections.deque(maxlen=_KEPT_LINES)
        self._prefix = prefix
        self.run = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._pass_on, daemon=True)
        self._reader.start()

    def _pass_on(self):
        for line in self.run.stdout:
            self.lines.append(line)
            print(self._prefix + line, end="", flush=True)

    def ended(self) -> bool:
        """Whether it has ended; its output is complete then."""
        if self.run.poll() is None:
            return False
        self._reader.join(timeout=5)
        return True

    @property
    def text(self) -> str:
        """The end of its output."""
        return "".join(self.lines)


def lost_process(children: Sequence[Child]) -> str | None:
    """Which process of the run was lost, for people: "process 1 (SIGKILL)"; None where none was.

    A child that ended by a signal, unless it only followed another one; else the process that a child names as silent.
    """
    aftermath = {child.number: any(mark in child.text for mark in _AFTERMATH) for child in children}
    for child in children:
        if child.run.poll() and child.run.returncode < 0 and not aftermath[child.number]:
            return f"process {child.number} ({signal.Signals(-child.run.returncode).name})"
    for child in children:
        if found := _SILENT.search(child.text):
            return f"process {found[1]} (no sign of life)"
    if any(_FIRST_GONE in child.text for child in children):
        return "process 0 (no sign of life)"
    if any(aftermath.values()):
        crashed = [c for c in children if c.run.poll() and not aftermath[c.number]]
        return f"process {crashed[0].number} (status {crashed[0].run.returncode})" if crashed else "another process"
    return None


def newest_checkpoint(arguments: Sequence[str]) -> pathlib.Path | None:
    """Folder of the newest checkpoint under the `--workdir` of these flags."""
    workdir = _flag(arguments, "workdir", "")
    folder = pathlib.Path(workdir).absolute() / "checkpoints"
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    return folder / str(max(steps)) if workdir and steps else None


def report(children: Sequence[Child], arguments: Sequence[str], newest: pathlib.Path | None) -> str | None:
    """The line that names the lost process and the checkpoint to resume from; None where no process was lost.

    arguments: of the launcher. newest: from `newest_checkpoint`.
    """
    lost = lost_process(children)
    if lost is None:
        return None
    where = f"resume from {newest}" if newest else "no checkpoint yet, start anew"
    own = [sys.executable, "-m", "spatialreward_jax.launch", *arguments]
    hosts = int(_flag(arguments, "num_processes", "1"))
    again = on_all_hosts(own, _flag(arguments, "coordinator", ""), hosts)
    return f"error: {lost} was lost; {where} with: {again}"


def watch(children: Sequence[Child], heartbeat: float) -> int:
    """Waits for all; after the first failure no longer than three heartbeats. -> the largest exit status, or 1."""
    deadline = None
    while not all([child.ended() for child in children]):
        if deadline is None and any(child.run.poll() for child in children):
            deadline = time.monotonic() + 3 * heartbeat
        if deadline is not None and time.monotonic() > deadline:
            for child in children:
                if child.run.poll() is None:
                    print(f"process {child.number} did not end by itself: killed", file=sys.stderr, flush=True)
                    child.run.kill()
        time.sleep(0.05)
    statuses = [child.run.returncode for child in children]
    return max(statuses) if min(statuses) >= 0 else 1


@contextlib.contextmanager
def _signals_passed_on(children):
    def pass_on(number, _frame):
        for child in children:
            if child.run.poll() is None:
                child.run.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _flag(arguments: Sequence[str], name: str, default: str) -> str:
    found = [argument.partition("=")[2] for argument in arguments if argument.startswith(f"--{name}=")]
    return found[-1] if found else default


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def main(arguments: Sequence[str]) -> int:
    """[--processes=N] PROGRAM FLAGS... -> exit status: 0, the program's own, or 1 where a process was lost."""
    given = list(arguments)
    if given[:1] in (["--help"], ["-h"]):
        print(__doc__.strip())
        return 0
    count = given.pop(0).partition("=")[2] if given and given[0].startswith("--processes=") else "1"
    if not given or not re.fullmatch(r"[a-z_]+", given[0]) or not count.isdigit() or not int(count):
        usage = (
            "python -m spatialreward_jax.launch [--processes=N] PROGRAM FLAGS..., e.g. train --config=configs/grpo.py"
        )
        print(f"error: want {usage}", file=sys.stderr)
        return 2
    count, own = int(count), given[1:]
    command = [sys.executable, "-u", "-m", f"spatialreward_jax.{given[0]}", *own]
    shared = [f"--coordinator=localhost:{free_port()}", f"--num_processes={count}"] if count > 1 else []
    first = int(_flag(own, "process_id", "0"))
    children = []
    with _signals_passed_on(children):
        for number in range(count):
            extra = [*shared, f"--process_id={number}"] if shared else []
            children.append(Child(first + number, command + extra, f"[{number}] " if number else ""))
        status = watch(children, float(_flag(own, "heartbeat", str(HEARTBEAT))))
    line = report(children, arguments, newest_checkpoint(own)) if status else None
    if line:
        print(line, file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
