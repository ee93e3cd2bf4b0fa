"""Attention for any platform in plain XLA operations, a stretch of queries at a time.

Scores exist for one stretch only, forward and backward; the backward pass computes them again from the stored
log-sum-exp (arXiv 2205.14135, without its tiles over keys), so memory grows with T + S.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spatialreward_jax.kernels.masking import HIDDEN, Segments, visible

CPU_BYTES = 4 * 2**20
"""Float32 scores held at once on a CPU: what its caches hold; tests/benchmarks/attention.py measures it."""
DEVICE_BYTES = 512 * 2**20
"""The same on an accelerator, where long stretches fill the chip."""


class Inputs(NamedTuple):
    """What both passes take: q [B, T, N, H]; k, v [B, S, K, H]; int32 segments ([B, T], [B, S]), positions [B, T]."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    segments: Segments | None
    positions: jax.Array | None

    @property
    def by_query(self) -> tuple:
        """q, its segments and its positions."""
        return self.q, None if self.segments is None else self.segments[0], self.positions


def forward(inputs: Inputs, *, scale: float, limit: int) -> tuple[jax.Array, jax.Array]:
    """Output [B, T, N, H] in q's dtype and log-sum-exp [B, N, T] float32; `limit` bounds the bytes of scores held."""
    k, v = heads_first(inputs.k), heads_first(inputs.v)

    def chunk(carry, xs):
        q, segments, positions = xs
        scores = masked_scores(q, k, inputs.segments, segments, positions, scale)
        top = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        some = top > HIDDEN / 2
        out = jnp.einsum("bkms,bksh->bkmh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        out = jnp.where(some, out / total, 0.0).astype(q.dtype)
        return carry, (out, jnp.where(some, top + jnp.log(total), 0.0))

    _, (out, lse) = over_queries(chunk, None, inputs.by_query, k.shape, limit)
    return restore(out, inputs.q), restore(lse, inputs.q)[..., 0].swapaxes(1, 2)


def backward(inputs: Inputs, lse: jax.Array, delta: jax.Array, grad: jax.Array, *, scale: float, limit: int):
    """Gradients of q, k, v from the output's gradient [B, T, N, H].

    lse and delta are [B, N, T] float32; delta is the sum over H of output times its gradient, less lse's gradient.
    """
    k, v = heads_first(inputs.k), heads_first(inputs.v)

    def chunk(carry, xs):
        q, segments, positions, lse, delta, grad = xs
        weights = jnp.exp(masked_scores(q, k, inputs.segments, segments, positions, scale) - lse)
        d_weights = jnp.einsum("bkmh,bksh->bkms", grad, v, preferred_element_type=jnp.float32)
        d_scores = (weights * (d_weights - delta) * scale).astype(q.dtype)
        dq = jnp.einsum("bkms,bksh->bkmh", d_scores, k, preferred_element_type=jnp.float32).astype(q.dtype)
        dk = jnp.einsum("bkms,bkmh->bksh", d_scores, q, preferred_element_type=jnp.float32)
        dv = jnp.einsum("bkms,bkmh->bksh", weights.astype(v.dtype), grad, preferred_element_type=jnp.float32)
        return (carry[0] + dk, carry[1] + dv), dq

    zeros = (jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32))
    columns = tuple(x.swapaxes(1, 2)[..., None] for x in (lse, delta))
    (dk, dv), dq = over_queries(chunk, zeros, (*inputs.by_query, *columns, grad), k.shape, limit)
    return restore(dq, inputs.q), dk.swapaxes(1, 2).astype(k.dtype), dv.swapaxes(1, 2).astype(v.dtype)


def heads_first(x: jax.Array) -> jax.Array:
    """[B, S, K, H] -> [B, K, S, H]."""
    return x.swapaxes(1, 2)


def masked_scores(q, k, segments, q_segments, positions, scale: float) -> jax.Array:
    """[B, K, G * t, S] float32 scores of a stretch of queries, HIDDEN where invisible.

    q [B, K, G * t, H]; k [B, K, S, H]; segments are the whole call's, q_segments and positions [B, t] the stretch's.
    """
    scores = jnp.einsum("bkmh,bksh->bkms", q, k, preferred_element_type=jnp.float32) * scale
    mask = visible(None if segments is None else (q_segments, segments[1]), positions, k.shape[2])
    if mask is None:
        return scores
    b, kv_heads, rows, keys = scores.shape
    scores = scores.reshape(b, kv_heads, -1, mask.shape[1], keys)
    return jnp.where(mask[:, None, None], scores, HIDDEN).reshape(b, kv_heads, rows, keys)


def stretch(batch: int, heads: int, queries: int, keys: int, limit: int) -> int:
    """Queries at a time such that float32 scores [B, N, stretch, S] take at most `limit` bytes (but at least 16)."""
    fits = max(16, limit // (4 * batch * heads * keys))
    count = -(-queries // fits)
    return -(-queries // count)


def over_queries(chunk: Callable, carry: Any, xs: tuple, keys: tuple, limit: int) -> tuple[Any, Any]:
    """Scans `chunk(carry, xs) -> (carry, ys)` over stretches of the T axis.

    Args:
      chunk: gets arrays [B, T, N, x] as [B, K, G * t, x], and [B, T(, x)] as [B, t(, x)]; the last is padded with 0.
      carry: any tree.
      xs: a tree of arrays, the first of them q.
      keys: the shape of k with heads first, [B, K, S, H].
      limit: bytes of float32 scores a stretch may take.

    Returns:
      The last carry, and the ys stacked on a new leading axis.
    """
    b, t, n, _ = xs[0].shape
    kv_heads = keys[1]
    size = stretch(b, n, t, keys[2], limit)
    count = -(-t // size)

    def cut(x):
        x = jnp.pad(x, [(0, 0), (0, count * size - t)] + [(0, 0)] * (x.ndim - 2))
        x = x.reshape(b, count, size, *x.shape[2:])
        if x.ndim < 5:
            return x.swapaxes(0, 1)
        x = x.reshape(b, count, size, kv_heads, n // kv_heads, x.shape[-1])
        return x.transpose(1, 0, 3, 4, 2, 5).reshape(count, b, kv_heads, -1, x.shape[-1])

    xs = jax.tree.map(cut, xs)
    if count == 1:
        carry, ys = chunk(carry, jax.tree.map(lambda x: x[0], xs))
        return carry, jax.tree.map(lambda y: y[None], ys)
    return jax.lax.scan(chunk, carry, xs)


def restore(x: jax.Array, q: jax.Array) -> jax.Array:
    """Stacked results [C, B, K, G * t, x] as [B, T, N, x], for q [B, T, N, H]."""
    b, t, n, _ = q.shape
    count, _, kv_heads, rows, width = x.shape
    group = n // kv_heads
    x = x.reshape(count, b, kv_heads, group, rows // group, width)
    return x.transpose(1, 0, 4, 2, 3, 5).reshape(b, -1, n, width)[:, :t]
