"""reward.json: answers to numbers by the official server's rules, and both of its aggregations."""

import math
from typing import Any

from spatialreward_jax.evaluation.golden_checks.case import Case
from spatialreward_jax.evaluation.golden_checks.nets import Goldens
from spatialreward_jax.reward.aggregate import Aggregation
from spatialreward_jax.reward.parsing import parse
from spatialreward_jax.reward.types import SCORE_RANGE


def check(case: Case, goldens: Goldens) -> None:
    """Checks every field of every case; a field has one row."""
    del goldens
    if case.input("score_range") != SCORE_RANGE:
        case.fail("score_range", f"ours is {SCORE_RANGE}")
    weights = case.input("weights")
    weighted = Aggregation("weighted", weights["w1"], weights["w3"], weights["a"])
    least = Aggregation("min")
    rows: dict[str, list] = {}
    for one in case.input("cases"):
        ours = _answer(one, weighted, least)
        for field in {*one, *ours} - {"id", "note", "sc_text", "pq_text"}:
            rows.setdefault(field, []).append(_difference(ours.get(field), one.get(field)))
    for field, errors in sorted(rows.items()):
        worst = max(errors)
        if worst == math.inf:
            case.fail(f"cases.{field}", f"{errors.count(math.inf)} of {len(errors)} cases differ or are not known")
        else:
            case.add(f"cases.{field}", worst, float(case.tolerance(field)))


def _answer(one: dict[str, Any], weighted: Aggregation, least: Aggregation) -> dict[str, Any]:
    out = {}
    for stream in ("sc", "pq"):
        parsed = parse(one[f"{stream}_text"], "server", regions=stream == "sc")
        out |= {f"{stream}_parsed": parsed.found, f"{stream}_rule": parsed.rule, f"{stream}_scores": parsed.scores}
    overall = weighted(out["sc_scores"], out["pq_scores"])
    smallest = least(out["sc_scores"], out["pq_scores"])
    out |= {"sc": overall.semantic, "pq": overall.quality}
    return out | {"reward_weighted": overall.reward, "reward_min": smallest.reward}


def _difference(ours: Any, theirs: Any) -> float:
    """Largest absolute difference of numbers or lists of numbers; infinite where they do not correspond."""
    if isinstance(theirs, list) and isinstance(ours, list | tuple) and len(ours) == len(theirs):
        return max(map(_difference, ours, theirs), default=0.0)
    if isinstance(theirs, int | float) and isinstance(ours, int | float):
        return 0.0 if ours == theirs else abs(ours - theirs)
    return 0.0 if ours == theirs and ours is not None else math.inf
