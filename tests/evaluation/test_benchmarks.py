"""Each benchmark on a small file in its published layout, with results worked out by hand."""

import json
import math

import numpy as np
import pyarrow.parquet
import pytest
from evaluation_data import StandInJudge, cell, mer_row, picture, write_jsonl, write_parquet

from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation import BENCHMARKS, evaluate, evaluate_answers, gedit, read_answers
from spatialreward_jax.evaluation.records import Broken
from spatialreward_jax.io.images import write_png


def _figure(results, name):
    return results["figures"][name]["value"]


# ------------------------------------------------------------------------------------------------------------ MER


def test_mer(tmp_path):
    """Four rankings: right, tied, one pair swapped, and one with an unreadable answer."""
    write_parquet(tmp_path / "data" / "2pair-00000-of-00001.parquet", [mer_row("a", [20, 10]), mer_row("b", [5, 5])])
    write_parquet(tmp_path / "data" / "3pair-00000-of-00001.parquet", [mer_row("a", [20, 8, 9], label="object")])
    write_parquet(tmp_path / "data" / "4pair-00000-of-00001.parquet", [mer_row("c", [20, 10, 255 / 10, 1])])
    results = evaluate(BENCHMARKS["mer"], tmp_path / "data", tmp_path / "out", StandInJudge(), batch_size=3)
    assert results["counts"] == {"ok": 3, "invalid": 1, "missing": 0, "broken": 0, "duplicate": 0}
    assert _figure(results, "accuracy") == 0.25
    assert _figure(results, "top1") == 0.5 and results["figures"]["top1"]["n"] == 4
    assert _figure(results, "tau") == pytest.approx((1 + 0 + 1 / 3) / 3, abs=1e-6)
    assert results["figures"]["tau"]["n"] == 3
    assert results["answered_only"]["accuracy"] == pytest.approx(1 / 3, abs=1e-6)
    assert results["tables"]["by size"]["2pair"]["correct"] == 0.5
    assert results["tables"]["by category"]["object"]["rows"] == 1
    assert results["problems"]["invalid answers"]["first"] == ["4pair/c/2: SC: the answer is empty"]
    assert "| accuracy | 0.2500 |" in (tmp_path / "out" / "report.md").read_text()


def test_mer_reports_and_skips_what_is_broken(tmp_path):
    broken_image = mer_row("x", [9, 8]) | {"edited_images": [cell(9), {"bytes": b"no image", "path": None}]}
    rows = [
        mer_row("a", [20, 10]),
        mer_row("a", [10, 20]),  # the same id again
        mer_row("one", [20]),
        mer_row("blank", [20, 10], instruction=" "),
        broken_image,
    ]
    write_parquet(tmp_path / "data" / "2pair.parquet", rows)
    results = evaluate(BENCHMARKS["mer"], tmp_path / "data", tmp_path / "out", StandInJudge())
    assert results["counts"] == {"ok": 1, "invalid": 0, "missing": 0, "broken": 3, "duplicate": 1}
    assert _figure(results, "accuracy") == 1 and results["figures"]["accuracy"]["n"] == 1
    problems = {name: problem["first"] for name, problem in results["problems"].items()}
    assert problems["duplicate rows (left out)"] == ["2pair/a"]
    assert problems["broken rows"][0].startswith("2pair.parquet[2]: 1 images where at least 2")
    assert problems["unreadable images"][0].startswith("2pair/x/1: ")


def test_mer_refuses_a_row_in_the_wrong_split(tmp_path):
    write_parquet(tmp_path / "3pair.parquet", [mer_row("a", [2, 1])])
    (broken,) = BENCHMARKS["mer"].rows(tmp_path)
    assert broken == Broken("3pair.parquet[0]", "2 edited images in a file of split 3pair")


def test_our_own_world_knows_its_regions(tmp_path):
    row = mer_row("a", [20, 10], original_image="s.png", edited_images=["e0.png", "e1.png"])
    row["edit_regions"] = [[[0, 0, 500, 500]], []]
    for name, mark in (("s", 1), ("e0", 20), ("e1", 10)):
        (tmp_path / f"{name}.png").write_bytes(picture(mark))
    write_jsonl(tmp_path / "2pair.jsonl", [row])
    results = evaluate(BENCHMARKS["editworld"], tmp_path, tmp_path / "out", StandInJudge())
    assert results["regions"]["edits_with_truth"] == 2
    assert results["regions"]["recall_at_50"] == 0
    assert results["regions"]["empty_when_nothing_was_edited"] == 1


