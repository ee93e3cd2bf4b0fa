"""The written rule: from what was asked and what is shown to four scores in 0..25.

It is used twice with the same numbers: exactly, on known candidates, and softly by the oracle, on what it reads in a
picture. All parts are monotone: an operation more fulfilled never lowers *success*; a change more outside never raises
*no over-editing*; a stronger flaw never raises either quality score.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from spatialreward_jax.data.editworld.artifacts import AMOUNTS, Artifact
from spatialreward_jax.data.editworld.edits import Op
from spatialreward_jax.data.editworld.scenes import Ground, Scene, Shape

RANGE = 25.0
HALF_DONE = 0.3  # credit for a change of the right thing to the wrong value
RIGHT_KIND = 0.6  # credit for a replacement of the right kind in the wrong colour
ELSEWHERE = 0.4  # factor for an added shape that stands in the wrong place
MOVED = 0.1  # a shift by more than this fraction of the side counts as a move
DAMAGE = {  # weight of an unasked change of one shape, by field; what happens to one shape sums to 1 at most
    "presence": 1.0,
    "kind": 0.7,
    "color": 0.6,
    "place": 0.6,
    "texture": 0.35,
    "size": 0.35,
}
EXTRA_SHAPE = 0.8
UNASKED_GROUND = 1.5
UNASKED_TONE = 1.2
DECAY = 0.7  # no over-editing = RANGE * exp(-DECAY * damage)
NATURALNESS_LOSS = {"blur": 0.65, "noise": 0.45, "blocks": 0.55, "speckle": 0.5}
CLEANNESS_LOSS = {"blur": 0.5, "noise": 0.75, "blocks": 0.8, "speckle": 0.85}


class Scores(NamedTuple):
    """The four dimensions, each 0..25."""

    success: float
    no_overedit: float
    naturalness: float
    artifact_free: float


@dataclasses.dataclass(frozen=True)
class State:
    """What a picture shows, shape by shape of its source.

    shapes: one entry for each shape of the source, None where it is gone. added: shapes without a counterpart.
    """

    shapes: tuple[Shape | None, ...]
    added: tuple[Shape, ...]
    ground: Ground
    tone: str


def state_after(source: Scene, ops: tuple[Op, ...]) -> State:
    """The state that operations on a source lead to."""
    shapes: list[Shape | None] = list(source.shapes)
    for op in ops:
        if op.target >= 0:
            shapes[op.target] = op.after
    added = tuple(op.after for op in ops if op.kind == "add")
    ground = next((op.ground for op in reversed(ops) if op.ground), source.ground)
    tone = next((op.tone for op in reversed(ops) if op.kind == "tone"), source.tone)
    return State(tuple(shapes), added, ground, tone)


def moved(before: Shape, after: Shape) -> bool:
    """Whether the centre shifted by more than a rendering's play."""
    return math.hypot(before.x - after.x, before.y - after.y) > MOVED


def look_weights(op: Op) -> dict[str, float]:
    """How much each stated look of an added shape counts; its place is no look."""
    return {field: 2.0 if field in ("kind", "color") else 1.0 for field in op.stated if field != "place"}


def added_credit(op: Op, shape: Shape) -> float:
    """How far an added shape is the one asked for: the share of the stated looks, less where it stands elsewhere."""
    weights = look_weights(op)
    right = sum(weight for field, weight in weights.items() if getattr(shape, field) == getattr(op.after, field))
    factor = 1.0 if "place" not in op.stated or shape.place == op.after.place else ELSEWHERE
    return right / sum(weights.values()) * factor


