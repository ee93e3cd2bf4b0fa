"""Pictures of EditWorld scenes: numpy only, anti-aliased, the same bytes for the same scene on every machine.

Shapes are rasterised as coverage masks by counting sub-pixel samples; they have a dark rim and a soft light from
the top left. A ground is a linear gradient with a quiet texture of its own.
"""

from __future__ import annotations

import functools

import numpy as np

from spatialreward_jax.data.editworld.scenes import Ground, Scene, Shape
from spatialreward_jax.data.editworld.vocabulary import COLORS, GROUNDS

SAMPLES = 6  # sub-pixel samples per side
RIM = 0.5  # brightness of the rim against the body
BODY = 0.84  # size of the body within the rim
LIGHT = 0.09  # brightness added at the top left, taken away at the bottom right
_LUMA = np.array((0.299, 0.587, 0.114), np.float32)


def _polygon(points, u, v):
    """Whether samples lie inside a closed polygon (even-odd rule). points [(u, v)]; u, v any one shape."""
    inside = np.zeros(u.shape, bool)
    for (u0, v0), (u1, v1) in zip(points, points[1:] + points[:1]):
        if v0 != v1:
            inside ^= ((v0 > v) != (v1 > v)) & (u < (u1 - u0) * (v - v0) / (v1 - v0) + u0)
    return inside


def _spikes(radii, count, turn):
    angles = np.pi * np.arange(2 * count) / count + turn
    return [(float(radii[i % 2] * np.cos(a)), float(radii[i % 2] * np.sin(a))) for i, a in enumerate(angles)]


def inside(kind: str, u: np.ndarray, v: np.ndarray, grow: float = 1.0) -> np.ndarray:
    """Whether points lie in the shape scaled by `grow`. u right, v down, both -1..1 over the diameter -> bool."""
    u, v = u / grow, v / grow
    if kind == "circle":
        return u * u + v * v <= 1
    if kind == "ring":
        hole = 0.46 * (2 - grow) / grow  # the hole grows as the outside shrinks: the body keeps its rim on both sides
        return (u * u + v * v <= 1) & (u * u + v * v >= hole * hole)
    if kind == "square":
        return np.maximum(np.abs(u), np.abs(v)) <= 0.88
    if kind == "diamond":
        return np.abs(u) / 0.84 + np.abs(v) <= 1
    if kind == "cross":
        return (np.minimum(np.abs(u), np.abs(v)) <= 0.34) & (np.maximum(np.abs(u), np.abs(v)) <= 0.96)
    if kind == "triangle":
        return _polygon([(0.0, -0.98), (0.98, 0.82), (-0.98, 0.82)], u, v)
    if kind == "star":
        return _polygon(_spikes((1.06, 0.52), 5, -np.pi / 2), u, v - 0.06)
    if kind == "heart":
        a, b = u * 1.22, -(v - 0.06) * 1.2 + 0.06
        return (a * a + b * b - 1) ** 3 - a * a * b**3 <= 0
    raise ValueError(f"shape kind {kind!r} is unknown")


def _accent(texture: str, u, v):
    """Where the texture's second colour goes -> bool, like u and v."""
    if texture == "striped":
        return np.mod((u + v) / 0.62 + 0.25, 1.0) < 0.5
    if texture == "dotted":
        du, dv = (np.mod(w / 0.66 + 0.5, 1.0) - 0.5 for w in (u, v))
        return du * du + dv * dv < 0.3**2
    return np.zeros(u.shape, bool)


def _coverage(points: np.ndarray) -> np.ndarray:
    """Share of a pixel's points that are set. bool [window * SAMPLES] * 2 -> float32 [window, window]."""
    window = len(points) // SAMPLES
    rows = points.reshape(window, SAMPLES, -1).sum(1, dtype=np.uint16)
    counts = rows.reshape(window, window, SAMPLES).sum(-1, dtype=np.uint16)
    return (counts / SAMPLES**2).astype(np.float32)


@functools.lru_cache(maxsize=16)  # large; the textures of a shape are asked for one after the other
def _outline(kind: str, diameter: float, dx: float, dy: float, window: int) -> tuple[np.ndarray, ...]:
    """What all textures of a shape share, see `masks` -> (u, v, points of the body, alpha, body, light)."""
    grid = (np.arange(window * SAMPLES, dtype=np.float64) + 0.5) / SAMPLES
    u, v = np.meshgrid((grid - dx) * 2 / diameter, (grid - dy) * 2 / diameter)
    whole = inside(kind, u, v)
    body = whole & inside(kind, u, v, BODY)
    centers = (np.arange(window, dtype=np.float32) + 0.5) * 2 / diameter
    light = 1 - LIGHT * ((centers[None, :] - dx * 2 / diameter) + (centers[:, None] - dy * 2 / diameter)) / 2
    return u, v, body, _coverage(whole), _coverage(body), np.ascontiguousarray(light, np.float32)


