"""Edits with their results, from files and from EditWorld."""

import json

import numpy as np
import pytest

from spatialreward_jax.data.edit_pairs import PairSize, read_pairs
from spatialreward_jax.data.editworld import render, sample_edit, write_requests
from spatialreward_jax.errors import InputError
from spatialreward_jax.io.images import write_png

SIZE = PairSize((96 * 96,), 96 * 96, 2048, 16)


def test_editworld_from_files_and_without_them(tmp_path):
    index = write_requests(tmp_path / "world", "validation", 2)
    files = read_pairs(str(index), "", 0, SIZE)
    sample = sample_edit("validation", 0)
    assert files[0].instruction == sample.instruction
    np.testing.assert_array_equal(files[0].sources[0], render(sample.source))
    np.testing.assert_array_equal(files[0].target, render(sample.target))
    world = read_pairs("editworld", "validation", 4, SIZE)
    assert [world[i].target.shape[0] for i in range(4)] == [64, 96, 64, 96] == [key[0] for key in world.keys]
    assert world[1] is world[1]


def test_sizes_follow_the_number_of_sources(tmp_path):
    write_png(tmp_path / "big.png", np.zeros((128, 256, 3), np.uint8))
    row = {"instruction": "Join them.", "input_images": ["big.png"], "output_image": "big.png"}
    rows = [row, row | {"input_images": ["big.png"] * 2}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    size = PairSize((128 * 64, 64 * 32), 256 * 128, 200, 16)
    pairs = read_pairs(str(tmp_path / "rows.jsonl"), "", 0, size, exact=True)
    assert [x.shape[:2] for x in (*pairs[0].sources, pairs[0].target)] == [(64, 128), (96, 192)] == list(pairs.keys[0])
    assert [x.shape[:2] for x in pairs[1].sources] == [(32, 64)] * 2
    coarse = read_pairs(str(tmp_path / "rows.jsonl"), "", 0, size)
    assert coarse.keys[0] == (26, 28)


def test_what_cannot_be_is_named(tmp_path):
    write_png(tmp_path / "a.png", np.zeros((32, 32, 3), np.uint8))
    row = {"instruction": "Go.", "input_images": ["a.png"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match=r"rows\.jsonl:1: output_image is missing"):
        read_pairs(str(tmp_path / "rows.jsonl"), "", 0, SIZE)
    (tmp_path / "rows.jsonl").write_text(json.dumps(row | {"output_image": "b.png"}))
    with pytest.raises(InputError, match=r"rows\.jsonl:1.*b\.png"):
        read_pairs(str(tmp_path / "rows.jsonl"), "", 0, SIZE)
    with pytest.raises(InputError, match="do not fit this editor"):
        read_pairs("editworld", "train", 2, PairSize((64 * 64,), 64 * 64, 2048, 16))
