"""Attention for any platform in plain XLA operations, a stretch of queries at a time.

Scores exist for one stretch only, forward and backward; the backward pass computes them again from the stored
log-sum-exp (arXiv 2205.14135, without its tiles over keys), so memory grows with T + S.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from spatialreward_jax.kernels.masking import HIDDEN, Segments, visible

CPU_BYTES = 8 * 2**20
"""Float32 scores held at once on a CPU; see tests/benchmarks/attention.py."""
DEVICE_BYTES = 512 * 2**20
"""The same on an accelerator, where long stretches fill the chip."""


class Inputs(NamedTuple):
    """What both passes take: q [B, T, N, H]; k, v [B, S, K, H]; int32 segments ([B, T], [B, S]), positions [B, T]."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    segments: Segments | None
    positions: jax.Array | None


def forward(inputs: Inputs, *, scale: float, limit: int) -> tuple[jax.Array, jax.Array]:
    """Output [B, T, N, H] in q's dtype and log-sum-exp [B, N, T] float32; `limit` bounds the bytes of scores held."""
    k, v = _heads_first(inputs.k), _heads_first(inputs.v)

    def chunk(carry, xs):
        q, q_segments, positions = xs
        scores = _scores(q, k, inputs, q_segments, positions, scale)
        top = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        some = top > HIDDEN / 2
        out = jnp.einsum("bkms,bksh->bkmh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        out = jnp.where(some, out / total, 0.0).astype(q.dtype)
        return carry, (out, jnp.where(some, top + jnp.log(total), 0.0)[..., 0])

    _, (out, lse) = _over_queries(chunk, None, inputs, limit, ())
    return _restore(out, inputs), _restore(lse, inputs)[..., 0].swapaxes(1, 2)


def backward(inputs: Inputs, lse: jax.Array, delta: jax.Array, grad: jax.Array, *, scale: float, limit: int):
    """Gradients of q, k, v from the output's gradient [B, T, N, H].

    lse and delta are [B, N, T] float32; delta is the sum over H of output times its gradient, less lse's gradient.
    """
    k, v = _heads_first(inputs.k), _heads_first(inputs.v)

    def chunk(carry, xs):
        q, q_segments, positions, lse, delta, grad = xs
        weights = jnp.exp(_scores(q, k, inputs, q_segments, positions, scale) - lse)
        d_weights = jnp.einsum("bkmh,bksh->bkms", grad, v, preferred_element_type=jnp.float32)
        d_scores = (weights * (d_weights - delta) * scale).astype(q.dtype)
        dq = jnp.einsum("bkms,bksh->bkmh", d_scores, k, preferred_element_type=jnp.float32).astype(q.dtype)
        dk = jnp.einsum("bkms,bkmh->bksh", d_scores, q, preferred_element_type=jnp.float32)
        dv = jnp.einsum("bkms,bkmh->bksh", weights.astype(v.dtype), grad, preferred_element_type=jnp.float32)
        return (carry[0] + dk, carry[1] + dv), dq

    zeros = (jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32))
    columns = tuple(x.swapaxes(1, 2)[..., None] for x in (lse, delta))
    (dk, dv), dq = _over_queries(chunk, zeros, inputs, limit, (*columns, grad))
    return _restore(dq, inputs), dk.swapaxes(1, 2).astype(k.dtype), dv.swapaxes(1, 2).astype(v.dtype)


def stretch(batch: int, heads: int, queries: int, keys: int, limit: int) -> int:
    """Queries at a time such that float32 scores [B, N, stretch, S] take at most `limit` bytes (but at least 16)."""
    fits = max(16, limit // (4 * batch * heads * keys))
    count = -(-queries // fits)
    return -(-queries // count)


def _heads_first(x):
    return x.swapaxes(1, 2)


def _scores(q, k, inputs, q_segments, positions, scale):
    """[B, K, G * t, S] float32 scores of a stretch, HIDDEN where invisible."""
    scores = jnp.einsum("bkmh,bksh->bkms", q, k, preferred_element_type=jnp.float32) * scale
    segments = None if q_segments is None else (q_segments, inputs.segments[1])
    mask = visible(segments, positions, k.shape[2])
    if mask is None:
        return scores
    b, kv_heads, rows, keys = scores.shape
    scores = scores.reshape(b, kv_heads, -1, mask.shape[1], keys)
    return jnp.where(mask[:, None, None], scores, HIDDEN).reshape(b, kv_heads, rows, keys)


def _over_queries(chunk, carry, inputs, limit, more):
    """Scans `chunk` over stretches of T. Arrays [B, T, N, x] reach it as [B, K, G * t, x], [B, T] as [B, t].

    Results [B, K, G * t, x] come back stacked as [C, B, K, G * t, x].
    """
    q, k = inputs.q, inputs.k
    b, t, n, _ = q.shape
    size = stretch(b, n, t, k.shape[1], limit)
    count = -(-t // size)

    def cut(x):
        x = jnp.pad(x, [(0, 0), (0, count * size - t)] + [(0, 0)] * (x.ndim - 2))
        x = x.reshape(b, count, size, *x.shape[2:])
        if x.ndim == 3:
            return x.swapaxes(0, 1)
        x = x.reshape(b, count, size, k.shape[2], n // k.shape[2], x.shape[-1])
        return x.transpose(1, 0, 3, 4, 2, 5).reshape(count, b, k.shape[2], -1, x.shape[-1])

    q_segments = None if inputs.segments is None else inputs.segments[0]
    xs = jax.tree.map(cut, (q, q_segments, inputs.positions, *more))
    if count == 1:
        carry, ys = chunk(carry, jax.tree.map(lambda x: x[0], xs))
        return carry, jax.tree.map(lambda y: y[None], ys)
    return jax.lax.scan(chunk, carry, xs)


def _restore(x, inputs):
    """[C, B, K, G * t(, x)] -> [B, T, N, x]."""
    b, t, n, _ = inputs.q.shape
    kv_heads = inputs.k.shape[2]
    x = x.reshape(x.shape[0], b, kv_heads, n // kv_heads, -1, x.shape[4] if x.ndim == 5 else 1)
    return x.transpose(1, 0, 4, 2, 3, 5).reshape(b, -1, n, x.shape[-1])[:, :t]
