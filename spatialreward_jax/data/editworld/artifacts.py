"""Picture flaws with a known strength: blur, noise, blocks, colour speckle."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from spatialreward_jax.errors import InputError

FLAWS = ("blur", "noise", "blocks", "speckle")
BLOCK = 8  # pixels


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A flaw. kind: one of FLAWS; strength: above 0, up to 1."""

    kind: str
    strength: float

    def __post_init__(self):
        if self.kind not in FLAWS or not 0 < self.strength <= 1:
            raise InputError(f"flaw {self.kind!r} of strength {self.strength}: want one of {FLAWS}, strength in (0, 1]")

    @property
    def amount(self) -> float:
        """Physical size: blur in pixels (sigma, per 64 of the side), noise and speckle in levels, blocks as a share."""
        return float(amount_of(self.kind, self.strength))


AMOUNTS = {  # least amount, and how much more the strongest has
    "blur": (0.45, 1.15),
    "noise": (5.0, 27.0),
    "blocks": (0.2, 0.6),
    "speckle": (7.0, 29.0),
}


def amount_of(kind: str, strength: float) -> float:
    """Strength 0..1 -> physical amount (see `Artifact.amount`)."""
    start, span = AMOUNTS[kind]
    return start + span * strength


def blur(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur with mirrored borders. picture float32 [H, W, C]; sigma in pixels -> the same shape."""
    kernel = _kernel(sigma)
    for axis in (0, 1):
        size = picture.shape[axis]
        padded = np.ascontiguousarray(picture.swapaxes(0, axis))[_mirrored(size, len(kernel) // 2)]
        total = kernel[0] * padded[:size]
        for i in range(1, len(kernel)):
            total += kernel[i] * padded[i : i + size]
        picture = total.swapaxes(0, axis)
    return picture


@functools.lru_cache(maxsize=64)
def _kernel(sigma: float) -> np.ndarray:
    radius = max(int(np.ceil(3 * sigma)), 1)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2).astype(np.float32)
    return kernel / kernel.sum()


@functools.lru_cache(maxsize=256)
def _mirrored(size: int, radius: int) -> np.ndarray:
    """Indices of an axis with mirrored borders: a tenth of the time of padding a small picture."""
    return np.pad(np.arange(size), radius, mode="symmetric")


def block_means(picture: np.ndarray, block: int = BLOCK) -> np.ndarray:
    """Every block of pixels replaced by its mean. picture float32 [H, W, C], sides multiples of `block`."""
    height, width, channels = picture.shape
    cut = picture.reshape(height // block, block, width // block, block, channels)
    return np.broadcast_to(cut.mean((1, 3), keepdims=True), cut.shape).reshape(picture.shape)


def add_artifact(picture: np.ndarray, artifact: Artifact, rng: np.random.Generator) -> np.ndarray:
    """Lays one flaw over a picture, float32 [H, W, 3] in 0..255 -> the same, clipped."""
    amount = artifact.amount
    if artifact.kind == "blur":
        out = blur(picture, amount * picture.shape[0] / 64)
    elif artifact.kind == "noise":
        out = picture + rng.normal(0, amount, (*picture.shape[:2], 1)).astype(np.float32)
    elif artifact.kind == "blocks":
        out = picture + amount * (block_means(picture) - picture)
    else:
        # Colour without brightness, in dots of two pixels, as decoded leftover latent noise looks.
        half = tuple(side // 2 for side in picture.shape[:2])
        color = rng.normal(0, amount, (*half, 3)).astype(np.float32)
        color -= color.mean(-1, keepdims=True)
        out = picture + color.repeat(2, 0).repeat(2, 1) * np.float32(1.5**0.5)
    return np.clip(out, 0, 255).astype(np.float32)
