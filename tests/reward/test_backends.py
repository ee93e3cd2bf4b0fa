"""A weighted sum whose every part is reported and which no invalid sample enters."""

import json
import threading

import numpy as np
import pytest

from spatialreward_jax.errors import InputError
from spatialreward_jax.reward.backends import Divided, Graded, GuardsBackend, JudgeBackend, WeightedReward
from spatialreward_jax.reward.protocol import read_answers
from spatialreward_jax.reward.types import Edit

IMAGE = np.full((32, 32, 3), 90, np.uint8)
EDITS = [Edit(IMAGE, IMAGE, "a"), Edit(IMAGE, IMAGE, "b"), Edit(IMAGE, IMAGE, "c")]
SC = json.dumps({"edit_region": [], "reasoning": "", "score": [20, 10]})
PQ = json.dumps({"reasoning": "", "score": [15, 5]})


class Judge:
    """Cannot read the second edit."""

    def score(self, edits):
        return [read_answers("cut off" if edit.instruction == "b" else SC, PQ, (32, 32)) for edit in edits]


def constant(*rewards):
    return lambda edits, scores: [Graded(reward, {"extra": 1.0}) for reward in rewards]


def test_weighted_sum_and_parts():
    rewards = WeightedReward({"judge": JudgeBackend(Judge()), "guards": GuardsBackend()}, {"judge": 0.8, "guards": 0.2})
    out = rewards(EDITS)
    judged = Judge().score(EDITS)[0].reward
    assert out.valid.tolist() == [True, False, True]
    assert out.reward[0] == pytest.approx(0.8 * judged + 0.2 * 1.0)
    assert np.isnan(out.reward[1]) and np.isnan(out.parts["judge/reward"][1])
    assert out.parts["guards/reward"].tolist() == [1, 1, 1]  # every part is there, counted or not
    assert np.isnan(out.parts["guards/kept"][1]) and np.isfinite(out.parts["guards/clean"]).all()
    assert {"judge/overall", "judge/success", "guards/colour_shift"} <= set(out.parts)
    assert out.scores[1].errors


def test_a_backend_of_weight_zero_is_logged_and_counts_for_nothing():
    out = WeightedReward({"a": constant(0.5, 0.25), "b": constant(None, 1.0)}, {"a": 2.0, "b": 0.0})(EDITS[:2])
    assert out.valid.all() and out.reward.tolist() == [1.0, 0.5]
    assert np.isnan(out.parts["b/reward"][0]) and out.parts["b/extra"].tolist() == [1, 1]
    assert out.scores is None


def test_what_is_logged_alone_is_graded_while_the_sum_is_used():
    used = threading.Event()

    def logged(edits, scores):
        assert used.wait(60), "the sum had to wait"
        return [
            Graded(float(score.valid), {"number": float(ord(edit.instruction))}) for edit, score in zip(edits, scores)
        ]

    backends = {"truth": Divided(logged), "judge": JudgeBackend(Judge())}
    out = WeightedReward(backends, {"truth": 0.0, "judge": 1.0})(EDITS)
    assert out.valid.tolist() == [True, False, True]
    used.set()
    assert out.parts["truth/number"].tolist() == [97, 98, 99] and out.parts["truth/reward"].tolist() == [1, 0, 1]


def test_what_is_logged_alone_fails_where_it_is_read():
    def broken(edits, scores):
        raise InputError("these edits are unknown")

    few = Divided(lambda edits, scores: [Graded(1.0)])
    for backend, error, why in ((Divided(broken), InputError, "are unknown"), (few, ValueError, "graded 1 of 3")):
        out = WeightedReward({"truth": backend, "b": constant(1.0, 1.0, 1.0)}, {"truth": 0.0, "b": 1.0})(EDITS)
        with pytest.raises(error, match=why):
            dict(out.parts)


@pytest.mark.parametrize(
    ("weights", "asked"),
    [
        ({"judge": 0.0, "guards": 0.0, "oracle": 1.0}, ["guards", "oracle"]),
        ({"judge": 0.0, "guards": 0.1, "oracle": 1.0}, ["judge", "guards", "oracle"]),
        ({"judge": 0.5, "guards": 0.0, "oracle": 0.0}, ["judge", "guards", "oracle"]),
        ({"oracle": 1.0}, ["oracle"]),
    ],
)
def test_phases_ask_a_judge_only_where_it_matters(weights, asked):
    seen = []
    backends = {
        name: lambda edits, scores, name=name: seen.append(name) or constant(1.0)(edits, scores) for name in weights
    }
    whole = WeightedReward(backends, weights)
    out, full = whole.of_phases()(EDITS[:1]), seen.copy()
    assert full == asked and out.reward.tolist() == whole(EDITS[:1]).reward.tolist()
    assert seen == asked + list(weights), "an evaluation asks all"


def test_bad_weights():
    backends = {"a": constant(1.0)}
    for weights in ({"a": -1.0}, {"a": 0.0}, {"a": float("nan")}):
        with pytest.raises(InputError, match="one positive"):
            WeightedReward(backends, weights)
    with pytest.raises(InputError, match="use the same names"):
        WeightedReward(backends, {"b": 1.0})
    with pytest.raises(ValueError, match="graded 1 of 3"):
        WeightedReward(backends, {"a": 1.0})(EDITS)
