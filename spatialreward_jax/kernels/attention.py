"""Attention as one op: ragged batches by segment ids, causal or cached decoding by positions, grouped queries."""

import jax
import jax.numpy as jnp

QUERY_CHUNK = 256
"""Queries at a time: the scores held are [B, N, QUERY_CHUNK, S], and the backward pass computes them again."""

Segments = tuple[jax.Array, jax.Array]


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    segments: Segments | None = None,
    positions: jax.Array | None = None,
    scale: float | None = None,
) -> jax.Array:
    """Softmax attention with float32 softmax; query head n reads key head n // (N / K).

    Args:
      q: [B, T, N, H].
      k: [B, S, K, H].
      v: [B, S, K, H].
      segments: int32 ([B, T], [B, S]); a query sees a key where the ids are equal.
      positions: int32 [B, T]; a query sees the keys whose index is at most its position.
      scale: factor on the scores, by default H ** -0.5.

    Returns:
      [B, T, N, H] in q's dtype; queries that see no key get 0.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    b, t, n, h = q.shape
    q = q.reshape(b, t, k.shape[2], n // k.shape[2], h)
    q_segments = None if segments is None else segments[0]

    @jax.checkpoint
    def chunk(q, q_segments, positions):
        mask = _mask(q_segments, None if segments is None else segments[1], positions, k.shape[1])
        return _attend(q, k, v, mask, scale)

    if t <= QUERY_CHUNK:
        return chunk(q, q_segments, positions).reshape(b, t, n, h)
    out = _over_chunks(chunk, (q, q_segments, positions), t)
    return out.reshape(b, t, n, h)


def _over_chunks(chunk, args, t):
    """Maps `chunk` over stretches of the T axis (axis 1) of args; the last stretch is padded."""
    count = -(-t // QUERY_CHUNK)

    def cut(x):
        x = jnp.pad(x, [(0, 0), (0, count * QUERY_CHUNK - t)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], count, QUERY_CHUNK, *x.shape[2:]), 1, 0)

    out = jax.lax.map(lambda xs: chunk(*xs), jax.tree.map(cut, args))
    out = jnp.moveaxis(out, 0, 1)
    return out.reshape(out.shape[0], count * QUERY_CHUNK, *out.shape[3:])[:, :t]


def _mask(q_segments, k_segments, positions, keys):
    """bool [B, 1, 1, T, S], or None where every query sees every key."""
    mask = None
    if k_segments is not None:
        mask = q_segments[:, :, None] == k_segments[:, None, :]
    if positions is not None:
        causal = jnp.arange(keys) <= positions[:, :, None]
        mask = causal if mask is None else mask & causal
    return None if mask is None else mask[:, None, None]


def _attend(q, k, v, mask, scale):
    scores = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32) * scale
    if mask is None:
        weights = jax.nn.softmax(scores, axis=-1)
    else:
        scores = jnp.where(mask, scores, -jnp.inf)
        top = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0.0)))
        weights = weights / jnp.maximum(weights.sum(axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    return jnp.einsum("bkgts,bskh->btkgh", weights.astype(v.dtype), v).astype(q.dtype)