def credit(op: Op, source: Scene, shown: State) -> float:
    """How far one operation is fulfilled, 0..1."""
    if op.kind == "background":
        return _changed_to(shown.ground.kind, op.ground.kind, source.ground.kind)
    if op.kind == "tone":
        return _changed_to(shown.tone, op.tone, source.tone)
    if op.kind == "add":
        return max((added_credit(op, shape) for shape in shown.added), default=0.0)
    before, now = source.shapes[op.target], shown.shapes[op.target]
    if op.kind == "remove":
        return float(now is None)
    if now is None:
        return 0.0
    if op.kind == "replace":
        if now.kind == before.kind:
            return HALF_DONE * (now.color == op.after.color != before.color)
        kind = now.kind == op.after.kind
        color = now.color == op.after.color
        return {2: 1.0, 1: RIGHT_KIND if kind else HALF_DONE, 0: HALF_DONE / 2}[kind + color]
    if op.kind == "move":
        return 1.0 if now.place == op.after.place and moved(before, now) else HALF_DONE * moved(before, now)
    field = op.stated[0]
    return _changed_to(getattr(now, field), getattr(op.after, field), getattr(before, field))


def _changed_to(now: str, asked: str, before: str) -> float:
    return 1.0 if now == asked else HALF_DONE * (now != before)


def free_fields(ops: tuple[Op, ...], index: int) -> frozenset[str]:
    """Fields of a shape that the operations on it may change without blame."""
    free: set[str] = set()
    for op in ops:
        if op.target == index:
            free |= {
                "remove": set(DAMAGE),
                "replace": {"kind", "color", "texture", "size"},
                "move": {"place"},
                "resize": {"size"},
            }.get(op.kind, set(op.stated))
    return frozenset(free)


def damage_of(before: Shape, now: Shape | None, free: frozenset[str]) -> float:
    """Weight of what happened to one shape without being asked, 0..1."""
    if now is None:
        return 0.0 if "presence" in free else DAMAGE["presence"]
    changed = {f for f in ("kind", "color", "texture", "size") if getattr(before, f) != getattr(now, f)}
    if moved(before, now):
        changed.add("place")
    return min(sum(DAMAGE[field] for field in changed - free), 1.0)


def damage(source: Scene, ops: tuple[Op, ...], shown: State) -> float:
    """Sum of all unasked changes, 0 upwards."""
    total = sum(
        damage_of(before, now, free_fields(ops, index))
        for index, (before, now) in enumerate(zip(source.shapes, shown.shapes))
    )
    asked = {op.kind for op in ops}
    total += EXTRA_SHAPE * max(len(shown.added) - sum(op.kind == "add" for op in ops), 0)
    total += UNASKED_GROUND * ("background" not in asked and shown.ground != source.ground)
    return total + UNASKED_TONE * ("tone" not in asked and shown.tone != source.tone)


def success_score(credits: list[float]) -> float:
    """Credits of the operations -> 0..25."""
    return RANGE * sum(credits) / len(credits)


def preservation_score(total_damage: float) -> float:
    """Damage -> 0..25."""
    return RANGE * math.exp(-DECAY * total_damage)


def quality_scores(strengths: dict[str, float]) -> tuple[float, float]:
    """Strengths of flaws, 0..1 each -> (naturalness, artifact_free), 0..25 each."""
    natural = math.prod(1 - NATURALNESS_LOSS[kind] * strength for kind, strength in strengths.items())
    clean = math.prod(1 - CLEANNESS_LOSS[kind] * strength for kind, strength in strengths.items())
    return RANGE * natural, RANGE * clean


def visible(kind: str, amount: float) -> float:
    """Strength with which a flaw of a physical amount counts in the scores, 0..1.

    Continuous and rising: 0 up to 0.4 of the least amount that candidates have, 0.15 at that one, 1 at the largest.
    """
    start, span = AMOUNTS[kind]
    if amount < start:
        return 0.15 * max(amount / start - 0.4, 0.0) / 0.6
    return 0.15 + 0.85 * min((amount - start) / span, 1.0)


def score(source: Scene, ops: tuple[Op, ...], done: tuple[Op, ...], artifacts: tuple[Artifact, ...] = ()) -> Scores:
    """Exact scores of a picture that shows `done` where `ops` were asked, with flaws over it."""
    shown = state_after(source, done)
    strengths = {artifact.kind: visible(artifact.kind, artifact.amount) for artifact in artifacts}
    credits = [credit(op, source, shown) for op in ops]
    return Scores(success_score(credits), preservation_score(damage(source, ops, shown)), *quality_scores(strengths))
