"""MER-Bench: rankings of two, three or four edits of one image.

Layout (`lorangan-ddup/SpatialReward`, eval/MERBench/dataset.py): splits 2pair, 3pair and 4pair, one parquet file or
more each, or 2pair.json ... 4pair.json. A row has pair_id, instruction, original_image, edited_images (truly best
first), label, sample_id. Our own rankings use the same layout, with an optional column `edit_regions` (see
`rows.truth_boxes`).
"""

import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation import rows as layout
from spatialreward_jax.evaluation.benchmark import Benchmark, Figure, Table
from spatialreward_jax.evaluation.ranking import METRICS, ranking_metrics
from spatialreward_jax.evaluation.records import Broken, Case, Row, Verdict
from spatialreward_jax.reward.types import Edit

_RIGHT_OR_WRONG = ("correct", "top1", "top2")


def rows(data: str | pathlib.Path) -> Iterator[Row | Broken]:
    """The rows of every split below `data`. Keys are `{n}pair/{pair_id}/{place}`: ids may repeat across splits."""
    return layout.usable(layout.data_files(data), _row)


def _row(row: Mapping[str, Any], path: pathlib.Path) -> Row:
    edited = layout.images(layout.field(row, "edited_images"), path.parent, at_least=2)
    source = layout.image(layout.field(row, "original_image"), path.parent)
    instruction = layout.text(row, "instruction")
    size = f"{len(edited)}pair"
    named = re.search(r"[234]pair", f"{path.parent.name}/{path.name}")
    if named and named[0] != size:
        raise InputError(f"{len(edited)} edited images in a file of split {named[0]}")
    ident = f"{size}/{layout.field(row, 'pair_id')}"
    labels = {"size": size, "category": str(row.get("label") or "unknown")}
    case = Case(
        id=ident,
        keys=tuple(f"{ident}/{place}" for place in range(len(edited))),
        labels=labels,
        cluster=ident if row.get("sample_id") is None else str(row["sample_id"]),
        truth=layout.truth_boxes(row, len(edited)),
    )
    return Row(case, tuple(Edit(source, image, instruction) for image in edited))


def values(case: Case, verdicts: Sequence[Verdict]) -> Mapping[str, float] | None:
    """Ranking metrics of the overall scores."""
    scores = [v.dimension("overall") for v in verdicts]
    return None if None in scores else ranking_metrics(scores)


def _benchmark(name: str) -> Benchmark:
    return Benchmark(
        name=name,
        rows=rows,
        values=values,
        right_or_wrong=_RIGHT_OR_WRONG,
        figures=tuple(Figure("accuracy" if metric == "correct" else metric, metric) for metric in METRICS),
        tables=(Table("by size", "size", METRICS), Table("by category", "category", METRICS)),
        grid={},
    )


MER = _benchmark("mer")
EDITWORLD = _benchmark("editworld")
"""Our procedural world's rankings: the same layout with known edit regions."""
