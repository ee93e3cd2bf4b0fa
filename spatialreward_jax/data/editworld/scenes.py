"""Scenes of EditWorld: a ground and two to six shapes, as plain frozen records with a JSON form."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from spatialreward_jax.data.editworld.vocabulary import (
    COLORS,
    GROUNDS,
    KINDS,
    PLACES,
    SIDES,
    SIZES,
    fits_ground,
    textures_of,
)
from spatialreward_jax.errors import InputError

SPLITS = ("train", "validation", "test")
_GAP = 0.012  # least free space between the boxes of two shapes, as a fraction of the side
_MARGIN = 0.008  # least free space between a shape and the border


@dataclasses.dataclass(frozen=True)
class Shape:
    """One shape. `x`, `y`: centre as fractions of the side; the other fields are words of `vocabulary`."""

    kind: str
    color: str
    size: str
    texture: str
    x: float
    y: float

    @property
    def diameter(self) -> float:
        """Diameter as a fraction of the side."""
        return SIZES[self.size]

    @property
    def place(self) -> str:
        """The cell of the 3 x 3 grid in which the centre lies."""
        return PLACES[cell_of(self.x, self.y)]


@dataclasses.dataclass(frozen=True)
class Ground:
    """What lies behind the shapes. `angle`: direction of the gradient in degrees; `seed`: of the texture."""

    kind: str
    angle: float
    seed: int


@dataclasses.dataclass(frozen=True)
class Scene:
    """A square picture. `side` in pixels; shapes never overlap; no two share both kind and colour."""

    side: int
    ground: Ground
    shapes: tuple[Shape, ...]
    tone: str = "natural"

    def to_json(self) -> dict:
        """-> plain dicts and lists, read back by `from_json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, row: dict) -> Scene:
        """Reads what `to_json` made. Raises InputError when a field is missing or unknown."""
        try:
            shapes = tuple(Shape(**shape) for shape in row["shapes"])
            return cls(int(row["side"]), Ground(**row["ground"]), shapes, row["tone"])
        except (KeyError, TypeError, ValueError) as why:
            raise InputError(
                f"no EditWorld scene: {type(why).__name__}: {why}; want side, ground, shapes, tone"
            ) from why


def cell_of(x: float, y: float) -> int:
    """Index into PLACES of the cell in which a point (fractions of the side) lies."""
    return min(max(int(y * 3), 0), 2) * 3 + min(max(int(x * 3), 0), 2)


def free_cells(shapes: tuple[Shape, ...]) -> list[int]:
    """Indices of the cells that hold no shape's centre."""
    taken = {cell_of(shape.x, shape.y) for shape in shapes}
    return [cell for cell in range(9) if cell not in taken]


def crowded(shapes: tuple[Shape, ...]) -> bool:
    """Whether the boxes of any two shapes come too close."""
    for i, a in enumerate(shapes):
        for b in shapes[i + 1 :]:
            reach = (a.diameter + b.diameter) / 2 + _GAP
            if abs(a.x - b.x) < reach and abs(a.y - b.y) < reach:
                return True
    return False


def place_in(cell: int, size: str, rng: np.random.Generator) -> tuple[float, float]:
    """-> (x, y), a random centre for a shape of this size in this cell."""
    half = SIZES[size] / 2
    play = max(1 / 6 - half, 0.0) + 0.02
    low, high = half + _MARGIN, 1 - half - _MARGIN
    center = ((cell % 3 + 0.5) / 3, (cell // 3 + 0.5) / 3)
    x, y = (float(np.clip(c + rng.uniform(-play, play), low, high)) for c in center)
    return round(x, 4), round(y, 4)


def random_ground(rng: np.random.Generator, kind: str | None = None) -> Ground:
    """A ground of the given kind, or of any."""
    kind = kind or str(rng.choice(list(GROUNDS)))
    return Ground(kind, round(float(rng.uniform(0, 360)), 1), int(rng.integers(1 << 30)))


def random_scene(rng: np.random.Generator, side: int | None = None) -> Scene:
    """A scene of 2 to 6 shapes that are told apart by kind and colour. `side`: pixels, by default drawn from SIDES."""
    side = side or int(rng.choice(SIDES))
    ground = random_ground(rng)
    colors = [color for color in COLORS if fits_ground(color, ground.kind)]
    count = int(rng.choice((2, 3, 4, 5, 6), p=(0.2, 0.28, 0.26, 0.16, 0.1)))
    while True:
        cells = rng.permutation(9)[:count]
        shapes, looks = [], set()
        for cell in cells:
            while (look := (str(rng.choice(KINDS)), str(rng.choice(colors)))) in looks:
                pass
            looks.add(look)
            size = str(rng.choice(list(SIZES)))
            texture = "plain" if rng.uniform() < 0.6 else str(rng.choice(textures_of(look[0])[1:]))
            shapes.append(Shape(*look, size, texture, *place_in(int(cell), size, rng)))
        if not crowded(tuple(shapes)):
            return Scene(side, ground, tuple(shapes))


def split_of(scene: Scene) -> str:
    """The split to which a scene belongs, by a hash of what it is composed of (kinds, colours, textures, ground).

    Two scenes of one composition always fall into the same split, so splits share no scene, not even up to layout.
    """
    looks = sorted(f"{s.kind} {s.color} {s.texture}" for s in scene.shapes)
    digest = hashlib.blake2b("|".join([scene.ground.kind, *looks]).encode(), digest_size=4).digest()
    bucket = int.from_bytes(digest, "little") % 10
    return {0: "test", 1: "validation"}.get(bucket, "train")


def scene_for(split: str, seed: int, index: int, side: int | None = None) -> tuple[Scene, np.random.Generator]:
    """The scene number `index` of a split, and the random state from which its edit continues.

    Raises InputError for an unknown split.
    """
    if split not in SPLITS:
        raise InputError(f"EditWorld split {split!r} is unknown; choose one of {', '.join(SPLITS)}")
    rng = np.random.default_rng((SPLITS.index(split), seed, index))
    while split_of(scene := random_scene(rng, side)) != split:
        pass
    return scene, rng
