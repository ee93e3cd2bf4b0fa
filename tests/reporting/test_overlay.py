"""Pictures with boxes: right places, any label, any size."""

import numpy as np
import pytest

from spatialreward_jax.reporting.overlay import COLOURS, GAP, draw_regions, overlay, score_overlay
from spatialreward_jax.reward.protocol import read_answers
from spatialreward_jax.reward.types import Region, Score

GREY = np.full((256, 320, 3), 90, np.uint8)


def region(number, box, label="hat"):
    return Region(number, label, (0, 0, 0, 0), box)


def test_boxes_stand_where_they_should():
    out = draw_regions(GREY, [region(1, (40, 60, 200, 180))])
    for y, x in ((100, 40), (100, 199), (179, 100)):
        assert tuple(out[y, x]) == COLOURS[1]
    assert tuple(out[120, 120]) == (90, 90, 90)
    assert (GREY == 90).all()


def test_side_by_side():
    source = np.full((128, 64, 3), 30, np.uint8)
    out = overlay([source, GREY], GREY, [region(0, (0, 0, 320, 256))])
    assert out.shape == (256, 128 + 320 + 320 + 2 * GAP, 3)
    assert tuple(out[5, 5]) == (30, 30, 30)
    assert tuple(out[200, -1]) == COLOURS[0]


def test_small_images_are_enlarged_with_their_boxes():
    small = np.full((64, 64, 3), 90, np.uint8)
    out = overlay([small], small, [region(0, (32, 32, 64, 64))])
    assert out.shape == (256, 512 + GAP, 3)
    assert tuple(out[200, 256 + GAP + 128]) == COLOURS[0]


@pytest.mark.parametrize("label", ["", "x" * 500, "帽子 🎩", "a\nb\x00", "\ud800"])
@pytest.mark.parametrize("box", [(0, 0, 0, 0), (319, 255, 320, 256), (0, 0, 320, 256)])
def test_any_label_in_any_box(label, box):
    assert overlay([GREY], GREY, [region(123456, box, label)], label).shape[1] == 640 + GAP


def test_captions():
    valid = read_answers(
        '{"edit_region": [], "reasoning": "", "score": [20, 10]}', '{"reasoning": "", "score": [15, 5]}', (256, 320)
    )
    plain, told = overlay([GREY], GREY, []), score_overlay([GREY], GREY, valid)
    assert told.shape[0] > plain.shape[0] and (told[256:] < 128).any()
    failed = score_overlay([GREY], GREY, Score(valid=False, errors=("SC: the answer is empty " * 20,)))
    assert failed.shape[0] > told.shape[0]  # wrapped
