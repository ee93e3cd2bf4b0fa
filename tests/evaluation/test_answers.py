"""Other judges' answers, comparison of two results, and the grid search."""

import json

import numpy as np
import pytest
from evaluation_data import StandInJudge, mer_row, write_jsonl, write_parquet

from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation import (
    BENCHMARKS,
    compare,
    comparison_table,
    evaluate,
    evaluate_answers,
    read_answers,
    read_results,
)
from spatialreward_jax.evaluation.grid_search import POWERS, SUCCESS, grid_search, heat_map
from spatialreward_jax.evaluation.records import Case, Verdict, verdict_from_json
from spatialreward_jax.evaluation.regions import area
from spatialreward_jax.reward.aggregate import Aggregation

MER = BENCHMARKS["mer"]


@pytest.fixture
def data(tmp_path):
    write_parquet(tmp_path / "data" / "2pair.parquet", [mer_row(f"{i}", [20, 10]) for i in range(6)])
    return tmp_path / "data"


def _answers(path, scores, extra=()):
    """scores: per row (first, second), or None to leave the row's second answer out."""
    lines = [
        {"key": f"2pair/{i}/{j}", "overall": score}
        for i, pair in enumerate(scores)
        for j, score in enumerate(pair)
        if score is not None
    ]
    write_jsonl(path, [*lines, *extra])
    return read_answers(path)


def test_made_up_scores_are_counted(data, tmp_path):
    """Raw texts under the official rules: what they fill in is told; strict parsing calls it invalid."""
    good = '{"edit_region": [], "reasoning": "r", "score": [20, 20]}'
    lines = [{"key": f"2pair/{i}/{j}", "sc": good if j else "no", "pq": good} for i in range(6) for j in range(2)]
    write_jsonl(tmp_path / "a.jsonl", lines)
    for parsing, made_up in (("server", 6), ("strict", 0)):
        answers = read_answers(tmp_path / "a.jsonl", parsing=parsing)
        results = evaluate_answers(MER, data, tmp_path / parsing, answers, identity={})
        problem = results["problems"]["scores made up where an answer gives none (12.5)"]
        assert problem["count"] == made_up and problem["first"][:1] == ["2pair/0/0: 2 of 4"][:made_up]
        assert results["counts"]["invalid"] == (6 - made_up)
        assert ("made up" in (tmp_path / parsing / "report.md").read_text()) == (made_up > 0)


def test_missing_duplicate_broken_and_spare_answers(data, tmp_path):
    scores = [(9, 1), (9, 1), (1, 9), (5, 5), (9, None), (9, 1)]
    extra = [
        {"key": "2pair/0/0", "overall": 0},
        {"key": "nowhere", "overall": 1},
        "{",
        {"key": "2pair/0/1", "overall": 70},
    ]
    results = evaluate_answers(MER, data, tmp_path / "out", _answers(tmp_path / "a.jsonl", scores, extra), identity={})
    assert results["figures"]["accuracy"]["value"] == 0.5 and results["figures"]["accuracy"]["n"] == 6
    assert results["counts"] == {"ok": 5, "invalid": 0, "missing": 1, "broken": 0, "duplicate": 0}
    assert results["answered_only"]["accuracy"] == pytest.approx(3 / 5)
    assert results["problems"]["missing answers"]["first"] == ["2pair/4/1"]
    assert results["problems"]["answers to no row"]["first"] == ["nowhere"]
    assert results["notes"]["duplicate answers (the first one counts)"] == ["2pair/0/0"]
    broken = results["notes"]["broken answer lines"]
    assert len(broken) == 2 and "overall is 70: want a number in 0..10" in broken[1]


def test_raw_texts_are_parsed(tmp_path):
    sc = {
        "edit_region": [{"id": 0, "label": "cup", "bbox_2d": [10, 20, 300, 400]}],
        "reasoning": "<|bbox_0|> a red cup. <|global|> fine.",
        "score": [20, 25],
    }
    pq = {"reasoning": "clean", "score": [25, 15]}
    lines = [
        {"key": "a", "sc": json.dumps(sc), "pq": json.dumps(pq)},
        {"key": "b", "sc": "I cannot say", "pq": json.dumps(pq)},
    ]
    write_jsonl(tmp_path / "a.jsonl", lines)
    found = read_answers(tmp_path / "a.jsonl").verdicts
    assert found["a"].sub_scores() == (20, 25, 25, 15) and found["a"].boxes == ((10, 20, 300, 400),)
    assert found["a"].overall == pytest.approx(((0.6 * 20 + 0.4 * 25) / 2.5) ** 0.8 * 8**0.2)
    assert not found["b"].valid and found["b"].error.startswith("SC: ")
    assert read_answers(tmp_path / "a.jsonl", parsing="server").verdicts["b"].success == 12.5


