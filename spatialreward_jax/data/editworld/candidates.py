"""Candidate edits: pictures that follow an instruction well, badly or not at all, with known failures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from spatialreward_jax.data.editworld import rule
from spatialreward_jax.data.editworld.artifacts import FLAWS, Artifact, add_artifact
from spatialreward_jax.data.editworld.edits import EditRegion, EditSample, Op, apply_ops, random_op, regions
from spatialreward_jax.data.editworld.render import render_float
from spatialreward_jax.data.editworld.scenes import Scene, crowded, free_cells, place_in
from spatialreward_jax.data.editworld.vocabulary import fits_ground
from spatialreward_jax.errors import InputError

FAILURES = (
    "perfect",
    "unchanged",
    "wrong_object",
    "wrong_attribute",
    "partial",
    "over_edit",
    "wrong_place",
    "artifact",
    "mixture",
)
MAX_REGIONS = 3
_ON_SHAPES = ("recolor", "retexture", "remove", "move", "resize", "replace")
_ATTEMPTS = 12


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One picture offered as an answer to an edit.

    sample: the edit asked for. failure: one of FAILURES. done: the operations that the picture really shows.
    artifacts: flaws over it. seed: of their randomness.
    """

    sample: EditSample
    failure: str
    done: tuple[Op, ...]
    artifacts: tuple[Artifact, ...] = ()
    seed: int = 0

    @property
    def shown(self) -> Scene:
        """The scene in the picture."""
        return apply_ops(self.sample.source, self.done)

    @property
    def regions(self) -> list[EditRegion]:
        """Where the picture really differs from its source (flaws apart): empty when nothing was done."""
        return regions(self.sample.source, self.done)

    @property
    def scores(self) -> rule.Scores:
        """The exact scores, by `rule.score`."""
        return rule.score(self.sample.source, self.sample.ops, self.done, self.artifacts)

    def image(self) -> np.ndarray:
        """-> uint8 [side, side, 3]."""
        picture, rng = render_float(self.shown), np.random.default_rng(self.seed)
        for artifact in self.artifacts:
            picture = add_artifact(picture, artifact, rng)
        return np.rint(picture).astype(np.uint8)


def _consistent(source: Scene, done: tuple[Op, ...]) -> bool:
    scene = apply_ops(source, done)
    visible = all(fits_ground(shape.color, scene.ground.kind) for shape in scene.shapes)
    return visible and not crowded(scene.shapes) and len(regions(source, done)) <= MAX_REGIONS


def _untouched(sample: EditSample) -> list[int]:
    touched = {op.target for op in sample.ops}
    return [index for index in range(len(sample.source.shapes)) if index not in touched]


def _swap(ops: tuple[Op, ...], index: int, op: Op | None) -> tuple[Op, ...] | None:
    return None if op is None else (*ops[:index], op, *ops[index + 1 :])


def _wrong_object(sample: EditSample, rng: np.random.Generator) -> tuple[Op, ...] | None:
    """One operation done to another shape: the same new colour, pattern, kind or place where it has one."""
    places = [i for i, op in enumerate(sample.ops) if op.kind in _ON_SHAPES]
    others = _untouched(sample)
    if not places or not others:
        return None
    index, other = int(rng.choice(places)), int(rng.choice(others))
    op, shape = sample.ops[index], sample.source.shapes[other]
    if op.kind == "resize" or op.kind == "remove":
        return _swap(sample.ops, index, random_op(sample.source, op.kind, rng, other))
    change = {field: getattr(op.after, field) for field in op.stated if field != "place"}
    if op.kind == "move":
        change = {"x": op.after.x, "y": op.after.y}
    after = dataclasses.replace(shape, **change)
    return None if after == shape else _swap(sample.ops, index, dataclasses.replace(op, target=other, after=after))


def _wrong_attribute(sample: EditSample, rng: np.random.Generator) -> tuple[Op, ...] | None:
    """One operation done to the right thing with a wrong colour, pattern, kind, ground or tone."""
    index = int(rng.integers(len(sample.ops)))
    op = sample.ops[index]
    if op.kind in ("remove", "move", "resize"):
        return None
    if op.kind in ("add", "replace"):
        field = "color" if rng.uniform() < 0.5 else "kind"
        other = random_op(sample.source, op.kind, rng, op.target)
        value = getattr(other.after, field) if other else None
        before = sample.source.shapes[op.target] if op.kind == "replace" else None
        if not other or value == getattr(op.after, field) or (before and value == getattr(before, field)):
            return None
        return _swap(sample.ops, index, dataclasses.replace(op, after=dataclasses.replace(op.after, **{field: value})))
    other = random_op(sample.source, op.kind, rng, op.target)
    return None if other is None or _same_result(op, other) else _swap(sample.ops, index, other)


