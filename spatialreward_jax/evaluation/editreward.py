"""EditScore/EditReward-Bench (not TIGER-Lab's benchmark of the same name): pairs of edits, compared on one dimension.

Layout (`VectorSpaceLab/EditScore` evaluation.py and `lorangan-ddup/SpatialReward` eval/EditReward-Bench): parquet or
jsonl; a row has key (two), instruction, input_image, output_images (two, preferred first), task_type, dimension. The
same edit takes part in many rows under the same key and is scored once.
"""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation import rows as layout
from spatialreward_jax.evaluation.benchmark import Benchmark, Figure, Table
from spatialreward_jax.evaluation.records import DIMENSIONS, Broken, Case, Row, Verdict, mark
from spatialreward_jax.reward.types import Edit

GROUPS = {
    "object": ("subject-add", "subject-remove", "subject-replace"),
    "appearance": ("color_alter", "material_alter", "style_change", "tone_transfer"),
    "scene": ("background_change", "extract"),
    "advanced": ("ps_human", "text_change", "motion_change", "compose"),
}
_GROUP_OF = {task: group for group, tasks in GROUPS.items() for task in tasks}


def rows(data: str | pathlib.Path) -> Iterator[Row | Broken]:
    """The rows of all files below `data`. A case's id is `{task}/{dimension}/{key 1}/{key 2}`."""
    return layout.usable(layout.data_files(data), _row)


def _row(row: Mapping[str, Any], path: pathlib.Path) -> Row:
    folder, keys = path.parent, layout.field(row, "key")
    if not isinstance(keys, list | tuple) or len(keys) != 2 or len(set(map(str, keys))) != 2:
        raise InputError(f"key is {keys!r}: want two different ones")
    dimension, task = layout.text(row, "dimension"), layout.text(row, "task_type")
    if dimension not in DIMENSIONS:
        raise InputError(f"dimension {dimension!r} is unknown: want one of {', '.join(DIMENSIONS)}")
    edited = layout.images(layout.field(row, "output_images"), folder, at_least=2)
    if len(edited) != 2:
        raise InputError(f"{len(edited)} output_images: want two")
    source = layout.image(layout.field(row, "input_image"), folder)
    instruction = layout.text(row, "instruction")
    keys = tuple(map(str, keys))
    case = Case(
        id="/".join((task, dimension, *keys)),
        keys=keys,
        labels={"task": task, "dimension": dimension, "group": _GROUP_OF.get(task, "other")},
        cluster=mark(instruction, [source]),
    )
    return Row(case, tuple(Edit(source, image, instruction) for image in edited))


def values(case: Case, verdicts: Sequence[Verdict]) -> Mapping[str, float] | None:
    """Right when the preferred edit scores strictly higher on the row's dimension."""
    first, second = (v.dimension(case.labels["dimension"]) for v in verdicts)
    return (
        None if first is None or second is None else {"correct": float(first > second), "tie": float(first == second)}
    )


EDITREWARD = Benchmark(
    name="editscore-editreward",
    rows=rows,
    values=values,
    right_or_wrong=("correct",),
    figures=tuple(Figure(d, "correct", strata="task", where={"dimension": d}) for d in DIMENSIONS[::-1]),
    tables=tuple(
        Table(f"{d} by {by}", by, ("correct", "tie"), strata="task", where={"dimension": d})
        for d in DIMENSIONS[::-1]
        for by in ("task", "group")
    ),
    grid={"dimension": "overall"},
)
