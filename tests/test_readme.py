"""What the README promises: its commands exist and its example runs."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from spatialreward_jax.io.images import write_png

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_ci_runs_exactly_the_test_command():
    assert blocks("bash")[1].strip() in (ROOT / ".ci/run").read_text().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("program", sorted(set(re.findall(r"python -m (spatialreward_jax\.[\w.]+)", README))))
def test_every_program_has_help(program):
    done = subprocess.run([sys.executable, "-m", program, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert "--" in done.stdout and "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_example_runs(tmp_path, optimised):
    for name in ("before.png", "after.png"):
        write_png(tmp_path / name, np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    (example,) = blocks("python")
    (tmp_path / "example.py").write_text(f"{example}\nprint(len(images), images[0].shape)\n", encoding="utf-8")
    environment = optimised | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "example.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "4 (64, 64, 3)"


def test_config_keys_of_the_comparison_exist():
    text = (ROOT / "configs/grpo.py").read_text()
    table = README.split("ours (`configs/grpo.py`)")[1].split("\n\n")[0]
    for row in table.splitlines()[2:]:
        for key in re.findall(r"`\.?([a-z_.]+?)(?:=[^`]*|\.\*)?`", row.split("|")[2]):
            assert re.search(rf"\b{key.split('.')[-1]}\b", text), key


def test_top_level_names():
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT).stdout.split()
    names = {name.split("/")[0] for name in tracked if not name.startswith(".")}
    wanted = {"pyproject.toml", "README.md", "LICENSE", "spatialreward_jax", "configs", "launch", "tests", "colabs"}
    assert names <= wanted
