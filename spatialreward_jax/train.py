"""The training program and its one loop, in the order in which a run happens.

    python -m spatialreward_jax.train --config=configs/grpo.py --workdir=DIR
    python -m spatialreward_jax.train --config=configs/grpo.py:omnigen2 --config.lr=1e-4 --mesh=8,1,1 --workdir=DIR

A run that finds checkpoints in its workdir goes on from the newest whole one. Ctrl-C and SIGTERM (what schedulers and
preempted machines send) finish the step, save, and exit with status 0; a second one stops at once.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from spatialreward_jax import cli, processes
from spatialreward_jax.errors import InputError
from spatialreward_jax.io.checkpoints import Checkpoints, Restored, SaveError, abstract
from spatialreward_jax.memory import keep_freed_memory
from spatialreward_jax.mesh import mesh_of, parse_mesh
from spatialreward_jax.recipes import load_recipe
from spatialreward_jax.recipes.task import Task
from spatialreward_jax.reporting.journal import History, Journal, NonFiniteError
from spatialreward_jax.reporting.progress import Stopwatch, compile_clock, duration, write_json
from spatialreward_jax.reporting.report import FILE, Caption, Chart, write_report


@dataclasses.dataclass(frozen=True)
class Settings:
    """The loop's own part of a config.

    Attributes:
        steps: calls of `Task.step` in the whole run.
        seed: of the initial key.
        checkpoint_every, keep_checkpoints: steps between checkpoints (0: only at the end); how many stay.
        eval_every: steps between evaluations (0: only before the first and after the last step).
        preset: the config's preset, for the summary.
        resume: workdir of another run to start from, or "".
    """

    steps: int
    seed: int = 0
    checkpoint_every: int = 50
    keep_checkpoints: int = 3
    eval_every: int = 0
    preset: str = ""
    resume: str = ""

    @classmethod
    def from_config(cls, config: ConfigDict) -> "Settings":
        """Reads the fields of the same names. Raises InputError naming one that is missing or senseless."""
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if name not in config]
        if missing:
            raise InputError(f"the config lacks {', '.join(missing)}")
        settings = cls(**{name: config[name] for name in names})
        if settings.steps < 1 or settings.keep_checkpoints < 1:
            raise InputError("config: steps and keep_checkpoints must be at least 1")
        if settings.checkpoint_every < 0 or settings.eval_every < 0:
            raise InputError("config: checkpoint_every and eval_every must be at least 0")
        return settings


def find_start(checkpoints: Checkpoints, resume: str, like: Any) -> Restored:
    """Where a run goes on: its own newest whole checkpoint, else that of the run in `resume`. Raises InputError."""
    found = checkpoints.restore(like)
    if found is None:
        found = Checkpoints(pathlib.Path(resume) / "checkpoints", say=processes.say, read_only=True).restore(like)
    if found is None:
        raise InputError(f"resume={resume} holds no whole checkpoint")
    return found


def run(task: Task, settings: Settings, workdir: pathlib.Path, *, command: str = "") -> dict[str, Any] | None:
    """Runs a task to its last step, or until it is interrupted.

    Args:
        task: the recipe.
        settings: of the loop.
        workdir: takes `checkpoints/`, `tensorboard/`, `metrics.jsonl`, `pictures/` and, at the end, `summary.json` and
            `report.html`.
        command: what to type to resume, for the line that an interrupted run prints.

    Returns:
        the summary, or None if the run was interrupted; its state is saved then.

    Raises:
        InputError: wrong input, or a checkpoint of another model.
        NonFiniteError: a metric became infinite or not a number.
        SaveError: interrupted, and the state could not be saved.
    """
    say, step, history, watch = processes.say, 0, History(), Stopwatch()

    # ---- init, or resume
    checkpoints = Checkpoints(workdir / "checkpoints", keep=settings.keep_checkpoints, say=say)
    state, batches = task.init(jax.random.key(settings.seed)), task.batches()
    like = abstract(state)
    if checkpoints.steps() or settings.resume:
        state = None  # never two states on the devices
        step, state, record = find_start(checkpoints, settings.resume, like)
        batches.set_state(record["data"])
        task.restore_record(record["task"])
        history, watch = History(**record["history"]), Stopwatch(record["used"])
        say(f"resumed after step {step}")
    journal = Journal(workdir, settings.steps, step, history, write=processes.is_first(), say=say)
    position = batches.get_state()

    def save():
        """Never a state whose metrics are not finite: reading them raises first."""
        journal.flush()
        record = {"data": position, "task": task.record(), "history": dataclasses.asdict(history), "used": watch.used()}
        checkpoints.save(step, state, record)

    # ---- the steps
    with checkpoints, processes.Interrupts() as interrupts:  # whatever happens, a save under way is finished
        if step == 0:
            journal.evaluate(task.evaluators, state, step)
        while step < settings.steps and not interrupts.agreed():
            try:
                batch = processes.together(lambda: next(batches))
                state, metrics = task.step(state, batch)
            except InputError:
                save()
                raise
            step, position = step + 1, batches.get_state()
            journal.log(step, metrics)  # reads those of the step before, while this one runs
            if step == settings.steps or (settings.eval_every and step % settings.eval_every == 0):
                journal.flush()
                journal.evaluate(task.evaluators, state, step)
            if step == settings.steps or (settings.checkpoint_every and step % settings.checkpoint_every == 0):
                save()

        # ---- interrupted: save first
        if step < settings.steps:
            save()
            checkpoints.wait()
            journal.close()
            stopped = f"stopped by {interrupts.name} after step {step}/{settings.steps}"
            if checkpoints.saved != step:
                raise SaveError(f"{stopped}, NOT saved; last whole checkpoint: {checkpoints.saved_name}")
            say(f"{stopped}, saved in {checkpoints.folder}; resume with: {command}")
            return None

    # ---- the end
    journal.close()
    task.export(state)
    summary = {"preset": settings.preset, "steps": step, **watch.used(), "programs_compiled": compile_clock().programs}
    summary |= {"checkpoint_step": checkpoints.saved, "workdir": str(workdir)} | task.summary(history)
    if processes.is_first():
        write_end(workdir, summary, task.charts)
    return summary


def write_end(workdir: pathlib.Path, summary: dict[str, Any], charts: Sequence[Chart | Caption]) -> None:
    """Writes `summary.json` and `report.html`; where that fails (no space left), the summary is printed instead."""
    try:
        write_json(workdir / "summary.json", summary)
        write_report(workdir, summary, charts)
    except OSError as error:
        processes.say(
            f"WARNING: summary.json or report.html in {workdir} was not written ({error.strerror}): {summary}"
        )


def define_flags() -> None:
    """The program's flags; not at import, so that programs can import each other."""
    config_flags.DEFINE_config_file("config", None, "Config file, with :preset behind it.", lock_config=True)
    flags.DEFINE_string("workdir", "", "Folder of the run: checkpoints, event files, summary.")
    flags.DEFINE_string("mesh", "-1,1,1", "Sizes of the mesh axes data,fsdp,tensor; -1: what is left.")
    flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, for several processes; not needed on GKE.")
    flags.DEFINE_integer("num_processes", 0, "Processes of the run, with --coordinator.")
    flags.DEFINE_integer("process_id", -1, "Number of this process, with --coordinator.")
    flags.DEFINE_integer("heartbeat", processes.HEARTBEAT, "Seconds of silence after which a process counts as lost.")


