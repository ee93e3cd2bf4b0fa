"""Attention measures on maps whose answers are known."""

import itertools

import numpy as np
import pytest

from spatialreward_jax.errors import InputError
from spatialreward_jax.evaluation.diagnostics import (
    MEASURES,
    consistency,
    diagnose,
    entropy,
    gini,
    head_groups,
    on_common_grid,
    summary,
)


def test_entropy_of_known_distributions():
    assert entropy(np.full(16, 3.0)) == pytest.approx(np.log(16))
    assert entropy(np.array([[0, 5, 0], [0, 0, 0]])) == pytest.approx([0, 0])
    assert entropy(np.array([1, 3])) == pytest.approx(-(0.25 * np.log(0.25) + 0.75 * np.log(0.75)))


def test_gini_equals_its_definition():
    rng = np.random.default_rng(0)
    weights = rng.random((2, 3, 11))
    for row, got in zip(weights.reshape(-1, 11), gini(weights).ravel()):
        apart = np.mean([abs(a - b) for a, b in itertools.product(row, row)])
        assert got == pytest.approx(apart / (2 * row.mean()))
    assert gini(np.ones(9)) == pytest.approx(0) and gini(np.eye(4)[0]) == pytest.approx(0.75)
    assert gini(np.zeros(4)) == 0


def test_a_collapsed_judge_and_an_attentive_one():
    even, peaked = np.full((2, 4, 4, 4), 0.01), np.zeros((2, 4, 4, 4))
    peaked[..., 1, 2] = 0.16
    collapsed, attentive = diagnose([peaked, even], 2), diagnose([even, even], 2)
    assert collapsed.source_entropy == pytest.approx(np.zeros((2, 2)))
    assert collapsed.entropy_gap == pytest.approx(np.full((2, 2), np.log(16)))
    assert attentive.entropy_gap == pytest.approx(np.zeros((2, 2)))
    assert collapsed.concentration.mean() > 0.4 > attentive.concentration.mean() == pytest.approx(0, abs=1e-12)
    assert collapsed.source_mass == pytest.approx(np.full((2, 2), 0.16))
    written = collapsed.to_json()
    assert set(written) == {*MEASURES, "layers"} and written["source_mass"] == pytest.approx(0.16)
    assert np.shape(written["layers"]["entropy_gap"]) == (2, 2)


def test_several_sources_count_as_one_set_of_keys():
    one, two = np.full((1, 1, 2, 2), 0.1), np.full((1, 1, 3, 4), 0.1)
    assert diagnose([one, two, one], 1).source_entropy[0, 0] == pytest.approx(np.log(16))


def test_groups_average_their_heads():
    heads = np.arange(6.0).reshape(1, 6, 1)
    assert head_groups(heads, 2)[0, :, 0] == pytest.approx([1, 4])
    with pytest.raises(InputError, match="6 heads do not divide into 4 groups"):
        head_groups(heads, 4)
    with pytest.raises(InputError, match="1 images"):
        diagnose([np.ones((1, 1, 2, 2))], 1)


@pytest.mark.parametrize("shape", [(3, 5), (8, 8), (17, 11)])
def test_the_common_grid_keeps_mass_and_place(shape):
    rng = np.random.default_rng(1)
    image = rng.random((2, *shape))
    assert on_common_grid(image).sum(axis=(1, 2)) == pytest.approx(image.sum(axis=(1, 2)))
    assert on_common_grid(np.ones(shape)) == pytest.approx(np.full((8, 8), shape[0] * shape[1] / 64))
    corner = np.zeros(shape)
    corner[-1, 0] = 1
    assert on_common_grid(corner)[-1, 0] == on_common_grid(corner).max()
    if shape == (8, 8):
        assert on_common_grid(image) == pytest.approx(image)


def test_consistency_is_the_mean_pairwise_correlation():
    rng = np.random.default_rng(2)
    samples = [rng.random((2, 3, 4, 4)) for _ in range(5)]
    pairs = list(itertools.combinations(samples, 2))
    for index in np.ndindex(2, 3):
        expected = np.mean([np.corrcoef(a[index].ravel(), b[index].ravel())[0, 1] for a, b in pairs])
        assert consistency(samples)[index] == pytest.approx(expected)
    same = samples[0][0, 0]
    assert consistency([same, 2 * same + 1]) == pytest.approx(1) and consistency([same, -same]) == pytest.approx(-1)
    assert consistency([np.ones((4, 4)), same]) == 0
    with pytest.raises(InputError, match="at least 2"):
        consistency([same])


def test_summary_of_many_answers():
    rng = np.random.default_rng(3)
    samples = [[rng.random((2, 4, 6, 9)) / 200, rng.random((2, 4, 5, 5)) / 100] for _ in range(6)]
    rows = summary(samples, 2)
    gaps = [diagnose(images, 2).entropy_gap.mean() for images in samples]
    assert rows["entropy_gap"]["value"] == pytest.approx(np.mean(gaps), abs=1e-6)
    assert rows["entropy_gap"]["low"] <= rows["entropy_gap"]["value"] <= rows["entropy_gap"]["high"]
    assert rows["entropy_gap"]["n"] == 6 and abs(rows["source_consistency"]) < 0.3
    assert summary([samples[0], samples[0]], 2)["edited_consistency"] == pytest.approx(1)
    assert summary(samples[:1], 2)["edited_consistency"] is None
    with pytest.raises(InputError, match="no samples"):
        summary([], 2)
