"""What a run shows of itself: the same requests, edited at the same seed by the deterministic sampler."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialreward_jax.data.pipeline import load_batch
from spatialreward_jax.flow import ode_plan
from spatialreward_jax.reporting.overlay import draw_regions
from spatialreward_jax.reporting.tensorboard import image_grid

if TYPE_CHECKING:
    from spatialreward_jax.recipes.flow_grpo import FlowGRPO

PHASE = 2**31 - 1
"""Stands for the phase in the keys: no phase of training ever draws this noise."""


class Previews:
    """Evaluator: a grid `source | edits | first edit with the judge's boxes`, and the rewards of those edits."""

    def __init__(self, task: "FlowGRPO"):
        self.task = task
        self.batch = load_batch(task.requests[: task.settings.eval_prompts], task.size)

    def __call__(self, state: Any, step: int) -> Iterator[tuple[str, float | np.ndarray]]:
        """Yields (name, picture or number)."""
        task, edits = self.task, self.task.settings.eval_edits
        encoded = task.encode(self.batch, PHASE)
        latents, _ = task.sample(
            state.params, encoded, task.sample_keys(self.batch, PHASE, edits), ode_plan(task.settings.sampler_steps)
        )
        images = task.decode(encoded, latents)
        rewards = task.score(self.batch, images)
        rows = []
        for row, sources in enumerate(self.batch.sources):
            own = images[row * edits : (row + 1) * edits]
            score = rewards.scores[row * edits] if rewards.scores else None
            rows.append([*sources, *own, draw_regions(own[0], score.regions if score else ())])
        yield "edits", image_grid(rows)
        if rewards.valid.any():
            yield "reward", float(rewards.reward[rewards.valid].mean())
        yield "invalid_share", float(1 - rewards.valid.mean())
