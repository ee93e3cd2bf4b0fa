"""Reading pictures back as operations, flaws and scores: on candidates, whose truth is known."""

import pytest

from spatialreward_jax.data.editworld import consistency_answer, quality_answer
from spatialreward_jax.data.editworld.candidates import MAX_REGIONS
from spatialreward_jax.data.editworld.observed import observe
from spatialreward_jax.data.editworld.oracle import oracle_scores
from spatialreward_jax.data.lessons import Candidates

EDITS = 36


@pytest.fixture(scope="module")
def seen():
    """(candidate, picture, what was observed)."""
    world = Candidates("validation", EDITS)
    return [
        (candidate, image, observe(image, candidate.sample))
        for candidate, _, image in map(world.__getitem__, range(EDITS))
    ]


def test_candidates_are_read_back_as_the_operations_that_made_them(seen):
    what = lambda ops: sorted((op.kind, op.target) for op in ops)
    wrong = [candidate for candidate, _, observed in seen if what(candidate.done) != what(observed.done)]
    assert {candidate.failure for candidate, _, _ in seen} > {"perfect", "unchanged", "artifact", "mixture"}
    assert len(wrong) <= EDITS // 12


def test_scores_are_the_oracles(seen):
    for candidate, image, observed in seen:
        assert observed.scores == oracle_scores(image, candidate.sample)


def test_perfect_edits_get_the_answer_of_the_candidate(seen):
    perfect = [(candidate, observed) for candidate, _, observed in seen if candidate.failure == "perfect"]
    words = lambda answer: answer.split('"reasoning":"')[1].split('","score"')[0]
    same = [words(consistency_answer(c)) == words(consistency_answer(o)) for c, o in perfect]
    assert len(same) >= 3 and sum(same) >= len(same) - 1
    assert all(quality_answer(c) == quality_answer(o) for c, o in perfect)


def test_flaws_are_named(seen):
    flawed = [(c, o) for c, _, o in seen if any(artifact.strength > 0.3 for artifact in c.artifacts)]
    assert len(flawed) >= 5
    for candidate, observed in flawed:
        strongest = max(candidate.artifacts, key=lambda artifact: artifact.strength)
        assert strongest.kind in {artifact.kind for artifact in observed.artifacts}


def test_answers_hold_as_many_regions_as_an_answer_may(seen):
    assert all(len(observed.regions) <= MAX_REGIONS for _, _, observed in seen)


def test_a_picture_of_another_size_is_read_at_its_own(seen):
    candidate, image, _ = next(row for row in seen if row[0].sample.source.side == 96)
    small = image[::2, ::2].repeat(2, 0).repeat(2, 1)[:64, :64]
    assert observe(small, candidate.sample).sample.source.side == 64
