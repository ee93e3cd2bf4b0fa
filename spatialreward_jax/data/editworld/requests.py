"""Edit requests of EditWorld as files: the RL jsonl layout with PNG images, for training and evaluation."""

from __future__ import annotations

import json
import os
import pathlib

from spatialreward_jax.data.editworld.edits import EditSample, sample_edit
from spatialreward_jax.data.editworld.folders import make_folder
from spatialreward_jax.data.editworld.render import render
from spatialreward_jax.data.requests import FOLDER_INDEX
from spatialreward_jax.errors import InputError
from spatialreward_jax.io.images import write_png


def write_requests(folder: str | os.PathLike, split: str, count: int, seed: int = 0) -> pathlib.Path:
    """Writes `count` edit requests of a split into a folder, unless the very same ones are there already.

    The folder gets `instructions.jsonl` (rows `instruction`, `input_images`, `output_image`: the exact target,
    `task_type`, `meta_data`: a JSON string with `instruction` and `editworld`, the truth that `EditSample.from_truth`
    reads) and `images/*.png`. It appears whole or not at all.

    Returns: the path of `instructions.jsonl`.
    Raises: InputError when the folder holds anything else, or for an unknown split.
    """
    if count < 1:
        raise InputError(f"count={count}: ask for at least one edit request")

    def fill(part: pathlib.Path) -> None:
        with open(part / FOLDER_INDEX, "w", encoding="utf-8") as rows:
            for index in range(count):
                rows.write(json.dumps(_write_one(part, split, index, seed)) + "\n")

    wanted = {"what": "requests", "split": split, "count": count, "seed": seed}
    return make_folder(folder, wanted, fill) / FOLDER_INDEX


def read_truths(index: str | os.PathLike) -> list[EditSample]:
    """The edits behind the rows of a file that `write_requests` made. Raises InputError for rows of other origin."""
    samples = []
    for number, line in enumerate(pathlib.Path(index).read_text(encoding="utf-8").splitlines(), 1):
        try:
            truth = json.loads(json.loads(line)["meta_data"])["editworld"]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{index}:{number}: meta_data carries no EditWorld truth: use an EditWorld set") from error
        samples.append(EditSample.from_truth(truth))
    return samples


def _write_one(folder: pathlib.Path, split: str, index: int, seed: int) -> dict:
    sample = sample_edit(split, index, seed=seed)
    names = [f"images/{index:05d}_{role}.png" for role in ("source", "target")]
    for name, scene in zip(names, (sample.source, sample.target)):
        write_png(folder / name, render(scene))
    meta = {"instruction": sample.instruction, "editworld": sample.truth()}
    return {
        "instruction": sample.instruction,
        "input_images": names[:1],
        "output_image": names[1],
        "task_type": sample.task_type,
        "meta_data": json.dumps(meta),
    }
