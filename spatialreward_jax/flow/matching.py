"""Rectified-flow training: times and error of the straight path between noise and data. Pure functions.

Time 0 is noise, time 1 is data, v = dx/dt = data - noise. Source of the time distribution: OmniGen2's training code,
`omnigen2/transport/transport.py` (`lognorm`, dynamic shift, version 1).
"""

import jax
import jax.numpy as jnp

SHIFT_FROM = (256, 0.5)
SHIFT_TO = (4096, 1.15)
"""(image tokens, shift): the shift is linear in the tokens through these two points, also beyond them."""


def shift_of(tokens: jax.Array) -> jax.Array:
    """Patches of an image [...] -> shift [...]; larger images train more near the noise."""
    (x1, y1), (x2, y2) = SHIFT_FROM, SHIFT_TO
    return y1 + (y2 - y1) / (x2 - x1) * (tokens - x1)


def shift_times(t: jax.Array, tokens: jax.Array) -> jax.Array:
    """Times [B] in (0, 1) moved towards the noise, tokens [B]: s = 1 - t becomes e^m s / (1 + (e^m - 1) s).

    m = `shift_of(tokens)`.
    """
    factor, s = jnp.exp(shift_of(tokens)), 1 - t
    return 1 - factor * s / (1 + (factor - 1) * s)


def sample_times(key: jax.Array, tokens: jax.Array) -> jax.Array:
    """Training times float32 [B] of images with `tokens` [B] patches: logistic of a standard normal, then shifted."""
    return shift_times(jax.nn.sigmoid(jax.random.normal(key, tokens.shape)), tokens.astype(jnp.float32))


def matching_error(velocity: jax.Array, noise: jax.Array, data: jax.Array) -> jax.Array:
    """Squared error of a velocity against data - noise, element by element; float32, all of one shape."""
    return jnp.square(velocity.astype(jnp.float32) - (data - noise))
