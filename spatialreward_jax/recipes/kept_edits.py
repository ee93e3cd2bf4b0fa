"""Every edit that a run scored, as files: to look at, to fine-tune an editor on the best, to train a judge on."""

import json
import pathlib
from collections.abc import Sequence

import numpy as np

from spatialreward_jax import processes
from spatialreward_jax.data.requests import FOLDER_INDEX
from spatialreward_jax.errors import InputError
from spatialreward_jax.io.images import write_png
from spatialreward_jax.reward.backends import Rewards
from spatialreward_jax.reward.types import Edit


def keep_edits(folder: pathlib.Path, phase: int, edits: Sequence[Edit], rewards: Rewards) -> None:
    """Writes a phase's edits to `folder/PHASE`, over those of an interrupted attempt at the same phase.

    The layout is that of edit requests (`data/requests.py`): `instructions.jsonl` with `instruction`, `input_images`,
    `output_image`, `reward` (null where it is not valid) and `parts`, the numbers of every backend; PNG files beside
    it. The run is worth more than they are: where they cannot be written, that is said and it goes on.
    """
    try:
        _write(folder / f"{phase:05d}", edits, rewards)
    except (OSError, InputError) as error:
        processes.say(f"WARNING: the edits of phase {phase} were not kept ({error}); free space in {folder}")


def _write(own: pathlib.Path, edits: Sequence[Edit], rewards: Rewards) -> None:
    own.mkdir(parents=True, exist_ok=True)
    names: dict[int, list[str]] = {}  # of sources, which the edits of a group share
    lines = []
    for row, edit in enumerate(edits):
        if id(edit.source) not in names:
            names[id(edit.source)] = [f"{row:04d}_source{number}.png" for number in range(len(edit.sources))]
            for name, source in zip(names[id(edit.source)], edit.sources):
                write_png(own / name, source)
        edited = f"{row:04d}.png"
        write_png(own / edited, edit.edited)
        parts = {name: _number(values[row]) for name, values in rewards.parts.items()}
        lines.append(
            {
                "instruction": edit.instruction,
                "input_images": names[id(edit.source)],
                "output_image": edited,
                "reward": _number(rewards.reward[row]),
                "parts": parts,
            }
        )
    part = own / f".{FOLDER_INDEX}.part"
    part.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    part.replace(own / FOLDER_INDEX)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
