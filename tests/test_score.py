"""The scoring program: documented JSON, pictures, and one line for every mistake, before any compilation."""

import json
import subprocess
import sys

import numpy as np
import pytest

from spatialreward_jax.io.images import read_image, write_png

KEYS = {
    *("row", "source", "edited", "instruction", "valid", "overall", "reward", "semantic", "quality"),
    *("success", "no_overedit", "naturalness", "artifact_free", "regions", "reasoning", "quality_reasoning", "neutral"),
    *("errors", "warnings", "raw_sc", "raw_pq", "identity"),
}

RUNNER = """
import contextlib, io, json, sys
from absl import flags
from absl.testing import flagsaver
import jax
from spatialreward_jax import cli, score
from spatialreward_jax.reward.judge import FunctionAnswerer, RewardModel

SC = {"edit_region": [{"id": 0, "label": "square", "bbox_2d": [250, 250, 500, 500]}],
      "reasoning": "<|bbox_0|> A square. <|global|> Fine.", "score": [20, 15]}
PQ = {"reasoning": "Sharp.", "score": [21, 16]}

def answer(question):
    cut = -9 if "cut" in question.text else None
    return json.dumps(SC if question.stream == "sc" else PQ)[:cut]

def given(model, **choices):
    if model != "given":
        return load(model, **choices)
    return RewardModel(FunctionAnswerer(answer), parsing=choices["parsing"], aggregation=choices["aggregation"])

load, RewardModel.from_pretrained = RewardModel.from_pretrained, given
compiled = []
jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
score.define_flags()
for case in json.loads(sys.argv[1]):
    out, err, status = io.StringIO(), io.StringIO(), 0
    before = len([name for name in compiled if "backend_compile" in name])
    with flagsaver.flagsaver(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.run(score.main, ["score", *case])
        except SystemExit as stop:
            status = stop.code or 0
    flags.FLAGS.unparse_flags()
    after = len([name for name in compiled if "backend_compile" in name])
    print(json.dumps([status, out.getvalue(), err.getvalue(), after - before]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("score")
    source = np.full((40, 64, 3), 80, np.uint8)
    edited = source.copy()
    edited[10:20, 16:32] = 200
    write_png(folder / "a.png", source)
    write_png(folder / "b.png", edited)
    write_png(folder / "narrow.png", np.zeros((3, 900, 3), np.uint8))
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:60])
    rows = [
        {"source": "a.png", "edited": "b.png", "instruction": "add a square"},
        {"source": ["a.png", "b.png"], "edited": "b.png", "instruction": "cut it out"},
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (folder / "bad.jsonl").write_text(json.dumps(rows[0]) + "\n" + json.dumps({"source": "a.png"}) + "\n")
    return folder


def run(cases):
    command = [sys.executable, "-c", RUNNER, json.dumps([[str(part) for part in case] for case in cases])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def edit(folder, **changed):
    given = {"model": "given", "source": folder / "a.png", "edited": folder / "b.png", "instruction": "add a square"}
    return [f"--{name}={value}" for name, value in (given | changed).items() if value is not None]


def test_results(folder):
    one, lines, server = run(
        [
            edit(folder, overlay=folder / "boxes.png"),
            ["--model=given", f"--jsonl={folder}/rows.jsonl", f"--out={folder}/out.jsonl", f"--overlay={folder}/x.png"],
            edit(folder, instruction="cut", parsing="server", aggregation="min"),
        ]
    )
    record = json.loads(one[1])
    assert one[0] == 0 and set(record) == KEYS
    assert record["valid"] and record["regions"][0]["box"] == [16, 10, 32, 20] and record["success"] == 20
    assert record["reward"] == pytest.approx((0.6 * 20 + 0.4 * 15) ** 0.8 * (18.5) ** 0.2 / 25)
    assert record["source"] == [str(folder / "a.png")]
    assert read_image(folder / "boxes.png").shape[1] > 2 * 64
    assert lines[:2] == [0, ""]
    good, cut = map(json.loads, (folder / "out.jsonl").read_text().splitlines())
    assert good["valid"] and good["row"] == 0 and good["reward"] == record["reward"]
    assert not cut["valid"] and cut["row"] == 1 and cut["reward"] is None and "SC" in cut["errors"][0]
    assert (folder / "x-0000.png").exists() and (folder / "x-0001.png").exists()
    assert json.loads(server[1])["identity"]["parsing"] == "server"


def test_mistakes_get_one_line_before_any_compilation(folder):
    model = {"model": "embedded", "max_new_tokens": 4}
    cases = {
        "must all be given": edit(folder, edited=None),
        "give either": [*edit(folder), f"--jsonl={folder}/rows.jsonl"],
        "nowhere.png": edit(folder, source="nowhere.png"),
        "broken.png": edit(folder, source=folder / "broken.png"),
        "instruction": edit(folder, instruction="  "),
        "bad.jsonl:2": ["--model=given", f"--jsonl={folder}/bad.jsonl"],
        "none.jsonl": ["--model=given", f"--jsonl={folder}/none.jsonl"],
        "its folder does not exist": edit(folder, out=folder / "no/where.json"),
        "Qwen3-VL judges only": edit(folder, attention=folder / "x.png"),
        "is no folder": edit(folder, model="nowhere"),
        "pixel_policy": edit(folder, pixel_policy="huge"),
        "template set": edit(folder, **model, templates="unknown"),
        "is no adapter": edit(folder, **model, adapter=folder),
        "want three numbers": edit(folder, mesh="8"),
        "needs 3 devices": edit(folder, mesh="3,1,1"),
    }
    for (why, case), (status, out, err, compiled) in zip(cases.items(), run(cases.values()), strict=True):
        assert status == 2 and out == "" and compiled == 0, (case, err)
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and why in lines[0], err
        assert "Traceback" not in err


@pytest.mark.slow
def test_embedded_judge_end_to_end(folder):
    """Scores, and where the judge looked: a picture a row, measures in the record, their sum beside the pictures."""
    command = [sys.executable, "-m", "spatialreward_jax.score", f"--jsonl={folder}/rows.jsonl", "--constrained"]
    command += ["--model=embedded", "--max_new_tokens=32", f"--attention={folder}/look.png"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    records = list(map(json.loads, done.stdout.splitlines()))
    for number, record in enumerate(records):
        assert set(record) == KEYS | {"attention"} and (record["valid"] or record["errors"])
        assert record["identity"]["model"] == "embedded"
        found = record["attention"]
        assert found["entropy_gap"] > 0 and 0 < found["source_mass"] + found["edited_mass"] < 1
        assert np.shape(found["layers"]["concentration"]) == np.shape(found["layers"]["source_entropy"])
        assert read_image(folder / f"look-000{number}.png").std() > 10
    whole = json.loads((folder / "look.json").read_text())
    mean = np.mean([record["attention"]["source_entropy"] for record in records])
    assert whole["edits"] == 2 and whole["source_entropy"]["value"] == pytest.approx(mean, abs=1e-4)
    assert -1 <= whole["edited_consistency"] <= 1


@pytest.mark.slow
def test_a_mesh_of_all_devices_gives_the_same_scores(folder):
    command = [sys.executable, "-m", "spatialreward_jax.score", f"--jsonl={folder}/rows.jsonl", "--constrained"]
    command += ["--score_mode=expected", "--max_new_tokens=48"]
    one, spread = ([*command, *flags] for flags in ([], ["--mesh=-1,2,2"]))
    done = [subprocess.run(words, capture_output=True, text=True, timeout=300) for words in (one, spread)]
    assert [run.returncode for run in done] == [0, 0], [run.stderr for run in done]
    ours, theirs = ([json.loads(line) for line in run.stdout.splitlines()] for run in done)
    assert len(ours) == 2 and all(record["valid"] for record in ours)
    for a, b in zip(ours, theirs):
        assert a["raw_sc"] == b["raw_sc"] and a["identity"] == b["identity"]
        assert a["overall"] == pytest.approx(b["overall"], abs=1e-4)
