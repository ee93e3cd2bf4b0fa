"""Small benchmarks in the published layouts, and a judge that reads its scores off the pictures."""

import json
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from spatialreward_jax.io.images import png_bytes, read_image
from spatialreward_jax.reward.aggregate import Aggregation
from spatialreward_jax.reward.types import Identity, Score

IDENTITY = Identity("stand-in", "0", "t", "eval", "strict", "weighted", "greedy")


def picture(mark: int) -> bytes:
    """PNG whose red level is ten times the mark 0..25, which the stand-in judge gives in every sub-score."""
    return png_bytes(np.full((16, 24, 3), (round(mark * 10), 0, 0), np.uint8))


def cell(mark: int) -> dict:
    """An image as Hugging Face stores it in parquet."""
    return {"bytes": picture(mark), "path": None}


class StandInJudge:
    """Marks are read off the red channel; 255 means an answer that cannot be read. Counts what it was asked."""

    identity = IDENTITY

    def __init__(self):
        self.asked = 0

    def score(self, edits):
        self.asked += len(edits)
        return [self._one(read_image(edit.edited)[0, 0, 0] / 10) for edit in edits]

    def _one(self, mark):
        if mark > 25:
            return Score(False, errors=("SC: the answer is empty",), identity=IDENTITY)
        overall = Aggregation()((mark, mark), (mark, mark))
        return Score(True, *overall[:1], overall.reward, *overall[1:], *[float(mark)] * 4, identity=IDENTITY)


def write_parquet(path: pathlib.Path, rows: list[dict]) -> None:
    """Rows with image structs; several row groups, as large files have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)


def write_jsonl(path: pathlib.Path, rows: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def mer_row(pair_id, marks, **more) -> dict:
    row = {
        "pair_id": pair_id,
        "instruction": f"do {pair_id}",
        "original_image": cell(1),
        "edited_images": [cell(mark) for mark in marks],
        "label": "style",
        "sample_id": f"s{pair_id}",
    }
    return row | more
