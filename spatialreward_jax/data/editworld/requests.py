"""Edit requests of EditWorld as files: the RL jsonl layout with PNG images, for training and evaluation."""

from __future__ import annotations

import json
import os
import pathlib
import shutil

from spatialreward_jax.data.editworld.edits import EditSample, sample_edit
from spatialreward_jax.data.editworld.render import render
from spatialreward_jax.data.requests import FOLDER_INDEX
from spatialreward_jax.errors import InputError
from spatialreward_jax.io.images import write_png

VERSION = 1  # raise it when the same seed gives other scenes, words or pixels
_STAMP = "editworld.json"


def write_requests(folder: str | os.PathLike, split: str, count: int, seed: int = 0) -> pathlib.Path:
    """Writes `count` edit requests of a split into a folder, unless the very same ones are there already.

    The folder gets `instructions.jsonl` (rows `instruction`, `input_images`, `output_image`: the exact target,
    `task_type`, `meta_data`: a JSON string with `instruction` and `editworld`, the truth that `EditSample.from_truth`
    reads) and `images/*.png`. It appears whole or not at all.

    Returns: the path of `instructions.jsonl`.
    Raises: InputError when the folder holds anything else, or for an unknown split.
    """
    folder = pathlib.Path(folder)
    if count < 1:
        raise InputError(f"count={count}: ask for at least one edit request")
    stamp = {"version": VERSION, "split": split, "count": count, "seed": seed}
    if _already_there(folder, stamp):
        return folder / FOLDER_INDEX
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        with open(part / FOLDER_INDEX, "w", encoding="utf-8") as rows:
            for index in range(count):
                rows.write(json.dumps(_write_one(part, split, index, seed)) + "\n")
        (part / _STAMP).write_text(json.dumps(stamp), encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    except OSError as error:
        # Another process may have finished the same folder meanwhile.
        if not _already_there(folder, stamp):
            raise InputError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder / FOLDER_INDEX


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


def _already_there(folder: pathlib.Path, stamp: dict) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / _STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found != stamp:
        raise InputError(f"{folder} holds something other than the EditWorld requests {stamp}: give an empty folder")
    return True


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
