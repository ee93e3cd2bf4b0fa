"""Answers on disk: a run that was stopped anywhere ends with the same files as one that was not."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest
from evaluation_data import StandInJudge, cell, mer_row, picture, write_jsonl, write_parquet

from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation import BENCHMARKS, evaluate

MER = BENCHMARKS["mer"]
FILES = ("answers.jsonl", "results.json", "report.md", "manifest.json")


@pytest.fixture
def data(tmp_path):
    rng = random.Random(0)
    rows = [mer_row(f"{i}", [rng.randrange(26), rng.randrange(26)]) for i in range(9)]
    rows[4]["edited_images"][1] = {"bytes": b"no image", "path": None}
    write_parquet(tmp_path / "data" / "2pair.parquet", rows)
    return tmp_path / "data"


def _files(folder: pathlib.Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


class _Stop(Exception):
    pass


class _StoppingJudge(StandInJudge):
    """Raises when asked for the batch that has edit `at`."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def score(self, edits):
        if self.asked + len(edits) > self.at:
            raise _Stop
        return super().score(edits)


@pytest.mark.parametrize("at", [0, 3, 7, 12, 16])
def test_a_stopped_run_goes_on_and_ends_the_same(data, tmp_path, at):
    whole = evaluate(MER, data, tmp_path / "whole", StandInJudge(), batch_size=4)
    with pytest.raises(_Stop):
        evaluate(MER, data, tmp_path / "cut", _StoppingJudge(at), batch_size=4)
    judge = StandInJudge()
    assert evaluate(MER, data, tmp_path / "cut", judge, batch_size=4) == whole
    assert judge.asked == 17 - at // 4 * 4 + (at >= 12)  # whole batches are kept; the unreadable edit is in the third
    assert _files(tmp_path / "cut") == _files(tmp_path / "whole")


def test_any_cut_of_the_answers_file_is_mended(data, tmp_path):
    """Even in the middle of a line or a batch."""
    evaluate(MER, data, tmp_path / "out", StandInJudge(), batch_size=4)
    want = _files(tmp_path / "out")
    size = len(want["answers.jsonl"])
    for cut in (0, 1, 200, size // 2, size - 1):
        (tmp_path / "out" / "answers.jsonl").write_bytes(want["answers.jsonl"][:cut])
        evaluate(MER, data, tmp_path / "out", StandInJudge(), batch_size=4)
        assert _files(tmp_path / "out") == want


def test_a_finished_run_asks_nothing(data, tmp_path):
    evaluate(MER, data, tmp_path, StandInJudge(), batch_size=4)
    judge = StandInJudge()
    evaluate(MER, data, tmp_path, judge, batch_size=4)
    assert judge.asked == 0


def test_other_settings_and_other_data_are_refused(data, tmp_path):
    evaluate(MER, data, tmp_path / "out", StandInJudge())
    with pytest.raises(InputError, match=r"belongs to another evaluation.*limit"):
        evaluate(MER, data, tmp_path / "out", StandInJudge(), limit=2)
    write_parquet(tmp_path / "other" / "2pair.parquet", [mer_row("elsewhere", [3, 2])])
    with pytest.raises(InputError, match="answers to other rows"):
        evaluate(MER, tmp_path / "other", tmp_path / "out", StandInJudge())
    write_parquet(tmp_path / "less" / "2pair.parquet", [mer_row("0", [12, 24])])
    with pytest.raises(InputError, match="holds 18 answers to 2 edits"):
        evaluate(MER, tmp_path / "less", tmp_path / "out", StandInJudge(), batch_size=2)
    write_parquet(tmp_path / "redone" / "2pair.parquet", [mer_row("0", [12, 25])])
    with pytest.raises(InputError, match="images or the instruction of 2pair/0/1 have changed"):
        evaluate(MER, tmp_path / "redone", tmp_path / "out", StandInJudge(), batch_size=2)


def test_a_damaged_line_is_named(data, tmp_path):
    evaluate(MER, data, tmp_path / "out", StandInJudge())
    path = tmp_path / "out" / "answers.jsonl"
    lines = path.read_text().splitlines()
    lines[2] = "{"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=r"answers\.jsonl:3 is damaged"):
        evaluate(MER, data, tmp_path / "out", StandInJudge())


