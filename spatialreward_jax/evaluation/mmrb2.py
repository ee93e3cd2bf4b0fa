"""Multimodal RewardBench 2, the edit task: which of two models' edits do people choose?

Two layouts (`facebookresearch/MMRB2`, benchmark/ and build_from_hf.py): `edit.json`, an object with `pairs`, whose
rows have id, prompt_content and response_a/response_b.response_content (lists of [type, content], images as paths),
chosen, prompt_source; and parquet, whose rows have pair_id, prompt_text, prompt_images, response_a_images,
response_b_images, chosen, prompt_source.
"""

import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation import rows as layout
from spatialreward_jax.evaluation.benchmark import Benchmark, Figure, Table
from spatialreward_jax.evaluation.records import Broken, Case, Row, Verdict, mark
from spatialreward_jax.reward.types import Edit

_PLACEHOLDER = re.compile(r"\s*<image_\d+>\s*")


def rows(data: str | pathlib.Path) -> Iterator[Row | Broken]:
    """The rows of `edit.json` or of the parquet files below `data`. Keys are `{id}_A` and `{id}_B`."""
    return layout.usable(files(data), _row)


def files(data: str | pathlib.Path) -> list[pathlib.Path]:
    """The benchmark has four tasks side by side; take the edit task's files where names tell."""
    data = pathlib.Path(data)
    if (data / "edit.json").is_file():
        return [data / "edit.json"]
    found = layout.data_files(data)
    return [path for path in found if "edit" in f"{path.parent.name}/{path.name}"] or found


def _row(row: Mapping[str, Any], path: pathlib.Path) -> Row:
    folder = path.parent
    ident = str(layout.field(row, "id", "pair_id"))
    chosen = layout.text(row, "chosen", "human_preference").strip().upper()
    if chosen not in ("A", "B"):
        raise InputError(f"chosen is {chosen!r}: want A or B")
    instruction, sources = _prompt(row)
    sources = layout.images(sources, folder, at_least=1)
    edited = [layout.images(_response(row, side), folder, at_least=1)[0] for side in "ab"]
    case = Case(
        id=ident,
        keys=(f"{ident}_A", f"{ident}_B"),
        labels={
            "chosen": chosen,
            "images": str(len(sources)),
            "source": str(row.get("prompt_source") or "unknown"),
        },
        cluster=mark(instruction, sources),
    )
    return Row(case, tuple(Edit(sources, image, instruction) for image in edited))


def _prompt(row: Mapping[str, Any]) -> tuple[str, list]:
    if row.get("prompt_content") is not None:
        texts, images = _split(row["prompt_content"])
        instruction = texts[-1] if texts else ""  # the official loader keeps the last text part
    else:
        instruction, images = str(row.get("prompt_text") or ""), list(row.get("prompt_images") or ())
        instruction = _PLACEHOLDER.sub(" ", instruction).strip()
    if not instruction.strip():
        raise InputError("no instruction in the prompt")
    return instruction, images


def _response(row: Mapping[str, Any], side: str) -> list:
    response = row.get(f"response_{side}")
    if isinstance(response, Mapping):
        return _split(layout.field(response, "response_content"))[1]
    return list(layout.field(row, f"response_{side}_images"))


def _split(content: Any) -> tuple[list[str], list]:
    """[[type, content], ...] -> (texts, images)."""
    if not isinstance(content, list | tuple) or any(
        not isinstance(part, list | tuple) or len(part) != 2 for part in content
    ):
        raise InputError("content is no list of [type, content]")
    return [str(value) for kind, value in content if kind == "text"], [
        value for kind, value in content if kind == "image"
    ]


def values(case: Case, verdicts: Sequence[Verdict]) -> Mapping[str, float] | None:
    """Right when the chosen response has the strictly higher overall score."""
    a, b = (v.dimension("overall") for v in verdicts)
    if a is None or b is None:
        return None
    return {"correct": float(a > b if case.labels["chosen"] == "A" else b > a), "tie": float(a == b)}


MMRB2 = Benchmark(
    name="mmrb2",
    rows=rows,
    count=lambda data: sum(map(layout.count_rows, files(data))),
    values=values,
    right_or_wrong=("correct",),
    figures=(Figure("accuracy", "correct"),),
    tables=(
        Table("by number of source images", "images", ("correct", "tie")),
        Table("by source", "source", ("correct", "tie")),
    ),
    grid={},
)
