"""Ranking benchmarks of EditWorld: two, three or four edits of one source in MER-Bench's layout, best first."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from spatialreward_jax.data.editworld.candidates import FAILURES, Candidate, make_candidate
from spatialreward_jax.data.editworld.edits import box_1000, sample_edit
from spatialreward_jax.data.editworld.folders import make_folder
from spatialreward_jax.data.editworld.render import render
from spatialreward_jax.errors import InputError
from spatialreward_jax.io.images import png_bytes
from spatialreward_jax.reward.aggregate import Aggregation

SIZES = (2, 3, 4)
LEAST_GAP = 0.06  # between the exact rewards (0..1) of neighbours in a ranking


def exact_reward(candidate: Candidate, aggregation: Aggregation | None = None) -> float:
    """The exact scores of a candidate as one number in 0..1, the published weighting by default."""
    four = candidate.scores
    return (aggregation or Aggregation())(four[:2], four[2:]).reward


def ranking(split: str, index: int, size: int, seed: int = 0) -> list[Candidate]:
    """The ranking number `index` of a split: `size` candidates of one edit, best first, no two close.

    Raises InputError for an unknown split or a size other than 2, 3, 4.
    """
    if size not in SIZES:
        raise InputError(f"a ranking of {size} edits: want one of {SIZES}")
    sample = sample_edit(split, index, seed=seed)
    rng = np.random.default_rng((seed, index, size))
    chosen: list[tuple[float, Candidate]] = []
    while len(chosen) < size:
        candidate = make_candidate(sample, str(rng.choice(FAILURES)), rng)
        if candidate is None:
            continue
        reward = exact_reward(candidate)
        if all(abs(reward - other) >= LEAST_GAP for other, _ in chosen):
            chosen.append((reward, candidate))
        elif rng.uniform() < 0.05 and chosen:
            chosen.pop(int(rng.integers(len(chosen))))  # so that a crowded start cannot block the rest
    return [candidate for _, candidate in sorted(chosen, key=lambda pair: -pair[0])]


def ranking_row(split: str, index: int, size: int, seed: int = 0) -> dict:
    """A ranking as a row of MER-Bench's layout, images as PNG bytes, with the true `edit_regions` of each edit."""
    candidates = ranking(split, index, size, seed)
    sample = candidates[0].sample
    boxes = [[list(box_1000(r.box, sample.source.side)) for r in candidate.regions] for candidate in candidates]
    return {
        "pair_id": f"{split}-{seed}-{index}",
        "instruction": sample.instruction,
        "original_image": {"bytes": png_bytes(render(sample.source)), "path": None},
        "edited_images": [{"bytes": png_bytes(candidate.image()), "path": None} for candidate in candidates],
        "label": "compound" if len(sample.ops) > 1 else sample.ops[0].kind,
        "sample_id": f"{split}-{seed}-{index}",
        "edit_regions": boxes,
        "failures": [candidate.failure for candidate in candidates],
        "scores": [list(map(float, candidate.scores)) for candidate in candidates],
    }


def write_rankings(
    folder: str | os.PathLike, split: str, count: int, seed: int = 0, sizes: Sequence[int] = SIZES
) -> pathlib.Path:
    """Writes `count` rankings of each size as `{size}pair.parquet`, unless the very same are there. -> the folder.

    With sizes=(2,) it is the pairwise test. Sizes use different edits of the split. Raises InputError like `ranking`.
    """
    import pyarrow
    import pyarrow.parquet  # here, so that the world can be used without it

    def fill(part: pathlib.Path) -> None:
        for size in sizes:
            start = SIZES.index(size) * count
            rows = [ranking_row(split, start + index, size, seed) for index in range(count)]
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), part / f"{size}pair.parquet")

    if count < 1 or not set(sizes) <= set(SIZES):
        raise InputError(f"count={count}, sizes={tuple(sizes)}: want at least one ranking, sizes among {SIZES}")
    wanted = {"what": "rankings", "split": split, "count": count, "seed": seed, "sizes": list(sizes)}
    return make_folder(folder, wanted, fill)
