"""The three formulas, exact."""

import json
import math

import pytest

from spatialreward_jax.errors import InputError
from spatialreward_jax.reward.aggregate import Aggregation


def test_goldens(goldens):
    for case in json.loads((goldens / "reward.json").read_text())["cases"]:
        weighted = Aggregation("weighted")(case["sc_scores"], case["pq_scores"])
        assert weighted.reward == pytest.approx(case["reward_weighted"], abs=1e-12)
        assert weighted.semantic == pytest.approx(case["sc"], abs=1e-12)
        assert weighted.quality == pytest.approx(case["pq"], abs=1e-12)
        assert Aggregation("min")(case["sc_scores"], case["pq_scores"]).reward == pytest.approx(
            case["reward_min"], abs=1e-12
        )


def test_formulas():
    sc, pq = (20, 10), (15, 5)
    assert Aggregation()(sc, pq).overall == pytest.approx(6.4**0.8 * 4.0**0.2)
    assert Aggregation("min")(sc, pq).overall == pytest.approx(math.sqrt(10 * 5) / 2.5)
    assert Aggregation("mean")(sc, pq).overall == pytest.approx(math.sqrt(15 * 10) / 2.5)
    tilted = Aggregation(success=1, naturalness=0, semantic_power=0.5)
    assert tilted(sc, pq).overall == pytest.approx(math.sqrt(8 * 2))
    assert tilted.name == "weighted(success=1, naturalness=0, semantic_power=0.5)"


@pytest.mark.parametrize("kind", ["weighted", "min", "mean"])
def test_bounds(kind):
    assert Aggregation(kind)((25, 25), (25, 25)).overall == pytest.approx(10)
    assert Aggregation(kind)((0, 0), (25, 25)).overall == 0
    assert Aggregation(kind)((40, 40), (40, 40)).overall <= 10
    assert Aggregation(kind, clamp=False)((40, 40), (40, 40)).overall == pytest.approx(16)


def test_no_real_value():
    with pytest.raises(ValueError, match="negative product"):
        Aggregation("min")((-3, 5), (20, 20))
    with pytest.raises(ValueError, match="negative part"):
        Aggregation(clamp=False)((-30, 5), (20, 20))


def test_bad_settings():
    with pytest.raises(InputError, match="choose one of weighted, min, mean"):
        Aggregation("median")
    with pytest.raises(InputError, match=r"outside 0\.\.1"):
        Aggregation(success=1.2)
