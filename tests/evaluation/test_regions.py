"""Region statistics on boxes whose overlaps are known."""

import pytest

from spatialreward_jax.evaluation import regions
from spatialreward_jax.evaluation.records import Case, Verdict

A, B, HALF = (0, 0, 100, 100), (500, 500, 700, 600), (0, 0, 100, 50)


def test_iou_and_areas():
    assert regions.iou(A, A) == 1 and regions.iou(A, B) == 0
    assert regions.iou(A, HALF) == pytest.approx(0.5)
    assert regions.iou((0, 0, 100, 100), (50, 50, 150, 150)) == pytest.approx(2500 / 17500)
    assert regions.area((10, 10, 5, 20)) == 0 and regions.iou((5, 5, 5, 5), (5, 5, 5, 5)) == 0
    assert regions.union_area([A, HALF, B]) == pytest.approx((10000 + 20000) / 1e6)
    assert regions.union_area([(0, 0, 100, 100), (50, 50, 150, 150)]) == pytest.approx(17500 / 1e6)
    assert regions.union_iou([], []) == 1 and regions.union_iou([A], []) == 0
    assert regions.union_iou([HALF], [A]) == pytest.approx(0.5)
    apart = [((0, 0, x + 0.1, y + 0.3), (500.7, 0, 500.7 + y, x)) for x in range(1, 40) for y in range(1, 40)]
    assert all(0 <= regions.union_iou([a], [b]) < 1e-12 for a, b in apart), "sums that round are no negative overlap"


def test_matching_uses_each_answer_once():
    assert regions.match([A], [A, HALF]) == [1.0, 0.0]
    assert regions.match([HALF, A], [A, HALF]) == [1.0, 1.0]
    assert regions.match([], [A]) == [0.0]


def test_sides_in_place():
    near, far = (0, 0, 120, 100), (21, 0, 100, 100)
    assert regions.sides_in_place([A], [A]) == regions.sides_in_place([near], [A]) == 4
    assert regions.sides_in_place([far], [A]) == 3
    assert regions.sides_in_place([B, A], [A]) == 4, "a box that no true one is paired with has no side in place"
    assert regions.sides_in_place([A], [B]) == regions.sides_in_place([], [A]) == 0


def _verdict(*boxes, flagged=0):
    return Verdict(True, 5.0, boxes=boxes, flagged=flagged)


def test_statistics_without_truth():
    cases = [Case("1", ("a", "b"), {}, ""), Case("2", ("a", "c"), {}, "")]
    verdicts = {"a": _verdict(A), "b": _verdict(A, (200, 10, 100, 20), flagged=1), "c": Verdict(False, error="none")}
    found = regions.region_statistics(cases, verdicts, {})
    assert found == {
        "answers": 2,
        "with_regions": 1.0,
        "regions_per_answer": 1.5,
        "ill_formed_boxes": pytest.approx(1 / 3, abs=1e-6),
        "mean_area": pytest.approx(2 * 0.01 / 3, abs=1e-6),
        "mean_covered": pytest.approx(0.01),
    }


def test_statistics_with_truth():
    cases = [
        Case("1", ("a", "b"), {}, "", truth=((A,), ())),
        Case("2", ("c", "d"), {}, "", truth=((A, B), None)),
    ]
    verdicts = {"a": _verdict(HALF), "b": _verdict(), "c": _verdict(B), "d": _verdict(A)}
    found = regions.region_statistics(cases, verdicts, {"1": 1.0, "2": 0.0})
    assert found["edits_with_truth"] == 3
    assert found["matched_iou"] == pytest.approx((0.5 + 0 + 1) / 3, abs=1e-6)
    assert found["recall_at_50"] == pytest.approx(2 / 3, abs=1e-6) and found["precision_at_50"] == 1
    assert found["boundary_precision"] == 7 / 8
    assert found["empty_when_nothing_was_edited"] == 1
    seen_for_nothing = regions.region_statistics(cases[:1], verdicts | {"b": _verdict(B)}, {})
    assert seen_for_nothing["precision_at_50"] == 1 / 2 and seen_for_nothing["boundary_precision"] == 3 / 8
    # row 1: union IoU (0.5 + 1) / 2, ranked rightly; row 2: 20000 / 30000, ranked wrongly
    assert found["accuracy_by_iou"]["0.75-1"] == {"rows": 1, "accuracy": 1.0}
    assert found["accuracy_by_iou"]["0.5-0.75"] == {"rows": 1, "accuracy": 0.0}
