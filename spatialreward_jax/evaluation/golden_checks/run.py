"""Every file of a folder of goldens through its check."""

import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from spatialreward_jax.evaluation.golden_checks import (
    autoencoder,
    grpo,
    image_processing,
    published,
    qwen3_vl,
    rewards,
    sampler,
    text_encoder,
    transformer,
)
from spatialreward_jax.evaluation.golden_checks.case import FAILED, Case, Row
from spatialreward_jax.evaluation.golden_checks.nets import Goldens

CHECKS: dict[str, Callable[[Case, Goldens], None]] = {
    "vae.npz": autoencoder.check,
    "text_encoder.npz": text_encoder.check,
    "omnigen2_transformer.npz": transformer.check,
    "sampler.npz": sampler.check,
    "image_processing.npz": image_processing.check,
    "reward.json": rewards.check,
    "grpo.npz": grpo.check,
    "qwen3_vl.npz": qwen3_vl.check,
}

NOT_GOLDENS = ("goldens.json", "MANIFEST.md")
"""Files of the folder that hold no results."""

PUBLISHED = "published"
"""Folder of names and shapes of published checkpoints."""

CHECKPOINTS = ("omnigen2", "spatialreward", "lora")
"""Folders of weights; the checks load them."""


def check_folder(folder: str | pathlib.Path) -> Iterator[Row]:
    """Rows of every file, as they are computed. A file or folder that no check knows gives a failed row.

    Raises:
      InputError: no goldens.json there.
    """
    goldens = Goldens(folder)
    for path in sorted(goldens.folder.iterdir()):
        if path.name in NOT_GOLDENS or (path.is_dir() and path.name in CHECKPOINTS):
            continue
        if path.is_dir() and path.name == PUBLISHED:
            yield from published.check_published(path)
        else:
            yield from check_file(goldens, path.name)


def check_file(goldens: Goldens, name: str) -> list[Row]:
    """Rows of one file, matrix products at full float32 precision."""
    if name not in CHECKS:
        return [Row(name, "", FAILED, None, None, False, "no check knows this file")]
    tolerance = goldens.settings["tolerance"].get(name)
    if tolerance is None:
        return [Row(name, "", FAILED, None, None, False, "goldens.json gives no tolerance for it")]
    case = Case(name, _read(goldens.folder / name), tolerance)
    try:
        with jax.default_matmul_precision("highest"):
            CHECKS[name](case, goldens)
    except Exception as error:  # whatever a check runs into is a failed row; the other files still count
        case.fail("", f"{type(error).__name__}: {error}")
    return case.finish()


def _read(path: pathlib.Path) -> Mapping[str, Any]:
    if path.suffix == ".json":
        return json.loads(path.read_text())
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}
