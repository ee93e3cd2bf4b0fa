import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from spatialreward_jax import cli, train
from spatialreward_jax.errors import InputError
from spatialreward_jax.io.checkpoints import SaveError
from spatialreward_jax.reporting.journal import NonFiniteError

PROGRAM = pathlib.Path(__file__).with_name("toy_program.py")
SPEC = importlib.util.spec_from_file_location("toy_program", PROGRAM)
toy_program = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(toy_program)
Toy = toy_program.Toy

STEPS = 6
CONFIG = """
from ml_collections import ConfigDict

def get_config(preset="small"):
    if preset != "small":
        raise ValueError(f"preset {preset!r} is unknown; choose one of small")
    return ConfigDict(dict(task="toy", steps=6, seed=0, checkpoint_every=2, keep_checkpoints=3, eval_every=0,
                           preset=preset, resume="", sleep=0.0, kill_at=0))
"""


def _settings(**changes):
    return train.Settings(**{"steps": STEPS, "checkpoint_every": 100, "preset": "toy"} | changes)


def _result(workdir, hook=lambda count: None, **changes):
    """(exported parameters or None, summary without times or None)."""
    task = Toy(hook)
    summary = train.run(task, _settings(**changes), workdir, command="again")
    if summary is not None:
        drop = ("seconds", "seconds_compile", "programs_compiled", "workdir")
        summary = {name: value for name, value in summary.items() if name not in drop}
    return task.exported, summary


def _same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a[0], b[0])
    assert a[1] == b[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return _result(tmp_path_factory.mktemp("whole"))


def test_summary_and_files(tmp_path, whole, capsys):
    _same(_result(tmp_path), whole)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["steps"] == STEPS == summary["calls"] and summary["preset"] == "toy"
    assert summary["seconds"] > 0 and summary["seconds_compile"] >= 0 and summary["checkpoint_step"] == STEPS
    assert summary["reward_first"] != summary["reward_last"] and summary["eval"][0] != summary["eval"][1]
    assert list((tmp_path / "tensorboard").iterdir())
    assert "<svg" in (tmp_path / "report.html").read_text()
    out = capsys.readouterr().out
    assert f"step 1/{STEPS}" in out and f"step {STEPS}/{STEPS}" in out and "ETA" in out and "nothing" not in out


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("at", range(1, STEPS))
def test_interrupted_at_any_step_and_resumed_is_bit_identical(tmp_path, whole, capsys, at, name):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    hook = lambda count: os.kill(os.getpid(), getattr(signal, name)) if count == at else None
    assert _result(tmp_path, hook) == (None, None)
    assert f"stopped by {name} after step {at}/{STEPS}, saved in" in capsys.readouterr().out
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert not (tmp_path / "summary.json").exists()
    _same(_result(tmp_path), whole)
    assert f"resumed after step {at}" in capsys.readouterr().out


@pytest.mark.parametrize("at", [2, 4, 5])
def test_crash_resumes_from_the_last_checkpoint(tmp_path, whole, at):
    def crash(count):
        if count == at:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        _result(tmp_path, crash, checkpoint_every=1)
    _same(_result(tmp_path, checkpoint_every=1), whole)


def test_finished_run_only_reports_again(tmp_path, whole):
    _result(tmp_path)

    def never(count):
        raise AssertionError("no step is left")

    assert _result(tmp_path, never)[1] == whole[1]


def test_goes_on_from_another_run(tmp_path, whole, capsys):
    _result(tmp_path / "a", steps=3)
    task = Toy()
    train.run(task, _settings(resume=str(tmp_path / "a")), tmp_path / "b")
    assert "resumed after step 3" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, task.exported, whole[0])
    with pytest.raises(InputError, match="no checkpoints in"):
        _result(tmp_path / "c", resume=str(tmp_path / "none"))


def test_not_finite_names_the_step_and_is_not_saved(tmp_path):
    hook = lambda count: {"kl": float("nan")} if count == 4 else None
    with pytest.raises(NonFiniteError, match="step 4: kl is nan"):
        _result(tmp_path, hook, checkpoint_every=2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]


def test_interrupted_on_a_full_disk_says_so(tmp_path, monkeypatch, capsys):
    def full(self, step, state, run):
        self._failed(step, "OSError: No space left on device")

    monkeypatch.setattr(train.Checkpoints, "save", full)
    with pytest.raises(SaveError, match="stopped by SIGTERM after step 2/6, NOT saved; last whole checkpoint: none"):
        _result(tmp_path, lambda count: os.kill(os.getpid(), signal.SIGTERM) if count == 2 else None)
    assert "step 2 was not saved (OSError: No space left on device)" in capsys.readouterr().out
    assert _result(tmp_path)[1]["checkpoint_step"] is None


def test_metrics_are_read_while_the_next_step_runs(tmp_path, capsys):
    _result(tmp_path, lambda count: print(f"called {count}"), steps=2)
    lines = [line.split("/")[0] for line in capsys.readouterr().out.splitlines() if line.startswith(("step", "called"))]
    assert lines == ["called 1", "called 2", "step 1", "step 2"]


def test_bad_data_on_the_way_saves_first(tmp_path, whole):
    class Broken(Toy):
        def batches(self):
            class Wrapped:
                def __init__(self, inner):
                    self.get_state, self.set_state, self.inner, self.count = inner.get_state, inner.set_state, inner, 0

                def __next__(self):
                    self.count += 1
                    if self.count == 4:
                        raise InputError("data.jsonl:9: image a.png is broken")
                    return next(self.inner)

            return Wrapped(super().batches())

    with pytest.raises(InputError, match=r"data\.jsonl:9"):
        train.run(Broken(), _settings(), tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]
    _same(_result(tmp_path), whole)


