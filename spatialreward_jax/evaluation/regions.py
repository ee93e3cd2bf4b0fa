"""How good are the regions that a judge names? Validity, count and area always; overlap where the truth is known.

Boxes are (x1, y1, x2, y2) in 0..1000 of the edited image.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from spatialreward_jax.evaluation.records import Box, Case, Verdict

_HIT = 0.5
_NEAR = 20  # thousandths of the image's side
_BINS = ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))


def area(box: Box) -> float:
    """Area as a share of the image; 0 for a box without extent."""
    x1, y1, x2, y2 = box
    return max(0.0, x2 - x1) * max(0.0, y2 - y1) / 1e6


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes; 0 where both are empty."""
    both = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = area(a) + area(b) - both
    return both / union if union > 0 else 0.0


def union_area(boxes: Sequence[Box]) -> float:
    """Area covered by at least one box, as a share of the image (exact, by coordinate compression)."""
    boxes = [box for box in boxes if area(box) > 0]
    xs = sorted({v for box in boxes for v in (box[0], box[2])})
    ys = sorted({v for box in boxes for v in (box[1], box[3])})
    covered = np.zeros((max(len(xs) - 1, 0), max(len(ys) - 1, 0)), bool)
    for x1, y1, x2, y2 in boxes:
        covered[xs.index(x1) : xs.index(x2), ys.index(y1) : ys.index(y2)] = True
    return float(np.diff(xs) @ covered @ np.diff(ys)) / 1e6 if boxes else 0.0


def union_iou(answered: Sequence[Box], true: Sequence[Box]) -> float:
    """IoU of the two covered areas; 1 if both are empty ("nothing was edited", rightly), 0 if one is."""
    a, b, together = union_area(answered), union_area(true), union_area([*answered, *true])
    if together == 0:
        return 1.0
    return min(max((a + b - together) / together, 0.0), 1.0)  # the sums round


def pairs(answered: Sequence[Box], true: Sequence[Box]) -> list[tuple[int, int, float]]:
    """(answered, true, IoU) by greedy matching, largest overlap first; each box at most once, none without overlap."""
    overlaps = sorted(((iou(a, t), i, j) for i, a in enumerate(answered) for j, t in enumerate(true)), reverse=True)
    found, used, taken = [], set(), set()
    for value, i, j in overlaps:
        if value > 0 and i not in used and j not in taken:
            used.add(i)
            taken.add(j)
            found.append((i, j, value))
    return found


def match(answered: Sequence[Box], true: Sequence[Box]) -> list[float]:
    """IoU of each true box with the answered box that `pairs` gives it, 0 if none."""
    got = dict.fromkeys(range(len(true)), 0.0) | {j: value for _, j, value in pairs(answered, true)}
    return list(got.values())


def sides_in_place(answered: Sequence[Box], true: Sequence[Box]) -> int:
    """How many sides of the answered boxes lie within 20 thousandths of those of the true boxes paired with them."""
    return sum(abs(x - y) <= _NEAR for i, j, _ in pairs(answered, true) for x, y in zip(answered[i], true[j]))


def region_statistics(
    cases: Iterable[Case], verdicts: Mapping[str, Verdict], correct: Mapping[str, float]
) -> dict[str, float | int | dict | None]:
    """Figures over all readable answers of the cases (each edit once).

    `correct`: 1 or 0 per case id, for `accuracy_by_iou`: how often a row is ranked rightly, by the mean union IoU of
    its edits; this shows how box errors propagate into verdicts. Figures that need the truth are absent when no row
    has it.
    """
    seen, read, overlaps, per_case = set(), [], [], {}
    matched, answered_count, true_count, in_place = [], 0, 0, 0
    empty_right = [0, 0]
    for case in cases:
        values = []
        for index, key in enumerate(case.keys):
            verdict, true = verdicts.get(key), case.true_boxes(index)
            if verdict is None or not verdict.valid:
                continue
            if true is not None:
                values.append(union_iou(verdict.boxes, true))
            if key in seen:
                continue
            seen.add(key)
            read.append(verdict)
            if true is None:
                continue
            overlaps.append(values[-1])
            answered_count += len(verdict.boxes)
            if true:
                matched += match(verdict.boxes, true)
                in_place += sides_in_place(verdict.boxes, true)
                true_count += len(true)
            else:
                empty_right[0] += not verdict.boxes
                empty_right[1] += 1
        if values and case.id in correct:
            per_case[case.id] = (float(np.mean(values)), correct[case.id])
    found = {**_shape(read)}
    if overlaps:
        hits = sum(value >= _HIT for value in matched)
        found |= {
            "edits_with_truth": len(overlaps),
            "union_iou": _mean(overlaps),
            "matched_iou": _mean(matched),
            "recall_at_50": _share(hits, true_count),
            "precision_at_50": _share(hits, answered_count),
            "boundary_precision": _share(in_place, 4 * answered_count),
            "empty_when_nothing_was_edited": _share(*empty_right),
            "accuracy_by_iou": _by_iou(per_case.values()),
        }
    return found


def _shape(verdicts: Sequence[Verdict]) -> dict[str, float | int | None]:
    boxes = [box for verdict in verdicts for box in verdict.boxes]
    flagged = sum(verdict.flagged for verdict in verdicts)
    return {
        "answers": len(verdicts),
        "with_regions": _share(sum(bool(v.boxes) for v in verdicts), len(verdicts)),
        "regions_per_answer": _share(len(boxes), len(verdicts)),
        "ill_formed_boxes": _share(max(flagged, sum(not _well_formed(box) for box in boxes)), len(boxes)),
        "mean_area": _mean([area(box) for box in boxes]),
        "mean_covered": _mean([union_area(v.boxes) for v in verdicts if v.boxes]),
    }


def _well_formed(box: Box) -> bool:
    x1, y1, x2, y2 = box
    return all(math.isfinite(v) for v in box) and 0 <= x1 < x2 <= 1000 and 0 <= y1 < y2 <= 1000


def _by_iou(rows: Iterable[tuple[float, float]]) -> dict[str, dict[str, float | int | None]]:
    rows, table = list(rows), {}
    for low, high in _BINS:
        hits = [right for value, right in rows if low <= value < high or value == high == 1.0]
        table[f"{low:g}-{high:g}"] = {"rows": len(hits), "accuracy": _mean(hits)}
    return table


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 6) if len(values) else None


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 6) if whole else None