@functools.lru_cache(maxsize=2048)
def masks(kind: str, texture: str, diameter: float, dx: float, dy: float, window: int) -> tuple[np.ndarray, ...]:
    """Coverage of a shape in a square window of pixels.

    diameter: pixels; (dx, dy): centre in pixels from the window's top left corner; window: pixels.
    -> (alpha, body, accent, light), float32 [window, window]: all of the shape, the part inside the rim, the part of
    the body in the texture's second colour (all 0..1), and the light's factor around 1. Arrays are read-only.
    """
    u, v, points, alpha, body, light = _outline(kind, diameter, dx, dy, window)
    out = alpha, body, _coverage(points & _accent(texture, u, v)), light
    for array in out:
        array.flags.writeable = False
    return out


def accent_color(color: str) -> np.ndarray:
    """The second colour of a textured shape: lighter, or darker where the colour itself is light -> float32 [3]."""
    rgb = np.array(COLORS[color], np.float32)
    return rgb * 0.6 if float(rgb @ _LUMA) > 150 else rgb + 0.6 * (255 - rgb)


def window_of(shape: Shape, side: int) -> tuple[int, int, int]:
    """-> (left, top, size), the pixel window that holds all of a shape; it may reach over the border."""
    size = int(np.ceil(shape.diameter * side)) + 3
    return int(np.floor(shape.x * side - size / 2 + 0.5)), int(np.floor(shape.y * side - size / 2 + 0.5)), size


def shape_layers(shape: Shape, side: int) -> tuple[np.ndarray, np.ndarray]:
    """-> (alpha [w, w], color [w, w, 3] 0..255), float32, for the window of `window_of`."""
    left, top, size = window_of(shape, side)
    alpha, body, accent, light = masks(
        shape.kind, shape.texture, shape.diameter * side, shape.x * side - left, shape.y * side - top, size
    )
    base, second = np.array(COLORS[shape.color], np.float32), accent_color(shape.color)
    parts = (alpha - body)[..., None] * base * RIM + (body - accent)[..., None] * base + accent[..., None] * second
    return alpha, np.clip(parts / np.maximum(alpha, 1e-6)[..., None] * light[..., None], 0, 255)


