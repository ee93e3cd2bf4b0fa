"""EditWorld's lessons for a judge: what a picture shows, what changed between two, and a judge's own two questions."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from spatialreward_jax.data.chat_rows import question_row
from spatialreward_jax.data.editworld import (
    CHANGES_QUESTION,
    GROUNDING_QUESTION,
    Candidate,
    EditSample,
    changes_answer,
    consistency_answer,
    grounding_answer,
    quality_answer,
    random_artifacts,
    random_candidate,
    render,
    sample_edit,
    several_ops,
)
from spatialreward_jax.data.editworld.candidates import FAILURES
from spatialreward_jax.data.editworld.vocabulary import SIDES
from spatialreward_jax.data.own_edits import OwnEdits
from spatialreward_jax.reward.chats import ChatRow


@dataclasses.dataclass(frozen=True)
class Wording:
    """How EditWorld's questions are put and answered.

    consistency: (instruction) -> question of the SC stream; quality: question of the PQ stream. boxes, cited: whether
    answers name regions, and whether the reasoning cites them.
    """

    consistency: Callable[[str], str]
    quality: str
    boxes: bool = True
    cited: bool = True


class Candidates:
    """Candidate edits of an EditWorld split with their pictures: index -> (candidate, source, edited).

    Entry n is candidate n % `candidates` of edit n // `candidates`; it is rendered when first asked for, and kept.
    `sides` of the pictures take turns, edit by edit. failures: weight of each of FAILURES (an edit cannot fail in every
    way); None: all alike.
    """

    def __init__(
        self,
        split: str,
        edits: int,
        candidates: int = 1,
        seed: int = 0,
        sides: Sequence[int] = tuple(SIDES),
        failures: Mapping[str, float] | None = None,
    ):
        self._split, self._count, self._per_edit, self._seed = split, edits * candidates, candidates, seed
        self._sides = tuple(sides)
        failures = dict.fromkeys(FAILURES, 1.0) if failures is None else failures
        self._failures = {name: weight for name, weight in failures.items() if weight}
        self._edits: dict[int, tuple[EditSample, np.ndarray]] = {}
        self._kept: dict[int, tuple[Candidate, np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return self._count

    def side(self, index: int) -> int:
        """Pixels of a side of the row's pictures."""
        return self._sides[index // self._per_edit % len(self._sides)]

    def edit(self, index: int) -> tuple[EditSample, np.ndarray]:
        """The edit that entry `index` is a candidate of, and its source."""
        edit = index // self._per_edit
        if edit not in self._edits:
            sample = sample_edit(self._split, edit, seed=self._seed, side=self.side(index))
            self._edits[edit] = sample, render(sample.source)
        return self._edits[edit]

    def __getitem__(self, index: int) -> tuple[Candidate, np.ndarray, np.ndarray]:
        if index not in self._kept:
            sample, source = self.edit(index)
            rng = np.random.default_rng([self._seed, 4, index])
            candidate = random_candidate(sample, rng, tuple(self._failures), tuple(self._failures.values()))
            self._kept[index] = candidate, source, candidate.image()
        return self._kept[index]


class Questions:
    """The judge's question of one stream, "consistency" or "quality", about every entry of a world."""

    def __init__(self, stream: str, world: Candidates | OwnEdits, wording: Wording):
        self._stream, self._world, self._wording = stream, world, wording
        self.keys = [world.side(row) for row in range(len(world))]

    def __getitem__(self, index: int) -> ChatRow:
        candidate, source, edited = self._world[index]
        if self._stream == "quality":
            return question_row([edited], self._wording.quality, quality_answer(candidate))
        answer = consistency_answer(candidate, boxes=self._wording.boxes, cited=self._wording.cited)
        return question_row([source, edited], self._wording.consistency(candidate.sample.instruction), answer)


class Grounding:
    """Every shape of one picture: of sources and candidates in turns."""

    def __init__(self, world: Candidates):
        self._world = world
        self.keys = [world.side(row) for row in range(len(world))]

    def __getitem__(self, index: int) -> ChatRow:
        candidate, source, edited = self._world[index]
        scene, shown = (candidate.shown, edited) if index % 2 else (candidate.sample.source, source)
        return question_row([shown], GROUNDING_QUESTION, grounding_answer(scene))


class Changes:
    """Every one of up to five changes that a source went through; rendered when first asked for, and kept.

    A quarter of the edited pictures is flawed: flaws are no changes.
    """

    def __init__(self, world: Candidates):
        self._world = world
        self._kept: dict[int, ChatRow] = {}
        self.keys = [world.side(row) for row in range(len(world))]

    def __getitem__(self, index: int) -> ChatRow:
        if index not in self._kept:
            sample, source = self._world.edit(index)
            rng = np.random.default_rng([5, index])
            ops = several_ops(sample.source, rng)
            artifacts = random_artifacts(rng) if rng.uniform() < 0.25 else ()
            edited = Candidate(sample, "mixture", ops, artifacts, int(rng.integers(1 << 31))).image()
            row = question_row([source, edited], CHANGES_QUESTION, changes_answer(sample.source, ops))
            self._kept[index] = row
        return self._kept[index]


Lesson = Questions | Grounding | Changes

LESSONS = ("grounding", "changes", "consistency", "quality")
"""Sources that EditWorld gives."""

OWN_LESSONS = {"own_consistency": "consistency", "own_quality": "quality"}
"""Sources that an editor's own edits give, and the stream of each."""


def editworld_lessons(world: Candidates, wording: Wording) -> dict[str, Lesson]:
    """All lessons on the same edits, by name."""
    questions = {stream: Questions(stream, world, wording) for stream in ("consistency", "quality")}
    return {"grounding": Grounding(world), "changes": Changes(world)} | questions


def own_lessons(edits: OwnEdits, wording: Wording) -> dict[str, Lesson]:
    """The judge's two questions about an editor's own edits, by name."""
    return {name: Questions(stream, edits, wording) for name, stream in OWN_LESSONS.items()}
