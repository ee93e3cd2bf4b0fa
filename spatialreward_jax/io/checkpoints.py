"""Orbax checkpoints of a run: train state, data position and step, written in the background, restored whole or not."""

import pathlib
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from spatialreward_jax import processes
from spatialreward_jax.errors import InputError


class SaveError(RuntimeError):
    """A run was interrupted and its state could not be saved."""


class Restored(NamedTuple):
    """What `Checkpoints.restore` found: the step after which it was saved, train state, and the run's own record."""

    step: int
    state: Any
    run: dict[str, Any]


class Checkpoints:
    """Checkpoints of one run in one folder, one sub-folder a step.

    A save copies the state to the host at once (its buffers may be donated afterwards) and writes in the background;
    a step's folder gets its name only when it is whole. A save that fails (disk full, folder gone) is reported through
    `say` and the run goes on with the checkpoint before it.

    Args:
        folder: made if missing, unless `read_only`.
        keep: newest checkpoints that stay on disk.
        say: takes one line for the user.
        read_only: for reading another run's checkpoints; nothing there is changed.
    """

    def __init__(
        self, folder: pathlib.Path, *, keep: int = 3, say: Callable[[str], None] = print, read_only: bool = False
    ):
        self.folder, self._say, self._read_only = pathlib.Path(folder).absolute(), say, read_only
        self._pending: int | None = None
        self.saved: int | None = None
        """Newest step that this object has seen whole on disk."""
        if read_only and not self.folder.is_dir():
            raise InputError(f"no checkpoints in {self.folder}: give the folder of a run that has some")
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep, cleanup_tmp_directories=not read_only, read_only=read_only
        )
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise InputError(f"cannot make {self.folder}: {error.strerror or error}") from error

    @property
    def saved_name(self) -> str:
        """`saved` for people: "step 7", or "none"."""
        return "none" if self.saved is None else f"step {self.saved}"

    def save(self, step: int, state: Any, run: dict[str, Any]) -> None:
        """Starts saving `state` (pytree of jax arrays) and `run` (JSON-able) as of after `step`.

        Waits for the save before. Nothing happens if this step is being saved or saved already.
        """
        if step == self._pending or (self.wait() and step == self.saved):
            return
        record = {"structure": _structure(state), "run": run}
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))
        problem = _problem(lambda: self._manager.save(step, args=items, force=True))
        if self._agreed(step, problem):
            self._pending = step

    def wait(self) -> bool:
        """Waits for the save under way; False if it failed, in any process."""
        step, problem = self._settle()
        if not self._agreed(step, problem):
            return False
        if step is not None:
            self.saved = step
        return True

    def _settle(self):
        """(step of the save under way or None, what went wrong in this process or None)."""
        step, self._pending = self._pending, None

        def settle():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

        return step, _problem(settle)

    def _agreed(self, step, problem):
        """Whether no process has a problem; what one of them has is said, and all of them go on alike."""
        problems = [found for found in processes.gather(problem) if found is not None]
        if problems:
            self._failed(step, problems[0])
        return not problems

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, damaged ones included, rising."""
        return sorted(self._manager.all_steps())

    def restore(self, like: Any) -> Restored | None:
        """The newest whole checkpoint, with the shapes, dtypes and shardings of `like`; None if there is none.

        `like` is a tree of arrays or of `jax.ShapeDtypeStruct`s with shardings. A checkpoint that cannot be read is
        reported, and the one before it is tried; once one was read, those are put aside as `STEP.broken`.

        Raises:
            InputError: the checkpoint is of another model, or none can be read: then all stay as they are, because what
                they have in common may be the machine (its memory, a mounted bucket).
        """
        steps, like, unread = self.steps(), abstract(like), {}
        for step in reversed(steps):
            found = {}

            def read(step=step, found=found):
                record = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore())).record
                self._check_structure(step, record["structure"], like)
                items = ocp.args.Composite(state=ocp.args.StandardRestore(like))
                found |= {"state": self._manager.restore(step, args=items).state, "run": record["run"]}

            problems = [problem for problem in processes.gather(_problem(read)) if problem is not None]
            if problems:  # damage shows as almost any exception of orbax, tensorstore or json
                unread[step] = problems[0]
                continue
            for damaged, problem in unread.items():
                self._say(f"checkpoint {self.folder / str(damaged)} is damaged and skipped ({problem})")
                self._put_aside(damaged)
            self.saved = step
            return Restored(step, **found)
        if steps:
            raise InputError(
                f"every checkpoint in {self.folder} fails to load ({unread[steps[-1]]}); they are left as they are:"
                " mend the cause and start again, or start anew in another --workdir"
            )
        return None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for the save under way and frees the threads. Asks no other process: they may be gone."""
        step, problem = self._settle()
        if problem is not None:
            self._failed(step, problem)
        elif step is not None:
            self.saved = step
        self._manager.close()

    def _failed(self, step, problem):
        self._say(
            f"WARNING: the checkpoint of step {step} was not saved ({problem}); the run goes on, last whole"
            f" checkpoint: {self.saved_name}; free space in {self.folder}"
        )
        if jax.process_index() == 0:
            for part in self.folder.glob(f"{step}.*tmp*"):
                shutil.rmtree(part, ignore_errors=True)

    def _put_aside(self, step):
        if self._read_only:
            return
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"damaged checkpoint {step}")
        if jax.process_index() == 0:
            aside = self.folder / f"{step}.broken"
            shutil.rmtree(aside, ignore_errors=True)
            (self.folder / str(step)).rename(aside)
        self._manager.reload()

    def _check_structure(self, step, stored, like):
        here = _structure(like)
        wrong = [name for name in sorted(stored.keys() | here.keys()) if stored.get(name) != here.get(name)]
        if wrong:
            name = wrong[0]
            more = f" and {len(wrong) - 1} more differ" if len(wrong) > 1 else ""
            raise InputError(
                f"checkpoint {self.folder / str(step)} is of another model or optimizer: {name} is"
                f" {_describe(stored.get(name))} there and {_describe(here.get(name))} here{more};"
                " use the config that made it, or another --workdir"
            )


def abstract(state: Any) -> Any:
    """The state's shapes, dtypes and shardings without its arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def _structure(tree):
    """{path: [shape, dtype]}, JSON-able."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): [list(x.shape), str(x.dtype)] for path, x in leaves}


def _describe(entry):
    return "absent" if entry is None else f"{entry[1]} {entry[0]}"


def _problem(function):
    """Runs it -> None, or its exception in a line; file systems, tensorstore and orbax raise many kinds.

    An InputError passes: it says what the user can do.
    """
    try:
        function()
    except InputError:
        raise
    except Exception as error:
        return _first_line(error)
    return None


def _first_line(error):
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}{'...' if len(text) > 160 else ''}"
