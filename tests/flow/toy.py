"""A small velocity with the conventions of the real nets: per token, with conditioning that leads with the prompts."""

import jax
import jax.numpy as jnp
import numpy as np

CHANNELS = 8


def params(seed=0):
    key = jax.random.split(jax.random.key(seed), 3)
    return {
        "w": 0.3 * jax.random.normal(key[0], (CHANNELS, CHANNELS)),
        "b": 0.3 * jax.random.normal(key[1], (CHANNELS,)),
        "u": 0.3 * jax.random.normal(key[2], (4, CHANNELS)),
    }


def velocity(p, x, t, cond):
    """x [P, G, T, C] or [B, T, C]; cond [P, 4]."""
    extra = (cond @ p["u"]).reshape(cond.shape[0], *(1,) * (x.ndim - 2), CHANNELS)
    mean = x.mean(-2, keepdims=True)  # mixes tokens: padded tokens must be 0
    return jnp.tanh(x @ p["w"] + t[..., None, None] * p["b"] + extra) + 0.1 * mean * x.shape[-2] / 8


def conditioning(prompts, seed=1):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(prompts, 4)).astype(np.float32)