def again(arguments: Sequence[str], coordinator: str, count: int) -> str:
    """What to type to resume, given a process's own arguments: for all processes of a run, not for one of them."""
    here = coordinator.startswith("localhost:")
    program = ["spatialreward_jax.launch", f"--processes={count}", "train"] if here else ["spatialreward_jax.train"]
    return processes.on_all_hosts([sys.executable, "-m", *program, *arguments], "" if here else coordinator, count)


def main(_argv: list[str]) -> int:
    """Flags -> task -> run -> where everything lies."""
    given = flags.FLAGS
    if given["config"].value is None:
        raise InputError("--config=FILE[:preset] is missing, e.g. --config=configs/grpo.py")
    if not isinstance(given.config, ConfigDict):  # a stand-in for a file that could not be read
        raise InputError(f"cannot read the config file of --config={given['config'].config_filename}")
    if not given.workdir:
        raise InputError("--workdir=DIR is missing: the folder for checkpoints, event files and the summary")
    config, settings = given.config, Settings.from_config(given.config)
    parse_mesh(given.mesh)  # a mistake there need not wait for the other processes
    recipe, workdir = load_recipe(config.task), pathlib.Path(given.workdir).absolute()
    processes.initialize(given.coordinator, given.num_processes, given.process_id, heartbeat=given.heartbeat)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if processes.is_first():
            (workdir / "config.json").write_text(config.to_json_best_effort(indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write in --workdir={workdir}: {error.strerror}") from error
    mesh = mesh_of(given.mesh)
    keep_freed_memory()
    processes.say(f"{len(jax.devices())} devices ({jax.devices()[0].device_kind}), mesh {dict(mesh.shape)}")
    task = processes.together(lambda: recipe.make_task(config, mesh, workdir))
    try:
        summary = run(task, settings, workdir, command=again(sys.argv[1:], given.coordinator, given.num_processes))
    except (NonFiniteError, SaveError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    if summary is not None:
        compiling = f"{duration(summary['seconds_compile'])} of it compiling"
        processes.say(f"done: {summary['steps']} steps in {duration(summary['seconds'])}, {compiling}")
        processes.say(f"  summary      {workdir / 'summary.json'}")
        newest = "none" if summary["checkpoint_step"] is None else f"step {summary['checkpoint_step']}"
        processes.say(f"  report       {workdir / FILE}")
        if exported := summary.get("exported"):
            processes.say(f"  exported     {exported}")
        processes.say(f"  checkpoints  {workdir / 'checkpoints'} (newest whole: {newest})")
        processes.say(f"  curves       tensorboard --logdir={workdir / 'tensorboard'}")
    return 0


if __name__ == "__main__":
    define_flags()
    cli.run(main)
