"""Edits of EditWorld: operations on scenes, the exact target, the exact regions that change."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from spatialreward_jax.data.editworld import language
from spatialreward_jax.data.editworld.render import shape_box
from spatialreward_jax.data.editworld.scenes import (
    Ground,
    Scene,
    Shape,
    crowded,
    free_cells,
    place_in,
    random_ground,
    scene_for,
)
from spatialreward_jax.data.editworld.vocabulary import COLORS, GROUNDS, KINDS, SIZES, TONES, fits_ground, textures_of
from spatialreward_jax.errors import InputError

TASKS = {  # kind of operation -> task type of the RL layout
    "recolor": "color_alter",
    "retexture": "material_alter",
    "remove": "subject_remove",
    "add": "subject_add",
    "move": "motion_change",
    "resize": "motion_change",
    "replace": "subject_replace",
    "background": "background",
    "tone": "tone_transfer",
}
KINDS_OF_EDIT = tuple(TASKS)
_TOUCHES_SHAPES = KINDS_OF_EDIT[:7]
_ATTEMPTS = 64


@dataclasses.dataclass(frozen=True)
class Op:
    """One operation.

    kind: key of TASKS. target: index of the source's shape that it changes, -1 for none. after: that shape (or the
    added one) afterwards, None where nothing stays. stated: the fields of `after` that the instruction demands.
    ground, tone: the new ones, where the operation sets them.
    """

    kind: str
    target: int = -1
    after: Shape | None = None
    stated: tuple[str, ...] = ()
    ground: Ground | None = None
    tone: str = "natural"

    def to_json(self) -> dict:
        """-> plain dicts, read back by `from_json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, row: dict) -> Op:
        """Reads what `to_json` made. Raises InputError when a field is missing or unknown."""
        try:
            after, ground = row["after"], row["ground"]
            return cls(
                row["kind"],
                int(row["target"]),
                Shape(**after) if after else None,
                tuple(row["stated"]),
                Ground(**ground) if ground else None,
                row["tone"],
            )
        except (KeyError, TypeError, ValueError) as why:
            raise InputError(f"no EditWorld operation: {type(why).__name__}: {why}") from why


class EditRegion(NamedTuple):
    """A changed region. label: words; box: (x0, y0, x1, y1) in pixels of the edited image, ends exclusive."""

    label: str
    box: tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class EditSample:
    """A source scene, the operations asked for, and the words that ask for them."""

    source: Scene
    ops: tuple[Op, ...]
    instruction: str

    @property
    def target(self) -> Scene:
        """The scene that a perfect edit shows."""
        return apply_ops(self.source, self.ops)

    def at_side(self, side: int) -> EditSample:
        """The same edit of a picture of `side` pixels: scenes have no resolution of their own."""
        return dataclasses.replace(self, source=dataclasses.replace(self.source, side=side))

    @property
    def task_type(self) -> str:
        """Task type of the RL layout; of a compound, that of its first part."""
        return TASKS[self.ops[0].kind]

    @property
    def regions(self) -> list[EditRegion]:
        """The regions that a perfect edit changes."""
        return regions(self.source, self.ops)

    def truth(self) -> dict:
        """-> plain dicts, what a reward needs to know about this edit; read back by `from_truth`."""
        return {
            "instruction": self.instruction,
            "source": self.source.to_json(),
            "ops": [op.to_json() for op in self.ops],
        }

    @classmethod
    def from_truth(cls, row: dict) -> EditSample:
        """Reads what `truth` made. Raises InputError when it is not such a record."""
        missing = {"instruction", "source", "ops"} - set(row)
        if missing:
            raise InputError(f"no EditWorld truth: {', '.join(sorted(missing))} missing")
        return cls(Scene.from_json(row["source"]), tuple(Op.from_json(op) for op in row["ops"]), row["instruction"])


def apply_ops(source: Scene, ops: tuple[Op, ...]) -> Scene:
    """The scene after all operations. Targets are indices into the source's shapes."""
    shapes: list[Shape | None] = list(source.shapes)
    ground, tone = source.ground, source.tone
    for op in ops:
        if op.kind == "add":
            shapes.append(op.after)
        elif op.target >= 0:
            shapes[op.target] = op.after
        ground = op.ground or ground
        tone = op.tone if op.kind == "tone" else tone
    return dataclasses.replace(source, ground=ground, tone=tone, shapes=tuple(s for s in shapes if s is not None))


def box_1000(box: tuple[int, int, int, int], side: int) -> tuple[int, int, int, int]:
    """Pixels -> 0..1000 of the image, rounded."""
    return tuple(round(value * 1000 / side) for value in box)


def _union(a, b):
    return (min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))


def regions(source: Scene, ops: tuple[Op, ...]) -> list[EditRegion]:
    """Where a perfect edit differs from its source, one region for each changed place.

    A moved shape has two (its new place first); a resized or replaced one the union of before and after; a new ground
    or tone the whole image.
    """
    found, side = [], source.side
    for op in ops:
        before = source.shapes[op.target] if op.target >= 0 else None
        if op.kind == "background":
            found.append(EditRegion("background", (0, 0, side, side)))
        elif op.kind == "tone":
            found.append(EditRegion("whole image", (0, 0, side, side)))
        elif op.kind == "remove":
            found.append(EditRegion(language.name(before), shape_box(before, side)))
        elif op.kind == "move":
            found.append(EditRegion(language.name(op.after), shape_box(op.after, side)))
            found.append(EditRegion("old place", shape_box(before, side)))
        else:
            box = shape_box(op.after, side)
            box = _union(box, shape_box(before, side)) if before else box
            found.append(EditRegion(language.name(op.after), box))
    return found


def _unused_look(scene: Scene, rng: np.random.Generator, kinds=KINDS, colors=tuple(COLORS)) -> tuple[str, str] | None:
    looks = {(shape.kind, shape.color) for shape in scene.shapes}
    free = [(k, c) for k in kinds for c in colors if (k, c) not in looks and fits_ground(c, scene.ground.kind)]
    return free[rng.integers(len(free))] if free else None


def _texture_for(kind: str, texture: str) -> str:
    return texture if texture in textures_of(kind) else "plain"


def random_op(scene: Scene, kind: str, rng: np.random.Generator, target: int | None = None) -> Op | None:
    """A random operation of a kind on one shape (`target`, or any), or None where this scene has no room for it."""
    if kind == "background":
        fitting = [g for g in GROUNDS if g != scene.ground.kind and all(fits_ground(s.color, g) for s in scene.shapes)]
        return Op(kind, ground=random_ground(rng, str(rng.choice(fitting)))) if fitting else None
    if kind == "tone":
        return Op(kind, tone=str(rng.choice(TONES[1:])))
    if kind == "add":
        return _random_add(scene, rng)
    target = int(rng.integers(len(scene.shapes))) if target is None else target
    shape = scene.shapes[target]
    change = dataclasses.replace
    if kind == "remove":
        return Op(kind, target)
    if kind == "recolor":
        look = _unused_look(scene, rng, kinds=(shape.kind,))
        return Op(kind, target, change(shape, color=look[1]), ("color",)) if look else None
    if kind == "retexture":
        others = [t for t in textures_of(shape.kind) if t != shape.texture]
        return Op(kind, target, change(shape, texture=str(rng.choice(others))), ("texture",))
    if kind == "resize":
        size = next(size for size in SIZES if size != shape.size)
        after = change(shape, size=size)
        half = SIZES[size] / 2 + 0.004
        if not half <= min(shape.x, shape.y) <= max(shape.x, shape.y) <= 1 - half:
            x, y = (round(float(np.clip(w, half, 1 - half)), 4) for w in (shape.x, shape.y))
            after = change(after, x=x, y=y)
        rest = (*scene.shapes[:target], after, *scene.shapes[target + 1 :])
        return None if crowded(rest) else Op(kind, target, after, ("size",))
    if kind == "replace":
        look = _unused_look(scene, rng, kinds=[k for k in KINDS if k != shape.kind])
        after = change(shape, kind=look[0], color=look[1], texture=_texture_for(look[0], shape.texture))
        return Op(kind, target, after, ("kind", "color"))
    if kind == "move":
        return _random_move(scene, target, rng)
    raise InputError(f"EditWorld operation {kind!r} is unknown; choose one of {', '.join(TASKS)}")


def _random_add(scene: Scene, rng: np.random.Generator) -> Op | None:
    if len(scene.shapes) >= 7:
        return None
    look, cells = _unused_look(scene, rng), free_cells(scene.shapes)
    for cell in rng.permutation(cells):
        stated = ["kind", "color", "place"]
        size = str(rng.choice(list(SIZES)))
        texture = "plain" if rng.uniform() < 0.7 else str(rng.choice(textures_of(look[0])[1:]))
        stated += ["size"] if rng.uniform() < 0.5 else []
        stated += ["texture"] if texture != "plain" else []
        shape = Shape(*look, size, texture, *place_in(int(cell), size, rng))
        if not crowded((*scene.shapes, shape)):
            return Op("add", -1, shape, tuple(stated))
    return None


def _random_move(scene: Scene, target: int, rng: np.random.Generator) -> Op | None:
    shape = scene.shapes[target]
    rest = scene.shapes[:target] + scene.shapes[target + 1 :]
    for cell in rng.permutation(free_cells(scene.shapes)):
        x, y = place_in(int(cell), shape.size, rng)
        after = dataclasses.replace(shape, x=x, y=y)
        if not crowded((*rest, after)) and max(abs(x - shape.x), abs(y - shape.y)) > shape.diameter:
            return Op("move", target, after, ("place",))
    return None


def random_ops(scene: Scene, rng: np.random.Generator, kinds: tuple[str, ...]) -> tuple[Op, ...] | None:
    """Operations of the given kinds that can be done together, each on a shape of its own, or None."""
    free = list(rng.permutation(len(scene.shapes)))
    ops: list[Op] = []
    for kind in kinds:
        needs_shape = kind in _TOUCHES_SHAPES and kind != "add"
        if needs_shape and not free:
            return None
        # An earlier operation may have taken a cell or a look: the later one is drawn from the scene it would meet,
        # with removed shapes kept in the way, so that targets stay indices into the source.
        met = dataclasses.replace(scene, shapes=_met_shapes(scene, ops))
        op = random_op(met, kind, rng, int(free.pop()) if needs_shape else None)
        if op is None:
            return None
        ops.append(op)
    target = apply_ops(scene, tuple(ops))
    visible = all(fits_ground(shape.color, target.ground.kind) for shape in target.shapes)
    return tuple(ops) if visible and not crowded(target.shapes) else None


def several_ops(scene: Scene, rng: np.random.Generator) -> tuple[Op, ...]:
    """One to five operations on shapes, each on one of its own."""
    while True:
        count = int(rng.integers(1, min(5, len(scene.shapes) + 1) + 1))
        if ops := random_ops(scene, rng, tuple(map(str, rng.choice(_TOUCHES_SHAPES, count)))):
            return ops


def _met_shapes(scene: Scene, ops: list[Op]) -> tuple[Shape, ...]:
    shapes = list(scene.shapes)
    for op in ops:
        if op.kind == "add":
            shapes.append(op.after)
        elif op.target >= 0 and op.after is not None:
            shapes[op.target] = op.after
    return tuple(shapes)


def draw_kinds(rng: np.random.Generator, compound: float = 0.25) -> tuple[str, ...]:
    """The kinds of operation of one edit: a single one, or with probability `compound` two."""
    if rng.uniform() >= compound:
        return (str(rng.choice(KINDS_OF_EDIT, p=(0.16, 0.1, 0.14, 0.14, 0.14, 0.08, 0.12, 0.06, 0.06))),)
    first, second = rng.choice(_TOUCHES_SHAPES, 2)
    # Two moves would need four regions; an answer holds three.
    second = "recolor" if first == second == "move" else second
    return (str(first), "background" if rng.uniform() < 0.12 else str(second))


def sample_edit(
    split: str, index: int, *, seed: int = 0, side: int | None = None, kinds: tuple[str, ...] | None = None
) -> EditSample:
    """The edit number `index` of a split; the same arguments give the same edit everywhere.

    side: pixels (None: 64 or 96, at random). kinds: the operations, keys of TASKS (None: drawn by `draw_kinds`).
    Raises InputError for an unknown split or operation.
    """
    unknown = set(kinds or ()) - set(TASKS)
    if unknown:
        raise InputError(f"EditWorld operation {unknown.pop()!r} is unknown; choose one of {', '.join(TASKS)}")
    for attempt in range(_ATTEMPTS):
        scene, rng = scene_for(split, seed + (attempt << 32), index, side)
        ops = random_ops(scene, rng, kinds or draw_kinds(rng))
        if ops:
            return EditSample(scene, ops, language.instruction(scene, ops, rng))
    raise InputError(f"no scene of split {split!r} has room for the operations {kinds}: ask for fewer at once")
