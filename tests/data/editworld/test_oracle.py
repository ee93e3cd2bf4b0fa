"""The oracle against the rule's exact scores: on rendered truth, on known failures, and between them."""

import dataclasses
import itertools

import numpy as np
import PIL.Image
import pytest

from spatialreward_jax.data import editworld
from spatialreward_jax.data.editworld.oracle import Oracle, oracle_scores
from spatialreward_jax.errors import InputError
from spatialreward_jax.reward.aggregate import Aggregation
from spatialreward_jax.reward.types import Edit


def _sample(index, kind, side=64):
    return editworld.sample_edit("validation", index, side=side, kinds=(kind,))


@pytest.mark.parametrize("kind", editworld.TASKS)
def test_rendered_truth_and_nothing_done(kind):
    sample = _sample(2, kind)
    np.testing.assert_allclose(oracle_scores(editworld.render(sample.target), sample), 25, atol=1.5)
    np.testing.assert_allclose(oracle_scores(editworld.render(sample.source), sample), (0, 25, 25, 25), atol=1.5)


@pytest.mark.parametrize("failure", editworld.FAILURES)
def test_known_failures(failure):
    made = (
        editworld.make_candidate(sample, failure, np.random.default_rng(index))
        for index in itertools.count()
        for sample in [editworld.sample_edit("validation", index)]
    )
    candidates = list(itertools.islice(filter(None, made), 8))  # not every edit allows every failure
    assert {c.sample.source.side for c in candidates} == {64, 96}
    errors = [np.subtract(oracle_scores(c.image(), c.sample), c.scores) for c in candidates]
    assert np.abs(errors).mean() < 1.5 and np.abs(errors).mean(0).max() < 4, np.abs(errors).mean(0)


def test_another_place_in_the_cell_is_as_good():
    sample = _sample(0, "add")
    op = sample.ops[0]
    moved = dataclasses.replace(op.after, x=op.after.x + 0.015, y=op.after.y - 0.01)
    other = dataclasses.replace(sample, ops=(dataclasses.replace(op, after=moved),))
    assert oracle_scores(editworld.render(other.target), sample).success > 24


def test_half_a_change_earns_a_part():
    sample = _sample(1, "recolor")
    before, after = (editworld.render(scene).astype(float) for scene in (sample.source, sample.target))
    success = [
        oracle_scores(np.rint(before + t * (after - before)).astype(np.uint8), sample).success for t in (0, 0.5, 1)
    ]
    assert success[0] < 1 and success[0] < success[1] < success[2] and success[2] > 24


def test_nonsense_scores_low():
    sample = _sample(0, "recolor")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for image in (noise, np.zeros((64, 64, 3), np.uint8)):
        scores = oracle_scores(image, sample)
        assert np.isfinite(scores).all() and scores.success < 13 and scores.no_overedit < 5


@pytest.mark.parametrize("kind", editworld.TASKS)
def test_a_picture_of_one_colour_earns_nothing(kind):
    """Nothing stands in it, so that it would fulfil every removal, and no flaw can be seen in it."""
    grain = np.random.default_rng(0).normal(0, 2, (64, 64, 3))
    for index, level in ((0, 0), (1, 128), (2, 255)):
        sample = _sample(index, kind)
        assert max(oracle_scores(np.full((64, 64, 3), level, np.uint8), sample)) < 1e-3
        grainy = np.clip(np.rint(level + grain), 0, 255).astype(np.uint8)
        four = oracle_scores(grainy, sample)
        assert Aggregation()(four[:2], four[2:]).reward < 0.3, "an edit that does nothing has 0.48"


def test_backend_finds_the_truth_of_resized_sources(tmp_path):
    index = editworld.write_requests(tmp_path / "set", "validation", 3, seed=5)
    oracle = Oracle.from_requests(index)
    edits, expected = [], []
    for sample in editworld.read_truths(index):
        half = [
            PIL.Image.fromarray(editworld.render(scene)).resize((64, 64), PIL.Image.Resampling.LANCZOS)
            for scene in (sample.source, sample.target)
        ]
        edits += [Edit(half[0], half[1], sample.instruction), Edit(half[0], half[0], sample.instruction)]
        expected += [True, False]
    graded = oracle(edits, None)
    for grade, good in zip(graded, expected):
        assert (grade.reward > 0.85) if good else (grade.reward < 0.55)
        assert set(grade.measures) == {"success", "no_overedit", "naturalness", "artifact_free"}
    with pytest.raises(InputError, match="does not know"):
        oracle([Edit(np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64, 3), np.uint8), "Make it so")], None)