# ------------------------------------------------------------------------------------------------ EditReward-Bench


def _pair(keys, task, dimension, marks, **more):
    row = {
        "key": keys,
        "instruction": f"do {task}",
        "input_image": cell(1),
        "output_images": [cell(mark) for mark in marks],
        "task_type": task,
        "dimension": dimension,
    }
    return row | more


def test_editreward(tmp_path):
    """overall: compose 1 of 2, extract 1 of 1 -> mean over tasks .75; the shared edits are scored once."""
    rows = [
        _pair(["k1", "k2"], "compose", "overall", [20, 10]),
        _pair(["k2", "k3"], "compose", "overall", [10, 10]),  # a tie
        _pair(["k1", "k3"], "compose", "prompt_following", [20, 10]),
        _pair(["k4", "k5"], "extract", "overall", [9, 8]),
        _pair(["k4", "k5"], "extract", "overall", [9, 8]),  # the same row again
        _pair(["k4", "k6"], "extract", "sharpness", [9, 8]),
    ]
    write_parquet(tmp_path / "data" / "train-0.parquet", rows)
    judge = StandInJudge()
    results = evaluate(BENCHMARKS["editscore-editreward"], tmp_path / "data", tmp_path / "out", judge)
    assert judge.asked == 5
    assert results["headline"] == "overall" and _figure(results, "overall") == 0.75
    assert _figure(results, "prompt_following") == 1 and _figure(results, "consistency") is None
    assert results["tables"]["overall by task"]["compose"] == {"rows": 2, "correct": 0.5, "tie": 0.5}
    assert results["tables"]["overall by group"]["scene"]["correct"] == 1
    assert results["counts"]["duplicate"] == 1 and results["counts"]["broken"] == 1


def test_editreward_compares_on_the_row_dimension(tmp_path):
    """prompt_following is s1 / 2.5, consistency s2 / 2.5, overall O: three rows, three different winners."""
    rows = [_pair(["k1", "k2"], "compose", d, [1, 2]) for d in ("prompt_following", "consistency", "overall")]
    write_parquet(tmp_path / "data.parquet", rows)
    marks = {"naturalness": 20, "artifact_free": 20, "valid": True}
    lines = [
        {"key": "k1", "success": 20, "no_overedit": 5, "overall": 4.0, **marks},
        {"key": "k2", "success": 10, "no_overedit": 6, "overall": 4.0, **marks},
    ]
    write_jsonl(tmp_path / "answers.jsonl", lines)
    results = evaluate_answers(
        BENCHMARKS["editscore-editreward"],
        tmp_path / "data.parquet",
        tmp_path / "out",
        read_answers(tmp_path / "answers.jsonl"),
        identity={"model": "other"},
    )
    values = {name: _figure(results, name) for name in ("prompt_following", "consistency", "overall")}
    assert values == {"prompt_following": 1, "consistency": 0, "overall": 0}
    assert results["scores"]["prompt_following"] == {"min": 4, "max": 8, "mean": 6, "std": 2, "n": 2}


def test_editreward_jsonl_with_paths_of_another_machine_and_key_conflicts(tmp_path):
    for name, mark in (("in", 1), ("a", 20), ("b", 10), ("c", 3)):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{name}.png").write_bytes(picture(mark))
    paths = {"input_image": "/elsewhere/images/in.png"}
    rows = [
        _pair(["k1", "k2"], "compose", "overall", [], **paths, output_images=["/elsewhere/a.png", "images/b.png"]),
        _pair(["k1", "k3"], "compose", "overall", [], **paths, output_images=["images/c.png", "images/b.png"]),
        _pair(["k1", "k9"], "compose", "overall", [], **paths, output_images=["images/gone.png", "images/b.png"]),
        "{not json",
    ]
    write_jsonl(tmp_path / "bench.jsonl", rows)
    bench = BENCHMARKS["editscore-editreward"]
    results = evaluate(bench, tmp_path / "bench.jsonl", tmp_path / "out", StandInJudge())
    assert results["problems"]["keys with two different edits (the first one counts)"]["first"] == ["k1"]
    broken = results["problems"]["broken rows"]["first"]
    assert len(broken) == 2 and "gone.png" in broken[0] and broken[1].startswith("bench.jsonl:4: no JSON")


