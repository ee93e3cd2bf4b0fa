"""Attention written as its definition, with the whole T x S matrix: the meaning that every backend must reproduce."""

import jax
import jax.numpy as jnp

from spatialreward_jax.kernels.masking import HIDDEN, Segments, visible


def probabilities(
    q: jax.Array,
    k: jax.Array,
    *,
    segments: Segments | None = None,
    positions: jax.Array | None = None,
    scale: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attention weights and log-sum-exp of the scores, from q [B, T, N, H] and k [B, S, K, H].

    Returns:
      ([B, N, T, S], [B, N, T]) float32; a query that sees nothing has weights 0 and log-sum-exp 0.
    """
    b, t, n, h = q.shape
    keys, kv_heads = k.shape[1:3]
    scale = h**-0.5 if scale is None else scale
    grouped = q.reshape(b, t, kv_heads, n // kv_heads, h)
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped, k, preferred_element_type=jnp.float32) * scale
    scores = scores.reshape(b, n, t, keys)
    mask = visible(segments, positions, keys)
    if mask is None:
        return jax.nn.softmax(scores, axis=-1), jax.nn.logsumexp(scores, axis=-1)
    mask = mask[:, None]
    lse = jax.nn.logsumexp(jnp.where(mask, scores, HIDDEN), axis=-1)
    lse = jnp.where(mask.any(axis=-1), lse, 0.0)
    return jnp.where(mask, jnp.exp(jnp.where(mask, scores, 0.0) - lse[..., None]), 0.0), lse


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    segments: Segments | None = None,
    positions: jax.Array | None = None,
    scale: float | None = None,
) -> jax.Array:
    """`kernels.attention.attention` by definition: [B, T, N, H] in q's dtype."""
    weights, _ = probabilities(q, k, segments=segments, positions=positions, scale=scale)
    b, n, t, keys = weights.shape
    grouped = weights.reshape(b, k.shape[2], -1, t, keys).astype(v.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", grouped, v).reshape(b, t, n, v.shape[-1]).astype(q.dtype)