def _same_result(a: Op, b: Op) -> bool:
    grounds = [op.ground.kind if op.ground else None for op in (a, b)]
    return a.after == b.after and a.tone == b.tone and grounds[0] == grounds[1]


def _wrong_place(sample: EditSample, rng: np.random.Generator) -> tuple[Op, ...] | None:
    """A moved or added shape in a cell that was not named."""
    places = [i for i, op in enumerate(sample.ops) if op.kind in ("move", "add")]
    if not places:
        return None
    index = int(rng.choice(places))
    op = sample.ops[index]
    cells = free_cells(apply_ops(sample.source, sample.ops).shapes)
    if not cells:
        return None
    x, y = place_in(int(rng.choice(cells)), op.after.size, rng)
    if op.kind == "move" and not rule.moved(sample.source.shapes[op.target], dataclasses.replace(op.after, x=x, y=y)):
        return None
    return _swap(sample.ops, index, dataclasses.replace(op, after=dataclasses.replace(op.after, x=x, y=y)))


def _partial(sample: EditSample, rng: np.random.Generator) -> tuple[Op, ...] | None:
    """One part of a compound left out."""
    if len(sample.ops) < 2:
        return None
    left_out = int(rng.integers(len(sample.ops)))
    return sample.ops[:left_out] + sample.ops[left_out + 1 :]


def _with_extra(sample: EditSample, done: tuple[Op, ...], rng: np.random.Generator) -> tuple[Op, ...] | None:
    """Something more changed than was asked."""
    touched = {op.target for op in (*sample.ops, *done)}
    free = [index for index in range(len(sample.source.shapes)) if index not in touched]
    kinds = [k for k in ("add", "background", "tone") if k not in {op.kind for op in (*sample.ops, *done)}]
    kind = str(rng.choice([*_ON_SHAPES, *kinds] if free else kinds))
    if kind == "add":
        extra = random_op(apply_ops(sample.source, done), kind, rng)
    else:
        extra = random_op(sample.source, kind, rng, int(rng.choice(free)) if kind in _ON_SHAPES else None)
    return (*done, extra) if extra else None


def random_artifacts(rng: np.random.Generator) -> tuple[Artifact, ...]:
    """One flaw, sometimes two, of random strength."""
    kinds = rng.permutation(FLAWS)[: 1 + (rng.uniform() < 0.25)]
    return tuple(Artifact(str(kind), round(float(rng.uniform(0.02, 1)), 3)) for kind in sorted(kinds))


_STRUCTURAL = {
    "perfect": lambda sample, rng: sample.ops,
    "unchanged": lambda sample, rng: (),
    "wrong_object": _wrong_object,
    "wrong_attribute": _wrong_attribute,
    "partial": _partial,
    "over_edit": lambda sample, rng: _with_extra(sample, sample.ops, rng),
    "wrong_place": _wrong_place,
}


def make_candidate(sample: EditSample, failure: str, rng: np.random.Generator) -> Candidate | None:
    """A candidate with a given failure, or None where this edit cannot fail so (a single part has no partial).

    An *artifact* is a perfect edit with flaws; a *mixture* a wrong edit with one more change or with flaws or both.
    Raises InputError for an unknown failure.
    """
    if failure not in FAILURES:
        raise InputError(f"failure {failure!r} is unknown; choose one of {', '.join(FAILURES)}")
    seed = int(rng.integers(1 << 31))
    if failure == "artifact":
        return Candidate(sample, failure, sample.ops, random_artifacts(rng), seed)
    for _ in range(_ATTEMPTS):
        artifacts: tuple[Artifact, ...] = ()
        base = failure
        if failure == "mixture":
            base = str(rng.choice([name for name in _STRUCTURAL if name != "perfect"]))
        done = _STRUCTURAL[base](sample, rng)
        if failure == "mixture" and done is not None:
            flawed = rng.uniform() < 0.7
            artifacts = random_artifacts(rng) if flawed else ()
            if base != "over_edit" and (not flawed or rng.uniform() < 0.4):
                done = _with_extra(sample, done, rng)
        if done is None or not _consistent(sample.source, done):
            continue
        if failure in ("perfect", "unchanged") or rule.score(sample.source, sample.ops, done, artifacts) != rule.score(
            sample.source, sample.ops, sample.ops
        ):
            return Candidate(sample, failure, done, artifacts, seed)
    return None


def random_candidate(
    sample: EditSample, rng: np.random.Generator, failures: Sequence[str] = FAILURES, weights: Sequence[float] = ()
) -> Candidate:
    """A candidate with one of the failures that this edit allows (a perfect one where it allows none)."""
    p = np.array(weights or [1.0] * len(failures))
    for choice in rng.choice(len(failures), len(failures), replace=False, p=p / p.sum()):
        candidate = make_candidate(sample, failures[int(choice)], rng)
        if candidate:
            return candidate
    return Candidate(sample, "perfect", sample.ops)
