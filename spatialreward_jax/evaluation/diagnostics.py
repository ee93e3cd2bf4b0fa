"""How a judge's attention is spread over the images of an edit: the paper's diagnosis of attention collapse.

A judge that looks at the edited image alone has a low source entropy, a large gap between the two entropies and a high
concentration (arXiv 2602.07458 reports 3.48 -> 1.16 for the gap once regions are cited). The paper prints no formulas
for its figures; ours are below. Maps come from `attention_maps`. NumPy only, float64; entropies in nats.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation.statistics import bootstrap

GRID = 8
"""Side of the common grid on which maps of different images are compared."""

MEASURES = ("source_entropy", "edited_entropy", "entropy_gap", "concentration", "source_mass", "edited_mass")


def entropy(weights: np.ndarray) -> np.ndarray:
    """Entropy [...] of weights [..., S] >= 0 after they are scaled to sum 1; 0 where they are all 0."""
    share = _shares(weights)
    return 0.0 - (share * np.log(np.where(share > 0, share, 1.0))).sum(axis=-1)


def gini(weights: np.ndarray) -> np.ndarray:
    """Gini coefficient [...] of weights [..., S] >= 0: 0 for equal weights (or none), (S - 1) / S for a single one."""
    share = np.sort(_shares(weights), axis=-1)
    size = share.shape[-1]
    rank = np.arange(1, size + 1)
    found = (2 * rank - size - 1) @ np.moveaxis(share, -1, 0).reshape(size, -1) / size
    return found.reshape(share.shape[:-1])


def head_groups(maps: np.ndarray, groups: int) -> np.ndarray:
    """Means over the query heads that share a key head: [L, N, ...] -> [L, groups, ...].

    Raises:
      InputError: the heads do not divide into the groups.
    """
    if maps.shape[1] % groups:
        raise InputError(
            f"{maps.shape[1]} heads do not divide into {groups} groups: use the judge's number of key heads"
        )
    return maps.reshape(maps.shape[0], groups, -1, *maps.shape[2:]).mean(axis=2, dtype=np.float64)


@dataclasses.dataclass(frozen=True, eq=False)
class Diagnosis:
    """Attention of one edit's answer, for each layer and group of heads; all arrays float64 [L, K].

    Attributes:
      source_entropy, edited_entropy: of the map over all source keys, and over the edited image's keys.
      entropy_gap: the absolute difference of the two.
      concentration: mean of the Gini coefficients of the two maps.
      source_mass, edited_mass: share of the whole attention that goes to the images; the rest goes to text.
    """

    source_entropy: np.ndarray
    edited_entropy: np.ndarray
    entropy_gap: np.ndarray
    concentration: np.ndarray
    source_mass: np.ndarray
    edited_mass: np.ndarray

    def to_json(self) -> dict:
        """Every measure's mean, and its values per layer (a list of L lists of K), rounded to 6 places."""
        found = {name: getattr(self, name) for name in MEASURES}
        means = {name: round(float(x.mean()), 6) for name, x in found.items()}
        return means | {"layers": {name: np.round(x, 6).tolist() for name, x in found.items()}}


def diagnose(images: Sequence[np.ndarray], groups: int) -> Diagnosis:
    """Measures of one answer.

    Args:
      images: attention to each image's merged patches, [L, N, rows, columns]; the edited image last.
      groups: key heads K; a group is the heads that share one.

    Raises:
      InputError: fewer than two images, or heads that do not divide.
    """
    if len(images) < 2:
        raise InputError(f"{len(images)} images: a diagnosis compares the sources with the edited image")
    flat = [head_groups(x.reshape(*x.shape[:2], -1), groups) for x in images]
    source, edited = np.concatenate(flat[:-1], axis=-1), flat[-1]
    source_entropy, edited_entropy = entropy(source), entropy(edited)
    return Diagnosis(
        source_entropy,
        edited_entropy,
        np.abs(source_entropy - edited_entropy),
        (gini(source) + gini(edited)) / 2,
        source.sum(axis=-1),
        edited.sum(axis=-1),
    )


def on_common_grid(image: np.ndarray, side: int = GRID) -> np.ndarray:
    """A map [..., rows, columns] on side x side equal cells, its mass kept: patches are cut where cells cut them."""
    rows, columns = (_overlap(size, side) for size in image.shape[-2:])
    return rows @ np.asarray(image, np.float64) @ columns.T


def consistency(samples: Sequence[np.ndarray]) -> np.ndarray:
    """How alike the maps of different samples are: their mean pairwise Pearson correlation.

    Args:
      samples: at least two maps on a common grid, [..., side, side]; leading axes (layers, groups) are kept apart.

    Returns:
      float64 [...] in -1..1; a constant map correlates with nothing (0).

    Raises:
      InputError: there are fewer than two samples.
    """
    count = len(samples)
    if count < 2:
        raise InputError(f"consistency compares samples: {count} given, want at least 2")
    cells = np.stack([np.asarray(x, np.float64).reshape(*x.shape[:-2], -1) for x in samples])
    cells = cells - cells.mean(axis=-1, keepdims=True)
    length = np.linalg.norm(cells, axis=-1, keepdims=True)
    alive = length > 1e-12
    cells = np.where(alive, cells / np.where(alive, length, 1.0), 0.0)
    squared = np.square(cells.sum(axis=0)).sum(axis=-1) - alive.sum(axis=0)[..., 0]  # less each with itself
    return squared / (count * (count - 1))


def summary(samples: Sequence[Sequence[np.ndarray]], groups: int) -> dict:
    """The paper's table for a judge: every measure over many answers.

    Args:
      samples: for each answer its images as `diagnose` takes them.
      groups: key heads.

    Returns:
      A dict ready for JSON: {measure: mean over samples, layers and groups with its 95% bootstrap interval}, and
      `source_consistency` and `edited_consistency`: means over layers and groups (None for a single sample). The first
      source stands for all of a sample's sources.

    Raises:
      InputError: there are no samples, or see `diagnose`.
    """
    if not samples:
        raise InputError("no samples to summarise")
    found = [diagnose(images, groups) for images in samples]
    rows = {name: bootstrap([float(getattr(x, name).mean()) for x in found]).to_json() for name in MEASURES}
    for name, which in (("source", 0), ("edited", -1)):
        maps = [on_common_grid(head_groups(images[which], groups)) for images in samples]
        rows[f"{name}_consistency"] = round(float(consistency(maps).mean()), 6) if len(maps) > 1 else None
    return rows


def _shares(weights):
    weights = np.asarray(weights, np.float64)
    total = weights.sum(axis=-1, keepdims=True)
    return np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)


def _overlap(size, cells):
    """[cells, size]: the fraction of each of `size` equal parts of a line that lies in each of `cells` parts."""
    edge, part = np.arange(cells + 1) / cells, np.arange(size + 1) / size
    shared = np.minimum(edge[1:, None], part[None, 1:]) - np.maximum(edge[:-1, None], part[None, :-1])
    return np.maximum(shared, 0) * size