# ---- the program


@pytest.fixture
def program(tmp_path, one_device):
    (tmp_path / "toy.py").write_text(CONFIG)
    environment = one_device | {"PYTHONPATH": str(PROGRAM.parents[1])}

    def start(*arguments):
        command = [sys.executable, str(PROGRAM), f"--config={tmp_path / 'toy.py'}", *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    return start


def _params(folder):
    with train.Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.restore(Toy().init(jax.random.key(0))).state["params"]


@pytest.mark.slow
def test_sigterm_and_sigkill_in_a_process_of_its_own(program, tmp_path, whole):
    run = program(f"--workdir={tmp_path / 'run'}", "--config.sleep=0.3")
    for line in run.stdout:
        if line.startswith("step 1/"):
            run.send_signal(signal.SIGTERM)
            break
    out, errors = run.communicate(timeout=60)
    assert run.returncode == 0, errors
    assert "SIGTERM: saving after this step" in out and "resume with: " in out and "toy.py" in out
    killed = program(f"--workdir={tmp_path / 'run'}", f"--config.kill_at={STEPS}")
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    last = program(f"--workdir={tmp_path / 'run'}")
    out, errors = last.communicate(timeout=60)
    assert last.returncode == 0 and "resumed after step" in out and "done: 6 steps" in out, errors
    np.testing.assert_array_equal(_params(tmp_path / "run")["w"], whole[0]["w"])


def test_the_command_to_resume_is_for_all_processes():
    own, shared = ["--config=c.py", "--workdir=w"], ["--num_processes=2", "--process_id=0"]
    assert train.again(own, "", 0).endswith(" -m spatialreward_jax.train --config=c.py --workdir=w")
    local = train.again([*own, "--coordinator=localhost:1", *shared], "localhost:1", 2)
    assert local.endswith(" -m spatialreward_jax.launch --processes=2 train --config=c.py --workdir=w")
    pod = train.again([*own, "--coordinator=10.0.0.2:1", *shared], "10.0.0.2:1", 2)
    joining = "--coordinator=10.0.0.2:1 --num_processes=2 and its --process_id"
    assert pod.startswith(f"on each of the 2 hosts, with {joining}: ")
    assert pod.endswith(" spatialreward_jax.train " + " ".join(own))


@pytest.mark.slow
def test_two_processes_write_once_and_agree(program, tmp_path, whole):
    port = 20_000 + os.getpid() % 20_000
    shared = [f"--workdir={tmp_path / 'run'}", f"--coordinator=localhost:{port}", "--num_processes=2"]
    runs = [program(*shared, f"--process_id={i}", "--config.sleep=0.2") for i in range(2)]
    runs[0].stdout.readline()
    for line in runs[0].stdout:
        if line.startswith("step 1/"):
            runs[1].send_signal(signal.SIGTERM)
            break
    outs = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outs
    assert "stopped by SIGTERM" in outs[0][0] and "step 1/" not in outs[1][0], outs
    assert "spatialreward_jax.launch --processes=2 train --config=" in outs[0][0], outs
    runs = [program(*shared, f"--process_id={i}") for i in range(2)]
    outs = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0] and "resumed after" in outs[0][0] and "done: 6" in outs[0][0], (
        outs
    )
    np.testing.assert_allclose(_params(tmp_path / "run")["w"], whole[0]["w"], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--config=FILE[:preset] is missing"),
        (("--config=CONFIG",), "--workdir=DIR is missing"),
        (("--config=CONFIG:huge", "--workdir=DIR"), "preset 'huge' is unknown; choose one of small"),
        (("--config=CONFIG", "--config.stepz=3", "--workdir=DIR"), "the config has no key 'stepz'"),
        (("--config=CONFIG", "--config.steps=many", "--workdir=DIR"), "many"),
        (("--config=CONFIG", "--config.steps=0", "--workdir=DIR"), "steps and keep_checkpoints must be at least 1"),
        (("--config=none.py", "--workdir=DIR"), "cannot read the config file of --config=none.py"),
        (("--config=CONFIG", "--workdir=DIR", "--mesh=3"), "want three numbers data,fsdp,tensor"),
        (("--config=CONFIG", "--workdir=DIR", "--num_processes=2"), "need --coordinator"),
        (("--config=CONFIG", "--workdir=DIR", "--config.task=none"), "task 'none' is unknown; choose one of "),
        (("--config=CONFIG", "--workdir=DIR", "stray"), "unexpected argument 'stray'"),
        (("--workdirr=DIR",), "Unknown command line flag 'workdirr'"),
        (("--config=CONFIG", "--workdir=CONFIG/x"), "cannot write in --workdir="),
    ],
)
def test_wrong_use_is_one_line_and_status_2(tmp_path, monkeypatch, capsys, own_flags, arguments, message):
    (tmp_path / "toy.py").write_text(CONFIG)
    monkeypatch.setitem(train.load_recipe.__globals__["RECIPES"], "toy", "json")
    train.define_flags()
    named = {"CONFIG": str(tmp_path / "toy.py"), "DIR": str(tmp_path / "run")}
    argv = ["train"]
    for argument in arguments:
        for name, value in named.items():
            argument = argument.replace(f"={name}", f"={value}")
        argv.append(argument)
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as stopped:
        cli.run(train.main, argv)
    errors = capsys.readouterr().err
    assert stopped.value.code == 2 and errors.startswith("error: ") and message in errors
    assert len(errors.splitlines()) == 1
