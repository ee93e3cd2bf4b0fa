"""Chats with images: the jsonl layout, and EditWorld's lessons."""

import json

import numpy as np
import pytest

from spatialreward_jax.data.chat_rows import Candidates, ChatFile, Wording, editworld_lessons
from spatialreward_jax.errors import InputError
from spatialreward_jax.io.images import write_png

GOOD = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image>then<image>Same?"},
        {"role": "assistant", "content": "No."},
    ],
    "images": ["a.png", "a.png"],
}


def chat_file(folder, *rows, measure=lambda turns, sizes: len(sizes)):
    write_png(folder / "a.png", np.zeros((8, 16, 3), np.uint8))
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return ChatFile(str(folder / "rows.jsonl"), measure)


def changed(**changes):
    return json.loads(json.dumps(GOOD)) | changes


def test_layout(tmp_path):
    plain = changed(
        messages=[{"role": "user", "content": "Looks?"}, {"role": "assistant", "content": "Fine."}], images=["a.png"]
    )
    rows = chat_file(tmp_path, GOOD, "", plain)
    assert rows.keys == [2, 1]
    assert [turn.parts for turn in rows[0].turns] == [("Be brief.",), (None, "then", None, "Same?"), ("No.",)]
    assert [image.shape for image in rows[0].images] == [(8, 16, 3)] * 2
    assert rows[1].turns[0].parts == (None, "Looks?"), "without markers, images come first"


@pytest.mark.parametrize(
    "row, message",
    [
        ("{", r"rows.jsonl:1: not one JSON object"),
        ({"images": []}, "needs `messages`"),
        (changed(images=["a.png"]), "2 times <image> for 1 images"),
        (changed(images="a.png"), "must be a list of paths"),
        (changed(images=["a.png", "b.png"]), "rows.jsonl:1.*b.png"),
        (changed(messages=GOOD["messages"][:2]), "turns must be user, assistant"),
        (changed(messages=[*GOOD["messages"][:2], {"role": "assistant", "content": " "}]), "an empty answer"),
        (changed(messages=[{"role": "tool", "content": ""}]), "a role of system, user, assistant"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, message):
    with pytest.raises(InputError, match=message):
        chat_file(tmp_path, row)


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
