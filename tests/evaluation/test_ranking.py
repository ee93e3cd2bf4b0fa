"""Ranking metrics against values worked out by hand."""

import itertools
import math

import pytest

from spatialreward_jax.evaluation import ranking


def test_perfect_ranking():
    assert ranking.ranking_metrics([9.0, 5.0, 1.0]) == {
        "correct": 1,
        "tau": 1,
        "rho": pytest.approx(1),
        "ndcg": pytest.approx(1),
        "ndcg_official": pytest.approx(1),
        "top1": 1,
        "top2": 1,
        "position_error": 0,
        "ties": 0,
    }


def test_three_cycle_by_hand():
    """True order a, b, c; scored b > c > a: places of (a, b, c) are 2, 0, 1."""
    found = ranking.ranking_metrics([1.0, 9.0, 5.0])
    half = 1 / math.log2(3)
    ideal = 3 + 2 * half + 1 / 2
    assert found["tau"] == pytest.approx((1 - 2) / 3)  # only (b, c) is in order
    assert found["rho"] == pytest.approx(1 - 6 * (4 + 1 + 1) / (3 * 8))
    assert found["ndcg"] == pytest.approx((3 / 2 + 2 * 1 + 1 * half) / ideal)
    assert found["ndcg_official"] == pytest.approx(
        (3 * half + 2 / 2 + 1 * 1) / ideal
    )  # sort order 1, 2, 0 used as places
    assert found["position_error"] == pytest.approx((2 + 1 + 1) / 3)
    assert (found["correct"], found["top1"], found["top2"]) == (0, 0, 0)


def test_ties_never_help():
    found = ranking.ranking_metrics([5.0, 5.0])
    assert (found["correct"], found["top1"], found["tau"], found["rho"]) == (0, 0, 0, 0)
    assert found["position_error"] == 0.5 and found["ties"] == 1
    mean = (1 + 1 / math.log2(3)) / 2
    assert found["ndcg"] == pytest.approx(3 * mean / (2 + 1 / math.log2(3)))
    assert found["ndcg_official"] == pytest.approx(1)  # the official tool's stable sort keeps the true order
    assert ranking.ranking_metrics([7.0, 5.0, 5.0])["top1"] == 1
    assert ranking.ranking_metrics([7.0, 5.0, 5.0])["top2"] == 0
    assert ranking.ranking_metrics([7.0, 5.0, 5.0])["ties"] == pytest.approx(1 / 3)
    assert not ranking.exact_rank([7.0, 5.0, 5.0])


def test_swap_of_the_first_two_keeps_top2():
    found = ranking.ranking_metrics([5.0, 9.0, 1.0, 0.0])
    assert (found["correct"], found["top1"], found["top2"]) == (0, 0, 1)
    assert found["tau"] == pytest.approx((5 - 1) / 6)
    assert found["position_error"] == pytest.approx(0.5)
    assert found["ndcg"] == pytest.approx(found["ndcg_official"])  # a swap is its own inverse


@pytest.mark.parametrize("n", [2, 3, 4])
def test_against_the_official_formulas_on_every_order(n):
    """Without ties all but NDCG equal the official tool's, which takes the sort order for places."""
    for scores in itertools.permutations(range(n)):
        order = sorted(range(n), key=lambda i: -scores[i])
        pairs = list(itertools.combinations(range(n), 2))
        found = ranking.ranking_metrics([float(s) for s in scores])
        assert found["tau"] == pytest.approx(sum(1 if order[i] < order[j] else -1 for i, j in pairs) / len(pairs))
        squares = sum((order[i] - i) ** 2 for i in range(n))
        assert found["rho"] == pytest.approx(1 - 6 * squares / (n * (n * n - 1)))
        assert found["top1"] == (order[0] == 0)
        assert found["top2"] == (set(order[:2]) == {0, 1})
        assert found["position_error"] == pytest.approx(sum(abs(order[i] - i) for i in range(n)) / n)


def test_the_two_ndcg_differ_exactly_for_cycles():
    differ = [
        scores
        for scores in itertools.permutations(range(3))
        if abs(ranking.ndcg(scores) - ranking.ndcg_official(scores)) > 1e-12
    ]
    assert sorted(differ) == [(0, 2, 1), (1, 0, 2)]
