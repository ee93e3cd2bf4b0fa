"""Measuring flaws: how blurred, blocky, noisy and speckled a picture is against what it is taken to show."""

from __future__ import annotations

import numpy as np
import scipy.ndimage

from spatialreward_jax.data.editworld.artifacts import block_means, blur

SIGMAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)  # pixels
_FINE = 1.0  # pixels; noise is measured in what a blur of this size takes away
_GAIN = 0.86  # standard deviation of white noise after taking its blur away: sqrt((1 - k0)^2 + ...) for this sigma
_DOT_GAIN = 0.62  # the same for dots of two pixels
_OUTLIER = 40.0  # levels; larger smooth differences are something else shown, not a flaw
_CLIP = 20.0  # levels; larger differences count as this large
_LEAST_SHARE = 0.1  # less is what a few wrong pixels look like


def fine(picture: np.ndarray) -> np.ndarray:
    """The part of a picture that a small blur takes away. float32 [H, W, C] -> the same shape."""
    return picture - blur(picture, _FINE)


def degradation(
    picture: np.ndarray, expected: np.ndarray, usable: np.ndarray, *, sure: bool = True
) -> tuple[float, float]:
    """-> (sigma in pixels, share of blocks): what, done to `expected`, comes closest to `picture`.

    picture, expected: float32 [H, W, 3]; usable: bool [H, W], where the two should show the same.
    sure: whether `expected` is exact; else only what explains most of the difference counts.
    """
    p, e = picture.mean(-1, keepdims=True), expected.mean(-1, keepdims=True)
    other = np.sqrt((blur(picture - expected, 3.0) ** 2).sum(-1)) > _OUTLIER
    same = usable & ~scipy.ndimage.binary_dilation(other, iterations=4)
    both = np.concatenate([e, block_means(e) - e], -1)
    best, untouched = (np.inf, 0.0, 0.0), 0.0
    for sigma in SIGMAS:
        soft, soft_blocky = np.split(blur(both, sigma) if sigma else both, 2, -1)
        gap, direction = (p - soft)[same], soft_blocky[same]
        share = 0.0
        for _ in range(3):  # reweighted: pixels that show something else count little
            weight = direction / (1 + ((gap - share * direction) / _CLIP) ** 2)
            share = float(np.clip((gap * weight).sum() / ((direction * weight).sum() + 1.0), 0, 0.9))
        rest = float(np.minimum((gap - share * direction) ** 2, _CLIP**2).sum())
        # A little in favour of less, so that rounding and clipping are no flaws.
        rest = rest * (1 + 0.01 * sigma) + 0.02 * sigma * same.sum()
        if not sigma:
            untouched = float(np.minimum(gap**2, _CLIP**2).sum())
        if rest < best[0]:
            best = (rest, sigma, share)
    if not sure and best[0] > 0.4 * untouched:
        return 0.0, 0.0
    return best[1], best[2] if best[2] > _LEAST_SHARE else 0.0


def degrade(picture: np.ndarray, sigma: float, share: float) -> np.ndarray:
    """Blocks, then blur, as `degradation` measures them."""
    picture = picture + share * (block_means(picture) - picture) if share else picture
    return blur(picture, sigma) if sigma else picture


def undo_blocks(picture: np.ndarray, share: float) -> np.ndarray:
    """Takes a share of blocks away again: block means survive blocking, so the inverse is exact."""
    return np.clip((picture - share * block_means(picture)) / (1 - share), 0, 255) if share else picture


def _spread(values: np.ndarray) -> float:
    """Standard deviation by the median absolute value: a few wrong pixels do not matter."""
    return 1.4826 * float(np.median(np.abs(values))) if values.size else 0.0


def noise_levels(picture: np.ndarray, explained: np.ndarray, usable: np.ndarray) -> tuple[float, float]:
    """-> (noise, speckle): standard deviations in levels of brightness and of colour that nothing explains.

    picture, explained: float32 [H, W, 3]; usable: bool [H, W].
    """
    rest = picture - explained
    bright = rest.mean(-1, keepdims=True)
    return _spread(fine(bright)[usable]) / _GAIN, _spread(fine(rest - bright)[usable]) / _DOT_GAIN