# ----------------------------------------------------------------------------------------------------------- MMRB2


def _mmrb2_json(folder):
    (folder / "images").mkdir(parents=True)
    for mark in (1, 5, 10, 20):
        (folder / "images" / f"{mark}.png").write_bytes(picture(mark))

    def row(ident, sources, a, b, chosen, source):
        prompt = [["text", "earlier"], *(["image", f"images/{m}.png"] for m in sources), ["text", f"do {ident}"]]
        answer = lambda mark: {
            "model_name": "m",
            "response_content": [["text", "done"], ["image", f"images/{mark}.png"]],
        }
        return {
            "id": ident,
            "prompt_content": prompt,
            "response_a": answer(a),
            "response_b": answer(b),
            "chosen": chosen,
            "prompt_source": source,
        }

    rows = [
        row("p1", [1], 20, 10, "A", "emu"),
        row("p2", [1, 5], 20, 10, "B", "emu"),
        row("p3", [1, 5], 10, 10, "A", "rise"),
        row("p4", [1], 5, 10, "b", "rise"),
        row("p5", [1], 5, 10, "tie", "rise"),
    ]
    (folder / "edit.json").write_text(json.dumps({"pairs": rows}))
    (folder / "t2i.json").write_text("[]")


def test_mmrb2(tmp_path):
    _mmrb2_json(tmp_path / "data")
    results = evaluate(BENCHMARKS["mmrb2"], tmp_path / "data", tmp_path / "out", StandInJudge())
    assert _figure(results, "accuracy") == 0.5
    assert results["tables"]["by number of source images"] == {
        "1": {"rows": 2, "correct": 1.0, "tie": 0.0},
        "2": {"rows": 2, "correct": 0.0, "tie": 0.5},
    }
    assert results["tables"]["by source"]["emu"]["correct"] == 0.5
    assert results["counts"]["broken"] == 1


def test_mmrb2_parquet_means_the_same(tmp_path):
    rows = [
        {
            "pair_id": "p1",
            "prompt_text": "<image_1> <image_2> put it there",
            "prompt_images": [cell(1), cell(5)],
            "response_a_text": "<image_1>",
            "response_a_images": [cell(20)],
            "response_b_images": [cell(10)],
            "chosen": "A",
            "prompt_source": "emu",
        }
    ]
    write_parquet(tmp_path / "edit" / "test-00000-of-00001.parquet", rows)
    (row,) = BENCHMARKS["mmrb2"].rows(tmp_path)
    assert row.case.labels == {"chosen": "A", "images": "2", "source": "emu"}
    assert row.case.keys == ("p1_A", "p1_B")
    assert row.edits[0].instruction == "put it there" and len(row.edits[0].sources) == 2
    results = evaluate(BENCHMARKS["mmrb2"], tmp_path, tmp_path / "out", StandInJudge())
    assert _figure(results, "accuracy") == 1


# ----------------------------------------------------------------------------------------------------------- GEdit


def _gedit_rows():
    row = lambda key, group, language="en": {
        "key": key,
        "task_type": group,
        "instruction": f"do {key}",
        "instruction_language": language,
        "input_image": {"bytes": picture(3), "path": "x.png"},
        "Intersection_exist": key != "k2",
    }
    return [row("k1", "color_alter"), row("c1", "color_alter", "cn"), row("k2", "color_alter"), row("k3", "ps_human")]


NAME = {"editor": "stand-in"}


class _Editor:
    def __init__(self):
        self.calls = []

    def edit(self, source, instruction, *, preset, seed):
        self.calls.append((source.shape, instruction, preset, seed))
        return [np.full(source.shape, 40 + 10 * seed, np.uint8)]