def _smooth(noise: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Smoothly interpolates a grid of noise at fractions x, y (any one shape) of its extent."""
    rows, cols = noise.shape
    gx, gy = x * (cols - 1), y * (rows - 1)
    x0, y0 = np.clip(gx.astype(int), 0, cols - 2), np.clip(gy.astype(int), 0, rows - 2)
    fx, fy = gx - x0, gy - y0
    fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
    upper = noise[y0, x0] * (1 - fx) + noise[y0, x0 + 1] * fx
    lower = noise[y0 + 1, x0] * (1 - fx) + noise[y0 + 1, x0 + 1] * fx
    return upper * (1 - fy) + lower * fy


def _pattern(kind: str, rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The texture of a ground: brightness to add, in levels of 0..255, at fractions x, y of the side."""
    coarse = _smooth(rng.uniform(-1, 1, (5, 5)), x, y)
    fine = _smooth(rng.uniform(-1, 1, (22, 22)), x, y)
    phase = rng.uniform(0, 2 * np.pi)
    if kind == "sky":
        return 26 * np.clip(coarse + 0.35 * _smooth(rng.uniform(-1, 1, (10, 10)), x, y), 0, 1)
    if kind == "meadow":
        return 9 * _smooth(rng.uniform(-1, 1, (9, 34)), x, y) + 6 * coarse
    if kind == "sand":
        return 7 * np.sin(2 * np.pi * (7 * y + 0.9 * coarse) + phase) + 4 * fine
    if kind == "stone":
        return 9 * fine + 8 * _smooth(rng.uniform(-1, 1, (10, 10)), x, y)
    if kind == "night":
        stars = rng.uniform(0, 1, (14, 2))
        glow = np.exp(-((x[..., None] - stars[:, 0]) ** 2 + (y[..., None] - stars[:, 1]) ** 2) / 0.011**2).sum(-1)
        return 80 * np.minimum(glow, 1) + 6 * coarse
    if kind == "sunset":
        return 10 * np.sin(2 * np.pi * (2.5 * y + 0.5 * coarse) + phase) + 5 * coarse
    if kind == "paper":
        return 3.5 * (np.sin(2 * np.pi * 15 * x + phase) + np.sin(2 * np.pi * 15 * y)) + 3 * coarse
    if kind == "wood":
        return 11 * np.sin(2 * np.pi * (6 * x + 1.1 * _smooth(rng.uniform(-1, 1, (3, 6)), x, y)) + phase) + 4 * fine
    raise ValueError(f"ground kind {kind!r} is unknown")


@functools.lru_cache(maxsize=512)
def render_ground(ground: Ground, side: int) -> np.ndarray:
    """-> float32 [side, side, 3], 0..255, read-only. The same ground looks alike at every size."""
    rng = np.random.default_rng(ground.seed)
    grid = (np.arange(side) + 0.5) / side
    x, y = np.meshgrid(grid, grid)
    angle = np.deg2rad(ground.angle)
    along = ((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle)) / (abs(np.cos(angle)) + abs(np.sin(angle))) + 0.5
    low, high = (np.array(rgb, np.float64) for rgb in GROUNDS[ground.kind])
    picture = low + along[..., None] * (high - low) + _pattern(ground.kind, rng, x, y)[..., None]
    picture = np.clip(picture, 0, 255).astype(np.float32)
    picture.flags.writeable = False
    return picture


_TONES = {  # gain and offset of each channel; sepia's apply to the brightness
    "warm": ((1.08, 0.97, 0.72), (14, 2, -6)),
    "cool": ((0.74, 0.95, 1.08), (-6, 2, 16)),
    "dark": ((0.52, 0.52, 0.55), (0, 0, 2)),
    "bright": ((0.72, 0.72, 0.72), (76, 76, 76)),
    "sepia": ((1.05, 0.87, 0.64), (12, 8, 4)),
}


COLORLESS = ("gray", "sepia")


def tone_terms(tone: str) -> tuple[np.ndarray, np.ndarray]:
    """-> (gain, offset), float32 [3] each, of the tones that have them."""
    return tuple(np.array(term, np.float32) for term in _TONES[tone])


def apply_tone(picture: np.ndarray, tone: str) -> np.ndarray:
    """Colour-grades a picture, float32 [..., 3] in 0..255 -> the same."""
    if tone == "natural":
        return picture
    base = (picture @ _LUMA)[..., None] if tone in COLORLESS else picture
    if tone == "gray":
        return np.clip(np.broadcast_to(base, picture.shape), 0, 255).astype(np.float32)
    gain, offset = tone_terms(tone)
    return np.clip(base * gain + offset, 0, 255).astype(np.float32)


def untone(picture: np.ndarray, tone: str) -> np.ndarray:
    """Takes a tone off a picture again, float32 [..., 3]; of COLORLESS ones a gray picture is left."""
    if tone == "natural":
        return picture
    if tone == "gray":
        return apply_tone(picture, "gray")
    gain, offset = tone_terms(tone)
    plain = (picture - offset) / gain
    if tone == "sepia":
        plain = np.broadcast_to(plain.mean(-1, keepdims=True), picture.shape)
    return np.clip(plain, 0, 255).astype(np.float32)


def as_seen(picture: np.ndarray, tone: str) -> np.ndarray:
    """What a tone leaves of a picture once it is taken off again: what was clipped stays lost."""
    return untone(apply_tone(picture, tone), tone)


def render_float(scene: Scene) -> np.ndarray:
    """-> float32 [side, side, 3], 0..255, before rounding."""
    picture = render_ground(scene.ground, scene.side).copy()
    for shape in scene.shapes:
        paint(picture, shape)
    return apply_tone(picture, scene.tone)


def paint(picture: np.ndarray, shape: Shape) -> None:
    """Lays a shape over a picture, float32 [side, side, 3], in place."""
    side = picture.shape[0]
    left, top, size = window_of(shape, side)
    alpha, color = shape_layers(shape, side)
    y0, y1, x0, x1 = max(top, 0), min(top + size, side), max(left, 0), min(left + size, side)
    a = alpha[y0 - top : y1 - top, x0 - left : x1 - left, None]
    c = color[y0 - top : y1 - top, x0 - left : x1 - left]
    picture[y0:y1, x0:x1] = picture[y0:y1, x0:x1] * (1 - a) + c * a


def render(scene: Scene) -> np.ndarray:
    """-> uint8 [side, side, 3]."""
    return np.rint(render_float(scene)).astype(np.uint8)


def shape_box(shape: Shape, side: int) -> tuple[int, int, int, int]:
    """-> (x0, y0, x1, y1), the pixels that the shape covers by a quarter or more, ends exclusive, cut at the border."""
    left, top, _ = window_of(shape, side)
    rows, cols = np.nonzero(shape_layers(shape, side)[0] >= 0.25)
    box = (left + cols.min(), top + rows.min(), left + cols.max() + 1, top + rows.max() + 1)
    return tuple(int(np.clip(value, 0, side)) for value in box)


def shape_mask(shape: Shape, side: int) -> np.ndarray:
    """-> float32 [side, side], how much of each pixel the shape covers, 0..1."""
    whole = np.zeros((side, side), np.float32)
    left, top, size = window_of(shape, side)
    y0, y1, x0, x1 = max(top, 0), min(top + size, side), max(left, 0), min(left + size, side)
    whole[y0:y1, x0:x1] = shape_layers(shape, side)[0][y0 - top : y1 - top, x0 - left : x1 - left]
    return whole
