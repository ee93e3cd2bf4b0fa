"""Pixel measures on images whose answer is known."""

import numpy as np
import pytest

from spatialreward_jax.reward.guards import (
    Guards,
    box_mask,
    colour_shift,
    high_frequency_energy,
    high_frequency_ratio,
    match_size,
    outside_change,
)
from spatialreward_jax.reward.types import Region

SOURCE = np.full((40, 60, 3), 100, np.uint8)
BOX = Region(0, "x", (0, 0, 0, 0), (10, 5, 30, 25))


def inside_edit():
    edited = SOURCE.copy()
    edited[5:25, 10:30] = 140
    return edited


def test_mask():
    mask = box_mask((40, 60), [BOX])
    assert mask.sum() == 400 and mask[5, 10] and not mask[4, 10] and not mask[25, 10]
    assert box_mask((40, 60), [BOX], margin=1).sum() == 22 * 22
    assert box_mask((40, 60), [Region(0, "", (0,) * 4, (10.2, 5, 10.2, 9))]).sum() == 0
    assert box_mask((40, 60), [Region(0, "", (0,) * 4, (0, 0, 60, 40))], margin=5).all()


def test_outside_change():
    mask = box_mask((40, 60), [BOX])
    assert outside_change(SOURCE, inside_edit(), mask) == 0
    assert outside_change(SOURCE, SOURCE + 51, mask) == pytest.approx(0.2)
    half = SOURCE.copy()
    half[:20] += 51
    outside = ~mask
    assert outside_change(SOURCE, half, mask) == pytest.approx(0.2 * outside[:20].sum() / outside.sum())
    assert outside_change(SOURCE, SOURCE + 51, np.ones_like(mask)) == 0


def test_high_frequency():
    assert high_frequency_energy(SOURCE) == 0
    board = SOURCE.copy()
    board[::2, ::2] = board[1::2, 1::2] = 151  # every pixel differs from its four neighbours by 0.2
    assert high_frequency_energy(board) == pytest.approx(0.8**2)
    assert high_frequency_ratio(SOURCE, SOURCE) == 1
    assert high_frequency_ratio(SOURCE, board) > 100


def test_colour_shift():
    red = SOURCE.copy()
    red[..., 0] += 51
    assert colour_shift(SOURCE, red, np.zeros((40, 60), bool)) == pytest.approx(0.2)


def test_grades():
    guards = Guards()
    clean = guards(SOURCE, inside_edit(), [BOX])
    assert clean["kept"] == clean["colour"] == 1 and clean["reward"] > 0.5
    spilt = guards(SOURCE, SOURCE + 51, [BOX])
    assert spilt["kept"] < 0.05 and spilt["reward"] < clean["reward"]
    speckle = SOURCE + np.random.default_rng(0).integers(0, 60, SOURCE.shape, dtype=np.uint8)
    assert guards(SOURCE, speckle, [BOX])["clean"] < clean["clean"]
    assert guards(SOURCE, SOURCE, [])["reward"] == 1
    assert guards(SOURCE, inside_edit(), [])["kept"] < 1  # no region named: all of the image had to stay


def test_without_regions_only_what_needs_none():
    blind = Guards()(SOURCE, inside_edit(), None)
    assert "kept" not in blind and blind["reward"] == blind["clean"]


def test_sizes_are_matched():
    assert match_size(SOURCE, np.zeros((20, 30, 3), np.uint8)).shape == (20, 30, 3)
    assert Guards()(SOURCE, np.full((20, 30, 3), 100, np.uint8), [])["reward"] == pytest.approx(1)
