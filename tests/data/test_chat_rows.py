"""Chats with images in the jsonl layout."""

import json

import numpy as np
import pytest

from spatialreward_jax.data.chat_rows import ChatFile
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


def test_text_may_hold_line_separators_of_unicode(tmp_path):
    said = "Fine.\u2028Really.\u0085"
    row = changed(messages=[*GOOD["messages"][:2], {"role": "assistant", "content": said}])
    rows = chat_file(tmp_path, json.dumps(row, ensure_ascii=False), GOOD)
    assert len(rows.keys) == 2 and rows[0].turns[-1].parts == (said,)


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
