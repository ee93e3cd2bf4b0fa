"""Bootstrap intervals and tests: known values, seeds, strata, clusters."""

import math

import numpy as np
import pytest

from spatialreward_jax.evaluation.statistics import Estimate, bootstrap, mcnemar, paired, stratified_mean


def test_stratified_mean_weighs_groups_alike():
    assert stratified_mean([1, 1, 1, 0], ["a", "a", "a", "b"]) == 0.5
    assert math.isnan(stratified_mean([], []))


def test_bootstrap_is_seeded_and_brackets_the_mean():
    values = np.random.default_rng(1).integers(0, 2, 200)
    found = bootstrap(values, seed=3)
    assert found == bootstrap(values, seed=3)
    assert bootstrap(np.arange(50.0), seed=3) != bootstrap(np.arange(50.0), seed=4)
    p = values.mean()
    normal = 1.96 * math.sqrt(p * (1 - p) / 200)
    assert found.low == pytest.approx(p - normal, abs=0.015)
    assert found.high == pytest.approx(p + normal, abs=0.015)
    assert found.value == p and found.n == 200


def test_bootstrap_of_nothing_and_of_constants():
    assert bootstrap([]).to_json() == {"value": None, "low": None, "high": None, "n": 0}
    assert bootstrap([1, 1, 1]) == Estimate(1, 1, 1, 3)


def test_clusters_widen_the_interval():
    """Ten copies of each of 20 values are 20 observations, not 200."""
    values = np.repeat(np.random.default_rng(0).integers(0, 2, 20), 10)
    alone, together = bootstrap(values), bootstrap(values, clusters=np.repeat(np.arange(20), 10).tolist())
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_strata_are_resampled_within():
    """Two strata without spread have no uncertainty, whatever lies between them."""
    found = bootstrap([1, 1, 1, 0, 0], strata=["a", "a", "a", "b", "b"])
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_mcnemar_by_hand():
    assert mcnemar(0, 0) == 1
    assert mcnemar(1, 0) == 1
    assert mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert mcnemar(2, 8) == mcnemar(8, 2)
    assert 0 < mcnemar(3000, 2000) < 1e-40


def test_paired():
    a, b = [1, 1, 1, 1, 0, 1], [0, 0, 1, 0, 0, 1]
    found = paired(a, b)
    assert (found.only_a, found.only_b, found.n) == (3, 0, 6)
    assert found.difference == pytest.approx(0.5)
    assert found.p_mcnemar == pytest.approx(2 / 8)
    assert found.low <= 0.5 <= found.high
    same = paired(a, a)
    assert (same.difference, same.p_bootstrap, same.p_mcnemar) == (0, 1, 1)
    assert paired([0.5, 1], [0.25, 1]).p_mcnemar is None
    with pytest.raises(ValueError, match="2 against 1"):
        paired([1, 0], [1])
