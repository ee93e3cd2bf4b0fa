"""Reading shapes back from a picture: least-squares fits of every kind, size and offset of shape at one spot.

A picture of a shape is (1 - m) ground + e colour, with m its coverage and e its brightness: linear in the colour. So
for each template (m, e) the best colour and its residual are closed forms, evaluated for all by five products.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from spatialreward_jax.data.editworld.artifacts import blur
from spatialreward_jax.data.editworld.render import (
    BODY,
    COLORLESS,
    LIGHT,
    RIM,
    SAMPLES,
    accent_color,
    as_seen,
    inside,
    masks,
)
from spatialreward_jax.data.editworld.vocabulary import COLORS, KINDS, MIN_CONTRAST, SIZES, TEXTURES, textures_of

_REACH, _STEP = 1.0, 0.5  # offsets of the templates in pixels
_SHARPNESS = 0.03  # softness of the decision between kinds, as a share of the shape's energy
_FAINT = 10.0  # contrast below which nothing counts as a shape


@dataclasses.dataclass(frozen=True)
class Reading:
    """What stands at one spot. Weights sum to 1 over the words of the vocabulary.

    present: 0..1. x, y: centre, fractions of the side.
    """

    present: float
    kind: dict[str, float]
    size: dict[str, float]
    color: dict[str, float]
    texture: dict[str, float]
    x: float
    y: float

    def weight(self, field: str, value: str) -> float:
        """How much this spot looks like having `value` in `field` (kind, size, color, texture)."""
        return getattr(self, field)[value]

    def best(self, field: str) -> str:
        """The likeliest value of a field."""
        return max(getattr(self, field), key=getattr(self, field).get)


@functools.lru_cache(maxsize=8)
def _templates(side: int, sigma: float) -> tuple:
    """-> (window, offsets [M, 2] as (dx, dy), names [(kind, size)] * M, m, m2, e, e2, em), arrays float32 [M, n]."""
    window = int(np.ceil(max(SIZES.values()) * side)) + 2 * int(np.ceil(_REACH)) + 4 + 2 * round(sigma)
    steps = np.arange(-_REACH, _REACH + 1e-6, _STEP)
    pad = int(np.ceil(_REACH))
    wide = window + 2 * pad
    # An offset by whole samples is a shifted cut of one finely sampled picture.
    grid = (np.arange(wide * SAMPLES) + 0.5) / SAMPLES - wide / 2
    offsets = np.array([(dx, dy) for dy in steps for dx in steps])
    alphas, lights, names = [], [], []
    for kind in KINDS:
        for size, diameter in SIZES.items():
            u, v = np.meshgrid(*(grid * 2 / (diameter * side),) * 2)
            whole = inside(kind, u, v)
            bright = (whole & inside(kind, u, v, BODY)) * (1 - RIM) + whole * RIM
            bright = bright * (1 - LIGHT * (u + v) / 2)
            for dx, dy in offsets:
                x, y = (round((pad - d) * SAMPLES) for d in (dx, dy))
                for layer, out in ((whole, alphas), (bright, lights)):
                    cut = layer[y : y + window * SAMPLES, x : x + window * SAMPLES]
                    out.append(cut.reshape(window, SAMPLES, window, SAMPLES).mean((1, 3), dtype=np.float32))
                names.append((kind, size))
    offsets = np.tile(offsets, (len(KINDS) * len(SIZES), 1))
    m, e = (np.stack(arrays, -1) for arrays in (alphas, lights))
    if sigma:
        m, e = blur(m, sigma), blur(e, sigma)
    m, e = (np.ascontiguousarray(a.reshape(window * window, -1).T) for a in (m, e))
    return window, offsets, names, m, m * m, e, e * e, e * m


def _cut(picture: np.ndarray, left: int, top: int, window: int, fill: float = 0.0) -> np.ndarray:
    """The window of a picture [H, W, ...], filled where it reaches over the border."""
    side = picture.shape[0]
    out = np.full((window, window, *picture.shape[2:]), fill, np.float32)
    y0, y1, x0, x1 = max(top, 0), min(top + window, side), max(left, 0), min(left + window, side)
    if y1 > y0 and x1 > x0:
        out[y0 - top : y1 - top, x0 - left : x1 - left] = picture[y0:y1, x0:x1]
    return out


def _columns(matrix: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """matrix @ columns, a column at a time: for three columns a threaded product costs a hundred times as much."""
    return np.stack([matrix @ np.ascontiguousarray(column) for column in columns.T], -1)


@dataclasses.dataclass(frozen=True)
class Page:
    """A picture prepared for reading.

    picture, ground: float32 [side, side, 3], the picture and what is expected behind the shapes, blurred alike.
    usable: float32 [side, side], 0 where other things may stand. sigma: blur in pixels, a multiple of 0.5.
    variance: of the noise of a pixel, summed over the colours.
    tone: that was taken off the picture.
    """

    picture: np.ndarray
    ground: np.ndarray
    usable: np.ndarray
    sigma: float
    variance: float
    tone: str

    def read(self, x: float, y: float, *, steps: int = 1, likely: tuple[str, ...] = ()) -> Reading:
        """Reads the spot around (x, y), fractions of the side.

        steps: how often, by up to a pixel, a shape that stands a little off may be followed.
        likely: colours to be preferred where the picture has none.
        """
        side = self.picture.shape[0]
        window, offsets, _, *stack = _templates(side, self.sigma)
        cx, cy = x * side, y * side
        for _ in range(steps):
            # Whole pixels for the window; the rest of the centre is covered by the templates' offsets.
            left, top = (int(np.floor(c - window / 2 + 0.5)) for c in (cx, cy))
            residual, color, empty, behind, noise = self._fit(left, top, window, stack)
            best = int(np.argmin(residual))
            cx, cy = left + window / 2 + offsets[best, 0], top + window / 2 + offsets[best, 1]
            if np.abs(offsets[best]).max() < _REACH:
                break
        return self._reading(residual, color, (empty, noise), behind, best, (left, top, window), likely)

    def _fit(self, left, top, window, stack):
        m, m2, e, e2, em = stack
        weight = _cut(self.usable, left, top, window).reshape(-1, 1)
        picture, ground = (_cut(a, left, top, window).reshape(-1, 3) for a in (self.picture, self.ground))
        change = picture - ground
        pull = _columns(e, weight * change) + _columns(em, weight * ground)  # M 3
        mass = e2 @ weight  # M 1
        color = np.clip(pull / np.maximum(mass, 1e-3), 0, 255)
        empty = float((weight * change**2).sum())
        cross = m @ (weight * change * ground).sum(1) * 2 + m2 @ (weight * ground**2).sum(1)
        residual = empty + cross + (color**2 * mass - 2 * color * pull).sum(1)
        noise = self.variance * float(weight.sum())
        behind = (weight * ground).sum(0) / max(float(weight.sum()), 1e-3)
        return residual - noise, color, empty, behind, noise

    def _reading(self, residual, color, energies, behind, best, frame, likely):
        side = self.picture.shape[0]
        left, top, window = frame
        noise = energies[1]
        empty = energies[0] - noise
        _, offsets, names, coverage, *_ = _templates(side, self.sigma)
        area = max(float(coverage[best].sum()), 1.0)
        contrast = float(np.linalg.norm(color[best] - behind))
        scale = max(contrast, 30.0) ** 2 * area * _SHARPNESS / (1 + self.sigma) ** 2  # blur brings templates closer
        weights = np.exp(-(residual - residual[best]) / scale).reshape(len(KINDS) * len(SIZES), -1)
        joint = weights.max(1)

        def center_of(index):
            return left + window / 2 + offsets[index, 0], top + window / 2 + offsets[index, 1]

        center = center_of(best)
        colors, textures = self._paint_of(names[best], center, likely)
        rivals = [int(i) for i in np.argsort(-joint)[:3] if joint[i] > 0.005]
        # All were fitted as plain ones so far: once more, with their patterns.
        finals = [int(i * weights.shape[1] + np.argmax(weights[i])) for i in rivals]
        rests = np.array([self._rest(names[i], center_of(i), frame, likely) for i in finals]) - noise
        joint = np.zeros_like(joint)
        joint[rivals] = np.exp(-(rests - rests.min()) / scale)
        # The best of so many templates explains a few pixels' worth of pure noise, whose energy is known roughly.
        chance, pixels = 5 * self.variance, float(_cut(self.usable, *frame).sum())
        doubt = self.variance * (2 * pixels**0.5 + 0.05 * pixels)
        rest = max(min(float(rests.min()), float(residual[best])) - doubt, 0.0)
        gain = max(empty - rest - doubt - chance, 0.0)
        explained = gain / (gain + rest + chance / 2 + 16.0 * area)
        present = float(np.clip(explained * 1.25, 0, 1) * np.clip((contrast - _FAINT) / self._clear(), 0, 1))
        joint = joint.reshape(len(KINDS), len(SIZES)) / joint.sum()
        kind, size = (dict(zip(words, map(float, joint.sum(axis)))) for words, axis in ((KINDS, 1), (SIZES, 0)))
        return Reading(present, kind, size, colors, textures, center[0] / side, center[1] / side)

    def _rest(self, name, center, frame, likely) -> float:
        """What is left of a window when the likeliest shape of known outline is taken away."""
        kind, size = name
        left, top, window = frame
        colors, textures = self._paint_of(name, center, likely)
        color, texture = (max(weights, key=weights.get) for weights in (colors, textures))
        where = SIZES[size] * self.picture.shape[0], center[0] - left, center[1] - top, window
        alpha, body, accent, light = masks(kind, texture, *where)
        base, second = (_palette(which, self.tone)[list(COLORS).index(color)] for which in (False, True))
        first, other, whole = self._soft((alpha - body) * RIM * light + (body - accent) * light, accent * light, alpha)
        tint = first[..., None] * base + other[..., None] * second
        drawn = tint + (1 - whole)[..., None] * _cut(self.ground, left, top, window)
        gap = (_cut(self.picture, left, top, window) - drawn) ** 2
        return float((gap.sum(-1) * _cut(self.usable, left, top, window)).sum())

    def _paint_of(self, name, center, likely):
        """Weights of colours and textures of a shape of known outline, from the mean colours of parts of its body."""
        kind, size = name
        side = self.picture.shape[0]
        window = int(np.ceil(SIZES[size] * side)) + 5 + 2 * round(self.sigma)
        left, top = (int(np.floor(c - window / 2 + 0.5)) for c in center)
        where = SIZES[size] * side, center[0] - left, center[1] - top, window
        layers = {texture: masks(kind, texture, *where) for texture in textures_of(kind)}
        alpha, body, _, light = layers["plain"]
        inner = _cut(self.usable, left, top, window) * (body > 0.6)
        accents = [inner * layers[texture][2] for texture in textures_of(kind)[1:]]
        parts = [part.ravel() for accent in accents for part in (accent, inner - accent)]
        parts = np.stack(
            [part / part.sum() for part in parts if part.sum() > 0.5] or [inner.ravel() / max(inner.sum(), 1)]
        )
        paints = [
            layer for _, body, accent, light in layers.values() for layer in ((body - accent) * light, accent * light)
        ]
        whole, rim, *paints = self._soft(alpha, (alpha - body) * light, *paints)
        paints = dict(zip(layers, zip(paints[::2], paints[1::2])))
        seen = parts @ _cut(self.picture, left, top, window).reshape(-1, 3)
        behind = parts @ (np.clip(1 - whole, 0, 1)[..., None] * _cut(self.ground, left, top, window)).reshape(-1, 3)
        rim = parts @ (rim * RIM).ravel()
        bases, seconds = (_palette(accent, self.tone) for accent in (False, True))
        options, distances = [], []
        for texture in layers:
            first, second = (parts @ soft.ravel() for soft in paints[texture])
            first = first + rim
            drawn = np.clip(first[:, None, None] * bases + second[:, None, None] * seconds + behind[:, None], 0, 255)
            distances.append(((seen[:, None] - drawn) ** 2).sum(-1).mean(0))
            options += [(color, texture) for color in COLORS]
        return _marginals(options, np.concatenate(distances), likely if self.tone in COLORLESS else ())

    def _clear(self) -> float:
        """Contrast above _FAINT at which a shape is fully there; without colours less is left of it."""
        return 0.55 * MIN_CONTRAST if self.tone not in COLORLESS else 12.0

    def _soft(self, *masks: np.ndarray) -> Sequence[np.ndarray]:
        """Masks [H, W] as blurred as the picture; together, because a blur of one costs nearly as much."""
        return np.moveaxis(blur(np.stack(masks, -1), self.sigma), -1, 0) if self.sigma else masks


@functools.cache
def _palette(accent: bool, tone: str) -> np.ndarray:
    """-> float32 [colours, 3], all first or second colours, as they look once a tone was put on and taken off."""
    colors = np.stack([accent_color(c) if accent else np.array(COLORS[c], np.float32) for c in COLORS])
    return as_seen(colors, tone)


def _marginals(options, distances, likely):
    floor = 36.0  # square levels below which a difference is not seen
    weights = 1.0 / (np.maximum(distances, 0) + floor) ** 2
    weights *= [8.0 if color in likely else 1.0 for color, _ in options]
    weights /= weights.sum()
    colors = dict.fromkeys(COLORS, 0.0)
    textures = dict.fromkeys(TEXTURES, 0.0)
    for (color, texture), weight in zip(options, weights):
        colors[color] += float(weight)
        textures[texture] += float(weight)
    return colors, textures
