"""The main job in several processes of one machine, and what happens when one of them is told to stop or is killed.

Processes have one fake device each. They find each other on a free port; whatever still runs at the end is killed.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from spatialreward_jax import launch

TESTS = pathlib.Path(__file__).parent
GOLDENS = TESTS / "goldens"
CONFIG = """
import importlib.util

def get_config(preset=""):
    spec = importlib.util.spec_from_file_location("recipe", "{root}/configs/{recipe}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.update({changes})
    with config.unlocked():
        config.update({replaced})
    return config
"""
LORA = {"rank": 2, "alpha": 4.0}
GRPO = {
    **{"editor": str(GOLDENS / "omnigen2"), "steps": 2, "prompts": 4, "group": 2, "lora": LORA},
    **{"recipe": "window", "window_steps": 1, "window_span": (0.0, 1.0)},
    **{"updates_per_phase": 1, "checkpoint_every": 1},
    **{"sampler": {"steps": 2, "text_guidance": 1.0, "image_guidance": 1.0}},
    "judge": {"temperature": 0.0, "ensemble": 1},  # draws follow from the pixels, whose rounding may differ
    "eval": {"prompts": 0, "heldout": 0},
    "data": {"max_pixels": 1024, "max_text_tokens": 64},
}
SUPERVISED = {"steps": 2, "batch": 2, "warmup": 0, "lora": LORA, "export_dtype": "float32", "checkpoint_every": 0}
EDITOR = {
    **{"editor": str(GOLDENS / "omnigen2"), "scratch": (), "train": ("transformer",)},
    **{"data": {"rows": 8, "threads": 1}, "eval": {"batches": 0, "pictures": 0}},
}
JUDGE = {
    **{"judge": str(GOLDENS / "spatialreward"), "scratch": False, "muon_lr": 0.0},  # adapters train by AdamW
    "eval": {"batches": 0, "edits": 0, "grounding": 0},
    "data": {"threads": 1, "editworld": {"edits": 4, "candidates": 1}},
}
TOY = """
from ml_collections import ConfigDict

def get_config(preset="small"):
    return ConfigDict(dict(task="toy", steps=500, seed=0, checkpoint_every=2, keep_checkpoints=3, eval_every=0,
                           preset=preset, resume="", sleep=0.2, kill_at=0))
"""


def _environment(folder, devices):
    """Little time for the compiler, and what it made is kept for the next run of this test."""
    return os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(TESTS.parent),
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@contextlib.contextmanager
def _children(program, arguments, count, environment, monkeypatch):
    """`count` processes of one run, as the launcher starts them; none is left behind."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    port = launch.free_port()
    command = [sys.executable, "-u", str(TESTS / program), *arguments]
    shared = [f"--coordinator=localhost:{port}", f"--num_processes={count}"] if count > 1 else []
    extra = lambda number: [*shared, f"--process_id={number}"] if shared else []
    children = [launch.Child(number, [*command, *extra(number)]) for number in range(count)]
    try:
        yield children
    finally:
        for child in children:
            child.run.kill()
            child.run.wait()


def _config(folder, recipe, changes, replaced=None):
    """The flag of a config file that changes a recipe's own."""
    file = folder / f"{recipe}.py"
    file.write_text(CONFIG.format(root=TESTS.parent, recipe=recipe, changes=changes, replaced=replaced or {}))
    return f"--config={file}"


def _wait_for(path, children, seconds=600):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end and all(c.run.poll() is None for c in children), [c.text for c in children]
        time.sleep(0.05)


def _results(workdir):
    """(metrics of the first, of the last step, adapters)."""
    summary = json.loads((workdir / "summary.json").read_text())
    return summary, load_file(workdir / "adapter" / "adapter_model.safetensors")


@pytest.mark.slow
def test_processes_equal_one_and_an_interrupted_run_resumes_on_another_number(tmp_path, monkeypatch):
    config = _config(tmp_path, "grpo", GRPO, {"rewards": {"judge": 0.0, "guards": 1.0, "oracle": 1.0}})
    flags = lambda name, *more: [config, f"--workdir={tmp_path / name}", *more]
    program, alone, several = "shared_compile_program.py", _environment(tmp_path, 4), _environment(tmp_path, 1)
    mesh = "--mesh=2,2,1"
    with _children(program, flags("alone", mesh), 1, alone, monkeypatch) as children:
        assert launch.watch(children, 60) == 0, children[0].text

    with _children(program, flags("several", mesh), 4, several, monkeypatch) as children:
        _wait_for(tmp_path / "several" / "tensorboard", children)
        time.sleep(1)  # the handlers come right behind; the first step compiles for many seconds
        children[3].run.send_signal(signal.SIGTERM)
        assert launch.watch(children, 60) == 0, [child.text for child in children]
    assert "stopped by SIGTERM after step 1/2" in children[0].text and "step 1/2  " in children[0].text
    assert "step 1/2" not in children[3].text, "one process speaks"
    assert not (tmp_path / "several" / "summary.json").exists()

    with _children(program, flags("several", "--mesh=2,1,1"), 2, several, monkeypatch) as children:
        assert launch.watch(children, 60) == 0, [child.text for child in children]
    assert "resumed after step 1" in children[0].text and "done: 2 steps" in children[0].text
    (summary, adapters), (other, others) = _results(tmp_path / "alone"), _results(tmp_path / "several")
    for name in ("reward_first", "reward_last", "zero_std_share"):
        np.testing.assert_allclose(other[name], summary[name], rtol=1e-5, err_msg=name)
    assert adapters.keys() == others.keys()
    for name, value in adapters.items():
        np.testing.assert_allclose(others[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    events = [p for p in (tmp_path / "several" / "tensorboard").iterdir()]
    assert len(events) == 2, "one event file a run"


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "changes"), [("editor_sft", EDITOR), ("reward_sft", JUDGE)])
def test_supervised_recipes_in_two_processes_equal_one(tmp_path, monkeypatch, recipe, changes):
    config = _config(tmp_path, recipe, SUPERVISED | changes)
    found = []
    for count in (1, 2):
        flags = [config, f"--workdir={tmp_path / str(count)}", "--mesh=2,1,1"]
        environment = _environment(tmp_path, 2 // count)
        with _children("shared_compile_program.py", flags, count, environment, monkeypatch) as children:
            assert launch.watch(children, 60) == 0, [child.text for child in children]
        found.append(_results(tmp_path / str(count)))
    (summary, adapters), (other, others) = found
    for name in ("loss_first", "loss_last"):
        np.testing.assert_allclose(other[name], summary[name], rtol=1e-5, err_msg=name)
    assert adapters.keys() == others.keys() and any(np.abs(value).max() > 0 for value in adapters.values())
    for name, value in adapters.items():
        np.testing.assert_allclose(others[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_a_judge_in_two_processes_gives_the_answers_of_one(tmp_path, monkeypatch):
    """Answers of different lengths, more than there are slots: every process refills the same ones."""
    found = []
    for count in (1, 2):
        answers = tmp_path / f"answers{count}.json"
        flags = [f"--judge={GOLDENS / 'spatialreward'}", f"--out={answers}"]
        with _children("scoring_program.py", flags, count, _environment(tmp_path, 2 // count), monkeypatch) as children:
            assert launch.watch(children, 60) == 0, [child.text for child in children]
        found.append(json.loads(answers.read_text()))
    assert found[0] == found[1] and len({len(text) for text in found[0]}) > 1


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_and_is_named(tmp_path, monkeypatch, victim):
    (tmp_path / "toy.py").write_text(TOY)
    workdir, heartbeat = f"--workdir={tmp_path / 'run'}", 5
    flags = [f"--config={tmp_path / 'toy.py'}", workdir, f"--heartbeat={heartbeat}"]
    with _children("toy_program.py", flags, 2 + victim, _environment(tmp_path, 1), monkeypatch) as children:
        _wait_for(tmp_path / "run" / "checkpoints" / "4", children)
        began = time.monotonic()
        children[victim].run.kill()
        assert launch.watch(children, heartbeat) != 0
        assert time.monotonic() - began < 3 * heartbeat, "nothing had to be killed"
        assert all(child.run.returncode for child in children)
    assert launch.lost_process(children) == f"process {victim} (SIGKILL)"
    survivors = [child for child in children if child.number != victim]
    assert launch.lost_process(survivors) == f"process {victim} (no sign of life)"
    line = launch.report(children, ["train", *flags], launch.newest_checkpoint(flags))
    assert f"error: process {victim} (SIGKILL) was lost; resume from {tmp_path / 'run' / 'checkpoints'}/" in line
    assert "spatialreward_jax.launch train --config=" in line and "\n" not in line
    joined = ["--coordinator=10.0.0.2:8476", "--num_processes=4"]
    line = launch.report(children, ["train", *flags, *joined, f"--process_id={3 - victim}"], None)
    assert f"on each of the 4 hosts, with {' '.join(joined)} and its --process_id: " in line
    assert line.endswith("spatialreward_jax.launch train " + " ".join(flags))  # nothing of one host's own


def test_the_launcher_starts_stops_and_reports(tmp_path):
    """Without jax: a program that waits is stopped by a signal to the launcher; a wrong call is refused."""
    for wrong in ([], ["--processes=0", "train"], ["--processes=x", "train"], ["train.py"]):
        assert launch.main(wrong) == 2
    (tmp_path / "checkpoints" / "12").mkdir(parents=True)
    (tmp_path / "checkpoints" / "7").mkdir()
    assert launch.newest_checkpoint([f"--workdir={tmp_path}"]) == tmp_path / "checkpoints" / "12"
    assert launch.newest_checkpoint([f"--workdir={tmp_path / 'none'}"]) is None and launch.newest_checkpoint([]) is None
    children = [
        launch.Child(number, [sys.executable, "-c", code])
        for number, code in enumerate(["import os; os.kill(os.getpid(), 9)", "import time; time.sleep(60)"])
    ]
    began = time.monotonic()
    assert launch.watch(children, 0.2) == 1 and time.monotonic() - began < 30
    assert launch.lost_process(children) == "process 0 (SIGKILL)"


@pytest.mark.slow
def test_the_launcher_passes_on_a_programs_own_error():
    call = [sys.executable, "-m", "spatialreward_jax.launch", "train", "--workdir=w", "--config=none.py"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "cannot read the config file" in done.stdout and not done.stderr
