"""What a run shows of itself: the same requests, edited at the same seed by the deterministic sampler."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialreward_jax.data.pipeline import load_batch
from spatialreward_jax.flow import ode_plan
from spatialreward_jax.recipes.task import HELDOUT
from spatialreward_jax.reporting.overlay import draw_regions
from spatialreward_jax.reporting.tensorboard import image_grid

if TYPE_CHECKING:
    from spatialreward_jax.recipes.flow_grpo import FlowGRPO


class Previews:
    """Evaluator: a grid `source | before | edits | boxes`, and the rewards of those edits.

    `before` is the first edit at the same noise by the policy that the run began with, `boxes` the first edit with the
    judge's regions.
    """

    def __init__(self, task: "FlowGRPO"):
        self.task = task
        self.batch = load_batch(task.requests[: task.settings.eval_prompts], task.size)
        self._reward = task.reward.counted(besides=("judge",))  # for its regions
        self._before: list[np.ndarray] | None = None

    @property
    def text(self) -> str:
        """What the grid's columns show, and what each row asked for."""
        count = self.task.settings.eval_edits
        columns = f"Columns: source | before training | {count} edits, the first at that noise | its boxes by the judge"
        rows = (f"Row {row}: {request.instruction}" for row, request in enumerate(self.batch.requests, 1))
        return "\n".join((columns, *rows))

    def __call__(self, state: Any, step: int) -> Iterator[tuple[str, float | np.ndarray]]:
        """Yields (name, picture or number)."""
        task, edits = self.task, self.task.settings.eval_edits
        keys, plan = task.sample_keys(self.batch, HELDOUT, edits), ode_plan(task.settings.sampler_steps)
        encoded = task.encode(self.batch, HELDOUT)
        edit = lambda params: task.decode(encoded, task.sample(params, encoded, keys, plan)[0])
        if self._before is None:
            self._before = edit(task.start)[::edits]
        images = edit(state.params)
        rewards = self._reward(task.edits(self.batch, images))
        rows = []
        for row, sources in enumerate(self.batch.sources):
            own = images[row * edits : (row + 1) * edits]
            score = rewards.scores[row * edits] if rewards.scores else None
            rows.append([*sources, self._before[row], *own, draw_regions(own[0], score.regions if score else ())])
        yield "edits", image_grid(rows)
        if rewards.valid.any():
            yield "reward", float(rewards.reward[rewards.valid].mean())
        yield "invalid_share", float(1 - rewards.valid.mean())
