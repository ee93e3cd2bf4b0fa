"""What a perfect judge would write about a candidate: interleaved rationale and answer JSON, for both streams."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from spatialreward_jax.data.editworld import rule
from spatialreward_jax.data.editworld.candidates import Candidate
from spatialreward_jax.data.editworld.edits import EditRegion, Op, box_1000, regions
from spatialreward_jax.data.editworld.language import name
from spatialreward_jax.data.editworld.render import shape_box
from spatialreward_jax.data.editworld.scenes import Scene, Shape

if TYPE_CHECKING:
    from spatialreward_jax.data.editworld.observed import Observed

    Shown = Candidate | Observed

GROUNDING_QUESTION = "List every shape with its box."
CHANGES_QUESTION = "Before, after. List every change with its box."
_LOOK = ("size", "texture", "color", "kind", "place")
_WHOLE, _NOTHING = 22.5, 1.0  # scores of what is read as done or kept, and as not done; no candidate lies near them


def happened(op: Op) -> list[str]:
    """What one operation did, a few words for each of its regions."""
    after = op.after
    return {
        "recolor": lambda: [f"now {after.color}"],
        "retexture": lambda: [f"now {after.texture}"],
        "resize": lambda: [f"now {after.size}"],
        "replace": lambda: [f"now a {after.kind}"],
        "remove": lambda: ["now gone"],
        "add": lambda: ["new"],
        "move": lambda: ["moved here", "left empty"],
        "background": lambda: [f"now {op.ground.kind}"],
        "tone": lambda: [f"now {op.tone}"],
    }[op.kind]()


def _look(shape: Shape, fields: Sequence[str] = _LOOK) -> str:
    """A shape in the words of the vocabulary; plainness goes without saying."""
    return " ".join(getattr(shape, field) for field in _LOOK if field in fields and getattr(shape, field) != "plain")


def _change(source: Scene, op: Op) -> str:
    """An operation in full: what was there, where, and what became of it. Asked and done, it reads the same."""
    after = op.after
    before = _look(source.shapes[op.target]) if op.target >= 0 else ""
    return {
        "add": lambda: f"new {_look(after, op.stated)}",
        "move": lambda: f"{before} moved to {after.place}",
        "replace": lambda: f"{before} now a {name(after)}",
        "background": lambda: f"background now {op.ground.kind}",
        "tone": lambda: f"picture now {op.tone}",
    }.get(op.kind, lambda: f"{before} {happened(op)[0]}")()


def verdict(candidate: Shown, op: Op) -> str:
    """Whether an operation that was done is one that was asked."""
    for asked in candidate.sample.ops:
        related = asked.kind == op.kind if op.target < 0 else asked.target == op.target and asked.kind == op.kind
        if related:
            shown = rule.state_after(candidate.sample.source, (op,))
            got = rule.credit(asked, candidate.sample.source, shown)
            return " as asked" if got == 1 else f", wrong {_wrong_field(asked, op)}"
    return ", not asked"


def _wrong_field(asked: Op, op: Op) -> str:
    if asked.kind in ("background", "tone"):
        return asked.kind
    if op.after.place != asked.after.place and "place" in asked.stated:
        return "place"
    return next((f for f in asked.stated if f != "place" and getattr(op.after, f) != getattr(asked.after, f)), "thing")


def overall(scores: rule.Scores) -> str:
    """How much of the request was done, and what became of the rest."""
    done = "all done" if scores.success > _WHOLE else "not done" if scores.success < _NOTHING else "partly done"
    much = rule.preservation_score(1.0)
    kept = "rest kept" if scores.no_overedit > _WHOLE else "rest changed"
    return f"{done}, {kept}{' much' if scores.no_overedit <= much else ''}."


def rationale(candidate: Shown) -> str:
    """The reasoning of the consistency stream: the request, then every region cited and described, then the whole.

    Request and regions are told in the same words, with what was there before, so that the verdict is a comparison of
    texts: a small judge learns that, where it does not learn to compare a picture with a sentence at one glance.
    """
    source = candidate.sample.source
    asked = "; ".join(_change(source, op) for op in candidate.sample.ops)
    phrases = []
    for op in candidate.done:
        phrases += [_change(source, op) + verdict(candidate, op), *happened(op)[1:]]
    cited = [f"<|bbox_{i}|> {phrase}." for i, phrase in enumerate(phrases)]
    return " ".join([f"Instruction: {asked}.", *cited, f"<|global|> {overall(candidate.scores)}"])


def quality_rationale(candidate: Shown) -> str:
    """The reasoning of the quality stream: the flaws and how strong they are."""
    words = []
    for artifact in candidate.artifacts:
        degree = "weak" if artifact.strength < 0.33 else "clear" if artifact.strength < 0.67 else "strong"
        words.append(f"{degree} {artifact.kind}")
    return (", ".join(words) or "sharp and clean") + "."


def _dump(answer: dict | list) -> str:
    return json.dumps(answer, separators=(",", ":"))


def consistency_answer(candidate: Shown, *, boxes: bool = True, cited: bool = True) -> str:
    """The answer JSON of the consistency stream.

    boxes=False leaves `edit_region` out, cited=False the markers in the reasoning: the ablations of the paper.
    """
    side = candidate.sample.source.side
    found = [
        {"id": i, "label": region.label, "bbox_2d": list(box_1000(region.box, side))}
        for i, region in enumerate(candidate.regions)
    ]
    text = rationale(candidate)
    if not (boxes and cited):
        text = " ".join(word for word in text.split(" ") if not word.startswith("<|"))
    scores = candidate.scores
    answer = {"edit_region": found} if boxes else {}
    return _dump({**answer, "reasoning": text, "score": [round(scores.success), round(scores.no_overedit)]})


def answer_opening(regions: list[EditRegion], side: int) -> str:
    """How a consistency answer about these regions begins, up to its reasoning."""
    found = [{"id": i, "label": r.label, "bbox_2d": list(box_1000(r.box, side))} for i, r in enumerate(regions)]
    return _dump({"edit_region": found, "reasoning": ""}).removesuffix('"}')


def quality_answer(candidate: Shown) -> str:
    """The answer JSON of the quality stream."""
    scores = candidate.scores
    return _dump(
        {"reasoning": quality_rationale(candidate), "score": [round(scores.naturalness), round(scores.artifact_free)]}
    )


def grounding_answer(scene: Scene) -> str:
    """The answer to GROUNDING_QUESTION: every shape of one picture with its box in 0..1000, row by row from the top.

    Dense grounding of single pictures is the first lesson of a judge that is trained from scratch.
    """
    return _listed([(shape_box(shape, scene.side), name(shape)) for shape in scene.shapes], scene.side)


def changes_answer(source: Scene, ops: tuple[Op, ...]) -> str:
    """The answer to CHANGES_QUESTION: every changed place of a pair of pictures and what happened there, in the order
    of `grounding_answer`.

    The same lesson for pairs: with many changes at once a judge learns where pictures differ long before it could from
    the one or two of a real edit.
    """
    found = [
        (region.box, f"{region.label} {phrase}")
        for op in ops
        for region, phrase in zip(regions(source, (op,)), happened(op))
    ]
    return _listed(found, source.side)


def _listed(found: list[tuple[tuple[int, int, int, int], str]], side: int) -> str:
    """(box in pixels, label) of each thing -> JSON, row by row from the top."""
    found.sort(key=lambda item: (round(3 * item[0][1] / side), item[0][0]))
    return _dump([{"label": label, "bbox_2d": list(box_1000(box, side))} for box, label in found])
