"""Search of the aggregation weights: accuracy for each semantic power a and success weight w1 (the paper's figure 10).

Weights must be chosen on validation data; a best cell found on a benchmark is no result on that benchmark.
"""

import json
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation.benchmark import Benchmark
from spatialreward_jax.evaluation.records import Case, Verdict
from spatialreward_jax.evaluation.statistics import stratified_mean
from spatialreward_jax.io.images import write_png
from spatialreward_jax.reward.aggregate import Aggregation
from spatialreward_jax.reward.types import SCORE_RANGE

POWERS = tuple(round(0.60 + 0.05 * i, 2) for i in range(8))
SUCCESS = tuple(round(0.40 + 0.05 * i, 2) for i in range(8))
_CELL, _MARGIN = 64, 72
_COLD, _WARM = np.array([68, 1, 84]), np.array([253, 231, 37])


def grid_search(
    benchmark: Benchmark,
    cases: Iterable[Case],
    verdicts: Mapping[str, Verdict],
    *,
    powers: tuple[float, ...] = POWERS,
    success: tuple[float, ...] = SUCCESS,
) -> dict:
    """The headline accuracy for each pair of weights, over rows whose edits have all four sub-scores.

    -> {"powers", "success", "accuracy" [power][success], "best": {...}, "rows"}; the best cell is the first of
    equals, powers ascending. Raises InputError if the benchmark compares nothing or no row has the sub-scores.
    """
    if benchmark.grid is None:
        raise InputError(
            f"--grid_search compares edits, {benchmark.name} scores single ones: use mer, mmrb2 or editscore-editreward"
        )
    chosen = [
        (case, subs)
        for case in cases
        if all(case.labels.get(k) == v for k, v in benchmark.grid.items())
        and all(map(_in_range, subs := [verdicts[k].sub_scores() if k in verdicts else None for k in case.keys]))
    ]
    if not chosen:
        raise InputError("--grid_search needs rows whose edits all have four sub-scores, and found none")
    strata = [case.labels.get(benchmark.figures[0].strata, "") for case, _ in chosen]
    table = [
        [
            stratified_mean(_correct(benchmark, chosen, Aggregation(success=w, semantic_power=a)), strata)
            for w in success
        ]
        for a in powers
    ]
    row, column = np.unravel_index(np.argmax(table), np.shape(table))
    return {
        "rows": len(chosen),
        "powers": list(powers),
        "success": list(success),
        "accuracy": [[round(value, 6) for value in line] for line in table],
        "best": {"semantic_power": powers[row], "success": success[column], "accuracy": round(table[row][column], 6)},
    }


def _in_range(sub: tuple[float, ...] | None) -> bool:
    return sub is not None and all(0 <= value <= SCORE_RANGE for value in sub)


def _correct(benchmark: Benchmark, chosen, aggregation: Aggregation) -> list[float]:
    right = []
    for case, subs in chosen:
        found = [Verdict(True, aggregation(sub[:2], sub[2:]).overall, *sub) for sub in subs]
        right.append(benchmark.values(case, found)["correct"])
    return right


def write_grid(folder: pathlib.Path, result: dict) -> None:
    """Writes `grid_search.json` and the heat map `grid_search.png` into `folder`."""
    (folder / "grid_search.json").write_text(json.dumps(result, indent=2) + "\n")
    write_png(folder / "grid_search.png", heat_map(result))


def heat_map(result: dict) -> np.ndarray:
    """The grid as a picture, uint8 [H, W, 3]: powers downwards, success weights to the right, the best cell framed."""
    powers, success, values = result["powers"], result["success"], np.array(result["accuracy"])
    size = (_MARGIN + _CELL * len(success) + 8, _MARGIN + _CELL * len(powers) + 8)
    picture = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    draw.text((size[0] / 2, 14), f"accuracy by weights, {result['rows']} rows", fill="black", font=font, anchor="mm")
    draw.text((_MARGIN / 2, _MARGIN - 16), "a \\ w1", fill="black", font=font, anchor="mm")
    spread = np.ptp(values)
    for i, power in enumerate(powers):
        y = _MARGIN + _CELL * i
        draw.text((_MARGIN / 2, y + _CELL / 2), f"{power:.2f}", fill="black", font=font, anchor="mm")
        for j, weight in enumerate(success):
            x = _MARGIN + _CELL * j
            if i == 0:
                draw.text((x + _CELL / 2, _MARGIN - 16), f"{weight:.2f}", fill="black", font=font, anchor="mm")
            share = (values[i, j] - values.min()) / spread if spread else 0.5
            color = tuple(np.round(_COLD + share * (_WARM - _COLD)).astype(int).tolist())
            best = (power, weight) == (result["best"]["semantic_power"], result["best"]["success"])
            box = (x, y, x + _CELL - 2, y + _CELL - 2)
            draw.rectangle(box, fill=color, outline="red" if best else None, width=4)
            ink = "black" if share > 0.5 else "white"
            draw.text((x + _CELL / 2 - 1, y + _CELL / 2 - 1), f"{values[i, j]:.3f}", fill=ink, font=font, anchor="mm")
    return np.asarray(picture)
