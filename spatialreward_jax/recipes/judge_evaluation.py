"""How good a judge in training is: its answers token by token, and what it says on its own about EditWorld's edits."""

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from spatialreward_jax.data.editworld import (
    GROUNDING_QUESTION,
    box_1000,
    exact_reward,
    grounding_answer,
    ranking,
    render,
)
from spatialreward_jax.data.lessons import Candidates
from spatialreward_jax.data.mixing import Mixture, Rows
from spatialreward_jax.evaluation.regions import match, union_iou
from spatialreward_jax.recipes.optimizing import add_metrics
from spatialreward_jax.reporting.overlay import draw_regions
from spatialreward_jax.reporting.tensorboard import image_grid
from spatialreward_jax.reward.judge import RewardModel
from spatialreward_jax.reward.loading import for_serving
from spatialreward_jax.reward.protocol import Question
from spatialreward_jax.reward.types import Edit
from spatialreward_jax.reward.vlm import VLM, Decoding

if TYPE_CHECKING:
    from spatialreward_jax.recipes.reward_sft import RewardSFT

SHOWN = 8
"""Verdicts in the picture."""


class HeldoutAnswers:
    """Evaluator: loss and token accuracy on held-out rows, each lesson apart; no dropout."""

    def __init__(self, task: "RewardSFT", sources: Mapping[str, Rows]):
        self._task, self._batches = task, {}
        for name, rows in sources.items():
            count = task.settings.eval_batches
            mixture = Mixture({name: rows}, {name: 1.0}, task.settings.batch, count, 0)
            self._batches[name] = [task.pack(mixture[number][2]) for number in range(count)]

    def __call__(self, state: Any, step: int) -> Iterator[tuple[str, float | np.ndarray]]:
        """Yields ("LESSON/loss", nats) and ("LESSON/token_accuracy", share)."""
        task = self._task
        for name, batches in self._batches.items():
            total: dict = {}
            with jax.set_mesh(task.net.mesh):
                for batch in batches:
                    found = task.updates.evaluate(state.params, task.frozen, task.placed(batch), None)
                    total = add_metrics(total, found)
            for metric, mean in total.items():
                yield f"{name}/{metric}", float(mean.value())


class Verdicts:
    """Evaluator: real greedy decoding on a fixed set of EditWorld's validation split.

    `edits` pairs of candidates of one edit are scored; `grounding` pictures are grounded.
    """

    def __init__(self, task: "RewardSFT"):
        s = task.settings
        self._task = task
        decoding = Decoding(max_new_tokens=s.max_new_tokens)
        self._vlm = VLM(task.net, task.processor, decoding, model=s.judge)
        parsing = "strict" if s.boxes else "no_regions"
        self._model = RewardModel(self._vlm, templates=task.templates, parsing=parsing)
        self._pairs = [ranking("validation", index, 2) for index in range(s.eval_edits)]
        self._edits = [
            Edit(render(candidate.sample.source), candidate.image(), candidate.sample.instruction)
            for pair in self._pairs
            for candidate in pair
        ]
        world = Candidates("validation", max(s.eval_grounding, 1))
        self._scenes = [world[index][0].sample.source for index in range(s.eval_grounding)]

    def __call__(self, state: Any, step: int) -> Iterator[tuple[str, float | np.ndarray]]:
        """Yields valid share, region IoU, pairwise accuracy, correlation with the truth, grounding IoU, a picture."""
        self._vlm.net = for_serving(self._task.trained(state))
        if self._scenes:
            yield from self._grounding()
        if not self._edits:
            return
        scores = self._model.score(self._edits)
        candidates = [candidate for pair in self._pairs for candidate in pair]
        valid = np.array([score.valid for score in scores])
        yield "valid", float(valid.mean())
        overlaps = [
            union_iou([region.bbox_2d for region in score.regions], _boxes(candidate)) if score.valid else 0.0
            for score, candidate in zip(scores, candidates)
        ]
        yield "region_iou", float(np.mean(overlaps))
        reward = np.array([score.reward if score.valid else np.nan for score in scores]).reshape(-1, 2)
        yield "pairwise_accuracy", float(np.mean(reward[:, 0] > reward[:, 1]))  # False where one is not valid
        truth = np.array([exact_reward(candidate) for candidate in candidates])
        if valid.sum() > 2 and np.ptp(reward.ravel()[valid]) > 0:
            yield "correlation", float(np.corrcoef(reward.ravel()[valid], truth[valid])[0, 1])
        rows = [
            [edit.source, draw_regions(edit.edited, score.regions)]
            for edit, score in list(zip(self._edits, scores))[:SHOWN]
        ]
        yield "verdicts", image_grid(rows)

    def _grounding(self) -> Iterator[tuple[str, float]]:
        replies = self._vlm.answer([Question((render(s),), GROUNDING_QUESTION, "sc") for s in self._scenes])
        overlaps, named, readable = [], [], 0
        for scene, reply in zip(self._scenes, replies):
            answered, wanted = read_grounding(reply.text), read_grounding(grounding_answer(scene))
            readable += answered is not None
            overlaps += match([box for _, box in answered or ()], [box for _, box in wanted])
            names = [label for label, _ in answered or ()]
            named += [label in names for label, _ in wanted]
        yield "grounding_readable", readable / len(self._scenes)
        yield "grounding_iou", float(np.mean(overlaps))
        yield "grounding_named", float(np.mean(named))


def read_grounding(text: str) -> list[tuple[str, tuple[float, ...]]] | None:
    """(label, box in 0..1000) of every shape that an answer lists; None if it is no such list."""
    try:
        found = [(str(item["label"]), tuple(float(x) for x in item["bbox_2d"])) for item in json.loads(text)]
    except (ValueError, TypeError, KeyError):
        return None
    return found if all(len(box) == 4 for _, box in found) else None


def _boxes(candidate: Any) -> list[tuple[float, ...]]:
    side = candidate.sample.source.side
    return [tuple(map(float, box_1000(region.box, side))) for region in candidate.regions]
