"""Sampling rules: what they keep, what their log-probabilities mean, and that rows do not depend on their batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialreward_jax.errors import InputError
from spatialreward_jax.generate import RepetitionPenalty, Sampler, Temperature, TopKTopP, make_sampler

LOGITS = jnp.log(jnp.array([[0.4, 0.1, 0.3, 0.05, 0.15], [0.05, 0.2, 0.1, 0.6, 0.05]]))
NOTHING = jnp.zeros((2, 0), bool)


def kept(rule):
    return np.isfinite(rule(LOGITS, NOTHING)).tolist()


def keys(*seeds):
    return jax.vmap(jax.random.key)(jnp.array(seeds))


def test_top_k():
    assert kept(TopKTopP(2, 1.0)) == [[True, False, True, False, False], [False, True, False, True, False]]
    assert kept(TopKTopP(0, 1.0)) == [[True] * 5] * 2
    assert kept(TopKTopP(9, 1.0)) == [[True] * 5] * 2


def test_top_p_keeps_the_fewest_that_hold_it():
    assert kept(TopKTopP(0, 0.69)) == [[True, False, True, False, False], [False, True, False, True, False]]
    assert kept(TopKTopP(0, 0.71)) == [[True, False, True, False, True], [False, True, False, True, False]]
    assert kept(TopKTopP(0, 1e-6)) == [[True, False, False, False, False], [False, False, False, True, False]]


def test_top_p_counts_within_top_k():
    # Of the two likeliest, .4 and .3, the first holds .57 of their probability.
    assert kept(TopKTopP(2, 0.56))[0] == [True, False, False, False, False]
    assert kept(TopKTopP(2, 0.58))[0] == [True, False, True, False, False]


def test_repetition_penalty_acts_once_and_on_both_signs():
    logits = jnp.array([[2.0, -2.0, 1.0]])
    seen = jnp.array([[True, True, False]])
    np.testing.assert_allclose(RepetitionPenalty(1.25)(logits, seen), [[1.6, -2.5, 1.0]])


def test_log_probabilities():
    """`logp` is of the distribution that was sampled, `raw_logp` of the net's own."""
    sampler = make_sampler(temperature=0.5, top_k=3)
    picked = sampler.pick(LOGITS, NOTHING, keys(1, 2))
    for row in range(2):
        shaped = np.sort(np.exp(LOGITS[row]))[::-1][:3] ** 2
        share = dict(zip(np.argsort(-LOGITS[row])[:3].tolist(), shaped / shaped.sum()))
        token = int(picked.token[row])
        np.testing.assert_allclose(picked.logp[row], np.log(share[token]), rtol=1e-5)
        np.testing.assert_allclose(picked.raw_logp[row], LOGITS[row, token], rtol=1e-5)


def test_greedy():
    picked = make_sampler().pick(LOGITS, NOTHING, keys(1, 2))
    np.testing.assert_array_equal(picked.token, [0, 3])
    np.testing.assert_array_equal(picked.logp, [0, 0])
    np.testing.assert_allclose(picked.raw_logp, jnp.log(jnp.array([0.4, 0.6])), rtol=1e-5)


def test_greedy_heeds_the_repetition_penalty():
    sampler = make_sampler(repetition_penalty=2.0)
    assert sampler.needs_seen
    seen = jnp.array([[True, False, False, False, False]] * 2)
    np.testing.assert_array_equal(sampler.pick(LOGITS, seen, keys(1, 2)).token, [2, 3])


def test_draws_follow_the_shaped_distribution():
    sampler = make_sampler(temperature=1.0, top_p=0.71)
    many = jnp.broadcast_to(LOGITS[0], (4000, 5))
    draws = sampler.pick(many, jnp.zeros((4000, 0), bool), keys(*range(4000)))
    share = np.bincount(draws.token, minlength=5) / 4000
    np.testing.assert_allclose(share, np.array([0.4, 0, 0.3, 0, 0.15]) / 0.85, atol=0.03)


def test_a_row_does_not_depend_on_its_batch():
    sampler = make_sampler(temperature=1.0)
    together = sampler.pick(LOGITS, NOTHING, keys(5, 9))
    for row, seed in enumerate((5, 9)):
        alone = sampler.pick(LOGITS[row : row + 1], NOTHING[:1], keys(seed))
        assert alone.token[0] == together.token[row]
        np.testing.assert_allclose(alone.logp[0], together.logp[row], rtol=1e-6)


def test_only_rules_that_act_are_made():
    assert make_sampler(temperature=0.0, top_k=20, top_p=0.9) == Sampler((), greedy=True)
    assert make_sampler(temperature=0.9, top_k=50, top_p=0.9, repetition_penalty=1.05).rules == (
        RepetitionPenalty(1.05),
        Temperature(0.9),
        TopKTopP(50, 0.9),
    )


@pytest.mark.parametrize(
    "options", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}, {"repetition_penalty": 0.0}]
)
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(InputError, match="use"):
        make_sampler(**options)
