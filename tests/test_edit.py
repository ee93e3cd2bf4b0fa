"""The editing program: the best of several samples, as the judge has it."""

import json
import subprocess
import sys

import pytest

from spatialreward_jax import cli, edit
from spatialreward_jax.data.editworld import render, sample_edit
from spatialreward_jax.io.images import read_image, write_png


@pytest.mark.slow
def test_the_best_of_several_samples_is_kept(tmp_path, one_device):
    sample = next(s for s in map(lambda i: sample_edit("test", i), range(9)) if s.source.side == 64)
    write_png(tmp_path / "before.png", render(sample.source))
    command = [sys.executable, "-m", "spatialreward_jax.edit", f"--source={tmp_path}/before.png", "--preset=rl"]
    command += [f"--instruction={sample.instruction}", f"--out={tmp_path}/after.png", "--num_samples=3"]

    def run(*flags):
        done = subprocess.run([*command, *flags], capture_output=True, text=True, env=one_device)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    whole = run()
    best = run("--best_of", "--constrained", "--score_mode=expected")
    overall = [score["overall"] for score in best["scores"]]
    assert len(overall) == len(whole["images"]) == 3 and overall[best["best"]] == max(overall)
    assert best["images"] == [f"{tmp_path}/after.png"]
    kept = read_image(f"{tmp_path}/after.png")
    assert (kept == read_image(whole["images"][best["best"]])).all()


def test_what_a_judge_is_told_is_refused_without_one(monkeypatch, capsys, own_flags):
    """In this process, for speed: the program's own door, with its flags."""
    monkeypatch.setattr(sys, "argv", ["edit"])
    edit.define_flags()
    with pytest.raises(SystemExit) as stop:
        cli.run(
            edit.main, ["edit", "--source=a.png", "--instruction=x", "--out=b.png", "--temperature=1", "--ensemble=4"]
        )
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "--temperature has no effect without --best_of" in error and error.count("\n") == 1