def test_an_edit_that_the_judge_refuses_is_noted(tmp_path):
    class Picky(StandInJudge):
        def score(self, edits):
            if any(edit.instruction == "do b" for edit in edits):
                raise InputError("the instruction is too long")
            return super().score(edits)

    write_parquet(tmp_path / "2pair.parquet", [mer_row("a", [2, 1]), mer_row("b", [2, 1])])
    results = evaluate(MER, tmp_path / "2pair.parquet", tmp_path / "out", Picky())
    assert results["counts"]["ok"] == 1 and results["counts"]["broken"] == 1
    assert "too long" in results["problems"]["unreadable images"]["first"][0]


def test_progress_counts_rows_and_edits(data, tmp_path):
    said = []
    evaluate(MER, data, tmp_path, StandInJudge(), batch_size=4, report=lambda *numbers: said.append(numbers))
    assert said[-1] == (9, 9, 18)
    assert [edits for _, _, edits in said] == sorted(edits for _, _, edits in said)
    assert all(rows <= total == 9 for rows, total, _ in said)
    assert said[0] == (0, 9, 0), "before any work, where the clock starts"
    assert all(edits >= 2 * (rows - 1) for rows, _, edits in said), "rows that were only read are not done"


def test_an_image_that_was_mended_is_asked_for(tmp_path):
    """And the file ends as if it had never been broken."""
    for name, mark in (("s", 1), ("a", 20), ("b", 10), ("c", 5)):
        (tmp_path / f"{name}.png").write_bytes(picture(mark))
    rows = [
        mer_row(f"{i}", [], original_image="s.png", edited_images=[f"{second}.png", "a.png"])
        for i, second in enumerate("abcb")
    ]
    write_jsonl(tmp_path / "2pair.jsonl", rows)

    def run(out):
        judge = StandInJudge()
        return evaluate(MER, tmp_path / "2pair.jsonl", tmp_path / out, judge, batch_size=3), judge.asked

    whole, _ = run("whole")
    for name in "bc":
        (tmp_path / f"{name}.png").write_bytes(b"no image")
    assert run("out")[0]["counts"]["broken"] == 3
    (tmp_path / "c.png").write_bytes(picture(5))
    results, asked = run("out")
    assert results["counts"]["broken"] == 2 and asked == 1
    (tmp_path / "b.png").write_bytes(picture(10))
    assert run("out") == (whole, 2) and _files(tmp_path / "out") == _files(tmp_path / "whole")
    assert run("out") == (whole, 0)


_SLOW_RUN = """
import sys, time
sys.path.insert(0, {helpers!r})
from evaluation_data import StandInJudge
from spatialreward_jax.evaluation import BENCHMARKS, evaluate
class Slow(StandInJudge):
    def score(self, edits):
        time.sleep(0.02)
        return super().score(edits)
evaluate(BENCHMARKS["mer"], {data!r}, {out!r}, Slow(), batch_size=2)
"""


@pytest.mark.slow
def test_killed_at_random_points_it_ends_the_same(tmp_path):
    rng = random.Random(1)
    rows = [mer_row(f"{i}", [rng.randrange(26) for _ in range(3)]) for i in range(60)]
    write_parquet(tmp_path / "data" / "3pair.parquet", rows)
    evaluate(MER, tmp_path / "data", tmp_path / "whole", StandInJudge(), batch_size=2)
    out = tmp_path / "killed"
    code = _SLOW_RUN.format(helpers=str(pathlib.Path(__file__).parent), data=str(tmp_path / "data"), out=str(out))
    kills = 0
    for _ in range(40):
        process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"JAX_PLATFORMS": "cpu"})
        answers = out / "answers.jsonl"
        had = answers.stat().st_size if answers.exists() else 0
        while process.poll() is None and (answers.stat().st_size if answers.exists() else 0) <= had:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        kills += 1
    else:
        pytest.fail("never finished")
    assert kills >= 2
    assert _files(out) == _files(tmp_path / "whole")


def test_answers_file_is_plain_jsonl(data, tmp_path):
    evaluate(MER, data, tmp_path, StandInJudge())
    records = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [record["key"] for record in records] == [f"2pair/{i}/{j}" for i in range(9) for j in range(2)]
    assert "identity" not in records[0] and records[9]["broken"]
    assert cell(3)["bytes"].startswith(b"\x89PNG")
