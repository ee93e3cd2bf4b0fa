"""The oracle against the rule's exact scores: on rendered truth, on known failures, and between them."""

import dataclasses

import numpy as np
import PIL.Image
import pytest

from spatialreward_jax.data import editworld
from spatialreward_jax.data.editworld.oracle import Oracle, oracle_scores
from spatialreward_jax.errors import InputError
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
    errors = []
    for index in range(4):
        sample = editworld.sample_edit("validation", index, side=64)
        if candidate := editworld.make_candidate(sample, failure, np.random.default_rng(index)):
            errors.append(np.abs(np.subtract(oracle_scores(candidate.image(), sample), candidate.scores)))
    assert not errors or np.mean(errors) < 1.5


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
