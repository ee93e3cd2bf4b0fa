"""What any picture shows of an EditWorld edit, told as operations, flaws and scores, so that it can be a lesson.

Candidates know what they show; an editor's own edits have to be read. `oracle.py` reads and scores them softly; here
the reading is made discrete, so that the same words can be written about it (`answers.py`).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from spatialreward_jax.data.editworld import oracle, rule
from spatialreward_jax.data.editworld.artifacts import AMOUNTS, Artifact
from spatialreward_jax.data.editworld.candidates import MAX_REGIONS
from spatialreward_jax.data.editworld.edits import EditRegion, EditSample, Op, regions
from spatialreward_jax.data.editworld.reading import Reading
from spatialreward_jax.data.editworld.scenes import Shape
from spatialreward_jax.data.editworld.viewing import View, as_shape

_FAINTEST = 0.15  # strength from which a flaw is named: that of the weakest flaw of a candidate
_LOOKS = {"color": "recolor", "texture": "retexture", "size": "resize"}


@dataclasses.dataclass(frozen=True)
class Observed:
    """A picture as it was read; what `Candidate` is for a picture that was made.

    done: operations that it shows, those on what was asked for first, cut to MAX_REGIONS regions. artifacts: its flaws.
    scores: the oracle's.
    """

    sample: EditSample
    done: tuple[Op, ...]
    artifacts: tuple[Artifact, ...]
    scores: rule.Scores

    @property
    def regions(self) -> list[EditRegion]:
        """Where the picture differs from its source, flaws apart."""
        return regions(self.sample.source, self.done)


def observe(image: np.ndarray, sample: EditSample) -> Observed:
    """Reads a picture, uint8 [H, W, 3] of any size, as an answer to an edit."""
    view, sample = oracle.view_of(image, sample)
    done: list[Op] = []
    for op in _operations(view, sample):
        if len(regions(sample.source, (*done, op))) <= MAX_REGIONS:
            done.append(op)
    return Observed(sample, tuple(done), _artifacts(view), oracle.judge_view(view, sample))


def _artifacts(view: View) -> tuple[Artifact, ...]:
    found = []
    for kind, amount in sorted(view.amounts.items()):
        start, span = AMOUNTS[kind]
        if rule.visible(kind, amount) > _FAINTEST:
            found.append(Artifact(kind, min((amount - start) / span, 1.0)))
    return tuple(found)


def _operations(view: View, sample: EditSample) -> list[Op]:
    """All that changed: what was asked for in the instruction's order, then the rest by the harm that it is."""
    source, others = sample.source, [other for other in view.others if other.present > 0.5]
    asked = {op.kind if op.target < 0 else op.target: rank for rank, op in enumerate(sample.ops)}
    found: list[tuple[float, Op]] = []

    def add(op: Op, about: str | int, harm: float) -> None:
        found.append((asked.get(about, len(asked) + rule.UNASKED_GROUND - harm), op))

    for index, shape in enumerate(source.shapes):
        if op := _change(view, sample, index, others):
            add(op, index, rule.damage_of(shape, op.after, frozenset()))
    for op, goal in zip(sample.ops, view.goals):
        if op.kind == "add" and goal.present > 0.5:
            add(Op("add", -1, as_shape(goal), op.stated), "add", rule.EXTRA_SHAPE)
        elif op.kind == "move" and goal.present > 0.5 and all(other.target != op.target for _, other in found):
            add(Op("add", -1, as_shape(goal), ("kind", "color")), op.target, rule.EXTRA_SHAPE)  # a copy
    if view.ground_kept < 0.5:
        kind = max(view.ground, key=view.ground.get)
        op = Op("background", ground=dataclasses.replace(source.ground, kind=kind))
        add(op, "background", rule.UNASKED_GROUND)
    tone = max(view.tone, key=view.tone.get)
    if tone != source.tone:
        add(Op("tone", tone=tone), "tone", rule.UNASKED_TONE)
    for other in others:
        add(Op("add", -1, as_shape(other), ("kind", "color")), "", rule.EXTRA_SHAPE)  # never what was asked
    return [op for _, op in sorted(found, key=lambda item: item[0])]


def _change(view: View, sample: EditSample, index: int, others: list[Reading]) -> Op | None:
    """What became of one shape of the source; takes the unexpected shape that it explains out of `others`."""
    shape, now = sample.source.shapes[index], view.places[index]
    asked = next((op for op in sample.ops if op.target == index), None)
    if now.present < 0.5:
        places = [view.goals[sample.ops.index(asked)]] if asked and asked.kind == "move" else []
        for place in places + others:
            if place.present > 0.5 and oracle.likeness(shape, place) > oracle.ALIKE:
                if place in others:
                    others.remove(place)
                return Op("move", index, dataclasses.replace(shape, x=place.x, y=place.y), ("place",))
        return Op("remove", index)
    looks = ("kind", *_LOOKS)
    changed = [field for field in looks if now.weight(field, getattr(shape, field)) < 0.5]
    after = _with(shape, now, changed)
    changed = [field for field in changed if getattr(after, field) != getattr(shape, field)]
    if not changed:
        return None
    if "kind" in changed:
        return Op("replace", index, after, ("kind", "color"))
    field = asked.stated[0] if asked and asked.stated and asked.stated[0] in changed else changed[0]
    return Op(_LOOKS[field], index, after, (field,))


def _with(shape: Shape, now: Reading, fields: list[str]) -> Shape:
    return dataclasses.replace(shape, **{field: now.best(field) for field in fields})
