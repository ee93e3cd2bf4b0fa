"""Ranking metrics over one list of scores whose true order is known: place 0 is the best, place n-1 the worst.

Higher scores are better. A tie never helps: it breaks the exact ranking, and takes the mean place where a place is
needed. `ndcg_official` repeats an error of the benchmark's own tool (SpatialReward repository,
`eval/MERBench/calculate_accuracy.py`) so that published figures can be compared; every other figure here is the
textbook one.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np

METRICS = ("correct", "tau", "rho", "ndcg", "ndcg_official", "top1", "top2", "position_error", "ties")


def ranks(scores: Sequence[float]) -> np.ndarray:
    """Place of every score, 0 for the highest; equal scores share the mean of their places. -> float64 [n]."""
    scores = np.asarray(scores, np.float64)
    above = (scores[None, :] > scores[:, None]).sum(1)
    equal = (scores[None, :] == scores[:, None]).sum(1)
    return above + (equal - 1) / 2


def exact_rank(scores: Sequence[float]) -> bool:
    """True if the scores fall strictly from first to last; a tie is wrong."""
    return all(a > b for a, b in itertools.pairwise(scores))


def kendall_tau(scores: Sequence[float]) -> float:
    """Kendall's tau-a against the true order: (concordant - discordant) / pairs; a tied pair counts for neither."""
    n = len(scores)
    signs = [np.sign(scores[i] - scores[j]) for i in range(n) for j in range(i + 1, n)]
    return float(np.mean(signs)) if signs else 0.0


def spearman_rho(scores: Sequence[float]) -> float:
    """Spearman's rho: Pearson correlation of mean ranks with 0..n-1; 0 if all scores are equal."""
    places = ranks(scores)
    if len(places) < 2 or np.ptp(places) == 0:
        return 0.0
    return float(np.corrcoef(places, np.arange(len(places)))[0, 1])


def ndcg(scores: Sequence[float]) -> float:
    """Normalised discounted cumulative gain, gain n - i for the image truly at place i, discount 1 / log2(place + 2).

    Images with equal scores share the mean discount of their places, which is the expectation over random tie breaking
    (McSherry and Najork, 2008).
    """
    n = len(scores)
    discount = 1 / np.log2(np.arange(n) + 2)
    gain = n - np.arange(n)
    scores = np.asarray(scores, np.float64)
    order = np.sort(scores)[::-1]
    shared = np.array([discount[order == s].mean() for s in scores])
    return float((gain * shared).sum() / (gain * discount).sum())


def ndcg_official(scores: Sequence[float]) -> float:
    """NDCG as the official tool computes it: the index that sorts the scores stands in for the rank of each image.

    The two are inverse permutations, so the value differs from `ndcg` when a cycle of three or more images occurs;
    ties are broken in favour of the true order, because the tool's sort is stable and the images come best first.
    """
    n = len(scores)
    order = sorted(range(n), key=lambda i: -scores[i])
    ideal = sum((n - i) / math.log2(i + 2) for i in range(n))
    return sum((n - i) / math.log2(order[i] + 2) for i in range(n)) / ideal


def top_k(scores: Sequence[float], k: int) -> bool:
    """True if the k truly best images score strictly above all others; True for k >= n, as in the official tool."""
    best, rest = scores[:k], scores[k:]
    return not len(rest) or min(best) > max(rest)


def position_error(scores: Sequence[float]) -> float:
    """Mean distance, in places, between the true place of an image and its place by score (mean place for ties)."""
    return float(np.abs(ranks(scores) - np.arange(len(scores))).mean())


def ties(scores: Sequence[float]) -> float:
    """Share of the pairs of images that have equal scores."""
    pairs = list(itertools.combinations(scores, 2))
    return sum(a == b for a, b in pairs) / len(pairs) if pairs else 0.0


def ranking_metrics(scores: Sequence[float]) -> dict[str, float]:
    """All metrics of one ranking. scores: at least two finite numbers, truly best image first. Values are floats."""
    values = (
        exact_rank(scores),
        kendall_tau(scores),
        spearman_rho(scores),
        ndcg(scores),
        ndcg_official(scores),
        top_k(scores, 1),
        top_k(scores, 2),
        position_error(scores),
        ties(scores),
    )
    return dict(zip(METRICS, map(float, values), strict=True))
