"""Exact pixel measures that a policy cannot talk its way around. Each is 1 for a harmless edit and falls to 0.

They see what a judge may miss: change outside the regions that the judge names, the colour speckle that stochastic
sampling leaves behind, and a global shift of colour. NumPy on uint8 [H, W, 3] images.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from spatialreward_jax.reward.types import Region


class Boxed(Protocol):
    """What has a place: `box`, its (left, top, right, bottom) in pixels."""

    @property
    def box(self) -> tuple[float, float, float, float]:
        """As said."""


NOISE_FLOOR = 20 * (4 / 255) ** 2
"""Laplacian energy of white noise with a standard deviation of 4 of 255 levels (a Laplacian has squared weights 20)."""


@dataclasses.dataclass(frozen=True)
class Guards:
    """Tolerances of the guards' reward.

    Attributes:
        outside: mean absolute change outside the boxes, 0..1, at which `kept` has fallen to 1/e.
        energy: natural log of the high-frequency energy ratio beyond which `clean` falls, and its scale.
        colour: distance of mean colours outside the boxes, 0..1, at which `colour` has fallen to 1/e.
        margin: pixels by which boxes grow before they count as inside.
    """

    outside: float = 0.05
    energy: float = 0.7
    colour: float = 0.05
    margin: int = 4

    def __call__(self, source: np.ndarray, edited: np.ndarray, regions: Sequence[Region] | None) -> dict[str, float]:
        """Measures and grades of one edit.

        Args:
            source, edited: uint8 images; the source is resized to the edited image where they differ.
            regions: where the judge saw an edit (empty: nowhere, so that all of the image must be kept), or None where
                no judge has answered: then only `clean` can be graded.

        Returns:
            The measures, the grades `kept`, `clean`, `colour` (0..1), and `reward`, their geometric mean.
        """
        source = match_size(source, edited)
        ratio = high_frequency_ratio(source, edited)
        excess = max(0.0, float(np.log(ratio)) - self.energy)
        measures, grades = {"high_frequency_ratio": ratio}, {"clean": float(np.exp(-excess / self.energy))}
        if regions is not None:
            inside = box_mask(edited.shape[:2], regions, margin=self.margin)
            changed, shift = outside_change(source, edited, inside), colour_shift(source, edited, inside)
            measures |= {"outside_change": changed, "colour_shift": shift}
            grades |= {"kept": float(np.exp(-changed / self.outside)), "colour": float(np.exp(-shift / self.colour))}
        return {"reward": float(np.prod(list(grades.values())) ** (1 / len(grades))), **grades, **measures}


def match_size(source: np.ndarray, edited: np.ndarray) -> np.ndarray:
    """The source resized (bicubic) to the edited image's size, as uint8."""
    if source.shape == edited.shape:
        return source
    size = (edited.shape[1], edited.shape[0])
    return np.asarray(Image.fromarray(source).resize(size, Image.Resampling.BICUBIC))


def box_mask(size: tuple[int, int], regions: Sequence[Boxed], *, margin: int = 0) -> np.ndarray:
    """bool [H, W], True inside any region's pixel box grown by `margin` pixels; a pixel counts when it is touched."""
    mask = np.zeros(size, bool)
    for region in regions:
        left, top, right, bottom = region.box
        if right > left and bottom > top:
            rows = slice(max(int(np.floor(top)) - margin, 0), int(np.ceil(bottom)) + margin)
            mask[rows, max(int(np.floor(left)) - margin, 0) : int(np.ceil(right)) + margin] = True
    return mask


def outside_change(source: np.ndarray, edited: np.ndarray, inside: np.ndarray) -> float:
    """Mean absolute difference outside the mask, as a share of the full range; 0 where nothing is outside."""
    outside = ~inside
    if not outside.any():
        return 0.0
    return float(np.abs(source.astype(np.float64) - edited)[outside].mean() / 255)


def high_frequency_energy(image: np.ndarray) -> float:
    """Mean square of the 4-neighbour Laplacian over inner pixels and channels, image scaled to 0..1."""
    if min(image.shape[:2]) < 3:
        return 0.0
    x = image.astype(np.float64) / 255
    around = x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:]
    return float(np.square(4 * x[1:-1, 1:-1] - around).mean())


def high_frequency_ratio(source: np.ndarray, edited: np.ndarray) -> float:
    """Energy of the edited image over that of the source, each plus `NOISE_FLOOR`, so that flat sources compare."""
    return (high_frequency_energy(edited) + NOISE_FLOOR) / (high_frequency_energy(source) + NOISE_FLOOR)


def colour_shift(source: np.ndarray, edited: np.ndarray, inside: np.ndarray) -> float:
    """Euclidean distance of the mean colours outside the mask, channels in 0..1; 0 where nothing is outside."""
    outside = ~inside
    if not outside.any():
        return 0.0
    means = [image.astype(np.float64)[outside].mean(0) / 255 for image in (source, edited)]
    return float(np.linalg.norm(means[0] - means[1]))
