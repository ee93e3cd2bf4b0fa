"""Several scores of one edit as one: the self-ensemble of EditScore (`num_pass`, reduction `average_last`)."""

import dataclasses
from collections.abc import Sequence

from spatialreward_jax.reward.types import NUMBERS, Score


def mean_score(scores: Sequence[Score]) -> Score:
    """The means of all numbers over the valid scores; words and regions are those of the first valid one.

    Every score's `overall` is worked out before the mean is taken. Answers that could not be read count in no mean: a
    warning says how many they were. Where all of them are invalid, so is the result.
    """
    valid = [score for score in scores if score.valid]
    if not valid or len(scores) == 1:
        return scores[0]
    lost = sorted({error for score in scores for error in score.errors})
    warnings = (f"{len(scores) - len(valid)} of {len(scores)} answers count not: {'; '.join(lost)}",) if lost else ()
    return dataclasses.replace(
        valid[0],
        neutral=max(score.neutral for score in valid),
        warnings=valid[0].warnings + warnings,
        **{name: sum(getattr(score, name) for score in valid) / len(valid) for name in NUMBERS},
    )