@pytest.mark.parametrize(
    "broken",
    [
        {"edited_images": ["iVBOR" + "A" * 5000] * 2},
        {"instruction": "do \ud83d"},
        {"pair_id": "\ud83d"},
        {"label": "\ud83d"},
        {"edit_regions": 5},
        {"edit_regions": [[["a", 1, 2, 3]], []]},
        {"edit_regions": [[[1, 2, 3]], []]},
        "[" * 100_000,
        '{"pair_id": 1' + "0" * 5000 + "}",
    ],
    ids=str,
)
def test_whatever_a_row_holds_the_others_are_evaluated(tmp_path, broken):
    (tmp_path / "p.png").write_bytes(picture(20))
    row = {"instruction": "do", "original_image": "p.png", "edited_images": ["p.png", "p.png"]}
    rows = [row | {"pair_id": "a"}, "", row | {"pair_id": "b"} | broken if isinstance(broken, dict) else broken]
    write_jsonl(tmp_path / "2pair.jsonl", [*rows, row | {"pair_id": "c"}])
    results = evaluate(BENCHMARKS["mer"], tmp_path / "2pair.jsonl", tmp_path / "out", StandInJudge())
    assert results["counts"]["ok"] == 2
    assert results["problems"]["broken rows"]["count"] == 1
    where = results["problems"]["broken rows"]["first"][0]
    assert where.startswith("2pair.jsonl[1]" if isinstance(broken, dict) else "2pair.jsonl:3") and len(where) < 300


def test_a_damaged_page_costs_the_rows_behind_it(tmp_path):
    path = tmp_path / "2pair.parquet"
    write_parquet(path, [mer_row(f"{i}", [20, 10]) for i in range(30)])
    page = pyarrow.parquet.read_metadata(path).row_group(10).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[page : page + 40] = b"\xff" * 40
    path.write_bytes(data)
    results = evaluate(BENCHMARKS["mer"], path, tmp_path / "out", StandInJudge())
    assert 0 < results["counts"]["ok"] <= 20
    assert "and what follows" in results["problems"]["broken rows"]["first"][-1]


def test_mmrb2_counts_the_rows_that_it_reads(tmp_path):
    (tmp_path / "edit.json").write_text('{"pairs": [{}, {}]}')
    (tmp_path / "info.json").write_text('{"version": 1}')
    assert BENCHMARKS["mmrb2"].count(tmp_path) == 2


def test_gedit_makes_what_will_be_scored(tmp_path):
    write_parquet(tmp_path / "data" / "train-0.parquet", _gedit_rows())
    editor, said = _Editor(), []
    report = lambda *numbers: said.append(numbers)
    gedit.generate(tmp_path / "data", editor, tmp_path / "images", identity=NAME, limit=1, report=report)
    assert len(editor.calls) == 1 and said == [(0, 1), (1, 1)]
    assert gedit.benchmark(tmp_path / "images").count(tmp_path / "data") == 3, "one language"
    pinned = tmp_path / "images/generation.json"
    assert json.loads(pinned.read_text())["sampling"]["steps"] == 50
    write_parquet(tmp_path / "data" / "train-0.parquet", [row | {"instruction": "other"} for row in _gedit_rows()])
    with pytest.raises(InputError, match="images of other settings \\(data"):
        gedit.generate(tmp_path / "data", editor, tmp_path / "images", identity=NAME)
    pinned.write_text(pinned.read_text()[:40])
    with pytest.raises(InputError, match="is damaged"):
        gedit.generate(tmp_path / "data", editor, tmp_path / "images", identity=NAME)


def test_gedit_generation_resumes_and_pins_its_settings(tmp_path):
    write_parquet(tmp_path / "data" / "train-0.parquet", _gedit_rows())
    editor, out = _Editor(), tmp_path / "images"
    assert gedit.generate(tmp_path / "data", editor, out, identity=NAME) == []
    assert editor.calls == [((16, 16, 3), f"do {key}", "rl-eval", seed) for seed, key in enumerate(("k1", "k2", "k3"))]
    (out / "fullset/color_alter/en/k2.png").unlink()
    gedit.generate(tmp_path / "data", editor, out, identity=NAME, samples=2)
    assert editor.calls[3:] == [
        ((16, 16, 3), f"do {key}", "rl-eval", seed) for key, seed in (("k1", 3), ("k2", 1), ("k2", 4), ("k3", 5))
    ]
    with pytest.raises(InputError, match="images of other settings"):
        gedit.generate(tmp_path / "data", editor, out, identity={"editor": "another"})