def test_numbers_are_aggregated_anew_when_asked(tmp_path):
    scores = {"success": 20, "no_overedit": 10, "naturalness": 25, "artifact_free": 15}
    write_jsonl(tmp_path / "a.jsonl", [{"key": "a", "overall": 3, **scores}, {"key": "b", "overall": 4}])
    given = read_answers(tmp_path / "a.jsonl").verdicts
    assert (given["a"].overall, given["b"].overall) == (3, 4)
    found = read_answers(tmp_path / "a.jsonl", aggregation=Aggregation("min"))
    assert found.verdicts["a"].overall == pytest.approx((10 * 15) ** 0.5 / 2.5)
    assert found.verdicts["a"].sub_scores() == (20, 10, 25, 15)
    assert [(line.where, "the min aggregation needs" in line.why) for line in found.broken] == [("a.jsonl:2", True)]


@pytest.mark.parametrize(
    "line",
    [
        '{"key": "a", "overall": 1' + "0" * 400 + "}",
        '{"key": "a", "overall": 1, "neutral": 1e999}',
        "[" * 100_000,
        '{"key": "a", "overall": 1, "regions": [{"bbox_2d": [1, 2, 3]}]}',
        '{"key": "a", "overall": 1, "regions": [{"bbox_2d": [1, 2, 3, 1e999]}]}',
    ],
    ids=["large number", "infinity", "deep", "three sides", "an infinite side"],
)
def test_a_line_that_cannot_be_used_is_told(tmp_path, line):
    write_jsonl(tmp_path / "a.jsonl", [line, {"key": "b", "overall": 2}])
    found = read_answers(tmp_path / "a.jsonl")
    assert list(found.verdicts) == ["b"]
    assert [entry.where for entry in found.broken] == ["a.jsonl:1"] and len(found.broken[0].why) <= 200


def test_far_boxes_have_finite_areas():
    found = verdict_from_json({"overall": 1, "regions": [{"bbox_2d": [-1e299, 0, 1e299, 1e299]}]})
    assert np.isfinite(area(found.boxes[0]))


def test_keys_that_stand_twice_in_an_official_file(tmp_path):
    (tmp_path / "r.json").write_text('{"p": {"scores": [9, 3]}, "p": {"scores": [1, 9]}}')
    found = read_answers(tmp_path / "r.json")
    assert found.verdicts["2pair/p/0"].overall == 9 and found.duplicates == ["2pair/p/0", "2pair/p/1"]


def test_official_result_files(tmp_path):
    results = {
        "k1": {"scores": {"prompt_following": 8.0, "consistency": 6.0, "overall": 7.0}},
        "m1": {"pair_type": 2, "scores": [7.0, 3.0]},
        "bad": {"scores": None},
    }
    (tmp_path / "r.json").write_text(json.dumps(results))
    found = read_answers(tmp_path / "r.json")
    assert found.verdicts["k1"].dimension("prompt_following") == 8 and found.verdicts["k1"].dimension("overall") == 7
    assert found.verdicts["2pair/m1/1"].overall == 3
    assert not found.verdicts["bad"].valid


def test_verdicts_refuse_numbers_that_are_none():
    with pytest.raises(InputError, match="overall is nan"):
        verdict_from_json({"overall": float("nan")})
    with pytest.raises(InputError, match="success is '9'"):
        verdict_from_json({"overall": 3, "success": "9"})
    with pytest.raises(InputError, match="without `overall`"):
        verdict_from_json({"valid": True})
    assert not verdict_from_json({}).valid


