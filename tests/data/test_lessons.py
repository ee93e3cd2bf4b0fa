"""EditWorld's lessons agree with the world they are about."""

import json

import numpy as np

from spatialreward_jax.data.lessons import Candidates, Wording, editworld_lessons


def test_lessons_agree_with_the_world():
    world = Candidates("validation", 2, candidates=2)
    lessons = editworld_lessons(world, Wording(lambda instruction: f"Task: {instruction}", "Looks?"))
    candidate, source, edited = world[3]
    assert len(world) == 4 and world[2][0].sample == candidate.sample
    assert [lessons["quality"].keys[row] for row in range(4)] == [64, 64, 96, 96]
    row = lessons["consistency"][3]
    assert row.turns[0].parts == (None, None, f"Task: {candidate.sample.instruction}")
    assert row.images[0] is source and row.images[1] is edited
    answer = json.loads(row.turns[1].parts[0])
    assert answer["score"] == [round(candidate.scores.success), round(candidate.scores.no_overedit)]
    assert len(answer["edit_region"]) == len(candidate.regions)
    listed = json.loads(lessons["grounding"][2].turns[1].parts[0])
    assert len(listed) == len(candidate.sample.source.shapes)
    source, changed = lessons["changes"][3].images
    assert np.array_equal(source, row.images[0]) and not np.array_equal(source, changed)
    assert lessons["changes"][3] is lessons["changes"][3]
    assert lessons["quality"][3].images == (edited,)
    plain = editworld_lessons(world, Wording(str, "Looks?", boxes=False, cited=False))["consistency"][3]
    assert "bbox" not in plain.turns[1].parts[0]


def test_failures_come_by_their_weights():
    """Those that an edit allows: nothing to move has no wrong place."""
    found = [
        world[row][0].failure
        for failures in ({"unchanged": 1.0, "perfect": 0.0}, {"wrong_object": 9.0, "unchanged": 1e-9})
        for world in [Candidates("train", 12, failures=failures)]
        for row in range(12)
    ]
    assert set(found[:12]) == {"unchanged"} and found[12:].count("wrong_object") >= 6
