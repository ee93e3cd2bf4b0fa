"""The oracle: scores any picture against the truth of an EditWorld edit.

It reads the picture back (`viewing.py`: which shapes stand where, with which attributes, on which ground, in which
tone, with which flaws) and applies the written rule of `rule.py` to what it reads, weighted by how sure each reading
is. So an added shape may stand anywhere in the cell that was named, a new ground may have any texture, and a half-way
change earns a part. A picture of one colour, which shows neither shape nor flaw, earns nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np
import PIL.Image

from spatialreward_jax.data.editworld import rule
from spatialreward_jax.data.editworld.artifacts import BLOCK
from spatialreward_jax.data.editworld.edits import EditSample, Op
from spatialreward_jax.data.editworld.reading import Reading
from spatialreward_jax.data.editworld.render import render
from spatialreward_jax.data.editworld.requests import read_truths
from spatialreward_jax.data.editworld.scenes import Shape
from spatialreward_jax.data.editworld.viewing import View, reader_of
from spatialreward_jax.errors import InputError
from spatialreward_jax.io.images import read_image
from spatialreward_jax.reward.aggregate import Aggregation
from spatialreward_jax.reward.backends import Graded
from spatialreward_jax.reward.types import Edit

_SHAPE_AREA = 0.045  # share of the picture that an extra shape takes
_SIDES = (48, 256)  # pixels; pictures of other sizes are resized to the source's
_SAME = 4.0  # mean difference of thumbnails, in levels, up to which two sources are one
ALIKE = 0.35  # least likeness with which an unexpected shape counts as one that went missing


def oracle_scores(image: np.ndarray, sample: EditSample) -> rule.Scores:
    """Scores a picture, uint8 [H, W, 3] of any size, as an answer to an edit -> four scores in 0..25."""
    return judge_view(*view_of(image, sample))


def view_of(image: np.ndarray, sample: EditSample) -> tuple[View, EditSample]:
    """What a picture, uint8 [H, W, 3] of any size, shows of an edit -> (the view, the edit at the picture's size)."""
    side = image.shape[0]
    if image.shape[1] != side or not _SIDES[0] <= side <= _SIDES[1] or side % BLOCK:
        side = sample.source.side
        image = np.asarray(PIL.Image.fromarray(image).resize((side, side), PIL.Image.Resampling.LANCZOS))
    if side != sample.source.side:
        sample = sample.at_side(side)
    return reader_of(sample)(image), sample


def judge_view(view: View, sample: EditSample) -> rule.Scores:
    """Applies the rule to what a picture shows."""
    others, strays = list(view.others), {}
    credits = [_credit(view, sample, index, others, strays) for index in range(len(sample.ops))]
    strengths = {kind: rule.visible(kind, amount) for kind, amount in view.amounts.items()}
    harm = _damage(view, sample, others, strays)
    quality = (view.content * score for score in rule.quality_scores(strengths))
    success = view.content * rule.success_score(credits)
    return rule.Scores(success, view.content * rule.preservation_score(harm), *quality)


def _changed_to(weights: dict[str, float], asked: str, before: str) -> float:
    right, same = weights[asked], weights[before] if before != asked else 0.0
    return right + rule.HALF_DONE * max(1 - right - same, 0.0)


def _credit(view: View, sample: EditSample, index: int, others: list[Reading], strays: dict[int, Reading]) -> float:
    """How far one operation is fulfilled, 0..1.

    Takes the unexpected shape that it explains out of `others`; one that was moved to a wrong place goes to `strays`.
    """
    op, source = sample.ops[index], sample.source
    if op.kind == "background":
        return _changed_to(view.ground, op.ground.kind, source.ground.kind)
    if op.kind == "tone":
        return _changed_to(view.tone, op.tone, source.tone)
    if op.kind == "add":
        return _added_credit(view.goals[index], op, others)
    before, now = source.shapes[op.target], view.places[op.target]
    if op.kind == "remove":
        return 1 - now.present
    if op.kind == "move":
        return _moved_credit(view, sample, index, others, strays)
    if op.kind == "replace":
        kind, color = now.kind[op.after.kind], now.color[op.after.color]
        old = now.kind[before.kind]
        half = rule.HALF_DONE
        credit = (
            kind * (color + (1 - color) * rule.RIGHT_KIND) + max(1 - kind - old, 0.0) * (color + (1 - color) / 2) * half
        )
        return now.present * (credit + (old * half * color if op.after.color != before.color else 0.0))
    field = op.stated[0]
    return now.present * _changed_to(getattr(now, field), getattr(op.after, field), getattr(before, field))


def _added_match(op: Op, reading: Reading) -> float:
    weights = rule.look_weights(op)
    right = sum(weight * reading.weight(field, getattr(op.after, field)) for field, weight in weights.items())
    return reading.present * right / sum(weights.values())


def _added_credit(goal: Reading, op: Op, others: list[Reading]) -> float:
    here = _added_match(op, goal)
    if goal.present > 0.5 or not others:
        return here
    best = max(others, key=lambda other: _added_match(op, other))
    elsewhere = rule.ELSEWHERE * _added_match(op, best)
    if elsewhere > here:
        others.remove(best)
    return max(here, elsewhere)


def likeness(shape: Shape, reading: Reading) -> float:
    """How much a reading looks like a shape, by kind and colour, 0..1."""
    return reading.present * reading.kind[shape.kind] * reading.color[shape.color]


def _moved_credit(
    view: View, sample: EditSample, index: int, others: list[Reading], strays: dict[int, Reading]
) -> float:
    target = sample.ops[index].target
    before = sample.source.shapes[target]
    left = 1 - likeness(before, view.places[target])
    there = likeness(before, view.goals[index])
    if view.goals[index].present < 0.5 and others and left > 0.5:
        best = max(others, key=lambda other: likeness(before, other))
        if likeness(before, best) > max(ALIKE, there):
            others.remove(best)
            strays[target] = best
            return rule.HALF_DONE * left * likeness(before, best)
    # A copy that leaves the old one standing is half a move.
    return there * (1 + left) / 2


def _damage(view: View, sample: EditSample, others: list[Reading], strays: dict[int, Reading]) -> float:
    total = 0.0
    # Where a moved shape was expected something else may have come to stand.
    for op, goal in zip(sample.ops, view.goals):
        if op.kind == "move" and goal.present > 0.5 and likeness(sample.source.shapes[op.target], goal) < ALIKE:
            others.append(goal)
    for index, shape in enumerate(sample.source.shapes):
        free = rule.free_fields(sample.ops, index)
        seen = [view.places[index]]
        seen += [goal for op, goal in zip(sample.ops, view.goals) if op.kind == "move" and op.target == index]
        seen += [strays[index]] if index in strays else []
        reading = max(seen, key=lambda r: (round(likeness(shape, r), 3), r.present))
        harm = _shape_damage(shape, reading, free)
        if reading.present < 0.5 and "presence" not in free and others:
            best = max(others, key=lambda other: likeness(shape, other))
            if likeness(shape, best) > ALIKE:  # it was moved without being asked
                others.remove(best)
                place = 0.0 if "place" in free else rule.DAMAGE["place"]
                harm = min(harm, place + _shape_damage(shape, best, free))
        total += harm
    total += rule.EXTRA_SHAPE * sum(other.present for other in others)
    asked = {op.kind for op in sample.ops}
    if "tone" not in asked:
        total += rule.UNASKED_TONE * (1 - view.tone[sample.source.tone])
    if "background" not in asked:
        total += rule.UNASKED_GROUND * (1 - view.ground_kept)
    # A wholly new ground is counted already.
    return total + _smudge_damage(view.smudge) * view.ground_kept


def _smudge_damage(share: float) -> float:
    """A smudge as large as a shape counts as an extra shape, one all over as an unasked ground."""
    spread = (rule.UNASKED_GROUND - rule.EXTRA_SHAPE) * max(share - 0.1, 0.0) / 0.9
    return rule.EXTRA_SHAPE * min(share / _SHAPE_AREA, 1.0) + spread


def _shape_damage(shape: Shape, reading: Reading, free: frozenset[str]) -> float:
    changed = sum(
        rule.DAMAGE[field] * (1 - reading.weight(field, getattr(shape, field)))
        for field in ("kind", "color", "texture", "size")
        if field not in free
    )
    gone = 0.0 if "presence" in free else rule.DAMAGE["presence"] * (1 - reading.present)
    return min(gone + reading.present * min(changed, 1.0), 1.0)


class Oracle:
    """The oracle as a reward backend: finds the truth of an edit by its source image and instruction."""

    def __init__(self, samples: Iterable[EditSample], aggregation: Aggregation | None = None):
        """samples: the edits that may be asked for, see `from_requests`. aggregation: of the four scores."""
        self.aggregation = aggregation or Aggregation()
        self._known: dict[str, list[tuple[np.ndarray, EditSample]]] = {}
        for sample in samples:
            known = self._known.setdefault(sample.instruction.strip(), [])
            known.append((_thumbnail(render(sample.source)), sample))

    @classmethod
    def from_requests(cls, index: str | os.PathLike) -> Oracle:
        """The oracle of a file that `write_requests` made: truth is read from `meta_data`."""
        return cls(read_truths(index))

    def __call__(self, edits: Sequence[Edit], scores=None) -> list[Graded]:
        """Grades every edit: reward 0..1 and the four scores. `scores` of other backends are not needed.

        Raises InputError for an edit whose source and instruction are not among the known ones.
        """
        return [self._grade(edit) for edit in edits]

    def truth(self, edit: Edit) -> EditSample:
        """What was asked of an edit. Raises InputError for one whose source and instruction are not known."""
        known = self._known.get(edit.instruction.strip(), [])
        small = _thumbnail(read_image(edit.sources[0]))
        # The source may come resized: thumbnails tell sources of one instruction apart all the same.
        gaps = [float(np.abs(small - other).mean()) for other, _ in known]
        if not gaps or min(gaps) > _SAME:
            raise InputError(f"the oracle does not know the edit {edit.instruction!r}: use the set it was made from")
        return known[int(np.argmin(gaps))][1]

    def _grade(self, edit: Edit) -> Graded:
        four = oracle_scores(read_image(edit.edited), self.truth(edit))
        return Graded(self.aggregation(four[:2], four[2:]).reward, four._asdict())


def _thumbnail(image: np.ndarray) -> np.ndarray:
    return np.asarray(PIL.Image.fromarray(image).resize((16, 16), PIL.Image.Resampling.BOX), np.float32)
