"""Boxes moved by known errors, and what is said about rewards."""

import json

import numpy as np
import pytest

from spatialreward_jax.data.editworld import EditRegion, answer_opening, consistency_answer, ranking
from spatialreward_jax.errors import InputError
from spatialreward_jax.studies.box_errors import compare, moved


def test_no_error_moves_nothing_and_errors_stay_in_the_picture():
    region, rng = EditRegion("red ring", (3, 10, 13, 60)), np.random.default_rng(0)
    assert moved(region, 0.0, 64, rng) == region
    boxes = np.array([moved(region, 0.3, 64, rng).box for _ in range(2000)])
    assert boxes.min() >= 0 and boxes.max() <= 64
    assert (boxes[:, 0] < boxes[:, 2]).all() and (boxes[:, 1] < boxes[:, 3]).all()
    assert np.std(boxes[:, 2]) == pytest.approx(0.3 * 10, rel=0.1), "errors are shares of the box"


def test_an_opening_is_how_the_true_answer_begins():
    for index in range(8):
        for candidate in ranking("test", index, 2):
            opening = answer_opening(candidate.regions, candidate.sample.source.side)
            answer = consistency_answer(candidate)
            assert answer.startswith(opening)
            assert json.loads(opening + '"}')["reasoning"] == ""


def test_figures_by_hand():
    exact = np.array([[0.8, 0.5], [0.6, 0.6], [0.9, np.nan]])
    wrong = np.array([[0.7, 0.8], [0.6, 0.4], [0.9, 0.1]])
    found = compare(exact, wrong)
    assert found["pairs"] == 2 and found["changed"] == 0.75
    assert found["bias"] == pytest.approx((-0.1 + 0.3 + 0 - 0.2) / 4)
    assert found["deviation"] == pytest.approx(np.std([-0.1, 0.3, 0, -0.2]))
    assert (found["right_exact"], found["right_wrong"]) == (0.5, 0.5), "a tie ranks wrongly"
    with pytest.raises(InputError, match="no answer could be read"):
        compare(exact[2:], wrong[2:])
