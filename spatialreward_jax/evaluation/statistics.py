"""Uncertainty of benchmark figures: seeded bootstrap intervals, McNemar's exact test, paired bootstrap. NumPy only."""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

_CHUNK = 4_000_000  # numbers drawn at a time, so that a large benchmark needs little memory


class Estimate(NamedTuple):
    """A mean with its 95% percentile bootstrap interval; `n` values went in."""

    value: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict:
        """Plain numbers, None where there is no value, rounded to 6 places so that files compare byte for byte."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {k: None if math.isnan(v) else round(v, 6) for k, v in numbers.items()} | {"n": self.n}


def stratified_mean(values: Sequence[float], strata: Sequence[Hashable]) -> float:
    """Mean over strata of the mean within each (a benchmark's "mean over task types"); NaN for no values."""
    values = np.asarray(values, np.float64)
    labels = _codes(strata)
    return float(np.mean([values[labels == c].mean() for c in range(labels.max() + 1)])) if len(values) else math.nan


def bootstrap(
    values: Sequence[float],
    *,
    strata: Sequence[Hashable] | None = None,
    clusters: Sequence[Hashable] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Mean (over strata, of means within) with a 95% interval.

    values [n]. Rows that share a cluster (one source image and instruction, compared several times) are drawn together,
    within their stratum; the stratum's mean is then the ratio of the drawn sums. The same seed gives the same interval.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        return Estimate(math.nan, math.nan, math.nan, 0)
    strata = [0] * len(values) if strata is None else strata
    draws = _draws(values, strata, clusters, resamples, seed)
    low, high = np.percentile(draws, (2.5, 97.5))
    return Estimate(stratified_mean(values, strata), float(low), float(high), len(values))


class Paired(NamedTuple):
    """Two systems on the same rows: means a and b, their difference a - b with its 95% interval, and two p-values.

    `p_bootstrap` is two-sided, from the share of resampled differences on the far side of zero. `p_mcnemar` is the
    exact binomial test on rows where just one of the two is right (None unless all values are 0 or 1).
    """

    a: float
    b: float
    difference: float
    low: float
    high: float
    p_bootstrap: float
    only_a: int
    only_b: int
    p_mcnemar: float | None
    n: int


def paired(
    a: Sequence[float],
    b: Sequence[float],
    *,
    strata: Sequence[Hashable] | None = None,
    clusters: Sequence[Hashable] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Paired:
    """Compare two systems row by row; a, b [n] in the same order. Raises ValueError if empty or of different length."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if len(a) != len(b) or not len(a):
        raise ValueError(f"paired test of {len(a)} against {len(b)} values: give the same rows, at least one")
    strata = [0] * len(a) if strata is None else strata
    draws = _draws(a - b, strata, clusters, resamples, seed)
    low, high = np.percentile(draws, (2.5, 97.5))
    tail = min((draws <= 0).sum(), (draws >= 0).sum())
    p = min(1.0, 2 * (tail + 1) / (resamples + 1))
    binary = bool(np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all())
    only_a, only_b = int((a > b).sum()), int((b > a).sum())
    means = stratified_mean(a, strata), stratified_mean(b, strata)
    test = mcnemar(only_a, only_b) if binary else None
    return Paired(*means, means[0] - means[1], float(low), float(high), p, only_a, only_b, test, len(a))


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact p-value: were `only_a` and `only_b` discordant rows a fair coin's? 1 when there are none."""
    n, k = only_a + only_b, min(only_a, only_b)
    if n == 0:
        return 1.0
    log_terms = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)
    ]
    top = max(log_terms)
    tail = math.exp(top) * sum(math.exp(t - top) for t in log_terms)
    return min(1.0, 2 * tail)


def _codes(labels: Sequence[Hashable]) -> np.ndarray:
    """Labels -> int64 codes in order of first appearance."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(label, len(seen)) for label in labels], np.int64)


def _draws(values, strata, clusters, resamples, seed) -> np.ndarray:
    """values [n] -> resampled stratified means [resamples]."""
    rng = np.random.default_rng(seed)
    labels = _codes(strata)
    groups = np.arange(len(values)) if clusters is None else _codes(clusters)
    total = np.zeros(resamples)
    for stratum in range(labels.max() + 1):
        rows = labels == stratum
        codes = np.unique(groups[rows], return_inverse=True)[1]
        counts, sums = np.bincount(codes), np.bincount(codes, weights=values[rows])
        step = max(1, _CHUNK // len(counts))
        for start in range(0, resamples, step):
            pick = rng.integers(0, len(counts), (min(step, resamples - start), len(counts)))
            total[start : start + step] += sums[pick].sum(1) / counts[pick].sum(1)
    return total / (labels.max() + 1)
