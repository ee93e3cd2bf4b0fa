"""Times and error of rectified-flow training against the reference's formulas and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatialreward_jax.flow import matching_error, sample_times, shift_times


def reference_shift(t, tokens):
    """`time_shift` of the reference, in float64."""
    mu = 0.5 + (1.15 - 0.5) / (4096 - 256) * (tokens - 256)
    s = 1 - np.float64(t)
    return 1 - np.exp(mu) / (np.exp(mu) + (1 / s - 1))


@pytest.mark.parametrize("tokens", [64, 256, 1024, 4096])
def test_times_shift_as_in_the_reference(tokens):
    t = np.linspace(0.01, 0.99, 33)
    ours = shift_times(jnp.float32(t), jnp.float32(tokens))
    np.testing.assert_allclose(ours, reference_shift(t, tokens), rtol=1e-5, atol=1e-6)
    assert (np.asarray(ours) < t).all(), "towards the noise"


def test_times_keep_their_ends():
    ends = jnp.array([0.0, 1.0])
    np.testing.assert_allclose(shift_times(ends, jnp.float32(1024)), ends, atol=1e-7)


def test_sampled_times_are_shifted_logistic_normal():
    tokens = jnp.repeat(jnp.array([64, 4096]), 4000)
    t = np.asarray(sample_times(jax.random.key(0), tokens))
    assert ((t > 0) & (t < 1)).all()
    for half, tokens in ((t[:4000], 64), (t[4000:], 4096)):
        np.testing.assert_allclose(np.median(half), reference_shift(0.5, tokens), atol=0.02)


def test_error_is_against_data_minus_noise():
    velocity, noise, data = (jnp.array(x) for x in ([[1.0, 2.0]], [[0.5, 0.0]], [[2.0, 1.0]]))
    np.testing.assert_allclose(matching_error(velocity, noise, data), [[0.25, 1.0]])
