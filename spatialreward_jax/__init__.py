"""SpatialReward in JAX: a reward model of image edits that thinks with boxes, and online RL of an editor with it.

import spatialreward_jax as srj

judge = srj.RewardModel.from_pretrained("embedded")
scores = judge.score([srj.Edit(source=before, edited=after, instruction="make the red circle blue")])
editor = srj.Editor.from_pretrained("embedded")
images = editor.edit(source=before, instruction="make the red circle blue", num_samples=4, seed=0)
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Edit": "spatialreward_jax.reward.types",
    "Score": "spatialreward_jax.reward.types",
    "Region": "spatialreward_jax.reward.types",
    "RewardModel": "spatialreward_jax.reward.judge",
    "Editor": "spatialreward_jax.editor",
    "InputError": "spatialreward_jax.errors",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    # Imported on first use: a program that only reads scores need not load the editor.
    if name not in _PUBLIC:
        raise AttributeError(f"module 'spatialreward_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