def test_compare(data, tmp_path):
    a = evaluate(MER, data, tmp_path / "a", StandInJudge())
    scores = [(9, 1), (1, 9), (1, 9), (5, 5), (9, None), (9, 1)]
    answers = _answers(tmp_path / "b.jsonl", scores)
    b = evaluate_answers(MER, data, tmp_path / "b", answers, identity={"model": "other"})
    with pytest.raises(InputError, match=r"different judges \(aggregation: 'weighted' against None.*--allow"):
        compare(a, b, MER)
    result = compare(
        read_results(tmp_path / "a"), read_results(tmp_path / "b/results.json"), MER, allow_different_identity=True
    )
    accuracy = result["figures"]["accuracy"]
    assert (accuracy["a"], accuracy["only_a"], accuracy["only_b"], accuracy["n"]) == (1, 4, 0, 6)
    assert accuracy["p_mcnemar"] == pytest.approx(2 / 16)
    assert result["figures"]["tau"]["n"] == 5 and result["figures"]["tau"]["p_mcnemar"] is None
    assert "| accuracy | 1.0000 | 0.3333 | +0.6667 |" in comparison_table(result)
    same = compare(a, a, MER)
    assert same["identity_differences"] == [] and same["figures"]["accuracy"]["difference"] == 0


def test_compare_refuses_other_data_and_other_benchmarks(data, tmp_path):
    a = evaluate(MER, data, tmp_path / "a", StandInJudge())
    write_parquet(tmp_path / "less" / "2pair.parquet", [mer_row("0", [20, 10])])
    with pytest.raises(InputError, match="results of different data"):
        compare(a, evaluate(MER, tmp_path / "less", tmp_path / "b", StandInJudge()), MER)
    with pytest.raises(InputError, match="results of mer and mer do not compare: give two of mmrb2"):
        compare(a, a, BENCHMARKS["mmrb2"])
    with pytest.raises(InputError, match="no result file"):
        read_results(tmp_path / "nowhere")
    (tmp_path / "results.json").write_text('{"format": 1}')
    with pytest.raises(InputError, match="no result file"):
        read_results(tmp_path)
    a["cases"] *= 2
    (tmp_path / "results.json").write_text(json.dumps(a))
    with pytest.raises(InputError, match="holds 2pair/0 twice"):
        read_results(tmp_path)
    with pytest.raises(InputError, match="cannot be made a folder"):
        evaluate(MER, data, tmp_path / "results.json", StandInJudge())


def test_grid_search_by_hand():
    """Row 1 is right where success weighs more (w1 > .5), row 2 where quality weighs little (a > .75)."""
    cases = [Case("1", ("p", "q"), {}, ""), Case("2", ("r", "s"), {}, ""), Case("3", ("t", "u"), {}, "")]
    verdicts = {
        "p": Verdict(True, 5, 20, 10, 15, 15),
        "q": Verdict(True, 5, 10, 20, 15, 15),
        "r": Verdict(True, 5, 20, 20, 10, 10),
        "s": Verdict(True, 5, 16, 16, 10 * 1.25**3, 10 * 1.25**3),
        "t": Verdict(True, 5, 20),
        "u": Verdict(True, 5, 10),
    }
    found = grid_search(MER, cases, verdicts)
    assert found["rows"] == 2 and np.shape(found["accuracy"]) == (len(POWERS), len(SUCCESS)) == (8, 8)
    for i, power in enumerate(POWERS):
        for j, weight in enumerate(SUCCESS):
            if abs(weight - 0.5) > 0.01 and abs(power - 0.75) > 0.01:
                assert found["accuracy"][i][j] == ((weight > 0.5) + (power > 0.75)) / 2
    assert found["best"]["accuracy"] == 1 and found["best"]["success"] > 0.5 and found["best"]["semantic_power"] >= 0.75
    picture = heat_map(found)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 4


def test_grid_search_needs_sub_scores():
    with pytest.raises(InputError, match="found none"):
        grid_search(MER, [Case("1", ("p", "q"), {}, "")], {"p": Verdict(True, 5), "q": Verdict(True, 4)})


def test_results_are_written_where_nothing_can_be_searched(data, tmp_path):
    answers = _answers(tmp_path / "b.jsonl", [(9, 1)] * 6)
    results = evaluate_answers(MER, data, tmp_path / "out", answers, identity={}, search=True)
    assert "found none" in results["notes"]["no grid search"] and "grid_search" not in results
    assert (tmp_path / "out/report.md").is_file()


def test_grid_search_is_written(data, tmp_path):
    results = evaluate(MER, data, tmp_path / "out", StandInJudge(), search=True)
    assert results["grid_search"]["accuracy"] == 1
    assert (tmp_path / "out/grid_search.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "out/grid_search.json").read_text())["rows"] == 6
