"""Reading a whole picture of an EditWorld edit: tone, ground, flaws, every shape, and what else is there."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import scipy.ndimage

from spatialreward_jax.data.editworld import flaws
from spatialreward_jax.data.editworld.artifacts import blur
from spatialreward_jax.data.editworld.edits import EditSample, Op
from spatialreward_jax.data.editworld.reading import Page, Reading
from spatialreward_jax.data.editworld.render import (
    apply_tone,
    as_seen,
    paint,
    render,
    render_ground,
    shape_mask,
    untone,
)
from spatialreward_jax.data.editworld.scenes import Shape
from spatialreward_jax.data.editworld.vocabulary import GROUNDS, PLACES, TONES

_QUIET, _LOUD = 6.0, 30.0  # smooth colour differences, in levels, that count as nothing and as a full change
_WIDE = 4.0  # pixels; a blur that leaves no noise, for grounds and tones
_BLOB = 0.018  # least area of an unexpected thing, as a fraction of the picture
_MOST_BLOBS = 3
_LEAST_CONTRAST = 0.1  # of that of the edit's scenes; of 20,608 edits of RL runs none had less than 0.12


@dataclasses.dataclass(frozen=True)
class View:
    """What a picture shows.

    tone, ground: weights of the words of TONES and GROUNDS. ground_kept: 0..1, the source's very ground.
    places: one reading for each shape of the source, where it should stand. goals: one for each operation that brings a
    shape to a new place (None for the others), inside the cell that it names. others: readings of unexpected shapes.
    smudge: share of the rest of the picture that changed. amounts: physical amounts of the flaws. content: 1, but less
    where the picture is nearly of one colour, and 0 where it is.
    """

    tone: dict[str, float]
    ground: dict[str, float]
    ground_kept: float
    places: tuple[Reading, ...]
    goals: tuple[Reading | None, ...]
    others: tuple[Reading, ...]
    smudge: float
    amounts: dict[str, float]
    content: float


def _normal(distances: dict[str, float], floor: float) -> dict[str, float]:
    weights = {name: 1.0 / (distance**2 + floor**2) ** 2 for name, distance in distances.items()}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def _grow(mask: np.ndarray, pixels: int) -> np.ndarray:
    return scipy.ndimage.binary_dilation(mask, iterations=pixels)


@functools.lru_cache(maxsize=1024)
def _mask(shape: Shape, side: int) -> np.ndarray:
    """Where a shape stands and one pixel around it -> bool [side, side]."""
    return _grow(shape_mask(shape, side) > 0.1, 1)


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sqrt(((a - b) ** 2).sum(-1))


def _colors_left(picture: np.ndarray, tone: str) -> float:
    """How much colour speaks against a tone that leaves none, in levels."""
    soft = blur(picture, 2.0)
    again = apply_tone(untone(soft, tone), tone)
    return min(float(np.quantile(_distance(soft, again), 0.98)) / 3, 25.0)


def _smooth(picture: np.ndarray, usable: np.ndarray, sigma: float) -> np.ndarray:
    """Blurs over the usable pixels alone, so that nothing leaks in from the others."""
    weight = usable[..., None].astype(np.float32)
    return blur(picture * weight, sigma) / np.maximum(blur(weight, sigma), 1e-3)


def _contrast(image: np.ndarray) -> float:
    """Standard deviation of the colours of uint8 [H, W, 3], in levels; a fine grain does not count."""
    return float(np.sqrt(blur(image.astype(np.float32), 2.0).reshape(-1, 3).var(0).sum()))


class Reader:
    """Reads pictures that answer one edit; what does not depend on the picture is prepared once."""

    def __init__(self, sample: EditSample):
        self.sample, self.source, self.target = sample, sample.source, sample.target
        side = self.source.side
        touched = {op.target for op in sample.ops}
        self.kept = [shape for i, shape in enumerate(self.source.shapes) if i not in touched]
        self.known = (*self.source.shapes, *(s for s in self.target.shapes if s not in self.source.shapes))
        shapes = np.zeros((side, side), bool)
        for shape in self.known:
            shapes |= _mask(shape, side)
        self.open = ~shapes  # pixels that show the ground, whether or not the edit was done
        self.new_ground = any(op.kind == "background" for op in sample.ops)
        self.contrast = min(_contrast(render(scene)) for scene in (self.source, self.target))

    def __call__(self, image: np.ndarray) -> View:
        """image uint8 [side, side, 3] -> what it shows."""
        picture = image.astype(np.float32)
        tones = self._tones(picture)
        tone = max(tones, key=tones.get)
        picture = untone(picture, tone)
        grounds, kept, ground, exact = self._grounds(picture, tone)
        trusted = self._trusted(ground, tone, exact)
        plain = self._compose(ground, self.source.shapes, tone)
        sigma, share = flaws.degradation(picture, plain, trusted, sure=exact)
        noise, speckle = flaws.noise_levels(picture, flaws.degrade(plain, sigma, share), trusted)
        grain = 0.5 * noise + speckle
        # Undoing blocks makes noise louder: only as far as that leaves something to read.
        undone = min(share, max(1 - (noise + speckle) / _LOUD, 0.0))
        variance = 3 * (noise**2 + speckle**2) / (1 - undone) ** 2
        clear = flaws.undo_blocks(picture, undone)
        step = round(min(sigma, 2.5) * 2) / 2
        page = Page(
            clear, blur(ground, step) if step else ground, np.ones(ground.shape[:2], np.float32), step, variance, tone
        )
        places, goals = self._places(page), self._goals(page)
        seen = [as_shape(r) for r in (*places, *goals) if r and r.present > 0.2]
        expected = flaws.degrade(self._compose(ground, seen, tone), sigma, share)
        others, smudge = self._others(page, seen, picture - expected, grain if exact else _LOUD)
        found = [r for r in (*places, *(g for g in goals if g), *others) if r.present > 0.5]
        explained = self._compose(ground, [as_shape(reading) for reading in found], tone)
        amounts = self._amounts(picture, explained, exact, [as_shape(reading) for reading in found])
        content = min(_contrast(image) / (_LEAST_CONTRAST * self.contrast), 1.0)
        return View(tones, grounds, kept, places, goals, others, smudge, amounts, content)

    def _tones(self, picture: np.ndarray) -> dict[str, float]:
        """By the ground where it is the source's, and by the bodies of the shapes that should have stayed."""
        side = self.source.side
        ground = render_ground(self.source.ground, side)
        soft = _smooth(picture, self.open, _WIDE)
        by_ground = {}
        for tone in TONES:
            toned = _smooth(apply_tone(ground, tone), self.open, _WIDE)
            by_ground[tone] = float(np.median(_distance(soft, toned)[self.open]))
        if self.new_ground or min(by_ground.values()) > 20:
            by_ground = dict.fromkeys(TONES, 0.0)
        by_shape = self._tones_of_shapes(picture, ground)
        pale = {"gray": _colors_left(picture, "gray"), "sepia": _colors_left(picture, "sepia")}
        by_shape = {tone: gap + pale.get(tone, 0.0) for tone, gap in by_shape.items()}
        total = {tone: by_ground[tone] + by_shape[tone] for tone in TONES}
        least = min(total.values())
        return _normal({tone: gap - least for tone, gap in total.items()}, 6.0)

    def _tones_of_shapes(self, picture: np.ndarray, ground: np.ndarray) -> dict[str, float]:
        """How far the shapes' bodies, changed as asked or not at all, are from each tone."""
        versions = [[shape] for shape in self.source.shapes]
        for op in self.sample.ops:
            if op.target >= 0 and op.after and op.kind not in ("move", "remove"):
                versions[op.target].append(op.after)
        side = self.source.side
        drawn = []
        for options in versions:
            drawn.append([])
            for shape in options:
                body = shape_mask(shape, side) > 0.95
                drawn[-1].append((picture[body].mean(0), body, self._compose(ground, (shape,), "natural")))
        total = {}
        for tone in TONES:
            gaps = []
            for options in drawn:
                gaps.append(min(float(np.linalg.norm(m - apply_tone(p[b], tone).mean(0))) for m, b, p in options))
            total[tone] = float(np.median(gaps))
        # Capped: where the ground speaks clearly, a few shapes that were changed themselves must not outweigh it.
        fewest, cap = min(total.values()), 40.0 if len(versions) > 2 else 15.0
        return {tone: min(gap - fewest, cap) for tone, gap in total.items()}

    def _grounds(self, picture: np.ndarray, tone: str):
        """-> (weights of kinds, how far the source's own ground is kept, the ground to read against, it is exact)."""
        side = self.source.side
        soft = _smooth(picture, self.open, _WIDE)
        distances = {}
        for kind, ends in GROUNDS.items():
            low, high = np.array(ends, np.float32)
            low, high = (as_seen(end, tone) for end in (low, high))
            along = np.clip((soft - low) @ (high - low) / max(float((high - low) @ (high - low)), 1.0), 0, 1)
            distances[kind] = float(np.median(_distance(soft, low + along[..., None] * (high - low))[self.open]))
        exact = {}
        for role, scene in (("source", self.source), ("target", self.target)):
            ground = render_ground(scene.ground, side)
            ground = as_seen(ground, tone)
            gap = _distance(soft, _smooth(ground, self.open, _WIDE))
            exact[role] = ground, float(np.median(gap[self.open]))
        role = min(exact, key=lambda name: exact[name][1])
        ground, gap = exact[role]
        kept = 1 - float(np.clip((exact["source"][1] - _QUIET) / (_LOUD - _QUIET), 0, 1))
        if gap > (_QUIET + _LOUD) / 2:
            return _normal(distances, 9.0), kept, _fit_ground(picture, self.open), False
        return _normal(distances, 9.0), kept, ground, True

    def _compose(self, ground: np.ndarray, shapes, tone: str) -> np.ndarray:
        picture = ground.copy()
        for shape in shapes:
            paint(picture, shape)
        return as_seen(picture, tone)

    def _trusted(self, ground: np.ndarray, tone: str, exact: bool) -> np.ndarray:
        """Pixels that should look the same before and after, and that are known -> bool [side, side]."""
        before = self._compose(ground, self.source.shapes, tone)
        after = self._compose(ground, self.target.shapes, tone)
        same = ~_grow(np.abs(before - after).max(-1) > 1, 2)
        if exact:
            return same
        near = np.zeros(same.shape, bool)
        for shape in self.kept:
            near |= _grow(_mask(shape, self.source.side), 2)
        return same & near

    def _usable(self, *own: Shape) -> np.ndarray:
        """Where no other known shape may stand -> float32 [side, side]."""
        free = np.ones((self.source.side,) * 2, np.float32)
        for shape in self.known:
            if shape not in own:
                free[_mask(shape, self.source.side)] = 0
        for shape in own:
            free[_mask(shape, self.source.side)] = 1
        return free

    def _places(self, page: Page) -> tuple[Reading, ...]:
        readings = []
        for index, shape in enumerate(self.source.shapes):
            op = next((op for op in self.sample.ops if op.target == index), None)
            now = op.after if op and op.after and op.kind != "move" else shape
            own = dataclasses.replace(page, usable=self._usable(shape, now))
            readings.append(own.read(now.x, now.y, steps=3, likely=(shape.color, now.color)))
        return tuple(readings)

    def _goals(self, page: Page) -> tuple[Reading | None, ...]:
        readings = []
        for op in self.sample.ops:
            if op.kind not in ("add", "move"):
                readings.append(None)
                continue
            usable = self._usable(op.after)
            own = dataclasses.replace(page, usable=usable)
            found = own.read(*self._densest(page, op, usable), steps=8, likely=(op.after.color,))
            readings.append(found if _in_cell(found, op) else dataclasses.replace(found, present=0.0))
        return tuple(readings)

    def _densest(self, page: Page, op: Op, usable: np.ndarray) -> tuple[float, float]:
        """The centre of what differs most from the ground, inside the cell that an operation names."""
        side = self.source.side
        change = ((page.picture - page.ground) ** 2).sum(-1) * usable
        size = max(int(op.after.diameter * side * 0.8) | 1, 3)
        dense = scipy.ndimage.uniform_filter(np.minimum(change, 120.0**2), size, mode="constant")
        cell = PLACES.index(op.after.place)
        edges = [round(side * k / 3) for k in range(4)]
        top, left = edges[cell // 3], edges[cell % 3]
        inside = dense[top : edges[cell // 3 + 1], left : edges[cell % 3 + 1]]
        y, x = np.unravel_index(int(np.argmax(inside)), inside.shape)
        return (left + x + 0.5) / side, (top + y + 0.5) / side

    def _others(
        self, page: Page, seen: list[Shape], rest: np.ndarray, grain: float
    ) -> tuple[tuple[Reading, ...], float]:
        """-> (readings of unexpected shapes, the changed share of what is left).

        seen: the shapes read so far; rest: what they and the ground leave unexplained; grain: what noise adds to it.
        """
        side = self.source.side
        known = ~self._usable().astype(bool)
        known = _grow(known, round(page.sigma) + 1)
        for shape in seen:
            known |= _grow(_mask(shape, side), round(page.sigma) + 2)
        change = np.sqrt((_smooth(rest, ~known, 2.0) ** 2).sum(-1))
        change = np.clip((change - _QUIET - grain) / (_LOUD - _QUIET), 0, 1) * ~known
        labels, count = scipy.ndimage.label(change > 0.8)
        areas = scipy.ndimage.sum_labels(np.ones_like(change), labels, np.arange(1, count + 1)) / side**2
        found = []
        for label in np.argsort(-areas)[:_MOST_BLOBS]:
            if not _BLOB < areas[label] < 0.16:
                continue
            y, x = scipy.ndimage.center_of_mass(labels == label + 1)
            own = dataclasses.replace(page, usable=(~known).astype(np.float32))
            reading = own.read((x + 0.5) / side, (y + 0.5) / side, steps=8)
            if reading.present > 0.3:
                found.append(reading)
                change = change * ~_grow(_mask(as_shape(reading), side), 2)
        return tuple(found), float(change.sum() / max((~known).sum(), 1))

    def _amounts(self, picture, explained, exact: bool, shapes: list[Shape]) -> dict[str, float]:
        side = self.source.side
        usable = np.ones((side, side), bool)
        if not exact:
            usable = np.zeros((side, side), bool)
            for shape in shapes:
                usable |= shape_mask(shape, side) > 0.9
            if usable.sum() < 0.04 * side**2:
                usable = self.open
        sigma, share = flaws.degradation(picture, explained, usable if exact else _grow(usable, 2), sure=exact)
        noise, speckle = flaws.noise_levels(picture, flaws.degrade(explained, sigma, share), usable)
        return {"blur": sigma * 64 / side, "blocks": share, "noise": noise, "speckle": speckle}


def _in_cell(reading: Reading, op: Op) -> bool:
    cell = PLACES.index(op.after.place)
    inside = (max(abs(reading.x * 3 - cell % 3 - 0.5), abs(reading.y * 3 - cell // 3 - 0.5)) - 0.5) / 3
    return inside < 0.03  # the last pixels of a border are nobody's


def as_shape(reading: Reading) -> Shape:
    """The likeliest shape."""
    best = {field: reading.best(field) for field in ("kind", "color", "size", "texture")}
    return Shape(**best, x=reading.x, y=reading.y)


def _fit_ground(picture: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """The smoothest surface through the usable pixels, a cubic in each colour -> float32 [side, side, 3]."""
    side = picture.shape[0]
    grid = np.linspace(-1, 1, side, dtype=np.float32)
    x, y = np.meshgrid(grid, grid)
    terms = np.stack([x**i * y**j for i in range(4) for j in range(4 - i)], -1).astype(np.float64)
    keep = usable.copy()
    surface = picture
    for _ in range(3):
        own = terms[keep]
        # Of the normal equations, in float64: to decompose all pixels took half of the oracle's time.
        fit, *_ = np.linalg.lstsq(own.T @ own, own.T @ picture[keep], rcond=None)
        surface = terms @ fit
        gap = _distance(picture, surface)
        keep = usable & (gap <= np.quantile(gap[usable], 0.85))
    return np.clip(surface, 0, 255).astype(np.float32)


@functools.lru_cache(maxsize=256)
def reader_of(sample: EditSample) -> Reader:
    """The reader of an edit, kept for the next pictures that answer it."""
    return Reader(sample)