def test_gedit_scores(tmp_path):
    """Group means 8.0 and (4 + 2) / 2; the figure is the mean over groups."""
    write_parquet(tmp_path / "data" / "train-0.parquet", _gedit_rows())
    bench = gedit.benchmark(tmp_path / "images")
    for group, key, mark in (("color_alter", "k1", 10), ("color_alter", "k2", 5), ("ps_human", "k3", 20)):
        write_png(tmp_path / f"images/fullset/{group}/en/{key}.png", np.full((16, 24, 3), mark * 10, np.uint8))
    results = evaluate(bench, tmp_path / "data", tmp_path / "out", StandInJudge())
    assert _figure(results, "overall") == pytest.approx((8 + 3) / 2, abs=1e-6)
    assert results["tables"]["by group"]["color_alter"]["overall"] == pytest.approx(3)
    assert results["counts"] == {"ok": 3, "invalid": 0, "missing": 0, "broken": 0, "duplicate": 0}


def test_gedit_takes_minima_and_the_best_sample(tmp_path):
    write_parquet(tmp_path / "data.parquet", _gedit_rows()[:1])
    for name, mark in (("k1", 10), ("k1_sample1", 11)):
        write_png(tmp_path / f"images/fullset/color_alter/en/{name}.png", np.full((16, 24, 3), mark, np.uint8))
    bench = gedit.benchmark(tmp_path / "images", samples=2)
    (row,) = bench.rows(tmp_path / "data.parquet")
    base = {"valid": True, "overall": 1.0}
    lines = [
        {"key": row.case.keys[0], "success": 20, "no_overedit": 10, "naturalness": 25, "artifact_free": 22.5, **base},
        {"key": row.case.keys[1], "success": 5, "no_overedit": 25, "naturalness": 2.5, "artifact_free": 25, **base},
    ]
    write_jsonl(tmp_path / "answers.jsonl", lines)
    answers = read_answers(tmp_path / "answers.jsonl")
    results = evaluate_answers(bench, tmp_path / "data.parquet", tmp_path / "out", answers, identity={"model": "o"})
    assert _figure(results, "overall") == pytest.approx(math.sqrt(4 * 9), abs=1e-6)
    assert _figure(results, "semantics") == 4 and _figure(results, "quality") == 9


def test_gedit_answers_of_others_have_plain_keys(tmp_path):
    write_parquet(tmp_path / "data.parquet", _gedit_rows()[:1])
    write_png(tmp_path / "images/fullset/color_alter/en/k1.png", np.zeros((16, 24, 3), np.uint8))
    scores = {"overall": 8.0, "success": 20, "no_overedit": 20, "naturalness": 20, "artifact_free": 20}
    write_jsonl(tmp_path / "answers.jsonl", [{"key": "en/color_alter/k1/0", **scores}])
    bench, answers = gedit.benchmark(tmp_path / "images"), read_answers(tmp_path / "answers.jsonl")
    results = evaluate_answers(bench, tmp_path / "data.parquet", tmp_path / "out", answers, identity={})
    evaluate(bench, tmp_path / "data.parquet", tmp_path / "judged", StandInJudge())
    with pytest.raises(InputError, match="belongs to another evaluation \\(samples: 1 against 2"):
        more = gedit.benchmark(tmp_path / "images", samples=2)
        evaluate(more, tmp_path / "data.parquet", tmp_path / "judged", StandInJudge())
    assert _figure(results, "overall") == 8 and results["problems"]["answers to no row"]["count"] == 0


def test_gedit_reports_a_result_that_is_not_there(tmp_path):
    write_parquet(tmp_path / "data.parquet", _gedit_rows())
    found = list(gedit.benchmark(tmp_path / "images", language="cn").rows(tmp_path / "data.parquet"))
    assert len(found) == 1 and "no result c1.png" in found[0].why
    with pytest.raises(InputError, match="no usable row of gedit"):
        evaluate(gedit.benchmark(tmp_path / "images"), tmp_path / "data.parquet", tmp_path / "out", StandInJudge())
