"""What wrong boxes do to the reward: the judge's answers are begun with the true regions, moved by a known error.

    python -m spatialreward_jax.studies.box_errors --model=embedded --error=0.15 --out=DIR

Every side of every box moves by a normal error of --error times the box's width or height. The judge then reasons and
scores on its own. OUT/box_errors.json: bias and standard deviation of the reward against the one with exact boxes, and
how well either ranks.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import flags

from spatialreward_jax import cli
from spatialreward_jax.data.editworld import Candidate, EditRegion, answer_opening, ranking, render
from spatialreward_jax.errors import InputError
from spatialreward_jax.reward.judge import RewardModel
from spatialreward_jax.reward.protocol import questions, read_answers, read_edits
from spatialreward_jax.reward.types import Edit


def moved(region: EditRegion, error: float, side: int, rng: np.random.Generator) -> EditRegion:
    """A region whose four sides moved by normal errors, ordered, inside the picture and at least a pixel wide."""
    x0, y0, x1, y1 = region.box
    sides = np.array(region.box) + error * rng.normal(size=4) * np.array([x1 - x0, y1 - y0] * 2)
    (left, right), (top, bottom) = sorted(sides[0::2]), sorted(sides[1::2])
    left, top = (int(np.clip(round(v), 0, side - 1)) for v in (left, top))
    right, bottom = (int(np.clip(round(v), low + 1, side)) for v, low in ((right, left), (bottom, top)))
    return region._replace(box=(left, top, right, bottom))


def rewards(model: RewardModel, candidates: Sequence[Candidate], error: float, rng: np.random.Generator) -> np.ndarray:
    """float64 [N], NaN where an answer could not be read. Raises InputError for a judge with constrained answers."""
    edits = read_edits([Edit(render(c.sample.source), c.image(), c.sample.instruction) for c in candidates])
    asked = []
    for edit, candidate in zip(edits, candidates):
        side = candidate.sample.source.side
        consistency, quality = questions(edit, model.templates)
        opening = answer_opening([moved(r, error, side, rng) for r in candidate.regions], side)
        asked += [dataclasses.replace(consistency, opening=opening), quality]
    replies = model.answerer.answer(asked)
    scores = [
        read_answers(*replies[2 * i : 2 * i + 2], edit.edited.shape[:2], aggregation=model.aggregation)
        for i, edit in enumerate(edits)
    ]
    return np.array([score.reward if score.valid else np.nan for score in scores])


def compare(exact: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    """Rewards [pairs, 2] with exact and with wrong boxes, the better edit first -> the figures of the program.

    Ties rank wrongly, as in the benchmarks; a pair counts where all four answers could be read.
    """
    readable = np.isfinite(exact).all(1) & np.isfinite(wrong).all(1)
    if not readable.any():
        raise InputError("no answer could be read: this judge does not speak the protocol")
    exact, wrong = exact[readable], wrong[readable]
    apart = wrong - exact
    return {
        "pairs": int(readable.sum()),
        "bias": float(apart.mean()),
        "deviation": float(apart.std()),
        "changed": float((apart != 0).mean()),
        "right_exact": float((exact[:, 0] > exact[:, 1]).mean()),
        "right_wrong": float((wrong[:, 0] > wrong[:, 1]).mean()),
    }


def define_flags() -> None:
    """The program's flags; not at import, so that programs can import each other."""
    flags.DEFINE_string("model", "embedded", "Judge: a folder, or embedded.")
    flags.DEFINE_float("error", 0.15, "Standard deviation of a side's error, as a share of the box.")
    flags.DEFINE_integer("pairs", 128, "Pairs of edits of the test split.")
    flags.DEFINE_integer("seed", 0, "Of the pairs and of the errors.")
    flags.DEFINE_string("out", "", "Folder of the result.")


def main(_argv: list[str]) -> None:
    """Scores the same edits with exact and with wrong boxes."""
    given = flags.FLAGS
    if not given.out or given.pairs < 1 or given.error < 0:
        raise InputError("give --out=FOLDER, --pairs of at least 1 and --error of at least 0")
    model = RewardModel.from_pretrained(given.model)
    candidates = [c for index in range(given.pairs) for c in ranking("test", index, 2, given.seed)]
    rng = np.random.default_rng([given.seed, 11])
    exact, wrong = (rewards(model, candidates, error, rng).reshape(-1, 2) for error in (0.0, given.error))
    found = {"error": given.error, "seed": given.seed} | compare(exact, wrong)
    out = pathlib.Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "box_errors.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found))


if __name__ == "__main__":
    define_flags()
    cli.run(main)
