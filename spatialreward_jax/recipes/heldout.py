"""What a run is worth: edits of held-out EditWorld requests before and after it, same noise, judged by the truth."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialreward_jax.data.editworld import EditSample, read_truths
from spatialreward_jax.data.editworld.oracle import Oracle
from spatialreward_jax.data.editworld.rule import Scores
from spatialreward_jax.data.pipeline import load_batch
from spatialreward_jax.data.requests import read_requests
from spatialreward_jax.errors import InputError
from spatialreward_jax.flow import ode_plan
from spatialreward_jax.recipes.task import HELDOUT, History
from spatialreward_jax.reward.backends import Divided, Rewards, WeightedReward
from spatialreward_jax.reward.guards import Guards, box_mask, match_size, outside_change
from spatialreward_jax.reward.protocol import read_edits
from spatialreward_jax.reward.types import Edit
from spatialreward_jax.rl import standard_error

if TYPE_CHECKING:
    from spatialreward_jax.recipes.flow_grpo import FlowGRPO

Z95 = 1.96
MEASURES = ("reward", "judge", *Scores._fields, "outside_change")
CHUNK = 32
"""Requests that are edited by one program."""


class HeldoutEdits:
    """Evaluator: one edit of each held-out request by the deterministic sampler, at a noise that never changes.

    Attributes:
      before, after: oracle scores, 0..1, one per request, before the first step and of the newest evaluation; lists, or
        None.
    """

    def __init__(self, task: "FlowGRPO", index: str):
        """index: requests of a file that `write_requests` made. Raises InputError."""
        self.task, self.requests, self.truths = task, read_requests(index), read_truths(index)
        asked = task.reward.counted(besides=("judge",))
        backends = asked.backends | {"oracle": Divided(Oracle(self.truths))}
        self.reward = WeightedReward(backends, {"oracle": 0.0} | asked.weights)
        self.before: list[float] | None = None
        self.after: list[float] | None = None

    def __call__(self, state: Any, step: int) -> Iterator[tuple[str, float | np.ndarray]]:
        """Yields means over the requests and standard errors: "oracle" is the truth, the names of `Scores` its four
        parts (0..25), "reward" the run's own, "judge" the judge's part, whether it counts or not; "outside_change" is
        that of `changed_outside`, over the requests that have an outside."""
        found: dict[str, list[float]] = {name: [] for name in ("oracle", *MEASURES)}
        for edits, rewards in self._scored(state):
            first = len(found["oracle"])
            outside = map(changed_outside, edits, self.truths[first : first + len(edits)])
            found["outside_change"] += [value for value in outside if value is not None]
            found["oracle"] += rewards.parts["oracle/reward"].tolist()
            found["reward"] += rewards.reward[rewards.valid].tolist()
            found["judge"] += [value for value in rewards.parts.get("judge/reward", ()) if np.isfinite(value)]
            for name in Scores._fields:
                found[name] += rewards.parts[f"oracle/{name}"].tolist()
        self.after = found["oracle"]
        if step == 0:
            self.before = self.after
        for name, values in found.items():
            if values:
                yield name, float(np.mean(values))
            if len(values) > 1:
                yield f"{name}_sem", standard_error(values)
        yield "invalid_share", 1 - len(found["reward"]) / len(self.after)

    def gain(self, history: History) -> dict[str, Any]:
        """Means before and after the run, and the paired difference of the oracle's scores with its 95% interval.

        What was not measured is not there: "before" in a run that went on from one without held-out edits.
        """
        ends = {"before": (self.before, history.eval_first), "after": (self.after, history.eval_last)}
        found: dict[str, Any] = {}
        for when, (scores, means) in ends.items():
            if scores is not None:
                found[f"oracle_{when}"] = float(np.mean(scores))
                found |= {f"heldout_{name}_{when}": means.get(f"heldout/{name}") for name in MEASURES}
        if self.before is not None and self.after is not None:
            apart = np.subtract(self.after, self.before)
            mean, half = float(apart.mean()), Z95 * standard_error(apart)
            found |= {"oracle_gain": mean, "oracle_gain_ci95": [mean - half, mean + half]}
        return found

    def record(self) -> dict[str, Any]:
        """Scores of before the first step and of the newest evaluation, for a run that goes on."""
        return {"before": self.before, "after": self.after}

    def restore_record(self, record: dict[str, Any]) -> None:
        """Undoes `record`. Raises InputError for scores of another number of requests."""
        for scores in record.values():
            if scores is not None and len(scores) != len(self.requests):
                raise InputError(
                    f"eval.heldout={len(self.requests)}, but the run to resume measured {len(scores)}: use that number"
                )
        self.before, self.after = record["before"], record["after"]

    def _scored(self, state: Any) -> Iterator[tuple[list[Edit], Rewards]]:
        """Edits and their rewards, as many at a time as a phase has: the judge has programs for these."""
        most, edits = self.task.settings.prompts * self.task.settings.group, []
        for first in range(0, len(self.requests), CHUNK):
            edits += self._chunk(state, first)
            while len(edits) >= most:
                yield edits[:most], self.reward(edits[:most])
                edits = edits[most:]
        if edits:
            yield edits, self.reward(edits)

    def _chunk(self, state: Any, first: int) -> list[Edit]:
        """Edits of some requests; the last chunk is filled up with requests that do not count."""
        task = self.task
        rows = [min(row, len(self.requests) - 1) for row in range(first, first + CHUNK)]
        batch = load_batch([self.requests[row] for row in rows], task.size)
        encoded = task.encode(batch, HELDOUT)
        latents, _ = task.sample(
            state.params, encoded, task.sample_keys(batch, HELDOUT, 1), ode_plan(task.settings.sampler_steps)
        )
        real = min(CHUNK, len(self.requests) - first)
        return task.edits(batch, task.decode(encoded, latents))[:real]


def changed_outside(edit: Edit, truth: EditSample) -> float | None:
    """Mean absolute change, 0..1, outside the regions that a perfect edit changes (with the guards' margin).

    None where it may change all of the picture.
    """
    (edit,) = read_edits([edit])
    regions = truth.at_side(edit.edited.shape[0]).regions
    inside = box_mask(edit.edited.shape[:2], regions, margin=Guards.margin)
    return None if inside.all() else outside_change(match_size(edit.sources[0], edit.edited), edit.edited, inside)
