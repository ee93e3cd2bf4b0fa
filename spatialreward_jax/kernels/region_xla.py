"""Region attention in plain XLA operations, a stretch of queries at a time, with its gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from spatialreward_jax.kernels.masking import HIDDEN
from spatialreward_jax.kernels.xla import Inputs, heads_first, masked_scores, over_queries, restore


class Call(NamedTuple):
    """One call: query_sets [B, Q, T], regions bool [B, R, S], lse [B, N, T]; the values in `inputs` go unread."""

    inputs: Inputs
    query_sets: jax.Array
    regions: jax.Array
    lse: jax.Array


def forward(call: Call, *, scale: float, limit: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Key mass [B, N, Q, S], mass and sum of w log w [B, N, R, T]; `limit` bounds the bytes of scores held."""
    inputs, sets, regions, _ = call
    k = heads_first(inputs.k)
    b, _, n, _ = inputs.q.shape
    inside = regions.astype(jnp.float32)

    def chunk(carry, xs):
        weights, logs, sets = _weights(call, k, xs, scale)
        carry = carry + jnp.einsum("btq,bnts->bnqs", sets, weights)
        sums = (jnp.einsum("bnts,brs->bntr", x, inside) for x in (weights, weights * logs))
        return carry, tuple(x.reshape(b, k.shape[1], -1, x.shape[-1]) for x in sums)

    start = jnp.zeros((b, n, sets.shape[1], k.shape[2]), jnp.float32)
    key_mass, sums = over_queries(chunk, start, _by_query(call), k.shape, limit)
    mass, w_log_w = (restore(x, inputs.q).transpose(0, 2, 3, 1) for x in sums)
    return key_mass, mass, w_log_w


def backward(call: Call, d_keys: jax.Array, d_mass: jax.Array, d_w_log_w: jax.Array, *, scale: float, limit: int):
    """Gradients of q, k and the query sets from those of `forward`'s results."""
    inputs, _, regions, _ = call
    k = heads_first(inputs.k)
    b, t, n, _ = inputs.q.shape
    kv_heads = k.shape[1]
    inside = regions.astype(jnp.float32)

    def chunk(dk, xs):
        *xs, d_mass, d_w_log_w = xs
        weights, logs, sets = _weights(call, k, xs, scale)
        by_region = lambda x: jnp.einsum("bntr,brs->bnts", x.reshape(b, n, -1, x.shape[-1]), inside)
        d_weights = jnp.einsum("btq,bnqs->bnts", sets, d_keys) + by_region(d_mass) + by_region(d_w_log_w) * (logs + 1)
        slope = weights * d_weights
        d_scores = (slope - weights * slope.sum(axis=-1, keepdims=True)) * scale
        d_scores = d_scores.reshape(b, kv_heads, -1, d_scores.shape[-1])
        dq = jnp.einsum("bkms,bksh->bkmh", d_scores, k, preferred_element_type=jnp.float32)
        dk = dk + jnp.einsum("bkms,bkmh->bksh", d_scores, xs[0], preferred_element_type=jnp.float32)
        return dk, (dq.astype(k.dtype), jnp.einsum("bnts,bnqs->btq", weights, d_keys))

    more = tuple(x.transpose(0, 3, 1, 2) for x in (d_mass, d_w_log_w))
    dk, (dq, d_sets) = over_queries(chunk, jnp.zeros(k.shape, jnp.float32), (*_by_query(call), *more), k.shape, limit)
    d_sets = d_sets.swapaxes(0, 1).reshape(b, -1, d_sets.shape[-1])[:, :t]
    return restore(dq, inputs.q), dk.swapaxes(1, 2).astype(k.dtype), d_sets.swapaxes(1, 2)


def _by_query(call):
    return (*call.inputs.by_query, call.lse.swapaxes(1, 2)[..., None], call.query_sets.swapaxes(1, 2))


def _weights(call, k, xs, scale):
    """A stretch's weights and their logarithms (0 where invisible) [B, N, t, S], and its set weights [B, t, Q]."""
    q, segments, positions, lse, sets = xs
    scores = masked_scores(q, k, call.inputs.segments, segments, positions, scale)
    logs = jnp.where(scores > HIDDEN / 2, scores - lse, 0.0)
    weights = jnp.where(scores > HIDDEN / 2, jnp.exp(logs), 0.0)
    shape = (q.shape[0], call.inputs.q.shape[2], -1, k.shape[2])
    return weights.reshape(shape), logs.reshape(shape), sets
