"""The program from outside: flags, files, exit status, and what it must not load."""

import json
import subprocess
import sys

import numpy as np
import pytest
from evaluation_data import mer_row, write_jsonl, write_parquet

from spatialreward_jax.io.images import png_bytes


def _run(*arguments):
    command = [sys.executable, "-m", "spatialreward_jax.evaluate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def data(tmp_path):
    write_parquet(tmp_path / "data" / "2pair.parquet", [mer_row("a", [20, 10]), mer_row("b", [20, 10])])
    for name, scores in (("x", [9, 1, 9, 1]), ("y", [9, 1, 1, 9])):
        keys = ("2pair/a/0", "2pair/a/1", "2pair/b/0", "2pair/b/1")
        write_jsonl(tmp_path / f"{name}.jsonl", [{"key": k, "overall": s} for k, s in zip(keys, scores)])
    return tmp_path


def test_answers_are_evaluated_and_compared(data):
    for name in ("x", "y"):
        done = _run(
            "--bench=mer",
            f"--data={data}/data",
            f"--answers={data}/{name}.jsonl",
            f"--out={data}/{name}",
            "--resamples=100",
        )
        assert done.returncode == 0, done.stderr
    assert "| accuracy | 0.5000 |" in done.stdout
    assert json.loads((data / "y/results.json").read_text())["figures"]["accuracy"]["value"] == 0.5
    both = f"--compare={data}/x,{data}/y"
    refused = _run("--bench=mer", both)
    assert refused.returncode == 2 and refused.stderr.startswith("error: different judges (model: 'answers:x'")
    identity = json.loads((data / "x/results.json").read_text())["identity"]
    assert identity["parsing"] == "strict" and identity["aggregation"] == "as given"
    assert identity["revision"] != json.loads((data / "y/results.json").read_text())["identity"]["revision"]
    done = _run("--bench=mer", both, "--allow_different_identity", f"--out={data}/cmp", "--resamples=100")
    assert done.returncode == 0 and "| accuracy | 1.0000 | 0.5000 | +0.5000 |" in done.stdout
    assert json.loads((data / "cmp/compare.json").read_text())["figures"]["accuracy"]["only_a"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bench=mer"], "--data and --out are needed"),
        (["--bench=mer", "--data=d", "--out=o"], "give one of --model, --answers and --vie_url, got none"),
        (["--bench=mer", "--data=nowhere", "--out=o", "--answers=nowhere"], "no file nowhere"),
        (["--bench=mer", "--data=d", "--out=o", "--answers=a", "--constrained"], "--constrained and --score_mode need"),
        (["--bench=mer", "--data=d", "--out=o", "--answers=a", "--ensemble=2"], "--ensemble has no effect"),
        (["--bench=mer", "--data=d", "--out=o", "--model=embedded", "--ensemble=2"], "give a temperature above 0"),
        (["--bench=mer", "--data=d", "--out=o", "--model=embedded", "--score_mode=expected"], "needs constrained"),
        (["--bench=mer", "--compare=a"], "--compare wants two result files, got 1"),
        (["--bench=gedit", "--data=d", "--out=o", "--answers=a"], "needs either --editor"),
        (["--bench=mer", "--data=d", "--out=o", "--answers=a", "--editor=e"], "--editor is for --bench=gedit alone"),
        (["--bench=gedit", "--data=d", "--out=o", "--answers=a", "--images=i", "--grid_search"], "--grid_search: rows"),
        (["--bench=gedit", "--data=d", "--out=o", "--vie_url=http://u", "--images=i"], "--vie_model, the name"),
        (["--bench=gedit", "--data=d", "--out=o", "--model=m", "--editor=embedded"], "judge 'm' is no folder"),
        (["--bench=nothing"], "should be one of"),
    ],
)
def test_mistakes_end_in_one_line(arguments, message, monkeypatch, capsys, own_flags):
    """In this process, for speed: the program's own door, with its flags."""
    from spatialreward_jax import cli, evaluate

    monkeypatch.setattr(sys, "argv", ["evaluate"])
    evaluate.define_flags()
    with pytest.raises(SystemExit) as stop:
        cli.run(evaluate.main, ["evaluate", *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


@pytest.mark.slow
def test_constrained_answers_are_part_of_the_identity(data):
    """Random weights under the grammar: every answer counts, and the manifest says how it was written."""
    flags = ("--bench=mer", f"--data={data}/data", "--model=embedded", f"--out={data}/c", "--resamples=100")
    done = _run(*flags, "--constrained", "--score_mode=expected", "--max_new_tokens=32")
    assert done.returncode == 0, done.stderr
    assert "the judge's programs compiled: 4\n" in done.stdout  # one of each kind: all answers end at the limit
    manifest, results = (json.loads((data / "c" / name).read_text()) for name in ("manifest.json", "results.json"))
    assert manifest["identity"]["decoding"] == results["identity"]["decoding"] == "greedy max32 grammar1 expected"
    assert results["counts"] == {"ok": 2, "invalid": 0, "missing": 0, "broken": 0, "duplicate": 0}
    refused = _run(*flags, "--constrained", "--max_new_tokens=32")
    assert refused.returncode == 2 and "belongs to another evaluation (identity" in refused.stderr


def test_answers_need_no_accelerator_library(data):
    code = f"""
import sys
from spatialreward_jax import evaluate, cli
evaluate.define_flags()
try:
    cli.run(evaluate.main, ["e", "--bench=mer", "--data={data}/data", "--answers={data}/x.jsonl", "--out={data}/o"])
except SystemExit:
    pass
print([name for name in ("jax", "torch", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.slow
def test_real_nets_edit_and_judge(tmp_path, goldens):
    """GEdit from request to figures with the reference checkpoints' sizes; started again, it does nothing anew."""
    requests = [
        {
            "key": f"k{i}",
            "task_type": "color_alter",
            "instruction": "make it blue",
            "instruction_language": "en",
            "input_image": {"bytes": png_bytes(np.full((40, 50, 3), 90 * i, np.uint8)), "path": None},
            "Intersection_exist": True,
        }
        for i in range(2)
    ]
    write_parquet(tmp_path / "data" / "train.parquet", requests)
    flags = (
        "--bench=gedit",
        f"--data={tmp_path}/data",
        f"--editor={goldens}/omnigen2",
        f"--model={goldens}/spatialreward",
        f"--out={tmp_path}/out",
        "--parsing=bench",  # random weights never write a well-formed answer
        "--max_new_tokens=16",
        "--resamples=100",
    )
    done = _run(*flags)
    assert done.returncode == 0, done.stderr
    assert "2/2  images 2" in done.stdout and "2/2  edits 2" in done.stdout
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["counts"]["ok"] == 2 and results["notes"]["images"]["preset"] == "rl-eval"
    assert results["identity"]["pixel_policy"] == "eval" and results["identity"]["revision"]
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/images").rglob("*.png")}
    answers = (tmp_path / "out/answers.jsonl").read_bytes()
    assert _run(*flags).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in files} == files and len(files) == 2
    assert (tmp_path / "out/answers.jsonl").read_bytes() == answers
    assert json.loads((tmp_path / "out/results.json").read_text()) == results
